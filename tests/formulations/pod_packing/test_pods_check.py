"""The check finds every rule that a plan breaks, and nothing in plans that break none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from formulations.pod_packing.check import check
from planner.pods_plan import GpuShare, PodMove, PodsPlan
from tests.formulations.pod_packing.pods_cases import problem, solved
from tests.formulations.pod_packing.test_pods_by_hand import HOST, apart, spread, together

ONE = problem(
    [{"name": "a", "gpus": 2, "labels": {"zone": "a"}}, {"name": "b", "gpus": 2, "labels": {"zone": "b"}},
     {"name": "t", "taints": [{"key": "k", "effect": "NoExecute"}]}],
    [{"name": "r", "gpus": 1, "gpu_milli": 500, "node": "a"}, {"name": "half", "gpus": 1, "gpu_milli": 500},
     {"name": "large", "cpu": 7}, {"name": "whole", "gpus": 1}],
)  # fmt: skip
PLAN = solved(ONE).plan
assert PLAN is not None


def changed(name: str, **what: Any) -> PodsPlan:
    assert PLAN is not None
    rows = tuple(one.model_copy(update=what) if one.pod == f"default/{name}" else one for one in PLAN.placements)
    return PLAN.model_copy(update={"placements": rows})


def without(pod: str) -> PodsPlan:
    assert PLAN is not None
    return PLAN.model_copy(update={"placements": tuple(one for one in PLAN.placements if one.pod != f"default/{pod}")})


def test_the_plan_itself_is_clean() -> None:
    assert PLAN is not None
    assert check(ONE, PLAN) == []


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("pod", lambda: without("half")),
        ("pod", lambda: changed("half", pod="default/none")),
        ("pod", lambda: changed("half", pod="default/whole")),
        ("node", lambda: changed("half", node="nowhere")),
        ("running", lambda: changed("r", node="b")),
        ("running", lambda: changed("r", running=False)),
        ("running", lambda: changed("half", running=True)),
        ("allowed", lambda: changed("large", node="t")),
        ("devices", lambda: changed("half", gpus=())),
        ("devices", lambda: changed("half", gpus=(GpuShare(index=0, gpu_milli=400),))),
        ("devices", lambda: changed("half", gpus=(GpuShare(index=7, gpu_milli=500),))),
        ("device_full", lambda: changed("whole", node="a", gpus=(GpuShare(index=0, gpu_milli=1000),))),
        ("moves", lambda: PLAN.model_copy(update={"evictions": ("default/r",)})),
        (
            "moves",
            lambda: PLAN.model_copy(
                update={"moves": (PodMove.model_validate({"step": 0, "pod": "default/r", "from": "a", "to": "b"}),)}
            ),
        ),
    ],
)
def test_broken_plans(rule: str, broken: Callable[[], PodsPlan]) -> None:
    assert rule in {one.rule for one in check(ONE, broken())}


def all_on(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], where: list[str], **more: Any) -> set[str]:
    """Rules that break when pods are put on these nodes in turn."""
    one = problem(nodes, pods, **more)
    rows = [
        {"pod": name, "node": node, "running": one.pod_node[index] >= 0}
        for index, (name, node) in enumerate(zip(one.pod_names, where, strict=True))
        if node
    ]
    left = [{"pod": name, "reason": "x"} for name, node in zip(one.pod_names, where, strict=True) if not node]
    return {found.rule for found in check(one, PodsPlan.model_validate({"placements": rows, "unplaced": left}))}


ZONES = [{"name": "a", "count": 2, "labels": {"zone": "a"}}, {"name": "b", "labels": {"zone": "b"}}]


def test_amounts() -> None:
    assert all_on(ZONES, [{"name": "p", "count": 2, "cpu": 5}], ["b", "b"]) == {"amount"}


def test_anti_affinity_both_ways() -> None:
    pods = [{"name": "p", "labels": {"app": "x"}}, {"name": "q", "affinity": apart("x", "zone")}]
    assert all_on(ZONES, pods, ["a-0", "a-1"]) == {"anti_affinity"}
    assert all_on(ZONES, pods, ["a-0", "b"]) == set()
    assert all_on(ZONES, [{**pods[0]}, {**pods[1], "node": "a-1"}], ["a-0", "a-1"]) == {"anti_affinity"}


def test_affinity() -> None:
    pods = [{"name": "p", "labels": {"app": "x"}}, {"name": "q", "affinity": together("x", "zone")}]
    assert all_on(ZONES, pods, ["a-0", "a-1"]) == set()
    assert all_on(ZONES, pods, ["a-0", "b"]) == {"affinity"}
    own = [{"name": "p", "count": 2, "labels": {"app": "x"}, "affinity": together("x", "zone")}]
    assert all_on(ZONES, own, ["a-0", "a-1"]) == set()
    assert all_on(ZONES, own, ["a-0", "b"]) == {"affinity"}


def test_spread_and_its_labels() -> None:
    pods = [{"name": "p", "count": 3, "labels": {"app": "x"}, "topology_spread": spread("x", "zone", 1)}]
    assert all_on(ZONES, pods, ["a-0", "a-1", "b"]) == set()
    assert all_on(ZONES, pods, ["a-0", "a-1", ""]) == {"spread"}
    assert all_on([*ZONES, {"name": "c"}], pods, ["a-0", "b", "c"]) == {"spread"}


def test_gangs_and_consolidation() -> None:
    pods = [{"name": "p", "count": 2, "gang": "g"}]
    assert all_on(ZONES, pods, ["a-0", ""]) == {"gang"}
    assert all_on(ZONES, [{"name": "p"}], [""], objective="consolidate") == {"everything"}


def test_one_on_each_host() -> None:
    pods = [{"name": "p", "count": 2, "labels": {"app": "x"}, "affinity": apart("x", HOST)}]
    assert all_on(ZONES, pods, ["b", "b"]) == {"anti_affinity"}
