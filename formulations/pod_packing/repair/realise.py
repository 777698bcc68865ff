"""Changes as the state of a plan, and back."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from formulations.pod_packing.baseline import greedy
from formulations.pod_packing.realise import size_of, tightest
from formulations.pod_packing.repair.lagrange import Cluster
from formulations.pod_packing.repair.pricing import Change
from formulations.pod_packing.state import State
from planner.workload import FloatArray


def apply(cluster: Cluster, state: State, changes: list[Change], weight: FloatArray) -> None:
    """Make the changes: pods that leave take the places of their kind, then pending pods do, by weight [J]."""
    problem = cluster.problem
    slots: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    leaving: dict[int, list[int]] = defaultdict(list)
    for change in changes:
        for pod in change.removed:
            state.take(pod)
            if pod not in change.evicted:
                leaving[int(cluster.kind_of_pod[pod])].append(pod)
        for kind, devices in change.added:
            slots[kind].append((change.node, devices))
    waiting: dict[int, list[int]] = defaultdict(list)
    pending = np.flatnonzero(problem.pending)
    for pod in pending[np.lexsort((-pending, weight[problem.pod_class[pending]]))].tolist():
        waiting[int(cluster.kind_of_pod[pod])].append(pod)
    for kind, places in slots.items():
        pods = leaving[kind]
        for node, devices in places:
            # A pod that leaves and comes back to its own node would be moved for nothing, if another can come instead.
            pick = next((p for p in reversed(pods) if problem.pod_node[p] != node), pods[-1] if pods else None)
            if pick is not None:
                pods.remove(pick)
            elif waiting[kind]:
                j = int(problem.pod_class[waiting[kind][-1]])
                agreeable = state.agreeable(j) if problem.crossing[j] else None
                if agreeable is not None and not agreeable[node]:
                    continue
                pick = waiting[kind].pop()
            if pick is not None:
                state.place(pick, node, devices)


def fill_all(state: State, weight: FloatArray) -> None:
    """Place what has no place and still fits: pods that were taken off their nodes, then pending ones."""
    problem = state.problem
    size = size_of(problem)
    pods = [p for p in [*state.gone, *np.flatnonzero(problem.pending).tolist()] if p not in state.place_of]
    pods.sort(key=lambda p: (-weight[problem.pod_class[p]], -size[problem.pod_class[p]], p not in state.gone, p))
    greedy(state, pods, tightest(problem), State.devices)


def come_back(state: State) -> None:
    """Pods that found their old places again have not moved."""
    problem = state.problem
    for pod in sorted(state.gone):
        if state.place_of.get(pod) == (int(problem.pod_node[pod]), problem.pod_devices[pod]):
            state.gone.remove(pod)
            del state.place_of[pod]


def changes_of(cluster: Cluster, state: State) -> list[Change]:
    """What a state changes, node by node."""
    removed: dict[int, list[int]] = defaultdict(list)
    added: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    for pod in sorted(state.gone):
        removed[int(cluster.problem.pod_node[pod])].append(pod)
    for pod, (node, devices) in sorted(state.place_of.items()):
        added[node].append((int(cluster.kind_of_pod[pod]), devices))
    return [
        Change(
            node, tuple(removed[node]), tuple(p for p in removed[node] if p not in state.place_of), tuple(added[node])
        )
        for node in sorted({*removed, *added})
    ]
