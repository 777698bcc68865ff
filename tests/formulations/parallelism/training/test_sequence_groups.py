"""Groups for sequences of different lengths: by hand, against every grouping of small batches, and broken plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.backends.linear import solve_linear_pulp
from formulations.outcome import Budget, SolveOptions, Status
from formulations.parallelism.training.sequences import groups as search
from formulations.parallelism.training.sequences.check import check
from formulations.parallelism.training.sequences.groups import choose, devices_needed
from formulations.parallelism.training.sequences.packing import improve, one_degree, pack
from formulations.parallelism.training.sequences.problem import Group, SequencePlan, SequenceProblem, makespan


def problem(tokens: Any, devices: int, room: float, *, overhead: float = 1.0, spread: float = 0.1) -> SequenceProblem:
    """A sequence of l tokens takes l (1 + spread (d - 1)) / d on d devices, beside `overhead` a group."""
    tokens = np.array(tokens, dtype=np.int64)
    degrees = np.array([d for d in (1, 2, 4, 8) if d <= devices])
    return SequenceProblem(
        tokens=tokens,
        degrees=degrees,
        sequence_s=tokens[:, None] * (1 + spread * (degrees - 1.0)) / degrees,
        group_s=np.full(degrees.size, overhead),
        num_devices=devices,
        tokens_per_device=room,
    )


def groupings(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in groupings(items[1:]):
        yield [[items[0]], *rest]
        for place in range(len(rest)):
            yield [*rest[:place], [items[0], *rest[place]], *rest[place + 1 :]]


def best_of_all(asked: SequenceProblem) -> float:
    """Every grouping with every degree."""
    best = np.inf
    for groups in groupings(list(range(asked.tokens.size))):
        plans: list[tuple[int, float]] = [(asked.num_devices, 0.0)]
        for group in groups:
            after = []
            for free, slowest in plans:
                for d, degree in enumerate(asked.degrees.tolist()):
                    if degree <= free and asked.tokens[group].sum() <= asked.tokens_per_device * degree:
                        spent = float(asked.group_s[d] + asked.sequence_s[group, d].sum())
                        after.append((free - degree, max(slowest, spent)))
            plans = after
        best = min([best, *(slowest for _, slowest in plans)])
    return best


def test_one_long_sequence_among_short_ones() -> None:
    """Lengths 8, 2, 2, 2, 2 on 8 devices, a group of d takes 1 + l (1 + 0.1 (d - 1)) / d.

    The long one takes 1 + 8 x 1.3 / 4 = 3.6 on four devices, each short one 3 on one of the other four: 3.6.
    On two devices it would take 1 + 8 x 1.1 / 2 = 5.4. On all eight it leaves no device for others, and all take
    1 + 16 x 1.7 / 8 = 4.4.
    """
    asked = problem([8, 2, 2, 2, 2], 8, 100.0)
    found = choose(asked)
    assert found.plan is not None
    assert makespan(asked, found.plan) == pytest.approx(3.6)
    assert found.bound is not None
    assert found.bound.value <= 3.6 + 1e-9


def test_memory_makes_groups_larger_than_time_asks() -> None:
    """A lone sequence of 6 tokens, 2 to a device, slower on more devices: only a group of four holds it."""
    asked = problem([6], 4, 2.0, spread=2.0)
    found = choose(asked)
    assert found.plan is not None
    assert found.plan.groups == (Group(4, (0,)),)


@pytest.mark.parametrize("seed", range(12))
def test_between_the_bound_and_the_plain_rule(seed: int) -> None:
    draw = np.random.default_rng(seed)
    devices = int(draw.choice([2, 4, 5]))
    asked = problem(
        np.ceil(draw.lognormal(1.0, 1.0, int(draw.integers(2, 7)))),
        devices,
        float(draw.choice([8.0, 100.0])),
        overhead=float(draw.uniform(0, 3)),
        spread=float(draw.uniform(0, 0.6)),
    )
    best = best_of_all(asked)
    found = choose(asked)
    if np.isinf(best):
        assert found.plan is None
        return
    assert found.plan is not None
    assert found.bound is not None
    assert check(asked, found.plan) == []
    ours = makespan(asked, found.plan)
    assert found.claimed == pytest.approx(ours)
    assert found.bound.value <= best * (1 + 1e-9)
    # Packing is a heuristic: on batches this small it may miss the best grouping, not by much.
    assert best <= ours * (1 + 1e-9)
    assert ours <= 1.1 * best
    rule = one_degree(asked).packing
    if rule is not None:
        assert ours <= rule.makespan * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(0, 5))
def test_every_plan_is_legal_and_no_better_than_its_bound(tokens: list[int], power: int) -> None:
    devices = 2**power
    asked = problem(tokens, devices, sum(tokens) / devices * 2 + max(tokens) / devices)
    found = choose(asked)
    if found.plan is None:
        # Packing may fail where room is short; a proof may not.
        assert found.status in (Status.UNKNOWN, Status.INFEASIBLE)
        return
    assert check(asked, found.plan) == []
    assert found.bound is not None
    assert found.bound.value <= makespan(asked, found.plan) * (1 + 1e-9)


@pytest.mark.parametrize("limit", [4.0, 6.0, 9.0])
def test_a_second_solver_agrees_on_the_devices(limit: float) -> None:
    asked = problem([9, 7, 5, 3, 3, 2, 1, 1], 8, 10.0)
    built = devices_needed(asked, search._classes(asked), limit)
    if built is None:
        return
    numbers, _, _ = search._numbers(asked, search._classes(asked), limit, SolveOptions(), Budget(10.0))
    result, _ = solve_linear_pulp(built[0], Budget(10.0), SolveOptions())
    assert (numbers is None) == (result.objective is None)
    if numbers is not None:
        assert result.objective == pytest.approx(float(numbers @ asked.degrees))


def test_improvement_moves_and_swaps() -> None:
    """Lengths 5, 4, 3, 3, 3 on two devices pack longest first to 5 + 3 and 4 + 3 + 3; 5 + 4 and 3 + 3 + 3 are even."""
    asked = problem([5, 4, 3, 3, 3], 2, 100.0, overhead=0.0)
    packed = pack(asked, np.array([2, 0]))
    assert packed is not None
    assert packed.makespan == 10.0
    assert improve(asked, packed).makespan == 9.0


def test_more_classes_than_the_program_takes() -> None:
    """300 sequences fall into classes of the least length; the bound stays below the plan."""
    tokens = np.ceil(np.random.default_rng(3).lognormal(4.0, 1.0, 300))
    asked = problem(tokens, 16, float(tokens.sum()))
    classes = search._classes(asked)
    assert classes.size.size == search.MAX_CLASSES
    assert classes.size.sum() == 300
    found = choose(asked)
    assert found.plan is not None
    assert found.bound is not None
    assert check(asked, found.plan) == []
    assert found.bound.value <= makespan(asked, found.plan) <= 1.1 * found.bound.value


def test_too_long_and_too_many_tokens_say_so() -> None:
    found = choose(problem([3, 50], 4, 10.0))
    assert found.status is Status.INFEASIBLE
    assert "sequence 1 has 50 tokens" in found.reasons[0]
    found = choose(problem([9, 9, 9, 9, 9], 4, 10.0))
    assert found.status is Status.INFEASIBLE
    assert "45 tokens in all" in found.reasons[0]


@pytest.mark.parametrize(
    ("groups", "rule"),
    [
        ([Group(4, (0, 1))], "cover"),
        ([Group(4, (0, 1, 2, 2))], "cover"),
        ([Group(3, (0, 1, 2))], "degree"),
        ([Group(1, (0, 1, 2))], "memory"),
        ([Group(4, (0, 1, 2)), Group(1, ())], "devices"),
        ([Group(4, (0, 1, 2)), Group(1, ())], "empty"),
    ],
)
def test_broken_plans_are_found(groups: list[Group], rule: str) -> None:
    asked = problem([4, 4, 4], 4, 5.0)
    assert rule in {violation.rule for violation in check(asked, SequencePlan(tuple(groups)))}


def test_shapes_and_signs_are_checked() -> None:
    with pytest.raises(ValueError, match="sequences have tokens"):
        problem([0], 4, 10.0)
    with pytest.raises(ValueError, match="neither is empty"):
        problem([], 4, 10.0)
    with pytest.raises(ValueError, match="room for tokens"):
        problem([1], 4, float("nan"))
    with pytest.raises(ValueError, match="not negative"):
        problem([1], 4, 1.0, overhead=-1.0)
