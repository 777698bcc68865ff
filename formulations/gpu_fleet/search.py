"""Solve the fleet model: all periods at once where reserved instances tie them, else one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from formulations.backends.linear import solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.gpu_fleet.explain import explain
from formulations.gpu_fleet.milp import FleetBuilder, PeriodColumns
from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.outcome import Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.fleet_plan import FleetPlan

Solver = Callable[..., tuple[SolverResult, FloatArray | None]]
#: How far a solver's count may be from a whole number.
WHOLE = 1e-5
#: Shares below this are rounding of the solver.
NOTHING = 1e-9


def solver_of(method: str) -> Solver:
    """The backend of a method: highs, scip or cbc."""
    if method == "cbc":
        return solve_linear_pulp

    def solve(model: object, budget: Budget, options: SolveOptions) -> tuple[SolverResult, FloatArray | None]:
        return solve_linear_mathopt(model, budget, options, solver=method)  # type: ignore[arg-type]

    return solve


def search(problem: FleetProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[FleetPlan]:
    """The cheapest fleet, with the solver's bound; infeasible with reasons and the smallest ways out."""
    every = tuple(range(problem.num_periods))
    groups = [(period,) for period in every] if problem.decoupled else [every]
    solve = solver_of(method)
    counts: dict[int, Counts] = {}
    results: list[SolverResult] = []
    build_s = 0.0
    weights = [float(problem.share[list(group)].sum()) for group in groups]
    for place, group in enumerate(groups):
        started = time.perf_counter()
        built = FleetBuilder(problem, group).build()
        build_s += time.perf_counter() - started
        # The last ones get what the first ones leave.
        part = PartBudget(budget, budget.remaining_s / (len(groups) - place))
        result, values = solve(built.model, part if len(groups) > 1 else budget, options)
        results.append(result)
        if result.status is Status.INFEASIBLE:
            reasons, relaxations = explain(problem, groups, budget)
            return SearchResult(
                status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver=result.solver,
                solver_version=result.solver_version, build_s=build_s, reasons=reasons, relaxations=relaxations,
            )  # fmt: skip
        if values is None:
            return SearchResult(
                status=Status.UNKNOWN, stop=result.stop, plan=None, solver=result.solver,
                solver_version=result.solver_version, build_s=build_s,
            )  # fmt: skip
        for columns, period in zip(built.columns, group, strict=True):
            counts[period] = counts_of(problem, columns, values)
        budget.report(incumbent=_sum(results, weights, "objective"), bound=_sum(results, weights, "bound"))
    return _result(problem, results, weights, counts, build_s)


def _result(
    problem: FleetProblem,
    results: list[SolverResult],
    weights: list[float],
    counts: dict[int, Counts],
    build_s: float,
) -> SearchResult[FleetPlan]:
    proven = all(result.status is Status.OPTIMAL for result in results)
    stops = [result.stop for result in results if result.status is not Status.OPTIMAL]
    bound = _sum(results, weights, "bound")
    plan = plan_of(problem, counts)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else stops[0],
        plan=plan,
        solver=results[0].solver,
        solver_version=results[0].solver_version,
        claimed=_sum(results, weights, "objective"),
        bound=None if bound is None else Bound(value=bound, name="branch and bound of the whole model"),
        build_s=build_s,
    )


def _sum(results: list[SolverResult], weights: list[float], what: str) -> float | None:
    """Mean over all periods; None while one is unknown or unsolved."""
    values = [getattr(result, what) for result in results]
    if len(values) < len(weights) or any(value is None for value in values):
        return None
    return float(np.dot(values, weights))


def counts_of(problem: FleetProblem, columns: PeriodColumns, values: FloatArray) -> Counts:
    """The decisions of one period in a solution of the model. Raises SolverError for a count that is not whole."""

    def whole(where: IntArray) -> IntArray:
        return np.array([as_integer(value, WHOLE) for value in values[where]], dtype=np.int64)

    def shares(where: IntArray) -> FloatArray:
        table = np.zeros((len(problem.bucket_model), problem.num_configs))
        table[columns.bucket, columns.config] = np.where(values[where] > NOTHING, values[where], 0.0)
        total = table.sum(axis=1, keepdims=True)
        return np.where(total > 0, table / np.where(total > 0, total, 1.0), 0.0)

    return Counts(
        instances=whole(columns.y),
        replicas=whole(columns.z),
        shares=shares(columns.x),
        lost={
            offer: (whole(columns.lost_z[offer]), shares(columns.lost_x[offer]))
            for offer in columns.lost_z
            if values[columns.y[offer]] > 0.5
        },
    )
