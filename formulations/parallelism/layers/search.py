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
from formulations.parallelism.layers.explain import reasons, ways_out
from formulations.parallelism.layers.milp import Master, build
from formulations.parallelism.layers.pipelines import pipeline, plan_of, stages_of
from formulations.parallelism.layers.pricing import Column, Pricing
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
    pricing = Pricing(problem) if problem.most_pipelines > 0 else None
    pool = Pool(problem)
    converged = pricing is None or not pricing.slots.size or generate(problem, pricing, pool, budget)
    build_s = time.perf_counter() - started_s
    if pricing is None or not pool.known:
        return _none(problem, converged, budget, build_s)
    best = _Best()
    _solve(problem, pool, options, PartBudget(budget, FIRST_SHARE * budget.remaining_s), method, best)
    bound, name = pool.bound, COLUMNS
    failed = np.inf
    within = max(bound - best.rate, 0.0)
    for _ in range(TRIES if converged and pricing is not None else 0):
        if budget.stop() is not None or bound - best.rate <= TOLERANCE * bound:
            break
        if not near(problem, pricing, pool, within, MOST_STEPS, budget):
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
    if best.plan is None or best.solver is None:
        return _none(problem, False, budget, build_s)
    proven = bound - best.rate <= TOLERANCE * bound
    if not proven and stop is None:
        stop = best.solver.stop if best.solver.stop is not Stop.PROOF else Stop.HEURISTIC
    bound = max(bound, best.rate)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else stop or Stop.HEURISTIC,
        plan=best.plan,
        solver=best.solver.solver,
        solver_version=best.solver.solver_version,
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
        solver="dynamic program",
        solver_version=np.__version__,
        build_s=build_s,
        reasons=reasons(problem) if proven else (),
        relaxations=ways_out(problem) if proven else (),
    )
