"""Fleets that are solved by hand, the arithmetic beside them."""

from __future__ import annotations

from typing import Any

import pytest
from fleet_cases import best, cost, counts, demand, fleet, offers, problem, profile, run

from formulations.gpu_fleet.problem import FleetProblem
from planner.fleet_plan import FleetPlan


def solved(*arguments: Any, **limits: Any) -> tuple[float, FleetPlan]:
    outcome = run(problem(*arguments, **limits))
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.plan is not None
    return outcome.objective.total, outcome.plan


def test_one_size_on_one_offer() -> None:
    """3.5 requests a second at one a second: 4 instances at $1. Exactly 4: still 4."""
    assert cost(offers(a=1.0), 3.5, {"a": 1.0}) == pytest.approx(4.0)
    assert cost(offers(a=1.0), 4.0, {"a": 1.0}) == pytest.approx(4.0)


def test_mixing_wins() -> None:
    """11/s: two of $5 for 10/s cost 10; eight of $1 for 1.5/s cost 8; one of each serves 11.5 for 6."""
    total, plan = solved(offers(big=5.0, small=1.0), 11.0, {"big": 10.0, "small": 1.5})
    assert total == pytest.approx(6.0)
    assert counts(plan) == {"big": 1, "small": 1}
    shares = {row.offer: row.fraction for row in plan.assignment}
    assert sum(shares.values()) == pytest.approx(1.0)
    # big serves at most 10 of 11, small at most 1.5.
    assert shares["big"] <= 10 / 11 + 1e-6
    assert shares["small"] <= 1.5 / 11 + 1e-6


def test_sizes_go_where_they_are_cheap() -> None:
    """Short requests 10/s on a ($1) and 1/s on b ($3); long ones 0 and 2/s. 20 short: 2 a. 4 long: 2 b. Together 8."""
    long = {"input_tokens": 4000, "output_tokens": 400}
    served = [profile("a", 10.0), profile("b", 1.0), profile("a", 0.0, **long), profile("b", 2.0, **long)]
    total, plan = solved(offers(a=1.0, b=3.0), [demand(20.0), demand(4.0, **long)], served)
    assert total == pytest.approx(8.0)
    assert counts(plan) == {"a": 2, "b": 2}
    assert {(row.input_tokens, row.offer) for row in plan.assignment} == {(100, "a"), (4000, "b")}


def test_loads_of_several_sizes_add_up() -> None:
    """0.6 of a replica for one size and 0.6 for the other: two replicas; 0.5 and 0.5: one."""
    long = {"input_tokens": 4000, "output_tokens": 400}
    served = [profile("a", 10.0), profile("a", 1.0, **long)]
    assert cost(offers(a=1.0), [demand(6.0), demand(0.6, **long)], served) == pytest.approx(2.0)
    assert cost(offers(a=1.0), [demand(5.0), demand(0.5, **long)], served) == pytest.approx(1.0)


def node(rates: dict[str, float]) -> FleetProblem:
    """A node of 8 GPUs for $10; replicas of large, middle and small take 4, 2 and 1, each for one request a second."""
    served = [
        profile("node", 1.0, "large", 4),
        profile("node", 1.0, "middle", 2),
        profile("node", 1.0, "small", 1),
    ]
    return problem(
        offers(node={"price": 10.0, "gpus": 8}), [demand(rate, name) for name, rate in rates.items()], served
    )


def test_models_share_a_node() -> None:
    """4 + 2 + 1 + 1 fill a node: $10, where a node for each model costs 30. One GPU more is a second node."""
    full = node({"large": 1.0, "middle": 1.0, "small": 2.0})
    outcome = run(full)
    assert outcome.objective is not None
    assert outcome.plan is not None
    assert outcome.objective.total == pytest.approx(10.0)
    assert outcome.plan.allocation[0].model is None
    assert {(row.model, row.gpus, row.count) for row in outcome.plan.periods[0].replicas} == {
        ("large", 4, 1),
        ("middle", 2, 1),
        ("small", 1, 2),
    }
    assert best(node({"large": 1.0, "middle": 1.0, "small": 3.0})) == pytest.approx(20.0)
    # 3 x 4 GPUs leave 4 on the second node: two of middle fit beside, three do not.
    assert best(node({"large": 3.0, "middle": 2.0, "small": 0.0})) == pytest.approx(20.0)
    assert best(node({"large": 3.0, "middle": 3.0, "small": 0.0})) == pytest.approx(30.0)


