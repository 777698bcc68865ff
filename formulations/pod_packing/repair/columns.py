"""The program of changes: which node changes how, within the budget of moves, and the bound.

Variables: y_q in [0, 1] change q happens; x_j in [0, d_j] pending pods of class j that run; e_j in [0, movable_j] pods
of class j that are evicted for good, where that is allowed.
    minimise    sum of w_j (e_j - x_j)
    subject to  sum over q of (added_jq - removed_jq) y_q - x_j + e_j >= 0    each class      (dual π_j >= 0)
                sum over changes of a node of y_q <= 1                        each node
                sum over q of |removed_q| y_q <= k                            moves           (dual -μ)
                sum over q of |removed_q ∩ pods of b| y_q <= allowed_b        each budget b   (dual -ρ_b)
                sum over j of w_sj (x_j - e_j) >= reached_s                   each tier before (dual τ_s)
Bound, for any π, μ, ρ, τ >= 0 (Lagrange; `lagrange`):
    sum over j of min over x_j, e_j of (π_j - w_j - τ·w_j) (x_j - e_j)  +  τ·reached - μ k - ρ·allowed
    - sum over nodes of the most that a change of it can be worth (`pricing`).
Where nobody may be evicted, e_j stands in the program at a dear price while changes are sought, so that prices cannot
run away; it is in neither the bound nor the integer program.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.backends.column_lp import ColumnLp
from formulations.outcome import Budget
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.repair.lagrange import Cluster, Goal, Prices, Share
from formulations.pod_packing.repair.pricing import Change
from planner.kubernetes.snapshot import CPU, WHOLE_MILLI
from planner.workload import FloatArray

#: Share of the best prices so far in those that changes are sought at.
SMOOTHING = 0.6
#: A bound this close to the program's value ends the search, relatively; for changes that remove nothing.
CLOSE, CLOSE_STILL = 5e-4, 0.01
#: A change enters the program where its reduced cost is below this much less than nothing, relative to the value.
EPSILON = 1e-9
#: Prices of a move that are tried first, in the largest value of a pod.
FIRST_MOVES = (1.0, 0.25, 1 / 16, 1 / 64, 0.0)
#: Rounds in a row that may narrow the gap by no more than this, relatively; and while the gap is wide.
PATIENCE, LITTLE = 3, 1e-4
PATIENCE_WIDE, WIDE = 16, 0.03
#: What a pod that is moved off and finds no place counts while changes are sought, in the largest value of a pod of its
#: size; pods without devices count their cores, so many to a GPU as the cluster has.
DEAR = 3.0


class Program:
    """The linear program over a share of the cluster."""

    def __init__(self, cluster: Cluster, goal: Goal, share: Share) -> None:
        problem = cluster.problem
        self.cluster, self.goal, self.share = cluster, goal, share
        classes, nodes, budgets = problem.num_classes, share.nodes.size, len(cluster.leave.budgets)
        self._row_of = {n: classes + index for index, n in enumerate(share.nodes.tolist())}
        self._moves = classes + nodes
        self._tiers = self._moves + 1 + budgets
        least = [value for _, value in goal.kept]
        lower = [np.zeros(classes), np.full(nodes + 1 + budgets, -np.inf), np.array(least)]
        limits = [np.ones(nodes), np.array([float(share.moves)]), share.allowed]
        upper = [np.full(classes, np.inf), *limits, np.full(len(least), np.inf)]
        self.lp = ColumnLp(np.concatenate(lower), np.concatenate(upper))
        # More of a class than there is pods of it is worth nothing, whatever the program's prices are.
        self._offered = (share.demand > 0) | (cluster.movable_on(share.nodes) > 0)
        dear = _dear(problem, goal.weight)
        tiers = [self._tiers + s for s in range(len(least))]
        for j in range(classes):
            weights = [weight[j] for weight, _ in goal.kept]
            self.lp.add(-goal.weight[j], [j, *tiers], [-1.0, *weights], 0.0, float(share.demand[j]))
            evictable = float(cluster.evictable[j])
            if evictable:
                self.lp.add(goal.weight[j], [j, *tiers], [1.0, *(-one for one in weights)], 0.0, evictable)
            self.lp.add(dear[j], [j], [1.0])
        for row in tiers:
            self.lp.add(DEAR * float(dear.max(initial=1.0)), [row], [1.0])
        self._first = self.lp.num_columns
        self.changes: list[Change] = []
        self._known: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
        self.bound, self.value = -np.inf, np.inf
        self.duals = np.zeros(self._tiers + len(least))
        self.best: Prices | None = None
        self._still = False

    def add(self, change: Change) -> bool:
        """Offer a change to the program; False for one of the same pods on the same node as another."""
        key = change.node, change.removed, tuple(sorted(j for j, _ in change.added))
        if key in self._known:
            return False
        self._known.add(key)
        amounts = self.cluster.amounts(change)
        for p in change.removed:
            for b in self.cluster.budgets_of[p]:
                amounts[self._moves + 1 + b] += 1
        if change.removed:
            amounts[self._moves] = len(change.removed)
        amounts[self._row_of[change.node]] = 1
        rows = [row for row, amount in amounts.items() if amount]
        self.lp.add(0.0, rows, [float(amounts[row]) for row in rows])
        self.changes.append(change)
        return True

    @property
    def prices(self) -> Prices:
        """The program's own, as it last had them."""
        duals = self.duals
        return Prices(
            np.where(self._offered, np.maximum(duals[: self._offered.size], 0.0), 0.0),
            max(0.0, -float(duals[self._moves])),
            np.maximum(-duals[self._moves + 1 : self._tiers], 0.0),
            np.maximum(duals[self._tiers :], 0.0),
        )

    def improve(self, budget: Budget, rounds: int, *, still: bool = False) -> FloatArray | None:
        """Add changes for some rounds or until the bound is met; the amount of each, or None without time.

        still : only changes that remove nothing; the bound is of such plans then, and gone with the next call.
        """
        found: FloatArray | None = None
        idle, gap = 0, np.inf
        if self._still:
            self.best, self.bound = None, -np.inf
        self._still = still
        close = CLOSE_STILL if still else CLOSE
        for _ in range(rounds):
            answer = self.lp.solve(budget)
            if answer is None:
                return found
            self.value, values, self.duals = answer
            found = values[self._first :]
            narrower = self.value - self.bound < gap - LITTLE * abs(self.value)
            idle = 0 if narrower else idle + 1
            gap = min(gap, self.value - self.bound)
            patience = PATIENCE if gap <= WIDE * abs(self.value) else PATIENCE_WIDE
            if self.value - self.bound <= close * max(1.0, abs(self.value)) or idle > patience:
                break
            own = self.prices
            if not still and self.best is None:
                for prices in self._guesses(own):
                    self.seek(prices)
                continue
            tried = [own] if self.best is None else [self.best.mixed(own, SMOOTHING), own]
            if not any(self.seek(prices) for prices in tried):
                break
        return found

    def _guesses(self, own: Prices) -> Iterator[Prices]:
        """After changes that remove nothing it is not known what a move is worth."""
        for share in FIRST_MOVES:
            yield Prices(own.pods, share * float(self.goal.weight.max(initial=0.0)), own.budgets, own.tiers)

    def seek(self, prices: Prices) -> bool:
        """Add changes that are worth something at some prices; whether the program wants any. Keeps the best bound."""
        bound, candidates = self.cluster.at(prices, self.goal, self.share, still=self._still)
        if bound > self.bound:
            self.bound, self.best = bound, prices
        added = False
        for change in candidates:
            added |= self._reduced_cost(change) < -EPSILON * max(1.0, abs(self.value)) and self.add(change)
        return added

    def _reduced_cost(self, change: Change) -> float:
        """At the last duals."""
        duals, classes = self.duals, self.cluster.problem.pod_class
        found = -float(duals[self._row_of[change.node]]) - sum(float(duals[j]) for j, _ in change.added)
        for p in change.removed:
            found += float(duals[classes[p]] - duals[self._moves])
            found -= sum(float(duals[self._moves + 1 + b]) for b in self.cluster.budgets_of[p])
        return found

    def reduced_costs(self) -> FloatArray:
        """Of the changes known, at the last duals: changes near zero are those that whole programs want."""
        return np.array([self._reduced_cost(change) for change in self.changes])


def _dear(problem: PodsProblem, weight: FloatArray) -> FloatArray:
    """What a moved pod without a place counts in the program, [J]."""
    size = problem.milli / WHOLE_MILLI
    if CPU in problem.resources:
        r = problem.resources.index(CPU)
        gpus = max(1.0, float(problem.gpus.sum()))
        size = size + problem.request[:, r] * (gpus / max(1.0, float(problem.capacity[:, r].sum())))
    size = np.maximum(size, 1e-3)
    wanted = (problem.demand > 0) & (weight > 0)
    top = float((weight[wanted] / size[wanted]).max(initial=1e-6))
    found: FloatArray = DEAR * np.maximum(weight, top * size)
    return found
