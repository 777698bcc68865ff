"""The `experts` instance: loads, slots and limits for placing MoE experts and their replicas on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description, Problem
from planner.units import Bytes

#: Bounds that no real system reaches; they keep a mistyped number from asking for terabytes of memory.
MAX_GPUS, MAX_SLOTS, MAX_LAYERS, MAX_EXPERTS = 65_536, 262_144, 4_096, 65_536

PositiveFloat = Annotated[FiniteFloat, Field(gt=0)]
NonNegativeFloat = Annotated[FiniteFloat, Field(ge=0)]
#: A path without the one character that no file name may have.
FileName = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


class LoadSource(Description):
    """One scenario: tokens routed to each logical expert of each layer, recorded under one workload."""

    file: Annotated[FileName, Field(description="SGLang logical_count .json or .pt, .npy, or CSV")] | None = None
    counts: Annotated[
        tuple[tuple[NonNegativeFloat, ...], ...] | None, Field(description="inline counts, [layers][experts]")
    ] = None
    weight: Annotated[PositiveFloat, Field(description="how much this scenario counts, relative")] = 1.0
    name: str | None = None

    def problems(self) -> Iterator[Problem]:
        """Exactly one source."""
        if (self.file is None) == (self.counts is None):
            yield (), "give exactly one of file and counts"


class SampleSource(Description):
    """A first look at a new workload: expert selections of a few thousand of its tokens, to replan on."""

    file: Annotated[FileName | None, Field(description="as a load file")] = None
    counts: tuple[tuple[NonNegativeFloat, ...], ...] | None = None
    top_k: Annotated[PositiveInt, Field(description="experts per token, to know how many tokens the counts are")] = 8

    def problems(self) -> Iterator[Problem]:
        """Exactly one source."""
        if (self.file is None) == (self.counts is None):
            yield (), "give exactly one of file and counts"


class TraceSource(Description):
    """Which experts each token took: .npy int [tokens, layers, k], best first."""

    file: FileName
    documents: Annotated[FileName | None, Field(description=".npy int [tokens]: document of each token")] = None


class StepSource(Description):
    """What the experts run on, for times in seconds: the verdict tells them; the search does not need them."""

    model: Annotated[FileName, Field(description="catalogue name, or config.json")]
    device: Annotated[FileName, Field(description="catalogue name of the GPU")]
    tokens: Annotated[PositiveFloat, Field(description="tokens of one forward pass over all GPUs, before top-k")]
    precision: Annotated[
        Literal["bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int8", "int4"] | None,
        Field(description="format of the experts; default: the checkpoint's"),
    ] = None


class Communication(Description):
    """How a token's travel between GPUs is charged. The two models describe different systems, never mixed.

    chain: tokens stay where their expert is, so layer-to-layer transitions cost (ExFlow, MoETuner).
    fanout: each token goes out to the GPUs of its k experts and back, every layer (data-parallel attention, DeepEP).
    """

    model: Literal["chain", "fanout"]
    weight: Annotated[
        NonNegativeFloat,
        Field(description="objective per unit of cost of a token; 1: a crossing of every token doubles a layer"),
    ] = 1.0
    intra_node_cost: Annotated[NonNegativeFloat, Field(description="cost of one hop inside a node")] = 1.0
    cost_file: Annotated[
        FileName | None, Field(description=".npy [num_gpus, num_gpus]: cost of a hop, over the two costs here (chain)")
    ] = None
    inter_node_cost: Annotated[
        NonNegativeFloat | None, Field(description="cost of a hop between nodes; default: 9 times the one inside")
    ] = None


class ExpertsInstance(Description):
    """Place every expert replica of every MoE layer on a GPU slot."""

    problem: Literal["experts"] = "experts"
    name: str
    num_gpus: Annotated[PositiveInt, Field(le=MAX_GPUS)]
    gpus_per_node: Annotated[PositiveInt, Field(description="default: all GPUs in one node")] | None = None
    num_slots: Annotated[PositiveInt, Field(le=MAX_SLOTS, description="slots of a layer over all GPUs")]
    loads: tuple[LoadSource, ...] = ()
    sample: Annotated[
        SampleSource | None, Field(description="plan for this new workload, with the loads as prior knowledge")
    ] = None
    trace: TraceSource | None = None
    communication: Communication | None = None
    step: StepSource | None = None
    split: Annotated[
        Literal["even", "lp"],
        Field(description="how a replicated expert's tokens are shared: evenly, or by the per-batch LP (SGLang lp)"),
    ] = "even"
    expert_bytes: Annotated[Bytes | None, Field(description="weights of one expert of one layer")] = None
    gpu_memory_bytes: Annotated[Bytes | None, Field(description="memory a GPU has for expert weights")] = None
    gpu_speed: Annotated[tuple[PositiveFloat, ...] | None, Field(description="relative speed of each GPU")] = None
    num_groups: Annotated[PositiveInt | None, Field(description="expert groups (config.json n_group)")] = None
    group_spread: Annotated[
        PositiveInt | None, Field(description="most nodes that the experts of one group may lie on")
    ] = None
    current: Annotated[FileName | None, Field(description="plan or map in force now; unmoved replicas are free")] = None
    max_moves: Annotated[int | None, Field(ge=0, description="most expert replicas that may be loaded anew")] = None
    move_cost: Annotated[
        NonNegativeFloat,
        Field(description="objective per replica loaded anew; 1 is the time of one evenly loaded layer"),
    ] = 0.0

    def problems(self) -> Iterator[Problem]:
        """Rules between fields that need no data file."""
        if self.num_slots % self.num_gpus:
            below = self.num_slots // self.num_gpus * self.num_gpus
            choice = f"{below} or {below + self.num_gpus}" if below else f"{self.num_gpus}"
            yield (
                ("num_slots",),
                f"{self.num_slots} slots cannot be shared equally by {self.num_gpus} GPUs; use {choice}",
            )
        if self.gpus_per_node and self.num_gpus % self.gpus_per_node:
            yield ("gpus_per_node",), f"{self.num_gpus} GPUs are not whole nodes of {self.gpus_per_node}"
        if not self.loads and self.trace is None:
            yield ("loads",), "give loads, a trace, or both"
        if self.gpu_speed is not None and len(self.gpu_speed) != self.num_gpus:
            yield ("gpu_speed",), f"has {len(self.gpu_speed)} entries for {self.num_gpus} GPUs"
        if self.gpu_memory_bytes is not None and self.expert_bytes is None:
            yield ("gpu_memory_bytes",), "needs expert_bytes"
        if (self.group_spread is None) != (self.num_groups is None):
            yield ("group_spread",), "group_spread and num_groups go together"
        if self.communication is not None and self.trace is None:
            yield ("communication",), "needs a trace"
        elif self.communication is not None:
            if self.communication.cost_file is not None and self.communication.model == "fanout":
                yield ("communication", "cost_file"), "is for the chain model; fanout takes the two costs"
            inter = self.communication.inter_node_cost
            if inter is not None and inter < self.communication.intra_node_cost:
                yield ("communication", "inter_node_cost"), "is below the cost inside a node"
        if self.max_moves is not None and self.current is None:
            yield ("max_moves",), "needs a current placement"
        if self.move_cost and self.current is None:
            yield ("move_cost",), "needs a current placement"
        if self.sample is not None and not self.loads:
            yield ("sample",), "needs loads to combine with; a sample alone is a load"
        names = [source.name for source in self.loads if source.name is not None]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield ("loads",), f"two scenarios are named {name!r}"