def test_gpus_that_no_replica_fits_on_are_lost() -> None:
    """A node of 6 GPUs holds one replica of 4, not 1.5; of 2 it holds the two left over besides."""
    served = [profile("node", 1.0, "large", 4), profile("node", 1.0, "small", 2)]
    shape = offers(node={"price": 1.0, "gpus": 6})
    assert cost(shape, [demand(3.0, "large")], served[:1]) == pytest.approx(3.0)
    assert cost(shape, [demand(3.0, "large"), demand(3.0, "small")], served) == pytest.approx(3.0)
    assert cost(shape, [demand(3.0, "large"), demand(4.0, "small")], served) == pytest.approx(4.0)


def test_the_better_replica_size_is_chosen() -> None:
    """8 GPUs: eight replicas of 1 GPU serve 8 x 1/s, two of 4 serve 2 x 5/s. 9/s: one node with 4s, two with 1s."""
    shape = offers(node={"price": 1.0, "gpus": 8})
    ones, fours = profile("node", 1.0, gpus=1), profile("node", 5.0, gpus=4)
    assert cost(shape, [demand(9.0)], [ones]) == pytest.approx(2.0)
    assert cost(shape, [demand(9.0)], [ones, fours]) == pytest.approx(1.0)


def test_headroom() -> None:
    """4/s and 30 % kept free is 5.2/s: 6 instances."""
    assert cost(offers(a=1.0), 4.0, {"a": 1.0}, headroom=0.3) == pytest.approx(6.0)


def test_min_replicas() -> None:
    """Half a replica of load, three asked: 3 instances of one GPU, or 2 of two GPUs for replicas of one."""
    models = [{"name": "m", "min_replicas": 3}]
    assert cost(offers(a=1.0), 0.5, {"a": 1.0}, models=models) == pytest.approx(3.0)
    shape = offers(a={"price": 1.0, "gpus": 2})
    assert cost(shape, [demand(0.5)], [profile("a", 1.0, gpus=1)], models=models) == pytest.approx(2.0)


def test_a_replica_that_cannot_keep_the_slo_is_none() -> None:
    """Three replicas are asked, and b, at a tenth of the price, serves nothing: 3 of a, not 1 a + 2 b = 1.2."""
    models = [{"name": "m", "min_replicas": 3}]
    assert cost(offers(a=1.0, b=0.1), 0.5, {"a": 1.0, "b": 0.0}, models=models) == pytest.approx(3.0)


def test_caps() -> None:
    """3.5/s: two cheap ones at most, so two of $3 besides: 2 + 6."""
    rows = offers(cheap={"price": 1.0, "max_count": 2}, dear=3.0)
    assert cost(rows, 3.5, {"cheap": 1.0, "dear": 1.0}) == pytest.approx(8.0)
    none = offers(cheap={"price": 1.0, "max_count": 0}, dear=3.0)
    assert cost(none, 3.5, {"cheap": 1.0, "dear": 1.0}) == pytest.approx(12.0)


def test_a_least_count_is_paid_for() -> None:
    """Two of the dear ones must be rented (6), and serve 2 of 3.5: two cheap ones besides."""
    rows = offers(cheap=1.0, dear={"price": 3.0, "min_count": 2})
    assert cost(rows, 3.5, {"cheap": 1.0, "dear": 1.0}) == pytest.approx(8.0)


def test_a_quota() -> None:
    """6/s: three of 4 GPUs for $2 and 2/s each cost 6 and take 12 GPUs; 9 GPUs allow two, and one of $3: 7."""
    rows = offers(wide={"price": 2.0, "gpus": 4}, narrow=3.0)
    served = {"wide": 2.0, "narrow": 2.0}
    assert cost(rows, 6.0, served) == pytest.approx(6.0)
    quota = {"name": "region", "offers": ["wide", "narrow"], "max_gpus": 9}
    assert cost(rows, 6.0, served, quotas=[quota]) == pytest.approx(7.0)
    assert cost(rows, 6.0, served, quotas=[{**quota, "offers": ["wide"], "max_gpus": 7}]) == pytest.approx(8.0)


def test_a_budget_is_met_exactly_or_not_at_all() -> None:
    """4 instances of $1 within 4, and not within 3.99."""
    assert cost(offers(a=1.0), 3.5, {"a": 1.0}, budget_usd_per_hour=4) == pytest.approx(4.0)
    outcome = run(problem(offers(a=1.0), 3.5, {"a": 1.0}, budget_usd_per_hour=3.99))
    assert outcome.status == "infeasible"


def test_watts() -> None:
    """4/s within 1000 W: n of $1 and 400 W, 4 - n of $2 and 100 W: 400 + 300 n <= 1000, so n = 2: 2 + 4."""
    rows = offers(hot={"price": 1.0, "watts": 400}, cool={"price": 2.0, "watts": "100W"})
    served = {"hot": 1.0, "cool": 1.0}
    assert cost(rows, 4.0, served, max_watts=1000) == pytest.approx(6.0)
    assert cost(rows, 4.0, served, max_watts=999) == pytest.approx(7.0)


