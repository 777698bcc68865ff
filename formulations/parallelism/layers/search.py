"""Bound by column generation, a plan from its pipelines, then all pipelines that could still beat it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from formulations.backends.linear import LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.outcome import TOLERANCE, Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.layers.baseline import parallax_greedy
from formulations.parallelism.layers.check import check
from formulations.parallelism.layers.explain import reasons, ways_out
from formulations.parallelism.layers.milp import Master, build
from formulations.parallelism.layers.pipelines import pipeline, plan_of, stages_of
from formulations.parallelism.layers.pricing import Column
from formulations.parallelism.layers.problem import FloatArray, LayersProblem
from formulations.parallelism.layers.relaxed import Pool, generate, near
from planner.layers_plan import LayersPlan

#: Steps in which the pipelines of the exact model are listed.
MOST_STEPS = 60_000
#: When too many pipelines are within the gap, the nearest: by this share of it, and so many lists in all.
NARROWER, TRIES = 0.4, 8
#: Share of the time that the first plan may take, from the pipelines of the relaxation alone.
FIRST_SHARE = 0.25
COLUMNS = "linear relaxation over all pipelines, by column generation"
SPEED = "speed of all devices"
PROGRAM = "dynamic program"
LISTED = "branch and bound over every pipeline that could be in a better plan"


@dataclass(slots=True, eq=False)
class _Best:
    """The best plan so far, in steps/s."""

    rate: float = 0.0
    plan: LayersPlan | None = None
    solver: SolverResult | None = None


def search(problem: LayersProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[LayersPlan]:
    """A plan with a bound; proven infeasible where no pipeline holds the model within the limits."""
    started_s = time.perf_counter()
    pool = Pool(problem)
    converged = problem.most_pipelines == 0 or generate(problem, pool, budget)
    build_s = time.perf_counter() - started_s
    best = _Best()
    if pool.known:
        _solve(problem, pool, options, PartBudget(budget, FIRST_SHARE * budget.remaining_s), method, best)
    elif converged:
        return _none(problem, True, budget, build_s)
    if best.plan is None:
        _take_rule(problem, best)
    bound, name = pool.bound, COLUMNS if pool.known else SPEED
    failed = np.inf
    within = max(bound - best.rate, 0.0)
    for _ in range(TRIES if converged else 0):
        if budget.stop() is not None or bound - best.rate <= TOLERANCE * bound:
            break
        if not near(problem, pool, within, MOST_STEPS, budget):
            failed, within = within, within * NARROWER
            continue
        solved = _solve(problem, pool, options, budget, method, best)
        # What is not listed loses at least `within` against the bound of the relaxation.
        listed = np.inf if solved is None else max(solved, pool.bound - within, best.rate)
        if listed < bound:
            bound, name = listed, LISTED
        if within >= pool.bound - best.rate:
            break
        # A better plan leaves fewer to list.
        gap = pool.bound - best.rate
        within = gap if gap < failed else (within + failed) / 2
    stop = budget.stop()
    if best.plan is None:
        return _none(problem, False, budget, build_s)
    proven = bound - best.rate <= TOLERANCE * bound
    if not proven and stop is None:
        ended = None if best.solver is None else best.solver.stop
        stop = ended if ended not in (None, Stop.PROOF) else Stop.HEURISTIC
    bound = max(bound, best.rate)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else stop or Stop.HEURISTIC,
        plan=best.plan,
        solver=PROGRAM if best.solver is None else best.solver.solver,
        solver_version=np.__version__ if best.solver is None else best.solver.solver_version,
        claimed=-best.plan.tokens_per_s,
        bound=Bound(value=-problem.batch * bound, name=name),
        build_s=build_s,
    )


def _solve(
    problem: LayersProblem, pool: Pool, options: SolveOptions, budget: Budget, method: str, best: _Best
) -> float | None:
    """Solve the model over the known pipelines; the bound that it proves for them, in steps/s."""
    columns = pool.columns
    master = build(problem, columns)
    result, values = _backend(master.model, budget, options, method)
    if values is not None:
        plan = _plan(problem, pool, master, values)
        rate = plan.tokens_per_s / problem.batch
        if rate > best.rate:
            best.rate, best.plan, best.solver = rate, plan, result
    best.solver = best.solver or result
    return None if result.bound is None else -result.bound * master.unit


def _take_rule(problem: LayersProblem, best: _Best) -> None:
    """The rule's plan where time was too short for any other, if it keeps all rules."""
    rule = parallax_greedy(problem)
    if rule is not None and not check(problem, rule):
        best.rate, best.plan = rule.tokens_per_s / problem.batch, rule


def _backend(
    model: LinearModel, budget: Budget, options: SolveOptions, method: str
) -> tuple[SolverResult, FloatArray | None]:
    if method == "cbc":
        return solve_linear_pulp(model, budget, options)
    return solve_linear_mathopt(model, budget, options, solver=method)


def _plan(problem: LayersProblem, pool: Pool, master: Master, values: FloatArray) -> LayersPlan:
    """The plan of a solution; pipelines that share links run at equal parts of their rate."""
    chosen: list[tuple[Column, int, float]] = []
    for p, column in enumerate(pool.columns):
        count = as_integer(values[master.z[p]], 1e-5)
        rate = 1.0 / column.slot_s
        if master.r[p] >= 0 and count:
            rate = min(rate, float(values[master.r[p]]) * master.unit / count)
        if count and rate > TOLERANCE / column.slot_s:
            chosen.append((column, count, rate))
    # The solver keeps its rows to 1e-6; a link is not overdrawn by that.
    carried: defaultdict[tuple[int, int], float] = defaultdict(float)
    for column, count, rate in chosen:
        for link in pairwise(column.path):
            carried[link] += count * rate
    pipelines = []
    for column, count, rate in chosen:
        fits = min(
            (float(problem.hops.steps_per_s[link]) / carried[link] for link in pairwise(column.path)), default=1.0
        )
        steps_per_s = rate * min(1.0, fits)
        pipelines.append(pipeline(problem, stages_of(problem, column), column.slot_s, steps_per_s, count))
    return plan_of(problem, pipelines)


def _none(problem: LayersProblem, proven: bool, budget: Budget, build_s: float) -> SearchResult[LayersPlan]:
    """No plan: none is possible, or none was found in time."""
    return SearchResult(
        status=Status.INFEASIBLE if proven else Status.UNKNOWN,
        stop=Stop.PROOF if proven else budget.stop() or Stop.HEURISTIC,
        plan=None,
        solver=PROGRAM,
        solver_version=np.__version__,
        build_s=build_s,
        reasons=reasons(problem) if proven else (),
        relaxations=ways_out(problem, budget) if proven else (),
    )
