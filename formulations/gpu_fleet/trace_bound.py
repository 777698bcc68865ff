"""The least that a trace can cost: the linear relaxation of the fleet model, window by window.

A window's fleet is free to differ from the last one's, counts may be fractions, and nothing is known of requests that
wait from one window into the next: whatever is done to serve the trace window by window costs at least this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from formulations.backends.linear import solve_linear_mathopt
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Budget, SolveOptions, Status

#: Seconds for one linear program; it takes milliseconds.
PROGRAM_S = 30.0
#: Slack of the solver, relative.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBound:
    """Lower bounds of one window; None where no fleet serves it.

    gpus : whole GPUs, of whichever offers need the fewest, not of the cheapest fleet.
    """

    rate_per_s: float
    usd_per_hour: float | None
    gpus: int | None


def window_bounds(problem: FleetProblem) -> list[WindowBound]:
    """Bounds of every period of the problem, in the order of `hours`, each window for itself."""
    # A count of GPUs has no budget, and its price is one for each GPU.
    by_gpus = replace(problem, price=problem.gpus.astype(np.float64), budget_usd_per_hour=np.inf)
    found: dict[int, WindowBound] = {}
    for period, hours in enumerate(problem.hours):
        gpus = _relaxed(by_gpus, period)
        bound = WindowBound(
            rate_per_s=float(problem.rate[period].sum()),
            usd_per_hour=_relaxed(problem, period),
            gpus=None if gpus is None else int(np.ceil(gpus - ROUNDING * max(1.0, gpus))),
        )
        found |= dict.fromkeys(hours, bound)
    return [found[hour] for hour in sorted(found)]


def _relaxed(problem: FleetProblem, period: int) -> float | None:
    """Optimum of the linear relaxation of one period; None where it has none."""
    if not (problem.rate[period] > 0).any():
        return 0.0
    model = FleetBuilder(problem, (period,)).build().model
    linear = replace(model, integer=np.zeros_like(model.integer))
    result, _ = solve_linear_mathopt(linear, Budget(PROGRAM_S), SolveOptions(time_limit_s=PROGRAM_S))
    if result.status is Status.INFEASIBLE:
        return None
    # Cut short, a program may have proven nothing; costs are never below 0.
    return max(0.0, result.bound or 0.0)
