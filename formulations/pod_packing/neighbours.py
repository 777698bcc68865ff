"""A plan made better part by part: some nodes and some waiting pods at a time, packed anew by the exact model.

Every answer is at least as good as the plan before, so the plan never becomes worse, and stopping is always possible.
Among equally good packings of a part, those are taken that fill some of its nodes and leave others free.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.exact import ExactModel, Order
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import PodsProblem
from planner.workload import FloatArray, IntArray

#: Movable pods on the nodes of one part at most, and waiting pods beside them.
PART_PODS, WAITING_PODS = 30, 40
#: Nodes of a part, at least and at most.
FEWEST, MOST = 2, 4
#: Deterministic seconds for one part; more finds less in the same time (measured on openb, 8 nodes).
PART_WORK = 0.05
#: Rounds without a better plan after which the search gives up.
PATIENCE = 60


def rank(packing: Packing, order: Order) -> tuple[int, ...]:
    """What is compared first, second, ...; larger is better."""
    problem = packing.problem
    placed = packing.placed()
    if problem.objective == "consolidate":
        used = np.unique(packing.node[packing.node >= 0])
        tiers = [-round(1e6 * float(problem.node_cost[used].sum()))]
    else:
        tiers = [int(aim.weight @ placed) for aim in problem.aims]
    evicted, moved = packing.evicted, packing.moved
    if order == "placed first" or problem.objective != "priority":
        return *tiers, -evicted.size, -moved.size
    levels = problem.priority[problem.pod_class]
    found: list[int] = []
    for tier, level in zip(tiers, np.unique(levels)[::-1].tolist(), strict=False):
        found += [tier, -int((levels[evicted] == level).sum()), -int((levels[moved] == level).sum())]
    return tuple(found)


class Neighbours:
    """One search from a start."""

    def __init__(self, start: Packing, order: Order, seed: int) -> None:
        self.best, self.order = start, order
        self.problem: PodsProblem = start.problem
        self.rng = np.random.default_rng(seed)
        self.rank = rank(start, order)

    def run(self, budget: Budget, options: SolveOptions, rounds: int, goal: Sequence[int] | None = None) -> Packing:
        """Improve for some rounds, or until the goal's ranks are reached, patience or time is over."""
        idle = 0
        for _ in range(rounds):
            if budget.stop() is not None or idle > PATIENCE or (goal is not None and self._reached(goal)):
                break
            idle = 0 if self._round(budget, options) else idle + 1
        return self.best

    def _reached(self, goal: Sequence[int]) -> bool:
        return all(have >= want for have, want in zip(self.rank, goal, strict=False))

    def _round(self, budget: Budget, options: SolveOptions) -> bool:
        nodes = self._nodes()
        on = np.flatnonzero(self.best.movable & np.isin(self.best.node, nodes))
        waiting = self._waiting(nodes)
        if not on.size and not waiting.size:
            return False
        exact = ExactModel(self.best, nodes, np.sort(np.concatenate([on, waiting])), self.order)
        exact.hint()
        objective, weight = self._gathered(exact)
        for term in reversed(exact.terms):
            objective = objective + weight * term.expression
            weight *= term.spread + 1
        if weight >= 2**55:
            # Too many tiers for one number: the first ones alone, the others stay as good as they are.
            objective = sum((term.expression for term in exact.terms[:1]), 0)
        limits = SolveOptions(
            time_limit_s=max(1e-3, budget.remaining_s), seed=options.seed, work_limit=PART_WORK, num_threads=1
        )
        _, value = exact.solve(objective, budget, limits)
        if value is None:
            return False
        found = exact.packed(value)
        new = rank(found, self.order)
        if new < self.rank:
            return False
        better = new > self.rank
        self.best, self.rank = found, new
        return better

    def _gathered(self, exact: ExactModel) -> tuple[object, int]:
        """Prefer free space on few nodes: pods count by their size, times a random number of their node, 0 .. 3."""
        problem = self.problem
        favour = self.rng.integers(0, 4, size=len(exact.nodes))
        scale = np.maximum(1.0, problem.capacity.max(axis=0))
        share = np.ceil(8 * (problem.request / scale).max(axis=1) + problem.milli / 500).astype(np.int64)
        expression, most = 0, 0
        for (i, k), count in exact.x.items():
            gain = int(favour[k] * share[exact.klass[i]])
            if gain:
                expression = expression + gain * count
                most += gain * exact.size(i)
        return expression, most + 1

    def _free(self) -> FloatArray:
        """Share of each node that is free: of GPUs where it has some, else of its scarcest amount, [N]."""
        problem = self.problem
        free, device = self.best.left(np.zeros(0, dtype=np.int64))
        amounts = (free / np.maximum(1, problem.capacity)).min(axis=1)
        gpus = device.sum(axis=1) / np.maximum(1, 1000 * problem.gpus)
        found: FloatArray = np.where(problem.gpus > 0, gpus, amounts) + 0.02
        return found

    def _nodes(self) -> IntArray:
        """Some nodes, those with more free space sooner, until they hold enough pods."""
        num = self.problem.num_nodes
        chance = self._free()
        order = np.argsort(-np.log(self.rng.random(num)) / chance, kind="stable")
        pods = np.bincount(self.best.node[self.best.movable & (self.best.node >= 0)], minlength=num)[order]
        wanted = int(self.rng.integers(FEWEST, MOST + 1))
        many = max(FEWEST, min(wanted, int(np.searchsorted(pods.cumsum(), PART_PODS, side="right"))))
        return np.sort(order[:many])

    def _waiting(self, nodes: IntArray) -> IntArray:
        """Pods without a place that some of the nodes admit: the most important first, in random order otherwise."""
        problem = self.problem
        pods = np.flatnonzero(self.best.movable & (self.best.node < 0))
        classes = problem.pod_class[pods]
        admitted = np.asarray(problem.allowed[:, nodes].any(axis=1), dtype=np.bool_)
        pods = pods[admitted[classes]]
        weight = problem.priority if problem.objective == "priority" else np.zeros_like(problem.priority)
        by_group = self.rng.random(int(self.best.group.max(initial=0)) + 1)
        order = np.lexsort((by_group[self.best.group[pods]], -weight[problem.pod_class[pods]]))
        found: IntArray = pods[order[:WAITING_PODS]]
        return found
