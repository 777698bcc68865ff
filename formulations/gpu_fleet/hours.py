"""Many hours that share reserved instances: branch and bound over the reserved counts R, each hour a small MILP.

    min over R of  sum_k price[k] R[k] + sum_t share[t] V_t(R),     V_t(R): the hour's cheapest fleet beside R

Bound   the linear relaxation of groups of like hours, with rows that whole instances keep. At prices pi[g] of reserved
        instances an hour costs at least V_t(pi) = min over R_t of pi[g] R_t + V_t(R_t), so for every group g
            pi[g] R + rent of the group >= sum over its hours of share[t] V_t(pi)
        with R_t between the ends of the root: true in the whole tree (Lagrangian decomposition, taken as rows).
        pi >= 0 are the duals of the relaxation without these rows.
Plan    R rounded from the relaxation; then every hour alone, with R given: also the bound where R is settled.
Hours   where demand of one hour is nowhere below another's, V is monotone: an hour between two solved ones costs at
        least the lower one's and at most the upper one's, whose fleet serves it; what the lower one's fleet serves
        as well costs the same. So only as many hours are solved as the gap asks for, and what is skipped is inside
        the bound (the load-duration curve, with its error).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Literal

import numpy as np

from formulations.backends.linear import LinearModel
from formulations.backends.relaxation import Relaxation, relax
from formulations.backends.result import SolverResult
from formulations.gpu_fleet.hour_groups import Box, HourGroups, PricedRow
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.outcome import Budget, PartBudget, SolveOptions, Status, Stop

#: Periods above which the hours are taken apart.
MANY_PERIODS = 6
#: Seconds for one hour's MILP; its bound counts in any case.
HOUR_S = 5.0
#: The asked gap over that of an hour which is taken apart: near to all of it, as each of its parts takes long.
HOUR_GAP = 1.1
#: Share of an hour's time for its whole model at once, before it is taken apart by services.
DIRECT_SHARE = 0.2
#: Gap that counts as none, as a share of the cost: what `solve` allows for rounding, and half of it.
CLOSED = 5e-7
#: Shares that differ by less are the same.
ALIKE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Hour:
    """A solved hour: what it costs (infinite: nothing found), a bound of it, and its solution."""

    cost: float
    bound: float
    values: FloatArray | None


@dataclass(frozen=True, slots=True, eq=False)
class Week:
    """Hours with one price or number of reserved instances: mean cost and bound.

    hours : for each period, the solved one whose fleet it has, and that hour's solution.
    """

    cost: float
    bound: float
    hours: dict[int, tuple[int, Hour]]


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The cheapest found: cost of all, reserved counts and the hours with them."""

    cost: float
    reserved: FloatArray
    week: Week


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """A solved hour of a chain, and the place before which its fleet serves all."""

    hour: Hour
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """Reserved counts between two ends, and rows that hold there."""

    box: Box
    rows: tuple[PricedRow, ...] = ()