def test_spot_is_there_half_of_the_time() -> None:
    """8/s: all on spot is 16 of $0.3 = 4.8. At most half of it: 4/s on 8 of spot = 2.4, 4 on demand: 6.4."""
    rows = offers(spot={"price": 0.3, "market": "spot", "availability": 0.5}, fixed=1.0)
    served = {"spot": 1.0, "fixed": 1.0}
    assert cost(rows, 8.0, served) == pytest.approx(4.8)
    assert cost(rows, 8.0, served, max_spot_share=0.5) == pytest.approx(6.4)
    assert cost(rows, 8.0, served, max_spot_share=0) == pytest.approx(8.0)


def test_the_spot_share_is_that_of_each_model() -> None:
    """Two models of 2/s, half on spot at most: one instance of each kind for each, 2 x (0.3 + 1)."""
    rows = offers(spot={"price": 0.3, "market": "spot"}, fixed=1.0)
    served = [profile(offer, 1.0, model) for offer in ("spot", "fixed") for model in ("m", "n")]
    total, plan = solved(rows, [demand(2.0), demand(2.0, "n")], served, max_spot_share=0.5)
    assert total == pytest.approx(2.6)
    for model in ("m", "n"):
        on_spot = sum(row.fraction for row in plan.assignment if row.model == model and row.offer == "spot")
        assert on_spot == pytest.approx(0.5)


def test_reserved_and_on_demand() -> None:
    """Hours of 1, 1, 1, 5: r reserved at 0.6 cost 0.6 r + mean of max(0, d - r): 2, 1.6, 1.95, ... for r = 0, 1, 2."""
    rows = offers(fixed={"price": 0.6, "market": "reserved"}, there=1.0)
    total, plan = solved(rows, [1.0, 1.0, 1.0, 5.0], {"fixed": 1.0, "there": 1.0})
    assert total == pytest.approx(1.6)
    assert plan.cost_usd_per_hour == pytest.approx(1.6)
    by_hours = {period.hours: counts(plan, index) for index, period in enumerate(plan.periods)}
    assert by_hours == {(0, 1, 2): {"fixed": 1}, (3,): {"fixed": 1, "there": 4}}
    # All reserved is sized at the peak.
    assert cost(rows[:1], [1.0, 1.0, 1.0, 5.0], {"fixed": 1.0}) == pytest.approx(3.0)


def test_every_hour_has_its_own_fleet() -> None:
    """1.5, 0, 3 and 1.5 a second: 2, 0, 3 and 2 instances, 7 / 4 on average. Nothing runs at night."""
    total, plan = solved(offers(a=1.0), [1.5, 0.0, 3.0, 1.5], {"a": 1.0})
    assert total == pytest.approx(7 / 4)
    by_hours = {period.hours: counts(plan, index) for index, period in enumerate(plan.periods)}
    assert by_hours == {(0, 3): {"a": 2}, (1,): {}, (2,): {"a": 3}}
    # On top stands the most expensive hour.
    assert [row.count for row in plan.allocation] == [3]


@pytest.mark.parametrize("method", ["highs", "scip", "cbc"])
def test_surviving_a_loss_changes_the_mix(method: str) -> None:
    """10/s: one big ($5, 10/s) beats four small ($1.5, 2.5/s). With one to lose: two big 10, five small 7.5.

    With all of its presolve HiGHS says 11 here, and calls it proven.
    """
    rows, served = offers(big=5.0, small=1.5), {"big": 10.0, "small": 2.5}
    total, plan = solved(rows, 10.0, served)
    assert (total, counts(plan)) == (pytest.approx(5.0), {"big": 1})
    outcome = run(problem(rows, 10.0, served, spare_instances=1), method)
    plan = outcome.plan
    assert outcome.objective is not None
    assert plan is not None
    assert (outcome.objective.total, counts(plan)) == (pytest.approx(7.5), {"small": 5})
    (survival,) = plan.periods[0].survival
    assert survival.lost_offer == "small"
    assert [row.count for row in survival.replicas] == [4]
    assert sum(row.fraction for row in survival.assignment) == pytest.approx(1.0)


def test_a_spare_is_shared_by_all_models_of_a_node_shape() -> None:
    """Two models, one node each: a third node is spare for both, if replicas of both wait there: 4 GPUs each.

    Each node of 8 GPUs for $10; a replica takes 4 and serves 1/s, and each model asks for 2/s. Two nodes hold the four
    replicas. After a loss, two nodes must hold them again: 3 nodes.
    """
    served = [profile("node", 1.0, model, 4) for model in ("m", "n")]
    rows = offers(node={"price": 10.0, "gpus": 8})
    asked = [demand(2.0), demand(2.0, "n")]
    assert cost(rows, asked, served) == pytest.approx(20.0)
    assert cost(rows, asked, served, spare_instances=1) == pytest.approx(30.0)


