"""The move list: every step can be executed, no expert is ever lost, and the end is the plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import counts, instance, run
from small_cases import random_placement, shapes

from formulations.expert_placement.check import check
from formulations.expert_placement.moves import align, ordered_moves, relabel
from planner.cost.expert_parallel import membership, moved_replicas
from planner.experts_plan import Move


def replay(current: np.ndarray, moves: tuple[Move, ...], layer_ids: tuple[int, ...], gpus: int) -> np.ndarray:
    """Execute the moves; asserts after every step what an engine relies on."""
    state = current.copy()
    per_gpu = current.shape[1] // gpus
    row_of = {layer: row for row, layer in enumerate(layer_ids)}
    assert [move.step for move in moves] == sorted(move.step for move in moves)
    for step in sorted({move.step for move in moves}):
        together = [move for move in moves if move.step == step]
        before = state.copy()
        staged = [move.to_gpu for move in together]
        assert len(together) == 1 or len({move.slot for move in together}) == len(together)
        for move in together:
            row = row_of[move.layer]
            assert move.to_gpu == move.slot // per_gpu
            assert before[row, move.slot] == move.replaces
            if move.from_gpu is not None:
                start = move.from_gpu * per_gpu
                assert move.expert in before[row, start : start + per_gpu]
            else:
                assert move.expert not in before[row]
            state[row, move.slot] = move.expert
        for row in range(len(state)):
            assert set(before[row]) <= set(state[row]), "an expert is lost"
        assert len(staged) == len(together)
    return state


@st.composite
def replans(draw: st.DrawFn) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Experts, GPUs, and two valid placements of one to three layers."""
    experts, gpus, per_gpu = draw(shapes())
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    layers = draw(st.integers(1, 3))
    one, two = (random_placement(rng, layers, experts, gpus, per_gpu) for _ in range(2))
    if draw(st.booleans()):
        one[0] = two[0]
    return experts, gpus, one, two


@settings(deadline=None, max_examples=150)
@given(case=replans())
def test_any_replan_can_be_executed_step_by_step(case: tuple[int, int, np.ndarray, np.ndarray]) -> None:
    experts, gpus, current, target = case
    layer_ids = tuple(range(2, 2 + len(current)))
    aligned = align(target, current, gpus)
    np.testing.assert_array_equal(membership(aligned, experts, gpus), membership(target, experts, gpus))
    moves = ordered_moves(aligned, current, layer_ids, gpus)
    np.testing.assert_array_equal(replay(current, moves, layer_ids, gpus), aligned)
    assert len(moves) == moved_replicas(target, current, experts, gpus).sum()
    problem = instance(
        counts(len(current), experts),
        gpus,
        current.shape[1],
        current=current,
        layer_ids=layer_ids,
        num_decoder_layers=9,
    )
    assert check(problem, problem.placement(aligned).model_copy(update={"moves": moves})) == []


@settings(deadline=None, max_examples=100)
@given(case=replans(), data=st.data())
def test_order_inside_a_gpu_is_no_move(case: tuple[int, int, np.ndarray, np.ndarray], data: st.DataObject) -> None:
    _, gpus, current, _ = case
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    shuffled = rng.permuted(current.reshape(len(current), gpus, -1), axis=2).reshape(current.shape)
    aligned = align(shuffled, current, gpus)
    np.testing.assert_array_equal(aligned, current)
    assert ordered_moves(aligned, current, tuple(range(len(current))), gpus) == ()


@settings(deadline=None, max_examples=100)
@given(case=replans())
def test_relabelling_keeps_the_contents_and_never_adds_a_move(
    case: tuple[int, int, np.ndarray, np.ndarray],
) -> None:
    experts, gpus, current, target = case
    renamed = relabel(target, current, experts, gpus)
    contents = [
        [sorted(map(tuple, np.sort(row.reshape(gpus, -1), axis=1).tolist())) for row in rows]
        for rows in (target, renamed)
    ]
    assert contents[0] == contents[1]
    fewer, before = (moved_replicas(rows, current, experts, gpus).sum() for rows in (renamed, target))
    assert fewer <= before


