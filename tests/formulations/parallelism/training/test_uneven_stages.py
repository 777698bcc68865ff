"""Pipelines of unequal stages: by hand, against every pipeline, and broken plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.outcome import Budget, Status, Stop
from formulations.parallelism.training.uneven_stages import (
    Stage,
    UnevenPlan,
    UnevenProblem,
    check,
    choose,
    choose_among,
    cost,
)


def problem(begin: Any, end: Any, layer_s: Any, micro: int, **more: Any) -> UnevenProblem:
    """Arrays from lists; what is not told is free, and there is room for all."""
    layer_s = np.array(layer_s, dtype=np.float64)
    options, layers = layer_s.shape
    arrays = {
        "layer_bytes": np.zeros((options, layers)),
        "kept_bytes": np.zeros((options, layers)),
        "sync_s": np.zeros((options, layers)),
        "send_s": np.zeros((options, layers + 1)),
        "capacity_bytes": np.ones(options),
        "closing_s": np.zeros(options),
    }
    arrays |= {name: np.array(value, dtype=np.float64) for name, value in more.items()}
    return UnevenProblem(begin=np.array(begin), end=np.array(end), layer_s=layer_s, micro_batches=micro, **arrays)


def every_pipeline(asked: UnevenProblem) -> Iterator[UnevenPlan]:
    def grow(stages: tuple[Stage, ...], place: int | None, layer: int) -> Iterator[UnevenPlan]:
        if layer == asked.num_layers:
            yield UnevenPlan(stages)
            return
        for option in range(asked.begin.size):
            if place is None or asked.begin[option] == place:
                for last in range(layer + 1, asked.num_layers + 1):
                    yield from grow((*stages, Stage(option, layer, last)), int(asked.end[option]), last)

    yield from grow((), None, 0)


def best_of_all(asked: UnevenProblem) -> float:
    legal = (cost(asked, plan).total_s for plan in every_pipeline(asked) if not check(asked, plan))
    return min(legal, default=np.inf)


def random_problem(seed: int) -> UnevenProblem:
    draw = np.random.default_rng(seed)
    devices, layers, options = int(draw.integers(1, 4)), int(draw.integers(1, 5)), int(draw.integers(1, 7))
    begin = draw.integers(0, devices, options)
    end = np.array([draw.integers(one + 1, devices + 1) for one in begin])
    return problem(
        begin,
        end,
        draw.integers(1, 9, (options, layers)),
        int(draw.integers(1, 6)),
        layer_bytes=draw.integers(0, 4, (options, layers)),
        kept_bytes=draw.integers(0, 3, (options, layers)),
        sync_s=draw.integers(0, 9, (options, layers)),
        send_s=draw.integers(0, 5, (options, layers + 1)),
        capacity_bytes=draw.integers(4, 20, options),
        closing_s=draw.integers(0, 5, options),
    )


@pytest.mark.parametrize("seed", range(40))
def test_waiting_sends_given_reductions_and_a_number_of_stages(seed: int) -> None:
    """Against every pipeline, with stages that wait for their sends and reductions that are no sum over layers."""
    draw = np.random.default_rng(1000 + seed)
    asked = random_problem(seed)
    options, layers = asked.layer_s.shape
    asked = replace(
        asked,
        receive_s=draw.integers(0, 5, options).astype(np.float64),
        sync_runs_s=draw.integers(0, 9, (options, layers + 1, layers + 1)).astype(np.float64),
        stages=int(draw.integers(1, 4)) if seed % 3 == 0 else None,
    )
    best = best_of_all(asked)
    found = choose(asked)
    assert (found.plan is None) == (best == np.inf)
    if found.plan is not None:
        assert found.status is Status.OPTIMAL
        assert check(asked, found.plan) == []
        assert found.claimed == pytest.approx(best)
        assert choose(asked, below_s=best).plan is None
        assert choose(asked, below_s=best * (1 + 1e-6)).claimed == pytest.approx(best)


def test_a_stage_waits_for_both_of_its_sends() -> None:
    """Three devices, three layers of 1 s, sends of 0.5 s at either end: stages take 1.5, 2 and 1.5 s.

    Five micro-batches: 4 x 2 + 5 = 13 s; two stages take 2.5 and 1.5, or 1.5 and 2.5: 4 x 2.5 + 4 = 14 s.
    """
    sends = [[0.5] * 4] * 3
    asked = problem([0, 1, 2], [1, 2, 3], [[1.0] * 3] * 3, 5, send_s=sends, receive_s=[0.5] * 3)
    assert choose(asked).claimed == pytest.approx(13.0)


def test_a_fast_device_takes_more_layers() -> None:
    """Six layers, a device of 1 s a layer and one of 2 s, ten micro-batches.

    4 and 2 layers: both stages 4 s, so 9 x 4 + 8 = 44 s. 3 and 3 would take 9 x 6 + 9 = 63 s, the fast device alone
    10 x 6 = 60 s.
    """
    asked = problem([0, 1], [1, 2], [[1.0] * 6, [2.0] * 6], 10)
    found = choose(asked)
    assert found.status is Status.OPTIMAL
    assert found.claimed == pytest.approx(44.0)
    assert found.plan is not None
    assert check(asked, found.plan) == []


def test_one_micro_batch_leaves_the_slow_device_out() -> None:
    """With one micro-batch nothing overlaps: the fast device alone takes 6 s, with the slow one it is more."""
    asked = problem([0, 1], [1, 2], [[1.0] * 6, [2.0] * 6], 1)
    assert choose(asked).claimed == pytest.approx(6.0)


def test_the_head_moves_layers_to_the_front() -> None:
    """Two equal devices; six layers of 1 s and a head of 3 s: 9 s in all, cut after the fifth at best: 5 and 4.

    Cut 4 | 2 + head: 4 and 5, the same bottleneck. Eleven micro-batches: 10 x 5 + 9 = 59 s.
    """
    asked = problem([0, 1], [1, 2], [[1.0] * 6 + [3.0]] * 2, 11)
    assert choose(asked).claimed == pytest.approx(59.0)


def test_early_stages_keep_more_micro_batches() -> None:
    """Two devices of 8 B, four layers of 1 B for each micro-batch in flight: the first stage keeps two of them.

    The first device is twice as fast, so that it takes three, which keep 6 B. In 3 B only one layer fits in front,
    while the last stage keeps 1 B a layer, three of them.
    """
    roomy = problem([0, 1], [1, 2], [[1.0] * 4, [2.0] * 4], 5, kept_bytes=np.ones((2, 4)), capacity_bytes=[8.0, 8.0])
    tight = replace(roomy, capacity_bytes=np.array([3.0, 3.0]))
    first, second = choose(roomy).plan, choose(tight).plan
    assert first is not None
    assert second is not None
    assert [stage.last for stage in first.stages] == [3, 4]
    assert [stage.last for stage in second.stages] == [1, 4]


def test_a_slow_link_between_sites_sets_the_pace() -> None:
    """Two sites, 2 s of work each if cut in half, 5 s to send there and back: pace 5 s; one site alone takes 4 s.

    Ten micro-batches: 9 x 5 + 4 + 5 = 54 s over both, 40 s on one.
    """
    slow = np.full((2, 5), 5.0)
    asked = problem([0, 1], [1, 2], [[1.0] * 4] * 2, 10, send_s=slow)
    assert choose(asked).claimed == pytest.approx(40.0)
    halves = UnevenPlan((Stage(0, 0, 2), Stage(1, 2, 4)))
    assert cost(asked, halves).total_s == pytest.approx(54.0)
    fast = replace(asked, send_s=slow / 10)
    assert choose(fast).claimed == pytest.approx(9 * 2 + 4 + 0.5)


@pytest.mark.parametrize("seed", range(40))
def test_no_pipeline_is_better(seed: int) -> None:
    asked = random_problem(seed)
    best_s = best_of_all(asked)
    found = choose(asked)
    if np.isinf(best_s):
        assert found.status is Status.INFEASIBLE
        assert found.reasons
        return
    assert found.plan is not None
    assert check(asked, found.plan) == []
    assert found.claimed == pytest.approx(best_s)
    assert found.bound is not None
    assert found.bound.value == pytest.approx(best_s)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_the_best_of_two_is_the_better_one(first: int, second: int) -> None:
    both = [random_problem(first), random_problem(second)]
    alone = [found.claimed for found in map(choose, both)]
    known = [one for one in alone if one is not None]
    place, found = choose_among(both)
    if not known:
        assert found.status is Status.INFEASIBLE
        return
    assert found.plan is not None
    assert found.status is Status.OPTIMAL
    assert found.claimed == pytest.approx(min(known))
    assert check(both[place], found.plan) == []


def test_sixteen_nodes_of_two_kinds_are_proven_in_few_steps() -> None:
    """Without the cap from what was found, thousands of pairs of bottleneck and reduction would be met."""
    places = [(begin, begin + size) for begin in range(16) for size in (1, 2, 4) if (begin % 8) + size <= 8]
    begin, end = np.array(places).T
    slow = np.where(begin < 8, 1.0, 2.0) / (end - begin)
    layer_s = slow[:, None] * np.array([0.2, *[1.0] * 30, 2.0])
    asked = problem(begin, end, layer_s, 32, sync_s=0.05 * layer_s, send_s=np.full((begin.size, 33), 0.02))
    found = choose(asked)
    assert found.status is Status.OPTIMAL
    assert found.plan is not None
    assert check(asked, found.plan) == []


def test_what_is_not_below_need_not_be_found() -> None:
    asked = problem([0, 1], [1, 2], [[1.0] * 6, [2.0] * 6], 10)
    found = choose(asked, below_s=44.0)
    assert found.plan is None
    assert found.status is Status.UNKNOWN
    assert found.bound is not None
    assert found.bound.value == pytest.approx(44.0)


def test_no_time_keeps_the_first_plan_and_says_so() -> None:
    asked = problem([0, 1], [1, 2], [[1.0] * 6, [2.0] * 6], 10)
    found = choose(asked, budget=Budget(1e-9))
    assert found.stop is Stop.TIME_LIMIT
    assert found.plan is not None
    assert found.claimed is not None
    assert found.bound is not None
    assert found.bound.value <= found.claimed


def test_no_memory_says_so() -> None:
    asked = problem([0], [1], [[1.0, 1.0]], 1, layer_bytes=[[3.0, 3.0]], capacity_bytes=[5.0])
    found = choose(asked)
    assert found.status is Status.INFEASIBLE
    assert "memory" in found.reasons[0]


@pytest.mark.parametrize(
    ("stages", "rule"),
    [
        ([], "option"),
        ([Stage(7, 0, 3)], "option"),
        ([Stage(0, 0, 2)], "cover"),
        ([Stage(0, 0, 2), Stage(1, 2, 2), Stage(2, 2, 3)], "empty"),
        ([Stage(0, 0, 2), Stage(2, 2, 3)], "devices"),
        ([Stage(0, 0, 2), Stage(1, 2, 3)], "memory"),
    ],
)
def test_broken_plans_are_found(stages: list[Stage], rule: str) -> None:
    asked = problem(
        [0, 1, 2], [1, 2, 3], np.ones((3, 3)), 4, kept_bytes=np.ones((3, 3)), capacity_bytes=np.full(3, 3.0)
    )
    assert rule in {violation.rule for violation in check(asked, UnevenPlan(tuple(stages)))}


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="begin before it ends"):
        problem([1], [1], [[1.0]], 1)
    with pytest.raises(ValueError, match="layer_s must be finite"):
        problem([0], [1], [[np.inf]], 1)
    with pytest.raises(ValueError, match="send_s has shape"):
        problem([0], [1], [[1.0]], 1, send_s=[[1.0]])
    with pytest.raises(ValueError, match="no problem to choose among"):
        choose_among([])
