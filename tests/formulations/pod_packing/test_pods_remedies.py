"""What would place pods without a place: fewest moves, nodes to add, and what cannot be."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations.pod_packing.check import check
from formulations.pod_packing.problem import PodsProblem
from planner.pods_plan import PodsPlan, Remedy
from tests.formulations.pod_packing.pods_cases import problem, solved


def plan_of(one: PodsProblem, **options: Any) -> PodsPlan:
    plan = solved(one, **options).plan
    assert plan is not None
    return plan


def told(plan: PodsPlan, way: str) -> list[Remedy]:
    return [one for one in plan.remedies if one.way == way]


def test_one_move_makes_room() -> None:
    """Two nodes of 2 GPUs run a pod of 1 GPU each: the pod of 2 fits when one of them goes to the other's node."""
    one = problem(
        [{"name": "n", "count": 2, "gpus": 2}],
        [{"name": "a", "gpus": 1, "node": "n-0"}, {"name": "b", "gpus": 1, "node": "n-1"}, {"name": "big", "gpus": 2}],
    )
    (moves,) = told(plan_of(one), "moves")
    assert moves.proven
    assert moves.pods == ("default/big",)
    assert len(moves.moves) == 1
    assert {moves.moves[0].from_node, moves.moves[0].to_node} == {"n-0", "n-1"}
    assert moves.placements[0].node == moves.moves[0].from_node


def test_no_moves_help_and_nodes_do() -> None:
    """Three pods of 2 GPUs wait for a full node. A node of 2 GPUs costs 3, one of 4 costs 5: one of each, 8, is less
    than three small ones, 9, or two large ones, 10."""
    one = problem(
        [{"name": "n", "gpus": 1}],
        [{"name": "a", "gpus": 1, "node": "n"}, {"name": "big", "gpus": 2, "count": 3}],
        offers=[
            {"name": "small", "cpu": 8, "memory": "8Gi", "gpus": 2, "gpu_model": "L4", "price_usd_per_hour": 3},
            {"name": "large", "cpu": 8, "memory": "8Gi", "gpus": 4, "gpu_model": "L4", "price_usd_per_hour": 5},
        ],
    )
    plan = plan_of(one)
    (nodes,) = told(plan, "nodes")
    assert nodes.proven
    assert nodes.price_usd_per_hour == 8
    assert {(node.name, node.count) for node in nodes.nodes} == {("small", 1), ("large", 1)}
    assert not told(plan, "moves")


def test_two_classes_share_nodes_that_are_added() -> None:
    """Pods of 3 and of 1 cores, two each, on nodes of 4 cores: two nodes, not three."""
    one = problem(
        [{"name": "n", "cpu": 1, "memory": "8Gi"}],
        [{"name": "r", "cpu": 1, "node": "n"}, {"name": "a", "cpu": 3, "count": 2}, {"name": "b", "count": 2}],
        offers=[{"name": "o", "cpu": 4, "memory": "8Gi"}],
    )
    both = max(told(plan_of(one), "nodes"), key=lambda remedy: len(remedy.pods))
    assert both.proven
    assert len(both.pods) == 4
    assert [node.count for node in both.nodes] == [2]


@pytest.mark.parametrize("seed", range(8))
def test_cheapest_nodes_for_one_class_by_brute_force(seed: int) -> None:
    """Every number of nodes of three offers, some of them limited."""
    rng = random.Random(seed)
    pods = rng.randint(3, 12)
    offers = [
        {
            "name": f"o{k}", "cpu": rng.randint(1, 5), "memory": "64Gi", "price_usd_per_hour": rng.randint(2, 9),
            "count": rng.choice([None, 1, 3]),
        }
        for k in range(3)
    ]  # fmt: skip
    one = problem([{"name": "n", "cpu": 1}], [{"name": "r", "node": "n"}, {"name": "p", "count": pods}], offers=offers)
    costs = [
        sum(n * offer["price_usd_per_hour"] for n, offer in zip(chosen, offers, strict=True))
        for chosen in product(*(range(min(pods, offer["count"] or pods) + 1) for offer in offers))
        if sum(n * offer["cpu"] for n, offer in zip(chosen, offers, strict=True)) >= pods
    ]
    found = told(plan_of(one), "nodes")
    assert [remedy.price_usd_per_hour for remedy in found] == ([min(costs)] if costs else [])
    assert all(remedy.proven for remedy in found)


