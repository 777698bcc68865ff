"""The serving model as a linear step: exact at its two points, positive, and the rules of each engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.step_times import LEAST_BASE_SHARE, scheduler, step_times
from planner.cost.serving.worker import ServingWorker

Serve = Callable[..., ServingWorker]


@pytest.mark.parametrize("batch", [2.0, 8.0, 64.0, 256.0])
def test_a_step_is_exact_for_one_sequence_and_for_the_batch(serve: Serve, batch: float) -> None:
    """Without their contexts: what the tables say of a batch of 1 and of `batch`."""
    model = ServingModel([serve("Llama-3.1-8B-Instruct")])
    plans = ServingPlans.of(0, 1, 1000, 200)
    times = step_times(model, plans, np.array([batch]))
    own = float(model.sequence_s[0])
    for sequences in (1.0, batch):
        table = float(model.table("decode", plans.worker, np.array([sequences]))[0])
        assert float(times.step(sequences, 0)[0]) == pytest.approx(table + sequences * own, rel=1e-9)


def test_a_context_costs_what_the_table_says(serve: Serve) -> None:
    """Mean context 1000 + 200 / 2: so many cached tokens cost the same in the line as in the table."""
    model = ServingModel([serve("Llama-3.1-8B-Instruct")])
    plans = ServingPlans.of(0, 1, 1000, 200)
    times = step_times(model, plans, np.array([16.0]))
    table = float(model.table("context", plans.worker, np.array([1100.0]))[0])
    assert float(times.decode_per_kv_token_s[0]) * 1100 == pytest.approx(table)


def test_a_prompt_costs_what_the_table_says(serve: Serve) -> None:
    model = ServingModel([serve("Llama-3.1-8B-Instruct")])
    plans = ServingPlans.of(0, 1, 1000, 200)
    times = step_times(model, plans, np.array([16.0]))
    w = plans.worker
    added = model.table("prefill", w, np.array([1016.0])) - model.table("prefill", w, np.array([16.0]))
    pairs = model.table("prompt_attention", w, np.array([1000.0]))
    assert float(times.prefill(1000)[0]) == pytest.approx(float(added[0] + pairs[0]), rel=1e-9)


@pytest.mark.parametrize("device", ["l4", "h100_sxm", "b200_sxm"])
@pytest.mark.parametrize("batch", [1.0, 64.0, 1e5])
def test_every_coefficient_is_a_time(serve: Serve, device: str, batch: float) -> None:
    model = ServingModel([serve("Llama-3.2-1B-Instruct", device)])
    plans = ServingPlans.of(0, 1, [1, 100, 100_000], [1, 1000, 1000])
    times = step_times(model, plans, np.full(3, batch))
    assert (times.decode_base_s > 0).all()
    one = model.table("decode", plans.worker, np.ones(3))
    assert (times.decode_base_s >= LEAST_BASE_SHARE * one * (1 - 1e-9)).all()
    # One sequence takes at least what a step of one takes.
    assert (times.step(1, 0) >= one * (1 - 1e-9)).all()


def test_tensor_parallelism_makes_steps_shorter(serve: Serve) -> None:
    model = ServingModel([serve(tp=2), serve(tp=4), serve(tp=8)])
    plans = ServingPlans.of([0, 1, 2], 1, 2000, 200)
    times = step_times(model, plans, np.full(3, 32.0))
    steps = times.step(32, 32 * 2100)
    assert (np.diff(steps) < 0).all()


def test_by_default_the_line_goes_through_what_runs(serve: Serve) -> None:
    model = ServingModel([serve("Llama-3.1-8B-Instruct")])
    plans = ServingPlans.of(0, 24, 1000, 200)
    running = model.predict(plans).running_sequences
    default, same = step_times(model, plans), step_times(model, plans, running)
    assert float(default.decode_base_s[0]) == float(same.decode_base_s[0])


@pytest.mark.parametrize(("backend", "first", "full"), [("vllm", 0, 0), ("sglang", 1, 0), ("trtllm", 0, 1)])
def test_each_engine_has_its_rules(serve: Serve, backend: str, first: bool, full: bool) -> None:
    model = ServingModel([serve("Llama-3.1-8B-Instruct", backend=backend)])
    rules = scheduler(model, ServingPlans.of(0, 1, 1000, 200))
    assert bool(rules.prefill_first[0]) == bool(first)
    assert bool(rules.reserve_full[0]) == bool(full)
    assert float(rules.max_num_batched_tokens) == model.max_num_batched_tokens


def test_the_cache_holds_what_memory_leaves(serve: Serve) -> None:
    """Llama-3.1-8B: 32 layers of 8 KV heads of 128, keys and values in 2 bytes: 131072 bytes a token."""
    model = ServingModel([serve("Llama-3.1-8B-Instruct")])
    rules = scheduler(model, ServingPlans.of(0, 1, 1000, 200))
    capacity = model.memory[0].cache_capacity_bytes
    assert float(rules.kv_capacity_tokens[0]) == pytest.approx(capacity / 131072, rel=0.02)
