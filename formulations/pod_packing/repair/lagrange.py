"""The bound at any prices, and the changes that are worth something there; see `columns` for the formula."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from formulations.pod_packing.problem import Leave, PodsProblem
from formulations.pod_packing.repair.pricing import Change, Pricer
from planner.workload import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """weight : [J]. kept : (weight [J], least sum of what is placed less what is evicted) of each tier before."""

    weight: FloatArray
    kept: tuple[tuple[FloatArray, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """A part of the cluster: its nodes, pending pods of each class [J], moves, and moves of each budget's pods."""

    nodes: IntArray
    demand: IntArray
    moves: int
    allowed: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """All of them >= 0: of pods [J], of a move, of a move of each budget's pods, and of the tiers before."""

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


def highest(several: list[Prices]) -> Prices:
    """The largest of each price: a class that is cheap in one part by chance makes a bound loose, a dear one less."""
    return Prices(
        np.max([one.pods for one in several], axis=0), max(one.move for one in several),
        np.max([one.budgets for one in several], axis=0), np.max([one.tiers for one in several], axis=0),
    )  # fmt: skip


class Cluster:
    """The problem with leave to move pods, and its pricing."""

    def __init__(self, problem: PodsProblem, leave: Leave) -> None:
        self.problem, self.leave = problem, leave
        self.pricer = Pricer(problem, leave)
        movable = np.bincount(problem.pod_class[self.pricer.pods], minlength=problem.num_classes)
        #: Pods of each class that may be left without a node, [J].
        self.evictable = np.where(leave.evictable, movable, 0).astype(np.int64)
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
        return Share(np.arange(self.problem.num_nodes), self.problem.demand, self.leave.most, allowed)

    def movable_on(self, nodes: IntArray) -> IntArray:
        """Pods of each class that may leave these nodes, [J]."""
        there = np.isin(self.problem.pod_node[self.pricer.pods], nodes)
        return np.bincount(self.pricer.pod_class[there], minlength=self.problem.num_classes).astype(np.int64)

    def amounts(self, change: Change) -> Counter[int]:
        """What a change adds less what it removes, by class."""
        found: Counter[int] = Counter(j for j, _ in change.added)
        for p in change.removed:
            found[int(self.problem.pod_class[p])] -= 1
        return found

    def at(
        self, prices: Prices, goal: Goal, share: Share, *, still: bool = False, seek: bool = True
    ) -> tuple[float, list[Change]]:
        """The bound at the prices, and changes that are worth something there; still : those that remove nothing."""
        costs = prices.pods[self.pricer.pod_class] + (np.inf if still else prices.move) + self.counts @ prices.budgets
        most = share.demand + self.movable_on(share.nodes)
        worth, candidates = self.pricer.seek(share.nodes, prices.pods, costs, most, seek)
        net = prices.pods - goal.weight
        bound = -prices.move * share.moves - float(prices.budgets @ share.allowed) - float(worth.sum())
        for tau, (weight, least) in zip(prices.tiers, goal.kept, strict=True):
            net = net - tau * weight
            bound += tau * least
        bound += float(np.minimum(net, 0.0) @ share.demand) - float(np.maximum(net, 0.0) @ self.evictable)
        return bound, candidates
