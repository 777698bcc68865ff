"""A whole plan as one array of nodes, which exact models read and write: pods that may be placed anew, and the rest."""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.problem import BoolArray, PodsProblem
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.workload import IntArray


class Packing:
    """node : [P], -1 without a place. devices : of each pod. movable : [P]. group : [P], pods that are exchangeable."""

    def __init__(self, problem: PodsProblem) -> None:
        self.problem = problem
        self.movable = movable(problem)
        self.node = problem.pod_node.copy()
        self.devices: list[tuple[int, ...]] = list(problem.pod_devices)
        self.group = _groups(problem)

    def copy(self) -> Packing:
        """An independent copy."""
        found = object.__new__(Packing)
        found.problem, found.movable, found.group = self.problem, self.movable, self.group
        found.node, found.devices = self.node.copy(), list(self.devices)
        return found

    def adopt(self, state: State) -> Packing:
        """With the places that a state gives to pods."""
        for pod in state.gone:
            self.node[pod], self.devices[pod] = -1, ()
        for pod, (node, devices) in state.place_of.items():
            self.node[pod], self.devices[pod] = node, devices
        return self

    def state(self) -> State:
        """The same as a state."""
        state = State(self.problem)
        there = self.problem.pod_node >= 0
        left = [pod for pod in np.flatnonzero(there).tolist() if not self.at_home(pod)]
        for pod in left:
            state.take(pod)
        for pod in [*left, *np.flatnonzero(self.problem.pending).tolist()]:
            if self.node[pod] >= 0:
                state.place(pod, int(self.node[pod]), self.devices[pod])
        return state

    def left(self, without: IntArray) -> tuple[IntArray, IntArray]:
        """Amounts [N, R] and device thousandths [N, D] that the placed pods leave, those of `without` aside."""
        problem = self.problem
        free = problem.capacity.copy()
        most = int(problem.gpus.max(initial=0))
        device = np.where(np.arange(most) < problem.gpus[:, None], WHOLE_MILLI, 0).astype(np.int64)
        stays = self.node >= 0
        stays[without] = False
        pods = np.flatnonzero(stays)
        np.subtract.at(free, self.node[pods], problem.request[problem.pod_class[pods]])
        for pod in pods[problem.class_gpus[problem.pod_class[pods]] > 0].tolist():
            device[self.node[pod], list(self.devices[pod])] -= problem.class_milli[problem.pod_class[pod]]
        return free, device

    def placed(self) -> IntArray:
        """Placed pods of each class, [J]."""
        classes = self.problem.pod_class[self.node >= 0]
        return np.bincount(classes, minlength=self.problem.num_classes).astype(np.int64)

    @property
    def evicted(self) -> IntArray:
        """Running pods without a place."""
        return np.flatnonzero((self.problem.pod_node >= 0) & (self.node < 0))

    @property
    def moved(self) -> IntArray:
        """Running pods on another node or on other devices."""
        there = np.flatnonzero((self.problem.pod_node >= 0) & (self.node >= 0))
        return there[[not self.at_home(pod) for pod in there.tolist()]] if there.size else there

    def at_home(self, pod: int) -> bool:
        """Whether a running pod is where it was."""
        return self.node[pod] == self.problem.pod_node[pod] and self.devices[pod] == self.problem.pod_devices[pod]


def movable(problem: PodsProblem) -> BoolArray:
    """Pods that a model may place: pending ones, and running ones with leave that no rule ties to others, [P]."""
    found = problem.pending.copy()
    if problem.leave is not None:
        found |= problem.leave.movable & ~(problem.crossing | problem.bound)[problem.pod_class]
    return found


def _groups(problem: PodsProblem) -> IntArray:
    """Group of each pod, [P]: pods of the same size, priority, rules and disruption budgets are exchangeable."""
    known: dict[tuple[object, ...], int] = {}
    by_class = np.zeros(problem.num_classes, dtype=np.int64)
    for j in range(problem.num_classes):
        key: tuple[object, ...] = (
            problem.request[j].tobytes(), problem.class_gpus[j], problem.class_milli[j], problem.priority[j],
            problem.allowed[j].tobytes(), problem.bound[j],
        )  # fmt: skip
        if problem.crossing[j]:
            key = (j,)
        by_class[j] = known.setdefault(key, len(known))
    if problem.leave is None or not problem.leave.budgets:
        return by_class[problem.pod_class]
    table = np.stack([by_class[problem.pod_class], *(budget.pods for budget in problem.leave.budgets)], axis=1)
    _, found = np.unique(table, axis=0, return_inverse=True)
    return found.ravel().astype(np.int64)
