"""Column generation: the program of patterns, the prices it gives, new patterns at these prices, and a bound.

Sets: kinds of nodes k, n_k alike; patterns q of a kind, a_jq pods of class j in it; classes j with d_j pods.
Variables: y_q >= 0 nodes that get pattern q; x_j in [least_j, d_j] pods of class j that run;
z_ab >= 0 places of class b that pods of class a take, which fit into them (`exchanges`).
    minimise    sum of c_k y_q  -  sum of w_j x_j
    subject to  sum over q of a_jq y_q  +  sum over b of z_jb  -  sum over b of z_bj  >=  x_j
                                                       each class       (dual π_j >= 0)
                sum over q of kind k of y_q  <=  n_k   each kind
                sum over j of w_sj x_j  >=  reached_s  each tier before (dual τ_s >= 0)
A class that is spread over zones z comes once for each (`shapes`), x_jz in [0, d_j], with
    m_j <= x_jz <= m_j + skew_j,   sum over z of x_jz <= d_j (= d_j where all must run)
until its numbers are settled: then x_jz <= what the program gave, in whole pods.
A pattern may have more of a class than runs in the end: what is over stays empty. So every pattern is one for `>=`.

Bound, for any π and τ >= 0 (Lagrange): no plan costs less than
    sum over j of min over x_j of (π_j - w_j - sum of τ_s w_sj) x_j  +  sum of τ_s reached_s
    (of spread classes: the least of that sum within their rows)
    +  sum over k of n_k × min(0, c_k - P_k(π)),      P_k(π) the most that a content of a node can be worth at π.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from formulations.backends.column_lp import ColumnLp
from formulations.outcome import Budget
from formulations.pod_packing.pricing import Pricer
from formulations.pod_packing.shapes import Pattern, Shapes, counts
from planner.workload import FloatArray, IntArray

#: Share of the best prices so far in those that patterns are sought at (Wentges smoothing; 0.6 was measured best).
SMOOTHING = 0.6
#: A bound this close to the program's value ends the search for patterns, relatively.
CLOSE = 2e-6
#: Rounds in which the prices of amounts besides cores and devices settle.
SETTLING = 14
#: What a pod counts that has to run and for which no pattern is known yet, in costs of the dearest node or pod.
MISSING = 1000.0


@dataclass(frozen=True, slots=True, eq=False)
class Goal:
    """What is minimised over some shapes: weight [J'] of placed pods, cost of nodes, pods that must run, tiers before.

    kept : (weight [J'], least sum) of each tier before.
    """

    weight: FloatArray
    costs: bool
    must: bool
    kept: tuple[tuple[FloatArray, float], ...] = ()


@dataclass(slots=True, eq=False)
class Columns:
    """The patterns known, each with its kind and its column."""

    kind: list[int] = field(default_factory=list)
    pattern: list[Pattern] = field(default_factory=list)
    count: list[IntArray] = field(default_factory=list)
    known: set[tuple[int, bytes]] = field(default_factory=set)

    def new(self, shapes: Shapes, kind: int, pattern: Pattern) -> bool:
        """Note a pattern; False for one of the same pods on the same kind as another."""
        count = counts(shapes, pattern)
        key = kind, count.tobytes()
        if key in self.known or not pattern:
            return False
        self.known.add(key)
        self.kind.append(kind)
        self.pattern.append(pattern)
        self.count.append(count)
        return True


class Program:
    """The linear program of one set of shapes and one goal."""

    def __init__(self, shapes: Shapes, goal: Goal, demand: IntArray, columns: Columns | None = None) -> None:
        self.shapes, self.goal = shapes, goal
        self.nodes, self.demand = shapes.count.astype(np.float64), demand.astype(np.float64)
        self.kept = [least for _, least in goal.kept]
        self.pricer = Pricer(shapes)
        self.columns = Columns() if columns is None else columns
        num_classes, num_kinds = shapes.classes.size, len(shapes.nodes)
        self._kind_rows = num_classes + np.arange(num_kinds)
        self._kept_rows = num_classes + num_kinds + np.arange(len(self.kept))
        lower = [np.zeros(num_classes), np.full(num_kinds, -np.inf), np.array(self.kept)]
        upper = [np.full(num_classes, np.inf), self.nodes, np.full(len(self.kept), np.inf)]
        #: Rows of each spread class: its pods in all, and in each zone.
        self._zoned_rows: list[IntArray] = []
        first = num_classes + num_kinds + len(self.kept)
        self._settled = not shapes.zoned
        self._zoned = np.zeros(num_classes, dtype=np.bool_)
        for one in shapes.zoned:
            self._zoned[one.classes] = True
            most = float(demand[one.classes[0]])
            lower += [np.array([most if goal.must else 0.0]), np.zeros(one.classes.size)]
            upper += [np.array([most]), np.full(one.classes.size, float(one.max_skew))]
            self._zoned_rows.append(first + np.arange(1 + one.classes.size))
            first += 1 + one.classes.size
        self.lp = ColumnLp(np.concatenate(lower), np.concatenate(upper))
        extra: dict[int, list[int]] = {}
        for one, mine in zip(shapes.zoned, self._zoned_rows, strict=True):
            extra |= {j: [int(mine[0]), row] for j, row in zip(one.classes.tolist(), mine[1:].tolist(), strict=True)}
        for j in range(num_classes):
            rows = [j, *self._kept_rows.tolist(), *extra.get(j, ())]
            values = [-1.0, *(weight[j] for weight, _ in goal.kept), *([1.0] * len(extra.get(j, ())))]
            least = float(demand[j]) if goal.must and j not in extra else 0.0
            self.lp.add(-float(goal.weight[j]), rows, values, least, float(demand[j]))
        for mine in self._zoned_rows:
            self.lp.add(0.0, mine[1:], np.full(mine.size - 1, -1.0))
        for a, b in shapes.exchanges.tolist():
            self.lp.add(0.0, [a, b], [1.0, -1.0])
        if goal.must or self.kept:
            dear = MISSING * max(1.0, float(shapes.cost.max(initial=0.0)), float(np.abs(goal.weight).max(initial=0.0)))
            for j in range(num_classes):
                self.lp.add(dear, [j], [1.0])
        self._first = self.lp.num_columns
        self._have = 0
        self.bound = -np.inf
        self.value = np.inf
        self._best_prices: FloatArray | None = None
        #: Of the classes and of the kinds' nodes (none is positive), as the program last had them.
        self.prices, self.kind_prices = np.zeros(num_classes), np.zeros(num_kinds)
        #: Pods of each class that run in the program's answer.
        self.amounts = np.zeros(num_classes)
        self._add_known()

    def settle(self) -> IntArray:
        """Pods of each class there may be from now on, [J']: of spread classes as many as the program's answer runs in
        each zone, in whole pods that keep the spread."""
        demand = self.demand.astype(np.int64)
        for one, mine in zip(self.shapes.zoned, self._zoned_rows, strict=True):
            most = int(demand[one.classes[0]])
            demand[one.classes] = evened(self.amounts[one.classes], one.max_skew, most, self.goal.must)
            self.lp.set_rows(mine, -np.inf, np.inf)
        self._settled = True
        self.shrink(self.nodes.astype(np.int64), demand, self.kept)
        return demand

    def _add_known(self) -> None:
        columns = self.columns
        for q in range(self._have, len(columns.kind)):
            used = np.flatnonzero(columns.count[q])
            cost = float(self.shapes.cost[columns.kind[q]]) if self.goal.costs else 0.0
            rows = [*used.tolist(), int(self._kind_rows[columns.kind[q]])]
            self.lp.add(cost, rows, [*columns.count[q][used].tolist(), 1.0])
        self._have = len(columns.kind)

    def add(self, kind: int, pattern: Pattern) -> bool:
        """Offer a pattern to the program."""
        return self.columns.new(self.shapes, kind, pattern)

    def shrink(self, nodes: IntArray, demand: IntArray, kept: list[float]) -> None:
        """So many nodes and pods are left, and so much of the tiers before is still to be reached."""
        self.nodes, self.demand, self.kept = nodes.astype(np.float64), demand.astype(np.float64), kept
        num = self.shapes.classes.size
        self.lp.set_rows(self._kind_rows, -np.inf, self.nodes)
        self.lp.set_columns(np.arange(num), self.demand if self.goal.must else 0.0, self.demand)
        if kept:
            self.lp.set_rows(self._kept_rows, np.maximum(0.0, np.array(kept)), np.inf)
        self.bound, self._best_prices = -np.inf, None

    def improve(self, budget: Budget, rounds: int, *, bounded: bool = True) -> FloatArray | None:
        """Add patterns for some rounds or until the bound is met; nodes of each pattern, or None when time is up.

        bounded : also work out the bound; without it, patterns are cut to the pods that are left.
        """
        left = np.maximum(self.demand, 0).astype(np.int64)
        found: FloatArray | None = None
        for _ in range(rounds):
            self._add_known()
            answer = self.lp.solve(budget)
            if answer is None:
                return found
            self.value, values, duals = answer
            found, self.amounts = values[self._first :], values[: self.shapes.classes.size]
            self.prices = np.maximum(duals[: self.shapes.classes.size], 0.0)
            self.kind_prices = np.minimum(duals[self._kind_rows], 0.0)
            if bounded and self._closed():
                break
            if not self._seek(duals, left, bounded) and not (bounded and self._seek_harder(duals)):
                break
        return found

    def _closed(self) -> bool:
        return self.value - self.bound <= CLOSE * max(1.0, abs(self.value))

    def _own(self, duals: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The program's prices of classes, and of the tiers before."""
        num = self.shapes.classes.size
        return np.maximum(duals[:num], 0.0), np.maximum(duals[self._kept_rows], 0.0)

    def _seek(self, duals: FloatArray, left: IntArray, bounded: bool) -> bool:
        """Look for patterns at smoothed prices, and at the program's own where that brings none."""
        own, taus = self._own(duals)
        tried = [own]
        if self._best_prices is not None and bounded:
            tried.insert(0, SMOOTHING * self._best_prices + (1.0 - SMOOTHING) * own)
        for prices in tried:
            if bounded:
                bound = self.bound_at(prices, taus)
                if bound > self.bound:
                    self.bound, self._best_prices = bound, prices
                if self._closed():
                    return False
            added = 0
            # For the program alone, more of a class than is left does no harm, and it needs such patterns to close.
            most = np.full_like(left, np.iinfo(np.int64).max) if bounded else left
            for kind, pattern in self.pricer.contents(prices, most):
                added += self.nodes[kind] > 0 and self.add(kind, pattern)
            if added:
                return True
        return False

    def _seek_harder(self, duals: FloatArray) -> bool:
        """At the program's own prices, let the prices of other amounts settle: patterns that fit better, and the bound
        at the best of these prices for each kind."""
        prices, taus = self._own(duals)
        most = np.full(prices.size, np.iinfo(np.int64).max)
        worth = np.full(len(self.nodes), np.inf)
        added = 0
        self.pricer.restart_prices()
        for _ in range(SETTLING):
            worth = np.minimum(worth, self.pricer.bounds(prices, self.demand.astype(np.int64)))
            for kind, pattern in self.pricer.contents(prices, most, 0.0):
                added += self.nodes[kind] > 0 and self.add(kind, pattern)
            if not self.pricer.price.any():
                break
        self.bound = max(self.bound, self.bound_at(prices, taus, worth))
        return added > 0 and not self._closed()

    def bound_at(self, prices: FloatArray, taus: FloatArray, worth: FloatArray | None = None) -> float:
        """The Lagrangian bound at prices of classes and tiers, see the module; worth : P_k where it is known, [K]."""
        net = prices - self.goal.weight
        constant = 0.0
        for tau, (weight, _), least in zip(taus, self.goal.kept, self.kept, strict=True):
            net = net - tau * weight
            constant += tau * least
        free = np.ones(net.size, dtype=np.bool_) if self._settled else ~self._zoned
        run = float((net if self.goal.must else np.minimum(net, 0.0))[free] @ self.demand[free])
        for one in () if self._settled else self.shapes.zoned:
            run += least_spread(net[one.classes], one.max_skew, float(self.demand[one.classes[0]]), self.goal.must)
        cost = self.shapes.cost if self.goal.costs else np.zeros(len(self.nodes))
        if worth is None:
            worth = self.pricer.bounds(prices, self.demand.astype(np.int64))
        return run + constant + float(self.nodes @ np.minimum(0.0, cost - worth))


def least_spread(net: FloatArray, max_skew: int, most: float, must: bool) -> float:
    """The least sum of net_z x_z with m <= x_z <= m + max_skew, m >= 0 and sum of x_z <= most (= most if all must run).

    In a corner of these rows m is 0, or nothing of `most` is left beside zones that have m or m + max_skew.
    """
    order, size = np.sort(net), net.size
    found = np.inf
    for least in {0.0, *((most - max_skew * k) / size for k in range(size + 1))}:
        if least < 0:
            continue
        left, value = most - size * least, least * float(net.sum())
        for one in order.tolist():
            if one < 0 or must:
                amount = min(float(max_skew), left)
                left, value = left - amount, value + one * amount
        if not must or left <= 1e-6 * max(1.0, most):
            found = min(found, value)
    return found


def evened(amounts: FloatArray, max_skew: int, most: int, must: bool) -> IntArray:
    """Whole numbers near amounts [Z] that differ by max_skew at most; their sum is not larger, or `most` if it must."""
    found: IntArray = np.floor(amounts + 1e-6).astype(np.int64)
    total = most if must else min(most, int(np.floor(amounts.sum() + 1e-6)))
    by_rest = np.argsort(found - amounts, kind="stable")
    found[by_rest[: max(0, total - int(found.sum()))]] += 1
    found = np.minimum(found, found.min() + max_skew)
    while must and found.sum() < total:
        found[found.argmin()] += 1
    return found
