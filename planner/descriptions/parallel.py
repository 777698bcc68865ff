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


class ServingLoad(Description):
    """Requests of one size; with a rate, that is what has to be served."""

    input_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    output_tokens: Annotated[int, Field(ge=1, le=1 << 24)]
    rate_per_s: Positive | None = None


class ParallelInstance(Description):
    """Choose workers (role, GPU kind, parallel sizes, batch) and how many of each."""

    problem: Literal["parallel"] = "parallel"
    name: Name
    task: Literal["serve"] = "serve"
    model: Annotated[Name | None, Field(description="catalogue name or config.json; not needed with candidates")] = None
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

    def problems(self) -> Iterator[Problem]:
        """What goes together."""
        if self.model is None and self.candidates is None:
            yield ("model",), "is required, or candidates"
        if self.slo_confidence is not None:
            if self.candidates is not None:
                yield ("slo_confidence",), "is for predictions: a table of candidates does not tell how far off it is"
            if "margin" in self.model_fields_set:
                yield ("slo_confidence",), "takes the place of margin; give one of them"
        if self.objective in ("gpus", "cost", "joules") and self.workload.rate_per_s is None:
            yield ("objective",), f"{self.objective} needs workload.rate_per_s, the rate to serve"
        if self.objective == "cost" and not self.prices_usd_per_gpu_hour:
            yield ("objective",), "cost needs prices_usd_per_gpu_hour"
