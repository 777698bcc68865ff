"""The exact model against the best of all plans, with rules and with leave to move, and against patterns."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations.base import solve
from formulations.outcome import Budget, Outcome, SolveOptions, Status
from formulations.pod_packing.check import check
from formulations.pod_packing.cp_sat import Exact
from formulations.pod_packing.exact import Order
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.neighbours import Neighbours, rank
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import EvictionBudget, Leave, PodsProblem
from planner.pods_plan import Placement, PodsPlan, Unplaced
from tests.formulations.pod_packing.pods_cases import best_values, problem, random_problem, solved

ZONE, HOST = "zone", "kubernetes.io/hostname"


def signed(one: PodsProblem, outcome: Outcome[PodsPlan]) -> tuple[float, ...]:
    assert outcome.plan is not None
    signs = [-1.0 if aim.sense == "most" else 1.0 for aim in one.aims]
    return tuple(sign * tier.value for sign, tier in zip(signs, outcome.plan.tiers, strict=True))


@pytest.mark.parametrize("objective", ["priority", "allocation", "consolidate"])
@pytest.mark.parametrize("seed", range(20, 28))
def test_the_whole_model_is_exact(seed: int, objective: str) -> None:
    """Small instances are proven, in every tier, and the proof is right; infeasible ones too."""
    one = random_problem(seed, objective)
    best = best_values(one)
    outcome = solved(one, method="cp-sat")
    if best is None:
        assert outcome.status is Status.INFEASIBLE
        return
    assert outcome.status is Status.OPTIMAL
    assert signed(one, outcome) == pytest.approx(best)


@pytest.mark.parametrize("objective", ["priority", "allocation"])
@pytest.mark.parametrize("seed", range(40, 44))
def test_two_backends_agree(seed: int, objective: str) -> None:
    """Neither method's plan passes the other's bound of the first tier."""
    one = random_problem(seed, objective)
    plans = [solved(one, method=method).plan for method in ("cp-sat", "patterns")]
    tiers = [plan.tiers[0] for plan in plans if plan is not None]
    assert len(tiers) == 2
    for mine, other in (tiers, tiers[::-1]):
        assert other.bound is not None
        assert mine.value <= other.bound + 1e-9


def ruled(seed: int) -> PodsProblem:
    """Four nodes in two zones (one node has no label), five pods under one kind of rule or another, some running."""
    rng = random.Random(seed)
    nodes = [
        {"name": f"n{i}", "cpu": rng.randint(2, 3), "labels": {} if i == 3 and seed % 2 else {ZONE: "ab"[i % 2]}}
        for i in range(4)
    ]
    kinds = ("apart", "together", "spread", "gang")
    pods: list[dict[str, Any]] = []
    for index in range(4):
        count = 2 if index == 0 else 1
        one: dict[str, Any] = {"name": f"p{index}", "count": count, "labels": {"app": rng.choice("xy")}}
        kind, app, key = rng.choice(kinds), rng.choice("xy"), rng.choice((ZONE, HOST))
        term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
        if kind == "apart":
            one["affinity"] = {"podAntiAffinity": required}
        elif kind == "together":
            one["affinity"] = {"podAffinity": required}
        elif kind == "spread":
            rule = {"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": term["labelSelector"]}
            one["topology_spread"] = [{"topologyKey": key, **rule}]
        else:
            one["gang"] = "g"
        pods.append({**one, "cpu": rng.choice([1, 1, 2]), "priority": rng.choice([0, 5])})
    if seed % 3 == 0:
        pods.append({"name": "old", "labels": {"app": "x"}, "node": f"n{seed % 4}"})
    return problem(nodes, pods)


def told(one: PodsProblem, node: np.ndarray) -> PodsPlan:
    placements = [
        Placement(pod=name, node=one.node_names[at], running=bool(one.pod_node[pod] >= 0))
        for pod, (name, at) in enumerate(zip(one.pod_names, node.tolist(), strict=True))
        if at >= 0
    ]
    left = [
        Unplaced(pod=name, reason="-") for name, at in zip(one.pod_names, node.tolist(), strict=True) if at < 0
    ]  # fmt: skip
    return PodsPlan(placements=tuple(placements), unplaced=tuple(left))


@pytest.mark.parametrize("seed", range(12))
def test_rules_between_pods_are_those_of_check(seed: int) -> None:
    """Every assignment of five pods to four nodes or none, judged by `check`: the best is found and proven."""
    one = ruled(seed)
    pending = np.flatnonzero(one.pending)
    best = tuple(-1 for _ in one.aims)
    for choice in product(range(-1, one.num_nodes), repeat=pending.size):
        node = one.pod_node.copy()
        node[pending] = choice
        placed = np.bincount(one.pod_class[node >= 0], minlength=one.num_classes)
        values = tuple(int(aim.weight @ placed) for aim in one.aims)
        if values > best and not check(one, told(one, node)):
            best = values
    outcome = solved(one, method="cp-sat")
    assert outcome.plan is not None
    assert tuple(tier.value for tier in outcome.plan.tiers) == best
    assert outcome.status is Status.OPTIMAL
    for method in ("patterns", "auto"):
        plan = solved(one, method=method).plan
        assert plan is not None
        assert tuple(tier.value for tier in plan.tiers) <= best


def moving(seed: int, most: int, evict: bool = True, budget: int | None = None) -> PodsProblem:
    """Three nodes with pods that run, and pending ones of a higher or lower priority."""
    rng = random.Random(seed)
    pods: list[dict[str, Any]] = []
    left = [6, 6, 6]
    for index in range(4):
        cpu, node = rng.randint(1, 4), index % 3
        where = {"node": f"n-{node}"} if cpu <= left[node] else {}
        left[node] -= cpu if where else 0
        pods.append({"name": f"r{index}", "cpu": cpu, "priority": rng.choice([0, 1]), **where})
    pods.append({"name": "new", "cpu": rng.randint(2, 6), "priority": rng.choice([0, 1, 2])})
    one = problem([{"name": "n", "count": 3, "cpu": 6}], pods)
    running = one.pod_node >= 0
    budgets = () if budget is None else (EvictionBudget("b", running & (np.arange(running.size) < 2), budget),)
    leave = Leave(most=most, movable=running, evictable=np.full(one.num_classes, evict), budgets=budgets)
    return replace(one, leave=leave)


@pytest.mark.parametrize("order", ["placed first", "stability first"])
@pytest.mark.parametrize(
    ("most", "evict", "budget"), [(9, True, None), (1, True, None), (9, False, None), (2, True, 0)]
)
def test_moves_are_the_fewest_that_the_best_plan_needs(
    order: Order, most: int, evict: bool, budget: int | None
) -> None:
    """Against every assignment within the leave: pods by priority, then evictions, then moves, or tier by tier."""
    for seed in range(4):
        one = moving(seed, most, evict, budget)
        assert one.leave is not None
        best: tuple[int, ...] = ()
        for choice in product(range(-1, 3), repeat=len(one.pod_names)):
            packing = Packing(one)
            packing.node = np.array(choice)
            disturbed = np.concatenate([packing.evicted, packing.moved])
            free, _ = packing.left(np.zeros(0, dtype=np.int64))
            if (free < 0).any() or disturbed.size > most or (packing.evicted.size and not evict):
                continue
            if any(int(one_budget.pods[disturbed].sum()) > one_budget.allowed for one_budget in one.leave.budgets):
                continue
            best = max(best, rank(packing, order))
        exact = Exact(one, Budget(60), SolveOptions(work_limit=30), order)
        exact.run()
        assert exact.best is not None
        assert rank(exact.best, order) == best


def test_devices_of_a_pod_that_stays_are_kept() -> None:
    """One node of 2 GPUs: shares of 600 run on device 0 and device 1, 400 free on each. A pod of 800 needs one to go
    over: no move helps, and nothing is evicted for a pod of the same tier. A pod of 400 goes beside one of them."""
    pods = [
        {"name": "run", "count": 2, "gpus": 1, "gpu_milli": 600, "node": "n"},
        {"name": "big", "gpus": 1, "gpu_milli": 800}, {"name": "small", "gpus": 1, "gpu_milli": 400},
    ]  # fmt: skip
    one = problem([{"name": "n", "gpus": 2}], pods)
    assert one.pod_devices[:2] == ((0,), (1,))
    leave = Leave(most=5, movable=one.pod_node >= 0, evictable=np.ones(one.num_classes, dtype=np.bool_))
    exact = Exact(replace(one, leave=leave), Budget(60), SolveOptions(work_limit=30))
    exact.run()
    assert exact.best is not None
    assert exact.best.devices[:2] == [(0,), (1,)]
    assert exact.best.node[2] == -1
    assert exact.best.node[3] == 0


def test_a_part_never_makes_a_plan_worse() -> None:
    """Ranks only rise, whatever the part, and every plan keeps all rules."""
    one = random_problem(7, "allocation")
    search = Neighbours(Packing(one), "placed first", seed=0)
    ranks = [search.rank]
    for _ in range(10):
        search.run(Budget(60), SolveOptions(), 1)
        ranks.append(search.rank)
        assert not check(one, search.best.state().plan(dict.fromkeys(range(len(one.pod_names)), "-")))
    assert ranks == sorted(ranks)


def test_no_time_leaves_what_the_greedy_start_reached() -> None:
    one = random_problem(3, "allocation")
    outcome = solve(POD_PACKING, one, SolveOptions(time_limit_s=1e-6, method="cp-sat"))
    assert outcome.status in (Status.FEASIBLE, Status.OPTIMAL)
    assert outcome.plan is not None


def test_more_pods_than_room_is_infeasible_where_all_must_run() -> None:
    """Three pods of 3 cores do not fit onto two nodes of 5, though the sum would: 9 of 10 cores."""
    one = problem([{"name": "n", "count": 2, "cpu": 5}], [{"name": "p", "count": 3, "cpu": 3}], objective="consolidate")
    outcome = solved(one, method="cp-sat")
    assert outcome.status is Status.INFEASIBLE
    assert outcome.reasons
