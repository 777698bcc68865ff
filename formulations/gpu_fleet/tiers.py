"""Goals in order where not everything can be served: unserved demand by priority, then cost, then changes.

    for each priority p, the highest first    minimise  sum_t share[t] sum_{d of p} rate[t, d] u[t, d]
    then                                      minimise  cost, with the price of changes
    then, with a current fleet                minimise  instances added and dropped

Each goal is a solve of the same model, with a row for every earlier goal that holds it at the value reached: the bound
of a goal is one given the earlier ones. The outcome calls the cost optimal, and bounds it, only where all priorities
are proven: else a plan that serves more might cost less.

Where all unserved demand of some periods is 0, u is left out, and what follows is the model of `milp` with its cuts, or
the search by hours. Periods that nothing ties are taken one by one: a sum is least where each part is. Ones that
reserved instances tie are one model: where many of them leave demand unserved, it is large.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from formulations.backends.result import SolverResult
from formulations.gpu_fleet.columns import FleetModel
from formulations.gpu_fleet.explain import explain
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.rows import cost_parts
from formulations.gpu_fleet.search import apart_by_hour, by_hour
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.gpu_fleet.unserved import unserved_per_s
from formulations.outcome import TOLERANCE, Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from planner.fleet_plan import FleetPlan, Tier

#: Share of a priority's requests below which nothing of it is unserved.
NOTHING = 1e-7
#: Slack of a goal that is held, relative: the point that reached it stays feasible.
HELD = 1e-9


@dataclass(frozen=True, slots=True)
class _Goal:
    """A value reached and what is proven of it; None: nothing."""

    value: float
    bound: float | None

    @property
    def closed(self) -> bool:
        """The bound meets the value."""
        return self.bound is not None and self.value - self.bound <= TOLERANCE * max(1.0, abs(self.value))


#: Before anything is found.
UNKNOWN = _Goal(np.inf, None)


@dataclass(slots=True, eq=False)
class _Group:
    """Periods that are solved together: model, last point, and goals; `left` is a share of each priority's demand."""

    periods: tuple[int, ...]
    built: FleetModel
    values: FloatArray | None = None
    left: list[_Goal] = field(default_factory=list)
    cost: _Goal = UNKNOWN
    changes: _Goal | None = None

    @property
    def serves_all(self) -> bool:
        """Nothing is unserved."""
        return not any(goal.value for goal in self.left)


def search_by_tiers(
    problem: FleetProblem, options: SolveOptions, budget: Budget, method: str
) -> SearchResult[FleetPlan]:
    """The best plan by all goals in order; infeasible only where least counts contradict other limits."""
    search = _Search(problem, options, method)
    every = tuple(range(problem.num_periods))
    ways: list[tuple[int, ...]] = [(period,) for period in every] if problem.decoupled else [every]
    groups: list[_Group] = []
    for place, periods in enumerate(ways):
        part = PartBudget(budget, budget.remaining_s / (len(ways) - place))
        group = search.unserved(periods, part)
        if group.values is None:
            return search.nothing(ways, budget)
        if group.serves_all and len(periods) > 1 and apart_by_hour(problem):
            found = by_hour(search.ordinary, options, budget, method)
            if found.plan is not None and found.claimed is not None:
                group.cost = _Goal(found.claimed, None if found.bound is None else found.bound.value)
                return replace(found, plan=search.told(found.plan, [group], group.cost))
        search.rent(group, part)
        groups.append(group)
        budget.report()
    return search.result(groups)