def test_exchanged_gpus_are_no_move_after_relabelling() -> None:
    current = np.array([[0, 1, 2, 3, 4, 5]])
    assert relabel(np.array([[4, 5, 0, 1, 2, 3]]), current, 6, 3).tolist() == current.tolist()


def test_a_swap_without_spare_replicas_is_one_step() -> None:
    """0 1 | 2 3 -> 0 2 | 1 3: experts 1 and 2 change places together, each copied from the other GPU."""
    moves = ordered_moves(np.array([[0, 2, 1, 3]]), np.array([[0, 1, 2, 3]]), (5,), 2)
    assert {move.step for move in moves} == {0}
    assert [(m.layer, m.slot, m.expert, m.replaces, m.from_gpu, m.to_gpu) for m in moves] == [
        (5, 1, 2, 1, 1, 0),
        (5, 2, 1, 2, 0, 1),
    ]


def test_a_ring_of_three_is_one_step_and_a_spare_replica_makes_single_ones() -> None:
    """0 | 1 | 2 -> 1 | 2 | 0 is a ring. With 0 also on GPU 3, whose slot gets 1, nothing has to wait."""
    ring = ordered_moves(np.array([[1, 2, 0]]), np.array([[0, 1, 2]]), (0,), 3)
    assert {move.step for move in ring} == {0}
    assert len(ring) == 3
    current, target = np.array([[0, 1, 2, 0]]), np.array([[1, 2, 0, 1]])
    single = ordered_moves(target, current, (0,), 4)
    assert [move.step for move in single] == [0, 1, 2, 3]
    np.testing.assert_array_equal(replay(current, single, (0,), 4), target)


def test_an_expert_that_the_current_placement_lost_has_no_source() -> None:
    current, target = np.array([[0, 1, 0, 1]]), np.array([[0, 1, 2, 1]])
    (move,) = ordered_moves(target, current, (0,), 2)
    assert (move.expert, move.replaces, move.from_gpu) == (2, 0, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [("slot", 999), ("expert", 999), ("from_gpu", 999), ("replaces", 3), ("to_gpu", 3), ("layer", 77), ("expert", 3)],
)
def test_a_spoilt_move_list_is_found(field: str, value: int) -> None:
    current = np.array([[0, 1, 1, 2, 3, 0]]).repeat(2, axis=0)
    problem = instance(counts(2, 4), 3, 6, current=current)
    target = align(np.array([[0, 2, 1, 3, 3, 1]]).repeat(2, axis=0), current, 3)
    moves = ordered_moves(target, current, (0, 1), 3)
    plan = problem.placement(target)
    assert check(problem, plan.model_copy(update={"moves": moves})) == []
    spoilt = (moves[0].model_copy(update={field: value}), *moves[1:])
    broken = check(problem, plan.model_copy(update={"moves": spoilt}))
    assert {violation.rule for violation in broken} == {"move_order"}
    for part in (moves[1:], moves[:-1], moves[::-1], ()):
        assert check(problem, plan.model_copy(update={"moves": part})) or part == moves[::-1]


def test_a_step_that_loses_an_expert_is_found() -> None:
    """0 1 | 2 3 -> 0 2 | 1 3 one after the other: the first move loses expert 1."""
    current = np.array([[0, 1, 2, 3]])
    problem = instance(counts(1, 4), 2, 4, current=current)
    target = np.array([[0, 2, 1, 3]])
    one, two = ordered_moves(target, current, (0,), 2)
    plan = problem.placement(target).model_copy(update={"moves": (one, two.model_copy(update={"step": 1}))})
    assert any("loses expert 1" in violation.message for violation in check(problem, plan))


def test_a_search_with_a_current_placement_lists_its_moves() -> None:
    rng = np.random.default_rng(5)
    current = random_placement(rng, 3, 12, 4, 4)
    problem = instance(counts(3, 12), 4, 16, current=current, move_cost=0.001)
    plan = run(problem, "local-search", work_limit=500).plan
    assert plan is not None
    assert plan.moves
    np.testing.assert_array_equal(replay(current, plan.moves, problem.layer_ids, 4), plan.array)
