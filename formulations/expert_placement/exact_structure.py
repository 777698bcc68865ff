"""Structure that the exact models use: distance levels of a cost matrix, and identical GPUs."""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.greedy import BoolArray
from formulations.expert_placement.problem import ExpertPlacementProblem
from planner.cost.expert_parallel import membership
from planner.errors import SolverError
from planner.workload import FloatArray, IntArray


def levels(cost: FloatArray) -> list[tuple[float, BoolArray]]:
    """The cost matrix [G, G] as a sum of steps (height, near), near[g, h] where cost[g, h] is below it.

    cost[g, h] is the sum of the heights of all steps that h is not near g in.
    """
    heights = np.unique(cost[cost > 0])
    return [
        (float(top - bottom), cost < top)
        for bottom, top in zip(np.concatenate(([0.0], heights[:-1])), heights, strict=True)
    ]


def near_classes(near: BoolArray) -> list[tuple[IntArray, IntArray]]:
    """GPUs that share a neighbourhood, and that neighbourhood; near [G, G]."""
    patterns, which = np.unique(near, axis=0, return_inverse=True)
    return [(np.flatnonzero(which.ravel() == i), np.flatnonzero(pattern)) for i, pattern in enumerate(patterns)]


def twin_order(problem: ExpertPlacementProblem) -> list[tuple[int, int]]:
    """Pairs of consecutive GPUs whose exchange changes nothing, so that one order of them is enough."""
    if problem.current is not None:
        return []
    comm = problem.communication
    cost = comm.cost if comm is not None and problem.chain_weight else np.zeros((problem.num_gpus,) * 2)
    nodes = problem.node_of if problem.group_spread is not None else np.zeros(problem.num_gpus)
    pairs = []
    last: list[int] = []
    for gpu in range(problem.num_gpus):
        for place, other in enumerate(last):
            swap = np.arange(problem.num_gpus)
            swap[[gpu, other]] = other, gpu
            same = problem.speed[gpu] == problem.speed[other] and nodes[gpu] == nodes[other]
            if same and np.array_equal(cost[swap][:, swap], cost):
                pairs.append((other, gpu))
                last[place] = gpu
                break
        else:
            last.append(gpu)
    return pairs


def expert_order(problem: ExpertPlacementProblem) -> IntArray:
    """Experts of the first layer in falling load, [E]; twins are ordered by the first of them they hold."""
    return np.argsort(-(problem.weight @ problem.load[:, 0]), kind="stable")


def canonical(problem: ExpertPlacementProblem, rows: IntArray) -> FloatArray:
    """Membership [L, E, G] of a placement, its twins in order."""
    held = membership(rows, problem.num_experts, problem.num_gpus)
    first = held[0, expert_order(problem)].argmax(axis=0)
    label = np.arange(problem.num_gpus)
    chain: dict[int, list[int]] = {}
    for one, two in twin_order(problem):
        chain[two] = [*chain.pop(one, [one]), two]
    for gpus in chain.values():
        label[gpus] = sorted(gpus, key=lambda gpu: int(first[gpu]))
    return held[:, :, label]


def rows_of(held: FloatArray, slots_per_gpu: int) -> IntArray:
    """Placement [L, num_slots] of a solver's membership [L, E, G]; SolverError if it does not fill a GPU."""
    chosen = held > 0.5
    if (chosen.sum(axis=1) != slots_per_gpu).any():
        raise SolverError("the solver returned a placement that does not fill every GPU")
    return np.nonzero(chosen.transpose(0, 2, 1))[2].reshape(len(held), -1)
