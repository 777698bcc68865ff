"""Solve the fleet model: a few periods at once where reserved instances tie them, many by `hours`."""

from __future__ import annotations

import time

import numpy as np

from formulations.backends.result import SolverResult
from formulations.gpu_fleet.explain import explain
from formulations.gpu_fleet.hours import MANY_PERIODS, HoursSearch
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.gpu_fleet.switching import SwitchingSearch
from formulations.outcome import Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.fleet_plan import FleetPlan


def search(problem: FleetProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[FleetPlan]:
    """The cheapest fleet, with the solver's bound; infeasible with reasons and the smallest ways out."""
    if problem.num_periods > MANY_PERIODS and problem.switching:
        return _apart(SwitchingSearch, problem, options, budget, method)
    if apart_by_hour(problem):
        return by_hour(problem, options, budget, method)
    every = tuple(range(problem.num_periods))
    groups = [(period,) for period in every] if problem.decoupled else [every]
    solve = solver_of(method)
    counts: dict[int, Counts] = {}
    results: list[SolverResult] = []
    build_s = 0.0
    weights = [float(problem.share[list(group)].sum()) for group in groups]
    for place, group in enumerate(groups):
        # The last ones get what the first ones leave.
        part = PartBudget(budget, budget.remaining_s / (len(groups) - place)) if len(groups) > 1 else budget
        started = time.perf_counter()
        built = FleetBuilder(problem, group).build()
        build_s += time.perf_counter() - started
        if len(group) == 1 and len(problem.model_names) > 1:
            result, values = ServicePlans(problem, group[0], built, options.relative_gap).solve(solve, options, part)
        else:
            result, values = solve(built.model, part, options)
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


def apart_by_hour(problem: FleetProblem) -> bool:
    """Whether hours are solved by `HoursSearch`: many, tied by reserved instances alone, and losing nothing."""
    many = problem.num_periods > MANY_PERIODS
    return many and not (problem.spare_instances or problem.zone_names or problem.switching)


def by_hour(problem: FleetProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[FleetPlan]:
    """The fleet of many hours, each solved for itself at prices of the reserved instances."""
    return _apart(HoursSearch, problem, options, budget, method)


def _apart(
    way: type[HoursSearch] | type[SwitchingSearch],
    problem: FleetProblem,
    options: SolveOptions,
    budget: Budget,
    method: str,
) -> SearchResult[FleetPlan]:
    started = time.perf_counter()
    hours = way(problem, options, budget, method)
    build_s = time.perf_counter() - started
    status = hours.run()
    stop = Stop.PROOF if status in (Status.OPTIMAL, Status.INFEASIBLE) else budget.stop() or Stop.HEURISTIC
    reasons: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()
    if status is Status.INFEASIBLE:
        every = range(problem.num_periods)
        groups = [(period,) for period in every] if problem.decoupled else [tuple(every)]
        reasons, relaxations = explain(problem, groups, budget)
    found = np.isfinite(hours.cost)
    return SearchResult(
        status=status,
        stop=stop,
        plan=plan_of(problem, hours.counts()) if found else None,
        solver=method if hours.last is None else hours.last.solver,
        solver_version="" if hours.last is None else hours.last.solver_version,
        claimed=hours.cost if found else None,
        bound=None if status is Status.INFEASIBLE else Bound(value=hours.bound, name=hours.bound_name),
        build_s=build_s,
        reasons=reasons,
        relaxations=relaxations,
    )


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
