"""Plans of which only some layers recompute: as few of each stage, or of each chunk, as memory asks for.

Sets
    q, a     plans that recompute, and splits of their layers (see `problem`); i stages, each with v chunks
Data
    l[i]     layers of a stage; o what its other layers do instead: keep all, or recompute less
    M[i](n)  memory of a stage of which n layers recompute
Variables
    n[i]     layers that recompute, the first ones in depth; with scope `chunk` one number for all chunks of all stages,
             which is what Megatron-LM's --recompute-method block takes
Objective, constraints
    as in `problem`: T falls with every n[i], so that the least n[i] with M[i](n[i]) <= H is best for each stage alone.
    M falls with n from n = 1 on (at n = 0 the buffer for recomputed layers is missing too): bisection, exact.
Bound
    no mix of q is faster than q with o everywhere, whose own bound holds for all splits. Without a pipeline a slower
    micro-batch can hide more of the collectives of ZeRO 2 and 3: half a micro-batch at most, which is taken off.

Ignored: layers of three kinds in one plan (none, attention, all), which `layer_choice` has.
Reference: Megatron-LM's block recomputation; Korthikanti et al., arXiv 2205.05198.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from formulations.outcome import Budget
from formulations.parallelism.training.search.pricing import FloatArray, IntArray, Priced, best_of, price, with_splits
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import VARIED, LayerVariant, Recompute, TrainingPlans
from planner.cost.training.stages import layers_by_kind

BoolArray = npt.NDArray[np.bool_]

#: Plans whose splits are priced together: few at first, because they lower the limit for all others.
FIRST_PLANS, MOST_PLANS = 8, 128
#: Recomputation adds at most the forward pass again: half of forward and backward (see planner.cost.training.step).
_MOST_REPEATED = 0.5
#: What layers of a stage do beside those that recompute as the plan says.
LESS = {Recompute.FULL: (Recompute.NONE, Recompute.SELECTIVE), Recompute.SELECTIVE: (Recompute.NONE,)}


def mixed(
    problem: TrainProblem, every: Priced, best: Priced | None, budget: Budget, scope: str
) -> tuple[Priced | None, int, float]:
    """The best plan with any mix and split, mixes priced, and the least bound of what was left out (infinite: nothing).

    every : even plans that fit, or nearly. best : the best known. scope : stage or chunk.
    """
    limit = np.inf if best is None else float(best.goal[0])
    rows, others, bounds = _asked(problem, every, limit, scope)
    order = np.argsort(bounds, kind="stable")
    count, place, size = 0, 0, FIRST_PLANS
    while place < order.size:
        least = float(bounds[order[place]])
        if least >= limit:
            break
        if budget.stop() is not None:
            return best, count, least
        chosen = order[place : place + size]
        place, size = place + size, min(2 * size, MOST_PLANS)
        for one in np.unique(others[chosen]).tolist():
            tried = with_splits(problem, every.plans[rows[chosen[others[chosen] == one]]])
            if tried is None:
                continue
            priced = price(problem, recomputing_least(problem, tried, Recompute(one), scope))
            count += len(tried)
            better = best_of(priced[priced.memory_bytes <= problem.capacity_bytes])
            if better is not None and better.goal[0] < limit:
                best, limit = better, float(better.goal[0])
        budget.report(limit if best is not None else None, min(least, limit))
    return best, count, np.inf


def _asked(problem: TrainProblem, every: Priced, limit: float, scope: str) -> tuple[IntArray, IntArray, FloatArray]:
    """Places of plans whose mixes may be better than `limit`, what their other layers do, and their bounds."""
    found: list[tuple[IntArray, IntArray, FloatArray]] = []
    for kind, other in _pairs(problem, scope):
        rows = np.flatnonzero(every.plans.recompute == kind)
        if not rows.size:
            continue
        plans = every.plans[rows]
        less = price(problem, replace(plans, recompute=np.full(rows.size, int(other))), every.memory_bytes[rows])
        hidden = (plans.pipeline_parallel_size == 1) & (plans.zero_stage >= 2)
        bounds = less.balanced * (1.0 - hidden * _MOST_REPEATED / plans.num_micro_batches)
        near = bounds < limit
        found.append((rows[near], np.full(int(near.sum()), int(other)), bounds[near]))
    if not found:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)
    rows, others, bounds = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, others, bounds


def _pairs(problem: TrainProblem, scope: str) -> Iterator[tuple[Recompute, Recompute]]:
    """What some layers recompute, and what the others do; chunks of Megatron-LM keep all of the others."""
    for kind, less in LESS.items():
        for other in less:
            allowed = scope != "chunk" or (kind, other) == (Recompute.FULL, Recompute.NONE)
            if allowed and {kind, other} <= {RECOMPUTE[name] for name in problem.recompute}:
                yield kind, other


def recomputing_least(problem: TrainProblem, plans: TrainingPlans, other: Recompute, scope: str) -> TrainingPlans:
    """Plans with stage_layers, of which as few layers recompute as fit; all of them where even that does not fit."""
    layers = plans.stage_layers
    assert layers is not None

    def fits(recomputed: IntArray) -> BoolArray:
        tried = with_other_layers(problem.model, plans, layers - recomputed, other)
        return np.asarray(
            training_memory_by_stage(problem.model, tried, problem.margin).total <= problem.capacity_bytes
        )

    if scope == "stage":
        return with_other_layers(problem.model, plans, layers - _least(fits, layers), other)
    virtual = plans.virtual_pipeline_size[:, None]

    def of_stages(each: IntArray) -> IntArray:
        return recomputed_of(layers, virtual, each)

    most = (-(-layers // virtual)).max(axis=1, keepdims=True)
    each = _least(lambda tried: np.asarray(fits(of_stages(tried)).all(axis=1, keepdims=True)), most)
    return with_other_layers(problem.model, plans, layers - of_stages(each), other)


def recomputed_of(layers: IntArray, chunks: IntArray, each: IntArray) -> IntArray:
    """Layers of stages that recompute when `each` of every chunk do; chunks that have fewer give all of theirs."""
    short, longer = np.divmod(layers, chunks)
    return np.asarray(longer * np.minimum(each, short + 1) + (chunks - longer) * np.minimum(each, short))


def _least(fits: Callable[[IntArray], BoolArray], most: IntArray) -> IntArray:
    """The least numbers of 0 .. most that fit, elementwise; `most` where none does."""
    low, high = np.zeros_like(most), most.copy()
    high = np.where(fits(low), 0, high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = fits(middle)
        low, high = np.where(enough | (high - low <= 1), low, middle), np.where(enough, np.minimum(middle, high), high)
    return high


def with_other_layers(
    model: TrainingModel, plans: TrainingPlans, other_layers: IntArray, other: Recompute
) -> TrainingPlans:
    """Plans of whose stages the last `other_layers` [n, stages] recompute as `other` says instead."""
    layers = plans.stage_layers
    assert layers is not None
    sizes = {name: getattr(plans, name) for name in VARIED} | {"recompute": np.full(len(plans), int(other))}
    end = np.cumsum(layers, axis=1)
    kinds = np.array(layers_by_kind(model, plans, end - other_layers, end))
    variant = LayerVariant(**sizes, layers=kinds.transpose(0, 2, 1))
    return replace(plans, variants=(variant,))
