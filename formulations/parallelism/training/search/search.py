"""The search: all even plans as arrays, then splits of their layers while they can be better (see `problem`)."""

from __future__ import annotations

import time

import numpy as np

from formulations.outcome import Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.search.explain import reasons, ways_out
from formulations.parallelism.training.search.pareto import frontier, next_best
from formulations.parallelism.training.search.plans import SIZES, document_plan, points
from formulations.parallelism.training.search.pricing import Priced, joined, pieces, price, with_splits
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.refine import refined
from formulations.parallelism.training.search.space import space
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans
from planner.training_plan import TrainingPlan

#: Splits are tried of plans whose even split takes at most so many times the memory there is.
MOST_OVER = 1.15
#: Plans whose splits are priced together: few at first, because they lower the limit for all others.
FIRST_PLANS, MOST_PLANS = 8, 256


def search(
    problem: TrainProblem, options: SolveOptions, budget: Budget, whole: bool = True
) -> SearchResult[TrainingPlan]:
    """The best plan, with a proof over the space of `space` and the splits of `pricing.splits`.

    whole : this is all that is asked. Where it is a part of a larger search, the plan is not refined, and what does not
    fit is not explained.
    """
    started_s = time.perf_counter()
    plans = space(problem)
    build_s = time.perf_counter() - started_s
    if plans is None:
        return _infeasible(problem, None, build_s, whole)
    parts: list[Priced] = []
    seen, least = 0, np.inf
    for piece in pieces(plans):
        memory = training_memory(problem.model, piece, problem.margin).total
        if memory.min() < least:
            least, leanest = float(memory.min()), piece[np.array([memory.argmin()])]
        near = memory <= MOST_OVER * problem.capacity_bytes
        if near.any():
            parts.append(price(problem, piece[near], memory[near]))
        seen += len(piece)
        if budget.stop() is not None:
            break
    every_plan = seen == len(plans)
    if not parts:
        return _infeasible(problem, leanest, build_s, whole) if every_plan else _unknown(budget)
    every = joined(parts)
    fits = every[every.memory_bytes <= problem.capacity_bytes]
    best = _best_of(fits)
    best, split, left = _split(problem, every, best, budget)
    if best is None:
        if not every_plan or left < np.inf:
            return _unknown(budget)
        return _infeasible(problem, leanest, build_s, whole)
    value = float(best.goal[0])
    proven = every_plan and left >= value
    bound = None if not every_plan else Bound(value=min(value, left), name=_bound_name(len(plans) + split))
    chosen = document_plan(problem, best.plans)
    others, whys = next_best(fits, tuple(getattr(chosen, name) for name in SIZES[:5]))
    finished = refined(problem, chosen, options, budget) if whole else chosen
    plan = finished.model_copy(
        update={
            "plans_priced": seen + split,
            "pareto": points(problem, fits[frontier(problem, fits)]),
            "runners_up": points(problem, fits[others], whys),
        }
    )
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else budget.stop() or Stop.TIME_LIMIT,
        plan=plan,
        solver="enumeration",
        solver_version=np.__version__,
        claimed=value,
        bound=bound,
        build_s=build_s,
    )


def _bound_name(count: int) -> str:
    return f"all {count:,} plans of the space priced by the cost model, or passed over by a bound of their splits"


def _best_of(priced: Priced) -> Priced | None:
    if not priced.goal.size:
        return None
    # Of equal plans the one that leaves more memory.
    place = int(np.lexsort((priced.memory_bytes, priced.goal))[0])
    return priced[np.array([place])]


def _split(
    problem: TrainProblem, every: Priced, best: Priced | None, budget: Budget
) -> tuple[Priced | None, int, float]:
    """The best plan with any split, splits priced, and the least bound of what was left out (infinite: nothing)."""
    limit = np.inf if best is None else float(best.goal[0])
    asked = np.flatnonzero((every.plans.pipeline_parallel_size > 1) & (every.balanced < limit))
    asked = asked[np.argsort(every.balanced[asked], kind="stable")]
    count, place, size = 0, 0, FIRST_PLANS
    while place < asked.size:
        if every.balanced[asked[place]] >= limit:
            return best, count, np.inf
        if budget.stop() is not None:
            return best, count, float(every.balanced[asked[place]])
        tried = with_splits(problem, every.plans[asked[place : place + size]])
        place, size = place + size, min(2 * size, MOST_PLANS)
        if tried is None:
            continue
        priced = price(problem, tried)
        count += len(tried)
        better = _best_of(priced[priced.memory_bytes <= problem.capacity_bytes])
        if better is not None and better.goal[0] < limit:
            best, limit = better, float(better.goal[0])
        budget.report(limit if best is not None else None, float(every.balanced[asked[0]]))
    return best, count, np.inf


def _unknown(budget: Budget) -> SearchResult[TrainingPlan]:
    return SearchResult(
        status=Status.UNKNOWN,
        stop=budget.stop() or Stop.TIME_LIMIT,
        plan=None,
        solver="enumeration",
        solver_version=np.__version__,
    )


def _infeasible(
    problem: TrainProblem, leanest: TrainingPlans | None, build_s: float, explained: bool
) -> SearchResult[TrainingPlan]:
    return SearchResult(
        status=Status.INFEASIBLE,
        stop=Stop.PROOF,
        plan=None,
        solver="enumeration",
        solver_version=np.__version__,
        build_s=build_s,
        reasons=reasons(problem, leanest) if explained else (),
        relaxations=ways_out(problem) if explained else (),
    )
