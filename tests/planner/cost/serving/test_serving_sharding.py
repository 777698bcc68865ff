"""Local matrices, weight bytes and cache bytes of one GPU, by hand for six architectures and as laws for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner import catalog
from planner.cost.serving.precision import served
from planner.cost.serving.sharding import (
    cache_bytes,
    cache_share,
    dense_gemms,
    head_gemm,
    quant_of,
    state_bytes,
    weight_bytes,
)
from planner.cost.serving.worker import ServingWorker, largest_share
from planner.model import FORMATS, Component, WeightFormat

Serve = Callable[..., ServingWorker]
Shapes = Counter[tuple[int, int]]


def shapes(worker: ServingWorker) -> Shapes:
    """How often each (n, k) is multiplied in a step."""
    found: Shapes = Counter()
    for one in dense_gemms(worker):
        found[one.n, one.k] += one.count
    return found


@pytest.mark.parametrize(
    ("tp", "expected"),
    [
        (1, {(10240, 8192): 80, (8192, 8192): 80, (57344, 8192): 80, (8192, 28672): 80}),
        (2, {(5120, 8192): 80, (8192, 4096): 80, (28672, 8192): 80, (8192, 14336): 80}),
        (4, {(2560, 8192): 80, (8192, 2048): 80, (14336, 8192): 80, (8192, 7168): 80}),
        (8, {(1280, 8192): 80, (8192, 1024): 80, (7168, 8192): 80, (8192, 3584): 80}),
        # 512 rows of q, and one whole KV head of 128 for each of k and v: 8 heads on 16 GPUs.
        (16, {(768, 8192): 80, (8192, 512): 80, (3584, 8192): 80, (8192, 1792): 80}),
    ],
)
def test_llama_70b(serve: Serve, tp: int, expected: dict[tuple[int, int], int]) -> None:
    worker = serve(tp=tp)
    assert shapes(worker) == expected
    head = head_gemm(worker)
    assert head is not None
    assert (head.n, head.k, head.count) == (128256 // tp, 8192, 1)
    keys = 2 * 8192 * 128 * max(8 // tp, 1)
    layer = 2 * (2 * 8192 * 8192 // tp + keys + 3 * 8192 * 28672 // tp) + 2 * 16384
    assert weight_bytes(worker) == 80 * layer + 2 * 2 * 128256 * 8192 // tp + 2 * 8192
    # 8 KV heads of 128, keys and values, 2 bytes, 80 layers.
    assert float(cache_bytes(worker, np.asarray(1000.0))) == 1000 * 2 * 128 * 2 * 80 * max(8 // tp, 1)


def test_qwen3_235b_experts_by_tensor_or_by_expert_weigh_the_same(serve: Serve) -> None:
    by_tensor = serve("Qwen/Qwen3-235B-A22B", tp=4)
    by_expert = serve("Qwen/Qwen3-235B-A22B", tp=4, ep=4)
    layer = by_tensor.model.layers[0]
    gate, down = (next(t for t in layer.tensors if t.name.endswith(f"experts.0.{n}_proj")) for n in ("gate", "down"))
    assert by_tensor.local_shape(gate, layer) == (1536 // 4, 4096)
    assert by_tensor.local_shape(down, layer) == (4096, 1536 // 4)
    assert by_expert.local_shape(gate, layer) == (1536, 4096)
    assert (by_tensor.local_copies(gate), by_expert.local_copies(gate)) == (128, 32)
    assert weight_bytes(by_tensor) == weight_bytes(by_expert)
    # q 2048 + k and v of one head each; the router is whole on every GPU.
    assert shapes(by_tensor) == {(2048 + 2 * 128, 4096): 94, (4096, 2048): 94}
    router = next(t for t in layer.tensors if t.component is Component.ROUTER)
    assert by_tensor.local_shape(router, layer) == (128, 4096)


def test_deepseek_r1_keeps_low_rank_matrices_and_the_latent_cache_whole(serve: Serve) -> None:
    worker = serve("deepseek-ai/DeepSeek-R1", tp=8, kv=1.0)
    assert shapes(worker) == {
        (1536 + 576, 7168): 61,  # q_a and kv_a, fused and replicated
        (24576 // 8, 1536): 61,
        (32768 // 8, 512): 61,
        (7168, 16384 // 8): 61,
        (2 * 18432 // 8, 7168): 3,
        (7168, 18432 // 8): 3,
        (2 * 2048 // 8, 7168): 58,
        (7168, 2048 // 8): 58,
    }
    assert {one.quant for one in dense_gemms(worker)} == {"fp8_block"}
    assert float(cache_bytes(worker, np.asarray(4096.0))) == 4096 * 576 * 61
    assert all(cache_share(worker, layer.attention) == 1.0 for layer in worker.model.layers)


def test_deepseek_r1_with_attention_ranks(serve: Serve) -> None:
    """Attention and shared experts are whole on each of 8 ranks, 32 of 256 experts are on each."""
    one, many = serve("deepseek-ai/DeepSeek-R1"), serve("deepseek-ai/DeepSeek-R1", dp=8, ep=8)
    assert shapes(one) == shapes(many)
    routed = one.model.weight_bytes_by_component["routed_experts"]
    assert weight_bytes(one) - weight_bytes(many) == routed * 7 // 8


def test_mtp_layers_are_loaded_where_they_are_used(serve: Serve) -> None:
    plain = serve("deepseek-ai/DeepSeek-R1")
    extra = weight_bytes(replace(plain, speculative=True)) - weight_bytes(plain)
    assert extra == plain.model.mtp_weight_bytes > 11e9


def test_gpt_oss_has_sliding_windows_and_mxfp4_experts(serve: Serve) -> None:
    worker = serve("openai/gpt-oss-120b", tp=2)
    assert shapes(worker) == {(2048 + 2 * 256, 2880): 36, (2880, 2048): 36}
    expert = next(t for t in worker.model.layers[0].tensors if t.component is Component.ROUTED_EXPERTS)
    assert quant_of(expert.format) == "mxfp4"
    # 4-bit weights and one scale byte for 32 of them.
    assert expert.format.matrix_bytes(2880, 2880) == 2880 * (1440 + 90)
    full, window = 18 * 1024 * 2 // 2, 18 * 1024 * 2 // 2
    for tokens in (1, 128, 1000):
        assert float(cache_bytes(worker, np.asarray(float(tokens)))) == full * tokens + window * min(tokens, 128)


def test_qwen35_splits_recurrent_states_by_head(serve: Serve) -> None:
    worker = serve("Qwen/Qwen3.5-397B-A17B", tp=4)
    assert state_bytes(worker) == 45 * 4268032 / 4
    # Two KV heads on four GPUs: half of the cache on each.
    assert float(cache_bytes(worker, np.asarray(1000.0))) == 1000 * 15 * 1024 * 2 / 2 + 45 * 4268032 / 4


def test_pipeline_stages_share_the_layers_and_hold_one_end(serve: Serve) -> None:
    whole, half = serve(tp=2), serve(tp=2, pp=4)
    ends = 2 * 2 * 128256 * 8192 // 2 + 2 * 8192
    assert weight_bytes(half) == (weight_bytes(whole) - ends) / 4 + ends / 2 + 8192
    assert float(cache_bytes(half, np.asarray(100.0))) == float(cache_bytes(whole, np.asarray(100.0))) / 4
    # 94 layers on 4 stages: 24 on the fullest.
    uneven = serve("Qwen/Qwen3-235B-A22B", pp=4)
    assert float(cache_bytes(uneven, np.asarray(1.0))) == pytest.approx(24 * 1024 * 2)


def test_a_split_that_does_not_divide_is_counted_by_its_largest_share(serve: Serve) -> None:
    worker = serve(tp=3)
    layer = worker.model.layers[0]
    by_name = {t.name.rpartition(".")[2]: t for t in layer.tensors}
    assert worker.local_shape(by_name["k_proj"], layer) == (3 * 128, 8192)  # 3 + 3 + 2 heads
    assert worker.local_shape(by_name["down_proj"], layer) == (8192, 9558)
    assert cache_share(worker, layer.attention) == 3 / 8
    assert [largest_share(10, parts) for parts in (1, 3, 4, 16)] == [10, 4, 3, 1]


@pytest.mark.parametrize("name", catalog.model_names())
def test_no_byte_is_lost(serve: Serve, name: str) -> None:
    """One GPU holds the model; the GPUs of a split hold it together, and only copies more."""
    model = catalog.model(name)
    assert weight_bytes(serve(model)) == model.weight_bytes
    sizes = [weight_bytes(serve(model, tp=tp)) for tp in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(tp * size >= model.weight_bytes for tp, size in zip((1, 2, 4, 8), sizes, strict=True))
    for pp in (2, 4):
        assert pp * weight_bytes(serve(model, pp=pp)) >= model.weight_bytes
    if model.num_moe_layers:
        assert 8 * weight_bytes(serve(model, dp=8, ep=8)) >= model.weight_bytes
        assert weight_bytes(serve(model, tp=8, ep=8)) < 0.2 * model.weight_bytes


def test_where_all_divides_only_norms_are_copied(serve: Serve) -> None:
    model = catalog.model("Llama-3.1-70B-Instruct")
    norms = model.weight_bytes_by_component["norm"]
    for tp in (2, 4, 8):
        assert tp * weight_bytes(serve(tp=tp)) == model.weight_bytes + (tp - 1) * norms


def test_narrower_formats_change_bytes_and_arithmetic(serve: Serve) -> None:
    eight = serve(served(catalog.model("Llama-3.1-70B-Instruct"), "fp8"))
    assert {one.quant for one in dense_gemms(eight)} == {"fp8"}
    linear = 80 * (10240 * 8192 + 8192 * 8192 + 3 * 28672 * 8192)
    # One byte a weight, and four for the scale of each of seven matrices.
    assert weight_bytes(serve()) - weight_bytes(eight) == linear - 80 * 7 * 4


@pytest.mark.parametrize(("name", "quant"), [("float16", "bf16"), ("mxfp8", "fp8"), ("fp8_channel", "fp8")])
def test_arithmetic_of_formats(name: str, quant: str) -> None:
    assert quant_of(FORMATS[name]) == quant


def test_arithmetic_of_formats_that_nothing_else_knows() -> None:
    assert quant_of(WeightFormat(name="int3", bits=3)) == "int4"
    assert quant_of(WeightFormat(name="odd", bits=16)) == "bf16"
