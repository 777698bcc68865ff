"""Start costs and limits on starts and stops: by hand, by trying all counts of all hours, and hours apart."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from fleet_cases import _keeps_limits, _serves, best, counts, demand, fleet, offers, problem, profile, run
from pydantic import ValidationError

from formulations.gpu_fleet import search as search_module
from formulations.gpu_fleet import switching as switching_module
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.insight import binding
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Status, Stop
from planner.fleet_plan import FleetPlan


def swings(rates: list[float], start: float = 0.0, **more: Any) -> FleetProblem:
    """One offer of $1 for one request a second."""
    return problem(offers(a={"price": 1.0, "start_cost_usd": start}), rates, {"a": 1.0}, **more)


def hourly(plan: FleetPlan) -> list[int]:
    """Instances of every hour, in order."""
    found = {period.hours[0]: sum(row.count for row in period.allocation) for period in plan.periods}
    return [found[hour] for hour in sorted(found)]


def worth(made: FleetProblem) -> float:
    """What the plan costs: hours apart find it, and need not prove it."""
    outcome = run(made)
    assert outcome.objective is not None
    return outcome.objective.total


@pytest.fixture(params=["whole", "apart"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All hours in one model, and hours apart, whatever their number."""
    monkeypatch.setattr(search_module, "MANY_PERIODS", 0 if request.param == "apart" else 1000)
    return str(request.param)


def test_a_cheap_start_follows_the_demand(way: str) -> None:
    """3, 1, 3, 1: rent 8 in 4 hours, 2 starts of $0.5: 2 + 0.25. Kept on instead: 2 more instance-hours, 0.5."""
    outcome = run(swings([3.0, 1.0, 3.0, 1.0], 0.5))
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(2.25)
    assert outcome.objective.parts == pytest.approx({"rent_usd_per_hour": 2.0, "start_usd_per_hour": 0.25})
    assert outcome.plan is not None
    assert hourly(outcome.plan) == [3, 1, 3, 1]
    assert outcome.plan.cost_usd_per_hour == pytest.approx(2.0)


def test_a_dear_start_keeps_instances_on(way: str) -> None:
    """At $1.5 two starts cost 3, two more instance-hours 2: (8 + 2) / 4. In a circle all hours keep three: 3."""
    made = run(swings([3.0, 1.0, 3.0, 1.0], 1.5))
    assert made.objective is not None
    assert made.objective.total == pytest.approx(2.5)
    assert made.plan is not None
    assert hourly(made.plan) == [3, 3, 3, 1]
    circle = run(swings([3.0, 1.0, 3.0, 1.0], 1.5, cyclic=True))
    assert circle.objective is not None
    assert circle.objective.total == pytest.approx(3.0)


def test_limits_on_starts_and_stops(way: str) -> None:
    """1, 3, 1 with one start an hour: 2, 3, 1. With one stop: 1, 3, 2. In a circle with one start: 2, 3, 1 or more."""
    assert worth(swings([1.0, 3.0, 1.0], max_starts=1)) == pytest.approx(2.0)
    assert worth(swings([1.0, 3.0, 1.0], max_stops=1)) == pytest.approx(2.0)
    assert worth(swings([1.0, 3.0, 1.0], max_stops=0)) == pytest.approx(7 / 3)
    assert worth(swings([1.0, 3.0, 1.0], max_starts=1, cyclic=True)) == pytest.approx(2.0)
    assert worth(swings([1.0, 4.0, 1.0], max_starts=1, cyclic=True)) == pytest.approx(3.0)


def test_equal_hours_stay_apart_where_order_matters() -> None:
    """1, 1, 3 with one start an hour: 1, 2, 3; merged hours of 1 would both be 2."""
    made = swings([1.0, 1.0, 3.0], max_starts=1)
    assert made.num_periods == 3
    assert best(made) == pytest.approx(2.0)
    assert swings([1.0, 1.0, 3.0]).num_periods == 2


