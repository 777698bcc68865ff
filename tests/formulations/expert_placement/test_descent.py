"""The numpy descent: valid, never worse than its start, and its prices are those of a fresh evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import random_placement, shapes

from formulations.expert_placement.descent import _ranking_key, _replace, _State, _swap_pairs, descend
from formulations.outcome import Budget
from planner.cost.expert_parallel import gpu_load, hottest, membership


def price(load: np.ndarray, weight: np.ndarray, speed: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return weight @ hottest(gpu_load(load, rows, speed, "even"), speed)


@settings(deadline=None, max_examples=60)
@given(shape=shapes(), scenarios=st.sampled_from([1, 2, 3]), seed=st.integers(0, 10_000), uneven=st.booleans())
def test_never_worse_than_the_start_and_priced_as_it_is(
    shape: tuple[int, int, int], scenarios: int, seed: int, uneven: bool
) -> None:
    experts, gpus, per_gpu = shape
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, (scenarios, 3, experts))
    weight = rng.random(scenarios) + 0.1
    weight /= weight.sum()
    speed = rng.choice([1.0, 0.5], gpus) if uneven else np.ones(gpus)
    start = random_placement(rng, 3, experts, gpus, per_gpu)
    before = start.copy()
    rows, value = descend(load, weight, speed, start, gpus, rng, Budget(20.0), 60)
    np.testing.assert_array_equal(start, before)
    held = membership(rows, experts, gpus)
    assert (held <= 1).all()
    assert (held.sum(axis=2) >= 1).all()
    np.testing.assert_allclose(value, price(load, weight, speed, rows), rtol=1e-9)
    assert (value <= price(load, weight, speed, start) * (1 + 1e-12)).all()


@pytest.mark.parametrize("scenarios", [1, 3])
def test_levels_stay_those_of_a_fresh_sum(scenarios: int) -> None:
    rng = np.random.default_rng(scenarios)
    load = rng.lognormal(0, 1, (scenarios, 4, 12))
    weight, speed = np.full(scenarios, 1 / scenarios), rng.choice([1.0, 0.7], 4)
    rows = random_placement(rng, 4, 12, 4, 4)
    state = _State.build(np.ascontiguousarray(load.transpose(1, 2, 0)), weight, speed, rows)
    for iteration in range(30):
        order = np.argsort(_ranking_key(state, scenarios, iteration, rng), axis=1)
        _swap_pairs(state, order, iteration, rng, None)
        _replace(state, order, 4, rng, None)
        flat = state.slots.reshape(4, -1)
        np.testing.assert_allclose(state.level, state.levels(), atol=1e-12)
        fresh = gpu_load(load, flat, speed, "even") / speed
        np.testing.assert_allclose(state.level, fresh.transpose(1, 2, 0), atol=1e-12)
        np.testing.assert_array_equal(state.held, membership(flat, 12, 4) > 0)
        np.testing.assert_array_equal(state.count, membership(flat, 12, 4).sum(axis=2))


def test_forbidden_gpus_stay_empty_of_the_expert() -> None:
    rng = np.random.default_rng(0)
    allowed = np.zeros((2, 8, 4), dtype=bool)
    allowed[:, :4, :2] = allowed[:, 4:, 2:] = True
    rows = np.array([[0, 1, 2, 0, 2, 3, 4, 5, 6, 4, 6, 7]] * 2).reshape(2, 12)
    rows[:, :6] = [0, 1, 2, 0, 3, 2]
    rows[:, 6:] = [4, 5, 6, 4, 7, 6]
    load = rng.lognormal(0, 1, (1, 2, 8))
    found, _ = descend(load, np.ones(1), np.ones(4), rows, 2, rng, Budget(20.0), 60, allowed=allowed)
    assert not ((membership(found, 8, 4) > 0) & ~allowed).any()


def test_a_target_reached_or_a_spent_budget_ends_it() -> None:
    rng = np.random.default_rng(0)
    load = rng.lognormal(0, 1, (1, 1, 12))
    rows = random_placement(rng, 1, 12, 4, 4)
    start = price(load, np.ones(1), np.ones(4), rows)
    _, value = descend(load, np.ones(1), np.ones(4), rows, 4, rng, Budget(1e-9), 10_000)
    assert (value <= start).all()
    _, value = descend(load, np.ones(1), np.ones(4), rows, 4, rng, Budget(60.0), 10_000, target=start)
    assert (value <= start).all()
