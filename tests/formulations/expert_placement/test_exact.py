"""Exact expert placement: CP-SAT, HiGHS and CBC against all placements of tiny instances."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from placement_cases import brute_force, chain_instance, counts, instance, planted_trace, run

from formulations.expert_placement import exact
from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.check import objective
from formulations.expert_placement.exact_structure import canonical, levels, twin_order
from formulations.expert_placement.problem import CommunicationModel, ExpertPlacementProblem
from formulations.outcome import Budget, PartBudget, Progress, Status, Stop
from planner.errors import OptionError
from planner.topology import hop_costs

METHODS = ("cp-sat", "milp", "milp-cbc")
CURRENT = np.array([[0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 1, 3]])


def _three_layers(**keywords: Any) -> ExpertPlacementProblem:
    return chain_instance(planted_trace(4, 3, 2, tokens=300)[0], 4, 2, **keywords)


def _groups(**keywords: Any) -> ExpertPlacementProblem:
    return instance(counts(1, 4), 4, 8, gpus_per_node=2, num_groups=2, group_spread=1, **keywords)


CASES = {
    "replicas": lambda: instance(counts(2, 4), 2, 6),
    "many replicas": lambda: instance(counts(1, 3, seed=1), 3, 6),
    "no replicas": lambda: instance(counts(1, 6), 3),
    "one slot a GPU": lambda: instance(counts(2, 4), 4),
    "one GPU": lambda: instance(counts(2, 3), 1),
    "scenarios": lambda: instance(counts(2, 1, 4), 2, 6, weight=np.array([1.0, 3.0])),
    "speeds": lambda: instance(counts(2, 1, 4, seed=3), 2, 6, speed=np.array([1.0, 0.6])),
    "idle experts": lambda: instance(np.array([[5.0, 0.0, 0.0, 1.0]]), 2, 6),
    "groups": _groups,
    "groups and speeds": lambda: _groups(speed=np.array([1.0, 1.0, 0.5, 0.7])),
    "move cost": lambda: instance(counts(2, 4), 2, 6, current=CURRENT, move_cost=0.05),
    "max moves": lambda: instance(counts(2, 4), 2, 6, current=CURRENT, move_cost=0.01, max_moves=1),
    "no moves": lambda: instance(counts(2, 4), 2, 6, current=CURRENT, max_moves=0),
    "chain": _three_layers,
    "chain and speeds": lambda: _three_layers(weight=0.2, speed=np.array([1.0, 0.5])),
    "chain over nodes": lambda: chain_instance(planted_trace(4, 2, 4, tokens=300)[0], 4, 4, 0.2, gpus_per_node=2),
}


@pytest.mark.parametrize("name", CASES)
def test_every_solver_proves_the_brute_force_optimum(name: str) -> None:
    problem = CASES[name]()
    best = brute_force(problem)
    for method in METHODS:
        outcome = run(problem, method)
        assert (outcome.status, outcome.stop) == (Status.OPTIMAL, Stop.PROOF), method
        assert outcome.objective is not None
        assert outcome.bound is not None
        assert outcome.objective.total == pytest.approx(best, rel=1e-6), method
        assert outcome.bound.value <= best * (1 + 1e-7), method
        assert outcome.bound.value >= best * (1 - 2e-6), method


@pytest.mark.parametrize("seed", range(6))
def test_random_instances_agree_with_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    speed = rng.choice([1.0, 0.8], size=3)
    problem = instance(counts(2, 1, 4, seed=seed), 3, 6, speed=speed, weight=rng.random(2) + 0.1)
    best = brute_force(problem)
    for method in METHODS[: 2 + seed % 2]:
        outcome = run(problem, method)
        assert outcome.status is Status.OPTIMAL
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_cap_on_moves_that_breaks_the_groups_is_infeasible_with_ways_out(method: str) -> None:
    apart = np.array([[0, 2, 1, 3]])
    problem = instance(counts(1, 4), 2, 4, gpus_per_node=1, num_groups=2, group_spread=1, current=apart, max_moves=1)
    assert brute_force(problem) == float("inf")
    outcome = run(problem, method)
    assert (outcome.status, outcome.stop) == (Status.INFEASIBLE, Stop.PROOF)
    assert outcome.plan is None
    assert len(outcome.reasons) == 1
    assert outcome.reasons[0].startswith("max_moves 1 and group_spread 1:")
    assert outcome.relaxations == ("max_moves: 2", "group_spread: 2")


@pytest.mark.parametrize("method", METHODS)
def test_a_current_placement_that_breaks_a_rule_cannot_be_kept(method: str) -> None:
    doubled = np.array([[0, 1, 1, 2, 3, 0]])
    frozen = run(instance(counts(1, 4), 2, 6, current=doubled, max_moves=0), method)
    assert frozen.status is Status.INFEASIBLE
    assert frozen.reasons
    mended = instance(counts(1, 4), 2, 6, current=doubled, max_moves=1)
    outcome = run(mended, method)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(brute_force(mended), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_without_time_the_start_is_returned_with_a_bound(method: str) -> None:
    problem = instance(counts(3, 24), 4, 32)
    outcome = run(problem, method, time_limit_s=1e-6)
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.bound.value <= outcome.objective.total
    rule = problem.placement(eplb(problem)[1])
    assert outcome.objective.total <= objective(problem, rule).total + 1e-9


def test_layers_share_the_time_and_none_is_worse_than_the_hint() -> None:
    problem = instance(counts(2, 4, 32), 4, 48)
    hint = run(problem, "local-search", work_limit=2000).plan
    assert hint is not None
    outcome = run(problem, "cp-sat", hint=hint, time_limit_s=2.0)
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.objective.total <= objective(problem, hint).total + 1e-9
    assert outcome.bound.value <= outcome.objective.total


@pytest.mark.parametrize("method", METHODS)
def test_a_work_limit_repeats_itself(method: str) -> None:
    problem = instance(counts(2, 12), 3, 15)
    plans = [run(problem, method, work_limit=2, seed=5).plan for _ in range(2)]
    assert plans[0] is not None
    assert plans[0] == plans[1]


def test_progress_is_told_in_numbers_of_the_whole() -> None:
    problem = instance(counts(3, 10), 3, 12)
    seen: list[Progress] = []
    outcome = run(problem, "milp", on_progress=seen.append, time_limit_s=5.0)
    assert outcome.objective is not None
    for progress in seen:
        assert progress.bound is None or progress.bound <= outcome.objective.total * (1 + 1e-6)
        assert progress.incumbent is None or progress.incumbent >= outcome.objective.total * (1 - 1e-6)


def test_a_part_hears_of_an_interrupt_and_ends_with_its_share() -> None:
    whole = Budget(100.0)
    part = PartBudget(whole, 1e-9)
    assert part.stop() is Stop.TIME_LIMIT
    whole.interrupted = True
    part.report()
    assert part.interrupted
    assert part.stop() is Stop.INTERRUPTED


@pytest.mark.parametrize("method", METHODS)
def test_a_gap_is_enough_if_it_is_asked_for(method: str) -> None:
    outcome = run(instance(counts(2, 12), 3, 15), method, relative_gap=0.2)
    assert outcome.stop in (Stop.GAP, Stop.PROOF)
    assert outcome.gap is not None
    assert outcome.gap <= 0.2


@pytest.mark.parametrize("method", METHODS)
def test_what_the_models_cannot_say_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = planted_trace(4, 2, 2, tokens=50)[0]
    cost, intra, inter = hop_costs(2, 2)
    fanout = CommunicationModel(model="fanout", weight=1.0, cost=cost, intra_node_cost=intra, inter_node_cost=inter)
    with pytest.raises(OptionError, match=f"{method} cannot model fan-out"):
        run(instance(trace.counts(4)[None], trace=trace, communication=fanout), method)
    chain = CommunicationModel(model="chain", weight=1.0, cost=cost, intra_node_cost=intra, inter_node_cost=inter)
    with pytest.raises(OptionError, match="without replicas"):
        run(instance(trace.counts(4)[None], 2, 6, trace=trace, communication=chain), method)
    monkeypatch.setattr(exact, "MAX_VARIABLES", 10)
    with pytest.raises(OptionError, match=r"small instances.*at most 10"):
        run(instance(counts(1, 4), 2, 6), method)


def test_cp_sat_refuses_the_lp_split() -> None:
    with pytest.raises(OptionError, match="even split only"):
        run(instance(counts(1, 4), 2, 6, split="lp"), "cp-sat")


def test_levels_add_up_to_the_cost_matrix() -> None:
    cost = np.random.default_rng(0).integers(0, 4, (5, 5)).astype(float)
    np.fill_diagonal(cost, 0.0)
    np.testing.assert_allclose(sum(height * ~near for height, near in levels(cost)), cost)


def test_twins_are_equal_in_all_that_counts_and_the_order_keeps_the_worth() -> None:
    speed = np.array([1.0, 1.0, 0.5, 1.0])
    assert twin_order(instance(counts(1, 8), 4, speed=speed)) == [(0, 1), (1, 3)]
    assert twin_order(instance(counts(1, 4), 4, current=np.array([[0, 1, 2, 3]]))) == []
    assert twin_order(_groups()) == [(0, 1), (2, 3)]
    problem = instance(counts(2, 8), 4)
    rows = problem.placement(eplb(problem)[1]).array
    held = canonical(problem, rows)
    again = np.nonzero(held.transpose(0, 2, 1))[2].reshape(rows.shape)
    assert objective(problem, problem.placement(again)).total == pytest.approx(
        objective(problem, problem.placement(rows)).total
    )
