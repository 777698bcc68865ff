"""What a pair or a group of GPUs gets: clusters solved by hand, the closed form against the graph, monotonicity."""

from __future__ import annotations

from itertools import product
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cluster import Cluster
from planner.errors import OptionError
from planner.topology import TIERS, cluster_graph, group, group_links, members_within, pair, route

NVLINK, PCIE, NIC = 450e9, 64e9, 50e9
PATTERNS = ("all_to_all", "ring")


def hgx(nodes: int = 2, gpus: int = 8, network: dict[str, Any] | None = None, **more: Any) -> Cluster:
    """H100 nodes: NVLink 450 GB/s and 1 us, PCIe 64 GB/s and 3 us, NDR 50 GB/s and 1 us."""
    links = [
        {"name": "nv", "bandwidth_bytes_per_s": NVLINK, "latency_s": "1us", "per": "gpu"},
        {"name": "pci", "bandwidth_bytes_per_s": PCIE, "latency_s": "3us"},
    ]
    node = {"device": "h100", "count": nodes, "gpus_per_node": gpus, "scale_up_link": "nv", "node_link": "pci", **more}
    return Cluster.model_validate({"nodes": [node], "links": links, "network": {"link": "ib_ndr", **(network or {})}})


def leaf_spine(nodes_per_leaf: int, oversubscription: float, spine_latency_s: float = 0.0) -> dict[str, Any]:
    return {
        "topology": "leaf_spine",
        "nodes_per_leaf": nodes_per_leaf,
        "oversubscription": oversubscription,
        "spine_latency_s": spine_latency_s,
    }


def test_the_graph_of_two_small_nodes() -> None:
    graph = cluster_graph(hgx(2, 2, scale_up_domain_gpus=1))
    edges = {
        frozenset(edge): (data["bandwidth_bytes_per_s"], data["latency_s"]) for *edge, data in graph.edges(data=True)
    }
    expected: dict[frozenset[object], tuple[float, float]] = {}
    for gpu, (node, local) in enumerate(product(range(2), range(2))):
        expected[frozenset([gpu, ("host", node)])] = (PCIE, 1.5e-6)
        expected[frozenset([gpu, ("nic", node, local)])] = (PCIE, 0.0)
        expected[frozenset([("nic", node, local), ("leaf", 0)])] = (NIC, 0.5e-6)
    assert edges == expected


def test_pairs_in_a_domain_a_node_a_leaf_and_over_the_spine() -> None:
    graph = cluster_graph(hgx(4, 4, leaf_spine(2, 4.0, 2e-6), scale_up_domain_gpus=2))
    assert (pair(graph, 0, 0).bandwidth_bytes_per_s, pair(graph, 0, 0).latency_s) == (np.inf, 0)
    ways = {1: (NVLINK, 1e-6), 2: (PCIE, 3e-6), 4: (NIC, 1e-6), 15: (NIC, 3e-6)}
    for other, (bandwidth, latency) in ways.items():
        found = pair(graph, 0, other)
        assert (found.bandwidth_bytes_per_s, found.latency_s) == (bandwidth, pytest.approx(latency)), other
    with pytest.raises(KeyError):
        pair(graph, 0, 16)


def test_a_rail_only_network_forwards_over_nvlink_and_has_no_spine() -> None:
    graph = cluster_graph(hgx(2, 4, {"topology": "rail_only"}))
    assert route(graph, 1, 5) == [1, ("nic", 0, 1), ("rail", 1), ("nic", 1, 1), 5]
    # GPU 1 hands over to GPU 3 of its own node, which is on the rail of GPU 7.
    assert route(graph, 1, 7) == [1, ("domain", 0), 3, ("nic", 0, 3), ("rail", 3), ("nic", 1, 3), 7]
    assert pair(graph, 1, 7).latency_s == pytest.approx(2e-6)
    assert "spine" not in graph
    assert not any(isinstance(node, tuple) and node[0] == "leaf" for node in graph)


def test_a_node_of_eight_is_nvlink() -> None:
    graph = cluster_graph(hgx())
    for pattern in PATTERNS:
        found = group(graph, range(8), pattern)
        assert found.bandwidth_bytes_per_s == pytest.approx(NVLINK)
        assert (found.latency_s, found.tier) == (1e-6, "nvlink")
    alone = group(graph, [3])
    assert (alone.bandwidth_bytes_per_s, alone.latency_s, alone.tier) == (np.inf, 0.0, "none")


def test_two_nodes_of_eight_by_hand() -> None:
    """All to all: 8 of 15 peers are beyond the NIC. Ring: 8 rings, each over its own NIC."""
    graph = cluster_graph(hgx())
    found = group(graph, range(16))
    assert found.bandwidth_bytes_per_s == pytest.approx(NIC * 15 / 8)
    assert found.tier == "leaf"
    assert group(graph, range(16), "ring").bandwidth_bytes_per_s == pytest.approx(8 * NIC)
    # Two GPUs of equal place: one NIC each, whatever the pattern.
    for pattern in PATTERNS:
        assert group(graph, [2, 10], pattern).bandwidth_bytes_per_s == pytest.approx(NIC)


