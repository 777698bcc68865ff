"""The counts of every hour: one model each, or one for all where a price of change joins them.

Hours of equal demand are solved once. Where changes have a price that holds for hours in a row: of two such hours the
cheaper one's workers do for both, and no way through them is dearer than the way around (triangle inequality).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from formulations.backends.result import SolverResult
from formulations.outcome import TOLERANCE, Budget, PartBudget, SolveOptions, Status, Stop
from formulations.parallelism.milp import build
from formulations.parallelism.plans import served_per_s, worth
from formulations.parallelism.problem import IntArray, ParallelProblem
from formulations.parallelism.solving import Choice, choices_of, solve_model

#: Share of the time in which hours are solved apart, where a price of change joins them.
APART_SHARE = 0.4


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
    """All hours in one model, which starts from the best way through the sets that hours by themselves choose.

    The hours apart bound the whole from below: changes only add to them.
    """
    apart = _apart(problem, rates, PartBudget(budget, APART_SHARE * budget.remaining_s), options, method)
    if apart.choices is None:
        return apart
    through = _way_through(problem, apart)
    runs = _runs(rates)
    started = time.perf_counter()
    built = build(problem, hours=[(rate, count) for _, rate, count in runs])
    build_s = time.perf_counter() - started
    start = np.full(built.model.num_variables, np.nan)
    for (hour, _, _), columns in zip(runs, built.counts, strict=True):
        start[columns[columns >= 0]] = through[hour][0][columns >= 0]
    result, values = solve_model(built.model, budget, options, method, start)
    bounds = [one.bound for one in (apart.result, result) if one.bound is not None]
    chosen, objective = through, _mean_worth(problem, through)
    if values is not None:
        found = choices_of(problem, built, values)
        solved = tuple(choice for choice, (_, _, hours) in zip(found, runs, strict=True) for _ in range(hours))
        if (worth_of := _mean_worth(problem, solved)) < objective:
            chosen, objective = solved, worth_of
    bound = min(max(bounds), objective) if bounds else None
    proven = bound is not None and objective - bound <= TOLERANCE * max(1.0, abs(objective))
    told = replace(
        result,
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else result.stop,
        objective=objective,
        bound=bound,
    )
    return Hours(tuple(rates), chosen, told, build_s + apart.build_s)


def _runs(rates: Sequence[float | None]) -> list[tuple[int, float, int]]:
    """First hour, rate and number of hours in a row that ask for the same."""
    found: list[tuple[int, float, int]] = []
    for hour, rate in enumerate(rate or 0.0 for rate in rates):
        if found and found[-1][1] == rate:
            found[-1] = (found[-1][0], rate, found[-1][2] + 1)
        else:
            found.append((hour, rate, 1))
    return found


def _started_gpus(problem: ParallelProblem, before: IntArray, after: IntArray) -> float:
    return float(np.maximum(after - before, 0) @ problem.gpus)


def _mean_worth(problem: ParallelProblem, choices: Sequence[Choice]) -> float:
    """The objective of all hours, changes included."""
    sets = [counts for counts, _ in choices]
    total = sum(worth(problem, *choice) for choice in choices)
    steps = pairwise(sets if problem.current is None else [problem.running(), *sets])
    total += problem.change_cost * sum(_started_gpus(problem, *step) for step in steps)
    return total / len(sets)


def _way_through(problem: ParallelProblem, apart: Hours) -> tuple[Choice, ...]:
    """The cheapest way through the hours over the sets that they choose by themselves: a shortest path, in which an
    hour may keep any set that serves its rate."""
    assert apart.choices is not None
    sets = {counts.tobytes(): (counts, flows) for counts, flows in apart.choices}
    pool = list(sets.values())
    serves = [served_per_s(problem, *one) for one in pool]
    price = problem.change_cost * np.array([[_started_gpus(problem, one, two) for two, _ in pool] for one, _ in pool])
    cost = np.zeros(len(pool))
    if problem.current is not None:
        cost = problem.change_cost * np.array([_started_gpus(problem, problem.running(), one) for one, _ in pool])
    own = np.array([worth(problem, *one) for one in pool])
    came: list[IntArray] = []
    for hour, rate in enumerate(apart.rates):
        can = np.array([each >= (rate or 0.0) * (1 - TOLERANCE) for each in serves])
        # An hour's own set serves it as far as its solver said so.
        can |= np.array([one[0] is apart.choices[hour][0] for one in pool])
        arrive = cost[:, None] + price if hour else np.where(np.eye(len(pool)) > 0, cost[:, None], np.inf)
        came.append(arrive.argmin(axis=0))
        cost = np.where(can, arrive.min(axis=0) + own, np.inf)
    place = int(cost.argmin())
    found: list[Choice] = []
    for before in came[::-1]:
        found.append(pool[place])
        place = int(before[place])
    return tuple(found[::-1])


def _ruled_out(result: SolverResult) -> SolverResult:
    """A solution that serves nothing says that nothing can be served."""
    return replace(result, status=Status.INFEASIBLE, stop=Stop.PROOF, objective=None, bound=None)
