"""Pods problems solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from formulations.outcome import Status
from formulations.pod_packing.baseline import fgd, kube_default
from formulations.pod_packing.check import check
from formulations.pod_packing.fragmentation import Fragmentation
from formulations.pod_packing.objective import price
from formulations.pod_packing.state import State
from planner.errors import OptionError
from tests.formulations.pod_packing.pods_cases import places, problem, solved

HOST = "kubernetes.io/hostname"


def apart(app: str, key: str = HOST) -> dict[str, object]:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def together(app: str, key: str) -> dict[str, object]:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def spread(app: str, key: str, skew: int) -> list[dict[str, object]]:
    rule = {"whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": app}}}
    return [{"maxSkew": skew, "topologyKey": key, **rule}]


def test_the_default_scheduler_splits_what_a_plan_keeps_whole() -> None:
    """Two nodes of 2 GPUs; 1 + 1 + 2. Least allocated puts the ones on both nodes, and the two finds none: 2 of 4 GPUs
    (3 if pods without GPU followed). Together on one node they leave the other: 4 of 4."""
    pods = [{"name": "a", "count": 2, "gpus": 1}, {"name": "b", "gpus": 2}]
    one = problem([{"name": "n", "count": 2, "gpus": 2}], pods, objective="allocation")
    assert price(one, kube_default(one)).terms["gpu_milli_allocated"] == 2000
    outcome = solved(one)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.objective.total == -4
    found = places(outcome.plan)
    assert found["default/a-0"] == found["default/a-1"] != found["default/b"]


def test_shares_do_not_cross_devices() -> None:
    """Two devices take 600 + 400 each, not a third 600: 2 × 600 + 2 × 400 = 2 GPUs of 3 × 600 + 2 × 400 asked."""
    one = problem([{"name": "n", "gpus": 2}],
                  [{"name": "a", "count": 3, "gpus": 1, "gpu_milli": 600},
                   {"name": "b", "count": 2, "gpus": 1, "gpu_milli": 400}], objective="allocation")  # fmt: skip
    outcome = solved(one)
    assert outcome.status is Status.OPTIMAL
    assert outcome.plan is not None
    assert outcome.plan.tiers[0].value == 2
    (left,) = outcome.plan.unplaced
    assert left.pod.startswith("default/a")
    assert "600 milli of one GPU" in left.reason


def test_higher_priorities_come_first_however_many_lower_ones_they_cost() -> None:
    """One node of 8 cores: a pod of 8 at priority 1, or eight of 1 at priority 0."""
    one = problem([{"name": "n"}], [{"name": "many", "count": 8}, {"name": "one", "cpu": 8, "priority": 1}])
    outcome = solved(one)
    assert outcome.status is Status.OPTIMAL
    assert list(places(outcome.plan)) == ["default/one"]
    # 0 of the first tier left out, and 8 of 8 of the second count 8 / (1 + 1).
    assert outcome.objective is not None
    assert outcome.objective.total == 4


def test_consolidation_uses_the_fewest_gpus() -> None:
    """3 GPUs asked: the node of 4 counts 4, two nodes of 2 count 4 too, all others more."""
    one = problem([{"name": "four", "gpus": 4}, {"name": "two", "count": 3, "gpus": 2}],
                  [{"name": "p", "count": 3, "gpus": 1}], objective="consolidate")  # fmt: skip
    outcome = solved(one)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.objective.total == 4


def test_consolidation_by_price_and_by_nodes() -> None:
    """The two small nodes at 1 USD each are cheaper than the large one at 3, which is fewer nodes."""
    nodes = [
        {"name": "big", "cpu": 4, "price_usd_per_hour": 3},
        {"name": "s", "count": 2, "cpu": 2, "price_usd_per_hour": 1},
    ]
    for powered, total in (("price", 2), ("nodes", 1)):
        one = problem(nodes, [{"name": "p", "count": 4}], objective="consolidate", powered=powered)
        outcome = solved(one)
        assert outcome.status is Status.OPTIMAL
        assert outcome.objective is not None
        assert outcome.objective.total == total


def test_what_cannot_all_run_is_infeasible_with_the_reason() -> None:
    one = problem([{"name": "n", "cpu": 2}], [{"name": "p", "count": 3}], objective="consolidate")
    outcome = solved(one)
    assert outcome.status is Status.INFEASIBLE
    assert "no plan can place more than 2" in outcome.reasons[0]
    large = problem([{"name": "n", "cpu": 2}], [{"name": "p", "cpu": 3}], objective="consolidate")
    assert "too large" in solved(large).reasons[0]


def test_running_pods_stay_and_count() -> None:
    """The running half of a device leaves 500; of two pods of 500 one fits."""
    one = problem([{"name": "n", "gpus": 1}],
                  [{"name": "r", "gpus": 1, "gpu_milli": 500, "node": "n"},
                   {"name": "p", "count": 2, "gpus": 1, "gpu_milli": 500}], objective="allocation")  # fmt: skip
    outcome = solved(one)
    assert outcome.status is Status.OPTIMAL
    assert outcome.plan is not None
    assert [one.running for one in outcome.plan.placements] == [True, False]
    assert outcome.plan.tiers[0].value == 1


def test_anti_affinity_across_and_within_nodes() -> None:
    """Three pods that keep apart, two nodes: two run, and that is proven; by zone of both nodes: one."""
    pods = [{"name": "p", "count": 3, "labels": {"app": "x"}, "affinity": apart("x")}]
    outcome = solved(problem([{"name": "n", "count": 2}], pods))
    assert outcome.status is Status.OPTIMAL
    assert len(places(outcome.plan)) == 2
    pods[0]["affinity"] = apart("x", "zone")
    outcome = solved(problem([{"name": "n", "count": 2, "labels": {"zone": "a"}}], pods))
    assert len(places(outcome.plan)) == 1
    assert outcome.plan is not None
    assert "anti-affinity" in outcome.plan.unplaced[0].reason


def test_a_pod_stays_away_from_one_that_wants_to_be_alone() -> None:
    """Anti-affinity of the running pod keeps a newcomer without any rule out."""
    lonely = {"name": "l", "labels": {"app": "l"}, "affinity": apart("web"), "node": "n-0"}
    one = problem(
        [{"name": "n", "count": 2}], [lonely, {"name": "web", "labels": {"app": "web"}, "cpu": 5, "count": 2}]
    )
    assert list(places(solved(one).plan).values()) == ["n-0", "n-1"]


def test_affinity_begins_with_itself_and_stays_in_one_zone() -> None:
    """Pods of 5 cores, one a node; zone a has one node, zone b two: together they are two."""
    nodes = [{"name": "a", "labels": {"zone": "a"}}, {"name": "b", "count": 2, "labels": {"zone": "b"}}]
    pods = [{"name": "p", "count": 3, "cpu": 5, "labels": {"app": "x"}, "affinity": together("x", "zone")}]
    outcome = solved(problem(nodes, pods))
    found = set(places(outcome.plan).values())
    assert found in ({"a"}, {"b-0", "b-1"})


def test_spread_over_zones() -> None:
    """Zone a has room for 8, zone b for 2: with a skew of 1 no more than 3 + 2 run."""
    nodes = [{"name": "a", "labels": {"zone": "a"}}, {"name": "b", "cpu": 2, "labels": {"zone": "b"}}]
    pods = [{"name": "p", "count": 8, "labels": {"app": "x"}, "topology_spread": spread("x", "zone", 1)}]
    outcome = solved(problem(nodes, pods))
    counts = sorted(places(outcome.plan).values())
    assert (counts.count("a"), counts.count("b")) == (3, 2)


def test_a_gang_runs_whole_or_not_at_all() -> None:
    """Room for 8 cores: the gang of 3 × 3 stays out, the others run."""
    one = problem([{"name": "n"}], [{"name": "g", "count": 3, "cpu": 3, "gang": "g"}, {"name": "p", "count": 2}])
    outcome = solved(one)
    assert sorted(places(outcome.plan)) == ["default/p-0", "default/p-1"]
    assert outcome.plan is not None
    assert check(one, outcome.plan) == []


def test_taints_selectors_and_models_are_kept() -> None:
    nodes = [
        {"name": "t", "taints": [{"key": "k", "effect": "NoSchedule"}]},
        {"name": "a", "gpus": 1, "gpu_model": "A"},
    ]
    pods = [
        {"name": "plain", "cpu": 8},
        {"name": "tolerant", "cpu": 8, "tolerations": [{"key": "k", "operator": "Exists"}], "priority": 1},
        {"name": "other", "gpus": 1, "gpu_models": ["B"]},
    ]
    outcome = solved(problem(nodes, pods))
    assert outcome.plan is not None
    assert {one.pod for one in outcome.plan.placements} == {"default/plain", "default/tolerant"}
    assert "GPU model B" in outcome.plan.unplaced[0].reason


def test_baselines_keep_every_rule() -> None:
    pods = [
        {"name": "g", "count": 3, "cpu": 3, "gang": "g"},
        {"name": "s", "count": 5, "gpus": 1, "gpu_milli": 400, "labels": {"app": "s"}, "affinity": apart("s")},
        {"name": "z", "count": 4, "labels": {"app": "z"}, "topology_spread": spread("z", HOST, 1)},
    ]
    one = problem([{"name": "n", "count": 3, "gpus": 2}], pods)
    for rule in (kube_default, fgd):
        assert check(one, rule(one)) == []


def test_fragmentation_of_a_free_node() -> None:
    """A device with 600 free, pods of 500 (3 of 4) and of 1000 (1 of 4): the 600 are lost to the latter: 150."""
    pods = [
        {"name": "r", "gpus": 1, "gpu_milli": 400, "node": "n"},
        {"name": "a", "count": 2, "gpus": 1, "gpu_milli": 500},
        {"name": "b", "gpus": 1},
    ]
    one = problem([{"name": "n", "gpus": 1}], pods)
    state = State(one)
    assert Fragmentation(one).of(np.array([0]), state.free, state.device)[0] == pytest.approx(600 / 4)


def test_pods_without_gpus_can_use_none() -> None:
    """One free GPU; of two typical pods one asks for all of it, one for none: F = 1/2 × 0 + 1/2 × 1000."""
    one = problem([{"name": "n", "gpus": 1}], [{"name": "gpu", "gpus": 1}, {"name": "bare"}], objective="allocation")
    state = State(one)
    assert Fragmentation(one).of(np.array([0]), state.free, state.device)[0] == pytest.approx(500)


def test_options_that_cannot_be_honoured() -> None:
    one = problem([{"name": "n"}], [{"name": "p"}])
    with pytest.raises(OptionError, match="one thread"):
        solved(one, num_threads=2)


def test_same_seed_same_plan() -> None:
    nodes = [{"name": "n", "count": 4, "gpus": 2, "cpu": 7}]
    pods = [
        {"name": f"p{i}", "count": 5, "gpus": 1, "gpu_milli": 200 + 130 * i, "cpu": f"{700 + 300 * i}m"}
        for i in range(4)
    ]
    one = problem(nodes, pods, objective="allocation")
    assert solved(one).plan == solved(one).plan


def test_no_pods_and_no_time() -> None:
    assert solved(problem([{"name": "n"}], [])).status is Status.OPTIMAL
