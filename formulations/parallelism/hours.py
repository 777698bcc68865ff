"""The counts of every hour: one model each, or one for all where a price of change joins them.

Hours of equal demand are solved once. Where changes have a price that holds for hours in a row: of two such hours the
cheaper one's workers do for both, and no way through them is dearer than the way around (triangle inequality).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from formulations.backends.result import SolverResult
from formulations.outcome import Budget, PartBudget, SolveOptions, Status, Stop
from formulations.parallelism.milp import build
from formulations.parallelism.plans import served_per_s
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.solving import Choice, choices_of, solve_model


@dataclass(frozen=True, slots=True, eq=False)
class Hours:
    """What the hours of a problem are solved to; one hour where the demand is not by the hour.

    choices : of each hour, None where any is unsolved. result : of all together, objective and bound as their mean.
    """

    rates: tuple[float | None, ...]
    choices: tuple[Choice, ...] | None
    result: SolverResult
    build_s: float

    @property
    def peak(self) -> int:
        """The hour that asks for most."""
        return int(np.argmax([rate or 0.0 for rate in self.rates]))


def solve_hours(problem: ParallelProblem, budget: Budget, options: SolveOptions, method: str) -> Hours:
    """Counts and flows for every hour."""
    rates: Sequence[float | None] = [problem.target_per_s] if problem.hourly is None else problem.hourly.tolist()
    return (_joined if problem.change_cost else _apart)(problem, rates, budget, options, method)


def _apart(
    problem: ParallelProblem, rates: Sequence[float | None], budget: Budget, options: SolveOptions, method: str
) -> Hours:
    """Each rate by itself, the highest first: where that cannot be served nothing else matters."""
    found: dict[float | None, tuple[SolverResult, Choice | None]] = {}
    build_s = 0.0
    distinct = sorted(set(rates), key=lambda rate: -(rate or 0.0))
    for place, rate in enumerate(distinct):
        if rate == 0.0:
            continue
        one = problem if rate is None else problem.at(rate)
        started = time.perf_counter()
        built = build(one)
        build_s += time.perf_counter() - started
        share = PartBudget(budget, budget.remaining_s / (len(distinct) - place))
        result, values = solve_model(built.model, share, options, method)
        choice = None if values is None else choices_of(one, built, values)[0]
        if choice is not None and served_per_s(one, *choice) <= 0:
            result, choice = _ruled_out(result), None
        found[rate] = result, choice
        if choice is None:
            return Hours(tuple(rates), None, result, build_s)
    nothing = np.zeros(len(problem.workers), dtype=np.int64)
    first = found[distinct[0]][0]
    if 0.0 in distinct:
        zero = replace(first, status=Status.OPTIMAL, stop=Stop.PROOF, objective=0.0, bound=0.0, solve_s=0.0)
        found[0.0] = zero, (nothing, None)
    results = [found[rate][0] for rate in rates]
    unproven = [one for one in results if one.status is not Status.OPTIMAL]
    bounds, objectives = [one.bound for one in results], [one.objective for one in results]
    together = SolverResult(
        status=Status.FEASIBLE if unproven else Status.OPTIMAL,
        stop=unproven[0].stop if unproven else first.stop,
        objective=None if None in objectives else float(np.mean(np.array(objectives, dtype=np.float64))),
        bound=None if None in bounds else float(np.mean(np.array(bounds, dtype=np.float64))),
        solver=first.solver,
        solver_version=first.solver_version,
        solve_s=sum(one.solve_s for one, _ in found.values()),
    )
    choices = tuple(choice for choice in (found[rate][1] for rate in rates) if choice is not None)
    return Hours(tuple(rates), choices, together, build_s)


def _joined(
    problem: ParallelProblem, rates: Sequence[float | None], budget: Budget, options: SolveOptions, method: str
) -> Hours:
    """All hours in one model."""
    runs = [(rate or 0.0, len(list(group))) for rate, group in groupby(rates)]
    started = time.perf_counter()
    built = build(problem, hours=runs)
    build_s = time.perf_counter() - started
    result, values = solve_model(built.model, budget, options, method)
    if values is None:
        return Hours(tuple(rates), None, result, build_s)
    found = choices_of(problem, built, values)
    choices = tuple(choice for choice, (_, hours) in zip(found, runs, strict=True) for _ in range(hours))
    return Hours(tuple(rates), choices, result, build_s)


def _ruled_out(result: SolverResult) -> SolverResult:
    """A solution that serves nothing says that nothing can be served."""
    return replace(result, status=Status.INFEASIBLE, stop=Stop.PROOF, objective=None, bound=None)