def test_offers_are_limited() -> None:
    """Two nodes may be added, and three pods need a node each: nothing is told rather than too little."""
    one = problem(
        [{"name": "n", "gpus": 1}],
        [{"name": "a", "gpus": 1, "node": "n"}, {"name": "p", "gpus": 1, "count": 3}],
        offers=[{"name": "o", "cpu": 8, "memory": "8Gi", "gpus": 1, "count": 2}],
    )
    assert not told(plan_of(one), "nodes")


def test_nodes_like_those_there() -> None:
    """Without offers or prices: five pods of 1 GPU on nodes of 2 need three more of them."""
    one = problem([{"name": "n", "gpus": 2}], [{"name": "p", "gpus": 1, "count": 7}])
    (nodes,) = told(plan_of(one), "nodes")
    assert nodes.proven
    assert nodes.price_usd_per_hour is None
    assert [(node.name, node.count) for node in nodes.nodes] == [("like n", 3)]
    assert len(nodes.pods) == 5


def test_a_gang_counts_what_is_free() -> None:
    """A gang of 4 pods of 1 GPU, 1 GPU free: three more nodes of 1 GPU, since the free one takes the fourth."""
    one = problem([{"name": "n", "gpus": 1}], [{"name": "g", "gpus": 1, "count": 4, "gang": "g"}], objective="priority")
    plan = plan_of(one)
    (nodes,) = told(plan, "nodes")
    assert [node.count for node in nodes.nodes] == [3]
    assert len(nodes.pods) == 4
    (none,) = told(plan, "none")
    assert "no moves place" in none.text


def test_moves_for_a_gang() -> None:
    """Two pods of 2 GPUs, all or none; nodes of 2, 2, 2 and 1 + 1 of their GPUs used: both singles meet on one node."""
    one = problem(
        [{"name": "n", "count": 3, "gpus": 2}],
        [
            {"name": "a", "gpus": 1, "node": "n-0"},
            {"name": "b", "gpus": 1, "node": "n-1"},
            {"name": "g", "gpus": 2, "count": 2, "gang": "g"},
        ],
    )
    (moves,) = told(plan_of(one), "moves")
    assert moves.proven
    assert len(moves.moves) == 1
    assert len(moves.placements) == 2


AFFINE = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        ({"node_selector": {"zone": "north"}}, "node selector zone In north"),
        ({"gpus": 9}, "lacks 9 free GPUs"),
        (
            {"affinity": {"podAffinity": {REQUIRED: [AFFINE]}, "podAntiAffinity": {REQUIRED: [AFFINE]}}},
            "affinity to pods with app In x in default by kubernetes.io/hostname contradicts anti-affinity",
        ),
        (
            {
                "node_selector": {"a": "b"},
                "affinity": {
                    "nodeAffinity": {
                        REQUIRED: {
                            "nodeSelectorTerms": [
                                {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}
                            ]
                        }
                    }
                },
            },
            "a In b contradicts a NotIn b",
        ),
    ],
)
def test_what_cannot_be_is_told(pod: dict[str, Any], words: str) -> None:
    """No node there or on offer takes the pod: the reason, with the pair that contradicts itself."""
    one = problem([{"name": "n", "gpus": 2}], [{"name": "p", **pod}])
    plan = plan_of(one)
    (none,) = told(plan, "none")
    assert none.proven
    assert words in none.text
    assert words in plan.unplaced[0].reason
    assert not told(plan, "nodes")


def test_affinity_to_oneself_is_no_contradiction() -> None:
    """A pod that means itself begins a group, and anti-affinity lets no second one in."""
    rules = {"podAffinity": {REQUIRED: [AFFINE]}, "podAntiAffinity": {REQUIRED: [AFFINE]}}
    one = problem([{"name": "n", "count": 2}], [{"name": "p", "labels": {"app": "x"}, "affinity": rules}])
    assert not plan_of(one).unplaced


