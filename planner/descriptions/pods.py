"""The `pods` instance: nodes, pods and what is best. Nodes and pods come from files, or are written down by class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from planner.descriptions.base import Description, Problem
from planner.kubernetes.quantity import parse_amount
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.units import UsdPerHour

Name = Annotated[str, Field(min_length=1, max_length=200)]
Quantity = Annotated[str | int | FiniteFloat, Field(description="a Kubernetes quantity, such as 500m, 2 or 1.5Gi")]
Files = Annotated[tuple[Name, ...], Field(min_length=1, max_length=10_000)]
#: Nodes or pods of one class written inline.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Devices = Annotated[int, Field(ge=0, le=1024)]
Labels = dict[str, str]
Raw = dict[str, Any]


class _NodeKind(Description):
    """What a node is; amounts are what pods may take (allocatable)."""

    name: Name
    cpu: Quantity
    memory: Quantity
    pods: Annotated[Quantity, Field(description="pod slots; default: the kubelet's 110")] = 110
    gpus: Devices = 0
    gpu_model: Annotated[str, Field(max_length=200)] = ""
    resources: Annotated[dict[Name, Quantity], Field(description="other resources, such as nvidia.com/mig-1g.10gb")] = (
        Field(default_factory=dict)
    )
    gpu_island: Annotated[
        int | None,
        Field(
            ge=1, le=1024, description="GPUs that are linked to each other (NVLink, NUMA): 4 of 8, say; default: all"
        ),
    ] = None
    numa: Annotated[
        Literal[1, 2], Field(description="NUMA nodes that share cores and memory evenly; for the objective fragments")
    ] = 1
    labels: Labels = Field(default_factory=dict)
    taints: Annotated[tuple[Raw, ...], Field(description="as in a Node's spec")] = ()
    price_usd_per_hour: Annotated[UsdPerHour | None, Field(le=1e9, description="of one node")] = None

    def problems(self) -> Iterator[Problem]:
        """Amounts that can be read."""
        yield from _amounts(self)


class NodeClass(_NodeKind):
    """So many equal nodes. Node i of several is named NAME-i; amounts are what pods may take (allocatable)."""

    count: Count = 1


class NodeOffer(_NodeKind):
    """A kind of node that could be added, for pods without a place."""

    count: Annotated[Count | None, Field(description="most that could be added; default: any number")] = None


class PodClass(Description):
    """So many equal pods. Pod i of several is named NAMESPACE/NAME-i. Rules are written as in a Pod's spec."""

    name: Name
    namespace: Name = "default"
    count: Count = 1
    cpu: Quantity = 0
    memory: Quantity = 0
    gpus: Devices = 0
    gpu_milli: Annotated[
        int, Field(ge=1, le=WHOLE_MILLI, description="thousandths of the device; below 1000 of one only")
    ] = WHOLE_MILLI
    one_island: Annotated[bool, Field(description="all of its GPUs belong to one island of the node")] = False
    gpu_models: Annotated[tuple[Name, ...], Field(description="models that will do; default: any")] = ()
    resources: dict[Name, Quantity] = Field(default_factory=dict)
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    labels: Labels = Field(default_factory=dict)
    node: Annotated[Name | None, Field(description="node that all of them run on; default: pending")] = None
    node_selector: Labels = Field(default_factory=dict)
    tolerations: tuple[Raw, ...] = ()
    affinity: Raw = Field(default_factory=dict)
    topology_spread: tuple[Raw, ...] = ()
    gang: Annotated[Name | None, Field(description="all of the gang's pods, or none")] = None
    numa: Annotated[Literal[1, 2], Field(description="NUMA nodes that each pod is spread over evenly")] = 1
    numa_nodes: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1)], ...] | None,
        Field(description="NUMA nodes of `node` that each of them is on; default: not known"),
    ] = None

    def problems(self) -> Iterator[Problem]:
        """Amounts that can be read, shares of one device, NUMA nodes of pods that run."""
        yield from _amounts(self)
        if self.numa_nodes is not None and (self.node is None or len({*self.numa_nodes}) != self.numa):
            yield ("numa_nodes",), f"a pod that runs is on as many NUMA nodes as `numa` says, {self.numa}"
        if self.gpus > 1 and self.gpu_milli < WHOLE_MILLI:
            yield ("gpu_milli",), f"a share is of one device, this takes {self.gpus}"


