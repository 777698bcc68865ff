"""Islands of linked GPUs in a node: a pod that asks for one gets all of its GPUs there."""

from __future__ import annotations

import random
from typing import Any

import pytest

from formulations.outcome import SolveOptions
from formulations.pod_packing.check import check
from formulations.pod_packing.headroom import headroom
from formulations.pod_packing.problem import PodsProblem
from planner.errors import OptionError
from planner.pods_plan import GpuShare, PodsPlan
from tests.formulations.pod_packing.pods_cases import best_values, problem, solved


def halves(moves: bool, **wanted: Any) -> PodsProblem:
    """Two nodes of 4 GPUs in islands of 2; one GPU of each island is taken."""
    return problem(
        [{"name": "n", "count": 2, "gpus": 4, "gpu_island": 2}],
        [
            *({"name": f"a{i}", "gpus": 1, "node": f"n-{i}", "count": 2} for i in range(2)),
            {"name": "pair", "gpus": 2, **wanted},
        ],
        moves={"allowed": moves},
    )


def spread_out(one: PodsProblem) -> PodsProblem:
    """The running pods on devices 0 and 2 of their node, in both islands."""
    from dataclasses import replace

    return replace(one, pod_devices=((0,), (2,), (0,), (2,), ()))


def plan_of(one: PodsProblem, **options: Any) -> PodsPlan:
    plan = solved(one, **options).plan
    assert plan is not None
    assert not check(one, plan)
    return plan


def test_two_free_gpus_of_two_islands_are_no_pair() -> None:
    """Each island has one free GPU: a pair fits only where islands do not matter, or when a pod moves."""
    assert not plan_of(spread_out(halves(False))).unplaced
    plan = plan_of(spread_out(halves(False, one_island=True)))
    assert plan.unplaced[0].reason == "full: of 2 nodes that admit it, 2 lack 2 free GPUs of one island"
    (moves,) = [remedy for remedy in plan.remedies if remedy.way == "moves"]
    assert moves.proven
    assert len(moves.moves) == 1
    plan = plan_of(spread_out(halves(True, one_island=True)))
    assert not plan.unplaced
    assert len(plan.moves) == 1


def test_a_pod_larger_than_an_island_has_no_place() -> None:
    """Three GPUs of islands of two, on any node."""
    plan = plan_of(spread_out(halves(False, one_island=True)))
    assert plan.unplaced
    one = problem([{"name": "n", "gpus": 4, "gpu_island": 2}], [{"name": "three", "gpus": 3, "one_island": True}])
    plan = plan_of(one)
    assert "even empty: 1 lacks 3 free GPUs of one island" in plan.unplaced[0].reason
    assert [remedy.way for remedy in plan.remedies] == ["none"]


def test_check_finds_a_pair_across_islands() -> None:
    one = problem([{"name": "n", "gpus": 4, "gpu_island": 2}], [{"name": "p", "gpus": 2, "one_island": True}])
    plan = plan_of(one)
    shares = tuple(GpuShare(index=index, gpu_milli=1000) for index in (1, 2))
    across = plan.placements[0].model_copy(update={"gpus": shares})
    assert [found.rule for found in check(one, plan.model_copy(update={"placements": (across,)}))] == ["island"]


@pytest.mark.parametrize("seed", range(12))
def test_the_best_by_brute_force(seed: int) -> None:
    """Two small nodes with islands of two, pods of one to three GPUs and shares."""
    rng = random.Random(seed)
    nodes = [{"name": f"n{i}", "cpu": rng.randint(3, 8), "gpus": rng.choice([3, 4]), "gpu_island": 2} for i in range(2)]
    pods: list[dict[str, Any]] = []
    for index in range(rng.randint(3, 4)):
        gpus = rng.choice([1, 1, 2, 2, 3])
        pods.append(
            {
                "name": f"p{index}", "gpus": gpus, "one_island": rng.random() < 0.7 and gpus < 3,
                "gpu_milli": rng.choice([400, 600, 1000]) if gpus == 1 else 1000, "priority": rng.choice([0, 10]),
                "count": rng.choice([1, 2]) if index < 2 else 1,
            }
        )  # fmt: skip
    one = problem(nodes, pods)
    outcome = solved(one)
    assert outcome.plan is not None
    assert not check(one, outcome.plan)
    best = best_values(one)
    assert best is not None
    assert tuple(-tier.value for tier in outcome.plan.tiers) == best
    for tier, value in zip(outcome.plan.tiers, best, strict=True):
        assert tier.bound is not None
        assert tier.bound >= -value


def test_what_does_not_know_islands_says_so() -> None:
    one = spread_out(halves(True, one_island=True))
    for method in ("patterns", "repair"):
        with pytest.raises(OptionError, match="islands"):
            solved(one, method=method)
    with pytest.raises(OptionError, match="island"):
        list(headroom(one, "default/pair", [0], SolveOptions()))


def test_islands_that_nobody_asks_for_change_nothing() -> None:
    """No pod is bound where every node is one island, or no pod asks."""
    whole = problem([{"name": "n", "gpus": 4}], [{"name": "p", "gpus": 2, "one_island": True}])
    nobody = problem([{"name": "n", "gpus": 4, "gpu_island": 2}], [{"name": "p", "gpus": 2}])
    assert not whole.bound.any()
    assert not nobody.bound.any()
