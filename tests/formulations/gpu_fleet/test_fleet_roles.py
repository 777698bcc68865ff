"""Prefill and decode, attention and experts apart: by hand, by trying all counts, and when a plan is broken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from fleet_cases import demand, offers, problem, profile, run
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linprog

from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.stages import HANDOVERS, ROLES, STAGES
from formulations.gpu_fleet.verdict import judge
from planner.errors import DescriptionError, OptionError
from planner.fleet_plan import FleetPlan

METHODS = ("highs", "scip", "cbc")
#: 100 tokens of a prompt, 1000 bytes each: 1e5 bytes a request.
MODELS = [{"name": "m", "kv_bytes_per_token": 1000}]


def does(offer: str, role: str, rate: float, **more: Any) -> dict[str, Any]:
    """Throughput of a role."""
    return {**profile(offer, rate, **more), "role": role}


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


def oracle(instance: FleetProblem) -> float:
    """The cheapest fleet of single GPUs, by trying all replica counts; a linear program routes."""
    need = np.where(np.isfinite(instance.load(0)), instance.load(0), 0.0).sum(axis=0)
    carried = (instance.rate[0] * instance.handed_bytes).sum(axis=1).max()
    need = np.maximum(need, np.minimum(carried / instance.network_bytes_per_s[instance.config_pool], 5) * (need > 0))
    best = math.inf
    price = np.array([instance.price[instance.pool_of_offer == pool].min() for pool in instance.config_pool])
    most = np.array([instance.most[instance.pool_of_offer == pool].sum() for pool in range(len(instance.availability))])
    # A network that limits takes more replicas than the load.
    upper = np.where(need > 0, np.minimum(np.ceil(need) + 1, most[instance.config_pool]), 0).astype(int)
    for chosen in product(*(range(top + 1) for top in upper.tolist())):
        counts = np.array(chosen)
        cost = float(counts @ price)
        used = np.bincount(instance.config_pool, weights=counts, minlength=len(most))
        if cost < best - 1e-9 and (used <= most).all() and routes(instance, counts):
            best = cost
    return best


def routes(instance: FleetProblem, counts: np.ndarray) -> bool:
    """One variable for every way of a request: the replicas of its stages."""
    load, rate = instance.load(0), instance.rate[0]
    site = instance.site_of_pool[instance.config_pool]
    role = [ROLES[one] for one in instance.config_role]
    ways: list[tuple[int, tuple[int, ...]]] = []
    for d in range(len(rate)):
        can = {name: [c for c in range(len(role)) if role[c] == name and np.isfinite(load[d, c])] for name in ROLES}
        found = [(c,) for c in can["both"]] + list(product(can["prefill"], can["decode"]))
        found += list(product(can["prefill"], can["attention"], can["experts"]))
        for way in found:
            if all(instance.link_bytes_per_s[site[a], site[b]] > 0 for a, b in pairwise(way)):
                ways.append((d, way))
    if {d for d, _ in ways} != set(np.flatnonzero(rate > 0).tolist()):
        return False
    rows, limits = [], []
    for c in range(len(role)):
        rows.append([load[d, c] if c in way else 0.0 for d, way in ways])
        limits.append(float(counts[c]))
        network = float(instance.network_bytes_per_s[instance.config_pool[c]])
        for number, kind in enumerate(HANDOVERS):
            if math.isfinite(network) and role[c] in kind.senders + kind.receivers:
                rows.append([rate[d] * instance.handed_bytes[number, d] if c in way else 0.0 for d, way in ways])
                limits.append(network * counts[c])
    for a, b in zip(*np.nonzero(np.isfinite(instance.link_bytes_per_s) & (instance.link_bytes_per_s > 0)), strict=True):
        rows.append(
            [
                sum(
                    rate[d] * instance.handed_bytes[h, d]
                    for h, pair in enumerate(pairwise(way))
                    if (site[pair[0]], site[pair[1]]) == (a, b)
                )
                for d, way in ways
            ]
        )
        limits.append(float(instance.link_bytes_per_s[a, b]))
    equal = [[float(d == one) for d, _ in ways] for one in np.flatnonzero(rate > 0)]
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-9)
    found = linprog(
        np.zeros(len(ways)),
        np.array(rows) / scale[:, None],
        np.array(limits) / scale + 1e-9,
        equal,
        np.ones(len(equal)),
    )
    return bool(found.status == 0)


def random_roles(seed: int) -> FleetProblem:
    """Two sizes, three single GPUs of one or two regions, and two to five configurations of mixed roles."""
    rng = np.random.default_rng(seed)
    rows = offers(**{f"o{k}": {"price": round(float(rng.uniform(0.5, 2)), 2)} for k in range(3)})
    for row in rows:
        if rng.random() < 0.7:
            row["region"] = str(rng.choice(["east", "west"]))
        else:
            row["region"] = "east"
        if rng.random() < 0.4:
            row["network_bytes_per_s"] = float(rng.choice([2e4, 5e4, 2e5]))
    long = {"input_tokens": 200, "output_tokens": 20}
    asked = [demand(round(float(rng.uniform(0.2, 1.2)), 2)), demand(round(float(rng.uniform(0.1, 0.6)), 2), **long)]
    deep = rng.random() < 0.4
    roles = ["prefill", "attention", "experts"] if deep else ["prefill", "decode"]
    pairs = [(f"o{k % 3}", role) for k, role in enumerate(roles)]
    pairs += [(f"o{rng.integers(3)}", str(rng.choice([*roles, "both"]))) for _ in range(2)]
    served = [
        {**does(offer, role, round(float(rng.uniform(0.4, 1.5)), 2)), **size}
        for offer, role in dict.fromkeys(pairs)
        for size in ({}, long)
        if rng.random() < 0.9
    ]
    if not all(any((row["input_tokens"], row["role"]) == (100, role) for row in served) for role in roles):
        return random_roles(seed + 1000)
    if not any(row["input_tokens"] == 200 for row in served):
        return random_roles(seed + 1000)
    regions = {row["region"] for row in rows}
    links = [
        {"from_region": a, "to_region": b, "bytes_per_s": float(rng.choice([3e4, 1e5, 1e6]))}
        for a, b in (("east", "west"), ("west", "east"))
        if regions == {"east", "west"} and rng.random() < 0.7
    ]
    model = {"name": "m", "kv_bytes_per_token": 500, "activation_bytes_per_token": 700}
    return problem(rows, asked, served, models=[model], links=links)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(16))
def test_every_backend_finds_what_trying_all_finds(seed: int, method: str) -> None:
    instance = random_roles(seed)
    outcome, truth = run(instance, method), oracle(instance)
    if math.isinf(truth):
        assert outcome.status == "infeasible"
        return
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(truth, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 900), factor=st.floats(1.1, 5))
def test_more_bandwidth_never_costs_more(seed: int, factor: float) -> None:
    made = random_roles(seed)
    wider = replace(
        made, link_bytes_per_s=made.link_bytes_per_s * factor, network_bytes_per_s=made.network_bytes_per_s * factor
    )
    before, after = (
        math.inf if outcome.objective is None else outcome.objective.total
        for outcome in (run(made, "scip"), run(wider, "scip"))
    )
    assert after <= before + 1e-6


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
    (other_role, "assignment"),
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
