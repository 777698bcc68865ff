"""The `deploy` instance: services and their demand, nodes that stand and nodes to rent; what should run where?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description, Problem
from planner.descriptions.experts import LoadSource
from planner.descriptions.fleet import (
    BytesPerS,
    Count,
    FleetLimits,
    Gpus,
    Name,
    NonNegative,
    Offer,
    Positive,
    Priority,
    Requests,
)
from planner.hardware import DeviceKind
from planner.units import UsdPerHour, Watts
from planner.workload import Slo

#: A path without the one character that no file name may have.
Path = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]
Quantity = Annotated[str | int | FiniteFloat, Field(description="a Kubernetes quantity, such as 500m, 2 or 1.5Gi")]
#: Most hours of a demand: a leap year.
MOST_HOURS = 8784


class Service(Description):
    """A model that is served, to whom, and how fast. Its name is what tables of workers call `service`."""

    name: Name
    model: Annotated[Path | None, Field(description="catalogue name or config.json; not needed with `workers`")] = None
    checkpoint: Annotated[
        Name | None,
        Field(description="what workers load: an id of the hub, or a path where they run; default: the model"),
    ] = None
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    precision: Annotated[Name | None, Field(description="format of the weights; default: the checkpoint's")] = None
    slo: Annotated[Slo | None, Field(description="default: the instance's")] = None
    demand: Annotated[tuple[Requests, ...], Field(min_length=1)]
    priority: Annotated[Priority, Field(description="higher is served first where not all can be")] = 0
    min_replicas: Count = 0
    disaggregated: Annotated[
        Literal["allow", "never"], Field(description="whether prefill and decode may have workers of their own")
    ] = "allow"
    gpus_per_worker: Annotated[
        tuple[Gpus, ...] | None, Field(min_length=1, description="sizes to choose from; default: all")
    ] = None
    regions: Annotated[tuple[Name, ...] | None, Field(description="where it may run; default: anywhere")] = None
    kv_bytes_per_token: Annotated[
        Positive | None, Field(description="of a prompt's cache, prefill to decode; default: that of `model`")
    ] = None

    def problems(self) -> Iterator[Problem]:
        """Each size once."""
        seen: set[tuple[int, int]] = set()
        for index, one in enumerate(self.demand):
            size = one.input_tokens, one.output_tokens
            if size in seen:
                yield ("demand", index), f"{self.name} {size[0]}/{size[1]} tokens is given twice; add the rates up"
            seen.add(size)


class StandingNodes(Description):
    """So many equal nodes that stand already. Node i of several is named NAME-i."""

    name: Name
    device: Annotated[Name, Field(description="GPU, by its catalogue name")]
    gpus: Gpus
    free_gpus: Annotated[int | None, Field(ge=0, description="GPUs that nothing runs on; default: all")] = None
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    region: Name | None = None
    zone: Name | None = None
    price_usd_per_hour: Annotated[
        UsdPerHour, Field(le=1e9, description="of one node, if it is used: what it costs more than unused")
    ] = 0.0
    watts: Annotated[Watts | None, Field(le=1e9, description="of one node; default: the GPUs' board power")] = None
    network_bytes_per_s: Annotated[
        BytesPerS | None, Field(description="of one node to others, each way; absent: not limited")
    ] = None

    def problems(self) -> Iterator[Problem]:
        """No more is free than there is."""
        if self.free_gpus is not None and self.free_gpus > self.gpus:
            yield ("free_gpus",), f"{self.free_gpus} of {self.gpus} GPUs cannot be free"


class DeployInstance(FleetLimits):
    """From demand to placed pods: what to rent or use, which workers, and where each runs."""

    problem: Literal["deploy"] = "deploy"
    name: Name
    services: Annotated[tuple[Service, ...], Field(min_length=1)]
    offers: Annotated[tuple[Offer, ...], Field(description="what can be rented")] = ()
    nodes: Annotated[
        Path | tuple[StandingNodes, ...] | None,
        Field(description="what stands already: `kubectl get nodes -o json` (file or folder), or written down"),
    ] = None
    pods: Annotated[
        Path | None, Field(description="what runs on the nodes: `kubectl get pods -A -o json` (file or folder)")
    ] = None
    gpu_labels: Annotated[
        dict[str, Name], Field(description="names of GPUs by the nodes' product label, where that is not known")
    ] = Field(default_factory=dict)
    tolerations: Annotated[
        tuple[dict[str, Any], ...], Field(description="of the workers' pods, as in a Pod's spec")
    ] = ()
    requests_per_gpu: Annotated[
        dict[Name, Quantity], Field(description="cpu, memory, ... that a worker's pod takes for each of its GPUs")
    ] = Field(default_factory=dict)
    slo: Slo | None = None
    devices: Annotated[
        tuple[DeviceKind, ...], Field(description="own kinds of GPUs; over catalogued ones of that name")
    ] = ()
    workers: Annotated[
        Path | None, Field(description="table of workers by service and size (CSV), in place of the serving search")
    ] = None
    max_nodes_per_worker: Annotated[
        int, Field(ge=1, le=64, description="nodes of one worker that the serving search makes")
    ] = 2
    margin: Annotated[
        FiniteFloat, Field(ge=0, le=1, description="predictions count so much longer against the limits")
    ] = 0.05
    loads: Annotated[
        dict[Name, tuple[LoadSource, ...]],
        Field(description="by service with experts: tokens routed to each expert, as recorded"),
    ] = Field(default_factory=dict)
    redundant_experts: Annotated[
        tuple[Annotated[int, Field(ge=0, le=4096)], ...],
        Field(description="second copies of busy experts that workers of services with `loads` may have"),
    ] = (0, 32, 64)
    hours: Annotated[
        tuple[PositiveInt, ...] | None,
        Field(min_length=1, max_length=MOST_HOURS, description="hours that each hourly rate stands for; default: 1"),
    ] = None
    utilisation: Annotated[
        FiniteFloat, Field(gt=0, le=1, description="share of its throughput that a worker is given at most")
    ] = 0.8
    spare: Annotated[
        Literal[0, 1], Field(description="1: the loss of any one node is survived, by re-routing and restarting")
    ] = 0
    current: Annotated[Path | None, Field(description="plan document of the deployment in force")] = None
    max_moves: Annotated[Count | None, Field(description="most workers started beside those in force")] = None
    move_cost_usd_per_gpu_hour: Annotated[
        NonNegative, Field(le=1e6, description="of each GPU of a worker that is started beside those in force")
    ] = 0.01

    def problems(self) -> Iterator[Problem]:
        """Names are unique, there is something to run on, and what goes together does."""
        for place, names in self._names():
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield (place,), f"two are named {name!r}"
        if not self.offers and not self.nodes:
            yield ("offers",), "neither offers nor nodes are given: there is nothing to run on"
        if not isinstance(self.nodes, str):
            for key in ("pods", "gpu_labels", "tolerations", "requests_per_gpu"):
                if getattr(self, key):
                    yield (key,), "is for nodes that are read from a file"
        services = {service.name: service for service in self.services}
        for index, service in enumerate(self.services):
            if self.workers is None and service.model is None:
                yield ("services", index), f"{service.name} has no `model`, and there is no table of workers"
            if self.workers is not None and service.disaggregated == "never":
                yield ("services", index, "disaggregated"), "changes nothing: the table of workers says their roles"
        for name in self.loads:
            if name not in services:
                yield ("loads",), f"no service is named {name!r}"
        if self.workers is not None and "redundant_experts" in self.model_fields_set:
            yield ("redundant_experts",), "changes nothing: the table of workers says their slots"
        yield from self._hour_problems()
        if self.current is None and self.max_moves is not None:
            yield ("max_moves",), "needs a current deployment"
        if self.power is not None and self.power.draw == "phases":
            yield ("power", "draw"), "phases are for fleets that the cost model fills alone: give a share"

    def _names(self) -> Iterator[tuple[str, list[str]]]:
        yield "services", [one.name for one in self.services]
        standing = [] if self.nodes is None or isinstance(self.nodes, str) else [one.name for one in self.nodes]
        yield "nodes" if standing else "offers", [*(one.name for one in self.offers), *standing]

    def _hour_problems(self) -> Iterator[Problem]:
        lengths = {len(one.hourly) for service in self.services for one in service.demand if one.hourly is not None}
        if len(lengths) > 1:
            yield ("services",), f"hourly rates differ in length: {sorted(lengths)}"
        if self.hours is None or len(lengths) > 1:
            return
        if lengths != {len(self.hours)}:
            told = f"hourly rates have {lengths.pop()}" if lengths else "no rate is hourly"
            yield ("hours",), f"has {len(self.hours)} entries, {told}"
        elif sum(self.hours) > MOST_HOURS:
            yield ("hours",), f"are {sum(self.hours)} together, at most {MOST_HOURS} are a year"

    @property
    def headroom(self) -> float:
        """Capacity kept free, as a share of the demand."""
        return 1.0 / self.utilisation - 1.0
