"""Deployments small enough for pencil and paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from deploy_cases import described, offer, planned, problem, run, worker

from formulations.deployment.check import check
from formulations.deployment.cuts import CUTS, couplings
from formulations.deployment.formulation import DEPLOYMENT
from formulations.outcome import SolveOptions, Status


def test_services_share_a_node(tmp_path: Path) -> None:
    """a and b need one GPU each. A pair at 3 holds both; apart they would take two singles at 2."""
    rows = [worker("wa", 5, "a"), worker("wb", 5, "b")]
    cost, plan = planned(problem(tmp_path, {"a": 4, "b": 4}, rows, [offer("single", 2), offer("pair", 3, 2)]))
    assert cost == pytest.approx(3)
    (node,) = plan.nodes
    assert (node.offer, node.count, node.names) == ("pair", 1, ("pair-1",))
    assert {(pod.service, pod.node) for pod in plan.pods} == {("a", "pair-1"), ("b", "pair-1")}
    assert sorted(d for pod in plan.pods for d in pod.gpus) == [0, 1]


def test_prefill_and_decode_workers_replace_a_mixed_one(tmp_path: Path) -> None:
    """8 requests/s: mixed workers of 3 take 3 GPUs; one that prefills 8 and one that decodes 8 take 2."""
    rows = [worker("mix", 3), worker("fills", 8, role="P"), worker("writes", 8, role="D")]
    cost, plan = planned(problem(tmp_path, {"m": 8}, rows, [offer("single", 1)]))
    assert cost == pytest.approx(2)
    assert {row.role for row in plan.workers} == {"prefill", "decode"}


def test_standing_nodes_are_used_before_anything_is_rented(tmp_path: Path) -> None:
    """Two GPUs of a standing node of four are free: one of three workers is rented."""
    nodes = [{"name": "own", "device": "l4", "gpus": 4, "free_gpus": 2}]
    cost, plan = planned(problem(tmp_path, {"m": 14}, [worker("w", 5)], [offer("single", 2)], nodes=nodes))
    assert cost == pytest.approx(2)
    assert Counter(pod.node for pod in plan.pods) == {"own": 2, "single-1": 1}
    # Which devices are taken is not told of nodes that are written down: the last ones count as free.
    assert {d for pod in plan.pods if pod.node == "own" for d in pod.gpus} == {2, 3}


def test_a_standing_node_may_cost_something(tmp_path: Path) -> None:
    nodes = [{"name": "own", "device": "l4", "gpus": 1, "price_usd_per_hour": 3.0}]
    cost, plan = planned(problem(tmp_path, {"m": 5}, [worker("w", 5)], [offer("single", 2)], nodes=nodes))
    assert cost == pytest.approx(2)
    assert plan.nodes[0].offer == "single"


def test_free_gpus_of_different_nodes_are_not_one_place(tmp_path: Path) -> None:
    """Two standing nodes with one free GPU each hold no worker of two."""
    nodes = [{"name": "own", "device": "l4", "gpus": 2, "free_gpus": 1, "count": 2}]
    rows = [worker("large", 5, gpus=2)]
    cost, plan = planned(problem(tmp_path, {"m": 5}, rows, [offer("pair", 4, 2)], nodes=nodes))
    assert cost == pytest.approx(4)
    assert {pod.node for pod in plan.pods} == {"pair-1"}


def test_no_more_workers_run_than_are_needed(tmp_path: Path) -> None:
    """A node of eight is rented for one worker: seven GPUs stay empty, though workers on them would cost nothing."""
    _, plan = planned(problem(tmp_path, {"m": 5}, [worker("w", 5)], [offer("eight", 2, 8)]))
    assert len(plan.pods) == 1


def test_a_worker_of_two_nodes_has_them_whole(tmp_path: Path) -> None:
    """A worker of four GPUs takes two pairs; the small service beside it needs a third."""
    rows = [worker("wide", 9, "a", gpus=4), worker("small", 5, "b")]
    cost, plan = planned(problem(tmp_path, {"a": 9, "b": 4}, rows, [offer("pair", 3, 2)]))
    assert cost == pytest.approx(9)
    wide = [pod for pod in plan.pods if pod.service == "a"]
    assert [(pod.part, pod.parts, pod.gpus) for pod in wide] == [(0, 2, (0, 1)), (1, 2, (0, 1))]
    assert len({pod.node for pod in wide}) == 2
    assert {row.worker: row.nodes for row in plan.workers} == {"wide": 2, "small": 1}
    _, rule = DEPLOYMENT.baseline(problem(tmp_path, {"a": 9, "b": 4}, rows, [offer("pair", 3, 2)]))
    assert rule is not None
    assert rule.cost_usd_per_hour == pytest.approx(9)


def test_hours_stand_for_so_many(tmp_path: Path) -> None:
    """Rates 5 for 6 hours and 15 for 18: (6 x 1 + 18 x 3) / 24 = 2.5 instances of 1 USD/h."""
    cost, plan = planned(problem(tmp_path, {"m": [5.0, 15.0]}, [worker("w", 5)], [offer("o", 1)], hours=(6, 18)))
    assert cost == pytest.approx(2.5)
    assert len(plan.hours) == 18
    assert len(plan.pods) == 3


def test_a_spare_node(tmp_path: Path) -> None:
    """10 requests/s with workers of 5: two nodes, and a third for the loss of one; on pairs, two of 1.5."""
    rows = [worker("w", 5)]
    cost, plan = planned(problem(tmp_path, {"m": 10}, rows, [offer("single", 1), offer("pair", 1.8, 2)], spare=1))
    assert cost == pytest.approx(3)
    assert plan.fleet.periods[0].survival
    _, rule = DEPLOYMENT.baseline(problem(tmp_path, {"m": 10}, rows, [offer("single", 1)], spare=1))
    assert rule is not None
    assert rule.cost_usd_per_hour == pytest.approx(3)


def test_utilisation_leaves_room(tmp_path: Path) -> None:
    """At 80 % a worker of 5 is given 4."""
    assert planned(problem(tmp_path, {"m": 4.0}, [worker("w", 5)], [offer("o", 1)], utilisation=0.8))[0] == 1
    assert planned(problem(tmp_path, {"m": 4.1}, [worker("w", 5)], [offer("o", 1)], utilisation=0.8))[0] == 2


def test_a_place_is_worth_what_it_saves(tmp_path: Path) -> None:
    """The relaxed plan pays 1 USD/h a GPU on pairs, so a place for two is worth 2."""
    _, plan = planned(problem(tmp_path, {"m": 20}, [worker("w", 5, gpus=2), worker("s", 2)], [offer("pair", 2, 2)]))
    prices = {one.gpus: one.usd_per_hour for one in plan.slot_prices}
    assert prices[2] == pytest.approx(2)


def test_places_on_spot_nodes_have_prices_of_their_own(tmp_path: Path) -> None:
    """The last GPU is rented at 3: an ordinary place saves that, one on spot nine tenths of it, whatever it costs."""
    found = [offer("few", 1, max_count=4), offer("more", 3)]
    found.append(offer("cheap", 0.5, market="spot", availability=0.9, max_count=3))
    _, plan = planned(problem(tmp_path, {"m": 50}, [worker("w", 5)], found))
    assert {one.spot: one.usd_per_hour for one in plan.slot_prices} == {
        False: pytest.approx(3),
        True: pytest.approx(2.7),
    }


def test_what_each_coupling_pays(tmp_path: Path) -> None:
    """a and b on a pair of 3. Apart: two singles at 2. Priced one by one, GPUs cost 1.5, and then the pair as well."""
    rows = [worker("wa", 5, "a"), worker("wb", 5, "b")]
    instance = problem(tmp_path, {"a": 4, "b": 4}, rows, [offer("single", 2), offer("pair", 3, 2)])
    _, plan = planned(instance)
    found = {one.cut: one.usd_per_hour for one in couplings(instance, plan, CUTS, SolveOptions(time_limit_s=20))}
    # Nothing is cut where there are no hours, no roles and no experts.
    assert found == {cut: pytest.approx(4.0 if cut == "sharing" else 3.0) for cut in ("sharing", "workers", "nodes")}


def test_cut_hours_are_all_like_the_busiest(tmp_path: Path) -> None:
    instance = problem(tmp_path, {"m": [5.0, 15.0]}, [worker("w", 5)], [offer("o", 1)])
    (found,) = couplings(instance, planned(instance)[1], ["hours"], SolveOptions(time_limit_s=20))
    assert found.usd_per_hour == pytest.approx(3)
    assert found.extra == pytest.approx(0.5)


def test_the_plain_rule_is_no_better(tmp_path: Path) -> None:
    """A worker of two GPUs has the most requests/s a GPU, so the rule rents two pairs; one and a single would do."""
    rows = [worker("small", 4), worker("large", 10, gpus=2)]
    instance = problem(tmp_path, {"m": 13}, rows, [offer("single", 2), offer("pair", 3.5, 2)])
    name, rule = DEPLOYMENT.baseline(instance)
    assert name == "stage by stage"
    assert rule is not None
    assert check(instance, rule) == []
    assert rule.cost_usd_per_hour == pytest.approx(7)
    assert planned(instance)[0] == pytest.approx(5.5)


def test_the_plain_rule_chooses_between_offers_of_one_price(tmp_path: Path) -> None:
    """One worker of one GPU: both offers cost 3, and the last node of neither is worth replacing."""
    found = [offer("one", 3), offer("two", 3, 2), offer("other", 3)]
    rule = DEPLOYMENT.baseline(problem(tmp_path, {"m": 4}, [worker("w", 5)], found))[1]
    assert rule is not None
    assert rule.cost_usd_per_hour == pytest.approx(3)


def test_infeasible_in_the_words_of_the_demand(tmp_path: Path) -> None:
    """One instance of 5 requests/s for 12: two more, or 7 requests/s less."""
    outcome = run(problem(tmp_path, {"chat": 12}, [worker("w", 5, "chat")], [offer("o", 1, max_count=1)]))
    assert outcome.status is Status.INFEASIBLE
    assert any("max_count" in reason for reason in outcome.reasons)
    assert any("raise max_count of o from 1 to 3" in way for way in outcome.relaxations)


def test_no_time_is_no_plan_and_no_proof(tmp_path: Path) -> None:
    rows = [worker(f"w{g}", 3.1 * g, gpus=g) for g in (1, 2, 4, 8)]
    found = [offer(f"o{g}", 1.0 * g**0.9, g) for g in (1, 2, 4, 8)]
    outcome = run(problem(tmp_path, {"m": 77}, rows, found), time_limit_s=1e-9)
    # The stage-by-stage plan is there without a search; nothing is proven of it.
    assert outcome.status is Status.FEASIBLE
    assert outcome.plan is not None
    assert outcome.bound is None or outcome.bound.value <= outcome.plan.cost_usd_per_hour


def test_no_time_and_no_plain_plan_within_the_limits(tmp_path: Path) -> None:
    """The rule's plan costs more than the budget, so there is none to fall back to."""
    rows = [worker(f"w{g}", 3.1 * g, gpus=g) for g in (1, 2, 4, 8)]
    found = [offer(f"o{g}", 1.0 * g**0.9, g) for g in (1, 2, 4, 8)]
    outcome = run(problem(tmp_path, {"m": 77}, rows, found, budget_usd_per_hour=1.0), time_limit_s=1e-9)
    assert outcome.plan is None


def test_the_same_instance_has_the_same_hash_and_another_one_another(tmp_path: Path) -> None:
    rows = [worker("w", 5)]
    one, two = (problem(tmp_path, {"m": 5}, rows, [offer("o", 1)]).sha256 for _ in range(2))
    assert one == two
    assert problem(tmp_path, {"m": 6}, rows, [offer("o", 1)]).sha256 != one
    assert problem(tmp_path, {"m": 5}, [worker("w", 6)], [offer("o", 1)]).sha256 != one
    assert described(tmp_path, {"m": 5}, rows, [offer("o", 1)]).headroom == 0
