"""Step time of one worker as curves: seconds of each part over tokens in the step and over context length.

A worker's shape fixes every matrix, so its parts depend on two numbers alone. They are computed once on a grid of four
nodes an octave; predicting millions of plans of that worker is then a look-up.

    dense, head, moe, all_reduce, dispatch   over the tokens m that one attention rank runs through in a step
    cache, latent, prompt_attention          over the context (cache, latent: one sequence decoding one token;
                                             prompt_attention: a whole causal prompt)
    state                                    one sequence, whatever its context

With c ranks that share a prompt, m counts the prompt's tokens of all c: each multiplies m / c of them, the experts of a
stage see all. Keys and values go round the ring of ranks while they attend (Yang et al., arXiv 2411.01783, pass-KV), so
that attention takes the longer of its FLOP / c and of the ring,

    (c - 1) / c x cache bytes of the prompt / bandwidth of a GPU + (c - 1) x layers x latency.

With d drafts, a decode step multiplies 1 + d tokens a sequence, reads each cache once, and runs the MTP layer and the
head d times: first over the 1 + d tokens, then over one at a time (DeepSeek-V3, arXiv 2412.19437, used autoregressively
for d > 1). Prompts run through the MTP layer as well, which needs a cache of its own.

No part holds the launch of its kernels: a CUDA graph hides it. What is left, small kernels between the products
included, is an overhead for each dense product that is fitted on whole engines (`planner.cost.serving.coefficients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from planner.cost.collectives import (
    InterNodeLink,
    combine_seconds,
    dispatch_seconds,
    hierarchical_seconds,
    link_for,
)
from planner.cost.operators.attention import attention_decode_seconds
from planner.cost.operators.gemm import arithmetic, gemm_seconds
from planner.cost.operators.moe import moe_rank_seconds, moe_seconds
from planner.cost.serving.sharding import (
    LocalGemm,
    cache_bytes,
    cache_share,
    dense_gemms,
    head_gemm,
    quant_of,
    state_bytes,
)
from planner.cost.serving.worker import ServingWorker, is_moe, largest_share
from planner.hardware import DeviceKind
from planner.model.layers import AttentionKind, Component, Layer, MlpKind

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

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
#: Network of one GPU, one direction, where a tensor-parallel group spans nodes; the worker does not say which it has.
#: Source: 400 Gbit/s NDR a GPU of DGX H100 to B200 and most cloud nodes of the catalogue; datasheet.
NETWORK_BYTES_PER_S = 50e9
#: Times a step reads or writes a recurrent state: once each.
STATE_PASSES = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class WorkerCurves:
    """Seconds on NODES: tokens, step [TOKEN_PARTS, nodes], context [CONTEXT_PARTS, nodes]; state_s a sequence.

    tokens : of a step of so many prompt tokens; step : of a decode step of so many sequences, drafts included.
    num_products, num_moe_layers : that a decode step runs through.
    """

    tokens: FloatArray
    step: FloatArray
    context: FloatArray
    state_s: float
    num_products: int
    num_moe_layers: int


def compile_curves(worker: ServingWorker) -> WorkerCurves:
    """The parts of one worker on NODES; raises DescriptionError for a format that its device cannot compute."""
    plain = _undrafted(worker)
    return plain if worker.draft_tokens == 0 else _drafted(worker, plain)


def place(at: FloatArray) -> tuple[IntArray, FloatArray]:
    """Lower node of NODES and the share of the upper one, linear in tokens; beyond the last node extrapolated."""
    low = (np.log2(at) * NODES_PER_OCTAVE).astype(np.intp)
    np.clip(low, 0, len(NODES) - 2, out=low)
    left = NODES[low]
    return low, (at - left) / (NODES[low + 1] - left)


def _undrafted(worker: ServingWorker) -> WorkerCurves:
    head, gemms = head_gemm(worker), dense_gemms(worker)
    parts = {
        "dense": _gemms(worker, gemms),
        "head": _gemms(worker, () if head is None else (head,)),
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
    tokens = np.stack([parts[name] for name in TOKEN_PARTS])
    return WorkerCurves(
        tokens=tokens,
        step=tokens,
        context=np.stack([context[name] for name in CONTEXT_PARTS]),
        state_s=STATE_PASSES * state_bytes(worker) / (CACHE_BANDWIDTH_SHARE * bandwidth),
        num_products=sum(one.count for one in gemms),
        num_moe_layers=worker.model.num_moe_layers,
    )


def _drafted(worker: ServingWorker, plain: WorkerCurves) -> WorkerCurves:
    """Decode steps that verify drafts and make the next; prompts that run through the MTP layer too."""
    drafts = worker.draft_tokens
    layer = replace(worker.model, layers=worker.model.mtp[:1], mtp=(), vision=())
    mtp = _undrafted(replace(worker, model=layer, draft_tokens=0))
    low, share = place((1.0 + drafts) * NODES)

    def wide(table: FloatArray) -> FloatArray:
        made: FloatArray = table[:, low] + share * (table[:, low + 1] - table[:, low])
        return made

    added = dict(zip(CONTEXT_PARTS, mtp.context, strict=True))
    times = {"cache": (1, drafts), "latent": (1 + drafts, drafts), "prompt_attention": (1, 1)}
    context = [
        times[name][0] * own + times[name][1] * added[name]
        for name, own in zip(CONTEXT_PARTS, plain.context, strict=True)
    ]
    return WorkerCurves(
        tokens=plain.tokens + mtp.tokens,
        step=wide(plain.tokens) + wide(mtp.tokens) + (drafts - 1) * mtp.tokens,
        context=np.stack(context),
        state_s=plain.state_s,
        num_products=plain.num_products + drafts * mtp.num_products,
        num_moe_layers=plain.num_moe_layers + drafts * mtp.num_moe_layers,
    )


def _of_rank(worker: ServingWorker) -> FloatArray:
    """Tokens of NODES that one rank multiplies, at least one."""
    return np.maximum(NODES / worker.context_parallel_size, 1.0)


def _gemms(worker: ServingWorker, gemms: Sequence[LocalGemm]) -> FloatArray:
    total, tokens = np.zeros_like(NODES), _of_rank(worker)
    for one in gemms:
        total += one.count * gemm_seconds(worker.device, one.quant, tokens, one.n, one.k, launch=False)
    return total


def _experts(worker: ServingWorker) -> FloatArray:
    total = np.zeros_like(NODES)
    for layer, count in worker.model.layer_groups():
        if is_moe(layer):
            seconds = _balanced_experts if worker.redundant_experts else _routed_experts
            total += count * seconds(worker, layer)
    return total


def _routed_experts(worker: ServingWorker, layer: Layer) -> FloatArray:
    """One layer of experts, where tokens fall as in the tables that the operator was timed with."""
    return moe_seconds(
        worker.device,
        expert_quant(layer),
        tokens=_of_rank(worker) * worker.token_ranks,
        hidden_size=worker.model.hidden_size,
        moe_intermediate_size=layer.mlp.moe_intermediate_size,
        top_k=layer.mlp.num_experts_per_tok,
        num_experts=layer.mlp.num_experts,
        moe_tp=worker.moe_tensor_parallel_size,
        moe_ep=worker.expert_parallel_size,
        launch=False,
    )


def _balanced_experts(worker: ServingWorker, layer: Layer) -> FloatArray:
    """One layer on the busiest rank, where redundant experts are placed by load.

    It has expert_imbalance times the mean of the rows, any of its slots is as likely as another, and only tokens that
    have an expert there reach it.
    """
    k, ranks = layer.mlp.num_experts_per_tok, worker.expert_parallel_size
    slots, tokens = layer.mlp.num_experts + worker.redundant_experts, _of_rank(worker) * worker.token_ranks
    rows = worker.expert_imbalance * tokens * k / ranks
    touched = np.minimum(slots / ranks * (1.0 - (1.0 - k / slots) ** tokens), rows)
    return moe_rank_seconds(
        worker.device,
        expert_quant(layer),
        rows=rows,
        touched=touched,
        tokens=np.minimum(tokens * (1.0 - (1.0 - 1.0 / ranks) ** k) * worker.expert_imbalance, tokens),
        hidden_size=worker.model.hidden_size,
        moe_intermediate_size=largest_share(layer.mlp.moe_intermediate_size, worker.moe_tensor_parallel_size),
        launch=False,
    )


def expert_quant(layer: Layer) -> str:
    """Arithmetic of a layer's routed experts."""
    return next(quant_of(t.format) for t in layer.tensors if t.component is Component.ROUTED_EXPERTS)


