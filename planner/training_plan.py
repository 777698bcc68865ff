"""TrainingPlan: how one model is trained on a cluster, stage by stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from planner.descriptions.base import Description
from planner.descriptions.training import RecomputeName, ScheduleName

Time = Annotated[FiniteFloat, Field(ge=0)]
Amount = Annotated[FiniteFloat, Field(ge=0)]


class ParallelSizes(Description):
    """A plan's sizes: it uses tensor x context x data x pipeline GPUs; experts are split inside context x data."""

    tensor_parallel_size: PositiveInt
    context_parallel_size: PositiveInt
    expert_parallel_size: PositiveInt
    data_parallel_size: PositiveInt
    pipeline_parallel_size: PositiveInt
    virtual_pipeline_size: PositiveInt
    micro_batch_size: PositiveInt
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    recompute: RecomputeName
    schedule: ScheduleName

    @property
    def num_gpus(self) -> int:
        """GPUs that it uses."""
        split = self.tensor_parallel_size * self.context_parallel_size
        return split * self.data_parallel_size * self.pipeline_parallel_size


class LayerBlock(Description):
    """Neighbouring layers of a stage that do the same; of interleaved chunks, all of them together."""

    num_layers: PositiveInt
    tensor_parallel_size: PositiveInt
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    recompute: RecomputeName


class TrainingStage(Description):
    """A pipeline stage: layers (of all its chunks), what it holds beside, and the memory and work of each of its GPUs.

    micro_batch_s : forward and backward of one micro-batch. memory : bytes by part.
    layer_blocks : in the order of depth, what the layers do; empty where all do as the plan says.
    """

    num_layers: PositiveInt
    embedding: bool = False
    head: bool = False
    first_gpu: NonNegativeInt
    num_gpus: PositiveInt
    micro_batch_s: Time
    peak_memory_bytes: Amount
    memory: dict[str, FiniteFloat] = Field(default_factory=dict)
    layer_blocks: tuple[LayerBlock, ...] = ()


class TrainingPoint(ParallelSizes):
    """Another plan, with even stages. free_bytes : of the fullest GPU. usd : of a step; None without prices."""

    step_s: Time
    free_bytes: FiniteFloat
    gpu_s: Time
    usd: Amount | None = None
    joules: Amount | None = None
    why: str = ""


class NodeMap(Description):
    """Which node works where. nodes[p][s] : node of the stage s of the group p of pipelines.

    seconds : of the slowest pipeline's sends for one micro-batch and the slowest ring, on the measured bandwidth; of
    this map, of nodes in their order, and a lower bound of any map.
    """

    nodes: tuple[tuple[NonNegativeInt, ...], ...]
    seconds: Time
    in_order_s: Time
    bound_s: Time


class SequenceGroup(Description):
    """Sequences of one micro-batch, by place in sequence_lengths, that one context-parallel group works on."""

    context_parallel_size: PositiveInt
    sequences: tuple[NonNegativeInt, ...]


class SequenceGroups(Description):
    """Groups of a micro-batch, which work side by side.

    slowest_s : seconds of the slowest group in one stage; one_degree_s : of the best single size; None if none fits.
    """

    groups: tuple[SequenceGroup, ...]
    slowest_s: Time
    one_degree_s: Time | None
    bound_s: Time


class PipelineOrder(Description):
    """The best order of passes found for this pipeline, with weight gradients apart, beside its schedule's.

    period_s : of this order; rule_s : of the plan's schedule, 1F1B or interleaved; zero_bubble_s : of the greedy
    zero-bubble rule in the same memory, None where it does not apply; bound_s : no order is faster.
    """

    period_s: Time
    rule_s: Time
    zero_bubble_s: Time | None
    bound_s: Time
    proven: bool


class TrainingPlan(ParallelSizes):
    """How the model is trained, and what that takes.

    device, num_gpus, idle_gpus, gpus_per_node : of the cluster; Megatron's order of ranks: tensor, context, data,
    pipeline. pareto : plans that none beats in step time, free memory, cost and energy together.
    """

    model: str
    device: str
    idle_gpus: NonNegativeInt
    gpus_per_node: PositiveInt
    framework: str
    precision: str
    gradient_bytes: PositiveInt
    flash_attention: bool
    global_batch_size: PositiveInt
    sequence_length: PositiveInt
    num_micro_batches: PositiveInt
    stages: Annotated[tuple[TrainingStage, ...], Field(min_length=1)]
    step_s: Time
    tokens_per_s: Amount
    mfu: Amount
    peak_memory_bytes: Amount
    plans_priced: NonNegativeInt = 0
    rank_map: NodeMap | None = None
    sequence_groups: SequenceGroups | None = None
    pipeline_order: PipelineOrder | None = None
    notes: tuple[str, ...] = ()
    pareto: tuple[TrainingPoint, ...] = ()
    runners_up: tuple[TrainingPoint, ...] = ()
