"""Why no plan over unequal GPUs fits, and the least changes with which one does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from formulations.outcome import Budget, SolveOptions
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import best_replicas
from formulations.parallelism.training.mixed.shards import best_shards
from formulations.parallelism.training.mixed.stages import best_pipeline
from formulations.parallelism.training.search.explain import fewest
from formulations.parallelism.training.search.explain import reasons as reasons_of_one
from formulations.parallelism.training.search.pricing import pieces
from formulations.parallelism.training.search.space import MIN_CONTEXT_TOKENS, space
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans
from planner.units import format_bytes

#: Times the nodes of a kind that are tried before nothing is proposed.
MOST_TIMES = 16
#: Seconds that one change is tried.
TRIED_S = 2.0


def reasons(problem: MixedProblem) -> tuple[str, ...]:
    """All memory there is beside all states; and what each kind lacks alone."""
    block = problem.any_block
    each = 2.0 + block.gradient_bytes + 12.0
    need = each * problem.model.total_parameters
    room = sum(one.num_gpus * one.capacity_bytes for one in problem.blocks)
    told = [
        f"weights, gradients and optimizer of {problem.model.total_parameters / 1e9:.1f}e9 parameters are"
        f" {format_bytes(need)} once; all {problem.num_gpus} GPUs have {format_bytes(room)}"
    ]
    for number, one in enumerate(problem.blocks):
        leanest, least = None, np.inf
        plans = space(one)
        for piece in () if plans is None else pieces(plans):
            memory = training_memory(problem.model, piece, one.margin).total
            if memory.min() < least:
                least, leanest = float(memory.min()), _one(piece, int(memory.argmin()))
        told += [f"{problem.told(number)}: {reason}" for reason in reasons_of_one(one, leanest)]
    return tuple(told)


def _one(plans: TrainingPlans, place: int) -> TrainingPlans:
    return plans[np.array([place])]


def ways_out(problem: MixedProblem) -> tuple[str, ...]:
    """Changes that would do, each alone, each tried."""
    return tuple(_ways(problem)) or ("use GPUs with more memory, or a smaller model",)


def _ways(problem: MixedProblem) -> Iterator[str]:
    block = problem.any_block
    for name in block.fixed:
        rest = {one: value for one, value in block.fixed.items() if one != name}
        if fits(_changed(problem, fixed=rest)):
            yield f"let {name} be chosen"
    if "full" not in block.recompute and fits(_changed(problem, recompute=(*block.recompute, "full"))):
        yield "allow recompute: full"
    if block.gradient_bytes > 2 and fits(_changed(problem, gradient_bytes=2)):
        yield "keep gradients in 2 bytes (gradient_bytes: 2)"
    length = block.sequence_length // 2
    while length >= MIN_CONTEXT_TOKENS // 4:
        if fits(_changed(problem, sequence_length=length)):
            yield f"shorten sequences to {length} tokens"
            break
        length //= 2
    for number, one in enumerate(problem.blocks):
        nodes = one.num_gpus // one.gpus_per_node
        more = _least_nodes(problem, number, nodes)
        if more is not None:
            site = problem.sites[number]
            where = "" if site is None else f" at {site}"
            yield f"use {more} nodes of {one.device.name} instead of {nodes}{where}"


def _least_nodes(problem: MixedProblem, number: int, now: int) -> int | None:
    def enough(nodes: int) -> bool:
        block = problem.blocks[number]
        grown = replace(block, num_gpus=nodes * block.gpus_per_node)
        blocks = (*problem.blocks[:number], grown, *problem.blocks[number + 1 :])
        return fits(replace(problem, blocks=blocks))

    return fewest(now, MOST_TIMES, enough)


def _changed(problem: MixedProblem, **changes: Any) -> MixedProblem:
    return replace(problem, blocks=tuple(replace(block, **changes) for block in problem.blocks))


def fits(problem: MixedProblem) -> bool:
    """Whether some plan fits, of any layout."""
    for block in problem.blocks:
        plans = space(block)
        for piece in () if plans is None else pieces(plans):
            if (training_memory(problem.model, piece, block.margin).total <= block.capacity_bytes).any():
                return True
    budget = Budget(TRIED_S)
    if best_replicas(problem, np.inf, budget)[0] is not None or best_shards(problem, np.inf, budget)[0] is not None:
        return True
    options = SolveOptions(time_limit_s=TRIED_S)
    return best_pipeline(problem, np.inf, options, budget, any_plan=True).pipelines is not None
