"""The `deploy` instance: services and their demand, offers to rent, nodes that stand, and workers to choose from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from planner.descriptions.base import Description, Problem
from planner.descriptions.fleet import Count, Gpus, Name, NonNegative, Offer, Priority, Quota, Rate, Share, Tokens
from planner.units import UsdPerHour, Watts
from planner.workload import Slo


class ServiceDemand(Description):
    """Requests of one size: a constant rate, or one for each hour."""

    input_tokens: Tokens
    output_tokens: Tokens
    rate_per_s: Rate | None = None
    hourly: Annotated[tuple[Rate, ...] | None, Field(min_length=1, max_length=8784)] = None

    def problems(self) -> Iterator[Problem]:
        """Exactly one rate."""
        if (self.rate_per_s is None) == (self.hourly is None):
            yield (), "give exactly one of rate_per_s and hourly"


class Service(Description):
    """A model that is served to its own limits. `model` : what workers are computed for, where no table gives them."""

    name: Name
    model: Annotated[Name | None, Field(description="catalogue name, or config.json")] = None
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    precision: Annotated[Name | None, Field(description="format of the weights; default: the checkpoint's")] = None
    slo: Annotated[Slo | None, Field(description="default: the instance's; a worker table holds it already")] = None
    demand: Annotated[tuple[ServiceDemand, ...], Field(min_length=1)]
    priority: Annotated[Priority, Field(description="higher is served first where not all can be")] = 0
    min_replicas: Count = 0


class StandingNodes(Description):
    """Nodes that are there already, and the GPUs of each that nothing runs on."""

    name: Name
    device: Annotated[Name, Field(description="GPU, by its catalogue name")]
    gpus: Gpus
    free_gpus: Annotated[int | None, Field(ge=0, description="of each; default: all")] = None
    count: Annotated[Count, Field(ge=1)] = 1
    price_usd_per_hour: Annotated[UsdPerHour, Field(description="saved where one is left empty; 0: it is paid")] = 0.0
    region: Name | None = None

    def problems(self) -> Iterator[Problem]:
        """No more is free than there is."""
        if self.free_gpus is not None and self.free_gpus > self.gpus:
            yield ("free_gpus",), f"{self.free_gpus} is above gpus {self.gpus}"


class DeployInstance(Description):
    """Deploy services at the least cost: nodes, workers on them, requests to workers, in one optimisation."""

    problem: Literal["deploy"] = "deploy"
    name: Name
    services: Annotated[tuple[Service, ...], Field(min_length=1)]
    slo: Slo | None = None
    offers: tuple[Offer, ...] = ()
    nodes: Annotated[
        tuple[StandingNodes, ...] | Name, Field(description="standing nodes, or what `kubectl get nodes -o json` says")
    ] = ()
    pods: Annotated[Name | None, Field(description="`kubectl get pods -A -o json`: what runs on these nodes")] = None
    workers: Annotated[Name | None, Field(description="a table of workers by service and size (CSV)")] = None
    utilisation: Annotated[
        FiniteFloat, Field(gt=0, le=1, description="share of a worker's highest rate that it is given")
    ] = 0.8
    spare: Annotated[Literal[0, 1], Field(description="1: the loss of any one node is survived, by re-routing")] = 0
    unserved: Literal["refuse", "by_priority"] = "refuse"
    budget_usd_per_hour: UsdPerHour | None = None
    max_watts: Watts | None = None
    max_spot_share: Share | None = None
    quotas: tuple[Quota, ...] = ()
    current: Annotated[dict[Name, Count] | None, Field(description="nodes in force, by offer")] = None
    max_changes: Annotated[Count | None, Field(description="most nodes added or dropped")] = None
    change_cost_usd_per_hour: Annotated[NonNegative, Field(description="price of one node added or dropped")] = 0.0

    def problems(self) -> Iterator[Problem]:
        """Names are unique; there is something to run on, and something to choose workers from."""
        nodes = [] if isinstance(self.nodes, str) else [one.name for one in self.nodes]
        for place, names in (
            ("services", [one.name for one in self.services]),
            ("offers", [one.name for one in self.offers] + nodes),
        ):
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield (place,), f"two are named {name!r}"
        if not self.offers and not self.nodes:
            yield ("offers",), "nothing to run on: give offers to rent, standing nodes, or both"
        if self.pods is not None and not isinstance(self.nodes, str):
            yield ("pods",), "goes with nodes from kubectl; inline nodes say their free_gpus"
        for index, service in enumerate(self.services):
            sizes = [(one.input_tokens, one.output_tokens) for one in service.demand]
            for size in sorted({size for size in sizes if sizes.count(size) > 1}):
                yield ("services", index, "demand"), f"{size[0]}/{size[1]} tokens is given twice; add the rates up"
            if self.workers is None and service.model is None:
                yield ("services", index, "model"), "is needed to compute workers; or give a table of `workers`"
            if self.workers is None and service.slo is None and self.slo is None:
                yield ("services", index, "slo"), "is needed to compute workers; or give a table of `workers`"
