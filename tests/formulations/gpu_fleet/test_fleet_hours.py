"""Hours taken apart: the same optimum as all hours in one model, and bounds that hold at any gap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from formulations.base import solve
from formulations.gpu_fleet import search as search_module
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.hours import Hour, HoursSearch, rising
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import Outcome, SolveOptions, Status
from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan

HOURS = 10


def week(seed: int, *, alike: bool, reserved: bool = True, **more: Any) -> FleetProblem:
    """Two buckets on two GPUs in two or three markets; `alike`: both buckets follow one shape."""
    rng = np.random.default_rng(seed)
    shape = rng.uniform(0.2, 3.0, (HOURS, 1 if alike else 2))
    rates = shape * rng.uniform(0.5, 1.5, 2)
    speed = rng.uniform(0.5, 3.0, (2, 2))
    prices = rng.uniform(1.0, 4.0, 2).round(2)
    markets = [("on_demand", 1.0, 1.0), ("spot", 0.4, 0.8)] + [("reserved", 0.6, 1.0)] * reserved
    caps = more.pop("caps", {})
    offers = [
        {"name": f"g{k} {market}", "device": f"g{k}", "market": market, "availability": there,
         "price_usd_per_hour": float(prices[k] * factor), "max_count": caps.get(market)}
        for market, factor, there in markets
        for k in range(2)
    ]  # fmt: skip
    profiles = [
        {"offer": offer["name"], "model": "m", "input_tokens": d + 1, "output_tokens": 1,
         "max_rate_per_s": float(speed[d, int(str(offer["device"])[1])])}
        for offer in offers
        for d in range(2)
    ]  # fmt: skip
    demand = [
        {"model": "m", "input_tokens": d + 1, "output_tokens": 1, "hourly": rates[:, d].tolist()} for d in range(2)
    ]
    described = {"name": "t", "offers": offers, "models": [{"name": "m"}], "demand": demand, "profiles": profiles}
    return read_problem(FleetInstance.model_validate(described | more))


def solved(problem: FleetProblem, gap: float | None = None) -> Outcome[FleetPlan]:
    return solve(GPU_FLEET, problem, SolveOptions(time_limit_s=60, relative_gap=gap))


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Solves with all hours in one model."""

    def run(problem: FleetProblem) -> Outcome[FleetPlan]:
        with monkeypatch.context() as patch:
            patch.setattr(search_module, "MANY_PERIODS", 1000)
            return solved(problem)

    return run


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("reserved", [True, False])
def test_hours_apart_have_the_optimum_of_one_model(seed: int, alike: bool, reserved: bool, together: Any) -> None:
    problem = week(seed, alike=alike, reserved=reserved, max_spot_share=0.5)
    whole, apart = together(problem), solved(problem)
    assert whole.status is Status.OPTIMAL
    assert apart.bound is not None
    assert apart.bound.name.startswith("hours apart")
    assert apart.objective.total == pytest.approx(whole.objective.total)
    assert apart.bound.value == pytest.approx(whole.objective.total, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("gap", [0.01, 0.1, 0.5])
def test_bounds_and_plans_hold_at_any_gap(seed: int, alike: bool, gap: float, together: Any) -> None:
    problem = week(seed, alike=alike)
    best = together(problem).objective.total
    apart = solved(problem, gap)
    assert apart.bound.value <= best * (1 + 1e-6)
    assert apart.objective.total >= best * (1 - 1e-6)
    assert apart.gap <= gap


def test_limits_of_the_hours_are_kept(together: Any) -> None:
    problem = week(1, alike=True, caps={"reserved": 1, "spot": 0, "on_demand": 3})
    whole, apart = together(problem), solved(problem)
    assert apart.objective.total == pytest.approx(whole.objective.total)
    budget = 0.9 * max(period.cost_usd_per_hour for period in apart.plan.periods)
    tight = week(1, alike=True, caps={"reserved": 1, "spot": 0, "on_demand": 3}, budget_usd_per_hour=budget)
    whole, apart = together(tight), solved(tight)
    assert apart.status == whole.status
    if whole.objective is not None:
        assert apart.objective.total == pytest.approx(whole.objective.total)


def test_reserved_instances_reach_to_the_peak_of_like_hours() -> None:
    # Six hours of 30.0 and one of 30.4 are one group, which needs 30 on the mean; one reserved GPU serves 1 a second.
    hourly = [1.0, 10.0, 20.0, *[30.0] * 6, 30.4, 2.0, 3.0]
    demand = [{"model": "m", "input_tokens": 1, "output_tokens": 1, "hourly": hourly}]
    offers = [{"name": "g", "device": "g", "market": "reserved", "price_usd_per_hour": 2.0}]
    profiles = [{"offer": "g", "model": "m", "input_tokens": 1, "output_tokens": 1, "max_rate_per_s": 1.0}]
    described = {"name": "t", "offers": offers, "models": [{"name": "m"}], "demand": demand, "profiles": profiles}
    outcome = solved(read_problem(FleetInstance.model_validate(described)))
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective.total == pytest.approx(62.0)


def test_hours_that_one_fleet_serves_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # One GPU serves 1 a second of both sizes, so one is enough for every hour; shares stay those of the hour.
    hourly = [0.1 * (hour + 1) for hour in range(HOURS)]
    demand = [{"model": "m", "input_tokens": d + 1, "output_tokens": 1, "hourly": [rate / 2 for rate in hourly]}
              for d in range(2)]  # fmt: skip
    profiles = [{"offer": "g", "model": "m", "input_tokens": d + 1, "output_tokens": 1, "max_rate_per_s": 1.0}
                for d in range(2)]  # fmt: skip
    offers = [{"name": "g", "device": "g", "price_usd_per_hour": 2.0}]
    described = {"name": "t", "offers": offers, "models": [{"name": "m"}], "demand": demand, "profiles": profiles}
    solves: list[int] = []
    alone = HoursSearch._hour

    def counted(self: HoursSearch, period: int, *rest: Any) -> Hour | None:
        solves.append(period)
        return alone(self, period, *rest)

    monkeypatch.setattr(HoursSearch, "_hour", counted)
    outcome = solved(read_problem(FleetInstance.model_validate(described)))
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective.total == pytest.approx(2.0)
    assert len(set(solves)) == 2


def test_an_hour_that_nothing_serves_is_proven() -> None:
    outcome = solved(week(0, alike=True, caps={"reserved": 0, "spot": 0, "on_demand": 0}))
    assert outcome.status is Status.INFEASIBLE
    assert outcome.reasons


def test_hours_in_an_order_in_which_no_demand_falls() -> None:
    alike, apart = week(0, alike=True), week(0, alike=False)
    every = np.arange(HOURS)
    order = rising(alike, every)
    assert order is not None
    assert (np.diff(alike.rate[order], axis=0) >= 0).all()
    assert rising(apart, every) is None


def test_a_share_on_spot_needs_sizes_that_grow_alike() -> None:
    hourly = [{"model": "m", "input_tokens": d + 1, "output_tokens": 1, "hourly": rates}
              for d, rates in enumerate(([1.0, 1.5] * 4, [1.0, 3.0] * 4))]  # fmt: skip
    free = week(0, alike=True, demand=hourly)
    limited = week(0, alike=True, demand=hourly, max_spot_share=0.5)
    assert rising(free, np.arange(free.num_periods)) is not None
    assert rising(limited, np.arange(free.num_periods)) is None
