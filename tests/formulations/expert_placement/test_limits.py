"""Infeasible instances: each has its reason and ways out, and the first way out works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from placement_cases import brute_force, counts, instance, run

from formulations.expert_placement.limits import conflicts, fewest_moves
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Status, Stop
from formulations.planning import plan
from planner.units import BYTE_UNITS, GIB, parse_quantity

EXPERT = 45e6
Factory = Callable[..., ExpertPlacementProblem]


def build(load: np.ndarray, num_gpus: int, num_slots: int, **fixed: Any) -> Factory:
    """An instance whose arguments can be changed."""
    return lambda **changes: instance(load, **{"num_gpus": num_gpus, "num_slots": num_slots, **fixed, **changes})


INFEASIBLE: dict[str, tuple[str, Factory]] = {
    "more slots than distinct replicas": ("num_slots 8", build(counts(1, 3), 2, 8)),
    "memory too small for the slots": (
        "gpu_memory_bytes",
        build(counts(3, 8), 4, 16, expert_bytes=EXPERT, gpu_memory_bytes=3.5 * 3 * EXPERT),
    ),
    "memory too small for the experts": (
        "gpu_memory_bytes",
        build(counts(3, 8), 2, 8, expert_bytes=EXPERT, gpu_memory_bytes=3 * 3 * EXPERT),
    ),
    "memory too small for the experts of whole nodes": (
        "gpu_memory_bytes",
        build(counts(3, 8), 2, 8, gpus_per_node=2, expert_bytes=EXPERT, gpu_memory_bytes=3 * 3 * EXPERT),
    ),
    "memory too small for one expert": (
        "gpu_memory_bytes",
        build(counts(3, 8), 2, 8, expert_bytes=1.004 * GIB, gpu_memory_bytes=GIB),
    ),
    "groups too few to fill the nodes": (
        "group_spread 1",
        build(counts(1, 4), 2, 6, gpus_per_node=1, num_groups=2, group_spread=1),
    ),
    "groups too many for one node": (
        "group_spread 1",
        build(counts(1, 6), 2, 6, gpus_per_node=1, num_groups=3, group_spread=1),
    ),
    "fewer groups than nodes": (
        "group_spread 1",
        build(counts(1, 4), 4, 8, gpus_per_node=1, num_groups=2, group_spread=1),
    ),
    "current misses two experts": (
        "max_moves 1",
        build(counts(1, 4), 2, 4, current=np.array([[0, 1, 0, 1]]), max_moves=1),
    ),
    "current repeats an expert on a GPU": (
        "max_moves 0",
        build(counts(1, 4), 2, 6, current=np.array([[0, 1, 1, 2, 3, 0]]), max_moves=0),
    ),
    "current repeats and misses": (
        "max_moves 0",
        build(counts(1, 4), 2, 4, current=np.array([[0, 0, 1, 2]]), max_moves=0),
    ),
}


def relaxed(factory: Factory, way: str) -> ExpertPlacementProblem:
    """Apply a relaxation such as `num_slots: 6` or `num_gpus: 3 with num_slots: 9`."""
    changes: dict[str, Any] = {}
    for part in way.split(" with "):
        key, value = part.split(": ")
        changes[key] = parse_quantity(value, BYTE_UNITS, key) if key.endswith("bytes") else int(value)
    problem = factory(**changes)
    assert problem.num_slots % problem.num_gpus == 0
    assert problem.num_gpus % problem.gpus_per_node == 0
    return problem


@pytest.mark.parametrize("name", INFEASIBLE)
def test_infeasible_says_why(name: str) -> None:
    start, factory = INFEASIBLE[name]
    problem = factory()
    outcome = run(problem, "local-search")
    assert (outcome.status, outcome.stop) == (Status.INFEASIBLE, Stop.PROOF)
    assert outcome.plan is None
    assert outcome.reasons[0].startswith(start)
    assert outcome.relaxations
    if problem.num_layers == 1:
        assert brute_force(problem) == float("inf")


@pytest.mark.parametrize("name", INFEASIBLE)
def test_every_way_out_leads_to_a_plan(name: str) -> None:
    factory = INFEASIBLE[name][1]
    for conflict in conflicts(factory()):
        for way in conflict.relaxations:
            outcome = run(relaxed(factory, way), "local-search", work_limit=300)
            assert outcome.plan is not None, (way, outcome.status, outcome.reasons)


@pytest.mark.parametrize("name", INFEASIBLE)
def test_the_document_of_an_infeasible_instance_holds_no_plan(name: str) -> None:
    document = plan(INFEASIBLE[name][1]())
    assert document.outcome.status == "infeasible"
    assert document.plan is None
    assert document.verdict is None
    assert document.outcome.reasons
    assert document.outcome.objective is None


def test_all_conflicts_are_listed_at_once() -> None:
    problem = build(
        counts(1, 3), 2, 8, expert_bytes=EXPERT, gpu_memory_bytes=EXPERT, current=np.zeros((1, 8), int), max_moves=0
    )()
    assert [conflict.reason.split()[0] for conflict in conflicts(problem)] == [
        "num_slots",
        "gpu_memory_bytes",
        "max_moves",
    ]


def test_fewest_moves_by_hand() -> None:
    """0 0 | 1 1 of four experts: 2 and 3 each have to be loaded once, over the repeated slots: 2. 0 1 | 2 3: none."""
    broken = instance(counts(1, 4), 2, 4, current=np.array([[0, 0, 1, 1]]))
    assert fewest_moves(broken) == 2
    assert fewest_moves(replace(broken, current=np.array([[0, 1, 2, 3]]))) == 0
    assert fewest_moves(replace(broken, current=None)) == 0


@pytest.mark.parametrize("seed", range(12))
def test_fewest_moves_are_needed_and_enough(seed: int) -> None:
    """Of all valid placements of three GPUs with two slots, the nearest to any current one is that many moves away."""
    rng = np.random.default_rng(seed)
    current = rng.integers(4, size=(1, 6))
    problem = instance(counts(1, 4), 3, 6, current=current, move_cost=1000.0)
    assert round(brute_force(problem) / 1000.0) == fewest_moves(problem)


def test_what_can_be_done_is_not_refused() -> None:
    assert conflicts(build(counts(1, 3), 2, 6)()) == []
    enough = build(counts(3, 8), 2, 8, expert_bytes=EXPERT, gpu_memory_bytes=4 * 3 * EXPERT)()
    assert conflicts(enough) == []
    wide = build(counts(1, 4), 2, 6, gpus_per_node=1, num_groups=2, group_spread=2)()
    assert conflicts(wide) == []


@pytest.mark.parametrize(
    ("groups", "nodes", "spread"), [(3, 2, 1), (2, 3, 2), (5, 2, 1), (4, 3, 2), (3, 3, 1), (2, 4, 2)]
)
def test_group_limits_that_can_be_kept_are_kept(groups: int, nodes: int, spread: int) -> None:
    """Two GPUs a node, groups of four experts, one slot of a GPU to spare over the fullest node."""
    experts = 4 * groups
    fullest = -(-groups // nodes) if spread == 1 else -(-experts // nodes)
    per_gpu = (-(-4 * fullest // 2) if spread == 1 else -(-fullest // 2)) + 1
    problem = instance(
        counts(2, experts), 2 * nodes, 2 * nodes * per_gpu, gpus_per_node=2, num_groups=groups, group_spread=spread
    )
    outcome = run(problem, "local-search", work_limit=300)
    assert outcome.plan is not None or outcome.status is Status.INFEASIBLE
    assert outcome.status is not Status.UNKNOWN
