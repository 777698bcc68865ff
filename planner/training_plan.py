"""TrainingPlan: how one model is trained on a cluster, stage by stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt

from planner.descriptions.base import Description
from planner.descriptions.training import RecomputeName, ScheduleName

Time = Annotated[FiniteFloat, Field(ge=0)]
Amount = Annotated[FiniteFloat, Field(ge=0)]
#: How a plan uses unequal GPUs: one kind alone; stages of one pipeline on several kinds; replicas of one kind each,
#: which shard their states among themselves, or all together.
Layout = Literal["one_kind", "stages", "replicas", "shards"]


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

    Where GPUs are unequal, beside that (GPUs of one kind and site are numbered together, in the cluster's order):
    device, site, num_nodes : what the stage lies on. pipeline : which of the plan's pipelines it belongs to.
    *_size, zero_stage, recompute : of this stage; they may differ between stages.
    micro_batches : of a step, for each of its data-parallel replicas. state_shares : of the optimizer states that all
    replicas share, for each of them. exchange_s : its sends for one micro-batch, forward and backward.
    """

    num_layers: PositiveInt
    embedding: bool = False
    head: bool = False
    first_gpu: NonNegativeInt
    num_gpus: PositiveInt
    micro_batch_s: Time
    peak_memory_bytes: Amount
    memory: dict[str, FiniteFloat] = Field(default_factory=dict)
    device: str | None = None
    site: str | None = None
    num_nodes: PositiveInt | None = None
    pipeline: NonNegativeInt = 0
    tensor_parallel_size: PositiveInt | None = None
    context_parallel_size: PositiveInt | None = None
    expert_parallel_size: PositiveInt | None = None
    data_parallel_size: PositiveInt | None = None
    micro_batch_size: PositiveInt | None = None
    zero_stage: Annotated[int | None, Field(ge=0, le=3)] = None
    recompute: RecomputeName | None = None
    micro_batches: tuple[NonNegativeInt, ...] = ()
    state_shares: tuple[Annotated[FiniteFloat, Field(ge=0, le=1)], ...] = ()
    exchange_s: Time = 0.0
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


class Alternative(Description):
    """Another way to use unequal GPUs, with its best step; None where it has no plan, and why."""

    name: str
    step_s: Time | None
    why: str = ""


class TrainingPlan(ParallelSizes):
    """How the model is trained, and what that takes.

    device, num_gpus, idle_gpus, gpus_per_node : of the cluster; Megatron's order of ranks: tensor, context, data,
    pipeline. pareto : plans that none beats in step time, free memory, cost and energy together.

    Where GPUs are unequal, `layout` says how they are used. Its sizes are then the largest of its stages, which have
    their own; device names all kinds. work_bound_s : all work at each kind's best rate; no plan is faster.
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
    layout: Layout | None = None
    work_bound_s: Time | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def num_gpus(self) -> int:
        """GPUs that it uses: the product of its sizes, or of all stages where those differ."""
        if self.layout in (None, "one_kind"):
            return super().num_gpus
        return sum(stage.num_gpus for stage in self.stages)
