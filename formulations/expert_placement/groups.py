"""Hierarchical placement: which nodes the experts of each group may use (`group_spread`)."""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.greedy import BoolArray, pack
from formulations.expert_placement.problem import ExpertPlacementProblem
from planner.workload import FloatArray, IntArray

#: Rounds of group swaps between nodes; each layer has few groups and settles in two or three.
SWAP_ROUNDS = 10


def allowed_gpus(problem: ExpertPlacementProblem) -> BoolArray | None:
    """Which GPUs each expert may use, bool [L, E, G]; None when every GPU is allowed."""
    spread = problem.group_spread
    if problem.group_of is None or spread is None or spread >= problem.num_nodes:
        return None
    num_groups = int(problem.group_of.max()) + 1
    load = problem.load.reshape(*problem.load.shape[:2], num_groups, -1).sum(axis=3)
    if spread == 1 and num_groups % problem.num_nodes == 0:
        nodes = _one_node_each(load, problem)
        may = nodes[:, :, None] == np.arange(problem.num_nodes)
    else:
        may = _several_nodes_each(load, problem, spread)
    by_gpu = np.repeat(may, problem.gpus_per_node, axis=2)
    return np.asarray(by_gpu[:, problem.group_of])


def group_nodes(problem: ExpertPlacementProblem, rows: IntArray) -> BoolArray:
    """Nodes on which each group lies in a placement [L, num_slots]: bool [L, groups, nodes]."""
    assert problem.group_of is not None
    used = np.zeros((len(rows), int(problem.group_of.max()) + 1, problem.num_nodes), dtype=bool)
    node_of_slot = np.arange(problem.num_slots) // (problem.num_slots // problem.num_nodes)
    used[np.arange(len(rows))[:, None], problem.group_of[rows], node_of_slot] = True
    return used


def nodes_around(problem: ExpertPlacementProblem, rows: IntArray, preferred: BoolArray) -> BoolArray:
    """GPUs that keep every group on its nodes of `rows`, bool [L, E, G].

    A group on fewer nodes than it may use gets others too, first those of `preferred` [L, E, G].
    """
    assert problem.group_of is not None
    assert problem.group_spread is not None
    used = group_nodes(problem, rows)
    first = np.array([np.argmax(problem.group_of == group) for group in range(used.shape[1])])
    liked = preferred[:, first, :: problem.gpus_per_node]
    rank = np.argsort(-(2.0 * used + liked), axis=2, kind="stable")
    may = used.copy()
    np.put_along_axis(may, rank[:, :, : problem.group_spread], True, axis=2)
    return np.asarray(np.repeat(may, problem.gpus_per_node, axis=2)[:, problem.group_of])


def _robust(load: FloatArray, weight: FloatArray) -> FloatArray:
    return np.asarray(0.5 * np.tensordot(weight, load, axes=1) + 0.5 * load.max(axis=0))


def _one_node_each(load: FloatArray, problem: ExpertPlacementProblem) -> IntArray:
    """Node of each group, [L, groups]: LPT, then swaps that lower the weighted hottest node. load [K, L, groups]."""
    size = _robust(load, problem.weight)
    order = np.argsort(-size, axis=1, kind="stable")
    slots = pack(order, np.take_along_axis(size, order, axis=1), problem.num_nodes)
    num_layers, num_groups = slots.shape
    node = np.empty_like(slots)
    np.put_along_axis(node, slots, np.arange(num_groups)[None] // (num_groups // problem.num_nodes), axis=1)
    for layer in range(num_layers):
        _swap_groups(node[layer], load[:, layer], problem)
    return node


def _swap_groups(node: IntArray, load: FloatArray, problem: ExpertPlacementProblem) -> None:
    speed = problem.speed.reshape(problem.num_nodes, -1).sum(axis=1)

    def price(candidate: IntArray) -> float:
        level = np.stack([np.bincount(candidate, weights=row, minlength=problem.num_nodes) for row in load])
        return float(problem.weight @ (level / speed).max(axis=1))

    best = price(node)
    for _ in range(SWAP_ROUNDS):
        improved = False
        for one in range(node.size):
            for two in range(one):
                if node[one] != node[two]:
                    node[one], node[two] = node[two], node[one]
                    fresh = price(node)
                    if fresh < best - 1e-12:
                        best, improved = fresh, True
                    else:
                        node[one], node[two] = node[two], node[one]
        if not improved:
            return


def _several_nodes_each(load: FloatArray, problem: ExpertPlacementProblem, spread: int) -> BoolArray:
    """Nodes of each group, bool [L, groups, nodes]: largest group first, onto its `spread` least loaded nodes.

    A node that has fewer groups than its fair share goes first, so that every node can fill its slots.
    """
    size = _robust(load, problem.weight)
    num_layers, num_groups = size.shape
    may = np.zeros((num_layers, num_groups, problem.num_nodes), dtype=bool)
    for layer in range(num_layers):
        level, used = np.zeros((2, problem.num_nodes))
        for group in np.argsort(-size[layer], kind="stable"):
            chosen = np.lexsort((level, used))[:spread]
            may[layer, group, chosen] = True
            level[chosen] += size[layer, group] / spread
            used[chosen] += 1
    return may