class HoursSearch:
    """`run` ends within the gap, with the tree or with the budget; then `best` and `bound` say what is known."""

    def __init__(self, problem: FleetProblem, options: SolveOptions, budget: Budget, solver: str) -> None:
        self.problem, self.options, self.budget = problem, options, budget
        self.solve = solver_of(solver, small=True)
        self.gap = max(options.relative_gap or 0.0, CLOSED)
        self.reserved = np.flatnonzero(problem.reserved)
        self.price = problem.price[self.reserved]
        self.built = [FleetBuilder(problem, (period,)).build() for period in range(problem.num_periods)]
        self.groups = HourGroups(problem)
        #: Hours by services, the prices of the last one, and whether hours are solved so.
        self.plans: dict[int, ServicePlans] = {}
        self.prices: FloatArray | None = None
        self.by_services = False
        self.tried: dict[tuple[float, ...], float] = {}
        self.best: Best | None = None
        self.left = problem.num_periods
        self.bound = 0.0
        self.bound_name = "hours apart, reserved instances priced" if self.reserved.size else "hours apart"
        self.last: SolverResult | None = None

    def run(self) -> Status:
        """FEASIBLE or OPTIMAL with `best`; INFEASIBLE where it is proven; else UNKNOWN."""
        tie = count()
        heap: list[tuple[float, int, Node]] = [(0.0, next(tie), Node(self._root()))]
        closed = np.inf
        while heap and heap[0][0] < self._enough() and self.budget.stop() is None:
            known, _, node = heapq.heappop(heap)
            box, settled = node.box, bool((node.box[0] == node.box[1]).all())
            relaxed = self.groups.relaxed(box, node.rows, self.budget.remaining_s)
            if relaxed and not settled and relaxed.objective < self._enough() and not node.rows:
                rows = self._priced(relaxed, node)
                if rows is None:
                    continue
                node = Node(box, rows)
                relaxed = self.groups.relaxed(box, rows, self.budget.remaining_s) or relaxed
            if relaxed is False:
                continue
            bound, middle = known, box[0]
            if relaxed is not None:
                middle = np.clip(relaxed.values[self.groups.columns], *box)
                bound = max(bound, relaxed.objective)
                # A dear instance that the relaxation halves is better branched on than tried.
                halved = self._worth(middle).max(initial=0.0) > self.gap * bound
                if bound < self._enough() and (self.best is None or not halved):
                    tried = self._try(np.clip(np.round(middle), *box), bound)
                    bound = max(bound, tried) if settled else bound
            if settled or bound >= self._enough():
                # Where the counts are settled, what is left of the gap is that of the hours.
                closed = min(closed, bound)
            else:
                for child in _split(box, middle, self._worth(middle)):
                    heapq.heappush(heap, (bound, next(tie), Node(child, node.rows)))
            self.bound = min(closed, heap[0][0] if heap else np.inf, self.cost)
            self.budget.report(None if self.best is None else self.best.cost, self.bound)
            if relaxed is None:
                break
        if self.best is None:
            return Status.UNKNOWN if heap or np.isfinite(closed) else Status.INFEASIBLE
        return Status.OPTIMAL if self.best.cost - self.bound <= CLOSED * self.best.cost else Status.FEASIBLE

    def _root(self) -> Box:
        """As many reserved instances as any hour has a use for."""
        ends = [(one.model, one.columns[0].y[self.reserved]) for one in self.built]
        upper = np.max([model.upper[columns] for model, columns in ends], axis=0)
        return self.problem.least[self.reserved], upper

    def counts(self) -> dict[int, Counts]:
        """Decisions of every period in the best plan."""
        assert self.best is not None
        made = {}
        for period, (solved, hour) in self.best.week.hours.items():
            assert hour.values is not None
            source, values = solved, hour.values
            if self.problem.needed(period).sum() > self.problem.needed(solved).sum():
                # A fleet of a calmer hour serves this one, but with other shares.
                routed = self._routed(solved, hour.values, period)
                assert isinstance(routed, Relaxation)
                source, values = period, routed.values
            made[period] = counts_of(self.problem, self.built[source].columns[0], values)
        return made

    def _enough(self) -> float:
        """A node with this bound need not be looked at."""
        return self.cost * (1 - self.gap)

    def _worth(self, counts: FloatArray) -> FloatArray:
        """USD/hour by which counts are off whole ones."""
        return np.asarray(self.price * np.abs(counts - np.round(counts)))

    @property
    def cost(self) -> float:
        """Of the best plan; infinite before there is one."""
        return np.inf if self.best is None else self.best.cost

    def _try(self, counts: FloatArray, scale: float) -> float:
        """All hours with these reserved counts; the bound of their cost, infinite where an hour has no fleet."""
        if tuple(counts) in self.tried:
            return self.tried[tuple(counts)]
        free = np.zeros(counts.size)
        week = self._week(np.arange(self.problem.num_periods), free, (counts, counts), scale)
        fixed = float(self.price @ counts)
        self.tried[tuple(counts)] = np.inf if week is None else fixed + week.bound
        if week is not None and np.isfinite(week.cost) and fixed + week.cost < self.cost:
            self.best = Best(fixed + week.cost, counts, week)
        return self.tried[tuple(counts)]

    def _priced(self, relaxed: Relaxation, node: Node) -> tuple[PricedRow, ...] | None:
        """A row for each group at the prices of the relaxation; None where an hour has no fleet within the box."""
        rows = []
        for group, price in enumerate(self.groups.prices(relaxed)):
            if self.budget.elapsed_s > self.budget.remaining_s:
                # What is left is for plans.
                break
            own = price / self.groups.share[group]
            week = self._week(self.groups.periods[group], own, node.box, relaxed.objective)
            if week is None:
                return None
            rows.append(PricedRow(group, price, week.bound))
        return tuple(rows)

    def _week(self, periods: IntArray, price: FloatArray, box: Box, scale: float) -> Week | None:
        """Hours at a price of reserved instances within a box, as many as the gap asks for; None: one has no fleet."""
        share = self.problem.share
        chain = rising(self.problem, periods)
        if chain is None:
            solved = {}
            for period in periods.tolist():
                hour = self._hour(period, price, box, scale)
                if hour is None:
                    return None
                solved[period] = hour
            hours = {period: (period, hour) for period, hour in solved.items()}
            cost, bound = (share[periods] @ [getattr(solved[p], name) for p in periods] for name in ("cost", "bound"))
            return Week(float(cost), float(bound), hours)
        tolerance = self.gap / 3 * scale * share[periods].sum()
        curve: dict[int, Reach] = {}
        # The busiest first: its fleet serves all others.
        wanted: int | None = len(chain) - 1
        while wanted is not None:
            hour = self._hour(int(chain[wanted]), price, box, scale)
            if hour is None:
                return None
            above = min((place for place in curve if place > wanted), default=len(chain))
            curve[wanted] = Reach(hour, self._reach(hour, chain[wanted:above]) + wanted)
            if 0 not in curve:
                wanted = 0
                continue
            errors = [
                (share[chain[curve[low].end : high]].sum() * (curve[high].hour.cost - curve[low].hour.bound), low, high)
                for low, high in pairwise(sorted(curve))
                if curve[low].end < high
            ]
            wanted = None
            if errors and sum(error for error, _, _ in errors) > tolerance and self.budget.stop() is None:
                _, low, high = max(errors)
                wanted = (curve[low].end + high) // 2
        return _curve(chain, share, curve)

    def _reach(self, hour: Hour, chain: IntArray) -> int:
        """How many hours of a chain the fleet of its first one serves."""
        if hour.values is None or self.problem.slack is not None:
            # The room of a pool with slack is no linear program.
            return 1
        served, step = 1, 1
        while step:
            at = served + step
            if at <= len(chain) and self._routed(int(chain[0]), hour.values, int(chain[at - 1])):
                served, step = at, 2 * step
            else:
                step //= 2
        return served

    def _routed(self, solved: int, values: FloatArray, period: int) -> Relaxation | Literal[False] | None:
        """Shares of another period on the fleet of a solved one; False where it cannot serve it."""
        problem, own, model = self.problem, self.built[solved].columns[0], self.built[period].model
        instances, replicas = np.round(values[own.y]), np.round(values[own.z])
        # Replicas cost nothing: a pool that has one kind of them is full of it.
        alone = np.bincount(problem.config_pool)[problem.config_pool] == 1
        replicas = np.where(alone, problem.room(instances), replicas)
        columns = self.built[period].columns[0]
        lower, upper = model.lower.copy(), model.upper.copy()
        for where, fixed in ((columns.y, instances), (columns.z, replicas)):
            lower[where] = upper[where] = fixed
        return relax(replace(model, lower=lower, upper=upper), HOUR_S)

    def _hour(self, period: int, price: FloatArray, box: Box, scale: float) -> Hour | None:
        """One hour's MILP; None where it has no fleet."""
        built = self.built[period]
        model, y = built.model, built.columns[0].y[self.reserved]
        cost, lower, upper = model.cost.copy(), model.lower.copy(), model.upper.copy()
        cost[y] = price
        lower[y] = box[0]
        # More than an hour can use is as good as what it can; a given number stays.
        upper[y] = np.maximum(np.minimum(upper[y], box[1]), box[0])
        # Hours that nothing ties are solved once, so the time is theirs alone.
        each_s = HOUR_S if self.reserved.size else self.budget.remaining_s / max(1, self.left)
        self.left -= 1
        limit_s = max(0.1, min(each_s, self.budget.remaining_s))
        gap = None if self.options.relative_gap is None else self.gap / (HOUR_GAP if self.by_services else 8)
        options = replace(self.options, time_limit_s=limit_s, relative_gap=gap)
        # The gap is one of the whole: an hour that costs next to nothing beside what is reserved may be rough.
        changed = replace(model, cost=cost, lower=lower, upper=upper, offset=scale)
        result, values = self._solved(period, changed, limit_s, options)
        self.last = result
        if result.status is Status.INFEASIBLE:
            return None
        found = np.inf if result.objective is None else result.objective - scale
        return Hour(found, 0.0 if result.bound is None else max(0.0, result.bound - scale), values)

    def _solved(
        self, period: int, model: LinearModel, limit_s: float, options: SolveOptions
    ) -> tuple[SolverResult, FloatArray | None]:
        """As one model, or by services once an hour of several models was not solved so in a part of its time."""
        if not self.by_services:
            several = len(self.problem.model_names) > 1
            part = PartBudget(self.budget, limit_s * DIRECT_SHARE if several else limit_s)
            result, values = self.solve(model, part, options)
            if not several or result.stop in (Stop.PROOF, Stop.GAP):
                return result, values
            self.by_services = True
        if period not in self.plans:
            self.plans[period] = ServicePlans(self.problem, period, self.built[period], options.relative_gap)
        plans = self.plans[period]
        plans.change(model)
        result, values = plans.solve(self.solve, options, PartBudget(self.budget, limit_s), self.prices)
        if plans.parts.priced:
            self.prices = plans.parts.best.prices
        return result, values


