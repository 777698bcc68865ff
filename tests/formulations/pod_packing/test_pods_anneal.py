"""Annealing of small clusters: never a worse plan, never beyond the limit of moves, the best of small ones."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations.outcome import Budget
from formulations.pod_packing.anneal import Annealing, usable
from formulations.pod_packing.check import check
from formulations.pod_packing.explain import reasons
from formulations.pod_packing.neighbours import rank
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import PodsProblem
from tests.formulations.pod_packing.pods_cases import problem


def crowded(seed: int, nodes: int, most: int | None, evict: bool = True) -> PodsProblem:
    """Running pods of two priorities here and there, and a few that wait."""
    rng = random.Random(seed)
    pods: list[dict[str, Any]] = []
    for node in range(nodes):
        left = 8
        while (cpu := rng.randint(2, 5)) <= left:
            pods.append({"name": f"r{len(pods)}", "cpu": cpu, "node": f"n-{node}", "priority": rng.choice([0, 10])})
            left -= cpu
    for _ in range(2):
        pods.append({"name": f"w{len(pods)}", "cpu": rng.randint(2, 5), "priority": 10})
    moves = {"allowed": True, "max": most, "evict": evict}
    return problem([{"name": "n", "count": nodes}], pods, moves=moves)


def best_rank(one: PodsProblem) -> tuple[int, ...]:
    """By every node, or none, for every pod."""
    assert one.leave is not None
    pods = range(len(one.pod_names))
    best: tuple[int, ...] | None = None
    for nodes in product(range(-1, one.num_nodes), repeat=len(pods)):
        packing = Packing(one)
        packing.node = np.array(nodes, dtype=np.int64)
        if packing.evicted.size + packing.moved.size > one.leave.most:
            continue
        if not one.leave.evictable[one.pod_class[packing.evicted]].all():
            continue
        free, _ = packing.left(np.zeros(0, dtype=np.int64))
        if (free >= 0).all():
            found = rank(packing, "placed first")
            best = found if best is None else max(best, found)
    assert best is not None
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("most", "evict"), [(None, True), (1, True), (2, False)])
def test_the_best_of_small_clusters(seed: int, most: int | None, evict: bool) -> None:
    one = crowded(seed, 2, most, evict)
    assert usable(one, Packing(one).movable)
    found = Annealing(Packing(one), 0).run(Budget(60), cycles=1)
    assert found is not None
    assert rank(found, "placed first") == best_rank(one)


@pytest.mark.parametrize("most", [0, 3, None])
def test_plans_are_valid_and_never_worse(most: int | None) -> None:
    one = crowded(5, 12, most)
    start = Packing(one)
    found = Annealing(start, 1).run(Budget(60), cycles=1)
    if found is None:
        assert most == 0
        return
    assert rank(found, "placed first") >= rank(start, "placed first")
    state = found.state()
    plan = state.plan(reasons(one, state))
    order = ordered(one, {pod: state.place_of.get(pod) for pod in sorted(state.gone)})
    assert not check(one, plan.model_copy(update={"moves": order.moves, "evictions": order.evictions}))


def test_same_seed_same_plan() -> None:
    one = crowded(7, 10, 6)
    first, second = (Annealing(Packing(one), 3).run(Budget(60), cycles=1) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.node.tolist() == second.node.tolist()


def test_what_it_does_not_know_is_left_to_others() -> None:
    """Devices, rules between pods, other objectives, no leave to move."""
    moves = {"allowed": True}
    pods = [{"name": "a", "node": "n"}, {"name": "b"}]
    assert usable(problem([{"name": "n"}], pods, moves=moves), np.array([True, True]))
    gpus = problem([{"name": "n", "gpus": 1}], [{**pods[0], "gpus": 1}, pods[1]], moves=moves)
    gang = problem([{"name": "n"}], [pods[0], {**pods[1], "gang": "g"}], moves=moves)
    still = problem([{"name": "n"}], pods)
    for one in (gpus, gang, still):
        assert not usable(one, np.array([True, True]))
