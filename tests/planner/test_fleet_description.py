"""The fleet instance and its plan as descriptions: rules between fields, units, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from planner.descriptions.fleet import Demand, FleetInstance, Offer, Profile
from planner.fleet_plan import Allocation, Assignment

SIZE = {"input_tokens": 100, "output_tokens": 50}
GOOD: dict[str, Any] = {
    "name": "chat",
    "offers": [{"name": "a", "device": "l4", "price_usd_per_hour": 0.8}],
    "models": [{"name": "m"}],
    "demand": [{"model": "m", **SIZE, "rate_per_s": 3}],
    "profiles": [{"offer": "a", "model": "m", **SIZE, "max_rate_per_s": 1}],
}


def problems(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        FleetInstance(**{**GOOD, **changes})
    return str(caught.value)


def test_defaults() -> None:
    made = FleetInstance(**GOOD)
    offer = made.offers[0]
    assert (offer.gpus, offer.max_count, offer.min_count, offer.market, offer.availability) == (
        1,
        None,
        0,
        "on_demand",
        1,
    )
    assert (made.headroom, made.spare_instances, made.unprofiled, made.budget_usd_per_hour) == (0, 0, "refuse", None)


def test_units() -> None:
    made = FleetInstance(**{**GOOD, "budget_usd_per_hour": "$5/h", "max_watts": "2kW"})
    assert (made.budget_usd_per_hour, made.max_watts) == (5.0, 2000.0)
    offer = Offer(name="a", device="l4", price_usd_per_hour="$2.5/h", watts="0.5kW")  # type: ignore[arg-type]
    assert (offer.price_usd_per_hour, offer.watts) == (2.5, 500.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"price_usd_per_hour": float("nan")},
        {"price_usd_per_hour": -1.0},
        {"price_usd_per_hour": 1e12},
        {"watts": -1.0},
        {"watts": 1e12},
        {"gpus": 0},
        {"gpus": 10**9},
        {"max_count": -1},
        {"min_count": 2, "max_count": 1},
        {"availability": 0.0},
        {"availability": 1.1},
        {"market": "auction"},
        {"name": ""},
    ],
)
def test_an_offer_that_cannot_be(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Offer(**{"name": "a", "device": "l4", "price_usd_per_hour": 1.0, **changes})


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0, 1e9])
def test_a_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(ValidationError):
        Demand(model="m", **SIZE, rate_per_s=rate)
    with pytest.raises(ValidationError):
        Demand(model="m", **SIZE, hourly=(1.0, rate))
    with pytest.raises(ValidationError):
        Profile(offer="a", model="m", **SIZE, max_rate_per_s=rate)


def test_a_demand_has_one_rate() -> None:
    for rates in ({}, {"rate_per_s": 1.0, "hourly": (1.0,)}):
        with pytest.raises(ValidationError, match="exactly one of rate_per_s and hourly"):
            Demand(model="m", **SIZE, **rates)  # type: ignore[arg-type]


def test_zero_throughput_is_an_answer_and_almost_zero_is_not() -> None:
    assert Profile(offer="a", model="m", **SIZE, max_rate_per_s=0).max_rate_per_s == 0
    with pytest.raises(ValidationError, match="0 says: not within the SLO"):
        Profile(offer="a", model="m", **SIZE, max_rate_per_s=1e-8)


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "two offers of a name": ({"offers": GOOD["offers"] * 2}, "offers: two are named 'a'"),
    "two models of a name": ({"models": GOOD["models"] * 2}, "models: two are named 'm'"),
    "an unknown model": (
        {"demand": [{"model": "x", **SIZE, "rate_per_s": 3}]},
        "demand.0.model: no model is named 'x'",
    ),
    "a size twice": ({"demand": GOOD["demand"] * 2}, "demand.1: m 100/50 tokens is given twice; add the rates up"),
    "a profile twice": ({"profiles": GOOD["profiles"] * 2}, "profiles.1: is given twice"),
    "nothing to serve": ({"demand": [{"model": "m", **SIZE, "hourly": [0, 0]}]}, "demand: all rates are zero"),
    "a quota on nothing": ({"quotas": [{"name": "q", "offers": ["x"], "max_gpus": 1}]}, "no offer is named 'x'"),
    "a current fleet of nothing": ({"current": {"x": 1}}, "current: no offer is named 'x'"),
    "changes of no fleet": ({"change_cost_usd_per_hour": 1}, "need a current fleet"),
    "a region of nobody": ({"models": [{"name": "m", "regions": ["eu"]}]}, "models.0.regions: no offer is in 'eu'"),
    "replicas without a demand": (
        {"models": [{"name": "m"}, {"name": "warm", "min_replicas": 1}]},
        "models.1.min_replicas: needs a demand",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_between_fields(name: str) -> None:
    changes, message = RULES[name]
    assert message in problems(**changes)


def test_a_model_may_be_kept_ready_by_a_demand_of_nothing() -> None:
    more = {"model": "warm", **SIZE, "rate_per_s": 0}
    made = FleetInstance(
        **{**GOOD, "models": [{"name": "m"}, {"name": "warm", "min_replicas": 1}], "demand": [*GOOD["demand"], more]}
    )
    assert made.demand[1].rate_per_s == 0


def test_all_broken_rules_are_told() -> None:
    text = problems(current={"x": 1}, demand=[{"model": "y", **SIZE, "rate_per_s": 0}])
    for one in ("no offer is named 'x'", "no model is named 'y'", "all rates are zero"):
        assert one in text


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_share_lies_between_nothing_and_all(fraction: float) -> None:
    with pytest.raises(ValidationError):
        Assignment(model="m", **SIZE, offer="a", gpus=1, fraction=fraction)


@pytest.mark.parametrize("count", [-1, 1.5, 10**12])
def test_a_count_is_whole_and_bounded(count: Any) -> None:
    with pytest.raises(ValidationError):
        Allocation(offer="a", model=None, count=count)
