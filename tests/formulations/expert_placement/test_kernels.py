"""The compiled annealing against its plain Python form and against the numpy cost model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_cases import random_placement, routed

from formulations.expert_placement import kernels
from formulations.expert_placement.anneal_chain import anneal_chain
from formulations.expert_placement.anneal_even import anneal_even
from formulations.expert_placement.anneal_fanout import anneal_fanout, token_cost
from formulations.expert_placement.anneal_lp import anneal_lp
from formulations.expert_placement.fold import anneal_counts, fold, fold_value
from planner.cost.expert_parallel import (
    chain_cost,
    fanout,
    fanout_cost,
    gpu_load,
    hottest,
    membership,
    moved_replicas,
)
from planner.topology import hop_costs
from planner.workload import RoutingTrace

EXPERTS, GPUS, PER_GPU = 7, 4, 3


class Layer:
    """Random inputs of a one-layer kernel."""

    def __init__(self, seed: int, scenarios: int = 2, layers: int = 1, move_price: float = 0.01) -> None:
        rng = np.random.default_rng(seed)
        self.load = rng.lognormal(0, 1, (layers, EXPERTS, scenarios))
        self.weight = np.full(scenarios, 1 / scenarios)
        self.speed = rng.choice([1.0, 0.6], GPUS)
        self.allowed = np.ones((layers, EXPERTS, GPUS), np.uint8)
        self.slots = random_placement(rng, layers, EXPERTS, GPUS, PER_GPU)
        self.current = random_placement(rng, layers, EXPERTS, GPUS, PER_GPU)
        self.old = (membership(self.current, EXPERTS, GPUS) > 0).astype(np.uint8)
        self.move_price = move_price

    def one(self) -> tuple[Any, ...]:
        return (self.load[0], self.weight, self.speed, self.allowed[0], self.old[0], self.move_price)

    def price(self, rows: np.ndarray, split: str = "even") -> float:
        level = gpu_load(self.load.transpose(2, 0, 1), rows, self.speed, split)  # type: ignore[arg-type]
        moves = moved_replicas(rows, self.current, EXPERTS, GPUS).sum()
        return float((self.weight @ hottest(level, self.speed)).sum() + self.move_price * moves)


def assert_valid(rows: np.ndarray) -> None:
    held = membership(rows, EXPERTS, GPUS)
    assert (held <= 1).all()
    assert (held.sum(axis=2) >= 1).all()


@pytest.mark.parametrize("seed", range(4))
def test_even_compiled_equals_plain_and_is_priced_right(seed: int) -> None:
    layer = Layer(seed)
    arguments = (*layer.one(), layer.slots[0], GPUS, 300, 0.1, 1e-3, seed)
    slots, value = anneal_even(*arguments)
    plain, plain_value = anneal_even.py_func(*arguments)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(slots, plain)
    assert value == pytest.approx(plain_value, rel=1e-12)
    assert_valid(slots[None])
    assert value == pytest.approx(layer.price(slots[None]), rel=1e-9)
    assert value <= layer.price(layer.slots) * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lp_compiled_equals_plain_and_is_never_below_the_exact_split(seed: int) -> None:
    layer = Layer(seed)
    arguments = (*layer.one(), layer.slots[0], GPUS, 150, 0.1, 1e-3, seed)
    slots, value = anneal_lp(*arguments)
    plain, plain_value = anneal_lp.py_func(*arguments)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(slots, plain)
    assert value == pytest.approx(plain_value, rel=1e-12)
    assert_valid(slots[None])
    exact = layer.price(slots[None], "lp")
    assert value >= exact * (1 - 1e-6)
    assert value <= exact * 1.05


@pytest.mark.parametrize("move_price", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_chain_compiled_equals_plain_and_its_changes_add_up(seed: int, move_price: float) -> None:
    layer = Layer(seed, layers=3, move_price=move_price)
    cost, _, _ = hop_costs(GPUS, 2, 1.0, 5.0)
    flow = routed(EXPERTS, 3, 1, seed=seed).transitions(EXPERTS)
    common = (layer.load, layer.weight, layer.speed, layer.allowed, layer.old, layer.move_price)
    arguments = (*common, flow, cost, 0.4, layer.slots, GPUS, 400, 0.2, 1e-3, seed)
    found, plain = anneal_chain(*arguments), anneal_chain.py_func(*arguments)  # type: ignore[attr-defined]
    for one, two in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    last, best, value, lowest = found

    def price(rows: np.ndarray) -> float:
        return layer.price(rows) + 0.4 * float(chain_cost(rows, flow, cost).sum())

    start = price(layer.slots)
    for rows, change in ((last, value), (best, lowest)):
        assert_valid(rows)
        assert price(rows) - start == pytest.approx(change, abs=1e-8)
    assert lowest <= 0.0


@pytest.mark.parametrize("move_price", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(3))
def test_fanout_compiled_equals_plain_and_improves_the_true_price(seed: int, move_price: float) -> None:
    layer = Layer(seed, move_price=move_price)
    trace = routed(EXPERTS, 1, 3, tokens=50, seed=seed)
    ids = trace.experts[:, 0].astype(np.int64)
    users = np.argsort(ids, axis=None, kind="stable") // ids.shape[1]
    start = np.concatenate(([0], np.cumsum(np.bincount(ids.ravel(), minlength=EXPERTS))))
    traffic = (ids, users, start, 2, 1.0, 5.0, 0.3)
    arguments = (*layer.one(), *traffic, layer.slots[0], GPUS, 120, 0.2, 1e-3, seed)
    slots, plain = anneal_fanout(*arguments), anneal_fanout.py_func(*arguments)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(slots, plain)
    assert_valid(slots[None])

    def price(rows: np.ndarray) -> float:
        return layer.price(rows) + 0.3 * float(fanout_cost(*fanout(rows, trace, EXPERTS, GPUS, 2), 1.0, 5.0).sum())

    assert price(slots[None]) <= price(layer.slots) * (1 + 1e-9)


def test_the_cost_of_one_token_is_that_of_the_cost_model() -> None:
    from formulations.expert_placement.anneal_fanout import fill_choice

    rng = np.random.default_rng(0)
    rows = random_placement(rng, 1, EXPERTS, GPUS, PER_GPU)
    held = (membership(rows, EXPERTS, GPUS)[0] > 0).astype(np.uint8)
    choice = np.zeros((EXPERTS, GPUS, GPUS))
    for expert in range(EXPERTS):
        fill_choice(choice, held, expert, 2)
    np.testing.assert_allclose(choice.sum(axis=2), 1.0)
    for token in routed(EXPERTS, 1, 3, tokens=20).experts:
        trace = RoutingTrace(experts=token[None])
        expected = fanout_cost(*fanout(rows, trace, EXPERTS, GPUS, 2), 1.0, 5.0)[0]
        assert token_cost(choice, token[0].astype(np.int64), 2, 1.0, 5.0) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_counts_compiled_equals_plain_and_the_fold_is_worth_what_it_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    load = rng.lognormal(0, 1, 9)
    count = np.ones(9, dtype=np.int64)
    count[:7] += 1
    best = anneal_counts(load, count, 16, 8, 400, seed)
    np.testing.assert_array_equal(best, anneal_counts.py_func(load, count, 16, 8, 400, seed))  # type: ignore[attr-defined]
    assert best.sum() == 16
    assert best.min() >= 1
    assert best.max() <= 8
    assert fold_value(load, best, 16)[0] <= fold_value(load, count, 16)[0]
    row = fold(load, best)
    assert row is not None
    assert (membership(row[None], 9, 8) <= 1).all()
    np.testing.assert_array_equal(np.bincount(row, minlength=9), best)


def test_fold_by_hand() -> None:
    """Sizes 4 3 2 1: 4 + 1 and 3 + 2 make 5 each; with 6 halved (3 3) and 1, 2: 3 + 1 and 3 + 2, hottest 5."""
    assert fold_value(np.array([4.0, 3.0, 2.0, 1.0]), np.ones(4, dtype=np.int64), 4)[0] == 5.0
    top, larger = fold_value(np.array([6.0, 2.0, 1.0]), np.array([2, 1, 1]), 4)
    assert (top, larger) == (5.0, 0)


def test_moves_that_lead_back_are_taken() -> None:
    """At a price of 10 a replica and loads that are all alike, annealing ends where the experts lie now: no moves."""
    layer = Layer(5, move_price=10.0)
    layer.load[:] = 1.0
    layer.speed = np.ones(GPUS)
    for kernel, split in ((anneal_even, "even"), (anneal_lp, "lp")):
        best = min(
            layer.price(kernel(*layer.one(), layer.slots[0], GPUS, 20_000, 10.0, 0.01, seed)[0][None], split)
            for seed in range(3)
        )
        assert best < 0.5 * layer.price(layer.slots, split)


@pytest.mark.parametrize("forbidden", [True, False])
def test_forbidden_gpus_are_respected_by_every_kernel(forbidden: bool) -> None:
    layer = Layer(0)
    held = membership(layer.slots, EXPERTS, GPUS)[0] > 0
    allowed = held.astype(np.uint8) if forbidden else np.ones((EXPERTS, GPUS), np.uint8)
    arguments = (
        layer.load[0],
        layer.weight,
        layer.speed,
        allowed,
        layer.old[0],
        0.0,
        layer.slots[0],
        GPUS,
        200,
        0.1,
        1e-3,
        1,
    )
    for kernel in (anneal_even, anneal_lp):
        found = kernel(*arguments)[0]
        assert not ((membership(found[None], EXPERTS, GPUS)[0] > 0) & (allowed == 0)).any()


def test_the_random_stream_is_uniform_and_repeats() -> None:
    state = kernels.start_random(3)
    draws = np.array([kernels.draw(state) for _ in range(20_000)])
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert np.histogram(draws, 10, (0, 1))[0].min() > 1_800
    again = kernels.start_random(3)
    assert [kernels.draw(again) for _ in range(5)] == draws[:5].tolist()
    assert kernels.draw(kernels.start_random(4)) != draws[0]
