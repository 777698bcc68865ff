"""Seconds and bytes of stages, sends and reductions on unequal GPUs, by the cost model of each stage's own block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from planner.cost.training.communication import Links, group
from planner.cost.training.compute import HALF, OPTIMIZER_TRAFFIC_BYTES, Rates
from planner.cost.training.memory import WEIGHT_BYTES, TrainingMemory, training_memory_by_stage
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.sizes import PlanSizes, plan_sizes
from planner.training_plan import TrainingPlan, TrainingStage

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StagePrice:
    """One stage: seconds of a micro-batch's work and sends, of what is left to wait for after the last, and bytes."""

    work_s: float
    exchange_s: float
    after_s: float
    memory: TrainingMemory
    place: int

    @property
    def memory_bytes(self) -> float:
        """Of each of its GPUs."""
        return float(self.memory.total[0, self.place])


def stage_arrays(block: TrainProblem, stage: TrainingStage, layers: list[int], micro_batches: int) -> TrainingPlans:
    """A pipeline whose stages are all like this one: its column at the stage's place is the stage."""
    assert stage.data_parallel_size is not None
    assert stage.micro_batch_size is not None
    return TrainingPlans.build(
        tensor_parallel_size=stage.tensor_parallel_size or 1,
        context_parallel_size=stage.context_parallel_size or 1,
        expert_parallel_size=stage.expert_parallel_size or 1,
        data_parallel_size=stage.data_parallel_size,
        pipeline_parallel_size=len(layers),
        micro_batch_size=stage.micro_batch_size,
        zero_stage=stage.zero_stage or 0,
        recompute=RECOMPUTE[stage.recompute or "none"],
        global_batch_size=micro_batches * stage.data_parallel_size * stage.micro_batch_size,
        sequence_length=block.sequence_length,
        flash_attention=block.flash_attention,
        gradient_bytes=block.gradient_bytes,
        stage_layers=layers,
    )


