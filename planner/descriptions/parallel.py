"""The `parallel` instance: a model, a cluster, a workload and its limits; which workers should serve it?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveInt, Tag

from planner.cluster import Cluster
from planner.descriptions.base import Description, Problem
from planner.units import BytesPerSecond, UsdPerHour
from planner.workload import Slo

Positive = Annotated[FiniteFloat, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]


def _how_given(value: Any) -> str:
    return "path" if isinstance(value, str) else "inline"


ClusterOrPath = Annotated[Annotated[Name, Tag("path")] | Annotated[Cluster, Tag("inline")], Discriminator(_how_given)]


class RequestSize(Description):
    """Requests of one size, and how many of them there are beside the others."""

    input_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    output_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    weight: Annotated[FiniteFloat, Field(gt=0, le=1e6, description="relative to the weights of the other sizes")] = 1.0


class ServingLoad(RequestSize):
    """Requests of one size or of several; with a rate, that is what has to be served of all sizes together."""

    others: Annotated[tuple[RequestSize, ...], Field(max_length=64, description="requests of further sizes")] = ()
    rate_per_s: Positive | None = None
    hourly: Annotated[
        tuple[Annotated[FiniteFloat, Field(ge=0, le=1e8)], ...] | None,
        Field(min_length=1, max_length=8784, description="requests/s of each hour, in place of rate_per_s"),
    ] = None

    @property
    def sizes(self) -> tuple[RequestSize, ...]:
        """All sizes, the main one first."""
        return (self, *self.others)

    @property
    def most_per_s(self) -> float | None:
        """The rate, or the highest of the hours."""
        return self.rate_per_s if self.hourly is None else max(self.hourly)

    def problems(self) -> Iterator[Problem]:
        """One rate, of which something is asked, and each size once."""
        if self.hourly is not None and self.rate_per_s is not None:
            yield ("hourly",), "takes the place of rate_per_s; give one of them"
        if self.hourly is not None and not max(self.hourly) > 0:
            yield ("hourly",), "all rates are zero: there is nothing to serve"
        seen = [(one.input_tokens, one.output_tokens) for one in self.sizes]
        for index, size in enumerate(seen):
            if size in seen[:index]:
                yield ("others", index - 1), f"{size[0]}/{size[1]} tokens is given twice; add the weights up"


class Speculation(Description):
    """Drafts of the model's own MTP layer that workers may verify in a step; the search decides which do."""

    draft_tokens: Annotated[int, Field(ge=1, le=8, description="proposed in each step")] = 1
    acceptance: Annotated[
        FiniteFloat | None,
        Field(ge=0, le=1, description="chance that a draft is right; default: the model's published one"),
    ] = None


class ParallelInstance(Description):
    """Choose workers (role, GPU kind, parallel sizes, batch) and how many of each."""

    problem: Literal["parallel"] = "parallel"
    name: Name
    task: Literal["serve"] = "serve"
    model: Annotated[Name | None, Field(description="catalogue name or config.json; not needed with candidates")] = None
    checkpoint: Annotated[
        Name | None,
        Field(description="what workers load: an id of the hub, or a path where they run; default: the model"),
    ] = None
    cluster: Annotated[ClusterOrPath, Field(description="path of a cluster file, or the cluster itself")]
    precision: Annotated[Name | None, Field(description="format of the weights; default: the checkpoint's")] = None
    workload: ServingLoad
    slo: Slo = Slo()
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    disaggregated: Literal["allow", "only", "never"] = "allow"
    objective: Annotated[
        Literal["throughput", "gpus", "cost", "joules"] | None,
        Field(description="most requests/s; or fewest GPUs, USD or joules at the rate; default: gpus with a rate"),
    ] = None
    prices_usd_per_gpu_hour: Annotated[dict[Name, UsdPerHour], Field(default_factory=dict, description="by device")]
    candidates: Annotated[Name | None, Field(description="CSV of workers in place of the cost model")] = None
    calibration: Annotated[Name | None, Field(description="efficiency.yaml of `gpuplan calibrate`")] = None
    margin: Annotated[
        FiniteFloat, Field(ge=0, le=1, description="predictions count so much longer against the limits")
    ] = 0.05
    slo_confidence: Annotated[
        FiniteFloat | None,
        Field(ge=0.5, lt=1, description="share of measurements that are to keep a limit; in place of margin"),
    ] = None
    kv_bandwidth_bytes_per_s: Annotated[
        BytesPerSecond | None, Field(description="of one GPU between prefill and decode; default: the network's")
    ] = None
    max_workers: PositiveInt | None = None
    current: Annotated[Name | None, Field(description="plan document of the workers that run now")] = None
    change_cost: Annotated[
        FiniteFloat,
        Field(
            ge=0, description="of one GPU of a worker that starts: hours of the objective's unit (GPUs, USD/hour, W)"
        ),
    ] = 0.0
    speculation: Speculation | None = None
    two_batch_overlap: Annotated[
        bool, Field(description="experts over several nodes may compute on half of a step while the other is exchanged")
    ] = False
    expert_imbalance: Annotated[
        FiniteFloat | None,
        Field(ge=1, description="busiest GPU over the mean where there are redundant experts; default: 1.15"),
    ] = None

    def problems(self) -> Iterator[Problem]:
        """What goes together."""
        if self.model is None and self.candidates is None:
            yield ("model",), "is required, or candidates"
        if self.slo_confidence is not None:
            if self.candidates is not None:
                yield ("slo_confidence",), "is for predictions: a table of candidates does not tell how far off it is"
            if "margin" in self.model_fields_set:
                yield ("slo_confidence",), "takes the place of margin; give one of them"
        if self.objective in ("gpus", "cost", "joules") and self.workload.most_per_s is None:
            yield ("objective",), f"{self.objective} needs workload.rate_per_s, the rate to serve"
        if self.objective == "throughput" and self.workload.hourly is not None:
            yield ("objective",), "throughput has no use for workload.hourly; choose gpus, cost or joules"
        if self.workload.others and self.candidates is not None:
            yield ("workload", "others"), "needs the cost model: a table of candidates tells the rate of one size"
        if self.change_cost and self.current is None and self.workload.hourly is None:
            yield ("change_cost",), "needs a current plan or workload.hourly: nothing changes"
        if self.change_cost and self.workload.most_per_s is None:
            yield ("change_cost",), "needs a rate: its unit is that of gpus, cost or joules"
        if self.objective == "cost" and not self.prices_usd_per_gpu_hour:
            yield ("objective",), "cost needs prices_usd_per_gpu_hour"
        if self.two_batch_overlap and self.backend == "trtllm":
            yield ("two_batch_overlap",), "TensorRT-LLM has no such option; choose vllm or sglang"
        if self.candidates is not None:
            if self.two_batch_overlap:
                yield ("two_batch_overlap",), "is for predictions of the cost model, which candidates replace"
            for name in ("speculation", "expert_imbalance", "calibration", "kv_bandwidth_bytes_per_s"):
                if getattr(self, name) is not None:
                    yield (name,), "is for predictions of the cost model, which candidates replace"
