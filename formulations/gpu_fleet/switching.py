"""Hours in order, tied by what it costs to start instances and by limits on starts and stops.

    min  sum_t price/H y[t] + start_cost/H s[t]  + price R,      y[t] in Y[t]: the fleets that serve hour t
    s[t] >= y[t+1] - y[t],   sum_k s <= max_starts,   e[t] >= y[t] - y[t+1],   sum_k e <= max_stops,   reserved use <= R

Bound   rows between the hours are priced (Lagrangian relaxation): every hour is a small MILP of its own at prices
        price/H + lambda[t-1] - lambda[t], which pay for an instance that stays. Any lambda >= 0 that no start undercuts
        gives a bound. The first prices are duals of the linear relaxation of the whole; the next ones those of a master
        problem, convex combinations of the fleets found so far, half way from the best ones (Dantzig-Wolfe, smoothed).
Plan    the cheapest path through the fleets found, hour by hour (dynamic programming): a fleet serves an hour if it has
        all instances of one that was found for it, or for an hour with nowhere less demand. Offered besides: what a few
        hours in a row need together, and rounded counts of the relaxations. Reserved counts are rounded from the
        master's. In a circle the path is tied to the state that two rounds of it settle in.

The gap of the prices stays however long they are searched. What time is left goes to the whole model's branch and
bound, which is strong on a few sizes and hours; the better plan and the better bound are kept.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.backends.relaxation import Relaxation, relax
from formulations.backends.result import SolverResult
from formulations.gpu_fleet.columns import PeriodColumns
from formulations.gpu_fleet.hour_groups import reserved_prices
from formulations.gpu_fleet.hours import ALIKE, CLOSED, HOUR_S
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts
from formulations.gpu_fleet.problem import BoolArray, FleetProblem, FloatArray
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.gpu_fleet.step_prices import Prices, allowed, mean_of_fleets, start_price
from formulations.outcome import Budget, PartBudget, SolveOptions, Status

#: Hours in a row whose needs together are offered as a fleet.
WINDOWS = (2, 4, 8, 24)
#: Gap of one hour's MILP where no gap is asked; its bound counts.
HOUR_GAP = 1e-3
#: Paths that are tried again without fleets that turned out not to serve their hour.
TRIES = 10
#: Rounds of prices before the whole model has its turn.
ROUNDS = 8
#: How far the next prices go from the best ones towards the master's.
STEP = 0.5

Fleet = tuple[int, ...]


class SwitchingSearch:
    """`run` ends within the gap, with the prices settled or with the budget; `cost` and `bound` are what is known."""

    def __init__(self, problem: FleetProblem, options: SolveOptions, budget: Budget, solver: str) -> None:
        self.problem, self.options, self.budget, self.solver = problem, options, budget, solver
        self.gap = max(options.relative_gap or 0.0, CLOSED)
        every = tuple(range(problem.num_periods))
        whole = FleetBuilder(problem, every)
        self.whole = whole.build()
        self.step_rows = whole.step_rows
        # An idle hour may hold what a busy one needs.
        self.built = [FleetBuilder(problem, (period,), most=whole.most).build() for period in every]
        self.most = whole.most
        self.start_price = start_price(problem)
        self.rent = np.where(problem.reserved, 0.0, problem.price) / problem.num_periods
        self.at_least = self._demands()
        self.solved: dict[tuple[int, Fleet], FloatArray] = {}
        self.offered: set[Fleet] = set()
        self.near: set[Fleet] = set()
        self.refused: set[tuple[int, Fleet]] = set()
        self.tried: set[Fleet] = set()
        self.cost, self.bound = np.inf, 0.0
        self.bound_name = "hours apart, switching priced"
        self.best: list[tuple[PeriodColumns, FloatArray]] = []
        self.last: SolverResult | None = None

    def run(self) -> Status:
        """FEASIBLE or OPTIMAL with `best`; INFEASIBLE where an hour or the relaxation has no fleet; else UNKNOWN."""
        relaxed = relax(self.whole.model, self.budget.remaining_s)
        if relaxed is False:
            return Status.INFEASIBLE
        if relaxed is None:
            return Status.UNKNOWN
        self.bound = max(0.0, relaxed.objective)
        best = prices = self._first(relaxed)
        self._round_up(np.stack([relaxed.values[columns.y] for columns in self.whole.columns]))
        reserved = relaxed.values[self.whole.columns[0].y] * self.problem.reserved
        reached = -np.inf
        for _ in range(ROUNDS):
            if self.budget.stop() is not None:
                break
            found = self._round(prices)
            if found is None:
                return Status.INFEASIBLE
            if found > reached:
                best, reached = prices, found
            self.bound = min(max(self.bound, found), self.cost)
            self._plan(reserved, prices)
            self.bound = min(self.bound, self.cost)
            self.budget.report(self.cost if self.best else None, self.bound)
            if self.budget.stop() is not None or self.cost - self.bound <= self.gap * self.cost:
                break
            fleets = self._fleets()
            made = mean_of_fleets(self.problem, self.most, fleets, self._served(fleets), self.budget)
            if made is None or made.objective - self.bound <= CLOSED * made.objective:
                break
            self._round_up(made.counts)
            prices, reserved = best.towards(made.prices, STEP), made.reserved
        if self.budget.stop() is None and not self.cost - self.bound <= self.gap * self.cost:
            status = self._whole()
            if status is Status.INFEASIBLE:
                return status
        if not self.best:
            return Status.UNKNOWN
        return Status.OPTIMAL if self.cost - self.bound <= CLOSED * self.cost else Status.FEASIBLE

    def counts(self) -> dict[int, Counts]:
        """Decisions of every hour in the best plan."""
        return {hour: counts_of(self.problem, *found) for hour, found in enumerate(self.best)}

    def _whole(self) -> Status:
        """All hours in one model, with the time that is left."""
        result, values = solver_of(self.solver)(self.whole.model, self.budget, self.options)
        self.last = result
        if result.objective is not None and values is not None and result.objective < self.cost:
            self.best, self.cost = [(columns, values) for columns in self.whole.columns], result.objective
        if result.bound is not None and result.bound > self.bound:
            self.bound, self.bound_name = min(result.bound, self.cost), "branch and bound of the whole model"
        return result.status

    def _demands(self) -> BoolArray:
        """Whether whatever serves an hour serves another one, [H, H]."""
        problem = self.problem
        needed = np.stack([problem.needed(period) for period in range(problem.num_periods)])
        found: BoolArray = np.all(needed[:, None] >= needed[None], axis=2)
        if problem.max_spot_share < 1.0:
            # The share on spot instances stays only where all sizes grow alike.
            total = problem.rate.sum(axis=1, keepdims=True)
            share = problem.rate / np.where(total > 0, total, 1.0)
            found = found & np.all(np.abs(share[:, None] - share[None]) <= ALIKE, axis=2)
        return found

    def _first(self, relaxed: Relaxation) -> Prices:
        """Duals of the whole model's relaxation."""
        steps, offers = len(self.problem.steps), self.problem.num_offers
        found = {name: np.zeros((steps, offers)) for name in ("starts", "stops")}
        limits = {name: np.zeros(steps) for name in found}
        for (name, step), (rows, limit) in self.step_rows.items():
            found[name][step, ~self.problem.reserved] = relaxed.duals[rows]
            if limit is not None:
                limits[name][step] = -relaxed.duals[limit]
        use = np.zeros((self.problem.num_periods, offers))
        use[:, self.problem.reserved] = reserved_prices(self.problem, self.whole, relaxed)
        return allowed(self.problem, found["starts"], found["stops"], limits["starts"], limits["stops"], use)

    def _round(self, prices: Prices) -> float | None:
        """Every hour at these prices: the bound; -inf where time ran out, None where an hour has no fleet."""
        problem = self.problem
        total = -float(prices.starts.sum()) * (problem.max_starts or 0)
        total -= float(prices.stops.sum()) * (problem.max_stops or 0)
        # Reserved instances that have to be there cost what no hour pays for.
        rest = np.where(problem.reserved, problem.price - prices.use.sum(axis=0), 0.0)
        total += float(rest @ problem.least)
        fleets = []
        for hour, price in enumerate(self._prices(prices)):
            if self.budget.stop() is not None:
                return -np.inf
            found = self._hour(hour, price, None)
            if found is None:
                return None
            bound, fleet = found
            total += bound
            if fleet is not None:
                fleets.append(fleet)
        if len(fleets) == problem.num_periods:
            self._offer(np.array(fleets))
        return total

    def _prices(self, prices: Prices) -> FloatArray:
        """Of one instance of each offer in each hour, [H, K]."""
        price = self.rent[None] + prices.use
        for step, (before, after) in enumerate(self.problem.steps):
            price[after] += prices.start[step] - prices.stop[step]
            price[before] += prices.stop[step] - prices.start[step]
        return price

    def _hour(self, hour: int, price: FloatArray, fixed: FloatArray | None) -> tuple[float, Fleet | None] | None:
        """One hour's MILP: bound and fleet; None where it has none. fixed : counts, NaN where they are free, [K]."""
        built = self.built[hour]
        model, y = built.model, built.columns[0].y
        cost, lower, upper = model.cost.copy(), model.lower.copy(), model.upper.copy()
        cost[y] = price
        if fixed is not None:
            given = ~np.isnan(fixed)
            lower[y[given]] = upper[y[given]] = fixed[given]
        limit_s = max(0.1, min(HOUR_S, self.budget.remaining_s))
        gap = HOUR_GAP if self.options.relative_gap is None else min(HOUR_GAP, self.gap / 8)
        options = replace(self.options, time_limit_s=limit_s, relative_gap=gap)
        changed = replace(model, cost=cost, lower=lower, upper=upper)
        result, values = solver_of(self.solver)(changed, PartBudget(self.budget, limit_s), options)
        self.last = result
        if result.status is Status.INFEASIBLE:
            return None
        fleet = None
        if values is not None:
            fleet = tuple(np.round(values[y]).astype(int).tolist())
            self.solved[hour, fleet] = values
        worst = float(np.minimum(price * lower[y], price * upper[y]).sum())
        return worst if result.bound is None else max(worst, result.bound), fleet

    def _offer(self, fleets: FloatArray) -> None:
        """What hours in a row need together, within the limits on instances."""
        problem, hours = self.problem, len(fleets)
        self.offered.clear()
        for length in {min(length, hours) for length in (*WINDOWS, hours)}:
            for first in range(hours - length + 1):
                fleet = fleets[first : first + length].max(axis=0)
                within = fleet @ problem.price <= problem.budget_usd_per_hour
                if problem.draw is None and np.isfinite(problem.max_watts):
                    within &= fleet @ problem.watts <= problem.max_watts
                if within and (problem.quota_offers @ (fleet * problem.gpus) <= problem.quota_gpus).all():
                    self.offered.add(tuple(fleet.astype(int).tolist()))

    def _round_up(self, counts: FloatArray) -> None:
        """Steps between the fleets found, which limits on starts and stops need: a relaxation's counts, rounded."""
        for rounded in (np.ceil(counts - ALIKE), np.round(counts)):
            self.near |= {tuple(fleet) for fleet in rounded.astype(int).tolist()}

    def _served(self, fleets: FloatArray) -> BoolArray:
        """Whether each fleet serves each hour, [H, fleets]; at least as many instances serve no less."""
        place = {tuple(fleet): index for index, fleet in enumerate(fleets.astype(int).tolist())}
        base = np.zeros((self.problem.num_periods, len(fleets)))
        for hour, fleet in self.solved:
            if fleet in place:
                base[self.at_least[hour], place[fleet]] = 1.0
        more = (fleets[:, None] >= fleets[None]).all(axis=2)
        served: BoolArray = base @ more.T.astype(float) > 0
        for hour, fleet in self.refused:
            if fleet in place:
                served[hour, place[fleet]] = False
        return served

    def _fleets(self) -> FloatArray:
        found = {fleet for _, fleet in self.solved} | self.offered | self.near
        return np.array(sorted(found), dtype=np.float64)

    def _plan(self, reserved: FloatArray, prices: Prices) -> None:
        """The cheapest path with reserved counts near to these."""
        for counts in _roundings(reserved, self.problem.reserved):
            counts = np.clip(counts, self.problem.least * self.problem.reserved, self.most)
            if self.problem.reserved.any() and tuple(counts) not in self.tried:
                # Fleets that make use of just these.
                self.tried.add(tuple(counts))
                fixed = np.where(self.problem.reserved, counts, np.nan)
                for hour, price in enumerate(self._prices(prices)):
                    if self.budget.stop() is not None or self._hour(hour, price, fixed) is None:
                        break
            for _ in range(TRIES):
                path = self._path(counts)
                if path is None or self._follow(path):
                    break

    def _path(self, reserved: FloatArray) -> FloatArray | None:
        """Fleets of the hours, [H, K], cheaper than the best plan; None where there are none."""
        problem, fleets = self.problem, self._fleets()
        kept = (fleets[:, problem.reserved] <= reserved[problem.reserved]).all(axis=1)
        fleets = np.unique(np.where(problem.reserved, reserved, fleets[kept]), axis=0)
        if not len(fleets):
            return None
        served = self._served_with(fleets)
        rent = fleets @ self.rent
        change, starts = np.zeros((2, len(fleets), len(fleets)))
        for counts, price in zip(fleets.T, self.start_price, strict=True):
            more = np.maximum(counts[None] - counts[:, None], 0.0)
            change, starts = change + price * more, starts + more
        for most, moved in ((problem.max_starts, starts), (problem.max_stops, starts.T)):
            if most is not None:
                change = np.where(moved <= most, change, np.inf)
        hourly = np.where(served, rent, np.inf)
        free = np.zeros(len(fleets))
        order = _shortest(hourly, change, free, free)
        if order is not None and problem.cyclic:
            twice = _shortest(np.vstack([hourly, hourly]), change, free, free)
            settled = order[0] if twice is None else twice[len(hourly)]
            begin = np.where(np.arange(len(fleets)) == settled, 0.0, np.inf)
            order = _shortest(hourly, change, begin, change[:, settled])
        if order is None:
            return None
        path = np.asarray(fleets[order])
        return path if self._worth(path) < self.cost * (1 - ALIKE) else None

    def _served_with(self, fleets: FloatArray) -> BoolArray:
        """As `_served`, where fleets that use less than what is reserved count as well."""
        every = self._fleets()
        return self._served(np.vstack([every, fleets]))[:, len(every) :]

    def _worth(self, path: FloatArray) -> float:
        problem = self.problem
        started = sum(np.maximum(path[after] - path[before], 0.0) for before, after in problem.steps)
        kept = float(path[0] @ np.where(problem.reserved, problem.price, 0.0))
        return kept + float(path.sum(axis=0) @ self.rent) + float(np.dot(self.start_price, started))

    def _follow(self, path: FloatArray) -> bool:
        """Make the path the best plan; False where a fleet does not serve its hour."""
        values = []
        for hour, fleet in enumerate(path):
            key = hour, tuple(fleet.astype(int).tolist())
            if key not in self.solved:
                self._hour(hour, self.rent, fleet)
            if key not in self.solved:
                self.refused.add(key)
                return False
            values.append((self.built[hour].columns[0], self.solved[key]))
        self.best, self.cost = values, self._worth(path)
        return True


def _roundings(counts: FloatArray, reserved: BoolArray) -> list[FloatArray]:
    """Nearest whole counts, and all up; one of each."""
    whole = np.where(reserved, np.round(counts), 0.0)
    up = np.where(reserved, np.ceil(counts - ALIKE), 0.0)
    return [whole] if (whole == up).all() else [whole, up]


def _shortest(hourly: FloatArray, change: FloatArray, begin: FloatArray, end: FloatArray) -> list[int] | None:
    """The cheapest way through states: hourly [H, states], change [from, to], begin and end [states]."""
    worth, chosen = hourly[0] + begin, []
    for cost in hourly[1:]:
        ways = worth[:, None] + change
        chosen.append(ways.argmin(axis=0))
        worth = ways.min(axis=0) + cost
    worth = worth + end
    if not np.isfinite(worth.min()):
        return None
    order = [int(worth.argmin())]
    for came in chosen[::-1]:
        order.append(int(came[order[-1]]))
    return order[::-1]
