"""The search: all even plans as arrays, then splits of their layers while they can be better (see `problem`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np

from formulations.outcome import Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.search.explain import batch_hint, reasons, ways_out
from formulations.parallelism.training.search.layer_choice import bound_of_families, chosen_layers
from formulations.parallelism.training.search.mixes import mixed
from formulations.parallelism.training.search.pareto import frontier, next_best
from formulations.parallelism.training.search.plans import SIZES, document_plan, points
from formulations.parallelism.training.search.pricing import Priced, best_of, joined, pieces, price, with_splits
from formulations.parallelism.training.search.problem import LayerScope, TrainProblem
from formulations.parallelism.training.search.refine import refined
from formulations.parallelism.training.search.space import space
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans
from planner.training_plan import TrainingPlan

#: Splits are tried of plans whose even split takes at most so many times the memory there is.
MOST_OVER = 1.15
#: Shares below this are not worth a word.
WORTH_TELLING = 0.002
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
    best = best_of(fits)
    best, split, left = _split(problem, every, best, budget)
    if problem.layer_scope != "uniform":
        scope = "chunk" if problem.layer_scope == "chunk" else "stage"
        best, more, of_mixes = mixed(problem, every, best, budget, scope)
        split, left = split + more, min(left, of_mixes)
    if best is None:
        if not every_plan or left < np.inf:
            return _unknown(budget)
        return _infeasible(problem, leanest, build_s, whole)
    blocks = None
    if problem.layer_scope == "any":
        best, blocks = chosen_layers(problem, fits, best, options, budget)
        left = min(left, bound_of_families(problem, plans, every)) if every_plan else left
    value = float(best.goal[0])
    proven = every_plan and left >= value
    bound = None if not every_plan else Bound(value=min(value, left), name=_bound_name(problem, len(plans) + split))
    chosen = document_plan(problem, best.plans, blocks)
    others, whys = next_best(fits, tuple(getattr(chosen, name) for name in SIZES[:5]))
    plan = chosen
    told: tuple[str, ...] = ()
    if whole:
        told = (*_free_layers(problem, every, best, budget), *batch_hint(problem, chosen.tokens_per_s))
        plan = refined(problem, chosen, options, budget)
    plan = plan.model_copy(
        update={
            "notes": (*plan.notes, *told),
            "plans_priced": seen + split,
            "pareto": points(problem, fits[frontier(problem, fits)]),
            "runners_up": points(problem, fits[others], whys),
        }
    )
    unproven = Stop.HEURISTIC if problem.layer_scope == "any" else Stop.TIME_LIMIT
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else budget.stop() or unproven,
        plan=plan,
        solver="enumeration",
        solver_version=np.__version__,
        claimed=value,
        bound=bound,
        build_s=build_s,
    )


#: What the layers of the plans are, of which the bound speaks.
_LAYERS: Mapping[LayerScope, str] = {
    "uniform": "whose layers all do the same",
    "chunk": "of which any number of layers of each chunk recomputes",
    "stage": "of which any number of layers of each stage recomputes, the others less",
}


def _bound_name(problem: TrainProblem, count: int) -> str:
    if problem.layer_scope == "any":
        return "layers all as the fastest of their family, on stages of equal work, with no data-parallel collective"
    layers = _LAYERS[problem.layer_scope]
    return f"all plans {layers}: {count:,} priced by the cost model, the others passed over by a bound of their splits"


def _free_layers(problem: TrainProblem, every: Priced, best: Priced, budget: Budget) -> Iterator[str]:
    """What plans would gain whose stages choose how many layers recompute, where they may not."""
    if problem.layer_scope in ("stage", "any") or budget.stop() is not None:
        return
    free = mixed(problem, every, best, budget, "stage")[0]
    if free is not None and free.goal[0] < (1.0 - WORTH_TELLING) * best.goal[0]:
        gain = 1.0 - float(free.goal[0] / best.goal[0])
        yield f"{gain:.1%} less if each stage chose how many of its layers recompute (layer_strategies: stage)"


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
        better = best_of(priced[priced.memory_bytes <= problem.capacity_bytes])
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
