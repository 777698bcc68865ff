"""Kinds of pods: classes that are exchangeable on every node, and which kinds fit into a place made for another one
(`exchanges`). Pods that rules tie to others are kinds of their own."""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.exchanges import fitting, shortest
from formulations.pod_packing.problem import PodsProblem
from planner.kubernetes.snapshot import CPU, MEMORY, WHOLE_MILLI
from planner.workload import FloatArray, IntArray


class Kinds:
    """K kinds. of_class : [J]. exchanges : [E, 2] pairs (a, b): a place for kind b will do for a; those that follow
    from others are left out, and b comes before whatever its places are passed on to.
    """

    def __init__(self, problem: PodsProblem) -> None:
        known: dict[object, int] = {}
        first: list[int] = []
        self.of_class = np.zeros(problem.num_classes, dtype=np.int64)
        for j in range(problem.num_classes):
            key: object = (
                problem.request[j].tobytes(), int(problem.class_gpus[j]), int(problem.class_milli[j]),
                problem.allowed[j].tobytes(),
            )  # fmt: skip
            if problem.crossing[j]:
                key = j
            if known.setdefault(key, len(first)) == len(first):
                first.append(j)
            self.of_class[j] = known[key]
        chosen = np.array(first, dtype=np.int64)
        self.request = np.ascontiguousarray(problem.request[chosen])
        self.gpus, self.milli = problem.class_gpus[chosen], problem.class_milli[chosen]
        self.is_share, self.allowed = problem.is_share[chosen], problem.allowed[chosen]
        # A place has one slot for a pod, but whoever may place one pod there may as well find slots for more.
        self._sized = np.array([name in (CPU, MEMORY) for name in problem.resources])
        self._fits = fitting(self.request, self.gpus, self.milli, self.allowed, problem.crossing[chosen])
        self.exchanges = shortest(self._fits)

    @property
    def count(self) -> int:
        """K."""
        return self.gpus.size

    def counts(self, by_class: IntArray) -> IntArray:
        """Numbers of classes as numbers of kinds, [J] -> [K]."""
        return np.bincount(self.of_class, weights=by_class, minlength=self.count).astype(np.int64)

    def worth(self, wanted: FloatArray) -> FloatArray:
        """What a place of each kind is worth, [K], at the worth of pods: one kind's, as many as it holds."""
        found = wanted.copy()
        for a in np.flatnonzero(wanted > 0).tolist():
            into = np.flatnonzero(self._fits[a])
            if not into.size:
                continue
            asked = self._sized & (self.request[a] > 0)
            times = np.full(into.size, np.inf)
            if asked.any():
                times = (self.request[np.ix_(into, asked)] // self.request[a, asked]).min(axis=1).astype(np.float64)
            if self.gpus[a]:
                share = WHOLE_MILLI if not self.is_share[a] else int(self.milli[a])
                times = np.minimum(times, self.gpus[into] // self.gpus[a] * (self.milli[into] // share))
            found[into] = np.maximum(found[into], wanted[a] * np.where(np.isfinite(times), times, 1.0))
        return found
