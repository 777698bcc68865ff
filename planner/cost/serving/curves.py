"""Step time of one worker as curves: seconds of each part over tokens in the step and over context length.

A worker's shape fixes every matrix, so its parts depend on two numbers alone. They are computed once on a grid of four
nodes an octave; predicting millions of plans of that worker is then a look-up.

    dense, head, moe, all_reduce, dispatch   over the tokens m that one attention rank runs through in a step
    cache, latent, prompt_attention          over the context (cache, latent: one sequence decoding one token;
                                             prompt_attention: a whole causal prompt)
    state                                    one sequence, whatever its context

No part holds the launch of its kernels: a CUDA graph hides it. What is left, small kernels between the products
included, is an overhead for each dense product that is fitted on whole engines (`planner.cost.serving.coefficients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.collectives import collective_seconds, combine_seconds, dispatch_seconds, link_for
from planner.cost.operators.attention import attention_decode_seconds
from planner.cost.operators.gemm import gemm_seconds
from planner.cost.operators.moe import moe_seconds
from planner.cost.serving.sharding import (
    LocalGemm,
    cache_share,
    dense_gemms,
    head_gemm,
    quant_of,
    state_bytes,
)
from planner.cost.serving.worker import ServingWorker, is_moe
from planner.hardware import DeviceKind
from planner.model.layers import AttentionKind, Component, Layer

FloatArray = npt.NDArray[np.float64]

NODES_PER_OCTAVE = 4
#: Tokens in a step, and tokens of context: 1 .. 2^20, four nodes an octave.
NODES: FloatArray = 2.0 ** (np.arange(20 * NODES_PER_OCTAVE + 1) / NODES_PER_OCTAVE)

TOKEN_PARTS = ("dense", "head", "moe", "all_reduce", "dispatch")
CONTEXT_PARTS = ("cache", "latent", "prompt_attention")

#: Achieved share of HBM bandwidth when decode attention streams the cache, and of the 16-bit peak in latent and prompt
#: attention. Source: attention tables of AIConfigurator, see docs/cost_model.md; calibrated.
CACHE_BANDWIDTH_SHARE, LATENT_PEAK_SHARE, PROMPT_PEAK_SHARE = 0.88, 0.50, 0.45
#: Sequences between which the cost of one more is taken: enough to fill the GPU. Source: modelled.
MARGINAL_BATCH = (16, 32)
#: Times a step reads or writes a recurrent state: once each.
STATE_PASSES = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class WorkerCurves:
    """Seconds on NODES: tokens [len(TOKEN_PARTS), nodes], context [len(CONTEXT_PARTS), nodes], state [] a sequence; how many dense products
    and MoE layers a step runs through."""

    tokens: FloatArray
    context: FloatArray
    state_s: float
    num_products: int
    num_moe_layers: int


def compile_curves(worker: ServingWorker) -> WorkerCurves:
    """The parts of one worker on NODES; raises DescriptionError for a format that its device cannot compute."""
    head, gemms = head_gemm(worker), dense_gemms(worker)
    parts = {
        "dense": _gemms(worker.device, gemms),
        "head": _gemms(worker.device, () if head is None else (head,)),
        "moe": _experts(worker),
        "all_reduce": _all_reduces(worker),
        "dispatch": _dispatch(worker),
    }
    bandwidth = worker.device.hbm_bandwidth_bytes_per_s
    context = {
        "cache": _cache(worker),
        "latent": _latent(worker),
        "prompt_attention": _prompt_attention(worker),
    }
    return WorkerCurves(
        tokens=np.stack([parts[name] for name in TOKEN_PARTS]),
        context=np.stack([context[name] for name in CONTEXT_PARTS]),
        state_s=STATE_PASSES * state_bytes(worker) / (CACHE_BANDWIDTH_SHARE * bandwidth),
        num_products=sum(one.count for one in gemms),
        num_moe_layers=worker.model.num_moe_layers,
    )


def _gemms(device: DeviceKind, gemms: Sequence[LocalGemm]) -> FloatArray:
    total = np.zeros_like(NODES)
    for one in gemms:
        total += one.count * gemm_seconds(device, one.quant, NODES, one.n, one.k, launch=False)
    return total


def _experts(worker: ServingWorker) -> FloatArray:
    total = np.zeros_like(NODES)
    for layer, count in worker.model.layer_groups():
        if is_moe(layer):
            total += count * moe_seconds(
                worker.device,
                expert_quant(layer),
                tokens=NODES * worker.data_parallel_size,
                hidden_size=worker.model.hidden_size,
                moe_intermediate_size=layer.mlp.moe_intermediate_size,
                top_k=layer.mlp.num_experts_per_tok,
                num_experts=layer.mlp.num_experts,
                moe_tp=worker.moe_tensor_parallel_size,
                moe_ep=worker.expert_parallel_size,
                launch=False,
            )
    return total


def expert_quant(layer: Layer) -> str:
    """Arithmetic of a layer's routed experts."""
    return next(quant_of(t.format) for t in layer.tensors if t.component is Component.ROUTED_EXPERTS)


