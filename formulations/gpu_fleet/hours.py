"""Many hours that share reserved instances: branch and bound over the reserved counts R, each hour a small MILP.

    min over R of  sum_k price[k] R[k] + sum_t share[t] V_t(R),     V_t(R): the hour's cheapest fleet beside R

Bound   every hour gets reserved counts of its own, at prices pi[t] from the linear relaxation (Lagrangian
        decomposition): sum_t min over R_t (pi[t] R_t + share[t] V_t(R_t)) + min over R (price - sum_t pi[t]) R. Any
        pi >= 0 gives a bound; R and all R_t lie in the node's box.
Plan    R rounded from the relaxation; then every hour alone, with R given.
Hours   where demand of one hour is nowhere below another's, V is monotone: an hour between two solved ones costs at
        least the lower one's and at most the upper one's, whose fleet serves it. So only as many hours are solved as
        the gap asks for, and what is skipped is inside the bound (the load-duration curve, with its error).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Literal

import numpy as np

from formulations.backends.result import SolverResult
from formulations.gpu_fleet.milp import FleetBuilder, FleetModel
from formulations.gpu_fleet.packing import Counts
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.relaxation import Relaxation, relax
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.outcome import Budget, PartBudget, SolveOptions, Status

#: Periods above which the hours are taken apart.
MANY_PERIODS = 6
#: Groups of similar hours, whose mean demands stand for them in the relaxation.
LEVELS = 16
#: Seconds for one hour's MILP; its bound counts in any case.
HOUR_S = 5.0
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
    """Hours with one price or number of reserved instances: mean cost and bound, and each period's solved hour."""

    cost: float
    bound: float
    hours: dict[int, tuple[int, Hour]]


@dataclass(frozen=True, slots=True, eq=False)
class Best:
    """The cheapest found: cost of all, reserved counts and the hours with them."""

    cost: float
    reserved: FloatArray
    week: Week


Box = tuple[FloatArray, FloatArray]


