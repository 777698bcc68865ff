"""The loss of a zone: by hand, by trying all counts, and each way to break such a plan."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from fleet_cases import brute_force, cost, counts, demand, fleet, offers, problem, profile, random_problem, run
from pydantic import ValidationError

from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.insight import binding
from formulations.gpu_fleet.problem import FleetProblem
from planner.fleet_plan import FleetPlan


def two_zones(**more: Any) -> list[dict[str, Any]]:
    """One kind of instance in two zones."""
    return offers(a={"price": 1.0, "zone": "east"}, b={"price": 1.2, "zone": "west", **more})


def test_a_zone_more_than_doubles_a_fleet_of_two_zones() -> None:
    """4/s at one a second: 4 a. With either zone lost the other serves all: 4 a + 4 b = 4 + 4.8."""
    assert cost(two_zones(), 4.0, {"a": 1.0, "b": 1.0}) == pytest.approx(4.0)
    assert cost(two_zones(), 4.0, {"a": 1.0, "b": 1.0}, spare_zones=1) == pytest.approx(8.8)


def test_three_zones_need_half_more() -> None:
    """4/s over three zones of $1: any two have 4, so 2 in each: 6. The loss of one instance alone needs 5."""
    rows = offers(**{name: {"price": 1.0, "region": name} for name in "abc"})
    served = dict.fromkeys("abc", 1.0)
    assert cost(rows, 4.0, served, spare_zones=1) == pytest.approx(6.0)
    assert cost(rows, 4.0, served, spare_instances=1) == pytest.approx(5.0)
    # What survives a zone here survives an instance as well.
    assert cost(rows, 4.0, served, spare_zones=1, spare_instances=1) == pytest.approx(6.0)


def test_offers_of_one_zone_are_lost_together() -> None:
    """a and b are east, c ($2) is west: east lost leaves c alone, 4 x 2; west lost needs 4 of the cheapest of east."""
    rows = offers(a={"price": 1.0, "zone": "east"}, b={"price": 1.1, "zone": "east"}, c={"price": 2.0, "zone": "west"})
    assert cost(rows, 4.0, dict.fromkeys("abc", 1.0), spare_zones=1) == pytest.approx(12.0)


def test_the_spot_share_holds_after_a_loss() -> None:
    """At most half on spot, 4/s. On demand a ($1, east), c ($3, west); spot b ($0.1, west).

    East lost: 2 on spot b, 2 on c. West lost: 4 a. So 4 a + 2 b + 2 c = 4 + 0.2 + 6. Were spot free after a loss,
    4 b would stand in: 4.4.
    """
    rows = offers(
        a={"price": 1.0, "zone": "east"},
        b={"price": 0.1, "zone": "west", "market": "spot"},
        c={"price": 3.0, "zone": "west"},
    )
    served = dict.fromkeys("abc", 1.0)
    limited = problem(rows, 4.0, served, spare_zones=1, max_spot_share=0.5)
    outcome = run(limited)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(10.2)
    assert cost(rows, 4.0, served, spare_zones=1) == pytest.approx(4.4)
    assert outcome.plan is not None
    assert {limit.name for limit in binding(limited, outcome.plan)} == {"max_spot_share", "spare_zones"}


def test_the_spot_share_holds_after_the_loss_of_an_instance() -> None:
    """2/s on a node of 2/s ($2) and spot ($0.1); at most half on spot. One node lost leaves spot alone: two nodes."""
    rows = offers(a={"price": 2.0}, b={"price": 0.1, "market": "spot"})
    served = {"a": 2.0, "b": 1.0}
    assert cost(rows, 2.0, served, spare_instances=1) == pytest.approx(0.3)
    assert cost(rows, 2.0, served, spare_instances=1, max_spot_share=0.5) == pytest.approx(4.0)


@pytest.mark.parametrize("method", ["highs", "scip", "cbc"])
@pytest.mark.parametrize("seed", range(200, 217))
def test_every_backend_finds_what_trying_all_counts_finds(seed: int, method: str) -> None:
    made = random_problem(seed, zones=2)
    outcome, truth = run(made, method), brute_force(made)
    if math.isinf(truth):
        assert outcome.status == "infeasible"
        return
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(truth, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(200, 215))
def test_a_spare_zone_never_costs_less(seed: int) -> None:
    made = random_problem(seed, zones=2)
    free = run(replace(made, zone_names=(), zone_of_pool=None), "scip")
    bound = run(made, "scip")
    if bound.objective is not None:
        assert free.objective is not None
        assert free.objective.total <= bound.objective.total + 1e-6


@pytest.fixture(scope="module")
def made() -> FleetProblem:
    rows = offers(
        a={"price": 1.0, "zone": "east"},
        b={"price": 1.2, "zone": "west"},
        s={"price": 0.1, "zone": "west", "market": "spot"},
    )
    return problem(rows, 4.0, dict.fromkeys("abs", 1.0), spare_zones=1, max_spot_share=0.5)


@pytest.fixture(scope="module")
def plan(made: FleetProblem) -> FleetPlan:
    found = run(made).plan
    assert found is not None
    assert check(made, found) == []
    assert {one.lost_zone for one in found.periods[0].survival} == {"east", "west"}
    return found


def broken(plan: FleetPlan, zone: str, **changes: Any) -> FleetPlan:
    """The plan with another answer to the loss of a zone."""
    period = plan.periods[0]
    survival = tuple(one.model_copy(update=changes) if one.lost_zone == zone else one for one in period.survival)
    return plan.model_copy(update={"periods": (period.model_copy(update={"survival": survival}),)})


def test_broken_plans_are_found(made: FleetProblem, plan: FleetPlan) -> None:
    east = next(one for one in plan.periods[0].survival if one.lost_zone == "east")
    spot = east.assignment[0].model_copy(update={"offer": "s", "fraction": 1.0})
    whole = plan.periods[0]
    cases = {
        "demand": {"assignment": east.assignment[:1]},
        "packing": {"replicas": whole.replicas},
        "capacity": {"replicas": ()},
        "max_spot_share": {"assignment": (spot,)},
        "spare_zones": {"lost_zone": "west"},
        "offer": {"lost_zone": None},
    }
    for rule, changes in cases.items():
        found = {one.rule for one in check(made, broken(plan, "east", **changes))}
        assert rule in found, (rule, found)
    assert {one.rule for one in check(made, broken(plan, "east", lost_zone="north"))} == {"offer"}
    assert {one.rule for one in check(made, broken(plan, "east", lost_offer="a"))} == {"offer"}


def test_a_zone_that_nothing_runs_in_need_not_be_survived() -> None:
    """Three zones, the third dear: nothing runs there, and nothing is said of its loss."""
    rows = [*two_zones(), *offers(c={"price": 9.0, "zone": "south"})]
    outcome = run(problem(rows, 1.0, dict.fromkeys("abc", 1.0), spare_zones=1))
    assert outcome.plan is not None
    assert counts(outcome.plan) == {"a": 1, "b": 1}
    assert {one.lost_zone for one in outcome.plan.periods[0].survival} == {"east", "west"}


def test_a_size_that_one_zone_alone_serves_cannot_survive() -> None:
    long = {"input_tokens": 4000}
    served = [profile("a", 1.0), profile("b", 1.0), profile("a", 1.0, **long), profile("b", 0.0, **long)]
    outcome = run(problem(two_zones(), [demand(1.0), demand(1.0, **long)], served, spare_zones=1))
    assert outcome.status == "infeasible"
    assert "spare_zones 1: the loss of any one of east, west must be survived" in outcome.reasons
    assert "set spare_zones to 0" in outcome.relaxations
    assert any(way.startswith("leave 50.0% of the requests unserved") for way in outcome.relaxations)


def test_zones_must_be_known() -> None:
    with pytest.raises(ValidationError, match="is needed where the loss of a zone"):
        fleet(offers(a=1.0, b=1.0), 1.0, {"a": 1.0, "b": 1.0}, spare_zones=1)
    with pytest.raises(ValidationError, match="all offers are in 'east'"):
        fleet(offers(a={"price": 1.0, "zone": "east"}), 1.0, {"a": 1.0}, spare_zones=1)


def test_what_is_left_out_is_left_out_after_a_loss_as_well_and_no_more() -> None:
    """Two of each zone at most, 4/s: either zone alone serves 2, so half is left out, and all four are rented."""
    rows = offers(a={"price": 1.0, "zone": "east", "max_count": 2}, b={"price": 1.2, "zone": "west", "max_count": 2})
    served = {"a": 1.0, "b": 1.0}
    assert run(problem(rows, 4.0, served, spare_zones=1)).status == "infeasible"
    made = problem(rows, 4.0, served, spare_zones=1, unserved="by_priority")
    outcome = run(made)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(4.4)
    assert outcome.plan is not None
    (left,) = outcome.plan.periods[0].unserved
    assert left.fraction == pytest.approx(0.5)
    assert check(made, outcome.plan) == []
