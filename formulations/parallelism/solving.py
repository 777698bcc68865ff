"""One model solved for counts of workers: by the backend that is asked for, or quickly for a question beside it."""

from __future__ import annotations

import numpy as np

from formulations.backends.linear import FloatArray, LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.outcome import Budget, PartBudget, SolveOptions
from formulations.parallelism.milp import ParallelModel, build
from formulations.parallelism.plans import served_per_s
from formulations.parallelism.problem import IntArray, ParallelProblem

#: Seconds for a question beside the main one.
QUICK_S = 2.0


def solve_model(
    model: LinearModel, budget: Budget, options: SolveOptions, method: str
) -> tuple[SolverResult, FloatArray | None]:
    """The model by HiGHS, SCIP or CBC, and the values of its variables."""
    if method == "cbc":
        return solve_linear_pulp(model, budget, options)
    return solve_linear_mathopt(model, budget, options, solver=method)


def counts_of(built: ParallelModel, values: FloatArray) -> IntArray:
    """Workers of every type, [W]."""
    counts = np.zeros(built.counts.size, dtype=np.int64)
    inside = built.counts >= 0
    counts[inside] = [as_integer(value, 1e-5) for value in values[built.counts[inside]]]
    return counts


def quick(problem: ParallelProblem, budget: Budget, without: frozenset[int] = frozenset()) -> IntArray | None:
    """Counts that serve something, found by HiGHS in little of the time that is left; None where there are none."""
    limit_s = min(QUICK_S, budget.remaining_s)
    if limit_s <= 0 or budget.stop() is not None:
        return None
    built = build(problem, without=without)
    _, values = solve_model(built.model, PartBudget(budget, limit_s), SolveOptions(time_limit_s=limit_s), "highs")
    counts = None if values is None else counts_of(built, values)
    return counts if counts is not None and served_per_s(problem, counts) > 0 else None
