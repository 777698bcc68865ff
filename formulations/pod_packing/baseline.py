"""The rules in use today, pod by pod in the order of arrival: kube-scheduler's default scoring, and FGD.

kube-default : of the nodes with room the one of the highest NodeResourcesFit (LeastAllocated) + BalancedAllocation, cpu
and memory, each 0 .. 100 in whole points, as kube-scheduler rounds them. Upstream breaks ties at random; here the first
node wins, so that a run repeats itself. Preferences (soft affinity, soft spread) score nothing. The queue is by
priority, then by arrival. Nothing is evicted.

fgd : the node and device that fragmentation grows least on, as points 0 .. 100 by a sigmoid; ties go to the first node
and to its first device. That is how the published artifact reaches its figures, with nodes in the order of their names:
the rounding makes many ties, and the tie rule fills node after node. Without rounding, or with random ties, the same rule packs worse than first-fit (measured on openb).

A pod without room at its turn stays pending, and so does a gang that stays short of its least number.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from formulations.pod_packing.fragmentation import Fragmentation
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import CPU, MEMORY
from planner.pods_plan import PodsPlan
from planner.workload import FloatArray, IntArray

#: Points of a node for one more pod of class j: (state, j, nodes [n] with room) -> [n].
Score = Callable[[State, int, IntArray], IntArray]
NO_ROOM = "no room was left at its turn"
WAITS = "waits for its scheduling gates"


def arrival(problem: PodsProblem) -> list[int]:
    """Pending pods as the scheduler's queue has them: by priority, then in the order of the files."""
    pods = np.flatnonzero(problem.pending)
    order = np.argsort(-problem.priority[problem.pod_class[pods]], kind="stable")
    found: list[int] = pods[order].tolist()
    return found


def greedy(state: State, pods: list[int], score: Score, choose: Callable[[State, int, int], tuple[int, ...]]) -> None:
    """Place pods one by one on the node of most points; a class's points are renewed where a node changed."""
    problem = state.problem
    points = np.full((0, problem.num_nodes), -1, dtype=np.int64)
    row: dict[int, int] = {}
    seen: dict[int, int] = {}
    log: list[int] = []
    for pod in pods:
        j = int(problem.pod_class[pod])
        if j not in row:
            row[j] = len(row)
            if row[j] >= len(points):
                points = np.concatenate([points, np.full((row[j] + 16, problem.num_nodes), -1, dtype=np.int64)])
            stale = np.arange(problem.num_nodes)
        else:
            stale = np.array(sorted(set(log[seen[j] :])), dtype=np.int64)
        seen[j] = len(log)
        mine = points[row[j]]
        if stale.size:
            fitting = stale[state.room(j, stale)]
            mine[stale] = -1
            if fitting.size:
                mine[fitting] = score(state, j, fitting)
        agreeable = state.agreeable(j)
        masked = mine if agreeable is None else np.where(agreeable, mine, -1)
        node = int(masked.argmax())
        if masked[node] >= 0:
            state.place(pod, node, choose(state, j, node))
            log.append(node)
    state.drop_broken()


def kube_default(problem: PodsProblem) -> PodsPlan:
    """The default scheduler's plan."""
    state = State(problem)
    greedy(state, arrival(problem), _kube_score(problem), State.devices)
    return state.plan(reasons(problem, state))


def fgd(problem: PodsProblem) -> PodsPlan:
    """The plan of fragmentation gradient descent, in the order of arrival alone."""
    state = State(problem)
    rule = _Fgd(problem)
    greedy(state, np.flatnonzero(problem.pending).tolist(), rule.score, rule.devices)
    return state.plan(reasons(problem, state))


def reasons(problem: PodsProblem, state: State) -> dict[int, str]:
    """A word for every pod without a place."""
    return {
        pod: WAITS if problem.waiting[pod] else NO_ROOM
        for pod in np.flatnonzero(problem.pod_node < 0).tolist()
        if pod not in state.place_of
    }


def _kube_score(problem: PodsProblem) -> Score:
    known = [problem.resources.index(name) for name in (CPU, MEMORY) if name in problem.resources]
    capacity = np.maximum(problem.capacity[:, known], 1)

    def score(state: State, j: int, nodes: IntArray) -> IntArray:
        left = state.free[nodes][:, known] - problem.request[j, known]
        least = (100 * left // capacity[nodes]).sum(axis=1) // max(1, len(known))
        used = 1.0 - left / capacity[nodes]
        balanced = (100 * (1.0 - used.std(axis=1))).astype(np.int64)
        found: IntArray = least.astype(np.int64) + balanced
        return found

    return score


def _rounded(grown: FloatArray) -> IntArray:
    """Whole points of 1 / (1 + exp(ΔF / 1000)), as the artifact quantises."""
    points: IntArray = (100.0 / (1.0 + np.exp(np.clip(grown / 1000.0, -50, 50)))).astype(np.int64)
    return points


class _Fgd:
    """How little fragmentation grows, as points."""

    def __init__(self, problem: PodsProblem) -> None:
        self.measure = Fragmentation(problem)

    def _points(self, state: State, j: int, nodes: IntArray) -> tuple[IntArray, IntArray]:
        """Points of each node, and the first device that gives them."""
        problem = state.problem
        before = self.measure.of(nodes, state.free[nodes], state.device[nodes])
        free = state.free[nodes] - problem.request[j]
        device = state.device[nodes]
        best = np.full(nodes.size, -1, dtype=np.int64)
        chosen = np.zeros(nodes.size, dtype=np.int64)
        if not problem.is_share[j]:
            gpus = int(problem.class_gpus[j])
            if gpus:
                # Whole devices are alike: take the first ones.
                whole = device >= problem.class_milli[j]
                device = np.where(whole & (whole.cumsum(axis=1) <= gpus), 0, device)
            return _rounded(self.measure.of(nodes, free, device) - before), chosen
        for d in range(device.shape[1]):
            # Devices with the same room are alike.
            new = (device[:, d] >= problem.class_milli[j]) & ~(device[:, :d] == device[:, d : d + 1]).any(axis=1)
            rows = np.flatnonzero(new)
            if not rows.size:
                continue
            after = device[rows].copy()
            after[:, d] -= problem.class_milli[j]
            points = _rounded(self.measure.of(nodes[rows], free[rows], after) - before[rows])
            better = points > best[rows]
            best[rows[better]], chosen[rows[better]] = points[better], d
        return best, chosen

    def score(self, state: State, j: int, nodes: IntArray) -> IntArray:
        """The points of the best device."""
        return self._points(state, j, nodes)[0]

    def devices(self, state: State, j: int, node: int) -> tuple[int, ...]:
        """The first device of most points."""
        if not state.problem.is_share[j]:
            return state.devices(j, node)
        _, chosen = self._points(state, j, np.array([node]))
        return (int(chosen[0]),)
