"""Running clusters: by hand, and against every plan on clusters small enough to try each one."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from formulations.base import solve
from formulations.outcome import Outcome, SolveOptions, Status
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.problem import EvictionBudget, PodsProblem
from formulations.pod_packing.repair import search
from planner.errors import DescriptionError
from planner.pods_plan import PodsPlan
from tests.formulations.pod_packing.pods_cases import places, problem


def repaired(one: PodsProblem) -> Outcome[PodsPlan]:
    return solve(POD_PACKING, one, SolveOptions(time_limit_s=60, work_limit=60, method="repair"))


def split(most: int | None = 1, **moves: Any) -> PodsProblem:
    """Two nodes of 2 GPUs, each with one pod of 1 GPU; a pending pod wants 2."""
    nodes = [{"name": "a", "gpus": 2}, {"name": "b", "gpus": 2}]
    pods = [
        {"name": "left", "gpus": 1, "node": "a"},
        {"name": "right", "gpus": 1, "node": "b", "cpu": 2},
        {"name": "pair", "gpus": 2, "priority": 5},
    ]
    return problem(nodes, pods, objective="allocation", moves={"allowed": True, "max": most, **moves})


def test_one_move_makes_room_for_a_pair() -> None:
    """GPUs 2 + 2 = 4 of 4: one of the single pods joins the other, and the pair has a node."""
    outcome = repaired(split())
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.objective.total == -4.0
    assert outcome.plan is not None
    assert len(outcome.plan.moves) == 1
    assert outcome.plan.evictions == ()


def test_without_a_move_the_status_quo_stays() -> None:
    outcome = repaired(split(0))
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.objective.total == -2.0
    assert outcome.plan.moves == ()
    assert places(outcome.plan) == {"default/left": "a", "default/right": "b"}


def test_pinned_pods_and_used_up_budgets_stay() -> None:
    """Nothing may move: 2 GPUs are allocated as before."""
    one = split()
    assert one.leave is not None
    held = [
        replace(one, leave=replace(one.leave, movable=np.zeros(3, dtype=np.bool_))),
        replace(one, leave=replace(one.leave, budgets=(EvictionBudget("all", np.ones(3, dtype=np.bool_), 0),))),
    ]
    for case in held:
        outcome = repaired(case)
        assert outcome.objective is not None
        assert outcome.objective.total == -2.0


def test_a_budget_of_one_of_two_pods_lets_the_other_move() -> None:
    one = split()
    assert one.leave is not None
    only = EvictionBudget("left", np.array([True, False, False]), 0)
    outcome = repaired(replace(one, leave=replace(one.leave, budgets=(only,))))
    assert outcome.plan is not None
    assert [move.pod for move in outcome.plan.moves] == ["default/right"]


def full(evict: bool) -> PodsProblem:
    """One node of 1 GPU with a pod of priority 0; a pending pod of priority 5 wants it."""
    return problem(
        [{"name": "a", "gpus": 1}],
        [{"name": "low", "gpus": 1, "node": "a"}, {"name": "high", "gpus": 1, "priority": 5}],
        moves={"allowed": True, "evict": evict},
    )


def test_lower_priority_is_evicted_where_that_is_allowed() -> None:
    plan = repaired(full(True)).plan
    assert plan is not None
    assert plan.evictions == ("default/low",)
    assert places(plan) == {"default/high": "a"}
    assert "evicted" in plan.unplaced[0].reason
    kept = repaired(full(False)).plan
    assert kept is not None
    assert places(kept) == {"default/low": "a"}


def test_consolidation_moves_nothing() -> None:
    with pytest.raises(DescriptionError, match="consolidate"):
        problem([{"name": "a"}], [{"name": "p"}], objective="consolidate", moves={"allowed": True})


def running_cluster(seed: int, objective: str) -> PodsProblem:
    """Three small nodes; pods that run wherever they were put, and pods that wait."""
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    nodes = [{"name": name, "cpu": rng.randint(4, 6), "gpus": rng.choice([1, 2, 2])} for name in names]
    pods: list[dict[str, Any]] = []
    for index in range(7):
        gpus = rng.choice([0, 1, 1, 1, 2])
        milli = rng.choice([300, 500, 700, 1000]) if gpus == 1 else 1000
        pod = {"name": f"p{index}", "cpu": rng.randint(1, 3), "gpus": gpus, "gpu_milli": milli}
        pods.append({**pod, "priority": rng.choice([0, 10])})
    placed: list[dict[str, Any]] = []
    for pod in pods[:4]:
        for name in rng.sample(names, 3):
            try:
                problem(nodes, [*placed, {**pod, "node": name}], objective=objective)
            except DescriptionError:
                continue
            placed.append({**pod, "node": name})
            break
    moves = {"allowed": True, "max": rng.choice([1, 2, 3]), "evict": rng.random() < 0.4}
    return problem(nodes, [*placed, *pods[4:]], objective=objective, moves=moves)


def best_values(one: PodsProblem) -> tuple[float, ...]:
    """The lexicographically best values of all plans within the leave, by trying each."""
    assert one.leave is not None
    leave = one.leave
    free, device = one.capacity.copy(), [[1000] * int(count) for count in one.gpus]
    counts = np.zeros(one.num_classes, dtype=np.int64)
    best: list[tuple[float, ...]] = [(-np.inf,)]

    def shift(j: int, node: int, devices: tuple[int, ...], sign: int) -> None:
        free[node] -= sign * one.request[j]
        counts[j] += sign
        for d in devices:
            device[node][d] -= sign * int(one.class_milli[j])

    def fits(j: int, node: int, devices: tuple[int, ...]) -> bool:
        enough = all(device[node][d] >= one.class_milli[j] for d in devices)
        return enough and bool((free[node] >= one.request[j]).all())

    def visit(index: int, moved: int) -> None:
        if index == len(order):
            best[0] = max(best[0], tuple(float(aim.weight @ counts) * aim.scale for aim in one.aims))
            return
        pod = order[index]
        j, at = int(one.pod_class[pod]), int(one.pod_node[pod])
        options: list[tuple[int, tuple[int, ...], int]] = []
        if at >= 0:
            options.append((at, one.pod_devices[pod], moved))
        if at < 0 or (leave.movable[pod] and moved < leave.most):
            after = moved + (at >= 0)
            for node in range(one.num_nodes):
                for devices in combinations(range(len(device[node])), int(one.class_gpus[j])):
                    options.append((node, devices, after))
            if at < 0 or leave.evictable[j]:
                visit(index + 1, after)
        for node, devices, after in options:
            if fits(j, node, devices):
                shift(j, node, devices, 1)
                visit(index + 1, after)
                shift(j, node, devices, -1)

    order = sorted(range(len(one.pod_names)), key=lambda pod: one.pod_node[pod] < 0)
    visit(0, 0)
    return best[0]


@pytest.mark.parametrize("objective", ["priority", "allocation"])
@pytest.mark.parametrize("seed", range(8))
def test_no_plan_is_better_and_no_bound_is_passed(seed: int, objective: str) -> None:
    """The bound of the first tier holds for the best plan; "optimal" is; never worse than the status quo."""
    one = running_cluster(seed, objective)
    best = best_values(one)
    outcome = repaired(one)
    assert outcome.plan is not None
    ours = tuple(tier.value for tier in outcome.plan.tiers)
    first = outcome.plan.tiers[0]
    assert ours <= tuple(value + 1e-9 for value in best)
    assert first.bound is not None
    assert first.bound >= best[0] - 1e-9
    assert first.value >= float(one.aims[0].weight @ one.running) * one.aims[0].scale
    if outcome.status is Status.OPTIMAL:
        assert ours == pytest.approx(best)


@pytest.mark.parametrize("seed", range(20, 30))
def test_parts_of_two_nodes_keep_to_what_the_rest_leaves(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, moves and tiers are shared between parts and the rest: the plan is checked, and the best one is found."""
    monkeypatch.setattr(search, "PART", 2)
    for objective in ("allocation", "priority"):
        one = running_cluster(seed, objective)
        outcome = repaired(one)
        assert outcome.plan is not None
        assert tuple(tier.value for tier in outcome.plan.tiers) == pytest.approx(best_values(one))


