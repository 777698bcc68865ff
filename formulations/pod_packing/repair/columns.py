"""The program of changes: which node changes how, within the budget of moves, and the bound.

Variables: y_q in [0, 1] change q happens; x_j in [0, d_j] pending pods of class j that run; z_ab places made for a pod
of kind b that one of kind a takes, which fits into it (`kinds`). Of the pods that a change removes, some are evicted
for good, where that is allowed: evicted_jq of class j. The others need places: moved_aq of kind a. A part of the
cluster may owe places to pods from elsewhere: owed_a.
    minimise    sum of w_j (evicted_jq y_q - x_j)
    subject to  sum over q of (added_aq - moved_aq) y_q + sum over b of z_ab - sum over b of z_ba
                    >= owed_a + sum of x_j over classes of kind a               each kind a     (dual π_a >= 0)
                sum over changes of a node of y_q <= 1                          each node
                sum over q of |removed_q| y_q <= k                              moves           (dual -μ)
                sum over q of |removed_q ∩ pods of b| y_q <= allowed_b          each budget b   (dual -ρ_b)
                sum over j of w_sj (x_j - evicted_jq y_q) >= reached_s          each tier before (dual τ_s)
Bound, for any π, μ, ρ, τ >= 0 (Lagrange; `lagrange`):
    sum over j of min over x_j of (π_j - w_j - τ·w_j) x_j  +  π·owed + τ·reached - μ k - ρ·allowed
    - sum over nodes of the most that a change of it can be worth (`pricing`), where a pod that leaves costs the lesser
      of π and, if it may be evicted, w_j + τ·w_j.
While changes are sought, places may also be bought and sold: any number at a dear price, so that prices cannot run
away, and a few at the best prices known, so that prices of kinds that nobody wants just now stay near them. Neither is
in the bound nor in the integer program.

Reference: du Merle et al. 1999 (few at the best prices); Wentges 1997 (smoothing).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.backends.column_lp import ColumnLp
from formulations.outcome import Budget
from formulations.pod_packing.repair.lagrange import Cluster, Goal, Prices, Share
from formulations.pod_packing.repair.pricing import Change
from planner.kubernetes.snapshot import CPU, WHOLE_MILLI
from planner.workload import FloatArray

#: Share of the best prices so far in those that changes are sought at.
SMOOTHING = 0.6
#: A bound this close to the program's value ends the search, relatively.
CLOSE = 2e-4
#: A change enters the program where its reduced cost is below this much less than nothing, relative to the value.
EPSILON = 1e-9
#: Rounds in a row that may narrow the gap by no more than this, relatively; and while the gap is wide.
PATIENCE, LITTLE = 4, 1e-4
PATIENCE_WIDE, WIDE = 16, 0.03
#: Prices of a move that are tried first, in the largest value of a pod, as long as the bound becomes better.
FIRST_MOVES = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 0.0)
#: What a pod that is moved off and finds no place counts while changes are sought, in the largest value of a pod of its
#: size; pods without devices count their cores, so many to a GPU as the cluster has.
DEAR = 3.0
#: Places of a kind that are bought or sold at the best prices known, at first and then, by rounds in which nothing new
#: is found.
FEW = (1.0, 0.1, 0.0)


class Program:
    """The linear program over a share of the cluster."""

    def __init__(self, cluster: Cluster, goal: Goal, share: Share, first: Prices | None = None) -> None:
        self.cluster, self.goal, self.share = cluster, goal, share
        kinds, nodes, budgets = cluster.kinds, share.nodes.size, len(cluster.leave.budgets)
        self._row_of = {n: kinds.count + index for index, n in enumerate(share.nodes.tolist())}
        self._moves = kinds.count + nodes
        self._tiers = self._moves + 1 + budgets
        least = [value for _, value in goal.kept]
        lower = [share.owed, np.full(nodes + 1 + budgets, -np.inf), np.array(least)]
        limits = [np.ones(nodes), np.array([float(share.moves)]), share.allowed]
        upper = [np.full(kinds.count, np.inf), *limits, np.full(len(least), np.inf)]
        self.lp = ColumnLp(np.concatenate(lower), np.concatenate(upper))
        tiers = [self._tiers + s for s in range(len(least))]
        for j in np.flatnonzero(share.demand).tolist():
            weights = [weight[j] for weight, _ in goal.kept]
            rows = [int(kinds.of_class[j]), *tiers]
            self.lp.add(-goal.weight[j], rows, [-1.0, *weights], 0.0, float(share.demand[j]))
        for a, b in kinds.exchanges.tolist():
            self.lp.add(0.0, [a, b], [1.0, -1.0])
        dear = _dear(cluster, goal.weight)
        for a in range(kinds.count):
            self.lp.add(dear[a], [a], [1.0])
        for row in tiers:
            self.lp.add(DEAR * float(dear.max(initial=1.0)), [row], [1.0])
        self.best = _natural(cluster, goal, share) if first is None else first
        self._few = 0
        self._bought = [self.lp.add(0.0, [a], [1.0]) for a in range(kinds.count)]
        self._sold = [self.lp.add(0.0, [a], [-1.0]) for a in range(kinds.count)]
        self.changes: list[Change] = []
        self._known: set[tuple[object, ...]] = set()
        self.bound, self.value = -np.inf, np.inf
        self.duals = np.zeros(self._tiers + len(least))

    def add(self, change: Change) -> bool:
        """Offer a change to the program; False where it has one like it."""
        if change.key in self._known:
            return False
        self._known.add(change.key)
        amounts = self.cluster.amounts(change)
        cost = 0.0
        for p in change.removed:
            for b in self.cluster.budgets_of[p]:
                amounts[self._moves + 1 + b] += 1
        amounts[self._moves] = len(change.removed)
        amounts[self._row_of[change.node]] = 1
        entries = {row: float(amount) for row, amount in amounts.items() if amount}
        for p in change.evicted:
            j = int(self.cluster.problem.pod_class[p])
            cost += float(self.goal.weight[j])
            for s, (weight, _) in enumerate(self.goal.kept):
                entries[self._tiers + s] = entries.get(self._tiers + s, 0.0) - float(weight[j])
        self.lp.add(cost, list(entries), list(entries.values()))
        self.changes.append(change)
        return True

    @property
    def prices(self) -> Prices:
        """The program's own, as it last had them."""
        duals = self.duals
        return Prices(
            np.maximum(duals[: self.cluster.kinds.count], 0.0),
            max(0.0, -float(duals[self._moves])),
            np.maximum(-duals[self._moves + 1 : self._tiers], 0.0),
            np.maximum(duals[self._tiers :], 0.0),
        )

    def improve(self, budget: Budget, rounds: int, *, still: bool = False) -> bool:
        """Add changes for some rounds or until the bound is met; False without time for any.

        still : only changes that remove nothing; the bound is of such plans then, and gone with the next call.
        """
        self.bound, self._few = -np.inf, 0
        idle, gap = 0, np.inf
        if still or self.best.move:
            self.seek(self.best, still=still)
        else:
            self._price_of_a_move(budget)
        for number in range(rounds):
            self._steady()
            answer = self.lp.solve(budget)
            if answer is None:
                return number > 0
            self.value, _, self.duals = answer
            left = self.value - self.bound
            idle = 0 if left < gap - LITTLE * abs(self.value) else idle + 1
            gap = min(gap, left)
            if idle > (PATIENCE if gap <= WIDE * abs(self.value) else PATIENCE_WIDE):
                break
            if left > CLOSE * max(1.0, abs(self.value)):
                own, before = self.prices, self.bound
                found = [self.seek(prices, still=still) for prices in (self.best.mixed(own, SMOOTHING), own)]
                if any(found) or self.bound - before > EPSILON * abs(self.value):
                    continue
            if self._few + 1 == len(FEW):
                break
            self._few, idle, gap = self._few + 1, 0, np.inf
        return True

    def _price_of_a_move(self, budget: Budget) -> None:
        """After changes that remove nothing it is not known what a move is worth. The first bound comes from here."""
        top = float(self.goal.weight.max(initial=0.0))
        at = self.best
        for share in FIRST_MOVES:
            before = self.bound
            self.seek(replace(at, move=share * top))
            if self.bound <= before or budget.stop() is not None:
                return

    def _steady(self) -> None:
        """Let a few places be bought and sold at the best prices known."""
        few = FEW[self._few]
        self.lp.set_columns(self._bought, 0.0, few, self.best.pods)
        self.lp.set_columns(self._sold, 0.0, few, -self.best.pods)

    def seek(self, prices: Prices, *, still: bool = False) -> bool:
        """Add changes that are worth something at some prices; whether the program wants any. Keeps the best bound."""
        bound, candidates = self.cluster.at(prices, self.goal, self.share, still=still)
        if bound > self.bound:
            self.bound, self.best = bound, prices
        added = False
        for change in candidates:
            added |= self._reduced_cost(change) < -EPSILON * max(1.0, abs(self.value)) and self.add(change)
        return added

    def _reduced_cost(self, change: Change) -> float:
        """At the last duals."""
        duals, cluster = self.duals, self.cluster
        found = -float(duals[self._row_of[change.node]]) - sum(float(duals[kind]) for kind, _ in change.added)
        for p in change.removed:
            found -= float(duals[self._moves]) + sum(float(duals[self._moves + 1 + b]) for b in cluster.budgets_of[p])
            if p in change.evicted:
                j = cluster.problem.pod_class[p]
                found += float(self.goal.weight[j])
                for s, (weight, _) in enumerate(self.goal.kept):
                    found += float(duals[self._tiers + s] * weight[j])
            else:
                found += float(duals[cluster.kind_of_pod[p]])
        return found

    def reduced_costs(self) -> FloatArray:
        """Of the changes known, at the last duals: changes near zero are those that whole programs want."""
        return np.array([self._reduced_cost(change) for change in self.changes])


