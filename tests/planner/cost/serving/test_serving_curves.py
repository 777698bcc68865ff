"""Curves of a worker against direct calls of the operators, and what no part may do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from planner import catalog
from planner.cost.collectives import (
    InterNodeLink,
    collective_seconds,
    combine_seconds,
    dispatch_seconds,
    hierarchical_seconds,
    link_for,
)
from planner.cost.operators.attention import attention_decode_seconds
from planner.cost.operators.gemm import gemm_seconds
from planner.cost.operators.moe import moe_seconds
from planner.cost.serving.curves import CONTEXT_PARTS, NODES, TOKEN_PARTS, WorkerCurves, compile_curves
from planner.cost.serving.fit import prior_coefficients
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker

Serve = Callable[..., ServingWorker]


def token_part(curves: WorkerCurves, name: str) -> np.ndarray:
    return curves.tokens[TOKEN_PARTS.index(name)]


def context_part(curves: WorkerCurves, name: str) -> np.ndarray:
    return curves.context[CONTEXT_PARTS.index(name)]


def test_dense_parts_of_llama_70b(serve: Serve) -> None:
    worker = serve(tp=8)
    curves = compile_curves(worker)
    device = worker.device

    def layer(m: np.ndarray) -> np.ndarray:
        sizes = ((1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584))
        return sum(gemm_seconds(device, "bf16", m, n, k, launch=False) for n, k in sizes)

    assert token_part(curves, "dense") == pytest.approx(80 * layer(NODES))
    assert token_part(curves, "head") == pytest.approx(gemm_seconds(device, "bf16", NODES, 16032, 8192, launch=False))
    reduce = collective_seconds("all_reduce", NODES * 8192 * 2, 8, link_for(device, "vllm"))
    assert token_part(curves, "all_reduce") == pytest.approx(160 * reduce)
    assert not token_part(curves, "moe").any()
    assert not token_part(curves, "dispatch").any()
    assert (curves.num_products, curves.num_moe_layers, curves.state_s) == (320, 0, 0.0)


def test_parts_between_nodes_are_near_the_operators(serve: Serve) -> None:
    """Four nodes an octave: within 2 % of a direct call in between."""
    model = ServingModel([serve(tp=8)], prior_coefficients())
    between = np.sqrt(NODES[:-1] * NODES[1:])[:52]
    plans = ServingPlans.of(0, between, 1, 1e9)
    huge = ServingModel(
        model.workers, prior_coefficients(), memory=[replace(model.memory[0], cache_capacity_bytes=1e18)]
    )
    sizes = ((1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584))
    device = model.workers[0].device
    direct = 80 * sum(gemm_seconds(device, "bf16", between, n, k, launch=False) for n, k in sizes)
    direct = direct + gemm_seconds(device, "bf16", between, 16032, 8192, launch=False)
    assert huge.unit_parts(plans)["dense"] == pytest.approx(direct, rel=0.02)


def test_experts_and_dispatch(serve: Serve) -> None:
    worker = serve("deepseek-ai/DeepSeek-R1", "h200_sxm", dp=8, ep=8)
    curves = compile_curves(worker)
    moe = moe_seconds(
        worker.device,
        "fp8_block",
        tokens=8 * NODES,
        hidden_size=7168,
        moe_intermediate_size=2048,
        top_k=8,
        num_experts=256,
        moe_tp=1,
        moe_ep=8,
        launch=False,
    )
    assert token_part(curves, "moe") == pytest.approx(58 * moe)
    sizes = {"tokens_per_gpu": NODES, "top_k": 8, "num_gpus": 8}
    there = dispatch_seconds(worker.device, "nvlink_alltoall", token_bytes=7168, **sizes)
    back = combine_seconds(worker.device, "nvlink_alltoall", token_bytes=2 * 7168, **sizes)
    assert token_part(curves, "dispatch") == pytest.approx(58 * (there + back))
    assert not token_part(curves, "all_reduce").any()


def test_ranks_of_several_gpus_reduce_after_attention_and_dense_layers(serve: Serve) -> None:
    """61 layers, of which 58 have experts: 61 + 3 all-reduces."""
    worker = serve("deepseek-ai/DeepSeek-R1", "h200_sxm", tp=2, dp=4, ep=8)
    one = collective_seconds("all_reduce", NODES * 7168 * 2, 2, link_for(worker.device, "vllm"))
    assert token_part(compile_curves(worker), "all_reduce") == pytest.approx(64 * one)


def test_mixers_and_mlps_of_their_own_layers_reduce_once(serve: Serve) -> None:
    """Nemotron 3 has 23 Mamba, 6 attention and 23 expert layers: 52 all-reduces, not 104."""
    worker = serve("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", tp=2)
    one = collective_seconds("all_reduce", NODES * 2688 * 2, 2, link_for(worker.device, "vllm"))
    assert token_part(compile_curves(worker), "all_reduce") == pytest.approx(52 * one)


def test_a_group_larger_than_its_links_spans_nodes(serve: Serve) -> None:
    worker = serve(tp=16)
    link, network = link_for(worker.device, "vllm"), InterNodeLink.rdma(8 * 50e9)
    expected = 160 * hierarchical_seconds("all_reduce", NODES * 8192 * 2, 2, 8, link, network)
    found = token_part(compile_curves(worker), "all_reduce")
    assert found == pytest.approx(expected)
    assert (found > token_part(compile_curves(serve(tp=8)), "all_reduce")).all()
    # 72 GPUs of NVL72 are one domain.
    inside = link_for(catalog.device("gb200"), "vllm")
    expected = 160 * collective_seconds("all_reduce", NODES * 8192 * 2, 16, inside)
    assert token_part(compile_curves(serve(device="gb200", tp=16)), "all_reduce") == pytest.approx(expected)


@pytest.mark.parametrize("kv", [1.0, 2.0])
def test_cache_is_what_a_sequence_adds(serve: Serve, kv: float) -> None:
    worker = serve(tp=8, kv=kv)
    asked = {"num_heads": 8, "num_kv_heads": 1, "head_dim": 128, "backend": "vllm", "launch": False}
    quant = "fp8" if kv == 1 else "bf16"
    few, many = (
        attention_decode_seconds(worker.device, batch=batch, context=NODES, kv_quant=quant, **asked)
        for batch in (16, 32)
    )
    at_peak = 256 * kv * NODES / worker.device.hbm_bandwidth_bytes_per_s
    expected = 80 * np.maximum(np.maximum.accumulate(many - few) / 16, at_peak)
    assert context_part(compile_curves(worker), "cache") == pytest.approx(expected)


def test_a_cache_is_never_read_faster_than_memory(serve: Serve) -> None:
    """Kernels timed alone on an L40S find half of it in the L2 cache; running sequences do not."""
    worker = serve(device="l40s", tp=4, kv=1.0)
    at_peak = 80 * 2 * 2 * 128 * NODES / worker.device.hbm_bandwidth_bytes_per_s
    assert (context_part(compile_curves(worker), "cache") >= at_peak * (1 - 1e-12)).all()


def test_mla_and_states(serve: Serve) -> None:
    deepseek = serve("deepseek-ai/DeepSeek-R1", tp=8, kv=1.0)
    curves, device = compile_curves(deepseek), deepseek.device
    read = 61 * 576 * NODES / (0.88 * device.hbm_bandwidth_bytes_per_s)
    assert context_part(curves, "cache") == pytest.approx(read)
    flop = 61 * 2 * 128 / 8 * (2 * 512 + 64) * NODES
    assert context_part(curves, "latent") == pytest.approx(flop / (0.5 * device.peak_flop_per_s("bf16")))
    qwen = serve("Qwen/Qwen3.5-397B-A17B", tp=4)
    moved = 2 * 45 * 4268032 / 4
    assert compile_curves(qwen).state_s == pytest.approx(moved / (0.88 * qwen.device.hbm_bandwidth_bytes_per_s))


def test_prompt_attention_is_causal(serve: Serve) -> None:
    worker = serve(tp=8)
    flop = 80 * 2 * 8 * 256 * NODES**2 / 2
    found = context_part(compile_curves(worker), "prompt_attention")
    assert found == pytest.approx(flop / (0.45 * worker.device.peak_flop_per_s("bf16")))


def test_devices_before_ampere_multiply_in_fp16(serve: Serve) -> None:
    worker = serve("deepseek-ai/DeepSeek-V2-Lite", "v100_sxm_32gb")
    flop = worker.model.prompt_attention_flops(NODES)
    found = context_part(compile_curves(worker), "prompt_attention")
    assert found == pytest.approx(flop / (0.45 * worker.device.peak_flop_per_s("fp16")))


def test_linear_curves_are_interpolated_exactly(serve: Serve) -> None:
    """A latent cache is linear in its context, at nodes, between them and beyond the last."""
    model = ServingModel([serve("deepseek-ai/DeepSeek-R1", "b200_sxm", tp=8, kv=1.0)])
    at = np.array([1.0, 3.7, 1000.0, 77777.0, 3e6])
    found = model.table("cache_bytes", np.zeros(5, dtype=np.intp), at)
    assert found == pytest.approx(at * 576 * 61)


@pytest.mark.parametrize("device", ["t4", "l40s", "a100_pcie", "h100_sxm", "gb200", "mi300x", "gaudi3", "tpu_v6e"])
@pytest.mark.parametrize("name", ["openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1", "google/gemma-3-27b-it"])
def test_no_part_is_negative_or_falls(serve: Serve, name: str, device: str) -> None:
    moe = bool(catalog.model(name).num_moe_layers)
    splits = [{"tp": 1}, {"tp": 8}, {"tp": 16}] + [{"tp": 2, "dp": 8, "ep": 16}] * moe
    for split in splits:
        curves = compile_curves(serve(name, device, **split))
        for part in (*curves.tokens, *curves.context):
            assert (part >= 0).all()
            assert (np.diff(part) >= -1e-12 * part[1:]).all()
