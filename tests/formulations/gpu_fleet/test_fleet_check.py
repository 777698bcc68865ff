"""The independent check: each way to break a plan is found, and has its name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import demand, offers, problem, profile, random_problem, run

from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.verdict import judge
from planner.fleet_plan import FleetPlan

Plain = dict[str, Any]

LONG = {"input_tokens": 4000, "output_tokens": 400}


def rich() -> FleetProblem:
    """Two models, two sizes, two kinds of hours, all markets, a spare and every limit, none of which is in the way."""
    rows = offers(
        fixed={"price": 6.0, "gpus": 4, "market": "reserved", "watts": 1000, "max_count": 3},
        there={"price": 2.0, "watts": 300, "max_count": 20},
        spot={"price": 0.1, "market": "spot", "availability": 0.5, "watts": 300, "max_count": 20},
    )
    served = [
        profile("fixed", 1.0, "n", 1),
        profile("fixed", 2.0, "m", 4, **LONG),
        profile("there", 1.0, "m"),
        profile("there", 1.0, "n"),
        profile("there", 0.0, "m", **LONG),
        profile("spot", 1.0, "m"),
    ]
    asked = [demand([2.0, 3.0], "m"), demand([1.0, 2.0], "m", **LONG), demand([1.5, 1.5], "n")]
    return problem(
        rows,
        asked,
        served,
        headroom=0.1,
        spare_instances=1,
        max_spot_share=0.5,
        budget_usd_per_hour=40,
        max_watts=20000,
        quotas=[{"name": "all", "offers": ["fixed", "there"], "max_gpus": 30}],
        models=[{"name": "m", "min_replicas": 1}, {"name": "n", "min_replicas": 2}],
    )


@pytest.fixture(scope="module")
def made() -> FleetProblem:
    return rich()


@pytest.fixture(scope="module")
def plan(made: FleetProblem) -> FleetPlan:
    found = run(made, "scip").plan
    assert found is not None
    return found


def test_the_plan_is_whole(made: FleetProblem, plan: FleetPlan) -> None:
    """What the mutations below rely on."""
    assert check(made, plan) == []
    assert len(plan.periods) == 2
    assert {row.offer for period in plan.periods for row in period.allocation} == {"fixed", "there", "spot"}
    assert all(period.survival for period in plan.periods)


def drop_share(plan: Plain) -> None:
    plan["periods"][0]["assignment"][0]["fraction"] *= 0.9


def serve_twice(plan: Plain) -> None:
    plan["periods"][0]["assignment"].append(copy.deepcopy(plan["periods"][0]["assignment"][0]))


def drop_replica(plan: Plain) -> None:
    for row in plan["periods"][0]["replicas"]:
        row["count"] -= 1


def no_replicas(plan: Plain) -> None:
    plan["periods"][1]["replicas"] = []


def add_replicas(plan: Plain) -> None:
    plan["periods"][0]["replicas"][0]["count"] += 50


def add_instances(plan: Plain) -> None:
    for row in plan["periods"][0]["allocation"]:
        row["count"] += 50


def drop_instances(plan: Plain) -> None:
    for row in plan["periods"][1]["allocation"]:
        row["count"] -= 1


def reserved_comes_and_goes(plan: Plain) -> None:
    row = next(row for row in plan["periods"][0]["allocation"] if row["offer"] == "fixed")
    row["count"] += 1


def drop_survival(plan: Plain) -> None:
    plan["periods"][0]["survival"].pop()


def survive_with_more(plan: Plain) -> None:
    for row in plan["periods"][0]["survival"][0]["replicas"]:
        row["count"] += 1


def survive_elsewhere(plan: Plain) -> None:
    """Replicas of n on the other device: as many as ran, but elsewhere."""
    row = next(row for row in plan["periods"][0]["survival"][0]["replicas"] if row["model"] == "n")
    row["offer"] = {"fixed": "there", "there": "fixed"}[row["offer"]]


def survive_without_share(plan: Plain) -> None:
    plan["periods"][0]["survival"][0]["assignment"].pop()


def forbidden_configuration(plan: Plain) -> None:
    row = next(row for row in plan["periods"][0]["assignment"] if row["input_tokens"] == 4000)
    row["offer"], row["gpus"] = "there", 1


def unknown_replica_size(plan: Plain) -> None:
    plan["periods"][0]["replicas"][0]["gpus"] = 3


def all_on_spot(plan: Plain) -> None:
    rows = [row for row in plan["periods"][0]["assignment"] if row["model"] == "m" and row["input_tokens"] == 100]
    for row in rows[1:]:
        plan["periods"][0]["assignment"].remove(row)
    rows[0].update(offer="spot", gpus=1, fraction=1.0)


def unknown_size(plan: Plain) -> None:
    plan["periods"][0]["assignment"][0]["input_tokens"] = 7


def unknown_offer(plan: Plain) -> None:
    plan["periods"][0]["allocation"][0]["offer"] = "elsewhere"


def unknown_lost_offer(plan: Plain) -> None:
    plan["periods"][0]["survival"][0]["lost_offer"] = "elsewhere"


def unknown_model(plan: Plain) -> None:
    plan["periods"][0]["survival"][0]["replicas"][0]["model"] = "elsewhere"


def missing_period(plan: Plain) -> None:
    plan["periods"].pop()


def same_period_twice(plan: Plain) -> None:
    plan["periods"][1]["hours"] = plan["periods"][0]["hours"]


def other_hours(plan: Plain) -> None:
    one, two = plan["periods"]
    one["hours"], two["hours"] = [*one["hours"], *two["hours"]], []


def cheaper_period(plan: Plain) -> None:
    plan["periods"][0]["cost_usd_per_hour"] -= 1


def cheaper_plan(plan: Plain) -> None:
    plan["cost_usd_per_hour"] -= 1


def other_summary(plan: Plain) -> None:
    plan["allocation"][0]["count"] += 1


def invented_changes(plan: Plain) -> None:
    plan["changes"] = {"there": 2}


MUTATIONS: list[tuple[Callable[[Plain], None], str]] = [
    (drop_share, "demand"),
    (serve_twice, "demand"),
    (drop_replica, "capacity"),
    (no_replicas, "min_replicas"),
    (add_replicas, "packing"),
    (add_instances, "count"),
    (add_instances, "budget"),
    (add_instances, "watts"),
    (drop_instances, "packing"),
    (reserved_comes_and_goes, "reserved"),
    (drop_survival, "spare_instances"),
    (survive_with_more, "spare_instances"),
    (survive_elsewhere, "spare_instances"),
    (survive_without_share, "demand"),
    (forbidden_configuration, "slo"),
    (unknown_replica_size, "configuration"),
    (all_on_spot, "max_spot_share"),
    (unknown_size, "assignment"),
    (unknown_offer, "offer"),
    (unknown_lost_offer, "offer"),
    (unknown_model, "model"),
    (missing_period, "hours"),
    (same_period_twice, "hours"),
    (other_hours, "hours"),
    (cheaper_period, "cost"),
    (cheaper_plan, "cost"),
    (other_summary, "summary"),
]


@pytest.mark.parametrize(("mutation", "rule"), MUTATIONS, ids=lambda one: getattr(one, "__name__", one))
def test_a_broken_plan_is_found(
    made: FleetProblem, plan: FleetPlan, mutation: Callable[[Plain], None], rule: str
) -> None:
    """And judging it is an answer, not a crash."""
    changed = plan.model_dump(mode="json")
    mutation(changed)
    broken = FleetPlan.model_validate(changed)
    found = check(made, broken)
    assert rule in {one.rule for one in found}, found
    verdict = judge(made, broken)
    assert not verdict.feasible
    assert {one.rule for one in verdict.violations} == {one.rule for one in found}


LIMITS: dict[str, Callable[[FleetProblem], dict[str, Any]]] = {
    "budget": lambda made: {"budget_usd_per_hour": 1.0},
    "watts": lambda made: {"max_watts": 10.0},
    "quota all": lambda made: {"quota_gpus": np.array([1.0])},
    "count": lambda made: {"least": made.least + 15, "most": made.most + 100},
    "min_replicas": lambda made: {"min_replicas": made.min_replicas + 50},
    "capacity": lambda made: {"headroom": 3.0},
    "max_spot_share": lambda made: {"max_spot_share": 0.0},
    "max_changes": lambda made: {"current": np.array([9, 9, 9]), "max_changes": 2},
    "changes": lambda made: {"current": np.array([9, 9, 9])},
    "cost": lambda made: {"price": made.price * 2},
    "slo": lambda made: {"throughput": np.zeros_like(made.throughput)},
}


@pytest.mark.parametrize("rule", LIMITS)
def test_a_plan_for_other_limits_is_found(made: FleetProblem, plan: FleetPlan, rule: str) -> None:
    other = replace(made, **LIMITS[rule](made))
    assert rule in {one.rule for one in check(other, plan)}
    assert not judge(other, plan).feasible


def test_amount_and_limit_are_told(made: FleetProblem, plan: FleetPlan) -> None:
    dearest = max(period.cost_usd_per_hour for period in plan.periods)
    (found,) = [one for one in check(replace(made, budget_usd_per_hour=dearest - 1), plan) if one.rule == "budget"]
    assert found.amount == pytest.approx(dearest)
    assert found.limit == pytest.approx(dearest - 1)


@pytest.mark.parametrize("seed", range(100, 130))
def test_every_dropped_share_replica_and_instance_is_missed(seed: int) -> None:
    """On plans of random instances: no single row can be left out, unless it carried nothing that was needed."""
    instance = random_problem(seed)
    plan = run(instance, "scip").plan
    if plan is None:
        return
    assert check(instance, plan) == []
    for period in range(len(plan.periods)):
        for key, rules in (("assignment", {"demand"}), ("allocation", {"packing", "count", "cost", "reserved"})):
            for index in range(len(plan.periods[period].model_dump()[key])):
                changed = plan.model_dump(mode="json")
                row = changed["periods"][period][key].pop(index)
                if row.get("fraction", 1) < 1e-4 or row.get("count") == 0:
                    continue
                free = key == "allocation" and instance.price[instance.offer_names.index(row["offer"])] == 0
                found = {one.rule for one in check(instance, FleetPlan.model_validate(changed))}
                assert found & rules or free, (key, row)


def test_utilisation_and_watts_by_hand() -> None:
    """3/s on 4 instances of 1/s: 75 % of the capacity, 4 x 300 W; with a fourth of the hours at 1/s: mean 975 W."""
    instance = problem(offers(a={"price": 1.0, "watts": 300}), [3.5, 3.5, 3.5, 1.0], {"a": 1.0})
    plan = run(instance).plan
    assert plan is not None
    verdict = judge(instance, plan)
    assert verdict.feasible
    assert verdict.metric("watts_peak") == pytest.approx(1200)
    assert verdict.metric("watts_mean") == pytest.approx(0.75 * 1200 + 0.25 * 300)
    assert verdict.metric("utilisation[a, m]") == pytest.approx(1.0)
    assert verdict.bottleneck == "m on a: 100.0% of its capacity is used"


def test_watts_that_nobody_knows_are_not_told() -> None:
    instance = problem([{**offers(a=1.0)[0], "device": "my own board"}], 3.5, {"a": 1.0})
    plan = run(instance).plan
    assert plan is not None
    assert [metric.name for metric in judge(instance, plan).metrics] == ["utilisation[a, m]"]
