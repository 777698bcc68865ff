"""VM rescheduling: moves of running VMs that leave least free cores in fragments. The mathematics:

Sets: nodes n with one or two NUMA nodes; VMs p of classes j, on one NUMA node or evenly on both; changes q of a node:
VMs that leave it (or another NUMA node of it) and VMs that come, to which NUMA node each.
Data: the chunk b (16 cores); k moves; disruption budgets.
Objective: least fragments, the sum over NUMA nodes of (free cores mod b). Every VM runs before and after, so that free
cores are constant in sum, and the objective is the same as most chunks: gain_q is what a change adds to the sum over
its NUMA nodes of floor(free / b). Fragment rate = fragments / free cores.
Variables: y_q in {0, 1}.
    maximise    sum of gain_q y_q
    subject to  sum over q of (added_jq - removed_jq) y_q >= 0         each class: who leaves has a place  (π_j >= 0)
                sum over changes of a node of y_q <= 1                 each node
                sum of |removed_q| y_q <= k                            moves                               (μ >= 0)
                sum over q of |removed_q ∩ pods of a budget| y_q <= allowed                                (ρ >= 0)
Bound, at any prices (Lagrange): gain <= μ k + ρ · allowed + sum over nodes of the most that a change is worth
(`pricing`, exact), rounded down to whole chunks.
New changes come from `pricing` at smoothed prices, whole ones from an integer program; the start is no change at all,
so that no plan is worse than that. Then an order (`order`).

Ignored: that a move takes time and bandwidth; other rules between VMs (tied ones do not move).
Reference: Ding et al., "VMR2L", EuroSys'25 (problem, fragment rate); Gilmore and Gomory 1961 (patterns).
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict

import numpy as np

from formulations.backends.column_lp import ColumnLp
from formulations.backends.linear import LinearBuilder, solve_linear_mathopt
from formulations.outcome import Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.pod_packing.numa.baseline import greedy, plan_of
from formulations.pod_packing.numa.order import VmOrder
from formulations.pod_packing.numa.pricing import Change, Pricer
from formulations.pod_packing.numa.slots import Place, Slots
from formulations.pod_packing.problem import Leave, Numa, PodsProblem
from planner.pods_plan import PodsPlan, Tier
from planner.workload import FloatArray

#: Rounds of new changes where nobody limits them; share of the best prices so far in those that are sought at.
ROUNDS, SMOOTHING = 80, 0.5
#: Chunks that a VM without a place counts while changes are sought, for each chunk of its size.
DEAR = 2.0
#: A bound this close to the program's value ends the search for changes, in chunks.
CLOSE = 0.05
#: Share of the time for changes, and columns of the integer program at most.
SEEKING, MOST_COLUMNS = 0.5, 12_000
#: First prices of a move, in chunks.
FIRST_MOVES = (0.3,)


def search(problem: PodsProblem, options: SolveOptions, budget: Budget) -> SearchResult[PodsPlan]:
    """The method `numa`; with a work limit: rounds of new changes, and nodes of the integer program."""
    assert problem.numa is not None
    assert problem.leave is not None
    return Rescheduling(problem, problem.numa, problem.leave, options, budget).run()


class Rescheduling:
    """One search."""

    def __init__(self, problem: PodsProblem, numa: Numa, leave: Leave, options: SolveOptions, budget: Budget) -> None:
        started = time.perf_counter()
        self.problem, self.numa, self.leave = problem, numa, leave
        self.options, self.budget = options, budget
        self.slots = Slots.now(problem, numa)
        self.movable = np.flatnonzero(leave.movable)
        self.pricer = Pricer(self.slots, self.movable)
        self.changes: list[Change] = []
        self.known: set[Change] = set()
        self._lagrange = math.inf
        self._best_prices: tuple[FloatArray, FloatArray] | None = None
        self.upper = int(self.slots.free[:, :, 0].sum()) // numa.chunk - self.slots.whole()
        self.build_s = time.perf_counter() - started

    def run(self) -> SearchResult[PodsPlan]:
        found = greedy(self.problem, self.numa, self.leave)
        version = ""
        if self.leave.most and self.upper > self._gain(found):
            self.lp = self._program()
            version = self.lp.version
            self._start()
            self._improve(PartBudget(self.budget, SEEKING * self.budget.remaining_s))
            if self._gain(found) < self.upper:
                other = self._whole(found)
                if other is not None and self._gain(other) > self._gain(found):
                    found = other
        return self._result(found, version)

    def _program(self) -> ColumnLp:
        """Rows: classes, nodes, moves, budgets; columns: pods of each class that find no place, dear."""
        problem = self.problem
        allowed = [float(one.allowed) for one in self.leave.budgets]
        most = [np.ones(problem.num_nodes), np.array([float(self.leave.most), *allowed])]
        upper = np.concatenate([np.full(problem.num_classes, np.inf), *most])
        lower = np.where(np.arange(upper.size) < problem.num_classes, 0.0, -np.inf)
        lp = ColumnLp(lower, upper)
        for j in range(problem.num_classes):
            chunks = float(self.slots.share[j, 0] * self.numa.width[j]) / self.numa.chunk
            lp.add(DEAR * max(chunks, 0.1), [j], [1.0])
        return lp

    def _add(self, change: Change) -> bool:
        if change in self.known:
            return False
        self.known.add(change)
        self.changes.append(change)
        entries = self._entries(change)
        self.lp.add(-float(change.gain), list(entries), list(entries.values()))
        return True

    def _entries(self, change: Change) -> dict[int, float]:
        """Rows of a change and what it has there."""
        first = self.problem.num_classes
        net = Counter(j for j, _ in change.added)
        net.subtract(int(self.problem.pod_class[pod]) for pod in change.removed)
        found = {j: float(n) for j, n in net.items() if n}
        found[first + change.node] = 1.0
        moves = first + self.problem.num_nodes
        if change.removed:
            found[moves] = float(len(change.removed))
        for b, one in enumerate(self.leave.budgets):
            hit = sum(bool(one.pods[pod]) for pod in change.removed)
            if hit:
                found[moves + 1 + b] = float(hit)
        return found

    def _prices(self, duals: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values of classes [J], prices of a move and of the budgets [1 + B]; none below nothing."""
        first = self.problem.num_classes
        return np.maximum(duals[:first], 0.0), np.maximum(-duals[first + self.problem.num_nodes :], 0.0)

    def _leaving(self, value: FloatArray, dear: FloatArray) -> FloatArray:
        found: FloatArray = value[self.problem.pod_class] + dear[0]
        for one, price in zip(self.leave.budgets, dear[1:], strict=True):
            found = found + price * one.pods
        return found

    def _seek(self, value: FloatArray, dear: FloatArray, sigma: FloatArray) -> int:
        """Add changes, and take the bound at these prices."""
        worth, found = self.pricer.best(value, self._leaving(value, dear), sigma)
        limits = np.array([self.leave.most, *(one.allowed for one in self.leave.budgets)], dtype=np.float64)
        bound = float(worth.sum() + dear @ limits)
        if bound < self._lagrange:
            self._lagrange, self._best_prices = bound, (value, dear)
            self.upper = min(self.upper, math.floor(bound + 1e-6))
        return sum(self._add(change) for change in found)

    def _start(self) -> None:
        """Changes at prices that a VM of so many chunks might have."""
        chunks = self.slots.share[:, 0] * self.numa.width / self.numa.chunk
        for move in FIRST_MOVES:
            for scale in (0.5, 1.0):
                dear = np.zeros(1 + len(self.leave.budgets))
                dear[0] = move
                self._seek(scale * chunks, dear, np.zeros(self.problem.num_nodes))

    def _improve(self, budget: Budget) -> None:
        rounds = ROUNDS if self.options.work_limit is None else int(self.options.work_limit)
        first = self.problem.num_classes
        for _ in range(rounds):
            answer = self.lp.solve(budget)
            if answer is None or self._lagrange + answer[0] <= CLOSE:
                return
            duals = answer[2]
            value, dear = self._prices(duals)
            sigma = np.maximum(-duals[first : first + self.problem.num_nodes], 0.0)
            added = 0
            if self._best_prices is not None:
                best_value, best_dear = self._best_prices
                mixed = [
                    SMOOTHING * old + (1 - SMOOTHING) * new for old, new in ((best_value, value), (best_dear, dear))
                ]
                added = self._seek(mixed[0], mixed[1], np.zeros_like(sigma))
            if not self._seek(value, dear, sigma) and not added:
                return

    def _whole(self, start: dict[int, Place]) -> dict[int, Place] | None:
        """Whole changes, by an integer program over those that are known."""
        if not self.changes:
            return None
        changes = self.changes[-MOST_COLUMNS:]
        first, nodes = self.problem.num_classes, self.problem.num_nodes
        builder = LinearBuilder()
        # Of plans that win as much, one with few moves.
        light = 0.5 / (self.leave.most + 1)
        cost = np.array([light * len(change.removed) - change.gain for change in changes])
        y = builder.variables((len(changes),), cost=cost, integer=True)
        entries = [(row, y[q], value) for q, one in enumerate(changes) for row, value in self._entries(one).items()]
        row, column, value = (np.array(part) for part in zip(*entries, strict=True))
        limits = [float(self.leave.most), *(float(one.allowed) for one in self.leave.budgets)]
        builder.sparse_rows(
            np.concatenate([np.zeros(first), np.full(nodes + len(limits), -np.inf)]),
            np.concatenate([np.full(first, np.inf), np.ones(nodes), limits]),
            (row, column, value),
        )
        options = SolveOptions(
            time_limit_s=max(0.1, 0.9 * self.budget.remaining_s),
            seed=self.options.seed,
            work_limit=None if self.options.work_limit is None else 10 * int(self.options.work_limit),
        )
        _, values = solve_linear_mathopt(builder.build(), self.budget, options)
        if values is None:
            return None
        return self._realised([changes[q] for q in np.flatnonzero(np.round(values[y])).tolist()])

    def _realised(self, chosen: list[Change]) -> dict[int, Place]:
        """VMs that leave take the places of their class, other nodes' first; places that are left over stay empty."""
        free: dict[int, list[Place]] = defaultdict(list)
        for change in chosen:
            for j, at in change.added:
                free[j].append((change.node, at))
        found: dict[int, Place] = {}
        for pod in [pod for change in chosen for pod in change.removed]:
            places = free[int(self.problem.pod_class[pod])]
            here = int(self.problem.pod_node[pod]), self.numa.places[pod]
            place = here if here in places else next((one for one in places if one[0] != here[0]), places[0])
            places.remove(place)
            if place != here:
                found[pod] = place
        return found

    def _after(self, moved: dict[int, Place]) -> Slots:
        slots = Slots.now(self.problem, self.numa)
        for pod in moved:
            slots.put(int(self.problem.pod_node[pod]), int(self.problem.pod_class[pod]), self.numa.places[pod], -1)
        for pod, (node, at) in moved.items():
            slots.put(node, int(self.problem.pod_class[pod]), at)
        return slots

    def _gain(self, moved: dict[int, Place]) -> int:
        return self._after(moved).whole() - self.slots.whole()

    def _result(self, moved: dict[int, Place], version: str) -> SearchResult[PodsPlan]:
        problem, slots = self.problem, self._after(moved)
        fragments = int((slots.free[:, :, 0] % self.numa.chunk).sum())
        gained = slots.whole() - self.slots.whole()
        bound = fragments - (self.upper - gained) * self.numa.chunk
        moves = VmOrder(Slots.now(problem, self.numa), moved).run()
        proven = gained >= self.upper
        tier = Tier(
            name="fragments", unit="cores", sense="least", value=fragments / 1000, bound=bound / 1000,
            gap=0.0 if proven else (fragments - bound) / max(1, fragments), proven=proven,
        )  # fmt: skip
        return SearchResult(
            status=Status.OPTIMAL if proven else Status.FEASIBLE,
            stop=Stop.PROOF if proven else self.budget.stop() or Stop.HEURISTIC,
            plan=plan_of(problem, self.numa, moved, moves).model_copy(update={"tiers": (tier,)}),
            solver="glop+highs",
            solver_version=version or "-",
            claimed=fragments / 1000,
            bound=Bound(value=bound / 1000, name="changes of single nodes (Lagrange)"),
            build_s=self.build_s,
        )
