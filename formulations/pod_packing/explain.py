"""Why a pod has no place, in words: what it lacks on how many nodes; and why all pods cannot run."""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.baseline import WAITS
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import CPU, WHOLE_MILLI
from planner.units import format_bytes
from planner.workload import IntArray

#: Reason of a running pod that is left without a node.
EVICTED = "evicted: pods of a higher priority take its place"
#: Classes named in the reasons of an infeasible instance.
MOST_NAMED = 10


def reasons(problem: PodsProblem, state: State) -> dict[int, str]:
    """The reason of every pod without a place; pods of a class share it."""
    by_class: dict[int, str] = {}
    found: dict[int, str] = {pod: EVICTED for pod in state.gone if pod not in state.place_of}
    for pod in np.flatnonzero(problem.pod_node < 0).tolist():
        if pod in state.place_of:
            continue
        if problem.waiting[pod]:
            found[pod] = f"{WAITS}: {problem.waiting[pod]}"
            continue
        j = int(problem.pod_class[pod])
        if j not in by_class:
            by_class[j] = reason(problem, state, j)
        found[pod] = by_class[j]
    return found


def reason(problem: PodsProblem, state: State, j: int) -> str:
    """What keeps one more pod of class j off every node, from what never changes to what is full now."""
    allowed = problem.allowed[j]
    if problem.contradictions and problem.contradictions[j]:
        return f"can run nowhere: {problem.contradictions[j]}"
    if not allowed.any():
        barrier = problem.barriers[j] or "taints, GPU kind, or no node takes new pods"
        return f"no node admits it ({barrier})"
    nodes = np.flatnonzero(allowed)
    bare = _lacking(problem, j, nodes, problem.capacity[nodes], most_together(problem, j)[nodes])
    if all(bare):
        each = "the only node that admits" if nodes.size == 1 else f"each of the {nodes.size} nodes that admit"
        return f"too large for {each} it, even empty: {_counted(bare)}"
    enough = state.together(j, nodes)
    now = _lacking(problem, j, nodes, state.free[nodes], enough)
    if all(now):
        return f"full: of {_nodes(nodes.size)} that {'admits' if nodes.size == 1 else 'admit'} it, {_counted(now)}"
    roomy = sum(not one for one in now)
    agreeable = state.agreeable(j)
    if agreeable is not None and not agreeable[nodes[[not one for one in now]]].any():
        rules = [rule.text for rule in problem.rules if rule.owner == j] or ["anti-affinity or spread of other pods"]
        return f"room on {_nodes(roomy)}, but none keeps {'; '.join(rules)}"
    gang = int(problem.gang[j])
    if gang >= 0:
        return f"its gang {problem.gang_names[gang]} needs {problem.gang_least[gang]} pods, and not so many fit"
    return f"room on {_nodes(roomy)} is left, which the search did not use"


def most_together(problem: PodsProblem, j: int) -> IntArray:
    """Devices of each node that a pod of class j could have at most, [N]: of one island where it asks for that."""
    if not problem.bound[j] or problem.island is None:
        return problem.gpus
    found: IntArray = np.minimum(problem.gpus, problem.island)
    return found


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _lacking(problem: PodsProblem, j: int, nodes: np.ndarray, free: np.ndarray, devices: np.ndarray) -> list[str]:
    """For each node the first thing that it lacks, or nothing."""
    gpus, milli = int(problem.class_gpus[j]), int(problem.class_milli[j])
    found = [""] * nodes.size
    if gpus:
        text = f"{gpus} free GPU{'s' if gpus > 1 else ''}" if milli == WHOLE_MILLI else f"{milli} milli of one GPU"
        text += " of one island" if problem.bound[j] else ""
        for place in np.flatnonzero(devices < gpus).tolist():
            found[place] = text
    for place, r in np.argwhere(free < problem.request[j])[::-1].tolist():
        found[place] = found[place] or _amount(problem.resources[r], int(problem.request[j, r]))
    return found


def _amount(resource: str, amount: int) -> str:
    if resource == CPU:
        return f"{amount / 1000:g} cores"
    if resource in ("memory", "ephemeral-storage"):
        return f"{format_bytes(amount)} of {resource}"
    return f"{amount} of {resource}"


def _counted(lacking: list[str]) -> str:
    names, counts = np.unique(np.array(lacking), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return ", ".join(
        f"{counts[place]} {'lacks' if counts[place] == 1 else 'lack'} {names[place]}" for place in order.tolist()
    )


def no_room_for_all(problem: PodsProblem, empty: State, most: int | None) -> tuple[str, ...]:
    """Why not all pods can run, where that is certain; most : pods that any plan can place at most."""
    found = []
    for j in np.flatnonzero(problem.demand).tolist():
        if not empty.room(j).any():
            name = problem.pod_names[int(np.flatnonzero(problem.pod_class == j)[0])]
            more = f" and {problem.demand[j] - 1} like it" if problem.demand[j] > 1 else ""
            found.append(f"{name}{more}: {reason(problem, empty, j)}")
    if found:
        return tuple(found[:MOST_NAMED])
    pods = int(problem.demand.sum())
    if most is not None and most < pods:
        return (f"{pods} pods are pending, and no plan can place more than {most} of them",)
    return ()
