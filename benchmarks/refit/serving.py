"""Fit the serving coefficients on all clean runs; intervals from predictions without the run's own family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.refit.common import DATE, LICENCE, SOURCE
from benchmarks.silicon import held_out, silicon
from planner.cost.serving.coefficients import CALIBRATION, PRIORS
from planner.cost.serving.fit import cluster_weights, fit
from planner.cost.serving.intervals import conformal_factor

DIGITS = 4


def main(data: Path, *, write: bool) -> None:
    """Print coefficients beside their priors; rewrite the catalogue's file if asked."""
    found = silicon()
    clean = found.clean
    fitted = fit(found.runs, clean)
    tpot, ttft = held_out("family")
    weights = cluster_weights([found.runs.cluster[index] for index in np.flatnonzero(clean)])
    spread, errors = {}, {}
    for what, predicted, measured in (("tpot", tpot, found.runs.tpot_s), ("ttft", ttft, found.runs.ttft_s)):
        for kind, member in (("dense", found.dense), ("moe", ~found.dense)):
            part = clean & member
            spread[f"{what}.{kind}"] = conformal_factor(predicted[part], measured[part], weights[member[clean]])
            errors[f"{what}.{kind}"] = float(np.abs(predicted[part] / measured[part] - 1).mean())
    print(f"{'coefficient':36} {'value':>10} {'log sd':>8} {'prior':>10} {'log sd':>8}")
    for name, value in fitted.values.items():
        prior = PRIORS[name]
        print(f"{name:36} {value:10.4g} {fitted.sd[name]:8.2f} {prior.median:10.4g} {prior.log_sd:8.2f}")
    print("held-out error by family", {name: f"{error:.1%}" for name, error in errors.items()})
    print("80 % interval factor", {name: f"{factor:.2f}" for name, factor in spread.items()})
    if write:
        document = {
            "topic": "serving",
            "date": DATE,
            "source": SOURCE.rpartition("/")[0] + ", silicon_sample.csv (mostly InferenceX runs)",
            "licence": LICENCE,
            "method": "soft-L1 on log residuals, priors, clusters weighted; python -m benchmarks.refit serving",
            "rows": int(clean.sum()),
            "error_held_out_by_family": _rounded(errors),
            "values": _rounded(fitted.values),
            "log_sd": _rounded(fitted.sd),
            "spread": _rounded(spread),
        }
        CALIBRATION.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in values.items()}
