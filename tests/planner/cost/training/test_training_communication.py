"""Collectives: arithmetic by hand, and bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.training.communication import Links, TrainingNetwork, group
from planner.hardware import DeviceKind

NETWORK = TrainingNetwork(
    gpus_per_node=8,
    intra_node_bytes_per_s=100e9,
    inter_node_bytes_per_s=10e9,
    intra_node_latency_s=0.0,
    inter_node_latency_s=0.0,
)
LINKS = Links(NETWORK, 1.0)


def one(value: float) -> np.ndarray:
    return np.array([value])


@pytest.mark.parametrize(
    ("size", "stride", "in_node", "nodes"), [(8, 1, 8, 1), (4, 8, 1, 4), (8, 2, 4, 2), (16, 4, 2, 8), (2, 64, 1, 2)]
)
def test_groups_lie_on_nodes(size: int, stride: int, in_node: int, nodes: int) -> None:
    found = group(NETWORK, one(size), one(stride))
    assert (found.in_node[0], found.nodes[0]) == (in_node, nodes)


def test_reduce_scatter_inside_a_node() -> None:
    """Seven eighths of 8 GB at 100 GB/s."""
    assert LINKS.reduce_scatter_s(one(8e9), group(NETWORK, one(8), one(1)))[0] == pytest.approx(0.07)


def test_reduce_scatter_over_two_nodes() -> None:
    """Inside as before; then an eighth of 8 GB, of which half crosses at 10 GB/s."""
    found = LINKS.reduce_scatter_s(one(8e9), group(NETWORK, one(16), one(1)))[0]
    assert found == pytest.approx(0.07 + 0.05)


def test_all_to_all_over_two_nodes() -> None:
    """16 parts of 1 GB: seven stay in the node, eight leave it."""
    found = LINKS.all_to_all_s(one(16e9), group(NETWORK, one(16), one(1)))[0]
    assert found == pytest.approx(7e9 / 100e9 + 8e9 / 10e9)


def test_point_to_point_crosses_nodes_at_the_node_size() -> None:
    found = LINKS.point_to_point_s(np.array([1e9, 1e9]), np.array([4.0, 8.0]))
    assert found == pytest.approx([0.01, 0.1])


def test_latency_counts_both_trees() -> None:
    slow = TrainingNetwork(
        gpus_per_node=8,
        intra_node_bytes_per_s=1e9,
        inter_node_bytes_per_s=1e9,
        intra_node_latency_s=1.0,
        inter_node_latency_s=10.0,
    )
    assert Links(slow, 1.0).latency_s(group(slow, one(32), one(1)))[0] == pytest.approx(3 * 1.0 + 2 * 10.0)


@given(st.integers(0, 8), st.integers(0, 8), st.floats(1e9, 1e12), st.floats(1e8, 1e11))
def test_more_bandwidth_is_never_slower(size: int, stride: int, inside: float, between: float) -> None:
    def time(factor: float) -> float:
        network = TrainingNetwork(
            gpus_per_node=8, intra_node_bytes_per_s=inside * factor, inter_node_bytes_per_s=between * factor
        )
        ranks = group(network, one(2.0**size), one(2.0**stride))
        return float(Links(network, 0.8).reduce_scatter_s(one(1e9), ranks)[0])

    assert time(2.0) <= time(1.0)


@pytest.mark.parametrize(
    "change", [{"gpus_per_node": 0}, {"intra_node_bytes_per_s": 0.0}, {"inter_node_latency_s": -1.0}]
)
def test_broken_networks_are_refused(change: dict) -> None:
    good = {"gpus_per_node": 8, "intra_node_bytes_per_s": 1e9, "inter_node_bytes_per_s": 1e9}
    with pytest.raises(ValueError, match="must"):
        TrainingNetwork(**good | change)


def test_a_device_without_fast_links_uses_pcie() -> None:
    device = DeviceKind(
        name="card",
        memory_bytes=1e9,
        hbm_bandwidth_bytes_per_s=1e9,
        flop_per_s={"bf16": 1e12},
        pcie_bandwidth_bytes_per_s=32e9,
    )
    assert TrainingNetwork.of(device, inter_node_bytes_per_s=1e9, gpus_per_node=4).intra_node_bytes_per_s == 32e9
    bare = device.model_copy(update={"pcie_bandwidth_bytes_per_s": None})
    with pytest.raises(ValueError, match="neither"):
        TrainingNetwork.of(bare, inter_node_bytes_per_s=1e9)
