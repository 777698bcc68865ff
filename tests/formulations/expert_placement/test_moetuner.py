"""MoETuner's two stages: balanced clusters, then their GPUs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from placement_cases import chain_instance, counts, crossings, instance, planted_trace, run

from formulations.expert_placement import moetuner
from formulations.expert_placement.check import check
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Status, Stop
from planner.errors import OptionError


def _deviation(problem: ExpertPlacementProblem, row: np.ndarray) -> float:
    load = np.tensordot(problem.weight, problem.load, axes=1)[0]
    total = load[row].reshape(problem.num_gpus, -1).sum(axis=1)
    return float(np.abs(total - total.mean()).sum())


def _clusters(rows: np.ndarray, num_gpus: int) -> list[set[frozenset[int]]]:
    grid = rows.reshape(len(rows), num_gpus, -1).tolist()
    return [{frozenset(cluster) for cluster in layer} for layer in grid]


def test_the_first_stage_balances_as_well_as_any_clusters() -> None:
    problem = instance(counts(1, 8), 2)
    outcome = run(problem, "moetuner")
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.HEURISTIC)
    assert outcome.plan is not None
    best = min(_deviation(problem, np.array(row)) for row in itertools.permutations(range(8)))
    # The stage counts in ten-thousandths of a cluster, rounded for each expert.
    assert _deviation(problem, outcome.plan.array[0]) <= best + 8 / moetuner.UNITS


def test_a_plan_without_a_trace_is_valid_and_bounded() -> None:
    problem = instance(counts(2, 3, 16), 4, speed=np.array([1.0, 1.0, 1.0, 0.5]))
    outcome = run(problem, "moetuner", time_limit_s=3.0)
    assert outcome.status is Status.FEASIBLE
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.bound.value <= outcome.objective.total
    assert outcome.plan is not None
    assert not check(problem, outcome.plan)


def test_the_second_stage_only_moves_clusters_and_lowers_the_dearest_pairs() -> None:
    trace, _ = planted_trace(6, 3, 3)
    problem = chain_instance(trace, 6, 3)
    mapped = run(problem, "moetuner")
    plain = run(instance(trace.counts(6)[None], 3), "moetuner")
    assert mapped.plan is not None
    assert plain.plan is not None
    assert mapped.stop is Stop.HEURISTIC
    assert _clusters(mapped.plan.array, 3) == _clusters(plain.plan.array, 3)

    def dearest(rows: np.ndarray) -> float:
        parts = rows.reshape(3, 3, 2)
        flow = problem.transitions
        pairs = [
            max(
                flow[layer][np.ix_(parts[layer, g], parts[layer + 1, h])].sum()
                for g in range(3)
                for h in range(3)
                if g != h
            )
            for layer in range(2)
        ]
        return float(sum(pairs))

    orders = [list(order) for order in itertools.permutations(range(3))]
    grid = mapped.plan.array.reshape(3, 3, 2)
    best = min(
        dearest(np.stack([grid[0], grid[1][one], grid[2][two]]).reshape(3, 6)) for one in orders for two in orders
    )
    assert dearest(mapped.plan.array) == pytest.approx(best, abs=1e-3)


def test_a_plan_on_a_trace_without_a_communication_model() -> None:
    trace, _ = planted_trace(8, 4, 4)
    problem = instance(trace.counts(8)[None], 4, trace=trace)
    outcome = run(problem, "moetuner")
    assert outcome.status is Status.FEASIBLE
    assert outcome.plan is not None
    assert crossings(outcome.plan.array, problem.transitions, 4) < 3.0


def test_a_second_stage_that_is_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moetuner, "MAX_ROWS", 10)
    outcome = run(chain_instance(planted_trace(8, 3, 4)[0], 8, 4), "moetuner")
    assert outcome.status is Status.FEASIBLE
    assert "too large" in outcome.solver


def test_without_time_the_starts_are_kept_and_said_to_be() -> None:
    problem = chain_instance(planted_trace(16, 4, 4)[0], 16, 4)
    outcome = run(problem, "moetuner", time_limit_s=1e-6)
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert "4 of 4 layers kept" in outcome.solver
    assert "stage 2 kept" in outcome.solver


def test_without_time_a_better_balanced_hint_is_kept() -> None:
    # LPT puts 3 + 2 + 2 against 3 + 2 + 0; 3 + 3 + 0 against 2 + 2 + 2 is even.
    problem = instance(np.array([[3.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), 2)
    even = problem.placement(np.array([[0, 1, 5, 2, 3, 4]]))
    outcome = run(problem, "moetuner", hint=even, time_limit_s=1e-6)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"num_slots": 8}, "no spare slots"),
        ({"num_groups": 2, "group_spread": 1, "gpus_per_node": 1}, "group_spread"),
        ({"current": np.array([[0, 1, 2, 3, 4, 5]]), "max_moves": 1}, "max_moves"),
    ],
)
def test_what_it_does_not_know_is_refused(keywords: dict[str, object], why: str) -> None:
    with pytest.raises(OptionError, match=f"moetuner .*{why}"):
        run(instance(counts(1, 6), **keywords), "moetuner")  # type: ignore[arg-type]
