"""Fit the coefficients on measured runs: log residuals, soft-L1, priors, and clusters that count instead of rows.

One run of a cluster (model family, device, backend, precision) says nearly what the next one says, so a cluster weighs
as MOST_RUNS runs at most; without that, a hundred rows of one model decide for all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.cost.robust_fit import fit_log
from planner.cost.serving.coefficients import (
    PARTS,
    PRIORS,
    TPOT_NAMES,
    TTFT_NAMES,
    Coefficients,
    by_host,
    from_logs,
)
from planner.cost.serving.predict import ServingModel, ServingPlans

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

#: Runs that a cluster counts as at most. Source: frozen from inference-serving practice, see docs/cost_model.md.
MOST_RUNS = 5.0
#: Relative error of one run as the fit sees it, and where residuals begin to count linearly, in units of it. Wider
#: than the runs' own noise (2 to 4 %): what is left is structure that the parts do not have.
TPOT_SD, TPOT_SOFT = 0.3, 0.4
TTFT_SD, TTFT_SOFT = 0.5, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Measured runs of compiled workers.

    tpot_s, ttft_s : measured, [runs]; NaN where unknown. cluster : what each run belongs to, [runs].
    """

    model: ServingModel
    plans: ServingPlans
    tpot_s: FloatArray
    ttft_s: FloatArray
    cluster: Sequence[Hashable]


def prior_coefficients() -> Coefficients:
    """Every coefficient at its prior median: what a fit starts from."""
    return Coefficients(values={name: prior.median for name, prior in PRIORS.items()})


def fit(runs: Runs, use: BoolArray) -> Coefficients:
    """Coefficients from the runs where `use` is true [runs]; first of TPOT, then of TTFT given those.

    Raises ValueError where none of them has a measured TPOT, or none a TTFT.
    """
    design, speculative = tpot_design(runs)
    kept = np.flatnonzero(use & np.isfinite(runs.tpot_s))
    weights = cluster_weights([runs.cluster[index] for index in kept.tolist()])
    mean, spread = _prior(TPOT_NAMES)
    rows, flags = design[kept], speculative[kept]

    def tpot(logs: FloatArray) -> FloatArray:
        multipliers = np.exp(logs)
        return np.asarray(rows @ multipliers[:-1] * np.where(flags, multipliers[-1], 1.0))

    found = fit_log(tpot, runs.tpot_s[kept], mean, spread, residual_sd=TPOT_SD, soft_scale=TPOT_SOFT, weights=weights)
    values = dict(prior_coefficients().values) | from_logs(TPOT_NAMES, found.params)
    sd = dict(zip(TPOT_NAMES, found.sd.tolist(), strict=True))
    return _fit_ttft(runs, use, Coefficients(values=values, sd=sd))


def _fit_ttft(runs: Runs, use: BoolArray, known: Coefficients) -> Coefficients:
    model = runs.model.with_coefficients(known)
    first = model.first_token_parts(runs.plans)
    kept = np.flatnonzero(use & np.isfinite(runs.ttft_s))
    weights = cluster_weights([runs.cluster[index] for index in kept.tolist()])
    mean, spread = _prior(TTFT_NAMES)
    backend = [model.workers[worker].backend for worker in runs.plans.worker[kept]]
    places = {name: index for index, name in enumerate(TTFT_NAMES)}

    def column(name: str) -> npt.NDArray[np.intp]:
        return np.array([places[f"{name}.{one}"] for one in backend])

    first_token, prompt, wait_steps = column("first_token"), column("prompt"), column("wait_steps")
    alone, sequences, step, queue = (first[name][kept] for name in ("alone", "sequences", "step", "queue"))

    def ttft(logs: FloatArray) -> FloatArray:
        c = np.exp(logs)
        own = c[first_token] + c[prompt] * alone * (1 + c[places["burst"]] * sequences) + c[wait_steps] * step
        return np.asarray(own + queue)

    found = fit_log(ttft, runs.ttft_s[kept], mean, spread, residual_sd=TTFT_SD, soft_scale=TTFT_SOFT, weights=weights)
    values = dict(known.values) | from_logs(TTFT_NAMES, found.params)
    sd = dict(known.sd) | dict(zip(TTFT_NAMES, found.sd.tolist(), strict=True))
    return replace(known, values=values, sd=sd)


def tpot_design(runs: Runs) -> tuple[FloatArray, BoolArray]:
    """Unit parts in the order of TPOT_NAMES without speculation, [runs, names], and which runs speculate."""
    unit = runs.model.unit_parts(runs.plans)
    workers = runs.model.workers
    design = np.zeros((len(runs.plans), len(TPOT_NAMES) - 1))
    for part in PARTS:
        owner = [by_host(part, one.backend, one.device) if part == "kernel_overhead" else part for one in workers]
        index = np.array([TPOT_NAMES.index(name) for name in owner])[runs.plans.worker]
        design[np.arange(len(runs.plans)), index] += unit[part]
    return design, np.array([one.speculative for one in workers])[runs.plans.worker]


def cluster_weights(cluster: Sequence[Hashable]) -> FloatArray:
    """Weight of each run: its cluster's runs together count as MOST_RUNS at most."""
    sizes = Counter(cluster)
    return np.array([min(MOST_RUNS, sizes[one]) / sizes[one] for one in cluster])


def _prior(names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
    priors = [PRIORS[name] for name in names]
    return np.log([one.median for one in priors]), np.array([one.log_sd for one in priors])
