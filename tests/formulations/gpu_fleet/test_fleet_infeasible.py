"""Infeasible fleets: each has its reasons, and ways out that are enough and not more than enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from fleet_cases import demand, fleet, offers, profile, run

from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import Status, Stop

Arguments = dict[str, Any]
TWO = {"a": 1.0, "b": 1.0}


def case(found: list[Arguments], asked: Any, served: Any, **limits: Any) -> Arguments:
    return {"found": found, "asked": asked, "served": served, **limits}


def caps(arguments: Arguments, way: str, less: float) -> Arguments:
    """`raise max_count of a from 1 to 4, b from ...`, with the first one `less` lower."""
    raised = dict(re.findall(r"(\w+) from \d+ to (\d+)", way))
    first = next(iter(raised))
    rows = [
        {**row, "max_count": int(raised[row["name"]]) - int(less * (row["name"] == first))}
        if row["name"] in raised
        else row
        for row in arguments["found"]
    ]
    return {**arguments, "found": rows}


def quota(arguments: Arguments, way: str, less: float) -> Arguments:
    (name, most) = re.findall(r"(\w+) from \d+ to (\d+) GPUs", way)[0]
    rows = [{**row, "max_gpus": int(most) - int(less)} if row["name"] == name else row for row in arguments["quotas"]]
    return {**arguments, "quotas": rows}


def number(key: str) -> Callable[[Arguments, str, float], Arguments]:
    def changed(arguments: Arguments, way: str, less: float) -> Arguments:
        value = float(way.rpartition(" to ")[2])
        return {**arguments, key: int(value - less) if key == "max_changes" else value - less}

    return changed


def off(key: str, value: Any) -> Callable[[Arguments, str, float], Arguments]:
    return lambda arguments, way, less: {**arguments, key: value}


#: How a way out begins, how it is applied, and by how much less it would be too little (0: it cannot be less).
WAYS: dict[str, tuple[Callable[[Arguments, str, float], Arguments], float]] = {
    "raise max_count": (caps, 1),
    "raise the quota": (quota, 1),
    "raise budget_usd_per_hour": (number("budget_usd_per_hour"), 0.05),
    "raise max_watts": (number("max_watts"), 5.0),
    "raise max_spot_share": (number("max_spot_share"), 0.02),
    "raise max_changes": (number("max_changes"), 1),
    "set spare_instances": (off("spare_instances", 0), 0),
    "set headroom": (off("headroom", 0.0), 0),
    "leave out min_replicas": (off("models", [{"name": "m"}]), 0),
}

CASES: dict[str, tuple[Arguments, str, str]] = {
    "a cap": (case(offers(a={"price": 1.0, "max_count": 2}), 3.5, {"a": 1.0}), "max_count: a 2", "raise max_count"),
    "a cap of zero": (
        case(offers(a={"price": 1.0, "max_count": 0}), 3.5, {"a": 1.0}),
        "max_count: a 0",
        "raise max_count",
    ),
    "caps in the busiest of several hours": (
        case(offers(a={"price": 1.0, "max_count": 2}), [3.0, 5.0, 2.0], {"a": 1.0}),
        "max_count: a 2",
        "raise max_count",
    ),
    "a cap on reserved instances, and a quiet night": (
        case(offers(a={"price": 1.0, "max_count": 1, "market": "reserved"}), [0.0, 3.0, 2.0], {"a": 1.0}),
        "max_count: a 1",
        "raise max_count",
    ),
    "a cap and a spare": (
        case(offers(a={"price": 1.0, "max_count": 4}), 3.5, {"a": 1.0}, spare_instances=1),
        "max_count: a 4",
        "raise max_count",
    ),
    "a spare that may be given up": (
        case(offers(a={"price": 1.0, "max_count": 4}), 3.5, {"a": 1.0}, spare_instances=1),
        "spare_instances 1",
        "set spare_instances",
    ),
    "headroom": (
        case(offers(a={"price": 1.0, "max_count": 4}), 3.5, {"a": 1.0}, headroom=0.5),
        "headroom 50%",
        "set headroom",
    ),
    "replicas that are kept": (
        case(offers(a={"price": 1.0, "max_count": 4}), 3.5, {"a": 1.0}, models=[{"name": "m", "min_replicas": 6}]),
        "min_replicas: m 6",
        "leave out min_replicas",
    ),
    "a quota": (
        case(
            offers(a={"price": 1.0, "gpus": 2}, b={"price": 1.0, "gpus": 4}),
            4.0,
            {"a": 1.0, "b": 1.0},
            quotas=[{"name": "q", "offers": ["a", "b"], "max_gpus": 5}],
        ),
        "quota q: 5 GPUs",
        "raise the quota",
    ),
    "a budget": (
        case(offers(a=1.2345), 3.5, {"a": 1.0}, budget_usd_per_hour=2),
        "budget_usd_per_hour 2",
        "raise budget_usd_per_hour",
    ),
    "a budget whose digits round down": (
        case(offers(a=12.34449), 3.5, {"a": 1.0}, budget_usd_per_hour=2),
        "budget_usd_per_hour 2",
        "raise budget_usd_per_hour",
    ),
    "no budget": (case(offers(a=1.0), 3.5, {"a": 1.0}, budget_usd_per_hour=0), "budget", "raise budget_usd_per_hour"),
    "watts": (
        case(offers(a={"price": 1.0, "watts": 333.3}), 3.5, {"a": 1.0}, max_watts=1000),
        "max_watts 1000",
        "raise max_watts",
    ),
    "a spot share": (
        case(
            offers(a={"price": 1.0, "max_count": 2}, b={"price": 0.2, "market": "spot"}), 4.0, TWO, max_spot_share=0.1
        ),
        "max_spot_share 0.1",
        "raise max_spot_share",
    ),
    "a spot share of one of two models": (
        case(
            offers(a={"price": 1.0, "max_count": 6}, b={"price": 0.2, "market": "spot"}),
            [demand(4.0), demand(40.0, "n")],
            [profile("a", 1.0), profile("b", 1.0), profile("a", 10.0, "n")],
            max_spot_share=0.1,
        ),
        "max_spot_share 0.1",
        "raise max_spot_share",
    ),
    "changes": (
        case(offers(a=1.0, b=1.0), 4.0, TWO, current={"a": 1}, max_changes=1),
        "max_changes 1",
        "raise max_changes",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_reason_and_the_way_out(name: str) -> None:
    arguments, reason, start = CASES[name]
    outcome = run(read_problem(fleet(**arguments)))
    assert (outcome.status, outcome.stop, outcome.plan) == (Status.INFEASIBLE, Stop.PROOF, None)
    assert any(one.startswith(reason) for one in outcome.reasons), outcome.reasons
    (way,) = [one for one in outcome.relaxations if one.startswith(start)]
    apply, less = WAYS[start]
    enough = run(read_problem(fleet(**apply(arguments, way, 0))))
    assert enough.status == "optimal", way
    if less:
        assert run(read_problem(fleet(**apply(arguments, way, less)))).status == "infeasible", way


@pytest.mark.parametrize("name", CASES)
def test_every_way_out_that_can_be_applied_is_enough(name: str) -> None:
    arguments = CASES[name][0]
    for way in run(read_problem(fleet(**arguments))).relaxations:
        start = next((one for one in WAYS if way.startswith(one)), None)
        assert start is not None or way.startswith("leave ")
        if start is not None:
            assert run(read_problem(fleet(**WAYS[start][0](arguments, way, 0)))).status == "optimal", way


def test_the_demand_that_would_have_to_go() -> None:
    """Two of 3.5 requests are served: 42.9 % are left."""
    outcome = run(read_problem(fleet(offers(a={"price": 1.0, "max_count": 2}), 3.5, {"a": 1.0})))
    assert outcome.relaxations[-1] == "leave 42.9% of the requests unserved: 43% of m 100/50 tokens"


def test_the_demand_that_would_have_to_go_in_the_busiest_hour() -> None:
    """2 of 3, and 2 of 5."""
    outcome = run(read_problem(fleet(offers(a={"price": 1.0, "max_count": 2}), [3.0, 5.0, 1.0], {"a": 1.0})))
    assert outcome.relaxations[-1] == "leave 60.0% of the requests unserved: 60% of m 100/50 tokens"


def test_the_demand_that_would_have_to_go_when_one_is_lost() -> None:
    """Three of four serve 3 of 4 requests."""
    arguments = case(offers(a={"price": 1.0, "max_count": 4}), 4.0, {"a": 1.0}, spare_instances=1)
    ways = run(read_problem(fleet(**arguments))).relaxations
    assert "leave 25.0% of the requests unserved: 25% of m 100/50 tokens" in ways


def test_several_limits_at_once() -> None:
    """A cap and a budget: raising either is not enough, and both are named."""
    arguments = case(
        offers(a={"price": 1.0, "max_count": 2}),
        3.5,
        {"a": 1.0},
        budget_usd_per_hour=2,
        models=[{"name": "m", "min_replicas": 4}],
    )
    outcome = run(read_problem(fleet(**arguments)))
    assert outcome.reasons == ("max_count: a 2", "budget_usd_per_hour 2", "min_replicas: m 4")
    assert outcome.relaxations == ("no single kind of limit is enough: relax several of them",)


LONG = {"input_tokens": 4000, "output_tokens": 400}


@pytest.mark.parametrize("spare", [0, 1])
def test_sizes_that_nothing_serves(spare: int) -> None:
    """All of them are named, and those that are served are not."""
    asked = [demand(1.0), demand(1.0, **LONG), demand(1.0, "n")]
    served = [profile("a", 1.0), profile("a", 0.0, **LONG), profile("a", 0.0, "n")]
    outcome = run(read_problem(fleet(offers(a=1.0), asked, served, spare_instances=spare)))
    assert outcome.status == "infeasible"
    assert outcome.reasons == (
        "no offer serves m 4000/400 tokens within the SLO",
        "no offer serves n 100/50 tokens within the SLO",
    )
    assert outcome.relaxations[0].startswith("relax the SLO")


@pytest.mark.parametrize("spare", [0, 1])
def test_nothing_serves_anything(spare: int) -> None:
    outcome = run(read_problem(fleet(offers(a=1.0), 1.0, {"a": 0.0}, spare_instances=spare)))
    assert outcome.reasons == ("no offer serves m 100/50 tokens within the SLO",)


def test_more_than_can_be_counted() -> None:
    """Three million instances are no plan; the reason says so."""
    outcome = run(read_problem(fleet(offers(a=1.0), 3e6, {"a": 1.0})))
    assert outcome.status == "infeasible"
    assert outcome.reasons == ("more than 1e+06 instances of an offer are needed",)


@pytest.mark.parametrize("method", ["highs", "scip", "cbc"])
def test_every_backend_says_infeasible(method: str) -> None:
    outcome = run(read_problem(fleet(offers(a={"price": 1.0, "max_count": 2}), 3.5, {"a": 1.0})), method)
    assert (outcome.status, outcome.relaxations[0]) == (Status.INFEASIBLE, "raise max_count of a from 2 to 4")
