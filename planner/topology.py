"""Cluster topology as a networkx graph, and what it says about a pair or group of devices."""

from __future__ import annotations

import networkx as nx
import numpy as np

from planner.workload import FloatArray

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
