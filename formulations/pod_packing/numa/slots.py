"""What is free on each NUMA node while VMs come and go."""

from __future__ import annotations

import numpy as np

from formulations.pod_packing.problem import Numa, PodsProblem
from planner.kubernetes.snapshot import CPU, MEMORY
from planner.workload import IntArray

#: A node and the NUMA nodes of it that a VM is on.
Place = tuple[int, tuple[int, ...]]


class Slots:
    """free : [N, 2, 2] milli-cores and bytes of both NUMA nodes; left : [N, R] of the whole node, all amounts.

    share : [J, 2] milli-cores and bytes that a VM takes of each NUMA node that it is on.
    """

    def __init__(self, problem: PodsProblem, numa: Numa) -> None:
        self.problem, self.numa = problem, numa
        known = [problem.resources.index(name) if name in problem.resources else -1 for name in (CPU, MEMORY)]
        padded = [np.pad(amounts, ((0, 0), (0, 1)))[:, known] for amounts in (problem.capacity, problem.request)]
        there = np.arange(2) < numa.count[:, None]
        self.free: IntArray = np.where(there[:, :, None], (padded[0] // numa.count[:, None])[:, None, :], 0)
        self.share: IntArray = -(-padded[1] // numa.width[:, None])
        self.left: IntArray = problem.capacity.copy()

    @classmethod
    def now(cls, problem: PodsProblem, numa: Numa) -> Slots:
        """With everything that runs."""
        slots = cls(problem, numa)
        for pod in np.flatnonzero(problem.pod_node >= 0).tolist():
            slots.put(int(problem.pod_node[pod]), int(problem.pod_class[pod]), numa.places[pod])
        return slots

    def choices(self, node: int, j: int) -> list[tuple[int, ...]]:
        """NUMA nodes that a VM of class j could be on."""
        if self.numa.width[j] == 2:
            return [(0, 1)] if self.numa.count[node] == 2 else []
        return [(h,) for h in range(int(self.numa.count[node]))]

    def fits(self, node: int, j: int, at: tuple[int, ...]) -> bool:
        """Whether there is room."""
        return bool(
            (self.left[node] >= self.problem.request[j]).all() and (self.free[node, list(at)] >= self.share[j]).all()
        )

    def put(self, node: int, j: int, at: tuple[int, ...], sign: int = 1) -> None:
        """Add a VM, or take it away with the sign -1."""
        self.free[node, list(at)] -= sign * self.share[j]
        self.left[node] -= sign * self.problem.request[j]

    def whole(self) -> int:
        """Chunks of free cores: free cores are these chunks and the fragments."""
        return int((self.free[:, :, 0] // self.numa.chunk).sum())

    def gain(self, node: int, j: int, at: tuple[int, ...], sign: int) -> int:
        """Chunks of the node that are won when a VM leaves (-1) or comes (+1)."""
        cores, chunk = self.free[node, list(at), 0], self.numa.chunk
        return int(((cores - sign * self.share[j, 0]) // chunk - cores // chunk).sum())
