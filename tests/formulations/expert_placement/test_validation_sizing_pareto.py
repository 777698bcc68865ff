"""Held-out validation, the fewest slots for a target, and the balance-against-communication sweep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from placement_cases import brute_force, counts, instance
from small_cases import routed, travelling

from formulations.expert_placement.check import objective
from formulations.expert_placement.pareto import pareto, pareto_plans
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.sizing import balancedness_bound, find_slots
from formulations.expert_placement.validation import clusters, distance, leave_out, mean_balancedness
from formulations.outcome import SolveOptions
from planner.errors import OptionError

LIMITS = SolveOptions(work_limit=300)


def workloads(noise: float = 0.02) -> ExpertPlacementProblem:
    """Three workloads, the first recorded twice with a little noise."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 1, (3, 2, 16))
    load = np.concatenate([base[:1], base[:1] * np.exp(noise * rng.normal(size=(1, 2, 16))), base[1:]])
    return instance(load, 4, 20, scenario_names=("a", "a again", "b", "c"))


def test_distance_by_hand() -> None:
    """Shares 1/2 1/2 against 1/4 3/4: total variation 1/4; equal in the second layer: mean 1/8."""
    one, two = np.array([[1.0, 1.0], [2.0, 2.0]]), np.array([[1.0, 3.0], [5.0, 5.0]])
    assert distance(one, two) == pytest.approx(0.125)
    assert distance(one, one) == 0.0


def test_copies_of_a_workload_are_one_cluster() -> None:
    label = clusters(workloads())
    assert label[0] == label[1]
    assert np.unique(label).size == 3


def test_leaving_out_a_copy_flatters_and_leaving_out_the_cluster_does_not() -> None:
    problem = workloads()
    single = leave_out(problem, LIMITS)
    whole = leave_out(problem, LIMITS, "cluster")
    assert [entry.name for entry in single] == ["a", "a again", "b", "c"]
    assert single[0].fitted_on == ("a again", "b", "c")
    assert whole[0].fitted_on == whole[1].fitted_on == ("b", "c")
    assert single[0].plan > whole[0].plan
    for entry in (*single, *whole):
        assert 0 < entry.plan <= 1
        assert 0 < entry.baseline <= 1
        assert entry.hindsight is not None
        assert entry.plan <= entry.hindsight + 0.02


def test_the_ceiling_can_be_left_out() -> None:
    assert all(entry.hindsight is None for entry in leave_out(workloads(), LIMITS, hindsight=False))


def test_nothing_to_leave_out_is_refused() -> None:
    with pytest.raises(OptionError, match="two scenarios"):
        leave_out(instance(counts(2, 8), 4, 8), LIMITS)
    with pytest.raises(OptionError, match="two clusters"):
        leave_out(workloads().with_scenarios([0, 1]), LIMITS, "cluster")


def test_mean_balancedness_by_hand() -> None:
    """3 against 1: mean 2 over 3. 2 against 2: 1. Together 5/6."""
    problem = instance(np.ones((2, 2)), 2, 2)
    rows = np.array([[0, 1], [0, 1]])
    assert mean_balancedness(problem, rows, np.array([[3.0, 1.0], [2.0, 2.0]])) == pytest.approx(5 / 6)


@pytest.mark.parametrize("seed", range(4))
def test_no_placement_is_more_balanced_than_the_bound(seed: int) -> None:
    problem = instance(counts(1, 4, seed=seed) ** 2, 3, 6)
    assert problem.mean_gpu_load[0, 0] / brute_force(problem) <= balancedness_bound(problem) * (1 + 1e-9)


def test_fewest_slots_by_hand() -> None:
    """Loads 4, 1, 1 on three GPUs, mean 2. One slot each: hottest 4, balancedness 0.5, which three slots reach.

    With three slots each everything is everywhere, so a target of 1 takes at most nine slots.
    """
    problem = instance(np.array([[4.0, 1.0, 1.0]]), 3, 3)
    easy = find_slots(problem, 0.5, LIMITS)
    assert (easy.num_slots, easy.proven) == (3, True)
    perfect = find_slots(problem, 1.0, LIMITS)
    assert perfect.num_slots is not None
    assert 3 < perfect.num_slots <= 9
    assert [trial.num_slots for trial in perfect.trials] == sorted(trial.num_slots for trial in perfect.trials)
    for trial in (*easy.trials, *perfect.trials):
        assert trial.balancedness <= trial.bound + 1e-9


def test_the_found_number_of_slots_reaches_the_target() -> None:
    problem = instance(counts(2, 12), 4, 12)
    found = find_slots(problem, 0.95, LIMITS)
    assert found.num_slots is not None
    reached = {trial.num_slots: trial for trial in found.trials}[found.num_slots]
    assert reached.balancedness >= 0.95
    assert all(trial.balancedness < 0.95 for trial in found.trials if trial.num_slots < found.num_slots)


def test_memory_limits_the_slots() -> None:
    """Room for four slots a GPU and layer, while the target needs more: nothing is found, which the bound proves."""
    load = np.array([[100.0] + [1.0] * 15])
    problem = instance(load, 4, 16, expert_bytes=10.0, gpu_memory_bytes=40.0)
    found = find_slots(problem, 0.999, LIMITS)
    assert (found.num_slots, found.proven) == (None, True)
    roomy = find_slots(replace(problem, gpu_memory_bytes=1000.0), 0.9, LIMITS)
    assert roomy.num_slots is not None


@pytest.mark.parametrize("target", [0.0, -1.0, 1.5, float("nan")])
def test_a_target_is_a_fraction(target: float) -> None:
    with pytest.raises(OptionError, match="target"):
        find_slots(instance(counts(1, 4), 2, 4), target, LIMITS)


def test_a_current_placement_has_its_number_of_slots() -> None:
    with pytest.raises(OptionError, match="current"):
        find_slots(instance(counts(1, 4), 2, 4, current=np.array([[0, 1, 2, 3]])), 0.9, LIMITS)


@pytest.mark.parametrize("model", ["chain", "fanout"])
def test_no_point_of_the_sweep_is_beaten_by_another(model: str) -> None:
    problem = travelling(model, routed(8, 3, 2, tokens=100), 8, 4, 12, gpus_per_node=2)  # type: ignore[arg-type]
    found = pareto_plans(problem, LIMITS, weights=(0.0, 0.1, 0.5, 5.0))
    assert found
    points = [point for point, _ in found]
    weights = [point.communication_weight for point in points]
    assert weights == sorted(weights)
    for one in points:
        assert not any(
            other.balancedness_mean >= one.balancedness_mean
            and other.communication <= one.communication
            and (other.balancedness_mean, other.communication) != (one.balancedness_mean, one.communication)
            for other in points
        )
    for point, plan in found:
        worth = objective(problem, plan)
        assert point.balancedness_mean == pytest.approx(worth.measures["balancedness_mean"])
        layers = 2 if model == "chain" else 3
        assert point.communication == pytest.approx(worth.parts["communication"] / 0.5 / layers)
    assert pareto(problem, LIMITS, weights=(0.5,))[0].communication_weight == 0.5


def test_a_sweep_needs_something_to_sweep() -> None:
    with pytest.raises(OptionError, match="communication"):
        pareto(instance(counts(1, 4), 2, 4), LIMITS)
