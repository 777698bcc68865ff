"""Any-time annealing of small clusters: pods shift, change places, or come in and push others off. Never a worse plan.

A step moves a pod to another node; where it does not fit, up to three pods leave that node for others, or for none. Or
two pods change places. Energy: what pods without a node weigh, by tier; a little for evictions and moves; more for each
disturbed pod beyond those allowed, so that the search may pass through such plans, which are never kept; less the
squares of the nodes' smallest free shares, so that free space gathers. Reheats, each cooler than the one before.

It knows amounts and which nodes admit a pod; no devices, no rules between pods, no disruption budgets (`usable`).
"""

from __future__ import annotations

import numpy as np

from formulations.outcome import Budget
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import BoolArray, PodsProblem
from planner.workload import IntArray

#: Nodes and pods up to which it is used; tables of both stay small.
MOST_NODES, MOST_PODS = 128, 2048
#: How much more a tier weighs than the next one; energy of an eviction and a move; of a pod beyond the limit.
RATIO, LIGHT, EXCESS = 6.0, (0.02, 0.05), 0.7
#: Temperatures of a cycle and of its reheats, weight of gathered free space.
HOT, COLD, REHEATS, GATHER = 0.6, 0.02, (1.0, 0.6, 0.3), 0.4
#: Steps between two looks at the clock, steps of a cycle, and cycles where nobody limits them.
CHUNK, CYCLE, CYCLES = 20_000, 240_000, 40


def usable(problem: PodsProblem, movable: BoolArray) -> bool:
    """Whether the energy knows all that matters."""
    classes = np.unique(problem.pod_class[movable])
    few = problem.num_nodes <= MOST_NODES and 0 < int(movable.sum()) <= MOST_PODS
    free = problem.leave is not None and not problem.leave.budgets and problem.objective == "priority"
    levels = len(problem.aims) if few and free else 0
    plain = not problem.class_gpus[classes].any() and not problem.crossing[classes].any()
    return few and free and plain and (int(movable.sum()) + 1) ** (levels + 2) < 2**62


class Annealing:
    """One search from a packing."""

    def __init__(self, start: Packing, seed: int) -> None:
        problem = start.problem
        assert problem.leave is not None
        self.start, self.problem = start, problem
        self.pods = np.flatnonzero(start.movable)
        klass = problem.pod_class[self.pods]
        names, self.klass = np.unique(klass, return_inverse=True)
        self.allowed = np.ascontiguousarray(problem.allowed[names])
        asked = (problem.request[klass] > 0).any(axis=0)
        self.request = np.ascontiguousarray(problem.request[klass][:, asked])
        free, _ = start.left(self.pods)
        self.free: IntArray = np.ascontiguousarray(free[:, asked])
        self.scale = 1.0 / np.maximum(1.0, problem.capacity[:, asked].astype(np.float64))
        self.home = problem.pod_node[self.pods]
        # Pods that were let in before may come back.
        self.node = start.node[self.pods].copy()
        for p, n in enumerate(self.node.tolist()):
            if n >= 0:
                self.free[n] -= self.request[p]
        levels = np.unique(problem.priority[klass])
        rank = np.searchsorted(levels, problem.priority[klass])
        self.weight = RATIO ** rank.astype(np.float64)
        self.value: IntArray = (self.pods.size + 1) ** rank.astype(np.int64)
        self.must = (self.home >= 0) & ~problem.leave.evictable[klass]
        self.weight[self.must] *= RATIO**levels.size
        # A packing may be given that is beyond the limit: it is no plan.
        self.best = np.array([-1, 0], dtype=np.int64)
        self.best_node = self.node.copy()
        self.random = np.array([(2 * seed + 1) * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64)

    def run(self, budget: Budget, cycles: int = CYCLES) -> Packing | None:
        """The best plan within the limit of moves; None where none was seen."""
        from formulations.pod_packing.anneal_kernel import anneal

        assert self.problem.leave is not None
        light = np.array(LIGHT)
        for cycle in range(cycles):
            hot = HOT * REHEATS[cycle % len(REHEATS)]
            for part in range(CYCLE // CHUNK):
                if budget.stop() is not None:
                    return self._found()
                top, low = (hot * (COLD / hot) ** ((part + i) * CHUNK / CYCLE) for i in range(2))
                anneal(
                    self.node, self.free, self.request, self.scale, self.allowed, self.klass, self.home, self.weight,
                    self.must, self.value, self.problem.leave.most, CHUNK, top, low, GATHER, light, EXCESS,
                    self.random, self.best, self.best_node,
                )  # fmt: skip
            if self.best[0] == int(self.value.sum()) and self.best[1] == 0:
                break
        return self._found()

    def _found(self) -> Packing | None:
        if self.best[0] < 0:
            return None
        packing = self.start.copy()
        packing.node[self.pods] = self.best_node
        for pod in self.pods.tolist():
            packing.devices[pod] = ()
        return packing
