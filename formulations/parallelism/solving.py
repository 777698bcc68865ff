"""One model solved for counts of workers: by the backend that is asked for, or quickly for a question beside it."""

from __future__ import annotations

import numpy as np

from formulations.backends.linear import FloatArray, LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.outcome import Budget, PartBudget, SolveOptions
from formulations.parallelism.milp import ParallelModel, build
from formulations.parallelism.plans import served_per_s, time_used
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, IntArray, ParallelProblem

#: Workers of each type, [W], and requests/s of each size that flow to them, [M, W]; None for one size.
Choice = tuple[IntArray, FloatArray | None]

#: Seconds for a question beside the main one.
QUICK_S = 2.0


def solve_model(
    model: LinearModel, budget: Budget, options: SolveOptions, method: str, start: FloatArray | None = None
) -> tuple[SolverResult, FloatArray | None]:
    """The model by HiGHS, SCIP or CBC, and the values of its variables; NaN in `start` leaves one open."""
    if method == "cbc":
        return solve_linear_pulp(model, budget, options, start=start)
    return solve_linear_mathopt(model, budget, options, solver=method, start=start)


def choices_of(problem: ParallelProblem, built: ParallelModel, values: FloatArray) -> list[Choice]:
    """Workers of every type and what flows to them, hour by hour."""
    counts = np.zeros(built.counts.shape, dtype=np.int64)
    inside = built.counts >= 0
    counts[inside] = [as_integer(value, 1e-5) for value in values[built.counts[inside]]]
    if built.flows is None:
        return [(one, None) for one in counts]
    flows = np.where(built.flows >= 0, np.maximum(values[built.flows], 0.0), 0.0)
    found: list[Choice] = []
    for own, flow in zip(counts, flows, strict=True):
        # What rounding lets through beyond the workers' time is taken back.
        flow[:, own == 0] = 0.0
        used = np.maximum(time_used(problem, flow), 1e-300)
        found.append((own, _trimmed(problem, flow * np.minimum(own / used, 1.0))))
    return found


def _trimmed(problem: ParallelProblem, flows: FloatArray) -> FloatArray:
    """The flows without what the other side, or the scarcest size, leaves no use for."""
    assert problem.share is not None
    sides = {side: flows[:, problem.role == side].sum(axis=1) for side in (BOTH, PREFILL, DECODE)}
    pairs = np.minimum(sides[PREFILL], sides[DECODE])
    total = sides[BOTH] + pairs
    wanted = float((total / problem.share).min()) * problem.share / np.maximum(total, 1e-300)
    kept = np.empty_like(flows)
    for side, flow in sides.items():
        through = wanted if side == BOTH else wanted * pairs / np.maximum(flow, 1e-300)
        own = problem.role == side
        kept[:, own] = flows[:, own] * through[:, None]
    return kept


def quick(problem: ParallelProblem, budget: Budget, without: frozenset[int] = frozenset()) -> Choice | None:
    """A choice that serves something, found by HiGHS in little of the time that is left; None where there is none."""
    limit_s = min(QUICK_S, budget.remaining_s)
    if limit_s <= 0 or budget.stop() is not None:
        return None
    built = build(problem, without=without)
    _, values = solve_model(built.model, PartBudget(budget, limit_s), SolveOptions(time_limit_s=limit_s), "highs")
    if values is None:
        return None
    (choice,) = choices_of(problem, built, values)
    return choice if served_per_s(problem, *choice) > 0 else None