def ordered(seed: int) -> FleetProblem:
    """Three or four hours, two sizes, two or three offers of one or two markets, some limits."""
    rng = np.random.default_rng(seed)
    hours = int(rng.integers(3, 5))
    rows = offers(
        a={"price": 1.0, "start_cost_usd": float(rng.choice([0.0, 0.4, 2.0])), "max_count": 4},
        b={"price": 1.7, "start_cost_usd": float(rng.choice([0.0, 0.4, 2.0])), "max_count": 3},
    )
    if seed % 3 == 0:
        rows += offers(r={"price": 0.8, "market": "reserved", "max_count": 2})
    size = {"input_tokens": 7}
    first, second = rng.uniform(0, 2, (2, hours)).round(2).tolist()
    asked = [demand(first), demand(second, **size)]
    served = [profile(row["name"], float(rng.uniform(0.7, 1.5)), **more) for row in rows for more in ({}, size)]
    served += [profile("b", 0.0, input_tokens=9), profile("a", 1.0, input_tokens=9)]
    limits: dict[str, Any] = {"cyclic": bool(rng.random() < 0.5), "max_starts": int(rng.integers(0, 4))}
    if rng.random() < 0.4:
        limits["max_stops"] = int(rng.integers(0, 3))
    if rng.random() < 0.4:
        limits["budget_usd_per_hour"] = float(rng.uniform(3, 6))
    if rng.random() < 0.3:
        limits["spare_instances"] = 1
    return problem(rows, asked, served, **limits)


def truth(made: FleetProblem) -> float:
    """The cheapest of all fleets of all hours: all fleets of an hour, and the cheapest way to each from each first."""
    every = np.array(list(product(*(range(int(most) + 1) for most in made.most))))
    kept = np.array([one for one in every if _keeps_limits(made, one)])
    served = np.array([[_serves(made, hour, one) for one in kept] for hour in range(made.num_periods)])
    more = np.maximum(kept[None] - kept[:, None], 0)
    assert made.start_cost is not None
    change = more @ made.start_cost
    same = (kept[None, :, made.reserved] == kept[:, None, made.reserved]).all(axis=2)
    allowed = same & (more.sum(axis=2) <= (99 if made.max_starts is None else made.max_starts))
    allowed &= (99 if made.max_stops is None else made.max_stops) >= more.sum(axis=2).T
    change = np.where(allowed, change, np.inf)
    rent = np.where(served, kept @ made.price, np.inf)
    cheapest = math.inf
    for first in np.flatnonzero(served[0]):
        worth = np.where(np.arange(len(kept)) == first, rent[0], np.inf)
        for hour in rent[1:]:
            worth = (worth[:, None] + change).min(axis=0) + hour
        cheapest = min(cheapest, float((worth + change[:, first] if made.cyclic else worth).min()))
    return cheapest / made.num_periods


