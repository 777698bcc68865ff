"""Prefill and decode, attention and experts apart: by hand, told wrong, and described badly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import demand, does, offers, problem, profile, run
from pydantic import ValidationError

from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.stages import STAGES
from formulations.gpu_fleet.verdict import judge
from planner.errors import DescriptionError, OptionError
from planner.fleet_plan import FleetPlan

METHODS = ("highs", "scip", "cbc")
#: 100 tokens of a prompt, 1000 bytes each: 1e5 bytes a request.
MODELS = [{"name": "m", "kv_bytes_per_token": 1000}]


def split(**limits: Any) -> FleetProblem:
    """10/s. `big` ($4) does 2/s whole or prefills 10/s; `small` ($1) decodes 2/s."""
    served = [profile("big", 2.0), does("big", "prefill", 10.0), does("small", "decode", 2.0)]
    rows = limits.pop("offers", offers(big=4.0, small=1.0))
    return problem(rows, limits.pop("rate", 10.0), served, **{"models": MODELS, **limits})


def worth(instance: FleetProblem, method: str = "highs") -> float:
    outcome = run(instance, method)
    assert outcome.status == "optimal", outcome.reasons
    assert outcome.objective is not None
    return outcome.objective.total


def replicas(plan: FleetPlan) -> dict[tuple[str, str], int]:
    return {(row.offer, row.role): row.count for row in plan.periods[0].replicas if row.count}


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_on_what_each_is_good_at(method: str) -> None:
    """Whole: five big, $20. Apart: one big prefills 10/s and five small decode them, $9."""
    outcome = run(split(), method)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(9)
    assert outcome.plan is not None
    assert replicas(outcome.plan) == {("big", "prefill"): 1, ("small", "decode"): 5}
    (flow,) = outcome.plan.periods[0].flows
    assert (flow.handover, flow.fraction) == ("kv_cache", pytest.approx(1))
    assert flow.bytes_per_s == pytest.approx(1e6)
    assert {(row.offer, row.role) for row in outcome.plan.allocation} == {("big", "prefill"), ("small", "decode")}
    verdict = judge(split(), outcome.plan)
    assert verdict.feasible
    assert verdict.metric("utilisation[small, m, decode]") == pytest.approx(1)


def apart(**more: Any) -> list[dict[str, Any]]:
    return offers(big={"price": 4.0, "region": "east"}, small={"price": 1.0, "region": "west"}, **more)


@pytest.mark.parametrize("method", METHODS)
def test_regions_hand_over_what_their_link_carries(method: str) -> None:
    """5e5 bytes/s carry 5 of 10/s. 4/s apart: one big prefills, two small decode; the other 6/s take three big: $18.

    5/s apart would need a third small one and as many big ones; 2/s apart a fourth whole big one: $19, $21; none: $20.
    """
    link = {"from_region": "east", "to_region": "west", "bytes_per_s": 5e5}
    assert worth(split(offers=apart(), links=[link]), method) == pytest.approx(18)
    # Wide enough it is as if they were one; the other way round it is no link.
    assert worth(split(offers=apart(), links=[{**link, "bytes_per_s": 1e6}]), method) == pytest.approx(9)
    back = {"from_region": "west", "to_region": "east", "bytes_per_s": 1e9}
    assert worth(split(offers=apart(), links=[back]), method) == pytest.approx(20)
    assert worth(split(offers=apart()), method) == pytest.approx(20)


def test_headroom_is_kept_on_links_too() -> None:
    """5/s fit over 5e5 bytes/s: one big and three small, $7. With half as much again they do not."""
    link = {"from_region": "east", "to_region": "west", "bytes_per_s": 5e5}
    assert worth(split(offers=apart(), links=[link], rate=5.0)) == pytest.approx(7)
    assert worth(split(offers=apart(), links=[link], rate=5.0, headroom=0.5)) > 3 + 4 + 4


def test_an_instance_sends_no_more_than_its_network() -> None:
    """4e5 bytes/s let a big one prefill 4/s. Two prefill 8/s for four small, a third serves 2/s whole: $16.

    All apart takes three that prefill and five small, $17; 4/s apart one, three whole and two small, $18.
    """
    rows = offers(big={"price": 4.0, "network_bytes_per_s": 4e5}, small=1.0)
    assert worth(split(offers=rows)) == pytest.approx(16)
    # Of the receiver: 1e5 bytes/s let a small one take 1/s, so ten of them: $14.
    rows = offers(big=4.0, small={"price": 1.0, "network_bytes_per_s": 1e5})
    assert worth(split(offers=rows)) == pytest.approx(14)


def chain(**limits: Any) -> FleetProblem:
    """4/s: p ($3) prefills 4/s, a ($1) does attention of 2/s, e ($2) experts of 4/s; w ($5) serves 1/s whole."""
    served = [does("p", "prefill", 4.0), does("a", "attention", 2.0), does("e", "experts", 4.0), profile("w", 1.0)]
    rows = limits.pop("offers", offers(p=3.0, a=1.0, e=2.0, w=5.0))
    models = [{"name": "m", "kv_bytes_per_token": 1000, "activation_bytes_per_token": 4000}]
    return problem(rows, limits.pop("rate", 4.0), served, models=models, **limits)


@pytest.mark.parametrize("method", METHODS)
def test_attention_and_experts_apart(method: str) -> None:
    """One p, two a, one e: 3 + 2 + 2 = $7 against four whole ones, $20."""
    outcome = run(chain(), method)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(7)
    assert outcome.plan is not None
    flows = {flow.handover: flow.bytes_per_s for flow in outcome.plan.periods[0].flows}
    # 4/s x 100 tokens x 1000 bytes, and 4/s x 50 tokens x 4000 bytes.
    assert flows == pytest.approx({"kv_cache": 4e5, "activations": 8e5})


def test_activations_need_room_as_well() -> None:
    """A request has 2e5 bytes of activations: a network of 1e5 bytes/s lets one e take 0.5/s, so w is cheaper."""
    rows = offers(p=3.0, a=1.0, e={"price": 2.0, "network_bytes_per_s": 1e5}, w=5.0)
    # Eight e, one p, two a: 16 + 3 + 2 = 21; four w: 20. 3/s apart: six e, p, two a, one w: 12 + 3 + 2 + 5 = 22.
    assert worth(chain(offers=rows)) == pytest.approx(20)


def test_a_stage_that_nobody_does_is_named() -> None:
    """Regions that are not joined, and no whole replica."""
    served = [does("big", "prefill", 10.0), does("small", "decode", 2.0)]
    outcome = run(problem(apart(), 10.0, served, models=MODELS))
    assert outcome.status == "infeasible"
    assert outcome.reasons == ("no joined offers serve all stages of m 100/50 tokens within the SLO",)


def test_bandwidth_that_is_too_small_is_a_way_out() -> None:
    served = [does("big", "prefill", 10.0), does("small", "decode", 2.0)]
    link = {"from_region": "east", "to_region": "west", "bytes_per_s": 5e5}
    outcome = run(problem(apart(), 10.0, served, models=MODELS, links=[link]))
    assert outcome.status == "infeasible"
    assert "bandwidth of east to west" in outcome.reasons
    assert "raise the bandwidth of east to west" in outcome.relaxations
    outcome = run(problem(apart(), 10.0, served, models=MODELS, links=[link], unserved="by_priority"))
    assert outcome.plan is not None
    (row,) = outcome.plan.periods[0].unserved
    assert row.rate_per_s == pytest.approx(5)
    assert row.limits == ("bandwidth between roles",)


def test_the_role_that_is_short_is_named() -> None:
    """One big prefills 10 of 15/s; small ones to decode more could be had."""
    served = [does("big", "prefill", 10.0), does("small", "decode", 2.0)]
    rows = offers(big={"price": 4.0, "max_count": 1}, small=1.0)
    plan = run(problem(rows, 15.0, served, models=MODELS, unserved="by_priority")).plan
    assert plan is not None
    (row,) = plan.periods[0].unserved
    assert row.rate_per_s == pytest.approx(5)
    assert row.limits == ("max_count of big",)


def test_the_loss_of_one_is_survived_in_each_stage() -> None:
    """One p more, one a more and one e more: 2 x 3 + 3 x 1 + 2 x 2 = 13, every loss leaves 4/s in each stage."""
    outcome = run(chain(spare_instances=1))
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(13)
    assert outcome.plan is not None
    assert all(survival.flows for survival in outcome.plan.periods[0].survival)


def test_spot_is_limited_in_each_stage() -> None:
    """At most 5/s are decoded on spot ($0.1 for 2/s): two there, three on demand ($1): 4 + 3 x 1 + 2 x 0.1 = 7.2."""
    rows = offers(big=4.0, small=1.0, spot={"price": 0.1, "market": "spot"})
    served = [does("big", "prefill", 10.0), does("small", "decode", 2.0), does("spot", "decode", 2.0)]
    assert worth(problem(rows, 10.0, served, max_spot_share=0.5, models=MODELS)) == pytest.approx(7.2)
    assert worth(problem(rows, 10.0, served, models=MODELS)) == pytest.approx(4.5)


def test_hours_with_a_reserved_base() -> None:
    """Seven hours of 2 .. 8/s: the search by hours, and its bound is not above the plan."""
    rows = [*offers(big=4.0, small=1.0), *offers(base={"price": 0.5, "market": "reserved"})]
    served = [does("big", "prefill", 10.0), does("small", "decode", 2.0), does("base", "decode", 2.0)]
    rates = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    outcome = run(problem(rows, rates, served, models=MODELS))
    assert outcome.objective is not None
    # One big in every hour; decoding takes 1, 2, 2, 3, 3, 4, 4; R reserved cost 0.5 R and save what is above.
    needs = [1, 2, 2, 3, 3, 4, 4]
    best = min(4 + 0.5 * r + sum(max(0, need - r) for need in needs) / 7 for r in range(5))
    assert outcome.objective.total == pytest.approx(best)


Plain = dict[str, Any]


def broken() -> FleetProblem:
    """Two regions, a link and a network with limits, attention and experts."""
    rows = offers(
        p={"price": 3.0, "region": "east", "network_bytes_per_s": 1e6},
        a={"price": 1.0, "region": "west"},
        e={"price": 2.0, "region": "west"},
        w={"price": 5.0, "region": "west"},
    )
    return chain(offers=rows, links=[{"from_region": "east", "to_region": "west", "bytes_per_s": 5e5}])


def drop_experts(plan: Plain) -> None:
    plan["periods"][0]["assignment"] = [row for row in plan["periods"][0]["assignment"] if row["role"] != "experts"]


def other_role(plan: Plain) -> None:
    next(row for row in plan["periods"][0]["assignment"] if row["role"] == "attention")["role"] = "decode"


def other_replicas(plan: Plain) -> None:
    plan["periods"][0]["replicas"][0]["role"] = "both"


def no_flows(plan: Plain) -> None:
    plan["periods"][0]["flows"] = []


def half_a_flow(plan: Plain) -> None:
    plan["periods"][0]["flows"][0]["fraction"] *= 0.5


def unjoined(plan: Plain) -> None:
    plan["periods"][0]["flows"][0].update(from_region="west", to_region="east")


def nowhere(plan: Plain) -> None:
    plan["periods"][0]["flows"][0].update(from_region="north")


def other_bytes(plan: Plain) -> None:
    plan["periods"][0]["flows"][0]["bytes_per_s"] = 1.0


MUTATIONS: list[tuple[Callable[[Plain], None], str]] = [
    (drop_experts, "demand"),
    (other_role, "configuration"),
    (other_replicas, "configuration"),
    (no_flows, "flow"),
    (half_a_flow, "flow"),
    (unjoined, "link"),
    (nowhere, "flow"),
    (other_bytes, "flow"),
]


@pytest.mark.parametrize(("mutation", "rule"), MUTATIONS, ids=lambda one: getattr(one, "__name__", one))
def test_a_broken_plan_is_found(mutation: Callable[[Plain], None], rule: str) -> None:
    instance = broken()
    plan = run(instance).plan
    assert plan is not None
    assert check(instance, plan) == []
    changed = plan.model_dump(mode="json")
    mutation(changed)
    found = FleetPlan.model_validate(changed)
    assert rule in {one.rule for one in check(instance, found)}
    assert not judge(instance, found).feasible


def test_a_plan_for_wider_links_is_found() -> None:
    instance = broken()
    plan = run(instance).plan
    assert plan is not None
    narrow = np.where(np.isfinite(instance.link_bytes_per_s), instance.link_bytes_per_s / 2, np.inf)
    assert "link" in {one.rule for one in check(replace(instance, link_bytes_per_s=narrow), plan)}
    slow = replace(instance, network_bytes_per_s=instance.network_bytes_per_s / 10)
    assert "network" in {one.rule for one in check(slow, plan)}


def test_roles_without_their_other_half_are_told_together() -> None:
    served = [does("a", "prefill", 1.0), does("a", "decode", 1.0, model="n"), does("a", "attention", 1.0, model="o")]
    asked = [demand(1.0), demand(1.0, "n"), demand(1.0, "o")]
    rows = offers(a={"price": 1.0, "network_bytes_per_s": 1e6})
    with pytest.raises(DescriptionError) as caught:
        problem(rows, asked, served)
    text = str(caught.value)
    assert "m has replicas for prefill, but none for attention or decode" in text
    assert "n has replicas for decode, but none for prefill" in text
    assert "o has replicas for attention, but none for experts" in text
    assert "links limit m: say kv_bytes_per_token" in text


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ({"from_region": "east", "to_region": "north", "bytes_per_s": 1.0}, "no offer is in 'north'"),
        ({"from_region": "east", "to_region": "east", "bytes_per_s": 1.0}, "offers of one region are joined"),
        ({"from_region": "east", "to_region": "west", "bytes_per_s": 0.0}, "greater than 0"),
        ({"from_region": "east", "to_region": "west", "bytes_per_s": math.nan}, "finite"),
    ],
)
def test_links_that_are_none(link: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        split(offers=apart(), links=[link])
    good = {"from_region": "east", "to_region": "west", "bytes_per_s": 1.0}
    with pytest.raises(ValidationError, match="is given twice"):
        split(offers=apart(), links=[good, good])


def test_slices_and_the_baseline_know_whole_replicas_alone() -> None:
    with pytest.raises(OptionError, match="split roles"):
        run(split(), "melange-4")
    plan = best_single_offer(split())
    assert plan is not None
    assert replicas(plan) == {("big", "both"): 5}


def test_every_stage_is_done_once() -> None:
    """The table of stages is what the oracle's ways are."""
    for way in (("both",), ("prefill", "decode"), ("prefill", "attention", "experts")):
        assert [sum(role in roles for role in way) for roles in STAGES.values()] == [1, 1, 1]
