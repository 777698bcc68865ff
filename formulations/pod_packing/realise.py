"""Patterns onto nodes, pods into patterns, and what is left over wherever it still fits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from formulations.pod_packing.baseline import greedy
from formulations.pod_packing.dive import Chosen
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.shapes import Pattern, Shapes
from formulations.pod_packing.state import State
from planner.workload import FloatArray, IntArray


def waiting_pods(state: State) -> dict[int, list[int]]:
    """Pending pods without a place, by class; the last is the next."""
    problem = state.problem
    found: dict[int, list[int]] = defaultdict(list)
    for pod in np.flatnonzero(problem.pending)[::-1].tolist():
        if pod not in state.place_of:
            found[int(problem.pod_class[pod])].append(pod)
    return found


def realise(state: State, shapes: Shapes, chosen: Chosen, most: IntArray) -> None:
    """Give each chosen pattern a node of its kind, with at most so many pods of each local class, `most` [J'].

    Pods that rules between pods keep off their node stay out. Zones are filled one after the other, so spread is looked
    at when all are filled.
    """
    problem = state.problem
    waiting, left = waiting_pods(state), most.copy()
    tied = problem.crossing[shapes.classes].copy()
    near = np.zeros(problem.num_classes, dtype=np.bool_)
    for rule in problem.near:
        near[rule.owner] = True
        near |= rule.matches
    for one in shapes.zoned:
        tied[one.classes] = near[shapes.classes[one.classes]]
    free = [nodes.tolist()[::-1] for nodes in shapes.nodes]
    for kind, pattern, times in chosen:
        for _ in range(times):
            node = free[kind].pop()
            # Devices of a kind are numbered by what is free of them.
            order = np.argsort(-state.device[node], kind="stable").tolist()
            for j, devices in pattern:
                number = int(shapes.classes[j])
                agreeable = state.agreeable(number) if tied[j] else None
                if left[j] > 0 and waiting[number] and (agreeable is None or agreeable[node]):
                    left[j] -= 1
                    state.place(waiting[number].pop(), node, tuple(order[d] for d in devices))


def contents(state: State, shapes: Shapes) -> dict[int, Pattern]:
    """What the state has put on each node of the shapes, as patterns; the shapes are of the nodes before."""
    names = zip(shapes.classes.tolist(), shapes.zone.tolist(), strict=True)
    place = {name: index for index, name in enumerate(names)}
    topology = dict(zip(shapes.classes.tolist(), shapes.topology.tolist(), strict=True))
    kind_of = {node: k for k, nodes in enumerate(shapes.nodes) for node in nodes.tolist()}
    before = State(state.problem)
    found: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
    numbers: dict[int, list[int]] = {}
    for pod, (node, devices) in state.place_of.items():
        if node in kind_of:
            if node not in numbers:
                order = np.argsort(-before.device[node], kind="stable").tolist()
                numbers[node] = [order.index(d) for d in range(len(order))]
            mapped = tuple(numbers[node][d] for d in devices)
            j = int(state.problem.pod_class[pod])
            zone = -1 if topology[j] < 0 else int(state.problem.domain[topology[j], node])
            found[node].append((place[j, zone], mapped))
    return {node: tuple(entries) for node, entries in found.items()}


def fill(state: State, weight: FloatArray) -> None:
    """Place what still fits, the most weight [J] first and of that the largest, each where it leaves least behind."""
    problem = state.problem
    pods = [pod for pods in waiting_pods(state).values() for pod in pods]
    size = size_of(problem)
    pods.sort(key=lambda pod: (-weight[problem.pod_class[pod]], -size[problem.pod_class[pod]], pod))
    greedy(state, pods, tightest(problem), State.devices)


def size_of(problem: PodsProblem) -> FloatArray:
    """Largest share of anything that a pod of each class takes of all there is, [J]."""
    shares = problem.request / np.maximum(1, problem.capacity.astype(np.float64).sum(axis=0))
    gpus = problem.milli / max(1.0, 1000.0 * float(problem.gpus.sum()))
    found: FloatArray = np.maximum(shares.max(axis=1, initial=0.0), gpus)
    return found


def tightest(problem: PodsProblem):  # type: ignore[no-untyped-def]
    """Points that are higher the less a node has left; nodes in use come before all others."""
    capacity = np.maximum(problem.capacity, 1)
    whole = np.maximum(1000.0 * problem.gpus, 1.0)

    def score(state: State, j: int, nodes: IntArray) -> IntArray:
        left = ((state.free[nodes] - problem.request[j]) / capacity[nodes]).mean(axis=1)
        gpus = (np.maximum(state.device[nodes], 0).sum(axis=1) - problem.milli[j]) / whole[nodes]
        points = 1e6 * (2.0 - left - gpus) + 1e7 * (state.pods_on[nodes] > 0) - problem.node_cost[nodes]
        found: IntArray = np.maximum(points, 0.0).astype(np.int64)
        return found

    return score