CURRENT: dict[str, Any] = {"found": offers(a=1.0, b=1.9), "asked": 4.0, "served": {"a": 1.0, "b": 2.0}}


def test_a_current_fleet_is_free_to_go() -> None:
    """4/s: four of a cost 4, two of b 3.8."""
    total, plan = solved(**CURRENT, current={"a": 3})
    assert total == pytest.approx(3.8)
    assert plan.changes == {"a": -3, "b": 2}


def test_changes_have_a_price() -> None:
    """At 0.5 each: one more a is 4 + 0.5; one a less and one b more 3.9 + 1; two of b 3.8 + 2.5."""
    outcome = run(problem(**CURRENT, current={"a": 3}, change_cost_usd_per_hour=0.5))
    assert outcome.objective is not None
    assert outcome.plan is not None
    assert outcome.objective.total == pytest.approx(4.5)
    assert outcome.objective.parts == {
        "rent_usd_per_hour": pytest.approx(4.0),
        "change_usd_per_hour": pytest.approx(0.5),
    }
    assert outcome.plan.changes == {"a": 1}


@pytest.mark.parametrize(
    ("most", "total", "changes"), [(1, 4.0, {"a": 1}), (2, 3.9, {"a": -1, "b": 1}), (5, 3.8, None)]
)
def test_changes_have_a_limit(most: int, total: float, changes: dict[str, int] | None) -> None:
    """Within 1: a fourth a. Within 2: a for b. Two of b alone are 5 changes."""
    found, plan = solved(**CURRENT, current={"a": 3}, max_changes=most)
    assert found == pytest.approx(total)
    assert plan.changes == (changes or {"a": -3, "b": 2})


def test_a_fleet_for_nothing() -> None:
    assert cost(offers(a=0.0), 3.5, {"a": 1.0}) == 0.0


@pytest.mark.parametrize("method", ["highs", "scip", "cbc"])
@pytest.mark.parametrize("rate", [1e-3, 1e-6, 1e-9, 1e-12])
def test_hardly_any_demand_still_needs_an_instance(method: str, rate: float) -> None:
    """A load below the solvers' tolerance is not served by nothing."""
    assert best(problem(offers(a=1.0), rate, {"a": 1.0}), method) == pytest.approx(1.0)


def test_hardly_any_demand_of_one_size_beside_much_of_another() -> None:
    """a serves the short ones, 1000 replicas; the one long request in eleven days needs a b of its own."""
    long = {"input_tokens": 4000, "output_tokens": 400}
    served = [profile("a", 1.0), profile("b", 1.0, **long)]
    found = cost(offers(a=1.0, b=7.0), [demand(1000.0), demand(1e-6, **long)], served)
    assert found == pytest.approx(1007.0)


def test_costs_of_a_million() -> None:
    """3.5/s for $4 an hour, of 50 output tokens: 12600 requests and 0.63 million tokens an hour."""
    outcome = run(problem(offers(a=1.0), 3.5, {"a": 1.0}))
    assert outcome.objective is not None
    measures = outcome.objective.measures
    assert measures["usd_per_million_requests"] == pytest.approx(4 / 0.0126)
    assert measures["usd_per_million_output_tokens"] == pytest.approx(4 / 0.63)
    assert (measures["instances_mean"], measures["gpus_mean"], measures["gpus_peak"]) == (4, 4, 4)


def test_the_baseline_is_the_best_single_offer() -> None:
    """11/s: two big for 10, or eight small for 8. That three of them can be had, the rule does not look at."""
    from formulations.gpu_fleet.baseline import best_single_offer

    rows = offers(big=5.0, small={"price": 1.0, "max_count": 3})
    plan = best_single_offer(problem(rows, 11.0, {"big": 10.0, "small": 1.5}))
    assert plan is not None
    assert counts(plan) == {"small": 8}


def test_the_baseline_has_no_answer_where_no_offer_serves_all() -> None:
    from formulations.gpu_fleet.baseline import best_single_offer

    long = {"input_tokens": 4000, "output_tokens": 400}
    served = [profile("a", 1.0), profile("b", 0.0), profile("a", 0.0, **long), profile("b", 1.0, **long)]
    instance = problem(offers(a=1.0, b=1.0), [demand(1.0), demand(1.0, **long)], served)
    assert best_single_offer(instance) is None
    assert best(instance) == pytest.approx(2.0)


def test_an_instance_is_described_once() -> None:
    """The helper itself: a rate alone is model m's."""
    assert fleet(offers(a=1.0), 2.0, {"a": 1.0}).demand[0].rate_per_s == 2.0
