"""The `parallel` instance of the task `train`: which parallel sizes train a model on a cluster?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveInt, Tag

from planner.descriptions.base import Description, Problem
from planner.descriptions.layers import Sites
from planner.descriptions.parallel import ClusterOrPath
from planner.units import BytesPerSecond, UsdPerHour

Name = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
#: Larger than any size of a plan; a mistyped number is told instead of filling the memory.
Size = Annotated[PositiveInt, Field(le=1 << 24)]
RecomputeName = Literal["none", "selective", "full"]
LayerStrategies = Literal["uniform", "framework", "stage", "any"]
ScheduleName = Literal["1f1b", "zb-1p", "zb-2p", "zb-v"]


def _how_given(value: Any) -> str:
    return "path" if isinstance(value, str) else "inline"


class DenseModel(Description):
    """A decoder of equal layers by its dimensions, under Hugging Face's names, for who has no config.json."""

    num_hidden_layers: Annotated[PositiveInt, Field(le=4096)]
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Annotated[Size | None, Field(description="default: num_attention_heads")] = None
    intermediate_size: Size
    vocab_size: Size
    gated: Annotated[bool, Field(description="the MLP has a gate beside the up projection (SwiGLU)")] = False
    tie_word_embeddings: bool = False
    dropout: Annotated[bool, Field(description="residual and attention dropout keep their masks")] = False

    def problems(self) -> Iterator[Problem]:
        """Heads that divide."""
        if self.hidden_size % self.num_attention_heads:
            yield ("num_attention_heads",), f"{self.num_attention_heads} does not divide hidden_size"
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            yield ("num_key_value_heads",), f"{self.num_key_value_heads} does not divide num_attention_heads"


ModelOrPath = Annotated[Annotated[Name, Tag("path")] | Annotated[DenseModel, Tag("inline")], Discriminator(_how_given)]


class FixedSizes(Description):
    """Sizes that are decided already; the search has the others."""

    tensor_parallel_size: Size | None = None
    pipeline_parallel_size: Size | None = None
    virtual_pipeline_size: Annotated[Size | None, Field(description="chunks of a stage, interleaved")] = None
    context_parallel_size: Size | None = None
    expert_parallel_size: Size | None = None
    data_parallel_size: Size | None = None
    micro_batch_size: Size | None = None
    zero_stage: Annotated[int | None, Field(ge=0, le=3)] = None

    @property
    def given(self) -> dict[str, int]:
        """The sizes that are given, by name."""
        return {name: int(value) for name, value in self if value is not None}


class TrainingSites(Sites):
    """Places that slow links join. A link is the whole way between two sites, shared by all that crosses it."""

    nodes: Annotated[tuple[Name, ...], Field(min_length=1, description="site of each entry of cluster.nodes")]

    def problems(self) -> Iterator[Problem]:
        """Nodes at known sites."""
        yield from super().problems()
        for index, name in enumerate(self.nodes):
            if name not in self.names:
                yield ("nodes", index), f"{name!r} is none of the sites: {', '.join(self.names)}"


class TrainingInstance(Description):
    """Choose parallel sizes, micro-batch, sharding, recomputation and layers of stages for the best training step."""

    problem: Literal["parallel"] = "parallel"
    name: Name
    task: Literal["train"] = "train"
    model: Annotated[ModelOrPath, Field(description="catalogue name, config.json, or dimensions")]
    cluster: Annotated[ClusterOrPath, Field(description="path of a cluster file, or the cluster itself")]
    sites: Annotated[TrainingSites | None, Field(description="where nodes are at several places")] = None
    precision: Annotated[
        Literal["bf16", "fp16", "fp8"], Field(description="of the layers' matrix products; head and attention 16 bits")
    ] = "bf16"
    framework: Annotated[
        Name, Field(description="megatron, torchtitan, deepspeed: legal sharding; its calibration where there is one")
    ] = "megatron"
    global_batch_size: Annotated[Size, Field(description="sequences of a step")]
    sequence_length: Annotated[Size, Field(description="tokens of a sequence")]
    sequence_lengths: Annotated[
        tuple[Size, ...] | None,
        Field(min_length=1, max_length=4096, description="true lengths of a micro-batch, to group by context parallel"),
    ] = None
    optimizer: Annotated[Literal["adam"], Field(description="fp32 master weights and two moments")] = "adam"
    gradient_bytes: Annotated[
        Literal[2, 4, 6], Field(description="of a parameter: 16-bit, fp32, or both kept (DeepSpeed bf16)")
    ] = 4
    flash_attention: bool = True
    recompute: Literal["auto", "none", "selective", "full"] = "auto"
    layer_strategies: Annotated[
        LayerStrategies,
        Field(
            description="what layers may differ in. uniform: nothing; framework: what its options say (Megatron-LM:"
            " how many of each chunk recompute); stage: how many of each stage recompute; any: also ZeRO and tensor"
            " parallelism of each layer"
        ),
    ] = "framework"
    schedules: Annotated[
        tuple[ScheduleName, ...], Field(min_length=1, description="of pipelines; 1f1b includes interleaving")
    ] = ("1f1b",)
    fixed: FixedSizes = FixedSizes()
    objective: Annotated[Literal["step_time", "cost", "joules"], Field(description="of one step, least is best")] = (
        "step_time"
    )
    prices_usd_per_gpu_hour: Annotated[dict[Name, UsdPerHour], Field(default_factory=dict, description="by device")]
    reserve: Annotated[FiniteFloat, Field(ge=0, lt=1, description="share of GPU memory that plans leave free")] = 0.0
    node_bandwidth_bytes_per_s: Annotated[
        tuple[tuple[BytesPerSecond | None, ...], ...] | None,
        Field(description="measured between nodes, row sends to column, null on the diagonal; maps stages to nodes"),
    ] = None
    calibration: Annotated[Name | None, Field(description="efficiency.yaml of `gpuplan calibrate`")] = None

    def problems(self) -> Iterator[Problem]:
        """What goes together; a square matrix without zeros."""
        if self.objective == "cost" and not self.prices_usd_per_gpu_hour:
            yield ("objective",), "cost needs prices_usd_per_gpu_hour"
        batch, fixed = self.global_batch_size, self.fixed.given
        replicas = fixed.get("data_parallel_size", 1) * fixed.get("micro_batch_size", 1)
        if batch % replicas:
            told = "data_parallel_size x micro_batch_size of `fixed`"
            yield ("global_batch_size",), f"{batch} is not a multiple of {told}, {replicas}"
        if self.sequence_length % fixed.get("context_parallel_size", 1):
            yield ("sequence_length",), f"fixed.context_parallel_size does not divide {self.sequence_length}"
        for index, length in enumerate(self.sequence_lengths or ()):
            if length > self.sequence_length:
                told = f"{length} tokens are more than sequence_length, {self.sequence_length}"
                yield ("sequence_lengths", index), told
        if self.recompute == "selective" and self.flash_attention:
            yield ("recompute",), "selective recomputes scores, which flash attention never keeps: none or full"
        if self.node_bandwidth_bytes_per_s is not None:
            yield from self._matrix(self.node_bandwidth_bytes_per_s)

    @staticmethod
    def _matrix(matrix: tuple[tuple[float | None, ...], ...]) -> Iterator[Problem]:
        key, size = "node_bandwidth_bytes_per_s", len(matrix)
        for row, values in enumerate(matrix):
            if len(values) != size:
                yield (key, row), f"has {len(values)} entries for {size} nodes: the matrix must be square"
            for column, value in enumerate(values):
                if row != column and not value:
                    yield (key, row), f"no bandwidth from node {row} to node {column}: it must be positive"
