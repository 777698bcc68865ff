"""Cluster topology as a networkx graph, and what it says about a pair or group of devices.

Two views of one cluster. `cluster_graph` holds every GPU, switch and NIC; `group` walks the way of every byte through
it, for any set of GPUs. `group_links` answers the same for groups of regular layout in closed form, over arrays of
plans. The hop costs at the end are the plain two-level model of expert placement.

A way is fixed by the structure, not searched: the scale-up link inside a domain, else PCIe inside a node, else the
GPU's own NIC and the network. In a rail-only network a byte for another rail first goes over the scale-up link to the
GPU of its own node that sits on that rail (NCCL's PXN), so there is no spine to cross.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import OptionError
from planner.workload import FloatArray

if TYPE_CHECKING:
    from planner.cluster import Cluster, Nodes

#: What the slowest part of a group's traffic crosses, from near to far; a group of one crosses nothing.
TIERS = ("none", "nvlink", "pcie", "rail", "leaf", "spine")
Tier = Literal["none", "nvlink", "pcie", "rail", "leaf", "spine"]
Pattern = Literal["all_to_all", "ring"]

#: Ratio of NVLink to network bandwidth of one GPU in an HGX H100 node: 450 GB/s against 50 GB/s (400 Gbit/s NDR),
#: both one direction. Source: NVIDIA H100 and ConnectX-7 datasheets; confidence: datasheet.
DEFAULT_INTER_NODE_COST_RATIO = 450 / 50


def two_level_graph(num_gpus: int, gpus_per_node: int, intra_node_cost: float, inter_node_cost: float) -> nx.Graph:
    """GPUs 0 .. num_gpus-1, one switch a node, one spine. Half of a hop's cost on each of its two links."""
    graph = nx.Graph()
    for gpu in range(num_gpus):
        graph.add_edge(gpu, ("node", gpu // gpus_per_node), cost=intra_node_cost / 2)
    for node in range(num_gpus // gpus_per_node):
        graph.add_edge(("node", node), "spine", cost=(inter_node_cost - intra_node_cost) / 2)
    return graph


def hop_costs(
    num_gpus: int, gpus_per_node: int, intra_node_cost: float = 1.0, inter_node_cost: float | None = None
) -> tuple[FloatArray, float, float]:
    """Cost of one token's hop between any two GPUs of a two-level cluster, [num_gpus, num_gpus].

    Returns the matrix (0 on the diagonal) and the intra- and inter-node cost used. `inter_node_cost` defaults to
    DEFAULT_INTER_NODE_COST_RATIO times the intra-node cost.
    """
    inter = intra_node_cost * DEFAULT_INTER_NODE_COST_RATIO if inter_node_cost is None else inter_node_cost
    node = np.arange(num_gpus) // gpus_per_node
    cost = np.where(node[:, None] == node[None, :], intra_node_cost, inter)
    np.fill_diagonal(cost, 0.0)
    return cost, intra_node_cost, inter


def graph_costs(graph: nx.Graph, num_gpus: int) -> FloatArray:
    """Cheapest-path cost between GPUs of any topology graph (weight attribute `cost`), [num_gpus, num_gpus]."""
    cost = np.zeros((num_gpus, num_gpus))
    for source, lengths in nx.all_pairs_dijkstra_path_length(graph, weight="cost"):
        if isinstance(source, int):
            for target in range(num_gpus):
                cost[source, target] = lengths[target]
    return cost


@dataclass(frozen=True, slots=True)
class PathCost:
    """The way between two GPUs when nothing else uses it: narrowest link, bytes/s, and latency, s."""

    bandwidth_bytes_per_s: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class GroupLink:
    """What a group of GPUs gets: bytes/s that each GPU sends while all send, latency of the longest way, s."""

    bandwidth_bytes_per_s: float
    latency_s: float
    tier: Tier


@dataclass(frozen=True, slots=True, eq=False)
class GroupLinks:
    """GroupLink over arrays of plans, of one shape; `tier` indexes TIERS."""

    bandwidth_bytes_per_s: FloatArray
    latency_s: FloatArray
    tier: NDArray[np.int64]


def cluster_graph(cluster: Cluster) -> nx.Graph:
    """GPUs 0 .. num_gpus-1, numbered node by node, and all that lies between them.

    Other nodes are named ("domain", i) scale-up switch, ("host", node) PCIe root, ("nic", node, rail), ("rail", r),
    ("leaf", i) and "spine". Edges carry `bandwidth_bytes_per_s` (one direction) and `latency_s`.
    """
    graph = nx.Graph(rail_only=cluster.fabric is not None and cluster.fabric.topology == "rail_only")
    gpu = node = domain = 0
    below: dict[Hashable, float] = defaultdict(float)
    for nodes in cluster.resolved():
        per_unit = max(nodes.domain_gpus, nodes.gpus_per_node)
        for index in range(nodes.num_gpus):
            place, local = node + index // nodes.gpus_per_node, index % nodes.gpus_per_node
            own_domain = domain + index // nodes.domain_gpus
            own_nic = ("nic", place, local * nodes.rails // nodes.gpus_per_node)
            unit = (node, index // per_unit)
            graph.add_node(gpu, place=place, local=local, domain=own_domain, unit=unit, nic=own_nic)
            _join_gpu(graph, gpu, nodes)
            if local % (nodes.gpus_per_node // nodes.rails) == 0 and nodes.nic_bandwidth_bytes_per_s is not None:
                switch = _join_nic(graph, cluster, own_nic, nodes.nic_bandwidth_bytes_per_s)
                below[switch] += nodes.nic_bandwidth_bytes_per_s
            gpu += 1
        node += nodes.count
        domain += -(-nodes.num_gpus // nodes.domain_gpus)
    if cluster.fabric is not None and cluster.fabric.topology == "leaf_spine":
        for leaf, bandwidth in below.items():
            _edge(graph, leaf, "spine", bandwidth / cluster.fabric.oversubscription, cluster.fabric.spine_latency_s)
    return graph


def _join_gpu(graph: nx.Graph, gpu: int, nodes: Nodes) -> None:
    data = graph.nodes[gpu]
    if nodes.domain_gpus > 1:
        assert nodes.scale_up_bandwidth_bytes_per_s is not None
        bandwidth = nodes.scale_up_bandwidth_bytes_per_s
        _edge(graph, gpu, ("domain", data["domain"]), bandwidth, nodes.scale_up_latency_s)
    pcie = np.inf if nodes.pcie_bandwidth_bytes_per_s is None else nodes.pcie_bandwidth_bytes_per_s
    if nodes.gpus_per_node > nodes.domain_gpus:
        _edge(graph, gpu, ("host", data["place"]), pcie, nodes.pcie_latency_s)
    if nodes.nic_bandwidth_bytes_per_s is not None:
        # The latency of a network is counted from host to host.
        _edge(graph, gpu, data["nic"], pcie, 0.0)


def _join_nic(graph: nx.Graph, cluster: Cluster, nic: tuple[str, int, int], bandwidth: float) -> Hashable:
    """Join a NIC to its switch, which is returned."""
    network, link = cluster.fabric, cluster.network_link()
    _, place, rail = nic
    if network is None or link is None:
        return None
    switch: Hashable = ("leaf", 0 if network.nodes_per_leaf is None else place // network.nodes_per_leaf)
    if network.topology == "rail_only":
        switch = ("rail", rail)
    _edge(graph, nic, switch, bandwidth, link.latency_s or 0.0)
    return switch


def _edge(graph: nx.Graph, one: Hashable, other: Hashable, bandwidth: float, end_to_end_s: float) -> None:
    """An edge that is half of a way between equals: GPU to GPU over a switch, NIC to NIC, leaf to leaf."""
    graph.add_edge(one, other, bandwidth_bytes_per_s=bandwidth, latency_s=end_to_end_s / 2)


def route(graph: nx.Graph, a: int, b: int) -> list[Hashable]:
    """The nodes of the graph that a byte from GPU a to GPU b passes, both included."""
    start, end = graph.nodes[a], graph.nodes[b]
    if a == b:
        return [a]
    if start["domain"] == end["domain"]:
        return [a, ("domain", start["domain"]), b]
    if start["place"] == end["place"]:
        return [a, ("host", start["place"]), b]
    if graph.graph["rail_only"] and start["nic"][2] != end["nic"][2]:
        relay = a - start["local"] + end["local"]
        return [a, ("domain", start["domain"]), *route(graph, relay, b)]
    (up,), (down,) = (_switches(graph, data["nic"]) for data in (start, end))
    middle = [up] if up == down else [up, "spine", down]
    return [a, start["nic"], *middle, end["nic"], b]


def _switches(graph: nx.Graph, nic: Hashable) -> list[Hashable]:
    return [other for other in graph[nic] if not isinstance(other, int)]


def pair(graph: nx.Graph, a: int, b: int) -> PathCost:
    """The way from GPU a to GPU b; a GPU reaches itself at once. KeyError for a GPU that is not there."""
    edges = [graph.edges[edge] for edge in pairwise(route(graph, a, b))]
    return PathCost(
        min((edge["bandwidth_bytes_per_s"] for edge in edges), default=np.inf),
        sum(edge["latency_s"] for edge in edges),
    )


def group(
    graph: nx.Graph, devices: Sequence[int], pattern: Pattern = "all_to_all", at_once: Iterable[Sequence[int]] = ()
) -> GroupLink:
    """Bandwidth of each GPU of a group while all of them send, and of the groups `at_once` that send beside it.

    all_to_all: each GPU sends equally to every other. ring: each sends all to the next, in the order given, on as many
    rings at once as a node has members; ring r enters and leaves a node at its r-th member, so that every NIC is used
    and traffic keeps its rail (NCCL's channels). The bandwidth counts what a GPU sends in all, over any link.
    A group is never faster than its part inside a node or domain, although the links of both could run side by side.
    """
    groups = [tuple(devices), *(tuple(other) for other in at_once)]
    if len(set(devices)) != len(devices):
        raise OptionError("a group names a device twice")
    bandwidth, latency, tier = np.inf, 0.0, 0
    for level in ("domain", "unit", None):
        loads: dict[tuple[Hashable, Hashable], float] = defaultdict(float)
        own: set[tuple[Hashable, Hashable]] = set()
        for index, members in enumerate(groups):
            for part in _parts(graph, members, level):
                for share, way in _flows(graph, part, pattern):
                    for edge in pairwise(way):
                        loads[edge] += share
                        if index == 0:
                            own.add(edge)
                    if index == 0:
                        latency = max(latency, sum(graph.edges[edge]["latency_s"] for edge in pairwise(way)))
                        tier = max(tier, _tier(way))
        bandwidth = min([bandwidth, *(graph.edges[edge]["bandwidth_bytes_per_s"] / loads[edge] for edge in own)])
    return GroupLink(float(bandwidth), latency, TIERS[tier])  # type: ignore[arg-type]


def _parts(graph: nx.Graph, members: Sequence[int], level: str | None) -> list[list[int]]:
    """The members by domain or unit, in the order of their first; all of them in one part for None."""
    parts: dict[Hashable, list[int]] = defaultdict(list)
    for member in members:
        parts[None if level is None else graph.nodes[member][level]].append(member)
    return list(parts.values())


def _flows(graph: nx.Graph, members: Sequence[int], pattern: Pattern) -> Iterator[tuple[float, list[Hashable]]]:
    """(bytes, way) of every flow while each member sends one byte."""
    if len(members) < 2:
        return
    if pattern == "all_to_all":
        for a in members:
            for b in members:
                if a != b:
                    yield 1 / (len(members) - 1), route(graph, a, b)
        return
    units = _parts(graph, members, "unit")
    rings = max(len(unit) for unit in units)
    for ring in range(rings):
        turned = [unit[ring % len(unit) :] + unit[: ring % len(unit)] for unit in units]
        for unit, following in zip(turned, turned[1:] + turned[:1], strict=True):
            for a, b in pairwise(unit):
                yield 1 / rings, route(graph, a, b)
            back = route(graph, unit[-1], unit[0])
            yield 1 / rings, back if len(units) == 1 else back + route(graph, unit[0], following[0])[1:]


def _tier(way: Sequence[Hashable]) -> int:
    names = ("none", "domain", "host", "rail", "leaf", "spine")
    kinds = {step if isinstance(step, str) else step[0] for step in way if not isinstance(step, int)}  # type: ignore[index]
    return max(names.index(kind) if kind in names else 0 for kind in kinds)


def members_within(group_size: ArrayLike, stride: ArrayLike, block: int, num_gpus: int) -> NDArray[np.int64]:
    """Members that a group of regular layout has in each block of `block` consecutive GPUs that it touches.

    A group is {start + i * stride}, its start such that groups tile the cluster, as ranks are laid out by every
    framework. Where blocks and groups do not divide each other, some group has a block with one member alone: 1.
    """
    size, step = np.asarray(group_size, dtype=np.int64), np.asarray(stride, dtype=np.int64)
    extent = size * step
    whole = (block % extent == 0) | (block >= num_gpus)
    some = (step < block) & (block % step == 0) & (extent % block == 0)
    return np.where(whole, size, np.where(some, block // step, 1)).astype(np.int64)


def group_links(
    cluster: Cluster, group_size: ArrayLike, stride: ArrayLike, pattern: Pattern = "all_to_all"
) -> GroupLinks:
    """`group` in closed form for groups of regular layout on equal nodes, all groups of the layout sending at once.

    group_size and stride broadcast. Raises OptionError for a cluster of several kinds of nodes, or for a group that
    reaches beyond the cluster. Groups that straddle nodes unevenly get a lower bound.
    """
    kinds = cluster.resolved()
    if len(kinds) > 1:
        raise OptionError("groups of regular layout need one kind of node; use the graph for a mixed cluster")
    nodes, network = kinds[0], cluster.fabric
    size, step = np.broadcast_arrays(np.asarray(group_size, dtype=np.int64), np.asarray(stride, dtype=np.int64))
    if size.size and (min(size.min(), step.min()) < 1 or np.max((size - 1) * step) >= nodes.num_gpus):
        raise OptionError(
            f"groups must have at least one GPU, a stride of at least 1, and lie in {nodes.num_gpus} GPUs"
        )

    def within(block: int) -> NDArray[np.int64]:
        return members_within(size, step, block, nodes.num_gpus)

    unit_gpus = max(nodes.domain_gpus, nodes.gpus_per_node)
    in_domain, in_unit = within(nodes.domain_gpus), within(unit_gpus)
    in_leaf = size
    if network is not None and network.nodes_per_leaf is not None:
        in_leaf = np.maximum(within(network.nodes_per_leaf * nodes.gpus_per_node), in_unit)
    uses = {
        "nvlink": in_domain > 1,
        "pcie": in_unit > in_domain,
        "network": size > in_unit,
        "spine": size > in_leaf,
    }

    pcie = np.inf if nodes.pcie_bandwidth_bytes_per_s is None else nodes.pcie_bandwidth_bytes_per_s
    nic = (nodes.nic_bandwidth_bytes_per_s or 0.0) * nodes.rails / nodes.gpus_per_node
    above = nic / (1.0 if network is None else network.oversubscription)
    if pattern == "ring":
        through = {"pcie": np.ones_like(size), "network": in_unit, "spine": in_leaf}
    else:
        through = {
            "pcie": _spread(in_unit, in_domain),
            "network": _spread(size, in_unit),
            "spine": _spread(size, in_leaf),
        }
    bandwidth = np.where(uses["nvlink"], nodes.scale_up_bandwidth_bytes_per_s or np.inf, np.inf)
    for use, limit in (("pcie", pcie), ("network", pcie), ("network", nic), ("spine", above)):
        bandwidth = np.where(uses[use], np.minimum(bandwidth, limit * through[use]), bandwidth)

    link = cluster.network_link()
    inside = np.maximum(
        np.where(uses["nvlink"], nodes.scale_up_latency_s, 0.0), np.where(uses["pcie"], nodes.pcie_latency_s, 0.0)
    )
    outside = np.full(size.shape, 0.0 if link is None else link.latency_s or 0.0)
    rail_only = network is not None and network.topology == "rail_only"
    if network is not None:
        outside = outside + np.where(uses["spine"], network.spine_latency_s, 0.0)
    if pattern == "ring":
        outside = outside + inside
    elif rail_only:
        off_rail = in_unit > within(nodes.gpus_per_node // nodes.rails)
        outside = outside + np.where(off_rail, nodes.scale_up_latency_s, 0.0)
    latency = np.where(uses["network"], np.maximum(inside, outside), inside)

    tier = np.where(uses["nvlink"], TIERS.index("nvlink"), 0)
    tier = np.where(uses["pcie"], TIERS.index("pcie"), tier)
    tier = np.where(uses["network"], TIERS.index("rail" if rail_only else "leaf"), tier)
    tier = np.where(uses["spine"], TIERS.index("spine"), tier)
    return GroupLinks(bandwidth, latency, tier.astype(np.int64))


def _spread(members: NDArray[np.int64], near: NDArray[np.int64]) -> FloatArray:
    """What a GPU sends in all over what it sends beyond its nearest `near` members, when it sends to all equally."""
    return np.asarray((members - 1) / np.maximum(members - near, 1))
