"""The plain rule for fragments: single VM moves, the one that wins most chunks of free cores first."""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.numa.order import VmOrder
from formulations.pod_packing.numa.slots import Place, Slots
from formulations.pod_packing.problem import Leave, Numa, PodsProblem
from planner.pods_plan import Placement, PodMove, PodsPlan


def single_moves(problem: PodsProblem, numa: Numa, leave: Leave) -> PodsPlan:
    """The plan of `greedy`, with its moves in order."""
    moved = greedy(problem, numa, leave)
    return plan_of(problem, numa, moved, VmOrder(Slots.now(problem, numa), moved).run())


def plan_of(problem: PodsProblem, numa: Numa, moved: dict[int, Place], moves: tuple[PodMove, ...] = ()) -> PodsPlan:
    """Every VM where it is, but for those that are moved."""
    placements = []
    for pod in np.flatnonzero(problem.pod_node >= 0).tolist():
        node, at = moved.get(pod, (int(problem.pod_node[pod]), numa.places[pod]))
        name = problem.node_names[node]
        placements.append(Placement(pod=problem.pod_names[pod], node=name, numa=at, running=pod not in moved))
    return PodsPlan(placements=tuple(placements), moves=moves)


def greedy(problem: PodsProblem, numa: Numa, leave: Leave) -> dict[int, Place]:
    """The plain rule: of all single moves the one that wins most chunks, again and again; places that a VM may take."""
    slots = Slots.now(problem, numa)
    pods = np.flatnonzero(leave.movable)
    node, klass = problem.pod_node[pods], problem.pod_class[pods]
    on = np.array([[h in numa.places[pod] for h in range(2)] for pod in pods.tolist()], dtype=np.bool_).reshape(-1, 2)
    share = slots.share[klass, :1]
    left = [one.allowed for one in leave.budgets]
    moved: dict[int, Place] = {}
    for _ in range(leave.most):
        cores = slots.free[node, :, 0]
        won = np.where(on, (cores + share) // numa.chunk - cores // numa.chunk, 0).sum(axis=1)
        won[np.isin(pods, list(moved))] = 0
        for b, one in enumerate(leave.budgets):
            won[one.pods[pods] & (left[b] <= 0)] = 0
        best: tuple[int, int, Place] | None = None
        targets: dict[int, list[tuple[int, Place]]] = {}
        for p in np.argsort(-won, kind="stable").tolist():
            if won[p] <= (0 if best is None else best[0]):
                break
            j = int(klass[p])
            if j not in targets:
                targets[j] = _targets(slots, j)
            other = next((one for one in targets[j] if one[1][0] != node[p]), None)
            if other is not None and won[p] + other[0] > (0 if best is None else best[0]):
                best = int(won[p]) + other[0], p, other[1]
        if best is None:
            break
        _, p, place = best
        pod, j = int(pods[p]), int(klass[p])
        slots.put(int(node[p]), j, numa.places[pod], -1)
        slots.put(place[0], j, place[1])
        moved[pod] = place
        for b, one in enumerate(leave.budgets):
            left[b] -= int(one.pods[pod])
    return moved


def _targets(slots: Slots, j: int) -> list[tuple[int, Place]]:
    """Places with room for a VM of class j, those that lose fewest chunks first."""
    found = [
        (slots.gain(node, j, at, 1), (node, at))
        for node in np.flatnonzero(slots.problem.allowed[j]).tolist()
        for at in slots.choices(node, j)
        if slots.fits(node, j, at)
    ]
    return sorted(found, key=lambda one: -one[0])