def reduction(
    block: TrainProblem, sizes: PlanSizes, dense: FloatArray, routed: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Seconds of a step's data-parallel collectives, and of the update, of stages with so many parameters, [n, ...].

    As `planner.cost.training.step` counts them for ZeRO 0 and 1. dense, routed : [n, ...] before any split.
    """
    links = Links(block.network, block.coefficients.link_efficiency)
    rates = Rates.of(block.device, block.coefficients, block.precision)
    shape = (slice(None),) + (None,) * (dense.ndim - 1)
    busy, updated = np.zeros_like(dense), np.zeros_like(dense)
    kinds = [(dense, sizes.tensor, sizes.replicas, sizes.tensor)]
    if routed.any():
        split = sizes.tensor * sizes.expert
        kinds.append((routed, split, sizes.replicas / sizes.expert, split))
    for parameters, split, replicas, stride in kinds:
        ranks = group(links.network, replicas, stride)
        held = parameters / split[shape]
        bytes_each = np.where(sizes.zero >= 1, WEIGHT_BYTES, 0.0) + np.minimum(sizes.gradient_bytes, 4.0) * np.where(
            sizes.zero >= 1, 1.0, 2.0
        )
        busy = busy + held * (bytes_each * links.second_per_byte(ranks))[shape] + 2.0 * links.latency_s(ranks)[shape]
        updated = updated + held / np.where(sizes.zero >= 1, replicas, 1.0)[shape]
    return busy, updated * (OPTIMIZER_TRAFFIC_BYTES / rates.bytes_per_s)


def exposed(busy_s: FloatArray, window_s: FloatArray, overlap: float) -> FloatArray:
    """What is left to wait for of collectives beside the work of one micro-batch."""
    return np.asarray(busy_s - overlap * np.minimum(busy_s, window_s))


def sent_s(problem: MixedProblem, block: int, other: int, gpus: npt.ArrayLike, sequences: npt.ArrayLike) -> FloatArray:
    """Seconds that stages of `gpus` GPUs of a block send or receive a micro-batch's activations, one way.

    Inside a block by its own links, of the node where the stage is smaller; to another one by ports and the way.
    """
    own = problem.blocks[block]
    links = Links(own.network, own.coefficients.link_efficiency)
    each = np.asarray(gpus, dtype=np.float64)
    size_bytes = HALF * problem.model.hidden_size * own.sequence_length * np.asarray(sequences, dtype=np.float64)
    if block == other:
        return links.point_to_point_s(size_bytes / each, each)
    there = problem.blocks[other]
    efficiency = min(links.efficiency, there.coefficients.link_efficiency)
    port = min(_port_bytes_per_s(own), _port_bytes_per_s(there))
    way, latency_s = problem.way(block, other)
    latency_s = max(own.network.inter_node_latency_s, latency_s)
    return np.asarray(size_bytes / (efficiency * np.minimum(port * each, way)) + latency_s)


def _port_bytes_per_s(block: TrainProblem) -> float:
    """Of one GPU to other blocks, before efficiency; over an oversubscribed spine its share of that."""
    return block.network.inter_node_bytes_per_s / block.network.oversubscription


def stage_parameters(problem: MixedProblem, layers: list[int], place: int) -> tuple[float, float]:
    """Parameters of a stage: those of every token, and routed ones."""
    model, first = problem.model, sum(layers[:place])
    kinds = [model.kinds[k] for k in model.pattern[first : first + layers[place]]]
    ends = (place == 0) + (place == len(layers) - 1)
    if ends == 2 and model.tied:
        ends = 1
    dense = float(sum(kind.dense_parameters for kind in kinds) + ends * model.embedding_parameters)
    return dense, float(sum(kind.routed_parameters for kind in kinds))


def price_stage(problem: MixedProblem, plan: TrainingPlan, place: int, owners: list[int]) -> StagePrice:
    """A stage of a pipeline through blocks, from the plan's decisions alone."""
    stage, layers = plan.stages[place], [one.num_layers for one in plan.stages]
    block = problem.blocks[owners[place]]
    one = stage_arrays(block, stage, layers, plan.num_micro_batches)
    work_s = float(passes_of(block, one).total_s[0, place])
    dense, routed = (np.array([number]) for number in stage_parameters(problem, layers, place))
    busy_s, update_s = reduction(block, plan_sizes(one), dense, routed)
    after_s = exposed(busy_s, np.array([work_s]), block.coefficients.overlap) + update_s
    sequences = plan.global_batch_size // plan.num_micro_batches
    exchange_s = sum(
        float(sent_s(problem, owners[place], owners[side], stage.num_gpus, sequences))
        for side in (place - 1, place + 1)
        if 0 <= side < len(layers)
    )
    memory = training_memory_by_stage(problem.model, one, block.margin)
    return StagePrice(work_s, exchange_s, float(after_s[0]), memory, place)


def between_s(problem: MixedProblem, blocks: list[int], gpus: list[int], gradient_factor: float) -> float:
    """Seconds to sum the gradients of all parameters over blocks, in a ring; each block's GPUs share the work.

    gradient_factor : bytes of a parameter that go round.
    """
    if len(blocks) == 1:
        return 0.0
    model = problem.model
    size_bytes = model.total_parameters * gradient_factor
    slowest = 0.0
    for place, block in enumerate(blocks):
        other, one = blocks[(place + 1) % len(blocks)], problem.blocks[block]
        there = problem.blocks[other]
        efficiency = min(one.coefficients.link_efficiency, there.coefficients.link_efficiency)
        ports = min(
            gpus[place] * _port_bytes_per_s(one),
            gpus[(place + 1) % len(blocks)] * _port_bytes_per_s(there),
            problem.way(block, other)[0],
        )
        latency_s = max(one.network.inter_node_latency_s, problem.way(block, other)[1])
        share = (len(blocks) - 1) / len(blocks)
        slowest = max(slowest, share * size_bytes / (efficiency * ports) + 2 * (len(blocks) - 1) * latency_s)
    return slowest
