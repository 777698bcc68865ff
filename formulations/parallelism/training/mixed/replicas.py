"""Replicas of one kind each, with their own shares of the batch.

A family is as many equal replicas of one block as it has room for. A step of a replica is linear in its micro-batches,
so that a family does floor((T - fixed) / unit) of them on each replica within T; the families that do most together
are the best for that T, and bisection finds the least T for which they do all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE, Budget
from formulations.parallelism.training.mixed.options import context_sizes, expert_sizes
from formulations.parallelism.training.mixed.pricing import between_s
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.pricing import step_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors, tensor_sizes, zero_stages
from formulations.parallelism.training.shares import ShareProblem, choose
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import TrainingPlans

Number = TypeVar("Number", int, float)
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Families:
    """Families of one block and micro-batch, arrays [n]: seconds of a step as fixed_s + unit_s x micro-batches.

    fixed_s : fill and drain, what is exposed of the reduction in the block, and the update.
    """

    block: int
    plans: TrainingPlans
    unit_s: FloatArray
    fixed_s: FloatArray
    memory_bytes: FloatArray

    def __getitem__(self, chosen: IntArray | npt.NDArray[np.bool_]) -> Families:
        return Families(
            self.block, self.plans[chosen], self.unit_s[chosen], self.fixed_s[chosen], self.memory_bytes[chosen]
        )

    @property
    def replicas(self) -> IntArray:
        """Equal replicas of each family."""
        return self.plans.data_parallel_size


@dataclass(frozen=True, eq=False)
class Shared:
    """One family of each block that takes part, and the micro-batches of each replica, by block.

    states : shares of the optimizer states of each replica, by block; empty where each block shards its own.
    """

    blocks: tuple[int, ...]
    plans: tuple[TrainingPlans, ...]
    micro_batches: tuple[tuple[int, ...], ...]
    states: tuple[tuple[float, ...], ...]
    step_s: float


def replica_plans(block: TrainProblem, micro_batch: int) -> TrainingPlans | None:
    """Families of a block, in memory as with many micro-batches; None where there is none."""
    rows = []
    fixed, layers = block.fixed, block.model.num_layers
    for tensor, context in product(tensor_sizes(block), context_sizes(block)):
        for stages in range(1, layers + 1):
            data = block.num_gpus // (tensor * context * stages)
            if not data:
                break
            if fixed.get("pipeline_parallel_size", stages) != stages or fixed.get("data_parallel_size", data) != data:
                continue
            known = zero_stages(block.framework, stages > 1)
            if "zero_stage" in fixed:
                known = (fixed["zero_stage"],)
            elif data * context == 1:
                known = known[:1]
            for expert, zero, name in product(expert_sizes(block, data * context), known, block.recompute):
                rows.append((tensor, context, expert, stages, data, zero, int(RECOMPUTE[name])))
    if not rows or fixed.get("virtual_pipeline_size", 1) != 1 or "1f1b" not in block.schedules:
        return None
    tensor, context, expert, stages, data, zero, recompute = np.array(rows, dtype=np.int64).T
    return TrainingPlans.build(
        tensor_parallel_size=tensor,
        context_parallel_size=context,
        expert_parallel_size=expert,
        pipeline_parallel_size=stages,
        data_parallel_size=data,
        zero_stage=zero,
        recompute=recompute,
        micro_batch_size=micro_batch,
        global_batch_size=data * micro_batch * stages,
        sequence_length=block.sequence_length,
        flash_attention=block.flash_attention,
        gradient_bytes=block.gradient_bytes,
    )


def with_micro_batches(plans: TrainingPlans, micro_batches: int | IntArray) -> TrainingPlans:
    """The same plans with so many micro-batches of each replica."""
    batch = plans.data_parallel_size * plans.micro_batch_size * micro_batches
    return replace(plans, global_batch_size=np.asarray(batch, dtype=np.int64))


def families(problem: MixedProblem, number: int, micro_batch: int) -> Families | None:
    """All families of a block that fit into memory; None where none does."""
    block = problem.blocks[number]
    plans = replica_plans(block, micro_batch)
    if plans is None:
        return None
    memory = training_memory(problem.model, plans, block.margin).total
    fits = memory <= block.capacity_bytes
    plans, memory = plans[fits], memory[fits]
    if not len(plans):
        return None
    stages = plans.pipeline_parallel_size
    once_s = step_of(block, with_micro_batches(plans, stages)).step_s
    twice_s = step_of(block, with_micro_batches(plans, 2 * stages)).step_s
    unit_s = (twice_s - once_s) / stages
    return Families(number, plans, unit_s, np.maximum(once_s - stages * unit_s, 0.0), memory)


def best_replicas(problem: MixedProblem, below_s: float, budget: Budget) -> tuple[Shared | None, float]:
    """The fastest replicas of several blocks found that take less than `below_s`, and the least that others may take.

    The latter is infinite where none is left. Families that leave GPUs idle have fewer ports between blocks, and one
    that is slower with more of them may win; those are left, with the ports of all GPUs as their bound. So are shares
    where a kind that the fastest ones leave idle does some of the work.
    """
    batch, best, left_s = problem.any_block.global_batch_size, None, np.inf
    small = [one for one in divisors(batch) if one <= MOST_MICRO_BATCH]
    fixed = problem.any_block.fixed
    for micro_batch in [fixed["micro_batch_size"]] if "micro_batch_size" in fixed else small:
        if batch % micro_batch:
            continue
        made = [families(problem, number, micro_batch) for number in range(len(problem.blocks))]
        for chosen in subsets(problem):
            if budget.stop() is not None:
                return best, 0.0
            known = [one for number in chosen if (one := made[number]) is not None]
            if len(known) < len(chosen):
                continue
            found, least_s = _fastest(problem, known, batch // micro_batch)
            if found.step_s < below_s:
                best, below_s = found, found.step_s
            if least_s < found.step_s * (1 - TOLERANCE):
                left_s = min(left_s, least_s)
    return best, left_s


def subsets(problem: MixedProblem) -> Iterator[tuple[int, ...]]:
    """Two blocks or more, each joined with the next in a ring."""
    count = len(problem.blocks)
    for size in range(2, count + 1):
        for chosen in combinations(range(count), size):
            if all(problem.joined(chosen[place - 1], chosen[place]) for place in range(size)):
                yield chosen


def _fastest(problem: MixedProblem, known: list[Families], units: int) -> tuple[Shared, float]:
    """The family of each block that is best beside the gradients between blocks, by bisection, and a bound of all."""

    def done(limit_s: float) -> list[IntArray]:
        return [
            one.replicas * np.maximum(np.floor((limit_s - one.fixed_s) / one.unit_s + 1e-9), 0).astype(np.int64)
            for one in known
        ]

    low, high = 0.0, min(float((one.fixed_s + one.unit_s * -(-units // one.replicas)).min()) for one in known)
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if sum(int(one.max()) for one in done(middle)) >= units:
            high = middle
        else:
            low = middle
    chosen = [one[np.array([int(count.argmax())])] for one, count in zip(known, done(high), strict=True)]
    shares, slowest_s = _shared_out(chosen, units)
    blocks = [one.block for one in chosen]
    gpus = [int(one.plans.num_gpus[0]) for one in chosen]
    factor = 2.0 * min(problem.any_block.gradient_bytes, 4)
    found = Shared(
        blocks=tuple(blocks),
        plans=tuple(one.plans for one in chosen),
        micro_batches=shares,
        states=(),
        step_s=slowest_s + between_s(problem, blocks, gpus, factor),
    )
    every = [problem.blocks[number].num_gpus for number in blocks]
    return found, high * (1 - 1e-9) + between_s(problem, blocks, every, factor)


def _shared_out(chosen: list[Families], units: int) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Micro-batches of every replica, by block, and the slowest of them; infinite where a block has none."""
    counts = [int(one.replicas[0]) for one in chosen]
    found = choose(
        ShareProblem(
            unit_s=np.repeat([float(one.unit_s[0]) for one in chosen], counts),
            fixed_s=np.repeat([float(one.fixed_s[0]) for one in chosen], counts),
            unit_bytes=np.zeros(sum(counts)),
            capacity_bytes=np.zeros(sum(counts)),
            units=units,
        )
    )
    assert found.plan is not None
    shares = by_block(found.plan.units, counts)
    slowest_s = max(
        float(one.fixed_s[0]) + float(one.unit_s[0]) * max(share) if max(share) else np.inf
        for one, share in zip(chosen, shares, strict=True)
    )
    return shares, slowest_s


def by_block(values: tuple[Number, ...], counts: list[int]) -> tuple[tuple[Number, ...], ...]:
    """Values of all replicas, cut into blocks."""
    ends = np.cumsum([0, *counts]).tolist()
    return tuple(values[ends[place] : ends[place + 1]] for place in range(len(counts)))
