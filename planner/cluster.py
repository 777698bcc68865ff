"""A cluster as a user describes it: nodes of catalogued or own devices, and the network between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, PositiveInt, Tag

from planner.catalog import devices as catalog
from planner.descriptions.base import Description, Problem
from planner.errors import OptionError
from planner.hardware import DeviceKind, Link, NodeShape, NonEmpty
from planner.plausibility import bandwidth_notes, device_notes, link_notes
from planner.units import BytesPerSecond, Seconds

#: More GPUs than any cluster has; a mistyped count is told instead of filling the memory.
MAX_GPUS = 1_000_000
#: What joins nodes where nobody says: 400 Gbit/s a GPU, as HGX H100 and newer nodes have. Source: modelled.
DEFAULT_NETWORK_LINK = "ib_ndr"
#: GPUs of a node when neither the user nor a scale-up domain says: PCIe cards alone or bridged in pairs.
DEFAULT_GPUS_PER_NODE = 8


def _how_given(value: Any) -> str:
    return "name" if isinstance(value, str) else "inline"


_Name = Annotated[NonEmpty, Tag("name")]
DeviceOrName = Annotated[_Name | Annotated[DeviceKind, Tag("inline")], Discriminator(_how_given)]
LinkOrName = Annotated[_Name | Annotated[Link, Tag("inline")], Discriminator(_how_given)]


class NodeGroup(Description):
    """`count` equal servers: a catalogued shape, or a device and how many of it."""

    shape: Annotated[NonEmpty | None, Field(description="catalogued node, as p5.48xlarge; the rest overrides it")] = (
        None
    )
    device: Annotated[DeviceOrName | None, Field(description="catalogue name, or a description of the device")] = None
    count: Annotated[PositiveInt, Field(le=MAX_GPUS, description="servers")] = 1
    gpus_per_node: Annotated[
        PositiveInt | None,
        Field(le=MAX_GPUS, description="default: the scale-up domain; 8 for cards alone or bridged in pairs"),
    ] = None
    scale_up_link: Annotated[LinkOrName | None, Field(description="NVLink or its like; default: the device's")] = None
    scale_up_domain_gpus: Annotated[
        PositiveInt | None, Field(description="GPUs that it joins; above gpus_per_node it spans nodes (NVL72 trays)")
    ] = None
    node_link: Annotated[LinkOrName | None, Field(description="PCIe or its like; default: the device's")] = None
    rails: Annotated[PositiveInt | None, Field(description="NICs of a node; default: one a GPU")] = None
    nic_bandwidth_bytes_per_s: Annotated[
        BytesPerSecond | None, Field(description="of one NIC, one direction; default: the network link's")
    ] = None

    def problems(self) -> Iterator[Problem]:
        """Something must say which device."""
        if self.device is None and self.shape is None:
            yield ("device",), "is required (or a shape)"


class Network(Description):
    """What joins the nodes.

    flat: one switch that blocks nothing. rail_only: the GPUs of equal place in their nodes share a switch, and nothing
    joins the switches. leaf_spine: `nodes_per_leaf` nodes share a leaf; leaves meet at a spine.
    """

    link: Annotated[LinkOrName, Field(description="of one NIC, as ib_ndr; or of a whole node, as efa_p5")]
    topology: Literal["flat", "rail_only", "leaf_spine"] = "flat"
    nodes_per_leaf: PositiveInt | None = None
    oversubscription: Annotated[FiniteFloat, Field(ge=1, description="bandwidth below a leaf over that above it")] = 1.0
    spine_latency_s: Annotated[Seconds, Field(description="added by a way over the spine")] = 0.0

    def problems(self) -> Iterator[Problem]:
        """Leaves belong to leaf_spine."""
        if self.topology == "leaf_spine":
            if self.nodes_per_leaf is None:
                yield ("nodes_per_leaf",), "is required for leaf_spine"
            return
        for name in ("nodes_per_leaf", "oversubscription", "spine_latency_s"):
            if getattr(self, name) != type(self).model_fields[name].default:
                yield (name,), f"is for leaf_spine, not {self.topology}"


@dataclass(frozen=True, slots=True)
class Nodes:
    """`count` equal nodes with every default filled in. Bandwidths are one direction; 0 s where no latency is known."""

    device: DeviceKind
    count: int
    gpus_per_node: int
    domain_gpus: int
    scale_up_bandwidth_bytes_per_s: float | None
    scale_up_latency_s: float
    pcie_bandwidth_bytes_per_s: float | None
    pcie_latency_s: float
    rails: int
    nic_bandwidth_bytes_per_s: float | None

    @property
    def num_gpus(self) -> int:
        """GPUs of all these nodes."""
        return self.count * self.gpus_per_node


class Cluster(Description):
    """Nodes, numbered in the order of the list, and the network between them."""

    name: str = ""
    nodes: Annotated[tuple[NodeGroup, ...], Field(min_length=1)]
    network: Annotated[
        Network | None, Field(description="default for more than one node: a flat 400 Gbit/s network, one NIC a GPU")
    ] = None
    devices: Annotated[tuple[DeviceKind, ...], Field(description="own kinds; over catalogued ones of that name")] = ()
    links: Annotated[tuple[Link, ...], Field(description="own links; over catalogued ones of that name")] = ()

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(nodes.num_gpus for nodes in self.resolved())

    def resolved(self) -> tuple[Nodes, ...]:
        """Each group of nodes with its devices and links looked up."""
        return tuple(self._resolve(group) for group in self.nodes)

    @property
    def fabric(self) -> Network | None:
        """The network as given, or the default that more than one node needs; None where nothing needs one."""
        if self.network is None and sum(group.count for group in self.nodes) > 1:
            return Network(link=DEFAULT_NETWORK_LINK)
        return self.network

    def network_link(self) -> Link | None:
        """The link of the network; None for a single node without one."""
        return None if self.fabric is None else self.link(self.fabric.link)

    def device(self, given: str | DeviceKind) -> DeviceKind:
        """A device by name, the cluster's own first; OptionError for an unknown one."""
        if isinstance(given, DeviceKind):
            return given
        own = catalog.by_any_name(self.devices)
        return own.get(catalog.folded(given)) or catalog.device(given)

    def link(self, given: str | Link) -> Link:
        """A link by name, the cluster's own first; OptionError for an unknown one."""
        if isinstance(given, Link):
            return given
        own = catalog.by_any_name(self.links)
        return own.get(catalog.folded(given)) or catalog.link(given)

    def problems(self) -> Iterator[Problem]:
        """Unknown names, sizes that do not divide, links that are missing."""
        unknown = list(self._unknown_names())
        yield from unknown
        for what, kinds in (("devices", self.devices), ("links", self.links)):
            names = [catalog.folded(kind.name) for kind in kinds]
            for index, name in enumerate(names):
                if name in names[:index]:
                    yield (what, index, "name"), f"{kinds[index].name!r} is there twice"
        if unknown or any(group.device is None and group.shape is None for group in self.nodes):
            return
        for index, group in enumerate(self.nodes):
            yield from ((("nodes", index, *loc), message) for loc, message in self._misfits(self._resolve(group)))
        resolved = self.resolved()
        if sum(nodes.num_gpus for nodes in resolved) > MAX_GPUS:
            yield ("nodes",), f"more than {MAX_GPUS:,} GPUs"
        if self.network is None:
            return
        link = self.link(self.network.link)
        if link.per == "gpu":
            yield (
                ("network", "link"),
                f"{link.name} joins the GPUs of one domain; give it as scale_up_link of the nodes",
            )
        if self.network.topology == "rail_only":
            yield from _rail_problems(resolved)

    def notes(self) -> tuple[str, ...]:
        """What is assumed, and numbers that look like a mistake of units."""
        found: list[str] = []
        for kind in (*self.devices, *(group.device for group in self.nodes if isinstance(group.device, DeviceKind))):
            found += device_notes(kind)
        link = self.network_link()
        if self.network is None and link is not None:
            found.append(f"no network is given: {link.name} is assumed, one NIC a GPU, flat")
        given = [*self.links, *(one for group in self.nodes for one in (group.scale_up_link, group.node_link))]
        for one in (*given, None if self.network is None else self.network.link):
            if isinstance(one, Link):
                found += link_notes(one)
        for group, nodes in zip(self.nodes, self.resolved(), strict=True):
            if group.nic_bandwidth_bytes_per_s is not None:
                found += bandwidth_notes(f"NIC of the {nodes.device.name} nodes", group.nic_bandwidth_bytes_per_s, link)
            if nodes.scale_up_bandwidth_bytes_per_s is not None and nodes.scale_up_latency_s == 0:
                name = nodes.device.scale_up_link or "scale-up link"
                found.append(f"no latency is known of the {name} of {nodes.device.name}: counted as 0")
            if nodes.pcie_bandwidth_bytes_per_s is None and link is not None:
                found.append(f"no PCIe bandwidth is known of {nodes.device.name}: not a limit on the way to its NIC")
        if link is not None and link.latency_s is None:
            found.append(f"no latency is known of {link.name}: counted as 0")
        return tuple(dict.fromkeys(found))

    def _resolve(self, group: NodeGroup) -> Nodes:
        shape = None if group.shape is None else catalog.node(group.shape)
        if group.device is not None:
            device = self.device(group.device)
        else:
            assert shape is not None
            device = self.device(shape.device)
        scale_up = None if group.scale_up_link is None else self.link(group.scale_up_link)
        pcie = None if group.node_link is None else self.link(group.node_link)
        domain = device.scale_up_domain_gpus
        gpus = group.gpus_per_node or (shape.gpus if shape else domain if domain > 2 else DEFAULT_GPUS_PER_NODE)
        if scale_up is not None and domain == 1:
            domain = gpus
        # Without a word the domain ends with the server; only a shape or the user knows of racks that are one domain.
        joined = group.scale_up_domain_gpus or (shape.scale_up_domain_gpus if shape else min(domain, gpus))
        rails = group.rails or gpus
        return Nodes(
            device=device,
            count=group.count,
            gpus_per_node=gpus,
            domain_gpus=joined,
            scale_up_bandwidth_bytes_per_s=(
                device.scale_up_bandwidth_bytes_per_s if scale_up is None else scale_up.bandwidth_bytes_per_s
            ),
            scale_up_latency_s=0.0 if scale_up is None else scale_up.latency_s or 0.0,
            pcie_bandwidth_bytes_per_s=(
                device.pcie_bandwidth_bytes_per_s if pcie is None else pcie.bandwidth_bytes_per_s
            ),
            pcie_latency_s=0.0 if pcie is None else pcie.latency_s or 0.0,
            rails=rails,
            nic_bandwidth_bytes_per_s=self._nic_bandwidth(group, shape, rails),
        )

    def _nic_bandwidth(self, group: NodeGroup, shape: NodeShape | None, rails: int) -> float | None:
        if group.nic_bandwidth_bytes_per_s is not None:
            return group.nic_bandwidth_bytes_per_s
        if shape is not None:
            return shape.gpu_nic_bandwidth_bytes_per_s / rails
        link = self.network_link()
        if link is None:
            return None
        return link.bandwidth_bytes_per_s / (rails if link.per == "node" else 1)

    def _unknown_names(self) -> Iterator[Problem]:
        for index, group in enumerate(self.nodes):
            yield from _looked_up(("nodes", index, "device"), group.device, self.device)
            yield from _looked_up(("nodes", index, "shape"), group.shape, catalog.node)
            yield from _looked_up(("nodes", index, "scale_up_link"), group.scale_up_link, self.link)
            yield from _looked_up(("nodes", index, "node_link"), group.node_link, self.link)
        if self.network is not None:
            yield from _looked_up(("network", "link"), self.network.link, self.link)

    def _misfits(self, nodes: Nodes) -> Iterator[Problem]:
        gpus, domain = nodes.gpus_per_node, nodes.domain_gpus
        if gpus % domain and domain % gpus:
            yield ("scale_up_domain_gpus",), f"domains of {domain} GPUs and nodes of {gpus} do not fit into each other"
        if domain > 1 and nodes.scale_up_bandwidth_bytes_per_s is None:
            yield ("scale_up_link",), f"is required: {nodes.device.name} has none for a domain of {domain}"
        if gpus % nodes.rails:
            yield ("rails",), f"{gpus} GPUs cannot share {nodes.rails} NICs equally"
        if gpus > domain and nodes.pcie_bandwidth_bytes_per_s is None:
            yield ("node_link",), f"is required: no PCIe bandwidth is known of {nodes.device.name}"


def _looked_up(loc: tuple[int | str, ...], given: Any, find: Callable[[Any], object]) -> Iterator[Problem]:
    if given is not None:
        try:
            find(given)
        except OptionError as error:
            yield loc, str(error)


def _rail_problems(resolved: tuple[Nodes, ...]) -> Iterator[Problem]:
    """Off-rail traffic needs the scale-up link, and every node the same places on the rails."""
    first = resolved[0]
    for index, nodes in enumerate(resolved):
        if nodes.domain_gpus != nodes.gpus_per_node:
            yield ("nodes", index, "scale_up_domain_gpus"), "rail_only needs one scale-up domain a node"
        if (nodes.gpus_per_node, nodes.rails) != (first.gpus_per_node, first.rails):
            yield ("nodes", index, "rails"), "rail_only needs equal GPUs and rails in all nodes"
