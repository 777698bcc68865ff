"""Replicas without pipelines whose optimizer states are shared out over all of them, each as much as it has room for.

Every replica holds weights and gradients whole (split by tensor parallelism), so that only the optimizer's bytes are
shared; micro-batches come one after the other and need memory for one. Shares of states and of micro-batches are then
two separate questions, and `shares` answers both exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from formulations.outcome import Budget
from formulations.parallelism.training.mixed.pricing import between_s, exposed
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import Shared, by_block, subsets
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors, tensor_sizes, zero_stages
from formulations.parallelism.training.shares import ShareProblem, choose
from planner.cost.training.communication import Links, group
from planner.cost.training.compute import OPTIMIZER_TRAFFIC_BYTES, Rates
from planner.cost.training.memory import OPTIMIZER_BYTES, WEIGHT_BYTES, TrainingMemory, training_memory
from planner.cost.training.plans import TrainingPlans

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Holder:
    """Equal replicas of one block. unit_s : a micro-batch. room_bytes : for optimizer states, of each GPU."""

    block: int
    plans: TrainingPlans
    unit_s: float
    room_bytes: float

    @property
    def replicas(self) -> int:
        """How many."""
        return int(self.plans.data_parallel_size[0])


def allowed(block: TrainProblem) -> bool:
    """Whether a framework shards the optimizer alone, and nothing is fixed that these plans do not have."""
    fixed = block.fixed
    ones = ("pipeline_parallel_size", "context_parallel_size", "expert_parallel_size", "virtual_pipeline_size")
    known = (fixed["zero_stage"],) if "zero_stage" in fixed else zero_stages(block.framework, False)
    return 1 in known and all(fixed.get(name, 1) == 1 for name in ones) and "data_parallel_size" not in fixed


def holder_plan(block: TrainProblem, tensor: int, micro_batch: int, recompute: int) -> TrainingPlans:
    """All replicas of a block that there is room for, with one micro-batch each."""
    data = block.num_gpus // tensor
    return TrainingPlans.build(
        tensor_parallel_size=tensor,
        data_parallel_size=data,
        micro_batch_size=micro_batch,
        zero_stage=1,
        recompute=recompute,
        global_batch_size=data * micro_batch,
        sequence_length=block.sequence_length,
        flash_attention=block.flash_attention,
        gradient_bytes=block.gradient_bytes,
    )


def without_optimizer(block: TrainProblem, plans: TrainingPlans) -> tuple[TrainingMemory, float]:
    """Memory of a replica's GPU with the optimizer split evenly, and its bytes beside the optimizer."""
    memory = training_memory(block.model, plans, block.margin)
    return memory, float((memory.total - block.margin.states_factor * memory.optimizer)[0])


def optimizer_bytes(block: TrainProblem, tensor: int) -> float:
    """Of all replicas, for one tensor-parallel rank; as memory counts them."""
    return block.margin.states_factor * OPTIMIZER_BYTES * block.model.total_parameters / tensor


def best_shards(problem: MixedProblem, below_s: float, budget: Budget) -> tuple[Shared | None, float]:
    """The fastest plan with shared states that takes less than `below_s`, and the least that what is left may take."""
    one, best = problem.any_block, None
    if not all(allowed(block) for block in problem.blocks):
        return None, np.inf
    tensors = sorted(set.intersection(*(set(tensor_sizes(block)) for block in problem.blocks)))
    batch = one.global_batch_size
    small = [size for size in divisors(batch) if size <= MOST_MICRO_BATCH]
    fixed = one.fixed.get("micro_batch_size")
    for tensor, micro_batch in product(tensors, small if fixed is None else [fixed]):
        if batch % micro_batch:
            continue
        made = [_holders(problem, number, tensor, micro_batch) for number in range(len(problem.blocks))]
        for chosen in subsets(problem):
            for holders in product(*(made[number] for number in chosen)):
                if budget.stop() is not None:
                    return best, 0.0
                found = _shared(problem, list(holders), tensor, batch // micro_batch)
                if found is not None and found.step_s < below_s:
                    best, below_s = found, found.step_s
    return best, np.inf


def _holders(problem: MixedProblem, number: int, tensor: int, micro_batch: int) -> list[Holder]:
    block, found = problem.blocks[number], []
    if block.num_gpus < tensor:
        return []
    for name in block.recompute:
        plans = holder_plan(block, tensor, micro_batch, int(RECOMPUTE[name]))
        room = block.capacity_bytes - without_optimizer(block, plans)[1]
        if room >= 0:
            found.append(Holder(number, plans, float(passes_of(block, plans).total_s[0, 0]), room))
    return found


def _shared(problem: MixedProblem, holders: list[Holder], tensor: int, units: int) -> Shared | None:
    counts = [one.replicas for one in holders]
    answer = choose(
        ShareProblem(
            unit_s=np.repeat([one.unit_s for one in holders], counts),
            fixed_s=np.zeros(sum(counts)),
            unit_bytes=np.zeros(sum(counts)),
            capacity_bytes=np.repeat([one.room_bytes for one in holders], counts),
            units=units,
            state_bytes=optimizer_bytes(problem.any_block, tensor),
        )
    ).plan
    if answer is None:
        return None
    micro, states = by_block(answer.units, counts), by_block(answer.states, counts)
    if not all(max(share) for share in micro):
        return None
    blocks, plans = tuple(one.block for one in holders), tuple(one.plans for one in holders)
    worked_s = max(one.unit_s * max(share) for one, share in zip(holders, micro, strict=True))
    after_s = after_shards_s(problem, blocks, plans, [one.unit_s for one in holders], max(answer.states))
    return Shared(blocks, plans, micro, states, worked_s + after_s)


def after_shards_s(
    problem: MixedProblem,
    blocks: tuple[int, ...],
    plans: tuple[TrainingPlans, ...],
    unit_s: list[float],
    largest: float,
) -> float:
    """Reduction, update and gathering of a step after the last micro-batch: all wait for the `largest` shard.

    Inside a block gradients are scattered and weights gathered, as ZeRO 1 does; between blocks both go round.
    """
    model, waited_s, updated_s = problem.model, 0.0, 0.0
    gradient = min(problem.any_block.gradient_bytes, 4)
    counts = [int(one.data_parallel_size[0]) for one in plans]
    uneven = largest * sum(counts)
    for number, one, window_s in zip(blocks, plans, unit_s, strict=True):
        block = problem.blocks[number]
        links = Links(block.network, block.coefficients.link_efficiency)
        ranks = group(
            links.network, *(size.astype(np.float64) for size in (one.data_parallel_size, one.tensor_parallel_size))
        )
        held = model.total_parameters / int(one.tensor_parallel_size[0])
        busy_s = uneven * held * (gradient + WEIGHT_BYTES) * links.second_per_byte(ranks) + 2 * links.latency_s(ranks)
        waited_s = max(waited_s, float(exposed(busy_s, np.array([window_s]), block.coefficients.overlap)[0]))
        rates = Rates.of(block.device, block.coefficients, block.precision)
        updated_s = max(updated_s, largest * held * OPTIMIZER_TRAFFIC_BYTES / rates.bytes_per_s)
    gpus = [int(one.num_gpus[0]) for one in plans]
    return waited_s + updated_s + between_s(problem, list(blocks), gpus, gradient + WEIGHT_BYTES)