class HoursSearch:
    """`run` ends within the gap, with the tree or with the budget; then `best` and `bound` say what is known."""

    def __init__(self, problem: FleetProblem, options: SolveOptions, budget: Budget, solver: str) -> None:
        self.problem, self.options, self.budget, self.solver = problem, options, budget, solver
        self.gap = max(options.relative_gap or 0.0, CLOSED)
        self.reserved = np.flatnonzero(problem.reserved)
        self.price = problem.price[self.reserved]
        self.built = [FleetBuilder(problem, (period,)).build() for period in range(problem.num_periods)]
        self.groups = levels(problem)
        self.group_share = np.array([problem.share[group].sum() for group in self.groups])
        # As many instances as at the peak: an hour of a group may have more than its mean asks for.
        most = FleetBuilder(problem, tuple(range(problem.num_periods))).most
        self.mean = FleetBuilder(_means(problem, self.groups), tuple(range(len(self.groups))), most=most).build()
        self.columns = self.mean.columns[0].y[self.reserved]
        self.tried: dict[tuple[float, ...], float] = {}
        self.best: Best | None = None
        self.bound = 0.0
        self.last: SolverResult | None = None

    def run(self) -> Status:
        """FEASIBLE or OPTIMAL with `best`; INFEASIBLE where it is proven; else UNKNOWN."""
        tie = count()
        heap: list[tuple[float, int, Box]] = [(0.0, next(tie), self._root())]
        closed = np.inf
        while heap and heap[0][0] < self._enough() and self.budget.stop() is None:
            known, _, box = heapq.heappop(heap)
            relaxed = self._relaxed(box)
            if relaxed is False:
                continue
            bound, middle, settled = known, box[0], bool((box[0] == box[1]).all())
            if relaxed is not None:
                middle = np.clip(relaxed.values[self.columns], *box)
                bound = max(bound, relaxed.objective)
                # A dear instance that the relaxation halves is better branched on than priced.
                halved = self._worth(middle).max(initial=0.0) > self.gap * relaxed.objective
                if bound < self._enough() and (self.best is None or not halved):
                    tried = self._try(np.clip(np.round(middle), *box), relaxed.objective)
                    if settled:
                        bound = max(bound, tried)
                    elif not halved:
                        bound = max(bound, self._lagrangian(relaxed, box))
            if settled:
                # What is left of its gap is that of the hours.
                closed = min(closed, bound)
            else:
                for child in _split(box, middle, self._worth(middle)):
                    heapq.heappush(heap, (bound, next(tie), child))
            self.bound = min(closed, heap[0][0] if heap else np.inf, self._cost())
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
            made[period] = counts_of(self.problem, self.built[solved].columns[0], hour.values)
        return made

    def _enough(self) -> float:
        """A node with this bound need not be looked at."""
        return self._cost() * (1 - self.gap)

    def _worth(self, counts: FloatArray) -> FloatArray:
        """USD/hour by which counts are off whole ones."""
        return np.asarray(self.price * np.abs(counts - np.round(counts)))

    def _cost(self) -> float:
        return np.inf if self.best is None else self.best.cost

    def _relaxed(self, box: Box) -> Relaxation | Literal[False] | None:
        """With the mean demand of each group: what all hours' relaxations average to, so not above the optimum."""
        model = self.mean.model
        lower, upper = model.lower.copy(), model.upper.copy()
        lower[self.columns], upper[self.columns] = box
        return relax(replace(model, lower=lower, upper=upper), self.budget.remaining_s)

    def _try(self, counts: FloatArray, scale: float) -> float:
        """All hours with these reserved counts; the bound of their cost, infinite where an hour has no fleet."""
        if tuple(counts) in self.tried:
            return self.tried[tuple(counts)]
        free = np.zeros(counts.size)
        week = self._week(np.arange(self.problem.num_periods), free, (counts, counts), scale)
        fixed = float(self.price @ counts)
        self.tried[tuple(counts)] = np.inf if week is None else fixed + week.bound
        if week is not None and np.isfinite(week.cost) and fixed + week.cost < self._cost():
            self.best = Best(fixed + week.cost, counts, week)
        return self.tried[tuple(counts)]

    def _lagrangian(self, relaxed: Relaxation, box: Box) -> float:
        """The bound of the module docstring; infinite where an hour has no fleet within the box."""
        prices = reserved_prices(self.problem, self.mean, relaxed)
        rest = self.price - prices.sum(axis=0)
        total = float(np.minimum(rest * box[0], rest * box[1]).sum())
        for group, share, price in zip(self.groups, self.group_share, prices, strict=True):
            week = self._week(group, price / share, box, relaxed.objective)
            if week is None:
                return np.inf
            total += week.bound
        return total

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
            return _curve(periods, share, solved)
        tolerance = self.gap / 3 * scale * share[periods].sum()
        solved = {}
        # The busiest first: its fleet serves all others.
        wanted = sorted({0, len(chain) - 1}, reverse=True)
        while wanted:
            for place in wanted:
                hour = self._hour(int(chain[place]), price, box, scale)
                if hour is None:
                    return None
                solved[int(chain[place])] = hour
            wanted = []
            places = [place for place, period in enumerate(chain.tolist()) if period in solved]
            errors = [
                (share[chain[low + 1 : high]].sum() * (solved[chain[high]].cost - solved[chain[low]].bound), low, high)
                for low, high in pairwise(places)
                if high > low + 1
            ]
            if errors and sum(error for error, _, _ in errors) > tolerance and self.budget.stop() is None:
                _, low, high = max(errors)
                wanted = [(low + high) // 2]
        return _curve(chain, share, solved)

    def _hour(self, period: int, price: FloatArray, box: Box, scale: float) -> Hour | None:
        """One hour's MILP; None where it has no fleet."""
        built = self.built[period]
        model, y = built.model, built.columns[0].y[self.reserved]
        cost, lower, upper = model.cost.copy(), model.lower.copy(), model.upper.copy()
        cost[y] = price
        lower[y] = box[0]
        # More than an hour can use is as good as what it can; a given number stays.
        upper[y] = np.maximum(np.minimum(upper[y], box[1]), box[0])
        limit_s = max(0.1, min(HOUR_S, self.budget.remaining_s))
        gap = None if self.options.relative_gap is None else self.gap / 8
        options = replace(self.options, time_limit_s=limit_s, relative_gap=gap)
        # The gap is one of the whole: an hour that costs next to nothing beside what is reserved may be rough.
        changed = replace(model, cost=cost, lower=lower, upper=upper, offset=scale)
        result, values = solver_of(self.solver)(changed, PartBudget(self.budget, limit_s), options)
        self.last = result
        if result.status is Status.INFEASIBLE:
            return None
        found = np.inf if result.objective is None else result.objective - scale
        return Hour(found, 0.0 if result.bound is None else max(0.0, result.bound - scale), values)


def reserved_prices(problem: FleetProblem, built: FleetModel, relaxed: Relaxation) -> FloatArray:
    """What a reserved instance is worth to each period of the model, [periods, R]: duals of the rows that it is in."""
    model = built.model
    period_of_column = np.full(model.num_variables, -1)
    for period, columns in enumerate(built.columns):
        for own in (columns.y[~problem.reserved], columns.z, columns.x):
            period_of_column[own] = period
    period_of_row = np.full(model.row_lower.size, -1)
    known = period_of_column[model.column] >= 0
    period_of_row[model.row[known]] = period_of_column[model.column[known]]
    shared = built.columns[0].y[problem.reserved]
    prices = np.zeros((len(built.columns), shared.size))
    for place, column in enumerate(shared):
        entry = (model.column == column) & (period_of_row[model.row] >= 0)
        row = model.row[entry]
        np.add.at(prices[:, place], period_of_row[row], model.value[entry] * relaxed.duals[row])
    return np.maximum(prices, 0.0)


def levels(problem: FleetProblem) -> list[IntArray]:
    """Periods in groups of like demand: equal steps of the load on the configuration that each bucket fits best."""
    fits = problem.throughput.max(axis=1)
    load = (problem.rate / np.where(fits > 0, fits, 1.0)).sum(axis=1)
    steps = np.linspace(load.min(), load.max(), LEVELS + 1)[1:-1]
    label = np.searchsorted(steps, load)
    return [np.flatnonzero(label == value) for value in np.unique(label)]


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


def _means(problem: FleetProblem, groups: list[IntArray]) -> FleetProblem:
    """Groups as periods, with their mean demands."""
    share = np.array([problem.share[group].sum() for group in groups])
    rate = np.stack([problem.share[group] @ problem.rate[group] for group in groups]) / share[:, None]
    needed = np.stack([problem.needed(period) for period in range(problem.num_periods)])
    mean = np.stack([problem.share[group] @ needed[group] for group in groups]) / share[:, None]
    burst = np.where(rate > 0, mean / np.where(rate > 0, rate, 1.0), np.nan)
    return replace(problem, rate=rate, burst=burst, share=share, hours=tuple((place,) for place in range(len(groups))))


def _curve(order: IntArray, share: FloatArray, solved: dict[int, Hour]) -> Week:
    """Sums over periods in order: each costs at most the next solved one, and at least the last solved one."""
    cost = bound = 0.0
    hours: dict[int, tuple[int, Hour]] = {}
    latest = 0.0
    for period in order.tolist():
        if period in solved:
            latest = solved[period].bound
        bound += share[period] * latest
    place = -1
    for period in order[::-1].tolist():
        if period in solved:
            place = period
        hours[period] = place, solved[place]
        cost += share[period] * solved[place].cost
    return Week(cost, bound, hours)


def _split(box: Box, middle: FloatArray, worth: FloatArray) -> list[Box]:
    """Two halves at the count whose fraction is worth most; where all are whole, at the largest that is not settled."""
    axis = int(np.argmax(np.where(box[0] < box[1], worth + ALIKE * (1 + middle), -1.0)))
    at = min(np.floor(middle[axis] + ALIKE), box[1][axis] - 1)
    low, high = (box[0].copy(), box[1].copy()), (box[0].copy(), box[1].copy())
    low[1][axis], high[0][axis] = at, at + 1
    return [low, high]