def test_pinned_pods_do_not_move_and_budgets_are_kept() -> None:
    """The only pod that could make room may not be disturbed: no moves help."""
    from dataclasses import replace

    from formulations.pod_packing.problem import EvictionBudget

    one = problem(
        [{"name": "n", "count": 2, "gpus": 2}],
        [{"name": "a", "gpus": 1, "node": "n-0"}, {"name": "b", "gpus": 1, "node": "n-1"}, {"name": "big", "gpus": 2}],
    )
    assert one.could_leave is not None
    budget = EvictionBudget("all", np.array([True, True, False]), 0)
    kept = replace(one, could_leave=replace(one.could_leave, budgets=(budget,)))
    pinned = replace(one, could_leave=replace(one.could_leave, movable=np.zeros(3, dtype=np.bool_)))
    for case in (kept, pinned):
        plan = plan_of(case)
        assert not told(plan, "moves")
        assert "no moves place" in told(plan, "none")[0].text


def test_a_remedy_without_room_is_found_by_the_check() -> None:
    """Moves that lead nowhere: the pod goes where the other one still is."""
    one = problem(
        [{"name": "n", "count": 2, "gpus": 2}],
        [{"name": "a", "gpus": 1, "node": "n-0"}, {"name": "b", "gpus": 1, "node": "n-1"}, {"name": "big", "gpus": 2}],
    )
    plan = plan_of(one)
    assert not check(one, plan)
    (moves,) = told(plan, "moves")
    broken = plan.model_copy(update={"remedies": (moves.model_copy(update={"moves": ()}),)})
    assert [violation.rule for violation in check(one, broken)] == ["remedy"]


def test_consolidation_that_cannot_be_names_nodes_to_add() -> None:
    """Three pods of 1 GPU must run on 1 GPU: two more nodes like it, beside what fits."""
    one = problem([{"name": "n", "gpus": 1}], [{"name": "p", "gpus": 1, "count": 3}], objective="consolidate")
    outcome = solved(one)
    assert outcome.plan is None
    assert len(outcome.relaxations) == 1
    assert "2 more nodes like n" in outcome.relaxations[0]


def test_no_time_no_remedies() -> None:
    """Below two seconds all time is for the plan."""
    from formulations.base import solve
    from formulations.outcome import SolveOptions
    from formulations.pod_packing.formulation import POD_PACKING

    one = problem([{"name": "n", "gpus": 1}], [{"name": "p", "gpus": 1, "count": 3}])
    outcome = solve(POD_PACKING, one, SolveOptions(time_limit_s=1.0))
    assert outcome.plan is not None
    assert not outcome.plan.remedies


def fewest_moves(one: PodsProblem) -> int | None:
    """By trying every node for every pod, cores alone; None where nothing places the pending pod."""
    running = np.flatnonzero(one.pod_node >= 0).tolist()
    (waiting,) = np.flatnonzero(one.pod_node < 0).tolist()
    best: int | None = None
    for nodes in product(range(one.num_nodes), repeat=len(running) + 1):
        used = np.zeros_like(one.capacity)
        for pod, node in zip([*running, waiting], nodes, strict=True):
            used[node] += one.request[one.pod_class[pod]]
        if (used <= one.capacity).all():
            moved = sum(int(one.pod_node[pod]) != node for pod, node in zip(running, nodes[:-1], strict=True))
            best = moved if best is None else min(best, moved)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_fewest_moves_by_brute_force(seed: int) -> None:
    """Three nodes, up to six pods of different sizes, one that waits."""
    rng = random.Random(seed)
    pods: list[dict[str, Any]] = []
    for node in range(3):
        left = 8
        while left > 2 and len(pods) < 6:
            cores = rng.randint(1, min(4, left))
            pods.append({"name": f"r{len(pods)}", "cpu": cores, "node": f"n-{node}"})
            left -= cores
            if rng.random() < 0.4:
                break
    free = [8 - sum(pod["cpu"] for pod in pods if pod["node"] == f"n-{node}") for node in range(3)]
    wanted = {"name": "w", "cpu": min(8, max(free) + rng.randint(1, 2))}
    one = problem([{"name": "n", "count": 3}], [*pods, wanted])
    plan = plan_of(one)
    best = fewest_moves(one)
    found = told(plan, "moves")
    if best is None:
        assert not found
        assert told(plan, "none")
    else:
        assert len({move.pod for move in found[0].moves}) == best
        assert found[0].proven
