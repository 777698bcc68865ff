"""The order of moves: by hand, and every prefix by the independent check."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from formulations.pod_packing.check import check
from formulations.pod_packing.ordering import Order, ordered
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.state import State
from planner.pods_plan import PodsPlan
from tests.formulations.pod_packing.pods_cases import problem

FREE = {"moves": {"allowed": True}}


def cluster(nodes: list[dict[str, Any]], pods: list[dict[str, Any]]) -> PodsProblem:
    return problem(nodes, pods, **FREE)


def plan_of(one: PodsProblem, targets: dict[str, str]) -> tuple[Order, PodsPlan]:
    """The plan that moves pods to other nodes, and its order."""
    pods, nodes = ({name: index for index, name in enumerate(names)} for names in (one.pod_names, one.node_names))
    state = State(one)
    for name in targets:
        state.take(pods[name])
    for name, node in targets.items():
        pod = pods[name]
        state.place(pod, nodes[node], state.devices(int(one.pod_class[pod]), nodes[node]))
    order = ordered(one, {pod: state.place_of.get(pod) for pod in sorted(state.gone)})
    plan = state.plan({}).model_copy(update={"moves": order.moves, "evictions": order.evictions})
    return order, plan


def ways(order: Order) -> list[tuple[int, str, str, str]]:
    return [(move.step, move.pod.rpartition("/")[2], move.to_node, move.way) for move in order.moves]


def test_a_chain_goes_from_its_free_end() -> None:
    """c has room; b's pod goes there first, then a's pod to b. Both are whole nodes of 8 cores."""
    one = cluster(
        [{"name": "a"}, {"name": "b"}, {"name": "c"}],
        [{"name": "p", "cpu": 8, "node": "a"}, {"name": "q", "cpu": 8, "node": "b"}],
    )
    order, plan = plan_of(one, {"default/p": "b", "default/q": "c"})
    assert ways(order) == [(1, "q", "c", "direct"), (2, "p", "b", "direct")]
    assert check(one, plan) == []


def test_a_circle_is_broken_by_a_spare_slot() -> None:
    """Two full nodes swap their pods over the third."""
    one = cluster(
        [{"name": "a"}, {"name": "b"}, {"name": "c"}],
        [{"name": "p", "cpu": 8, "node": "a"}, {"name": "q", "cpu": 7, "node": "b"}],
    )
    order, plan = plan_of(one, {"default/p": "b", "default/q": "a"})
    assert sorted(way for *_, way in ways(order)) == ["direct", "direct", "spare"]
    assert check(one, plan) == []


def test_a_circle_without_a_spare_slot_is_broken_by_an_eviction() -> None:
    """Two full nodes and nothing else: one pod stops before it starts again."""
    one = cluster(
        [{"name": "a"}, {"name": "b"}],
        [{"name": "p", "cpu": 8, "node": "a"}, {"name": "q", "cpu": 7, "node": "b"}],
    )
    order, plan = plan_of(one, {"default/p": "b", "default/q": "a"})
    first = next(move for move in order.moves if move.way == "evict-first")
    other = next(move for move in order.moves if move.way == "direct")
    assert first.step <= other.step < (first.arrives or 0)
    assert check(one, plan) == []


def test_devices_make_a_circle_where_amounts_do_not() -> None:
    """Cores are plenty; p holds the only GPU of a, q the only one of b."""
    one = cluster(
        [{"name": "a", "gpus": 1}, {"name": "b", "gpus": 1}],
        [{"name": "p", "gpus": 1, "node": "a"}, {"name": "q", "gpus": 1, "cpu": 2, "node": "b"}],
    )
    order, plan = plan_of(one, {"default/p": "b", "default/q": "a"})
    assert "evict-first" in {move.way for move in order.moves}
    assert check(one, plan) == []


def swapped(plan: PodsPlan) -> PodsPlan:
    """The steps backwards."""
    last = max(move.step for move in plan.moves)
    moves = tuple(move.model_copy(update={"step": last + 1 - move.step}) for move in plan.moves)
    return plan.model_copy(update={"moves": tuple(sorted(moves, key=lambda move: move.step))})


def together(plan: PodsPlan) -> PodsPlan:
    return plan.model_copy(update={"moves": tuple(move.model_copy(update={"step": 1}) for move in plan.moves)})


@pytest.mark.parametrize("change", [swapped, together])
def test_a_wrong_order_is_found(change: Any) -> None:
    """p cannot start on b while q is there, not even in the same step: old places are held to its end."""
    one = cluster(
        [{"name": "a"}, {"name": "b"}, {"name": "c"}],
        [{"name": "p", "cpu": 8, "node": "a"}, {"name": "q", "cpu": 8, "node": "b"}],
    )
    _, plan = plan_of(one, {"default/p": "b", "default/q": "c"})
    assert "prefix" in {one.rule for one in check(one, change(plan))}


def broken(plan: PodsPlan, **change: Any) -> PodsPlan:
    first, *rest = plan.moves
    return plan.model_copy(update={"moves": (first.model_copy(update=change), *rest)})


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"from_node": "c"}, "moves"),
        ({"to_node": "a"}, "moves"),
        ({"to_node": "nowhere"}, "moves"),
        ({"pod": "default/nobody"}, "moves"),
        ({"arrives": 3}, "moves"),
        ({"way": "evict-first"}, "moves"),
    ],
)
def test_moves_that_do_not_lead_to_the_places_are_found(change: dict[str, Any], rule: str) -> None:
    one = cluster([{"name": "a"}, {"name": "b"}, {"name": "c"}], [{"name": "p", "cpu": 8, "node": "a"}])
    _, plan = plan_of(one, {"default/p": "b"})
    assert check(one, plan) == []
    assert rule in {found.rule for found in check(one, broken(plan, **change))}


def test_a_move_without_a_list_is_found() -> None:
    """A pod that is elsewhere in the plan needs a move; one that is gone needs an eviction."""
    one = cluster([{"name": "a"}, {"name": "b"}], [{"name": "p", "node": "a"}])
    _, plan = plan_of(one, {"default/p": "b"})
    assert {found.rule for found in check(one, plan.model_copy(update={"moves": ()}))} == {"running"}


def test_leave_is_kept() -> None:
    """One move allowed and two made; a budget of none; a pod that may not be evicted."""
    one = cluster([{"name": "a"}, {"name": "b"}], [{"name": "p", "count": 2, "node": "a"}])
    _, plan = plan_of(one, {"default/p-0": "b", "default/p-1": "b"})
    assert check(one, plan) == []
    assert one.leave is not None
    less = replace(one, leave=replace(one.leave, most=1))
    assert {found.rule for found in check(less, plan)} == {"moves_budget"}
    pinned = replace(one, leave=replace(one.leave, movable=np.array([True, False])))
    assert {found.rule for found in check(pinned, plan)} == {"leave"}


@pytest.mark.parametrize("seed", range(30))
def test_every_random_plan_is_ordered(seed: int) -> None:
    """Pods of a tight cluster put onto nodes in another order, wherever they fit: circles are common."""
    rng = random.Random(seed)
    names = [f"n{index}" for index in range(4)]
    pods = [
        {
            "name": f"p{index}",
            "cpu": rng.randint(2, 4),
            "gpus": rng.randint(0, 1),
            "gpu_milli": rng.choice([400, 600, 1000]),
        }
        for index in range(10)
    ]
    nodes = [{"name": name, "gpus": 2} for name in names]
    empty = problem(nodes, [{**pod, "gpu_milli": pod["gpu_milli"] if pod["gpus"] else 1000} for pod in pods])
    before, after = (_anyhow(empty, random.Random(seed + shift)) for shift in (0, 1000))
    running = [{**pod, "node": before[f"default/{pod['name']}"]} for pod in pods if f"default/{pod['name']}" in before]
    one = cluster(nodes, running)
    targets = {name: node for name, node in after.items() if name in before and node != before[name]}
    fits = dict(targets)
    while (failed := _without_room(one, fits)) is not None:
        del fits[failed]
    _, plan = plan_of(one, fits)
    assert check(one, plan) == []
    assert {move.pod for move in plan.moves} == set(fits)


def _without_room(one: PodsProblem, targets: dict[str, str]) -> str | None:
    """The first pod that finds no room on its new node once all that move have left."""
    state = State(one)
    index = {name: pod for pod, name in enumerate(one.pod_names)}
    for name in targets:
        state.take(index[name])
    for name, node in targets.items():
        j, at = int(one.pod_class[index[name]]), one.node_names.index(node)
        if not state.room(j, np.array([at]))[0]:
            return name
        state.place(index[name], at, state.devices(j, at))
    return None


def _anyhow(one: PodsProblem, rng: random.Random) -> dict[str, str]:
    state, found = State(one), {}
    pods = list(range(len(one.pod_names)))
    rng.shuffle(pods)
    for pod in pods:
        j = int(one.pod_class[pod])
        nodes = np.flatnonzero(state.room(j)).tolist()
        if nodes:
            node = rng.choice(nodes)
            state.place(pod, node, state.devices(j, node))
            found[one.pod_names[pod]] = one.node_names[node]
    return found
