"""Unequal shares: by hand, against every split, and broken ones."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.outcome import Status
from formulations.parallelism.training.shares import SharePlan, ShareProblem, check, choose, even, slowest_s


def problem(unit_s: Any, units: int, **more: Any) -> ShareProblem:
    size = len(unit_s)
    given_ = {"fixed_s": np.zeros(size), "unit_bytes": np.zeros(size), "capacity_bytes": np.ones(size)}
    given_ |= {name: np.array(value, dtype=np.float64) for name, value in more.items() if np.ndim(value)}
    plain = {name: value for name, value in more.items() if not np.ndim(value)}
    return ShareProblem(unit_s=np.array(unit_s, dtype=np.float64), units=units, **given_, **plain)


def test_a_device_three_times_as_fast_takes_three_times_as_much() -> None:
    """8 units at 1 s and 3 s: 6 and 2 take 6 s each; 4 and 4 would take 12 s."""
    asked = problem([1.0, 3.0], 8)
    found = choose(asked)
    assert found.claimed == pytest.approx(6.0)
    assert slowest_s(asked, even(asked)) == 12.0


def test_pipelines_of_unequal_length() -> None:
    """Stages of 1 s; 4 and 1 stages, so (m + 3) and m seconds: 9 micro-batches go 3 and 6, which takes 6 s."""
    asked = problem([1.0, 1.0], 9, fixed_s=[3.0, 0.0])
    assert choose(asked).claimed == pytest.approx(6.0)


def test_states_go_where_the_batch_leaves_room() -> None:
    """Two equal devices, 10 and 20 B of room, 4 units of 4 B, states of 12 B: 16 + 12 = 28 of 30 B.

    2 and 2 units leave 2 and 12 B, which hold the states 0 and 12, or up to 2 and 10. With equal shards of 6 B it would
    not fit.
    """
    asked = problem([1.0, 1.0], 4, unit_bytes=[4.0, 4.0], capacity_bytes=[10.0, 20.0], state_bytes=12.0)
    found = choose(asked)
    assert found.plan is not None
    assert found.claimed == pytest.approx(2.0)
    assert check(asked, found.plan) == []
    assert "memory" in {violation.rule for violation in check(asked, even(asked))}


def test_a_gather_waits_for_the_largest_shard() -> None:
    """As before with h = 12 s: a largest share r takes 12 r.

    2 and 2 units leave 2 and 12 B: shares 1/6 and 5/6, 10 s. 1 and 3 leave 6 and 8 B: equal shares, 6 s; 3 s of work.
    """
    asked = problem([1.0, 1.0], 4, unit_bytes=[4.0, 4.0], capacity_bytes=[10.0, 20.0], state_bytes=12.0, gather_s=12.0)
    found = choose(asked)
    assert found.claimed == pytest.approx(6.0)


def best_of_all(asked: ShareProblem) -> float:
    """Every split of the units; the shards as level as the rooms allow, found by bisection."""
    best = np.inf
    for units in product(range(asked.units + 1), repeat=asked.unit_s.size):
        if sum(units) != asked.units:
            continue
        room = asked.capacity_bytes - asked.unit_bytes * np.array(units)
        if (room < 0).any():
            continue
        worked_s = max(a + t * b for a, t, b in zip(asked.fixed_s, asked.unit_s, units, strict=True) if b)
        if asked.state_bytes:
            if room.sum() < asked.state_bytes:
                continue
            low, high = 0.0, asked.state_bytes
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (low, middle) if np.minimum(room, middle).sum() >= asked.state_bytes else (middle, high)
            worked_s = max(worked_s, asked.gather_s * high / asked.state_bytes)
        best = min(best, worked_s)
    return best


@pytest.mark.parametrize("seed", range(30))
def test_no_split_is_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 4))
    asked = problem(
        draw.uniform(1, 4, size),
        int(draw.integers(1, 7)),
        fixed_s=draw.uniform(0, 3, size),
        unit_bytes=draw.integers(0, 4, size),
        capacity_bytes=draw.integers(2, 12, size),
        state_bytes=float(draw.integers(0, 9)),
        gather_s=float(draw.uniform(0, 20)),
    )
    best_s = best_of_all(asked)
    found = choose(asked)
    if np.isinf(best_s):
        assert found.status is Status.INFEASIBLE
        assert found.reasons
        return
    assert found.plan is not None
    assert check(asked, found.plan) == []
    assert found.claimed == pytest.approx(best_s, rel=1e-6)
    assert found.bound is not None
    assert found.bound.value <= best_s * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_never_slower_than_equal_parts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    size = int(draw.integers(1, 20))
    asked = problem(
        draw.uniform(0.1, 4, size),
        int(draw.integers(1, 200)),
        unit_bytes=draw.uniform(0, 1, size),
        capacity_bytes=draw.uniform(50, 300, size),
        state_bytes=float(draw.uniform(0, 30)),
        gather_s=float(draw.uniform(0, 3)),
    )
    plain = even(asked)
    found = choose(asked)
    if not check(asked, plain):
        assert found.plan is not None
        assert slowest_s(asked, found.plan) <= slowest_s(asked, plain) * (1 + 1e-8)
    if found.plan is not None:
        assert check(asked, found.plan) == []


@pytest.mark.parametrize(
    ("plan", "rule"),
    [
        (SharePlan((4,), (1.0,)), "parts"),
        (SharePlan((3, 2), (0.5, 0.5)), "units"),
        (SharePlan((2, 2), (0.5, 0.4)), "states"),
        (SharePlan((0, 4), (0.0, 1.0)), "memory"),
    ],
)
def test_broken_plans_are_found(plan: SharePlan, rule: str) -> None:
    asked = problem([1.0, 1.0], 4, unit_bytes=[1.0, 1.0], capacity_bytes=[6.0, 6.0], state_bytes=4.0)
    assert rule in {violation.rule for violation in check(asked, plan)}


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="take time"):
        problem([0.0], 1)
    with pytest.raises(ValueError, match="not negative"):
        problem([1.0], 1, fixed_s=[-1.0])
    with pytest.raises(ValueError, match="something to share"):
        problem([1.0], 0)
