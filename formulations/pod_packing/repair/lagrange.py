"""The bound at any prices, and the changes that are worth something there; see `columns` for the formula."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from formulations.pod_packing.problem import Leave, PodsProblem
from formulations.pod_packing.repair.kinds import Kinds
from formulations.pod_packing.repair.pricing import Change, Pricer
from planner.workload import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """weight : [J]. kept : (weight [J], least sum of what is placed less what is evicted) of each tier before."""

    weight: FloatArray
    kept: tuple[tuple[FloatArray, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A part of the cluster: its nodes, pending pods of each class [J], moves, moves of each budget's pods, and places
    of kinds that it owes to pods from elsewhere, less those that it has there [K].
    """

    nodes: IntArray
    demand: IntArray
    moves: int
    allowed: IntArray
    owed: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """All of them >= 0: of places of kinds [K], of a move, of a move of each budget's pods, and of the tiers before."""

    pods: FloatArray
    move: float
    budgets: FloatArray
    tiers: FloatArray

    def mixed(self, other: Prices, share: float) -> Prices:
        """So much of these, the rest of the other ones."""
        rest = 1.0 - share
        return Prices(
            share * self.pods + rest * other.pods, share * self.move + rest * other.move,
            share * self.budgets + rest * other.budgets, share * self.tiers + rest * other.tiers,
        )  # fmt: skip


class Cluster:
    """The problem with leave to move pods, and its pricing."""

    def __init__(self, problem: PodsProblem, leave: Leave) -> None:
        self.problem, self.leave = problem, leave
        self.kinds = Kinds(problem)
        self.pricer = Pricer(problem, leave, self.kinds)
        self.kind_of_pod = self.kinds.of_class[problem.pod_class]
        #: Class of each movable pod, and whether it may be left without a node, [M].
        self.pod_class = problem.pod_class[self.pricer.pods]
        self.evictable = leave.evictable[self.pod_class]
        #: Whether a movable pod counts in a budget, [M, budgets].
        self.counts = np.zeros((self.pricer.pods.size, len(leave.budgets)))
        for b, one in enumerate(leave.budgets):
            self.counts[:, b] = one.pods[self.pricer.pods]

    @cached_property
    def budgets_of(self) -> dict[int, list[int]]:
        """Budgets that each movable pod counts in."""
        return {p: np.flatnonzero(row).tolist() for p, row in zip(self.pricer.pods.tolist(), self.counts, strict=True)}

    def whole(self) -> Share:
        """All of it."""
        allowed = np.array([one.allowed for one in self.leave.budgets], dtype=np.int64)
        nobody = np.zeros(self.kinds.count, dtype=np.int64)
        return Share(np.arange(self.problem.num_nodes), self.problem.demand, self.leave.most, allowed, nobody)

    def movable_on(self, nodes: IntArray) -> IntArray:
        """Pods of each kind that may leave these nodes, [K]."""
        there = np.isin(self.problem.pod_node[self.pricer.pods], nodes)
        return np.bincount(self.pricer.pod_kind[there], minlength=self.kinds.count).astype(np.int64)

    def amounts(self, change: Change) -> Counter[int]:
        """Places that a change makes less those that its pods need elsewhere, by kind."""
        found: Counter[int] = Counter(kind for kind, _ in change.added)
        for p in change.removed:
            if p not in change.evicted:
                found[int(self.kind_of_pod[p])] -= 1
        return found

    def at(self, prices: Prices, goal: Goal, share: Share, *, still: bool = False) -> tuple[float, list[Change]]:
        """The bound at the prices, and changes that are worth something there; still : those that remove nothing."""
        lost = goal.weight.copy()
        bound = -prices.move * share.moves - float(prices.budgets @ share.allowed)
        bound += float(prices.pods @ share.owed)
        for tau, (weight, least) in zip(prices.tiers, goal.kept, strict=True):
            lost += tau * weight
            bound += tau * least
        away = prices.pods[self.pricer.pod_kind]
        for_good = self.evictable & (lost[self.pod_class] < away)
        away = np.where(for_good, lost[self.pod_class], away)
        costs = away + (np.inf if still else prices.move) + self.counts @ prices.budgets
        most = self.kinds.counts(share.demand)
        if not still:
            most = most + self.movable_on(share.nodes)
        # Places that nobody can take are worth nothing, whatever their price.
        values = np.where(most > 0, prices.pods, 0.0)
        worth, candidates = self.pricer.seek(share.nodes, values, costs, most, for_good)
        bound -= float(worth.sum())
        return bound + float(np.minimum(prices.pods[self.kinds.of_class] - lost, 0.0) @ share.demand), candidates