SEEDS = [seed for seed in range(12) if seed % 3 == 1] + [0, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_plans_and_bounds_enclose_what_trying_everything_finds(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ordered(seed)
    known = truth(made)
    for method in ("highs", "scip"):
        whole = run(made, method)
        if math.isinf(known):
            assert whole.status is Status.INFEASIBLE
        else:
            assert whole.objective is not None
            assert whole.objective.total == pytest.approx(known)
    monkeypatch.setattr(search_module, "MANY_PERIODS", 0)
    apart = run(made)
    if apart.objective is not None:
        assert apart.objective.total >= known - 1e-6
    if apart.bound is not None:
        assert apart.bound.value <= known + 1e-6
    if apart.status is Status.INFEASIBLE:
        assert math.isinf(known)


def day(**more: Any) -> FleetProblem:
    hours = 2 * np.arange(12)
    first = (6 + 5 * np.sin(hours / 24 * 2 * np.pi)).round(2)
    second = (3 + 2 * np.sin((hours - 8) / 24 * 2 * np.pi)).round(2)
    rows = offers(
        a={"price": 1.0, "start_cost_usd": 0.5}, b={"price": 2.9, "start_cost_usd": 1.2},
        c={"price": 0.7, "market": "reserved"},
    )  # fmt: skip
    served = [profile(name, rate, input_tokens=size) for name, size, rate in (
        ("a", 100, 1.0), ("b", 100, 3.3), ("c", 100, 1.0), ("a", 7, 0.6), ("b", 7, 2.4), ("c", 7, 0.6))]  # fmt: skip
    return problem(rows, [demand(first.tolist()), demand(second.tolist(), input_tokens=7)], served, **more)


@pytest.mark.parametrize("limits", [{}, {"max_starts": 1, "cyclic": True}, {"max_stops": 1, "spare_instances": 1}])
def test_a_day_within_a_small_gap(limits: dict[str, Any]) -> None:
    made = day(**limits)
    outcome = run(made, relative_gap=0.06)
    assert outcome.gap is not None
    assert outcome.gap <= 0.06
    assert outcome.plan is not None
    assert check(made, outcome.plan) == []


def test_priced_hours_enclose_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the whole model's help: what the prices alone prove and what the path costs."""
    made = day(cyclic=True)
    monkeypatch.setattr(search_module, "MANY_PERIODS", 1000)
    whole = run(made, relative_gap=0.01)
    monkeypatch.setattr(search_module, "MANY_PERIODS", 0)
    monkeypatch.setattr(switching_module, "ROUNDS", 3)
    monkeypatch.setattr(switching_module.SwitchingSearch, "_whole", lambda self: Status.UNKNOWN)
    apart = run(made)
    assert apart.bound is not None
    assert apart.bound.name == "hours apart, switching priced"
    assert apart.objective is not None
    assert whole.objective is not None
    assert whole.bound is not None
    assert apart.bound.value <= whole.objective.total
    assert apart.objective.total >= whole.bound.value
    assert apart.gap is not None
    assert apart.gap <= 0.1


def test_a_short_time_is_an_answer() -> None:
    outcome = run(day(), time_limit_s=0.02)
    assert outcome.status in (Status.UNKNOWN, Status.FEASIBLE)
    assert outcome.stop is Stop.TIME_LIMIT


def test_broken_plans_are_found() -> None:
    """A plan that swings by 2 under limits of 1; periods may be told in any order."""
    free = swings([1.0, 3.0, 1.0], 0.1)
    plan = run(free).plan
    assert plan is not None
    turned = plan.model_copy(update={"periods": plan.periods[::-1]})
    for told in (plan, turned):
        assert {one.rule for one in check(replace(free, max_starts=1), told)} == {"max_starts"}
        (found,) = check(replace(free, max_stops=1), told)
        assert found.rule == "max_stops"
        assert (found.amount, found.limit) == (2.0, 1.0)
        assert found.message == "2 instances are stopped before hour 2, 1 are allowed"
        assert GPU_FLEET.objective(free, told).parts["start_usd_per_hour"] == pytest.approx(0.2 / 3)
        assert {limit.name for limit in binding(replace(free, max_starts=2), told)} == {"max_starts"}


@pytest.mark.usefixtures("way")
def test_too_few_starts_are_explained() -> None:
    """5 a, then 5 b, within $5: all five must be started at once; 3 are allowed."""
    rows = [demand([5.0, 0.0]), demand([0.0, 5.0], input_tokens=7)]
    served = [profile("a", 1.0), profile("b", 1.0, input_tokens=7)]
    made = problem(offers(a=1.0, b=1.0), rows, served, budget_usd_per_hour=5, max_starts=3)
    outcome = run(made)
    assert outcome.status is Status.INFEASIBLE
    assert "max_starts 3" in outcome.reasons
    assert "raise max_starts from 3 to 5" in outcome.relaxations


def test_bad_instances_are_refused() -> None:
    with pytest.raises(ValidationError, match="are of hours"):
        fleet(offers(a=1.0), 1.0, {"a": 1.0}, max_starts=1)
    with pytest.raises(ValidationError, match="none is started"):
        fleet(offers(a={"price": 1.0, "market": "reserved", "start_cost_usd": 1.0}), [1.0, 2.0], {"a": 1.0})
    with pytest.raises(ValidationError):
        fleet(offers(a={"price": 1.0, "start_cost_usd": -1.0}), [1.0, 2.0], {"a": 1.0})


def test_free_starts_change_nothing() -> None:
    rates = [1.5, 0.2, 3.7, 2.2]
    made = swings(rates, max_starts=100)
    outcome = run(made)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(best(swings(rates)))
    assert counts(outcome.plan, 2) == {"a": 4}
