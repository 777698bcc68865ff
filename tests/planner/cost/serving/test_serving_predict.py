"""Predictions against a slow transcription of the formulas, and what must hold for any plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import catalog
from planner.cost.serving import predict
from planner.cost.serving.coefficients import Coefficients, fitted
from planner.cost.serving.curves import CONTEXT_PARTS, NODES, TOKEN_PARTS
from planner.cost.serving.memory import BLOCK_TOKENS
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.sharding import cache_bytes
from planner.cost.serving.worker import BACKENDS, ServingWorker
from planner.cost.serving.worker_tables import PROMPT_SHARE
from planner.hardware import DeviceKind

Serve = Callable[..., ServingWorker]


@pytest.fixture(scope="module")
def model(serve: Serve) -> ServingModel:
    """Workers of every backend, with experts, ranks, stages, speculation, states and a tight memory."""
    return ServingModel(
        [
            serve(tp=4),
            serve(tp=4, backend="sglang"),
            serve(tp=8, pp=2, backend="trtllm"),
            serve("deepseek-ai/DeepSeek-R1", "b200_sxm", "sglang", tp=8, kv=1.0),
            serve("deepseek-ai/DeepSeek-R1", "b200_sxm", "trtllm", dp=8, ep=8, kv=1.0, speculative=True),
            serve("Qwen/Qwen3.5-397B-A17B", "mi300x", "vllm", tp=8),
            serve("openai/gpt-oss-120b", "l40s", "trtllm", tp=2, pp=2),
            serve("meta-llama/Llama-3.1-405B-Instruct", "h100_sxm", "vllm", tp=8),
        ]
    )


def by_hand(model: ServingModel, worker: int, asked: float, prompt: float, output: float) -> dict[str, float]:
    """One plan by the formulas of the module, in plain Python."""
    w, curves, room, coefficients = (
        model.workers[worker],
        model.curves[worker],
        model.memory[worker],
        model.coefficients,
    )
    c = coefficients.of_parts(w)

    def at(values: np.ndarray, size: float) -> float:
        low = min(max(int(np.searchsorted(NODES, size, side="right")) - 1, 0), len(NODES) - 2)
        share = (size - NODES[low]) / (NODES[low + 1] - NODES[low])
        return float(values[low] + share * (values[low + 1] - values[low]))

    def over_tokens(name: str, size: float) -> float:
        return at(curves.tokens[TOKEN_PARTS.index(name)], size)

    def over_context(name: str, size: float) -> float:
        return at(curves.context[CONTEXT_PARTS.index(name)], size)

    def d(tokens: float) -> float:
        products = c["kernel_overhead"] * curves.num_products + c["moe_overhead"] * curves.num_moe_layers
        dense = c["dense"] * (over_tokens("dense", tokens) + over_tokens("head", tokens))
        rest = sum(c[name] * over_tokens(name, tokens) for name in ("moe", "all_reduce", "dispatch"))
        return products + c["step_overhead"] + dense + rest

    def p(tokens: float) -> float:
        communication = over_tokens("all_reduce", tokens) + over_tokens("dispatch", tokens)
        return (
            c["prefill_dense"] * over_tokens("dense", tokens)
            + c["prefill_moe"] * over_tokens("moe", tokens)
            + c["prefill_communication"] * communication
        )

    def cache(tokens: float) -> float:
        block = BLOCK_TOKENS[w.backend]
        return at(cache_bytes(w, NODES), math.ceil(tokens / block) * block)

    capacity = max(room.cache_capacity_bytes, 0.0)
    each = cache(prompt + output * (1.0 if w.backend == "trtllm" else 0.5))
    on_rank = math.floor(capacity / each) if cache(prompt + output) <= capacity else 0
    asked /= w.data_parallel_size
    sequences = min(asked, max(on_rank, 1))
    stages = w.pipeline_parallel_size
    micro = max(sequences / stages, 1.0)
    context = prompt + output / 2
    k = c["cache"] * over_context("cache", context) + c["latent"] * over_context("latent", context)
    step = d(micro) + micro * (k + c["state"] * curves.state_s + c["sequence_overhead"])
    prompts = PROMPT_SHARE[w.backend] * max(sequences - 1, 0) / output
    chunk = min(prompt * max(prompts, 1), 8192)
    chunks = prompts * prompt / chunk
    attention = c["prefill_attention"] * over_context("prompt_attention", prompt)
    mixed = min(chunks, 1) * (p(micro + chunk) - p(micro)) + max(chunks - 1, 0) * p(chunk)
    tpot = step + (mixed + prompts * attention) / stages
    tpot *= coefficients.values["speculation"] if w.speculative else 1.0
    first = min(prompt, 8192)
    alone = prompt / first * p(first) + attention
    burst = 1 + coefficients.values["burst"] * sequences
    ttft = coefficients.of_ttft("first_token", w) + coefficients.of_ttft("prompt", w) * alone * burst
    ttft += coefficients.of_ttft("wait_steps", w) * step
    ttft += (asked / sequences - 1) * (alone + tpot * output)
    ranks = w.data_parallel_size
    rate = sequences * ranks * output / (alone + tpot * output)
    return {
        "tpot_s": tpot,
        "ttft_s": ttft,
        "step_s": step,
        "running_sequences": sequences * ranks,
        "admitted_sequences": on_rank * ranks,
        "output_tokens_per_s": rate,
        "output_tokens_per_s_per_gpu": rate / w.num_gpus,
        "memory_bytes": room.fixed_bytes + math.ceil(sequences) * each,
    }


PLANS = st.tuples(
    st.integers(0, 7),
    st.integers(1, 4096),
    st.integers(1, 200_000),
    st.one_of(st.integers(1, 20), st.integers(1, 20_000)),
)


@given(PLANS)
def test_as_by_hand(model: ServingModel, plan: tuple[int, int, int, int]) -> None:
    found = model.predict(ServingPlans.of(*plan))
    expected = by_hand(model, *plan)
    for name, value in expected.items():
        assert getattr(found, name)[0] == pytest.approx(value, rel=1e-9), name


@given(PLANS)
def test_parts_sum_to_the_time_per_token(model: ServingModel, plan: tuple[int, int, int, int]) -> None:
    plans = ServingPlans.of(*plan)
    parts = model.parts(plans)
    worker = model.workers[plan[0]]
    speculation = model.coefficients.values["speculation"] if worker.speculative else 1.0
    assert sum(float(one[0]) for one in parts.values()) * speculation == pytest.approx(model.predict(plans).tpot_s[0])
    assert all(one[0] >= 0 for one in parts.values())


def random_plans(model: ServingModel, size: int, seed: int = 0) -> ServingPlans:
    random = np.random.default_rng(seed)
    return ServingPlans.of(
        random.integers(0, len(model.workers), size),
        np.ceil(2 ** random.uniform(0, 12, size)),
        np.ceil(2 ** random.uniform(0, 17, size)),
        np.ceil(2 ** random.uniform(0, 13, size)),
    )


def test_in_bulk_as_one_by_one_in_any_order_and_block(model: ServingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = random_plans(model, 301)
    whole = model.predict(plans)
    order = np.random.default_rng(1).permutation(301)
    shuffled = model.predict(plans.take(order))
    for size in (1, 100, 300, 301, 302):
        monkeypatch.setattr(predict, "BLOCK", size)
        blocks = model.predict(plans)
        for one in fields(whole):
            values = getattr(whole, one.name)
            assert np.array_equal(getattr(blocks, one.name), values)
            assert np.array_equal(getattr(shuffled, one.name), values[order])


def test_no_plans_is_no_predictions(model: ServingModel) -> None:
    assert len(model.predict(ServingPlans.of([], [], [], [])).tpot_s) == 0


def test_some_of_the_workers_and_other_coefficients(model: ServingModel) -> None:
    last = model.only([7])
    plans = ServingPlans.of(0, 8, 1000, 100)
    same = replace(plans, worker=np.array([7]))
    assert last.predict(plans).tpot_s == model.predict(same).tpot_s
    doubled = Coefficients(values={name: 2 * value for name, value in fitted().values.items()})
    assert last.with_coefficients(doubled).predict(plans).tpot_s == pytest.approx(2 * last.predict(plans).tpot_s)
    assert last.predict(plans).tpot_s == model.predict(same).tpot_s


@given(PLANS)
def test_littles_law(model: ServingModel, plan: tuple[int, int, int, int]) -> None:
    """Requests a second x (queue + own prefill and decode) is the number asked for."""
    plans = ServingPlans.of(*plan)
    found, first = model.predict(plans), model.first_token_parts(plans)
    output = plans.output_tokens[0]
    seconds = first["queue"][0] + first["alone"][0] + found.tpot_s[0] * output
    assert found.output_tokens_per_s[0] / output * seconds == pytest.approx(plan[1])
    assert (first["queue"][0] > 1e-12) == (found.running_sequences[0] < plan[1])


def test_ranks_share_the_sequences(serve: Serve) -> None:
    """Without experts a rank is a worker of its own."""
    one, eight = ServingModel([serve(tp=4)]), ServingModel([serve(tp=4, dp=8)])
    alone = one.predict(ServingPlans.of(0, 16, 1000, 500))
    together = eight.predict(ServingPlans.of(0, 128, 1000, 500))
    assert together.tpot_s == alone.tpot_s
    assert together.ttft_s == alone.ttft_s
    assert together.output_tokens_per_s == pytest.approx(8 * alone.output_tokens_per_s)
    assert together.output_tokens_per_s_per_gpu == pytest.approx(alone.output_tokens_per_s_per_gpu)


def test_stages_take_turns(serve: Serve) -> None:
    """Two stages pass half of the sequences each through the same layers."""
    memory = replace(ServingModel([serve(tp=4)]).memory[0], cache_capacity_bytes=1e15)
    one = ServingModel([serve(tp=4)], memory=[memory])
    two = ServingModel([serve(tp=4, pp=2)], memory=[memory])
    plans = ServingPlans.of(0, 64, 1000, 500)
    assert two.predict(plans).step_s == pytest.approx(one.predict(ServingPlans.of(0, 32, 1000, 500)).step_s)
    assert two.predict(plans).tpot_s < one.predict(plans).tpot_s


def test_speculation_divides_the_time_per_token(serve: Serve) -> None:
    worker = serve("deepseek-ai/DeepSeek-R1", "b200_sxm", tp=8)
    model = ServingModel([worker, replace(worker, speculative=True)])
    found = model.predict(ServingPlans.of([0, 1], 8, 1000, 500))
    assert found.tpot_s[1] / found.tpot_s[0] == pytest.approx(fitted().values["speculation"])
    assert found.step_s[0] == found.step_s[1]


DEVICES = ("h100_sxm", "b200_sxm", "l40s", "a100_pcie", "mi300x", "t4", "gb200")
WORKERS = st.tuples(
    st.sampled_from(
        [
            "Llama-3.1-70B-Instruct",
            "openai/gpt-oss-120b",
            "Qwen/Qwen3-235B-A22B",
            "deepseek-ai/DeepSeek-R1",
            "Qwen/Qwen3.5-397B-A17B",
            "google/gemma-3-27b-it",
            "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        ]
    ),
    st.sampled_from(DEVICES),
    st.sampled_from(BACKENDS),
    st.sampled_from([{"tp": 1}, {"tp": 2}, {"tp": 8}, {"tp": 4, "pp": 2}, {"tp": 16}]),
)
#: Rounding of sums.
LEAST = 1.0 - 1e-9


@settings(max_examples=40, deadline=None)
@given(
    WORKERS,
    st.sampled_from(["hbm_bandwidth_bytes_per_s", "flop_per_s"]),
    st.floats(1.0, 4.0),
    st.booleans(),
)
def test_a_better_device_is_never_slower(
    serve: Serve, what: tuple[str, str, str, dict[str, int]], number: str, factor: float, own: bool
) -> None:
    """One number raised, of a device of the catalogue or of a user's own on its base.

    A higher peak may cost a few percent of the cache part, which is a difference of two kernel times.
    """
    name, device, backend, split = what
    known = catalog.device(device)
    if own:
        known = DeviceKind.model_validate({"name": "mine", "base": device})
    value = getattr(known, number)
    better = {key: rate * factor for key, rate in value.items()} if isinstance(value, dict) else value * factor
    faster = known.model_copy(update={number: better})
    slow, fast = (ServingModel([serve(name, one, backend, **split)]) for one in (known, faster))
    plans = random_plans(slow, 200)
    before, after = slow.predict(plans), fast.predict(plans)
    least = LEAST if number.startswith("hbm") else 0.97
    for time in ("tpot_s", "ttft_s", "step_s"):
        assert (getattr(after, time) * least <= getattr(before, time)).all(), time


@settings(max_examples=40, deadline=None)
@given(WORKERS, st.floats(1.0, 16.0), st.booleans())
def test_more_sequences_are_never_faster_and_longer_prompts_never_start_sooner(
    serve: Serve, what: tuple[str, str, str, dict[str, int]], factor: float, enough: bool
) -> None:
    name, device, backend, split = what
    worker = serve(name, device, backend, **split)
    model = ServingModel([worker])
    if enough:
        model = ServingModel([worker], memory=[replace(model.memory[0], cache_capacity_bytes=1e18)])
    plans = random_plans(model, 200)
    base = model.predict(plans)
    crowded = model.predict(replace(plans, concurrency=np.ceil(plans.concurrency * factor)))
    for time in ("tpot_s", "ttft_s", "step_s"):
        assert (getattr(crowded, time) >= getattr(base, time) * LEAST).all(), time
    assert (crowded.output_tokens_per_s >= 0.7 * base.output_tokens_per_s).all()
    longer = model.predict(replace(plans, input_tokens=np.ceil(plans.input_tokens * factor)))
    same = longer.running_sequences == base.running_sequences
    assert same.all() or not enough
    for time in ("tpot_s", "ttft_s", "step_s"):
        assert (getattr(longer, time)[same] >= getattr(base, time)[same] * LEAST).all(), time


def test_faster_links_of_one_device_shorten_its_all_reduces(serve: Serve) -> None:
    known = catalog.device("h100_sxm")
    plans = ServingPlans.of(0, [1, 16, 256], 2000, 500)
    times = []
    for factor in (0.5, 1.0, 2.0):
        links = known.scale_up_bandwidth_bytes_per_s * factor
        device = known.model_copy(update={"scale_up_bandwidth_bytes_per_s": links})
        times.append(ServingModel([serve(tp=8, device=device)]).predict(plans).tpot_s)
    assert (times[0] > times[1]).all()
    assert (times[1] > times[2]).all()


@pytest.mark.parametrize(
    ("plans", "message"),
    [
        ((0, 0, 10, 10), "concurrency must be at least 1"),
        ((0, 1, 0, 10), "input_tokens must be at least 1"),
        ((0, 1, 10, -5), "output_tokens must be at least 1"),
        ((0, math.nan, 10, 10), "concurrency must be"),
        ((0, 1, math.inf, 10), "input_tokens must be"),
        ((0, [1, 2], [10, 0], 10), "input_tokens must be"),
    ],
)
def test_sizes_that_cannot_be(plans: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingPlans.of(*plans)


def test_a_worker_that_is_not_there(model: ServingModel) -> None:
    with pytest.raises(IndexError):
        model.predict(ServingPlans.of(99, 1, 10, 10))


def test_huge_sizes_stay_finite(model: ServingModel) -> None:
    found = model.predict(ServingPlans.of(np.arange(8), 1e9, 1e9, 1e9))
    for one in fields(found):
        values = getattr(found, one.name)
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_what_cannot_be_compiled(serve: Serve) -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        ServingModel([])
    with pytest.raises(ValueError, match="max_num_batched_tokens is 0"):
        ServingModel([serve()], max_num_batched_tokens=0)
    with pytest.raises(ValueError, match=r"parallel_size 3 does not divide .*; tensor_parallel_size 5") as found:
        ServingModel([serve(tp=3), serve(tp=3), serve(tp=5)])
    assert str(found.value).count("tensor_parallel_size 3 does not divide") == 1
