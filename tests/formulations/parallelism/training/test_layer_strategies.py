"""Strategies of a stage's layers: by hand, against every sequence of strategies, with a second solver, and broken."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.backends.linear import solve_linear_pulp
from formulations.outcome import Budget, SolveOptions, Status
from formulations.parallelism.training import layer_strategies
from formulations.parallelism.training.layer_strategies import (
    Block,
    LayerPlan,
    LayerProblem,
    check,
    choose,
    memory_of,
    time_of,
    trails,
    undominated,
)


def problem(layers: Any, time_s: Any, memory: Any, capacity: float, family: Any = None, switch: Any = None) -> Any:
    """Arrays from lists; one family unless told."""
    family = [0] * len(time_s[0]) if family is None else family
    return LayerProblem(
        layers=np.array(layers, dtype=np.int64),
        time_s=np.array(time_s, dtype=np.float64),
        memory_bytes=np.array(memory, dtype=np.float64),
        family=np.array(family, dtype=np.int64),
        switch_s=np.array([[0.0]] if switch is None else switch, dtype=np.float64),
        capacity_bytes=capacity,
    )


def test_recomputation_of_as_many_layers_as_memory_asks() -> None:
    """5 layers: keep all (1 s, 10 B) or recompute (1.5 s, 4 B) in 35 B.

    r recomputed layers take 50 - 6 r <= 35 bytes, so r = 3 (r = 2 takes 38): 2 x 1 + 3 x 1.5 = 6.5 s and 32 bytes.
    """
    asked = problem([5], [[1.0, 1.5]], [[10.0, 4.0]], 35.0)
    found = choose(asked)
    assert found.status is Status.OPTIMAL
    assert found.plan is not None
    assert found.plan.counts(asked).tolist() == [[2, 3]]
    assert time_of(asked, found.plan) == pytest.approx(6.5)
    assert memory_of(asked, found.plan) == pytest.approx(32.0)


def test_a_switch_is_paid_once_and_only_where_it_pays() -> None:
    """4 layers: family 0 (1 s, 10 B), family 1 (2 s, 1 B), in 22 B.

    Memory takes at least two layers of family 1 (2 x 10 + 2 x 1 = 22): 2 + 4 + one switch. With a switch of 1 s that is
    7 s, less than 8 s without any; with one of 3 s it is 9 s, and all four layers go to family 1.
    """
    for switch_s, best_s in ((1.0, 7.0), (3.0, 8.0)):
        asked = problem(
            [4], [[1.0, 2.0]], [[10.0, 1.0]], 22.0, family=[0, 1], switch=[[0.0, switch_s], [switch_s, 0.0]]
        )
        found = choose(asked)
        assert found.plan is not None
        assert time_of(asked, found.plan) == pytest.approx(best_s)
        assert found.bound is not None
        assert found.bound.value == pytest.approx(best_s)


def test_trails_take_the_cheapest_way_through_a_set() -> None:
    """Three families in a row, 1 s apart and 5 s between the ends: 0-1-2 takes 2 s, 1-0-2 would take 6 s."""
    found = {way.families: way.seconds for way in trails(np.array([[0.0, 1, 5], [1, 0, 1], [5, 1, 0]]))}
    assert found[(0, 1, 2)] == 2.0
    assert found[(0, 2, 1)] == 6.0
    assert found[(0, 2)] == 5.0
    assert found[(1,)] == 0.0


def random_problem(seed: int) -> LayerProblem:
    draw = np.random.default_rng(seed)
    runs, families = int(draw.integers(1, 3)), int(draw.integers(1, 4))
    strategies = int(draw.integers(families, 5))
    layers = draw.integers(1, 4, runs)
    family = np.concatenate([np.arange(families), draw.integers(0, families, strategies - families)])
    switch = draw.integers(0, 6, (families, families)).astype(float)
    np.fill_diagonal(switch, 0.0)
    memory = draw.integers(1, 9, (runs, strategies)).astype(float)
    time_s = draw.integers(1, 20, (runs, strategies)).astype(float)
    time_s[draw.random((runs, strategies)) < 0.1] = np.inf
    capacity = float(memory.min(axis=1) @ layers + draw.integers(-2, 12))
    return problem(layers, time_s, memory, capacity, family, switch)


def best_sequence(asked: LayerProblem) -> float:
    """Every sequence of strategies, layer by layer."""
    runs = np.repeat(np.arange(asked.layers.size), asked.layers)
    best = np.inf
    for chosen in product(range(asked.time_s.shape[1]), repeat=runs.size):
        plan = LayerPlan(tuple(Block(int(run), s, 1) for run, s in zip(runs, chosen, strict=True)))
        if memory_of(asked, plan) <= asked.capacity_bytes:
            best = min(best, time_of(asked, plan))
    return best


@pytest.mark.parametrize("seed", range(25))
def test_no_sequence_is_better(seed: int) -> None:
    asked = random_problem(seed)
    best_s = best_sequence(asked)
    found = choose(asked)
    if np.isinf(best_s):
        assert found.status is Status.INFEASIBLE
        assert found.reasons
        return
    assert found.status is Status.OPTIMAL
    assert found.plan is not None
    assert check(asked, found.plan) == []
    assert time_of(asked, found.plan) == pytest.approx(best_s)
    assert found.claimed == pytest.approx(best_s)


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_second_solver_agrees(seed: int) -> None:
    asked = random_problem(seed)
    found = choose(asked)
    ways = trails(asked.switch_s)
    built = layer_strategies._build(asked, undominated(asked), ways)
    result, _ = solve_linear_pulp(built.model, Budget(10.0), SolveOptions())
    if found.plan is None:
        assert result.objective is None
    else:
        assert result.objective is not None
        assert result.objective * built.unit_s == pytest.approx(time_of(asked, found.plan), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10))
def test_more_memory_never_slows(seed: int, more: int) -> None:
    asked = random_problem(seed)
    roomier = problem(
        asked.layers, asked.time_s, asked.memory_bytes, asked.capacity_bytes + more, asked.family, asked.switch_s
    )
    before, after = choose(asked), choose(roomier)
    if before.plan is not None:
        assert after.plan is not None
        assert time_of(roomier, after.plan) <= time_of(asked, before.plan) + 1e-9


def test_dominance_keeps_one_of_equals_and_never_crosses_families() -> None:
    """Strategies 0 and 1 are equal, 2 is worse than both, 3 is worse but of another family, 4 is impossible."""
    asked = problem(
        [1],
        [[1.0, 1.0, 2.0, 2.0, np.inf]],
        [[5.0, 5.0, 5.0, 6.0, 1.0]],
        99.0,
        family=[0, 0, 0, 1, 1],
        switch=[[0.0, 1.0], [1.0, 0.0]],
    )
    assert undominated(asked).tolist() == [[True, False, False, True, False]]


def test_too_little_memory_says_how_little() -> None:
    found = choose(problem([3], [[1.0]], [[10.0]], 29.0))
    assert found.status is Status.INFEASIBLE
    assert "30 bytes" in found.reasons[0]


def test_no_time_is_no_answer() -> None:
    asked = problem([3], [[1.0, 2.0]], [[10.0, 5.0]], 25.0)
    budget = Budget(1e-9)
    found = choose(asked, budget=budget)
    assert found.status is Status.UNKNOWN
    assert found.plan is None


@pytest.mark.parametrize(
    ("blocks", "rule"),
    [
        ([Block(0, 0, 2)], "cover"),
        ([Block(1, 0, 1), Block(0, 0, 3)], "order"),
        ([Block(0, 7, 3)], "blocks"),
        ([Block(0, 0, 3), Block(1, 1, 1)], "possible"),
        ([Block(0, 0, 3), Block(1, 0, 1)], "memory"),
    ],
)
def test_broken_plans_are_found(blocks: list[Block], rule: str) -> None:
    asked = problem([3, 1], [[1.0, 2.0], [1.0, np.inf]], [[10.0, 2.0], [10.0, 2.0]], 35.0)
    assert rule in {violation.rule for violation in check(asked, LayerPlan(tuple(blocks)))}


def test_shapes_and_signs_are_checked() -> None:
    with pytest.raises(ValueError, match="families are numbered"):
        problem([1], [[1.0]], [[1.0]], 1.0, family=[1])
    with pytest.raises(ValueError, match="negative"):
        problem([1], [[-1.0]], [[1.0]], 1.0)
    with pytest.raises(ValueError, match="a layer in every run"):
        problem([0], [[1.0]], [[1.0]], 1.0)
    with pytest.raises(ValueError, match="finite"):
        problem([1], [[1.0]], [[np.nan]], 1.0)
