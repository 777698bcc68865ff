"""Many hours of several models that nothing ties to one another: each by its services, as far as the day asks for.

    cost = sum_t share[t] cost[t],   bound = sum_t share[t] bound[t],   of all hours t

Order   the hour that adds most to the gap of the whole, for a share of the time; each visit counts and asks for half
        as much as the one before. First the busiest: fleets of busy hours serve calm ones.
Plans   a service's plan serves every hour whose rows it keeps, so hours begin with the plans, and the prices, of the
        hours of like load that are solved, and with the cheapest fleet of theirs that serves all.
Bounds  an hour costs no less than another one with no more demand of any size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from formulations.backends.decomposition import Decomposition
from formulations.backends.result import SolverResult
from formulations.gpu_fleet.hour_groups import loads
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.outcome import Budget, PartBudget, SolveOptions, Status

#: Hours of like load that an hour begins with.
NEAREST = 6
#: Seconds of a visit, at least, and its time as a multiple of an equal share of what is left.
LEAST_VISIT_S, AHEAD = 1.0, 3.0
#: Visits of an hour at most; by then it asks for a gap a thousand times as narrow.
MOST_VISITS = 10
#: Visits of an hour before it is solved as a whole where a gap is asked: that takes long for little.
ROUGH_VISITS = 3
#: Gap that counts as none.
CLOSED = 5e-7


@dataclass(slots=True, eq=False)
class Hour:
    """What is known of an hour: cost (infinite without a fleet) and bound in USD/hour, its fleet, visits so far."""

    cost: float = np.inf
    bound: float = 0.0
    values: FloatArray | None = None
    visits: int = 0
    plans: ServicePlans | None = None

    @property
    def open(self) -> bool:
        """Whether its cost is not proven."""
        return not np.isfinite(self.cost) or self.cost - self.bound > CLOSED * self.cost


class DaySearch:
    """`run` ends within the gap, with nothing left to visit or with the budget; `cost` and `bound` are always valid."""

    def __init__(self, problem: FleetProblem, options: SolveOptions, budget: Budget, solver: str) -> None:
        self.problem, self.options, self.budget = problem, options, budget
        self.solve = solver_of(solver, small=True)
        self.gap = max(options.relative_gap or 0.0, CLOSED)
        self.built = [FleetBuilder(problem, (period,)).build() for period in range(problem.num_periods)]
        self.hours = [Hour() for _ in self.built]
        self.needed = np.stack([problem.needed(period) for period in range(problem.num_periods)])
        self.load = loads(problem)
        self.bound_name = "hours apart, each by its services"
        self.last: SolverResult | None = None

    @property
    def cost(self) -> float:
        """Mean of the hours; infinite while one has no fleet."""
        return float(self.problem.share @ [hour.cost for hour in self.hours])

    @property
    def bound(self) -> float:
        """Mean of the hours."""
        return float(self.problem.share @ [hour.bound for hour in self.hours])

    def run(self) -> Status:
        """FEASIBLE or OPTIMAL with a fleet in every hour; INFEASIBLE where it is proven; else UNKNOWN."""
        while (period := self._widest()) is not None and self.budget.stop() is None:
            if not self._visit(period):
                return Status.INFEASIBLE
            self._spread(period)
            self.budget.report(self.cost if np.isfinite(self.cost) else None, self.bound)
        if not np.isfinite(self.cost):
            return Status.UNKNOWN
        return Status.OPTIMAL if self.cost - self.bound <= CLOSED * self.cost else Status.FEASIBLE

    def counts(self) -> dict[int, Counts]:
        """Decisions of every period in the best plan."""
        found = {}
        for period, hour in enumerate(self.hours):
            assert hour.values is not None
            found[period] = counts_of(self.problem, self.built[period].columns[0], hour.values)
        return found

    def _widest(self) -> int | None:
        """The hour that adds most to the gap, of those without a fleet the busiest; None where the gap is reached."""
        if np.isfinite(self.cost) and self.cost - self.bound <= self.gap * self.cost:
            return None
        wide = [
            (share * (hour.cost - hour.bound) / 2**hour.visits, load, period)
            for period, (share, hour, load) in enumerate(zip(self.problem.share, self.hours, self.load, strict=True))
            if hour.visits < MOST_VISITS and hour.open
        ]
        return max(wide)[2] if wide else None

    def _visit(self, period: int) -> bool:
        """A share of the time for one hour; False where it has no fleet."""
        hour, built = self.hours[period], self.built[period]
        near = self._near(period)
        plans = hour.plans = hour.plans or ServicePlans(self.problem, period, built, self.options.relative_gap)
        for other in near:
            plans.parts.take(other.plans)
        prices = next((other.best.prices for other in near if other.priced), None)
        # What is small beside the whole may be rough.
        offset = max(0.0, self.bound - hour.bound)
        gap = None if self.options.relative_gap is None else self.gap / 2**hour.visits
        plans.change(replace(built.model, offset=offset), hour.bound + offset)
        open_hours = sum(one.open for one in self.hours)
        limit_s = max(LEAST_VISIT_S, min(1.0, AHEAD / open_hours) * self.budget.remaining_s)
        part = PartBudget(self.budget, min(limit_s, self.budget.remaining_s))
        seed = self.options.seed + hour.visits
        options = replace(self.options, seed=seed, relative_gap=gap, time_limit_s=max(part.remaining_s, 1e-3))
        rough = gap is not None and hour.visits < ROUGH_VISITS
        result, values = plans.solve(self.solve, options, part, prices, hour.values, rough)
        self.last, hour.visits = result, hour.visits + 1
        if result.status is Status.INFEASIBLE:
            return False
        if values is not None and result.objective is not None and result.objective - offset < hour.cost:
            hour.cost, hour.values = result.objective - offset, values
        if result.bound is not None:
            hour.bound = min(max(hour.bound, result.bound - offset), hour.cost)
        return True

    def _near(self, period: int) -> list[Decomposition]:
        """Visited hours of like load, the most alike first."""
        known = [(abs(self.load[p] - self.load[period]), p) for p, hour in enumerate(self.hours) if hour.plans]
        others = [self.hours[p].plans for _, p in sorted(known) if p != period]
        return [one.parts for one in others[:NEAREST] if one is not None]

    def _spread(self, period: int) -> None:
        """What an hour's fleet and bound say of the others."""
        source = self.hours[period]
        rises = (self.needed >= self.needed[period]).all(axis=1) & (self.problem.rate >= self.problem.rate[period]).all(
            axis=1
        )
        for other, hour in enumerate(self.hours):
            values, model = source.values, self.built[other].model
            if values is not None and source.cost < hour.cost and model.keeps(values):
                hour.cost, hour.values = source.cost, values
            # The share on spot instances is one of what each size asks for.
            if rises[other] and self.problem.max_spot_share == 1.0:
                hour.bound = min(max(hour.bound, source.bound), hour.cost)
