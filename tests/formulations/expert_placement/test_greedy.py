"""Greedy replication, LPT packing and repair."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import shapes

from formulations.expert_placement.greedy import (
    pack,
    repair,
    repair_layer,
    replicas_in_falling_size,
    replicate,
)
from planner.cost.expert_parallel import membership


def test_replication_by_hand() -> None:
    """8 4 3 on six slots: 8 -> 4 4; then 4 (expert 0, the first of equals) -> 8/3 each; then 4 of expert 1 -> 2 2."""
    assert replicate(np.array([[8.0, 4.0, 3.0]]), 6, 4).tolist() == [[3, 2, 1]]


def test_replication_stops_at_the_cap_without_losing_slots() -> None:
    """One expert has nearly all load, and two GPUs: it gets two replicas, the rest goes to the next largest."""
    assert replicate(np.array([[100.0, 2.0, 1.0]]), 6, 2).tolist() == [[2, 2, 2]]
    assert replicate(np.array([[100.0, 2.0, 1.0]]), 5, 2).tolist() == [[2, 2, 1]]
    assert replicate(np.array([[1.0, 2.0]]), 2, 1).tolist() == [[1, 1]]


@settings(deadline=None)
@given(shape=shapes(), seed=st.integers(0, 1000))
def test_replicas_fill_the_slots_within_the_cap_and_no_exchange_helps(shape: tuple[int, int, int], seed: int) -> None:
    experts, gpus, per_gpu = shape
    load = np.random.default_rng(seed).random((3, experts))
    count = replicate(load, gpus * per_gpu, gpus)
    assert (count.sum(axis=1) == gpus * per_gpu).all()
    assert count.min() >= 1
    assert count.max() <= gpus
    # The largest replica that may still be split is no larger than what any expert would have with one fewer.
    for layer in range(3):
        split = np.where(count[layer] < gpus, load[layer] / count[layer], -np.inf)
        fewer = np.where(count[layer] > 1, load[layer] / np.maximum(count[layer] - 1, 1), np.inf)
        assert split.max() <= fewer.min() + 1e-12


def test_packing_by_hand() -> None:
    """5 4 3 3 2 1 onto two bins of three: 5 | 4; 3 onto the second (5 | 7), 3 onto the first (8 | 7); 8 + 1 | 7 + 2."""
    experts, size = np.arange(6)[None], np.array([[5.0, 4.0, 3.0, 3.0, 2.0, 1.0]])
    slots = pack(experts, size, 2)
    assert slots.tolist() == [[0, 3, 5, 1, 2, 4]]


def test_packing_onto_unequal_gpus_by_finish_time() -> None:
    """Speeds 1 and 3, items 6 3 3 2: 6 ends at 2 on the fast GPU, 3 ends at 3 on both and goes to the first."""
    slots = pack(np.arange(4)[None], np.array([[6.0, 3.0, 3.0, 2.0]]), 2, speed=np.array([1.0, 3.0]))
    fast = set(slots[0, 2:].tolist())
    assert 0 in fast
    assert sorted(slots[0].tolist()) == [0, 1, 2, 3]


def test_replicas_come_in_falling_size() -> None:
    experts, size = replicas_in_falling_size(np.array([[8.0, 3.0]]), np.array([[2, 1]]))
    assert experts.tolist() == [[0, 0, 1]]
    assert size.tolist() == [[4.0, 4.0, 3.0]]


@settings(deadline=None, max_examples=200)
@given(shape=shapes(), seed=st.integers(0, 10_000), barred=st.booleans())
def test_packed_and_repaired_layers_are_valid(shape: tuple[int, int, int], seed: int, barred: bool) -> None:
    """Whatever fits is repaired, up to full replication; `repair` never loses or invents a replica."""
    experts, gpus, per_gpu = shape
    load = np.random.default_rng(seed).lognormal(0, 1, (2, experts))
    count = replicate(load, gpus * per_gpu, gpus)
    slots = pack(*replicas_in_falling_size(load, count), gpus, num_experts=experts if barred else None)
    before = np.sort(slots, axis=1)
    valid = repair(slots, gpus, load / count)
    np.testing.assert_array_equal(np.sort(slots, axis=1), before)
    held = membership(slots, experts, gpus)
    np.testing.assert_array_equal((held <= 1).all(axis=(1, 2)), valid)
    assert valid.all()


def test_repair_respects_forbidden_gpus() -> None:
    """Experts 0 and 1 may use GPU 0 alone, 2 and 3 GPU 1: 0 2 | 1 3 becomes 0 1 | 2 3."""
    allowed = np.array([[True, False], [True, False], [False, True], [False, True]])
    row = np.array([0, 2, 1, 3])
    assert repair_layer(row, 2, np.ones(4), allowed)
    assert set(row[:2].tolist()) == {0, 1}


def test_what_cannot_be_repaired_is_said() -> None:
    assert not repair_layer(np.array([0, 0, 0, 1]), 2, np.ones(2))
