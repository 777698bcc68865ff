"""EPLB, the rule in use today (deepseek-ai/EPLB), from its published description, for all layers at once.

Global: replicate by largest replica, then LPT onto GPUs. Hierarchical, when groups divide evenly over nodes: LPT of
groups onto nodes, then the same inside each node. Several scenarios are summed, as its users do. The published rule may
put two replicas of an expert on one GPU; those are swapped apart here, because engines differ in what they do then.
"""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.greedy import pack, repair, replicas_in_falling_size, replicate
from formulations.expert_placement.problem import ExpertPlacementProblem
from planner.workload import FloatArray, IntArray


def eplb(problem: ExpertPlacementProblem) -> tuple[str, IntArray]:
    """The rule's name and its placement, int64 [L, num_slots]."""
    load = np.tensordot(problem.weight, problem.load, axes=1)
    groups = None if problem.group_of is None else int(problem.group_of.max()) + 1
    hierarchical = groups is not None and problem.num_nodes > 1 and groups % problem.num_nodes == 0
    if hierarchical and problem.group_spread is not None:
        assert groups is not None
        return "EPLB hierarchical", eplb_hierarchical(
            load, problem.num_gpus, problem.num_slots, problem.num_nodes, groups
        )
    return "EPLB global", eplb_global(load, problem.num_gpus, problem.num_slots)


def eplb_global(load: FloatArray, num_gpus: int, num_slots: int) -> IntArray:
    """load [L, E] -> placement [L, num_slots]."""
    count = replicate(load, num_slots, num_gpus)
    slots = pack(*replicas_in_falling_size(load, count), num_gpus)
    repair(slots, num_gpus, load / count)
    return slots


def eplb_hierarchical(load: FloatArray, num_gpus: int, num_slots: int, num_nodes: int, num_groups: int) -> IntArray:
    """load [L, E] -> placement [L, num_slots] in which each expert group lies on one node."""
    num_layers, num_experts = load.shape
    group_size = num_experts // num_groups
    group_load = load.reshape(num_layers, num_groups, group_size).sum(axis=2)
    order = np.argsort(-group_load, axis=1, kind="stable")
    groups = pack(order, np.take_along_axis(group_load, order, axis=1), num_nodes)
    experts = (groups[:, :, None] * group_size + np.arange(group_size)).reshape(num_layers * num_nodes, -1)
    node_load = np.take_along_axis(np.repeat(load, num_nodes, axis=0), experts, axis=1)
    local = eplb_global(node_load, num_gpus // num_nodes, num_slots // num_nodes)
    return np.take_along_axis(experts, local, axis=1).reshape(num_layers, num_slots)
