"""NUMA nodes of an instance with the objective `fragments`, as arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from formulations.pod_packing.numa.slots import Slots
from formulations.pod_packing.problem import Numa, PodsProblem
from formulations.reading import Reading
from planner.descriptions.pods import PodsInstance
from planner.kubernetes.quantity import parse_amount
from planner.kubernetes.snapshot import CPU, Node, Pod

#: Mistakes of one sort that are told.
MOST_TOLD = 20


def numa_of(
    problem: PodsProblem,
    nodes: Sequence[Node],
    pods: Sequence[Pod],
    classes: Sequence[Pod],
    instance: PodsInstance,
    reading: Reading,
) -> Numa:
    """Where pods are not told to be, they are put largest first onto the NUMA node with most free cores."""
    for pod in [pod for pod in pods if pod.node is None][:MOST_TOLD]:
        reading.find(("pods",), f"{pod.name} is pending: with the objective fragments every pod runs")
    for pod in [pod for pod in pods if pod.gpus][:MOST_TOLD]:
        reading.find(("pods",), f"{pod.name} has GPUs: the objective fragments is about cores and memory")
    if CPU not in problem.resources:
        reading.find(("nodes",), "no node has cores")
    numa = Numa(
        count=np.array([node.numa for node in nodes], dtype=np.int64),
        width=np.array([pod.numa for pod in classes], dtype=np.int64),
        places=((),) * len(pods),
        chunk=parse_amount(instance.fragment_cpu, 1000),
    )
    reading.stop_if_wrong()
    slots = Slots(problem, numa)
    places: list[tuple[int, ...]] = [()] * len(pods)
    order = sorted(
        range(len(pods)),
        key=lambda p: (pods[p].numa_nodes is None, -pods[p].numa, -slots.share[problem.pod_class[p], 0]),
    )
    wrong = 0
    for p in order:
        node, j = int(problem.pod_node[p]), int(problem.pod_class[p])
        told = pods[p].numa_nodes
        options = [tuple(sorted(told))] if told is not None else slots.choices(node, j)
        options = [one for one in options if max(one) < numa.count[node] and slots.fits(node, j, one)]
        if not options:
            wrong += 1
            if wrong <= MOST_TOLD:
                reading.find(("pods",), f"{pods[p].name} has no room on the NUMA nodes of {nodes[node].name}")
            continue
        places[p] = max(options, key=lambda one: int(slots.free[node, list(one), 0].min()))
        slots.put(node, j, places[p])
    return Numa(count=numa.count, width=numa.width, places=tuple(places), chunk=numa.chunk)