def rising(problem: FleetProblem, periods: IntArray) -> IntArray | None:
    """Periods in an order in which no bucket's demand falls, so that a later one's fleet serves an earlier one."""
    needed = np.stack([problem.needed(period) for period in periods.tolist()])
    rising = np.argsort(needed.sum(axis=1), kind="stable")
    order = periods[rising]
    rate = problem.rate[order]
    if (np.diff(needed[rising], axis=0) < 0).any():
        return None
    if problem.max_spot_share < 1.0:
        # The share on spot instances stays only where all sizes grow alike.
        total = rate.sum(axis=1, keepdims=True)
        share = rate / np.where(total > 0, total, 1.0)
        if (np.abs(share - share[-1]) > ALIKE).any():
            return None
    return order


def _curve(chain: IntArray, share: FloatArray, curve: dict[int, Reach]) -> Week:
    """Sums over a chain: each hour costs no more than a solved one that serves it, no less than one below it."""
    cost = bound = 0.0
    hours: dict[int, tuple[int, Hour]] = {}
    latest = 0.0
    for place, period in enumerate(chain.tolist()):
        if place in curve:
            latest = max(latest, curve[place].hour.bound)
        serving = [(one.hour.cost, at) for at, one in curve.items() if place < one.end]
        least, at = min(serving)
        hours[period] = int(chain[at]), curve[at].hour
        bound += share[period] * latest
        cost += share[period] * least
    return Week(cost, bound, hours)


def _split(box: Box, middle: FloatArray, worth: FloatArray) -> list[Box]:
    """Two halves at the count whose fraction is worth most; where all are whole, at the largest that is not settled."""
    axis = int(np.argmax(np.where(box[0] < box[1], worth + ALIKE * (1 + middle), -1.0)))
    at = min(np.floor(middle[axis] + ALIKE), box[1][axis] - 1)
    low, high = (box[0].copy(), box[1].copy()), (box[0].copy(), box[1].copy())
    low[1][axis], high[0][axis] = at, at + 1
    return [low, high]