def _all_reduces(worker: ServingWorker) -> FloatArray:
    """One after the attention and one after the MLP; with attention ranks, the experts are reached by dispatch."""
    if worker.tensor_parallel_size == 1:
        return np.zeros_like(NODES)
    size = NODES * worker.model.hidden_size * 2.0
    one = collective_seconds("all_reduce", size, worker.tensor_parallel_size, link_for(worker.device, worker.backend))
    layers = worker.model.num_hidden_layers
    after_mlp = layers if worker.data_parallel_size == 1 else layers - worker.model.num_moe_layers
    return (layers + after_mlp) * one


def _dispatch(worker: ServingWorker) -> FloatArray:
    """Tokens to the experts of other attention ranks in 8 bits, and their outputs back in 16."""
    total = np.zeros_like(NODES)
    if worker.data_parallel_size == 1:
        return total
    hidden, gpus = float(worker.model.hidden_size), worker.stage_gpus
    inside = gpus <= worker.device.scale_up_domain_gpus
    kinds = ("nvlink_alltoall",) if inside else ("deepep_low_latency", "deepep_normal")
    for layer, count in worker.model.layer_groups():
        if is_moe(layer):
            size = {"tokens_per_gpu": NODES, "top_k": layer.mlp.num_experts_per_tok, "num_gpus": gpus}
            ways = [
                dispatch_seconds(worker.device, kind, token_bytes=hidden, **size)
                + combine_seconds(worker.device, kind, token_bytes=2.0 * hidden, **size)
                for kind in kinds
            ]
            total += count * np.minimum.reduce(ways)
    return total


def _cache(worker: ServingWorker) -> FloatArray:
    """What one more sequence adds to a step's attention, by the decode operator between MARGINAL_BATCH sequences.

    The difference leaves the kernels' launch out. Caches of other kinds stream at CACHE_BANDWIDTH_SHARE.
    """
    tp, total = worker.tensor_parallel_size, np.zeros_like(NODES)
    few, many = MARGINAL_BATCH
    for layer, count in worker.model.layer_groups():
        one = layer.attention
        if one.kind in (AttentionKind.FULL, AttentionKind.SLIDING):
            at = {
                "context": NODES,
                "num_heads": max(one.num_attention_heads // tp, 1),
                "num_kv_heads": max(one.num_key_value_heads // tp, 1),
                "head_dim": one.head_dim,
                "v_head_dim": one.v_head_dim,
                "kv_quant": "fp8" if worker.kv_element_bytes < 2.0 else "bf16",
                "window": one.window,
                "backend": worker.backend,
                "launch": False,
            }
            added = attention_decode_seconds(worker.device, batch=many, **at)
            added = added - attention_decode_seconds(worker.device, batch=few, **at)
            total += count * np.maximum.accumulate(added) / (many - few)
        else:
            read = one.read_elements(NODES) * worker.kv_element_bytes * cache_share(worker, one)
            total += count * read / (CACHE_BANDWIDTH_SHARE * worker.device.hbm_bandwidth_bytes_per_s)
    return total


def _latent(worker: ServingWorker) -> FloatArray:
    """Multiply-adds of decoding in MLA's latent space, which all heads of a GPU do on one cache."""
    flop = sum(
        (
            layer.attention.flops(NODES) * count
            for layer, count in worker.model.layer_groups()
            if layer.attention.kind in (AttentionKind.MLA, AttentionKind.COMPRESSED)
        ),
        np.zeros_like(NODES),
    )
    return flop / worker.tensor_parallel_size / (LATENT_PEAK_SHARE * worker.device.peak_flop_per_s("bf16"))


def _prompt_attention(worker: ServingWorker) -> FloatArray:
    flop = worker.model.prompt_attention_flops(NODES) / worker.tensor_parallel_size
    return flop / (PROMPT_PEAK_SHARE * worker.device.peak_flop_per_s("bf16"))
