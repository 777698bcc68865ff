"""Kinds of pods: classes that are exchangeable on every node, and which kinds fit into a place made for another one.

A pod of kind a fits wherever one of kind b does if it asks for no more of anything, for no more devices, for no more of
each, and may run on every node where b may. Then a place for b is worth at least as much as one for a in every good set
of prices, which steadies them, and one change stands for many. Pods that rules tie to others are kinds of their own.

Reference: Ben Amor, Desrosiers and Valério de Carvalho 2006 (dual-optimal inequalities).
"""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.problem import BoolArray, PodsProblem
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
        self._fits = self._fitting(problem.crossing[chosen])
        self.exchanges = self._shortest()

    @property
    def count(self) -> int:
        """K."""
        return self.gpus.size

    def counts(self, by_class: IntArray) -> IntArray:
        """Numbers of classes as numbers of kinds, [J] -> [K]."""
        return np.bincount(self.of_class, weights=by_class, minlength=self.count).astype(np.int64)

    def _fitting(self, tied: BoolArray) -> BoolArray:
        """Whether a pod of kind a fits in a place for b, [K, K]."""
        found: BoolArray = (self.gpus[:, None] <= self.gpus) & (
            (self.gpus[:, None] == 0) | (self.milli[:, None] <= self.milli)
        )
        for r in range(self.request.shape[1]):
            found &= self.request[:, r, None] <= self.request[:, r]
        rows, row = np.unique(self.allowed, axis=0, return_inverse=True)
        wider: BoolArray = np.all(rows[:, None] | ~rows, axis=2)
        found &= wider[np.ix_(row.ravel(), row.ravel())] & ~tied & ~tied[:, None]
        np.fill_diagonal(found, False)
        return found

    def _shortest(self) -> IntArray:
        fits = self._fits
        steps = fits.astype(np.float32)
        pairs = np.argwhere(fits & (steps @ steps == 0.0))
        # Whoever has many that fit into its place comes first: its places are passed on along a chain.
        return pairs[np.argsort(-fits.sum(axis=0)[pairs[:, 1]], kind="stable")]

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