def _all_reduces(worker: ServingWorker) -> FloatArray:
    """One after each mixer and one after each MLP; with attention ranks, the experts are reached by dispatch.

    A group larger than the links of a device join is spread evenly over nodes of NETWORK_BYTES_PER_S a GPU.
    """
    tp, total = worker.tensor_parallel_size, 0
    if tp == 1:
        return np.zeros_like(NODES)
    for layer, count in worker.model.layer_groups():
        after_mlp = layer.mlp.kind is not MlpKind.NONE and not (is_moe(layer) and worker.token_ranks > 1)
        total += count * ((layer.attention.kind is not AttentionKind.NONE) + after_mlp)
    link = link_for(worker.device, worker.backend)
    nodes = largest_share(tp, link.most_gpus)
    on_node = largest_share(tp, nodes)
    network = InterNodeLink.rdma(NETWORK_BYTES_PER_S * on_node)
    size = _of_rank(worker) * worker.model.hidden_size * 2.0
    return total * hierarchical_seconds("all_reduce", size, nodes, on_node, link, network)


def _dispatch(worker: ServingWorker) -> FloatArray:
    """Tokens to the experts of other ranks in 8 bits, and their outputs back in 16."""
    total, tokens = np.zeros_like(NODES), _of_rank(worker)
    if worker.token_ranks == 1:
        return total
    hidden, gpus = float(worker.model.hidden_size), worker.stage_gpus
    inside = gpus <= worker.device.scale_up_domain_gpus
    kinds = ("nvlink_alltoall",) if inside else ("deepep_low_latency", "deepep_normal")
    for layer, count in worker.model.layer_groups():
        if is_moe(layer):
            there, back = (
                partial(way, worker.device, tokens_per_gpu=tokens, top_k=layer.mlp.num_experts_per_tok, num_gpus=gpus)
                for way in (dispatch_seconds, combine_seconds)
            )
            ways = [there(kind, token_bytes=hidden) + back(kind, token_bytes=2.0 * hidden) for kind in kinds]
            total += count * np.minimum.reduce(ways)
    return total