class _Search:
    """The goals of a group of periods, one after the other, and the answer from all groups."""

    def __init__(self, problem: FleetProblem, options: SolveOptions, method: str) -> None:
        self.problem, self.options, self.solve = problem, options, solver_of(method)
        self.ordinary = replace(problem, leave_unserved=False)
        self.priorities = problem.tiers()
        mean = problem.share @ problem.rate
        self.demand = [float(mean[problem.priority == priority].sum()) for priority in self.priorities]
        self.last_goals = 1 + (problem.current is not None)
        self.results: list[SolverResult] = []

    def unserved(self, periods: tuple[int, ...], budget: Budget) -> _Group:
        """All priorities in turn, each held for the next; without values where not even the first has a point."""
        group = _Group(periods, FleetBuilder(self.problem, periods, unserved=True).build())
        for place, demand in enumerate(self.demand):
            columns, rate = self._unserved_columns(group, self.priorities[place])
            model = group.built.model
            cost = np.zeros(model.num_variables)
            cost[columns] = rate / demand
            part = PartBudget(budget, budget.remaining_s / (len(self.demand) - place + self.last_goals))
            bound = self._minimise(group, group.built, cost, part, replace(self.options, relative_gap=None))
            if group.values is None:
                return group
            value = float(cost @ group.values)
            if value < NOTHING:
                value, bound = 0.0, 0.0
                upper = model.upper.copy()
                upper[columns] = 0.0
                model = replace(model, upper=upper)
            else:
                model = model.with_row(columns, rate / demand, value + HELD)
            group.built = replace(group.built, model=model)
            group.left.append(_Goal(value, bound))
        return group

    def rent(self, group: _Group, budget: Budget) -> None:
        """Cost, then changes."""
        part = PartBudget(budget, budget.remaining_s / self.last_goals)
        built = group.built
        if group.serves_all:
            built = FleetBuilder(self.ordinary, group.periods).build()
        if group.serves_all and len(group.periods) == 1 and len(self.ordinary.model_names) > 1:
            plans = ServicePlans(self.ordinary, group.periods[0], built, self.options.relative_gap)
            bound = self._kept(group, built, *plans.solve(self.solve, self.options, part))
        else:
            bound = self._minimise(group, built, built.model.cost, part, self.options)
        assert group.values is not None
        price = group.built.model.cost
        group.cost = _Goal(float(price @ group.values), bound)
        if self.problem.current is not None:
            priced = np.flatnonzero(price)
            model = group.built.model.with_row(priced, price[priced], group.cost.value * (1 + HELD) + HELD)
            changes = np.zeros(model.num_variables)
            changes[group.built.changed] = 1.0
            options = replace(self.options, relative_gap=None)
            bound = self._minimise(group, replace(group.built, model=model), changes, budget, options)
            group.cost = _Goal(float(price @ group.values), group.cost.bound)
            group.changes = _Goal(float(changes @ group.values), bound)

    def nothing(self, ways: list[tuple[int, ...]], budget: Budget) -> SearchResult[FleetPlan]:
        """The answer where some periods have no plan at all."""
        last = self.results[-1]
        reasons: tuple[str, ...] = ()
        relaxations: tuple[str, ...] = ()
        if last.status is Status.INFEASIBLE:
            reasons, relaxations = explain(self.problem, ways, budget)
        return SearchResult(
            status=last.status, stop=last.stop, plan=None, solver=last.solver, solver_version=last.solver_version,
            reasons=reasons, relaxations=relaxations,
        )  # fmt: skip

    def result(self, groups: list[_Group]) -> SearchResult[FleetPlan]:
        """The plan of all groups, and what is proven of its cost."""
        counts: dict[int, Counts] = {}
        for group in groups:
            assert group.values is not None
            for period, columns in zip(group.periods, group.built.columns, strict=True):
                counts[period] = counts_of(self.problem, columns, group.values)
        plan = plan_of(self.problem, counts)
        cost = self._mean(groups, [group.cost for group in groups])
        # Columns of moves and starts are above what is needed where only earlier goals found a point.
        cost = _Goal(min(cost.value, sum(cost_parts(self.problem, plan).values())), cost.bound)
        served = all(goal.closed for group in groups for goal in group.left)
        proven = served and all(group.cost.closed for group in groups)
        stops = [result.stop for result in self.results if result.status is not Status.OPTIMAL]
        last = self.results[-1]
        bound = None
        if served and cost.bound is not None:
            bound = Bound(value=cost.bound, name="branch and bound, unserved demand held")
        return SearchResult(
            status=Status.OPTIMAL if proven else Status.FEASIBLE,
            stop=Stop.PROOF if proven else [*stops, Stop.TIME_LIMIT][0],
            plan=self.told(plan, groups, cost),
            solver=last.solver,
            solver_version=last.solver_version,
            claimed=cost.value,
            bound=bound,
        )

    def told(self, plan: FleetPlan, groups: list[_Group], cost: _Goal) -> FleetPlan:
        """The plan with its goals. What is unserved is read off the plan, where rounding is gone."""
        left = unserved_per_s(self.problem, plan)
        tiers = []
        for place, priority in enumerate(self.priorities):
            bound = self._mean(groups, [group.left[place] for group in groups]).bound
            bound = None if bound is None else bound * self.demand[place]
            tiers.append(_tier(f"unserved, priority {priority}", "requests/s", _Goal(left[priority], bound)))
        tiers.append(_tier("cost", "USD/hour", cost))
        tiers += [_tier("changes", "instances", group.changes) for group in groups if group.changes is not None]
        return plan.model_copy(update={"tiers": tuple(tiers)})

    def _minimise(
        self, group: _Group, built: FleetModel, cost: FloatArray, budget: Budget, options: SolveOptions
    ) -> float | None:
        """A bound of one goal. A point that is found becomes the group's, with its model; else the last one stays."""
        return self._kept(group, built, *self.solve(replace(built.model, cost=cost), budget, options))

    def _kept(self, group: _Group, built: FleetModel, result: SolverResult, values: FloatArray | None) -> float | None:
        self.results.append(result)
        if values is None:
            return None
        group.built, group.values = built, values
        return result.bound

    def _unserved_columns(self, group: _Group, priority: int) -> tuple[IntArray, FloatArray]:
        """Unserved shares of a priority in a group, and the requests/s of its mean that each stands for."""
        share = self.problem.share[list(group.periods)]
        columns, rates = [], []
        for weight, period, one in zip(share / share.sum(), group.periods, group.built.columns, strict=True):
            own = self.problem.priority[one.asked] == priority
            columns.append(one.u[own])
            rates.append(weight * self.problem.rate[period][one.asked[own]])
        return np.concatenate(columns), np.concatenate(rates)

    def _mean(self, groups: list[_Group], goals: list[_Goal]) -> _Goal:
        """Over all periods; the bound is None where one is."""
        weights = [float(self.problem.share[list(group.periods)].sum()) for group in groups]
        bounds = [goal.bound for goal in goals if goal.bound is not None]
        value = float(np.dot(weights, [goal.value for goal in goals]))
        return _Goal(value, float(np.dot(weights, bounds)) if len(bounds) == len(goals) else None)


def _tier(goal: str, unit: str, reached: _Goal) -> Tier:
    bound = None if reached.bound is None else min(reached.bound, reached.value)
    gap = None if bound is None else (reached.value - bound) / max(abs(reached.value), 1e-12)
    return Tier(goal=goal, unit=unit, value=reached.value, bound=bound, gap=gap)