def _amounts(described: _NodeKind | PodClass) -> Iterator[Problem]:
    for loc, value in [
        (("cpu",), described.cpu),
        (("memory",), described.memory),
        *((("resources", name), value) for name, value in described.resources.items()),
        *([(("pods",), described.pods)] if isinstance(described, _NodeKind) else []),
    ]:
        try:
            parse_amount(value, 1000 if loc == ("cpu",) else 1)
        except ValueError as error:
            yield loc, str(error)


class Moves(Description):
    """What may happen to pods that run. Without leave they stay where they are, on the devices that they have."""

    allowed: bool = False
    max: Annotated[int | None, Field(ge=0, lt=2**31, description="most pods moved")] = None
    evict: Annotated[bool, Field(description="pods of lower priority may be evicted for good")] = False


class PodsInstance(Description):
    """Pack pods onto nodes: most pods by priority, most GPUs allocated, or fewest nodes powered."""

    problem: Literal["pods"] = "pods"
    name: Name
    nodes: Annotated[
        Name | tuple[NodeClass, ...],
        Field(description="`kubectl get nodes -o json` (file, folder or YAML), openb CSV, or classes of nodes"),
    ]
    pods: Annotated[
        Name | tuple[PodClass, ...],
        Field(description="`kubectl get pods -A -o json` (file, folder or YAML), openb CSV, or classes of pods"),
    ]
    objects: Annotated[
        tuple[Name, ...],
        Field(description="more files or folders: disruption budgets, pod groups, priority classes, namespaces"),
    ] = ()
    offers: Annotated[
        tuple[NodeOffer, ...],
        Field(
            max_length=1000,
            description="kinds of nodes that could be added for pods without a place; default: those that there are",
        ),
    ] = ()
    objective: Literal["priority", "allocation", "consolidate", "fragments"] = "priority"
    fragment_cpu: Annotated[
        Quantity, Field(description="with fragments: free cores of a NUMA node beyond a multiple of these are lost")
    ] = 16
    powered: Annotated[
        Literal["gpus", "nodes", "price"] | None,
        Field(description="what `consolidate` counts of nodes in use; default: GPUs, or nodes where there are none"),
    ] = None
    moves: Moves = Moves()
    time_slice_s: Annotated[
        FiniteFloat | None, Field(gt=0, le=1e6, description="most seconds of search for one tier of the objective")
    ] = None

    def problems(self) -> Iterator[Problem]:
        """Names are unique, nodes exist, and prices are there where they are counted."""
        for place, classes in (("nodes", self.nodes), ("pods", self.pods), ("offers", self.offers)):
            if isinstance(classes, str):
                continue
            if not classes and place == "nodes":
                yield (place,), "there is no node"
            names = [(getattr(one, "namespace", ""), one.name) for one in classes]
            for _, name in sorted({name for name in names if names.count(name) > 1}):
                yield (place,), f"two are named {name!r}"
        if self.powered is not None and self.objective != "consolidate":
            yield ("powered",), f"the objective {self.objective} counts no nodes"
        yield from self._numa_problems()
        if self.powered == "price":
            if isinstance(self.nodes, str):
                yield ("powered",), "prices are told by classes of nodes alone"
            else:
                for index, node in enumerate(self.nodes):
                    if node.price_usd_per_hour is None:
                        yield ("nodes", index), f"{node.name} has no price_usd_per_hour, which `powered: price` counts"

    def _numa_problems(self) -> Iterator[Problem]:
        """NUMA nodes are known to one objective alone, and are never dropped silently."""
        try:
            if parse_amount(self.fragment_cpu, 1000) < 1:
                yield ("fragment_cpu",), "must be more than nothing"
        except ValueError as error:
            yield ("fragment_cpu",), str(error)
        if self.objective == "fragments":
            if not self.moves.allowed:
                yield ("moves", "allowed"), "the objective fragments is about moves: allow them"
            return
        if "fragment_cpu" in self.model_fields_set:
            yield ("fragment_cpu",), f"the objective {self.objective} counts no fragments of cores"
        nodes = () if isinstance(self.nodes, str) else self.nodes
        pods = () if isinstance(self.pods, str) else self.pods
        numa = [("nodes", index, node.numa) for index, node in enumerate(nodes)]
        numa += [("pods", index, pod.numa) for index, pod in enumerate(pods)]
        for place, index, count in numa:
            if count > 1:
                yield (place, index, "numa"), f"the objective {self.objective} does not model NUMA nodes"
