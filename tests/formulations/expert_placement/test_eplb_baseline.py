"""EPLB, the field's rule: its published example, and what our form of it adds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from placement_cases import counts, instance, run
from small_cases import load_instances

from formulations.expert_placement.baseline import eplb, eplb_global, eplb_hierarchical
from formulations.expert_placement.check import check, objective
from formulations.expert_placement.greedy import pack, replicas_in_falling_size, replicate
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Status
from planner.cost.expert_parallel import gpu_load, hottest, membership
from planner.errors import OptionError


def contents(rows: np.ndarray, gpus: int) -> list[list[tuple[int, ...]]]:
    """What lies together on a GPU, whichever GPU."""
    return [sorted(map(tuple, np.sort(row.reshape(gpus, -1), axis=1).tolist())) for row in rows]


def test_the_published_example(shared_data: Path) -> None:
    """Two layers of 12 experts in 4 groups, 16 slots, 8 GPUs in 2 nodes; the same GPUs up to ties and order."""
    example = json.loads((shared_data / "experts" / "eplb_readme_example.json").read_text())
    load, expected = np.array(example["weight"], dtype=float), np.array(example["expected_phy2log"])
    found = eplb_hierarchical(
        load, example["num_gpus"], example["num_replicas"], example["num_nodes"], example["num_groups"]
    )
    speed = np.ones(example["num_gpus"])
    np.testing.assert_array_equal(
        np.sort(membership(found, 12, 8).sum(axis=2)), np.sort(membership(expected, 12, 8).sum(axis=2))
    )
    time = [hottest(gpu_load(load[None], rows, speed, "even"), speed) for rows in (found, expected)]
    np.testing.assert_allclose(*time)
    assert contents(found, 8) == contents(expected, 8)
    assert contents(found, 2) == contents(expected, 2)


def test_hierarchical_keeps_each_group_on_one_node() -> None:
    load = counts(3, 16)
    rows = eplb_hierarchical(load, 8, 24, 4, 8)
    held = membership(rows, 16, 8).reshape(3, 8, 2, 4, 2).sum(axis=(2, 4)) > 0
    assert (held.sum(axis=2) == 1).all()
    problem = instance(load, 8, 24, gpus_per_node=2, num_groups=8, group_spread=1)
    name, chosen = eplb(problem)
    assert name == "EPLB hierarchical"
    assert check(problem, problem.placement(chosen)) == []


def test_global_when_groups_do_not_divide_over_nodes() -> None:
    assert eplb(instance(counts(1, 6), 4, 8, gpus_per_node=2, num_groups=3, group_spread=2))[0] == "EPLB global"
    assert eplb(instance(counts(1, 6), 4, 8))[0] == "EPLB global"


def test_two_replicas_on_one_gpu_are_swapped_apart() -> None:
    """Loads 10, 9, 1, 1 on two GPUs of three: 0 and 1 have two replicas, 5 5 4.5 4.5 1 1.

    LPT: 5 | 5, 4.5 | 4.5, 1 | 1: no repeat. Loads 10, 1, 1, 1 with the rule's plain packing of 5 5 1 1 1 and a sixth
    replica can repeat; whatever comes out holds every expert at most once a GPU, with the same replica counts.
    """
    for seed in range(40):
        load = np.random.default_rng(seed).lognormal(0, 2, (4, 6))
        count = replicate(load, 12, 4)
        plain = pack(*replicas_in_falling_size(load, count), 4)
        rows = eplb_global(load, 4, 12)
        assert (membership(rows, 6, 4) <= 1).all()
        np.testing.assert_array_equal(np.sort(rows, axis=1), np.sort(plain, axis=1))


@settings(deadline=None, max_examples=100)
@given(problem=load_instances(scenarios=2))
def test_the_baseline_is_a_valid_plan_wherever_one_fits(problem: ExpertPlacementProblem) -> None:
    plan = problem.placement(eplb(problem)[1])
    assert check(problem, plan) == []
    assert objective(problem, plan).total > 0


def test_as_a_method_it_is_checked_bounded_and_refuses_what_it_ignores() -> None:
    problem = instance(counts(2, 8), 4, 12)
    outcome = run(problem, "eplb")
    assert outcome.status is Status.FEASIBLE
    assert outcome.bound is not None
    assert outcome.objective is not None
    assert outcome.bound.value <= outcome.objective.total
    with pytest.raises(OptionError, match="no work"):
        run(problem, "eplb", work_limit=5)
    capped = instance(counts(1, 8), 4, 8, current=np.arange(8)[None], max_moves=0)
    with pytest.raises(OptionError, match="limits"):
        run(capped, "eplb")


def test_an_even_layer_is_proven_optimal() -> None:
    assert run(instance(np.ones((1, 8)), 4, 8), "eplb").status is Status.OPTIMAL