def crowded(most: int) -> PodsProblem:
    """Four nodes of 2 GPUs and 2 cores, one pod of 1 GPU on each; three pairs are pending, of 2 GPUs and 1 core."""
    nodes = [{"name": "n", "count": 4, "cpu": 2, "gpus": 2}]
    runs = [{"name": f"r{n}", "gpus": 1, "node": f"n-{n}"} for n in range(4)]
    pairs = [{"name": "pair", "count": 3, "gpus": 2}]
    return problem(nodes, [*runs, *pairs], objective="allocation", moves={"allowed": True, "max": most})


@pytest.mark.parametrize(("most", "gpus"), [(0, 4.0), (1, 6.0), (2, 8.0)])
def test_each_move_makes_room_for_one_pair(most: int, gpus: float) -> None:
    """4 GPUs run. A single pod that joins another frees a node for a pair: +2 a move, until all 8 GPUs are taken."""
    outcome = repaired(crowded(most))
    assert outcome.plan is not None
    assert outcome.plan.tiers[0].value == gpus


def test_without_time_pods_stay_and_the_bound_still_says_something() -> None:
    """No program is solved; at prices to begin with no move pays for a pair of 2 GPUs but by one: 4 + 2 for 1 move."""
    outcome = solve(POD_PACKING, crowded(1), SolveOptions(time_limit_s=1e-6, method="repair"))
    assert outcome.plan is not None
    first = outcome.plan.tiers[0]
    assert first.value == 4.0
    assert outcome.plan.moves == ()
    assert first.bound is not None
    assert 6.0 <= first.bound < 8.0