def _cache(worker: ServingWorker) -> FloatArray:
    """What one more sequence adds to a step's attention, by the decode operator between MARGINAL_BATCH sequences.

    The difference leaves the kernels' launch out; it is never less than reading the cache at peak bandwidth takes,
    which kernels that were timed alone fall below where a cache fits the L2. Other kinds stream at
    CACHE_BANDWIDTH_SHARE.
    """
    tp, total = worker.tensor_parallel_size, np.zeros_like(NODES)
    bandwidth = worker.device.hbm_bandwidth_bytes_per_s
    few, many = MARGINAL_BATCH
    for layer, count in worker.model.layer_groups():
        one = layer.attention
        at_peak = one.read_elements(NODES) * worker.kv_element_bytes * cache_share(worker, one) / bandwidth
        if one.kind in (AttentionKind.FULL, AttentionKind.SLIDING):
            seconds = partial(
                attention_decode_seconds,
                worker.device,
                context=NODES,
                num_heads=largest_share(one.num_attention_heads, tp),
                num_kv_heads=largest_share(one.num_key_value_heads, tp),
                head_dim=one.head_dim,
                v_head_dim=one.v_head_dim,
                kv_quant="fp8" if worker.kv_element_bytes < 2.0 else "bf16",
                window=one.window,
                backend=worker.backend,
                launch=False,
            )
            added = seconds(batch=many) - seconds(batch=few)
            total += count * np.maximum(np.maximum.accumulate(added) / (many - few), at_peak)
        else:
            total += count * at_peak / CACHE_BANDWIDTH_SHARE
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
    return flop / worker.tensor_parallel_size / (LATENT_PEAK_SHARE * _peak_16_bit(worker.device))


def _prompt_attention(worker: ServingWorker) -> FloatArray:
    """A whole causal prompt; among ranks that share it, zigzag blocks give each an equal part."""
    ranks = worker.context_parallel_size
    flop = worker.model.prompt_attention_flops(NODES) / (worker.tensor_parallel_size * ranks)
    attention = flop / (PROMPT_PEAK_SHARE * _peak_16_bit(worker.device))
    return attention if ranks == 1 else np.maximum(attention, _ring(worker))


def _ring(worker: ServingWorker) -> FloatArray:
    """Every rank's keys and values to every other rank, one neighbour after another; a GPU sends its own heads'."""
    network = InterNodeLink.rdma(NETWORK_BYTES_PER_S)
    bandwidth, hops = network.reached_bytes_per_s, worker.context_parallel_size - 1
    inside = worker.device.scale_up_bandwidth_bytes_per_s
    if inside is not None and worker.stage_gpus <= worker.device.scale_up_domain_gpus:
        bandwidth = inside * network.efficiency
    # cache_bytes are those of one rank, which all the others get.
    return hops * (cache_bytes(worker, NODES) / bandwidth + worker.model.num_hidden_layers * network.latency_s)


def _peak_16_bit(device: DeviceKind) -> float:
    """FLOP/s in bf16, or in fp16 on devices before Ampere."""
    return device.peak_flop_per_s(arithmetic(device, "bf16").dtype)
