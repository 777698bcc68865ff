"""Hop costs of two-level clusters: the closed form against shortest paths in the graph."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.topology import DEFAULT_INTER_NODE_COST_RATIO, graph_costs, hop_costs, two_level_graph


@given(
    nodes=st.integers(1, 4),
    per_node=st.integers(1, 4),
    intra=st.floats(0.0, 5.0),
    extra=st.floats(0.0, 20.0),
)
def test_closed_form_equals_shortest_paths(nodes: int, per_node: int, intra: float, extra: float) -> None:
    gpus = nodes * per_node
    cost, near, far = hop_costs(gpus, per_node, intra, intra + extra)
    assert (near, far) == (intra, intra + extra)
    graph = two_level_graph(gpus, per_node, intra, intra + extra)
    np.testing.assert_allclose(cost, graph_costs(graph, gpus), atol=1e-12)


def test_four_gpus_in_two_nodes_by_hand() -> None:
    """1 inside a node, 5 between nodes, 0 to oneself."""
    cost, _, _ = hop_costs(4, 2, 1.0, 5.0)
    assert cost.tolist() == [[0, 1, 5, 5], [1, 0, 5, 5], [5, 5, 0, 1], [5, 5, 1, 0]]


def test_the_network_is_priced_by_bandwidth_when_nothing_is_said() -> None:
    """450 GB/s of NVLink against 50 GB/s of network: 9 times."""
    cost, near, far = hop_costs(2, 1, 2.0)
    assert (near, far) == (2.0, pytest.approx(18.0))
    assert cost[0, 1] == pytest.approx(2.0 * DEFAULT_INTER_NODE_COST_RATIO)


def test_any_topology_can_be_priced() -> None:
    """A ring of four: opposite GPUs are two hops apart."""
    graph = nx.cycle_graph(4)
    nx.set_edge_attributes(graph, 1.5, "cost")
    assert graph_costs(graph, 4).tolist() == [
        [0, 1.5, 3, 1.5],
        [1.5, 0, 1.5, 3],
        [3, 1.5, 0, 1.5],
        [1.5, 3, 1.5, 0],
    ]