def _natural(cluster: Cluster, goal: Goal, share: Share) -> Prices:
    """Prices to begin with: a place is worth what it can hold of the pods that wait, a move nothing."""
    wanted = np.zeros(cluster.kinds.count)
    np.maximum.at(wanted, cluster.kinds.of_class, np.where(share.demand > 0, goal.weight, 0.0))
    return Prices(cluster.kinds.worth(wanted), 0.0, np.zeros(share.allowed.size), np.zeros(len(goal.kept)))


def _dear(cluster: Cluster, weight: FloatArray) -> FloatArray:
    """What a moved pod without a place counts in the program, [K]."""
    problem, kinds = cluster.problem, cluster.kinds
    size = kinds.gpus * kinds.milli / WHOLE_MILLI
    if CPU in problem.resources:
        r = problem.resources.index(CPU)
        gpus = max(1.0, float(problem.gpus.sum()))
        size = size + kinds.request[:, r] * (gpus / max(1.0, float(problem.capacity[:, r].sum())))
    size = np.maximum(size, 1e-3)
    by_kind, wanted = np.zeros(kinds.count), np.zeros(kinds.count)
    np.maximum.at(by_kind, kinds.of_class, weight)
    np.maximum.at(wanted, kinds.of_class, np.where(problem.demand > 0, weight, 0.0))
    top = float((wanted / size).max(initial=1e-6))
    found: FloatArray = DEAR * np.maximum(by_kind, top * size)
    return found
