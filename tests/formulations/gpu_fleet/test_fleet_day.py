"""Hours of several models: the mean of each hour's optimum where it is proven, bounds below it and fleets above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fleet_cases import run
from test_service_plans import alone, least, shared

from formulations.backends.linear import LinearBuilder, solve_linear_mathopt
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.day import DaySearch
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import solver_of
from formulations.outcome import Budget, SolveOptions, Status


def day(seed: int, shares: FloatArray) -> FleetProblem:
    """The instance of `shared` as a day; shares : of its demand, [hours, 1] or [hours, buckets]."""
    problem = shared(seed)
    # Periods of one to three hours.
    length = 1 + np.arange(len(shares)) % 3
    last = np.cumsum(length)
    hours = tuple(tuple(range(end - size, end)) for end, size in zip(last.tolist(), length.tolist(), strict=True))
    share = length / last[-1]
    return replace(problem, rate=problem.rate * shares, burst=None, share=share, hours=hours)


def uneven(seed: int) -> FleetProblem:
    """Eight hours, none of which asks for more of everything than all others."""
    return day(seed, np.random.default_rng(seed).uniform(0.2, 1.0, (8, 6)))


def optimum(problem: FleetProblem) -> float:
    """By the compact model of each hour."""
    costs = [least(FleetBuilder(problem, (period,)).build()) for period in range(problem.num_periods)]
    return float(problem.share @ costs)


@pytest.mark.parametrize("seed", range(2))
def test_the_optimum_of_every_hour(seed: int) -> None:
    problem = uneven(seed)
    outcome = run(problem)
    assert (outcome.status, outcome.stop) == ("optimal", "proof")
    assert outcome.objective is not None
    assert outcome.plan is not None
    assert outcome.objective.total == pytest.approx(optimum(problem), rel=1e-6)
    assert check(problem, outcome.plan) == []


@pytest.mark.parametrize("gap", [0.02, 0.2])
def test_a_gap_of_the_day(gap: float) -> None:
    problem = uneven(2)
    best, outcome = optimum(problem), run(problem, relative_gap=gap)
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.gap is not None
    assert outcome.gap <= gap
    assert outcome.bound.value <= best * (1 + 1e-6)
    assert best * (1 - 1e-6) <= outcome.objective.total <= best * (1 + gap) * (1 + 1e-6)


def test_bounds_and_fleets_are_valid_after_every_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = uneven(3)
    best = [least(FleetBuilder(problem, (period,)).build()) for period in range(problem.num_periods)]
    search = DaySearch(problem, SolveOptions(relative_gap=0.01), Budget(60), "highs")
    spread, seen = DaySearch._spread, []

    def watched(self: DaySearch, period: int) -> None:
        spread(self, period)
        seen.append(period)
        for hour, cost, built in zip(self.hours, best, self.built, strict=True):
            assert hour.bound <= cost * (1 + 1e-6)
            assert hour.cost >= cost * (1 - 1e-6)
            assert hour.values is None or built.model.keeps(hour.values)

    monkeypatch.setattr(DaySearch, "_spread", watched)
    assert search.run() in (Status.OPTIMAL, Status.FEASIBLE)
    assert len(set(seen)) > 1


def test_like_hours_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fleet of one is that of all, and so is its bound."""
    visited = []
    visit = DaySearch._visit

    def counted(self: DaySearch, period: int) -> bool:
        visited.append(period)
        return visit(self, period)

    monkeypatch.setattr(DaySearch, "_visit", counted)
    problem = day(0, np.ones((8, 1)))
    outcome = run(problem)
    assert outcome.status == "optimal"
    assert len(visited) == 1


def test_an_hour_that_cannot_be_served() -> None:
    shares = np.full((8, 1), 0.1)
    shares[5] = 1.0
    outcome = run(replace(day(0, shares), budget_usd_per_hour=3.0))
    assert outcome.status == "infeasible"
    assert any("budget" in reason for reason in outcome.reasons)


def test_no_time() -> None:
    search = DaySearch(uneven(0), SolveOptions(), Budget(1e-9), "highs")
    assert search.run() is Status.UNKNOWN
    assert (search.cost, search.bound) == (np.inf, 0.0)


def test_plans_of_a_busy_hour_serve_a_calm_one_and_not_the_other_way() -> None:
    problem = day(1, np.array([[1.0], [0.9]]))
    busy, calm = (
        ServicePlans(problem, period, FleetBuilder(problem, (period,)).build(), None).parts for period in (0, 1)
    )
    plans = {}
    for parts in (busy, calm):
        relaxed = -np.ones(parts.coupling.size)
        assert parts._price(parts._signed(relaxed), Budget(60)) is not None
        plans[parts] = list(parts.plans)
    busy.take(plans[calm])
    assert len(busy.plans) == len(plans[busy])
    calm.take(plans[busy])
    assert {plan.key for plan in plans[busy]} <= {plan.key for plan in calm.plans}


@pytest.mark.parametrize("free", [[0], [0, 2], [0, 1, 2]])
def test_free_services_among_the_plans_of_others(free: list[int]) -> None:
    """From a fleet to one no dearer; with all services free, the model itself and its optimum."""
    problem = shared(3)
    built = alone(problem)
    parts = ServicePlans(problem, 0, built, None).parts
    parts._price(parts._signed(-np.ones(parts.coupling.size)), Budget(60))
    options = SolveOptions(relative_gap=0.0)
    first = parts.combined(options, Budget(60))
    assert first is not None
    better = parts.combined(options, Budget(60), np.array(free), first)
    assert better is not None
    assert built.model.keeps(better)
    before, after, best = built.model.cost @ first, built.model.cost @ better, least(built)
    assert best * (1 - 1e-6) <= after <= before * (1 + 1e-6)
    if len(free) == len(parts.blocks):
        assert after == pytest.approx(best)


def test_a_start_is_a_solution_of_the_master() -> None:
    problem = shared(1)
    plans = ServicePlans(problem, 0, alone(problem), None)
    _, values = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    assert values is not None
    plans.parts.know(values)
    for free in ([], [1]):
        master = plans.parts._master(True, np.array(free, dtype=np.int64))
        assert master.model.keeps(plans.parts._shares(master, values))


def test_what_keeps_a_model() -> None:
    """x + y <= 3 with x whole: (1, 1.5) does, (2, 1.5) breaks the row, (1.5, 1) is half, the rest has no such size."""
    builder = LinearBuilder()
    columns = [int(builder.variables((1,), upper=5.0, integer=whole)[0]) for whole in (True, False)]
    builder.sparse_rows([-np.inf], 3.0, ([0, 0], columns, 1.0))
    model = builder.build()
    given = ([1, 1.5], [2, 1.5], [1.5, 1], [-1, 0], [1], [1, 1, 1])
    assert [model.keeps(np.array(values, dtype=float)) for values in given] == [True, *[False] * 5]
    assert solve_linear_mathopt(model, Budget(9), SolveOptions())[1] is not None
