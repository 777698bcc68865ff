"""VM rescheduling: machines of two NUMA nodes, fragments of free cores, few moves."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations.pod_packing.check import check
from formulations.pod_packing.objective import price
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import read_problem
from planner.descriptions.pods import PodsInstance
from planner.errors import DescriptionError, OptionError
from planner.pods_plan import PodsPlan
from tests.formulations.pod_packing.pods_cases import solved


def vms(
    nodes: list[dict[str, Any]], pods: list[dict[str, Any]], most: int | None, chunk: int = 4, **more: Any
) -> PodsProblem:
    """Nodes of two NUMA nodes of 8 cores and 32 GiB each; a VM has 1 GiB, unless they say otherwise."""
    described = {
        "name": "vms",
        "objective": "fragments",
        "fragment_cpu": chunk,
        "moves": {"allowed": True, "max": most},
        "nodes": [{"cpu": 16, "memory": "64Gi", "numa": 2, **one} for one in nodes],
        "pods": [{"memory": "1Gi", **one} for one in pods],
        **more,
    }
    return read_problem(PodsInstance.model_validate(described))


def plan_of(one: PodsProblem, **options: Any) -> PodsPlan:
    plan = solved(one, **options).plan
    assert plan is not None
    assert not check(one, plan)
    return plan


def test_two_halves_become_a_whole() -> None:
    """8 cores a NUMA node, chunks of 8, VMs of 4 on two of them: 4 + 4 cores are fragments until both are on one."""
    pods = [
        {"name": "a", "cpu": 4, "node": "n-0", "numa_nodes": [0]},
        {"name": "b", "cpu": 4, "node": "n-1", "numa_nodes": [1]},
    ]
    one = vms([{"name": "n", "count": 2}], pods, 1, chunk=8)
    outcome = solved(one)
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.objective.total == 0
    assert outcome.objective.measures["fragment_rate"] == 0
    assert len(plan_of(one).moves) == 1
    assert solved(vms([{"name": "n", "count": 2}], pods, 0, chunk=8)).objective.total == 8  # type: ignore[union-attr]


def test_fragment_rate_counts_numa_nodes() -> None:
    """Free 8 - 3 = 5 and 8 cores, chunk 4: fragments 1 + 0 of 13 free cores; the sum of the node, 13 mod 4, says the
    same, but 8 - 3 and 8 - 2, 5 and 6, are 1 + 2, which the sum 11 mod 4 = 3 hides no less."""
    one = vms([{"name": "n"}], [{"name": "a", "cpu": 3, "node": "n", "numa_nodes": [0]}], 0)
    found = price(one, plan_of(one)).measures
    assert found["free_cores"] == 13
    assert found["fragment_rate"] == pytest.approx(1 / 13)


def test_a_wide_vm_takes_half_of_each() -> None:
    """A VM of 10 cores over both NUMA nodes leaves 3 and 3 of 8: with chunks of 4 all six are fragments."""
    one = vms([{"name": "n"}], [{"name": "w", "cpu": 10, "numa": 2, "node": "n"}], 3)
    assert price(one, plan_of(one)).total == 6


def fewest(one: PodsProblem) -> int:
    """Least fragments within the moves, by every place of every VM; in milli-cores."""
    assert one.numa is not None
    assert one.leave is not None
    cores, memory = one.resources.index("cpu"), one.resources.index("memory")
    pods = range(len(one.pod_names))
    options = []
    for pod in pods:
        wide = int(one.numa.width[one.pod_class[pod]])
        options.append(
            [
                (n, at)
                for n in range(one.num_nodes)
                for at in ([(0, 1)] if wide == 2 else [(h,) for h in range(int(one.numa.count[n]))])
                if len(at) <= one.numa.count[n]
            ]
        )
    best = None
    for places in product(*options):
        moved = sum(
            (int(one.pod_node[pod]), one.numa.places[pod]) != place for pod, place in zip(pods, places, strict=True)
        )
        if moved > one.leave.most:
            continue
        free = np.zeros((one.num_nodes, 2, 2), dtype=np.int64)
        for n in range(one.num_nodes):
            for h in range(int(one.numa.count[n])):
                free[n, h] = one.capacity[n, [cores, memory]] // one.numa.count[n]
        for pod, (n, at) in zip(pods, places, strict=True):
            j = one.pod_class[pod]
            for h in at:
                free[n, h] -= one.request[j, [cores, memory]] // one.numa.width[j]
        if (free < 0).any():
            continue
        fragments = int((free[:, :, 0] % one.numa.chunk).sum())
        best = fragments if best is None else min(best, fragments)
    assert best is not None
    return best


def random_vms(seed: int) -> PodsProblem:
    """Two or three machines, up to six VMs, where they happened to fit."""
    rng = random.Random(seed)
    count = rng.randint(2, 3)
    kinds = [
        {"name": f"n{i}", "memory": f"{rng.choice([16, 32])}Gi", "numa": rng.choice([2, 2, 1])} for i in range(count)
    ]
    free = [[(16 // kind["numa"], int(kind["memory"][:-2]) // kind["numa"])] * kind["numa"] for kind in kinds]  # type: ignore[index, operator, call-overload]
    pods: list[dict[str, Any]] = []
    for index in range(6 if count == 2 else 5):
        wide = rng.choice([1, 1, 1, 2])
        cpu, memory = rng.choice([(2, 4), (3, 4), (4, 8), (6, 6), (1, 2)])
        places = [
            (n, at)
            for n in range(count)
            for at in ([(0, 1)] if wide == 2 else [(h,) for h in range(len(free[n]))])
            if len(at) <= len(free[n]) and all(free[n][h][0] >= cpu and free[n][h][1] >= memory for h in at)
        ]
        if not places:
            continue
        n, at = rng.choice(places)
        for h in at:
            free[n][h] = (free[n][h][0] - cpu, free[n][h][1] - memory)
        pods.append(
            {
                "name": f"v{index}", "cpu": cpu * wide, "memory": f"{memory * wide}Gi", "numa": wide,
                "node": f"n{n}", "numa_nodes": list(at),
            }
        )  # fmt: skip
    return vms(kinds, pods, rng.choice([0, 1, 2, 3, None]), chunk=rng.choice([4, 5]))


@pytest.mark.parametrize("seed", range(20))
def test_bound_and_plan_by_brute_force(seed: int) -> None:
    """No plan below the best, no bound above it, and most often both meet."""
    one = random_vms(seed)
    outcome = solved(one)
    assert outcome.objective is not None
    assert outcome.bound is not None
    best = fewest(one) / 1000
    assert outcome.bound.value <= best + 1e-9
    assert outcome.objective.total >= best - 1e-9
    if outcome.status == "optimal":
        assert outcome.objective.total == pytest.approx(best)
    plan_of(one)


def test_most_small_cases_are_solved() -> None:
    """Of twenty, at least seventeen reach the best, which the bound alone need not prove."""
    reached = 0
    for seed in range(20):
        one = random_vms(seed)
        outcome = solved(one)
        assert outcome.objective is not None
        reached += outcome.objective.total <= fewest(one) / 1000 + 1e-9
    assert reached >= 17


def test_moves_in_a_circle_are_broken() -> None:
    """Full NUMA nodes: VMs of 8 and of 5 + 3 cores can change places only when one stops first."""
    from formulations.pod_packing.numa.order import VmOrder
    from formulations.pod_packing.numa.slots import Slots

    pods = [
        {"name": "a", "cpu": 8, "node": "n", "numa_nodes": [0]},
        {"name": "b", "cpu": 5, "node": "n", "numa_nodes": [1]},
        {"name": "c", "cpu": 3, "node": "n", "numa_nodes": [1]},
    ]
    one = vms([{"name": "n"}], pods, None)
    assert one.numa is not None
    moves = VmOrder(Slots.now(one, one.numa), {0: (0, (1,)), 1: (0, (0,)), 2: (0, (0,))}).run()
    assert sum(move.way == "evict-first" for move in moves) == 1
    plan = plan_of(one)
    places = {"default/a": (1,), "default/b": (0,), "default/c": (0,)}
    turned = tuple(
        placed.model_copy(update={"numa": places[placed.pod], "running": False}) for placed in plan.placements
    )
    assert not check(one, plan.model_copy(update={"placements": turned, "moves": moves}))


def broken(plan: PodsPlan, **change: Any) -> PodsPlan:
    first = plan.placements[0].model_copy(update=change)
    return plan.model_copy(update={"placements": (first, *plan.placements[1:])})


def test_broken_plans_are_found() -> None:
    """No NUMA node, one that is not there, one that is full, a VM left out."""
    pods = [
        {"name": "a", "cpu": 5, "node": "n", "numa_nodes": [0]},
        {"name": "b", "cpu": 5, "node": "n", "numa_nodes": [1]},
    ]
    one = vms([{"name": "n"}], pods, None, chunk=8)
    plan = plan_of(one)
    assert "numa" in {found.rule for found in check(one, broken(plan, numa=()))}
    assert "numa" in {found.rule for found in check(one, broken(plan, numa=(2,)))}
    assert "numa_full" in {found.rule for found in check(one, broken(plan, numa=(1,)))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pods": [{"name": "p", "cpu": 1}]}, "pending"),
        (
            {
                "pods": [{"name": "p", "cpu": 1, "node": "n", "gpus": 1}],
                "nodes": [{"name": "n", "cpu": 4, "memory": "8Gi", "gpus": 1}],
            },
            "GPUs",
        ),
        ({"pods": [{"name": "p", "cpu": 9, "node": "n"}]}, "no room on the NUMA nodes"),
        (
            {
                "pods": [{"name": "p", "cpu": 2, "numa": 2, "node": "n"}],
                "nodes": [{"name": "n", "cpu": 4, "memory": "8Gi", "numa": 1}],
            },
            "no room on the NUMA nodes",
        ),
        ({"fragment_cpu": 0}, "more than nothing"),
        ({"fragment_cpu": "1E9x"}, "1E9x"),
        ({"moves": {"allowed": False}}, "allow them"),
        ({"objective": "allocation"}, "does not model NUMA nodes"),
    ],
)
def test_what_is_not_modelled_is_refused(change: dict[str, Any], words: str) -> None:
    """Refused when it is described or read, with what is wrong."""
    given: dict[str, Any] = {
        "nodes": [{"name": "n"}],
        "pods": [{"name": "p", "cpu": 1, "node": "n"}],
        "most": 1,
    } | change
    with pytest.raises((DescriptionError, ValueError), match=words):
        vms(**given)


def test_methods_of_other_objectives_are_refused() -> None:
    one = vms([{"name": "n"}], [{"name": "p", "cpu": 1, "node": "n"}], 1)
    with pytest.raises(OptionError, match="has the methods auto, numa, single-moves"):
        solved(one, method="cp-sat")
