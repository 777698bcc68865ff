"""Demand that may stay unserved: by priority, then cost, then changes; by hand, by brute force, and told wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from fleet_cases import best, counts, demand, fleet, offers, problem, profile, random_problem, run
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linprog

from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.unserved import NO_OFFER
from formulations.gpu_fleet.verdict import judge
from formulations.outcome import Outcome
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan

ALLOWED = {"unserved": "by_priority"}
LONG = {"input_tokens": 4000, "output_tokens": 400}
METHODS = ("highs", "scip", "cbc")


def tiers(outcome: Outcome[FleetPlan]) -> dict[str, float]:
    """Values by goal; each goal of a finished search is proven."""
    assert outcome.plan is not None
    for tier in outcome.plan.tiers:
        assert tier.bound is not None
        assert tier.value - tier.bound <= 1e-5 * max(1.0, tier.value), tier
    return {tier.goal: tier.value for tier in outcome.plan.tiers}


def scarce(**more: Any) -> FleetProblem:
    """Two instances at $2 serve 3/s each: 6 of the 4/s of gold (priority 2) and the 5/s of bronze (0)."""
    return problem(
        offers(a={"price": 2.0, "max_count": 2}),
        [demand(4.0, "gold"), demand(5.0, "bronze")],
        [profile("a", 3.0, "gold"), profile("a", 3.0, "bronze")],
        models=[{"name": "gold", "priority": 2}, {"name": "bronze"}],
        **{**ALLOWED, **more},
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_higher_priority_is_served_first(method: str) -> None:
    """Gold needs 4/3 replicas, so both instances: replicas are whole, none is left for bronze. Cost 4."""
    outcome = run(scarce(), method)
    assert outcome.status == "optimal"
    assert tiers(outcome) == pytest.approx({"unserved, priority 2": 0, "unserved, priority 0": 5, "cost": 4}, abs=1e-5)
    assert outcome.plan is not None
    (row,) = outcome.plan.periods[0].unserved
    assert (row.model, row.priority, row.limits) == ("bronze", 0, ("max_count of a",))
    assert row.fraction == pytest.approx(1)
    assert row.rate_per_s == pytest.approx(5)


def test_a_priority_of_a_demand_goes_before_that_of_its_model() -> None:
    """One instance of 3/s; 2/s short of priority 1 and 2/s long of priority 5: all long, half of the short."""
    asked = [{**demand(2.0), "priority": 1}, demand(2.0, **LONG)]
    served = [profile("a", 3.0), profile("a", 3.0, **LONG)]
    found = offers(a={"price": 1.0, "max_count": 1})
    outcome = run(problem(found, asked, served, models=[{"name": "m", "priority": 5}], **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 5": 0, "unserved, priority 1": 1, "cost": 1}, abs=1e-5)


def test_cost_comes_after_service() -> None:
    """6/s; a is $1 for 1/s, b $2 for 2.5/s. Within 5, two b and an a serve 2 x 2.5 + 1 = 6: all, for 5.

    Within 4, two b serve 5, a b and two a 4.5, four a 4: 1/s stays, and any instance more breaks the budget.
    """
    found, served = offers(a=1.0, b=2.0), {"a": 1.0, "b": 2.5}
    outcome = run(problem(found, 6.0, served, budget_usd_per_hour=5, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 0, "cost": 5}, abs=1e-5)
    outcome = run(problem(found, 6.0, served, budget_usd_per_hour=4, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 1, "cost": 4}, abs=1e-5)
    assert outcome.plan is not None
    assert outcome.plan.periods[0].unserved[0].limits == ("budget_usd_per_hour",)


def test_what_nothing_can_serve_is_left_with_its_reason() -> None:
    served = [profile("a", 1.0), profile("a", 0.0, **LONG)]
    outcome = run(problem(offers(a=1.0), [demand(2.0), demand(3.0, **LONG)], served, **ALLOWED))
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(2)
    assert outcome.plan is not None
    assert [row.limits for row in outcome.plan.periods[0].unserved] == [(NO_OFFER,)]
    assert outcome.objective.measures["unserved_per_s[priority 0]"] == pytest.approx(3)
    # 2 USD an hour for the 2/s that are served.
    assert outcome.objective.measures["usd_per_million_requests"] == pytest.approx(2 / 3600 / 2 * 1e6)


def test_every_limit_in_the_way_is_named() -> None:
    found = offers(
        capped={"price": 1.0, "max_count": 1, "watts": 100},
        dear={"price": 50.0, "watts": 100},
        hot={"price": 1.0, "watts": 5000},
        counted={"price": 1.0, "watts": 100},
    )
    served = dict.fromkeys(("capped", "dear", "hot", "counted"), 1.0)
    limits = {
        "budget_usd_per_hour": 10,
        "max_watts": 1000,
        "quotas": [{"name": "q", "offers": ["counted"], "max_gpus": 2}],
    }
    outcome = run(problem(found, 9.0, served, **limits, **ALLOWED))
    assert outcome.plan is not None
    (row,) = outcome.plan.periods[0].unserved
    assert row.rate_per_s == pytest.approx(6)
    assert set(row.limits) == {"max_count of capped", "budget_usd_per_hour", "max_watts", "quota q"}


def test_changes_come_last() -> None:
    """a and b cost and serve the same: of the fleets of two, the one in force. With 1 change, 1/s of 3 stays."""
    found = offers(a=1.0, b=1.0)
    outcome = run(problem(found, 2.0, {"a": 1.0, "b": 1.0}, current={"b": 2}, **ALLOWED))
    assert outcome.plan is not None
    assert counts(outcome.plan) == {"b": 2}
    assert tiers(outcome)["changes"] == 0
    outcome = run(problem(found, 3.0, {"a": 1.0, "b": 1.0}, current={"b": 1}, max_changes=1, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 1, "cost": 2, "changes": 1}, abs=1e-5)
    assert outcome.plan is not None
    assert outcome.plan.periods[0].unserved[0].limits == ("max_changes",)


def test_hours_are_short_one_by_one() -> None:
    """At most 3/s: of 2, 4, 5/s 0, 1, 2/s stay unserved, 1/s on the mean; cost (2 + 3 + 3) / 3."""
    outcome = run(problem(offers(a={"price": 1.0, "max_count": 3}), [2.0, 4.0, 5.0], {"a": 1.0}, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 1, "cost": 8 / 3}, abs=1e-5)
    assert outcome.plan is not None
    left = {period.hours[0]: sum(row.rate_per_s for row in period.unserved) for period in outcome.plan.periods}
    assert left == pytest.approx({0: 0, 1: 1, 2: 2}, abs=1e-5)


def test_reserved_instances_that_every_hour_pays() -> None:
    """Budget 4 in each hour; reserved $1 and on demand $3, both 1/s. 1/s and 4/s: four reserved serve all for 4."""
    found = offers(fixed={"price": 1.0, "market": "reserved"}, there=3.0)
    served = {"fixed": 1.0, "there": 1.0}
    outcome = run(problem(found, [1.0, 4.0], served, budget_usd_per_hour=4, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 0, "cost": 4}, abs=1e-5)
    outcome = run(problem(found, [1.0, 5.0], served, budget_usd_per_hour=4, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 0.5, "cost": 4}, abs=1e-5)


def test_many_hours_with_reserved_instances_that_serve_all() -> None:
    """As without the option: the search by hours answers, with its bound."""
    rates = [float(rate) for rate in (1, 2, 3, 4, 5, 6, 7, 8)]
    found, served = offers(fixed={"price": 0.6, "market": "reserved"}, there=1.0), {"fixed": 1.0, "there": 1.0}
    plain, allowed = (best(problem(found, rates, served, **more)) for more in ({}, ALLOWED))
    assert allowed == pytest.approx(plain)


def test_what_survives_is_what_was_served() -> None:
    """Three instances of 1/s, one may be lost: 2/s are served, the third stands by."""
    found = offers(a={"price": 1.0, "max_count": 3})
    outcome = run(problem(found, 5.0, {"a": 1.0}, spare_instances=1, **ALLOWED))
    assert tiers(outcome) == pytest.approx({"unserved, priority 0": 3, "cost": 3}, abs=1e-5)


def test_the_share_on_spot_is_of_what_is_served() -> None:
    """Half on spot at most, 2/s on demand at most: 4/s of 10 are served, not 2 + 5."""
    found = offers(there={"price": 2.0, "max_count": 2}, spot={"price": 1.0, "market": "spot"})
    outcome = run(problem(found, 10.0, {"there": 1.0, "spot": 1.0}, max_spot_share=0.5, **ALLOWED))
    assert tiers(outcome)["unserved, priority 0"] == pytest.approx(6)
    assert outcome.plan is not None
    assert outcome.plan.periods[0].unserved[0].limits == ("max_count of there", "max_spot_share")


def test_least_counts_that_contradict_are_infeasible() -> None:
    outcome = run(problem(offers(a={"price": 2.0, "min_count": 3}), 1.0, {"a": 1.0}, budget_usd_per_hour=4, **ALLOWED))
    assert outcome.status == "infeasible"
    assert "min_count: a 3" in outcome.reasons
    assert any("raise budget_usd_per_hour from 4 to 6" in text for text in outcome.relaxations)


def test_methods_that_cannot_leave_demand_refuse() -> None:
    with pytest.raises(OptionError, match="demand that may stay unserved"):
        run(problem(offers(a=1.0), 1.0, {"a": 1.0}, **ALLOWED), "melange-4")


def test_no_time_says_nothing() -> None:
    outcome = run(scarce(), time_limit_s=1e-6)
    assert outcome.status in ("unknown", "feasible")
    assert outcome.bound is None


def served_shares(instance: FleetProblem, replicas: np.ndarray, held: list[float]) -> list[float] | None:
    """Unserved requests/s by priority of some replicas, each least after the last; None where `held` is exceeded."""
    load, rate = instance.load(0), instance.rate[0]
    pairs = [(d, c) for d in range(len(rate)) for c in range(instance.num_configs) if np.isfinite(load[d, c])]
    rows = [[load[d, c] * (c == config) for d, c in pairs] for config in range(instance.num_configs)]
    limits = (instance.availability[instance.config_pool] * replicas).tolist()
    for d in range(len(rate)):
        rows.append([float(b == d) for b, _ in pairs])
        limits.append(1.0)
    reached = []
    for place, priority in enumerate(instance.tiers()):
        own = instance.priority == priority
        total = float(rate[own].sum())
        gain = np.array([rate[d] * own[d] for d, _ in pairs])
        value = total
        if pairs:
            found = linprog(-gain, A_ub=rows, b_ub=limits, bounds=(0, None))
            value = total + float(found.fun)
            rows.append((-gain).tolist())
            limits.append(value - total + 1e-9)
        if place < len(held) and value > held[place] + 1e-7:
            return None
        reached.append(value)
    return reached


def oracle(instance: FleetProblem) -> tuple[list[float], float]:
    """Unserved by priority and cost, by trying all counts of instances and replicas."""
    load = instance.load(0)
    need = np.where(np.isfinite(load), load, 0.0).sum(axis=0) / instance.availability[instance.config_pool]
    most = np.ceil(need).astype(int)
    upper = np.minimum(instance.most, most.sum() + instance.least.max()).astype(int)
    answers = []
    for fleet_counts in product(*(range(int(low), top + 1) for low, top in zip(instance.least, upper, strict=True))):
        count = np.array(fleet_counts)
        price = float(count @ instance.price)
        if price > instance.budget_usd_per_hour + 1e-9 or count @ instance.watts > instance.max_watts + 1e-9:
            continue
        for replicas in product(*(range(top + 1) for top in most.tolist())):
            if all(
                (np.array(replicas)[instance.config_pool == pool] * 1).sum()
                <= count[instance.pool_of_offer == pool].sum()
                for pool in range(len(instance.availability))
            ):
                left = served_shares(instance, np.array(replicas), [])
                assert left is not None
                answers.append(([round(value, 6) for value in left], price))
    return min(answers)


def small_problem(seed: int) -> FleetProblem:
    """Single GPUs of two kinds, two models of two priorities, caps and a budget that are often short."""
    rng = np.random.default_rng(seed)
    rows = offers(
        a={"price": round(float(rng.uniform(0.5, 2)), 2), "max_count": int(rng.integers(0, 3)), "watts": 100},
        b={"price": round(float(rng.uniform(0.5, 2)), 2), "max_count": int(rng.integers(0, 3)), "watts": 300},
    )
    asked = [demand(round(float(rng.uniform(0.1, 2)), 2), name) for name in ("m", "n")]
    asked.append({**demand(round(float(rng.uniform(0.1, 1)), 2), "m", **LONG), "priority": int(rng.integers(0, 3))})
    served = [
        profile(
            offer,
            round(float(rng.uniform(0.3, 1.5)) * (rng.random() < 0.8), 2),
            row["model"],
            **{key: row[key] for key in ("input_tokens", "output_tokens")},
        )
        for offer in ("a", "b")
        for row in asked
    ]
    more: dict[str, Any] = {"budget_usd_per_hour": 3} if rng.random() < 0.5 else {"max_watts": 500}
    return problem(
        rows,
        asked,
        served,
        models=[{"name": "m", "priority": int(rng.integers(0, 2))}, {"name": "n"}],
        **more,
        **ALLOWED,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(16))
def test_every_backend_finds_what_trying_all_finds(seed: int, method: str) -> None:
    instance = small_problem(seed)
    outcome = run(instance, method)
    assert outcome.status == "optimal"
    found = list(tiers(outcome).values())
    left, price = oracle(instance)
    assert found == pytest.approx([*left, price], abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5000))
def test_where_all_can_be_served_nothing_changes(seed: int) -> None:
    """The same cost as without the option; and where not all can be, something is unserved and has a reason."""
    plain, allowed = random_problem(seed), random_problem(seed, **ALLOWED)
    without, outcome = run(plain, "scip"), run(allowed, "scip")
    if without.status == "infeasible":
        if outcome.plan is not None:
            assert any(row.limits for period in outcome.plan.periods for row in period.unserved)
        return
    assert outcome.objective is not None
    assert without.objective is not None
    assert outcome.objective.total == pytest.approx(without.objective.total, rel=1e-6, abs=1e-6)
    assert outcome.plan is not None
    assert not any(period.unserved for period in outcome.plan.periods)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 5000), budget=st.floats(0.5, 6))
def test_a_larger_budget_never_serves_less_of_the_first(seed: int, budget: float) -> None:
    first = []
    for factor in (1.0, 1.5):
        made = random_problem(seed, budget_usd_per_hour=budget * factor, **ALLOWED)
        outcome = run(made, "scip")
        first.append(math.inf if outcome.plan is None else outcome.plan.tiers[0].value)
    assert first[1] <= first[0] + 1e-5


Plain = dict[str, Any]


def forget(plan: Plain) -> None:
    plan["periods"][0]["unserved"] = []


def shrink(plan: Plain) -> None:
    plan["periods"][0]["unserved"][0]["fraction"] *= 0.5


def other_priority(plan: Plain) -> None:
    plan["periods"][0]["unserved"][0]["priority"] = 2


def other_rate(plan: Plain) -> None:
    plan["periods"][0]["unserved"][0]["rate_per_s"] = 1.0


def no_reason(plan: Plain) -> None:
    plan["periods"][0]["unserved"][0]["limits"] = []


def unknown_row(plan: Plain) -> None:
    plan["periods"][0]["unserved"][0]["input_tokens"] = 7


def better_tier(plan: Plain) -> None:
    plan["tiers"][1]["value"] = 0.0


def bound_above(plan: Plain) -> None:
    plan["tiers"][2]["bound"] = 40.0


def unknown_tier(plan: Plain) -> None:
    plan["tiers"][0]["goal"] = "beauty"


MUTATIONS: list[tuple[Callable[[Plain], None], str]] = [
    (forget, "demand"),
    (shrink, "demand"),
    (other_priority, "unserved"),
    (other_rate, "unserved"),
    (no_reason, "unserved"),
    (unknown_row, "assignment"),
    (better_tier, "tiers"),
    (bound_above, "tiers"),
    (unknown_tier, "tiers"),
]


@pytest.mark.parametrize(("mutation", "rule"), MUTATIONS, ids=lambda one: getattr(one, "__name__", one))
def test_what_is_told_wrong_is_found(mutation: Callable[[Plain], None], rule: str) -> None:
    instance = scarce()
    plan = run(instance).plan
    assert plan is not None
    assert judge(instance, plan).metric("unserved_per_s[priority 0]") == pytest.approx(5)
    changed = plan.model_dump(mode="json")
    mutation(changed)
    broken = FleetPlan.model_validate(changed)
    assert rule in {one.rule for one in check(instance, broken)}
    assert not judge(instance, broken).feasible


def test_an_instance_that_asks_for_all_has_none_unserved() -> None:
    plan = run(scarce()).plan
    assert plan is not None
    assert "unserved" in {one.rule for one in check(scarce(unserved="refuse"), plan)}


def test_priorities_are_whole_numbers() -> None:
    with pytest.raises(ValidationError, match="priority"):
        fleet(offers(a=1.0), [{**demand(1.0), "priority": 1.5}], {"a": 1.0})


def test_the_baseline_is_priced_without_what_it_leaves() -> None:
    """It serves everything, and says so."""
    name, plan = GPU_FLEET.baseline(scarce())
    assert plan is not None, name
    assert GPU_FLEET.objective(scarce(), plan).measures["unserved_per_s[priority 2]"] == 0
