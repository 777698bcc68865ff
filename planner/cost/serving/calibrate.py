"""A user's own runs: a handful of multipliers for each (model, device, backend), shrunk towards none.

One run moves the overall level; several tell overheads, prefill interference and the wait for a first token apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.cost.robust_fit import fit_log
from planner.cost.serving.coefficients import ADJUSTMENTS, Coefficients, Key, key_of
from planner.cost.serving.fit import Runs

FloatArray = npt.NDArray[np.float64]

#: Relative error of a run within its cluster, once the cluster's level is known. Source: held-out residuals; measured.
TPOT_RUN_SD, TTFT_RUN_SD = 0.08, 0.25
SOFT_SCALE = 1.5
TPOT_ADJUSTMENTS = ("overall", "overhead", "prefill")
TTFT_ADJUSTMENTS = ("prompt", "wait_steps")


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """Errors of one (model, device, backend) on its `num_runs` measured runs, as fractions; None without any."""

    key: Key
    num_runs: int
    tpot_mape_before: float | None
    tpot_mape_after: float | None
    ttft_mape_before: float | None
    ttft_mape_after: float | None


def calibrate(runs: Runs, base: Coefficients) -> tuple[Coefficients, tuple[CalibrationReport, ...]]:
    """`base` with an adjustment for each (model, device, backend) among the measured runs, and what it changed.

    An adjustment that `base` already has for one of them is replaced. Runs without any measured time are left out.
    """
    keys = [key_of(worker) for worker in runs.model.workers]
    groups: dict[Key, list[int]] = defaultdict(list)
    for index in np.flatnonzero(np.isfinite(runs.tpot_s) | np.isfinite(runs.ttft_s)).tolist():
        groups[keys[runs.plans.worker[index]]].append(index)
    adjusted = dict(base.adjustments)
    for key, members in groups.items():
        part = some_runs(runs, np.array(members))
        found = _fit(part, TPOT_ADJUSTMENTS, "tpot", base, key, {})
        adjusted[key] = found | _fit(part, TTFT_ADJUSTMENTS, "ttft", base, key, found)
    made = replace(base, adjustments=adjusted)
    reports = tuple(_report(some_runs(runs, np.array(members)), key, base, made) for key, members in groups.items())
    return made, reports


def some_runs(runs: Runs, index: npt.NDArray[np.intp]) -> Runs:
    """Some of the runs, with the workers that they use."""
    used, place = np.unique(runs.plans.worker[index], return_inverse=True)
    return Runs(
        model=runs.model.only(used.tolist()),
        plans=replace(runs.plans.take(index), worker=place),
        tpot_s=runs.tpot_s[index],
        ttft_s=runs.ttft_s[index],
        cluster=[runs.cluster[one] for one in index],
    )


def _fit(
    runs: Runs,
    names: tuple[str, ...],
    what: str,
    base: Coefficients,
    key: Key,
    known: Mapping[str, float],
) -> dict[str, float]:
    measured = runs.tpot_s if what == "tpot" else runs.ttft_s
    kept = np.isfinite(measured)
    if not kept.any():
        return {}

    def predict(logs: FloatArray) -> FloatArray:
        tried = dict(known) | dict(zip(names, np.exp(logs).tolist(), strict=True))
        found = runs.model.with_coefficients(replace(base, adjustments={key: tried})).predict(runs.plans)
        return (found.tpot_s if what == "tpot" else found.ttft_s)[kept]

    sd = TPOT_RUN_SD if what == "tpot" else TTFT_RUN_SD
    spread = [ADJUSTMENTS[name] for name in names]
    fitted = fit_log(predict, measured[kept], np.zeros(len(names)), spread, residual_sd=sd, soft_scale=SOFT_SCALE)
    return dict(zip(names, np.exp(fitted.params).tolist(), strict=True))


def _report(runs: Runs, key: Key, before: Coefficients, after: Coefficients) -> CalibrationReport:
    def errors(coefficients: Coefficients) -> tuple[float | None, float | None]:
        found = runs.model.with_coefficients(coefficients).predict(runs.plans)
        return _mape(found.tpot_s, runs.tpot_s), _mape(found.ttft_s, runs.ttft_s)

    (tpot_before, ttft_before), (tpot_after, ttft_after) = errors(before), errors(after)
    return CalibrationReport(key, len(runs.plans), tpot_before, tpot_after, ttft_before, ttft_after)


def _mape(predicted: FloatArray, measured: FloatArray) -> float | None:
    kept = np.isfinite(measured)
    return float(np.abs(predicted[kept] / measured[kept] - 1.0).mean()) if kept.any() else None