def test_a_shared_nic_by_hand() -> None:
    """Two NICs for 8 GPUs: alone a pair has one whole NIC; beside its three neighbours a quarter."""
    graph = cluster_graph(hgx(rails=2))
    assert group(graph, [0, 8]).bandwidth_bytes_per_s == pytest.approx(NIC)
    beside = [[1, 9], [2, 10], [3, 11]]
    assert group(graph, [0, 8], at_once=beside).bandwidth_bytes_per_s == pytest.approx(NIC / 4)
    assert group(graph, [0, 8], at_once=[[4, 12]]).bandwidth_bytes_per_s == pytest.approx(NIC)


def test_an_oversubscribed_spine_by_hand() -> None:
    """A leaf of one node with 8 NICs has 8 * 50 / 4 = 100 GB/s upwards; 8 GPUs send 8/15 of their bytes through it."""
    graph = cluster_graph(hgx(2, 8, leaf_spine(1, 4.0)))
    found = group(graph, range(16))
    assert found.bandwidth_bytes_per_s == pytest.approx(100e9 / (8 * 8 / 15))
    assert found.tier == "spine"
    assert group(graph, range(16), "ring").bandwidth_bytes_per_s == pytest.approx(100e9)


def test_bridged_cards_by_hand() -> None:
    """4 cards, bridged in pairs: 2 of 3 peers over PCIe; a ring crosses PCIe with all it sends."""
    graph = cluster_graph(hgx(1, 4, scale_up_domain_gpus=2))
    found = group(graph, range(4))
    assert (found.bandwidth_bytes_per_s, found.tier) == (pytest.approx(PCIE * 3 / 2), "pcie")
    assert group(graph, range(4), "ring").bandwidth_bytes_per_s == pytest.approx(PCIE)
    assert group(graph, [0, 1], "ring").tier == "nvlink"


def test_trays_of_one_domain_need_no_network() -> None:
    rack = Cluster.model_validate({"nodes": [{"shape": "GB200-NVL72-tray", "count": 18}]})
    found = group(cluster_graph(rack), range(72))
    assert (found.bandwidth_bytes_per_s, found.tier) == (pytest.approx(900e9), "nvlink")
    assert group_links(rack, 72, 1).bandwidth_bytes_per_s == 900e9


def test_a_mixed_cluster() -> None:
    """One H100 and one A100 node on NDR and HDR NICs: the narrower NIC decides."""
    mixed = Cluster.model_validate(
        {
            "nodes": [{"device": "h100"}, {"device": "a100", "nic_bandwidth_bytes_per_s": "200Gbit/s"}],
            "network": {"link": "ib_ndr"},
        }
    )
    graph = cluster_graph(mixed)
    assert pair(graph, 0, 15).bandwidth_bytes_per_s == 25e9
    assert group(graph, [0, 8], "ring").bandwidth_bytes_per_s == 25e9
    assert group(graph, range(8, 16)).bandwidth_bytes_per_s == pytest.approx(300e9)
    with pytest.raises(OptionError, match="mixed"):
        group_links(mixed, 8, 1)


def test_uneven_groups_have_an_answer() -> None:
    """GPUs 6, 7 and 8: 8 has both peers beyond its NIC."""
    graph = cluster_graph(hgx())
    found = group(graph, [6, 7, 8])
    assert found.bandwidth_bytes_per_s == pytest.approx(NIC)
    with pytest.raises(OptionError, match="twice"):
        group(graph, [1, 1])


def test_members_by_hand() -> None:
    """Nodes of 8 in a cluster of 32: 4 neighbours; every 2nd of 8; every 8th; 16 neighbours; 3 neighbours, uneven."""
    sizes, strides = [4, 4, 4, 16, 3, 32], [1, 2, 8, 1, 1, 1]
    assert members_within(sizes, strides, 8, 32).tolist() == [4, 4, 1, 8, 1, 8]
    assert members_within(4, 4, 8, 32) == 2
    assert members_within(3, 1, 8, 8) == 3


@pytest.mark.parametrize(
    ("domain", "rails", "network"),
    [
        (domain, rails, network)
        for domain, rails, network in product((1, 2, 4), (1, 2, 4), ("flat", "rail_only", "leaf_spine"))
        if domain == 4 or network != "rail_only"
    ],
)
def test_closed_form_equals_the_graph(domain: int, rails: int, network: str) -> None:
    more = leaf_spine(2, 3.0, 2e-6) if network == "leaf_spine" else {"topology": network}
    compare(hgx(4, 4, more, scale_up_domain_gpus=domain, rails=rails))


def test_closed_form_equals_the_graph_for_domains_of_many_nodes() -> None:
    compare(hgx(8, 2, scale_up_domain_gpus=8))


