"""Replanning with a cap on moves: what is kept, what is never exceeded, and what more moves buy."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from placement_cases import brute_force, counts, instance, run
from small_cases import random_placement, routed, travelling

from formulations.expert_placement import capped_moves
from formulations.expert_placement.check import objective
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.workspace import Best, Workspace
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.cost.expert_parallel import moved_replicas


def moved(problem: ExpertPlacementProblem, rows: np.ndarray) -> int:
    assert problem.current is not None
    return int(moved_replicas(rows, problem.current, problem.num_experts, problem.num_gpus).sum())


def problem_with_current(seed: int = 0, **keywords: object) -> ExpertPlacementProblem:
    rng = np.random.default_rng(seed)
    return instance(counts(3, 12, seed=seed), 4, 16, current=random_placement(rng, 3, 12, 4, 4), **keywords)


@pytest.mark.parametrize("seed", range(3))
def test_no_moves_keep_the_current_placement(seed: int) -> None:
    problem = problem_with_current(seed, max_moves=0)
    outcome = run(problem, "local-search", work_limit=300)
    assert outcome.plan is not None
    assert outcome.plan.array.tolist() == problem.current.tolist()  # type: ignore[union-attr]
    assert outcome.plan.moves == ()


@pytest.mark.parametrize("first", [0, 4])
def test_no_moves_keep_a_current_placement_of_groups_on_any_node(first: int) -> None:
    """Two groups of four on two nodes: the current placement keeps the rule whichever group is on which node."""
    for seed in range(4):
        problem = instance(
            counts(1, 8, seed=seed),
            4,
            8,
            gpus_per_node=2,
            num_groups=2,
            group_spread=1,
            current=np.roll(np.arange(8), first)[None],
            max_moves=0,
        )
        outcome = run(problem, "local-search", work_limit=300)
        assert outcome.plan is not None, seed
        assert moved(problem, outcome.plan.array) == 0


def test_no_moves_keep_the_current_placement_of_a_chain() -> None:
    rng = np.random.default_rng(0)
    current = random_placement(rng, 3, 8, 4, 3)
    problem = travelling("chain", routed(8, 3, 1), 8, 4, 12, current=current, max_moves=0)
    outcome = run(problem, "local-search", work_limit=200)
    assert outcome.plan is not None
    assert moved(problem, outcome.plan.array) == 0


@pytest.mark.parametrize("kind", ["even", "lp", "chain", "fanout"])
def test_the_cap_is_kept_and_moves_are_listed(kind: str) -> None:
    rng = np.random.default_rng(1)
    current = random_placement(rng, 2, 8, 4, 3)
    for cap in (1, 3, 6):
        if kind in ("even", "lp"):
            problem = instance(counts(2, 8), 4, 12, split=kind, current=current, max_moves=cap)
        else:
            trace = routed(8, 2, 1 if kind == "chain" else 3, tokens=60)
            problem = travelling(kind, trace, 8, 4, 12, current=current, max_moves=cap)  # type: ignore[arg-type]
        outcome = run(problem, "local-search", work_limit=200)
        assert outcome.plan is not None
        assert outcome.objective is not None
        assert outcome.plan.moves is not None
        assert len(outcome.plan.moves) == moved(problem, outcome.plan.array) <= cap
        stay = objective(problem, problem.placement(current)).total
        assert outcome.objective.total <= stay * (1 + 1e-9)


def test_more_moves_never_cost_more() -> None:
    """The columns are the same for every cap, and the knapsack over them is exact."""
    totals = []
    for cap in (0, 1, 2, 4, 8, 16, 32, 48):
        outcome = run(problem_with_current(2, max_moves=cap), "local-search", work_limit=500)
        assert outcome.objective is not None
        totals.append(outcome.objective.total)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(totals))


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_a_few_moves_on_tiny_instances_are_the_best_ones(cap: int) -> None:
    for seed in range(4):
        problem = instance(counts(1, 4, seed=seed), 2, 6, current=np.array([[0, 1, 2, 1, 2, 3]]), max_moves=cap)
        outcome = run(problem, "local-search")
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(brute_force(problem), rel=1e-6), seed


#: Current placements that break a rule: an expert missing, repeated on a GPU, both, in one layer of two.
BROKEN = [
    [[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 3]],
    [[0, 1, 1, 2, 3, 0], [0, 1, 2, 1, 2, 3]],
    [[0, 0, 1, 2, 2, 1], [0, 1, 2, 1, 2, 3]],
    [[3, 3, 3, 0, 1, 2], [0, 0, 0, 0, 0, 0]],
]


@pytest.mark.parametrize("current", BROKEN)
def test_a_broken_current_placement_is_mended_by_the_fewest_moves(current: list[list[int]]) -> None:
    problem = instance(counts(2, 4), 2, 6, current=np.array(current), max_moves=0)
    outcome = run(problem, "local-search", work_limit=200)
    assert outcome.status is Status.INFEASIBLE
    assert outcome.reasons[0].startswith("max_moves 0")
    least = int(outcome.relaxations[0].removeprefix("max_moves: "))
    for cap in (least, least + 2):
        mended = run(replace(problem, max_moves=cap), "local-search", work_limit=200)
        assert mended.plan is not None, (cap, mended.status)
        assert moved(problem, mended.plan.array) <= cap


def test_move_cost_under_a_cap_is_charged() -> None:
    """Moves that cost more than any balance can gain are not made, whatever the cap allows."""
    problem = problem_with_current(3, max_moves=20, move_cost=10.0)
    outcome = run(problem, "local-search", work_limit=300)
    assert outcome.plan is not None
    assert moved(problem, outcome.plan.array) == 0


def test_ctrl_c_reaches_a_capped_search_in_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are made under budgets of their own; an interrupt of the whole search stops the running one."""
    problem = problem_with_current(max_moves=4)
    budget = Budget(60.0)
    heard: list[Stop | None] = []

    def interrupted(work: Workspace, best: Best) -> Stop | None:
        budget.interrupted = True
        heard.append(work.budget.stop())
        return work.budget.stop()

    monkeypatch.setattr(capped_moves, "separable", interrupted)
    work = Workspace(problem=problem, options=SolveOptions(), budget=budget, move_price=0.0)
    rows, stop = capped_moves.search_capped(work, np.random.default_rng(0))
    assert rows is not None
    assert stop is Stop.INTERRUPTED
    assert heard[0] is Stop.INTERRUPTED