def compare(cluster: Cluster) -> None:
    graph, total = cluster_graph(cluster), cluster.num_gpus
    layouts = [
        (s, t) for s in range(1, total + 1) for t in range(1, total + 1) if s * t <= total and total % (s * t) == 0
    ]
    for pattern in PATTERNS:
        closed = group_links(cluster, *np.array(layouts).T, pattern)
        for index, (size, stride) in enumerate(layouts):
            starts = [block + lane for block in range(0, total, size * stride) for lane in range(stride)]
            groups = [[start + i * stride for i in range(size)] for start in starts]
            found = [
                group(graph, members, pattern, [*groups[:own], *groups[own + 1 :]])
                for own, members in enumerate(groups)
            ]
            case = f"{pattern}: {size} GPUs, stride {stride}"
            bandwidth = min(one.bandwidth_bytes_per_s for one in found)
            assert closed.bandwidth_bytes_per_s[index] == pytest.approx(bandwidth), case
            assert closed.latency_s[index] == pytest.approx(max(one.latency_s for one in found)), case
            assert TIERS[closed.tier[index]] == max((one.tier for one in found), key=TIERS.index), case


@settings(max_examples=60, deadline=None)
@given(
    scale_up=st.floats(1e9, 1e12),
    pcie=st.floats(1e9, 1e12),
    nic=st.floats(1e9, 1e12),
    over=st.floats(1, 16),
    which=st.integers(0, 3),
    factor=st.floats(1, 100),
    network=st.sampled_from(["flat", "rail_only", "leaf_spine"]),
    pattern=st.sampled_from(PATTERNS),
)
def test_more_bandwidth_is_never_slower_and_a_wider_group_never_faster(
    scale_up: float, pcie: float, nic: float, over: float, which: int, factor: float, network: str, pattern: Any
) -> None:
    def bandwidths(numbers: list[float]) -> list[np.ndarray]:
        up, host, port, blocking = numbers
        more = leaf_spine(2, max(blocking, 1.0)) if network == "leaf_spine" else {"topology": network}
        cluster = hgx(8, 8, more, nic_bandwidth_bytes_per_s=port)
        links = [{"name": "nv", "bandwidth_bytes_per_s": up}, {"name": "pci", "bandwidth_bytes_per_s": host}]
        own = Cluster.model_validate({**cluster.model_dump(), "links": links})
        return [
            group_links(
                own, [size for size in (1, 2, 4, 8, 16, 32, 64) if size * stride <= 64], stride, pattern
            ).bandwidth_bytes_per_s
            for stride in (1, 2, 4, 8, 16)
        ]

    numbers = [scale_up, pcie, nic, over]
    better = [number * (factor if index == which else 1) for index, number in enumerate(numbers)]
    if which == 3:
        better[3] = max(1.0, over / factor)
    for before, after in zip(bandwidths(numbers), bandwidths(better), strict=True):
        assert np.all(after >= before * (1 - 1e-12))
        assert np.all(before[1:] <= before[:-1] * (1 + 1e-12))


@settings(max_examples=40, deadline=None)
@given(
    a=st.integers(0, 15),
    b=st.integers(0, 15),
    domain=st.sampled_from([1, 2, 4]),
    rails=st.sampled_from([1, 2, 4]),
    over=st.floats(1, 8),
)
def test_the_fixed_way_is_the_widest_there_is(a: int, b: int, domain: int, rails: int, over: float) -> None:
    """Against a search: no way in the graph has a wider narrowest link, as long as nearer links are wider."""
    graph = cluster_graph(hgx(4, 4, leaf_spine(2, over), scale_up_domain_gpus=domain, rails=rails))
    tree = nx.maximum_spanning_tree(graph, weight="bandwidth_bytes_per_s")
    way = nx.shortest_path(tree, a, b)
    widest = min((tree.edges[edge]["bandwidth_bytes_per_s"] for edge in nx.utils.pairwise(way)), default=np.inf)
    assert pair(graph, a, b).bandwidth_bytes_per_s == widest


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 16), stride=st.integers(1, 5), over=st.floats(1, 4), pattern=st.sampled_from(PATTERNS))
def test_uneven_layouts_get_a_lower_bound(size: int, stride: int, over: float, pattern: Any) -> None:
    cluster = hgx(4, 4, leaf_spine(2, over))
    graph, extent = cluster_graph(cluster), size * stride
    if extent > 16:
        return
    starts = [block + lane for block in range(0, 16 - extent + 1, extent) for lane in range(stride)]
    groups = [[start + i * stride for i in range(size)] for start in starts]
    bound = group_links(cluster, size, stride, pattern).bandwidth_bytes_per_s
    for own, members in enumerate(groups):
        found = group(graph, members, pattern, [*groups[:own], *groups[own + 1 :]])
        assert bound <= found.bandwidth_bytes_per_s * (1 + 1e-12)


def test_groups_beyond_the_cluster_are_refused() -> None:
    for size, stride in ((17, 1), (3, 8), (0, 1), (2, 0)):
        with pytest.raises(OptionError, match="lie in 16 GPUs"):
            group_links(hgx(), size, stride)


def test_answers_are_reproducible() -> None:
    cluster = hgx(4, 4, leaf_spine(2, 3.0))
    first, second = (group(cluster_graph(cluster), [0, 5, 9, 14], "ring", [[1, 4]]) for _ in range(2))
    assert first == second
