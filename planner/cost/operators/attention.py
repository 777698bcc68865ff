"""Time of attention kernels, one layer on one GPU: prefill and decode of multi-head and grouped attention, and MLA.

Prompts are causal. What was measured are prompts without a cache and full windows; a chunk behind a cache, or under a
window, is taken as the prompt with as many query-key pairs, and never faster than its keys and values can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from planner.cost.operators.grid import FloatArray
from planner.cost.operators.roofline import (
    Law,
    RooflineFit,
    TimeTable,
    half_octaves,
    law_of,
    nodes,
    not_negative,
    positive,
    time_table,
)
from planner.cost.operators.tables import NonEmpty, Source, records
from planner.errors import OptionError
from planner.hardware import DeviceKind

Operator = Literal["prefill", "decode", "mla_prefill", "mla_decode"]

#: Bytes of one element of a KV cache.
KV_BYTES: Mapping[str, float] = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0}
#: Queries come in and results go out in 16 bits.
ACTIVATION_BYTES = 2.0

#: Whose kernels an engine runs, best known first. SGLang and vLLM both run FlashAttention 3 on Hopper, and
#: TensorRT-LLM's kernels (through FlashInfer) on Blackwell, where there is no table of their own.
KERNELS: Mapping[str, tuple[str, ...]] = {
    "trtllm": ("trtllm", "vllm", "sglang"),
    "vllm": ("vllm", "trtllm", "sglang"),
    "sglang": ("sglang", "vllm", "trtllm"),
}

#: Head sizes of DeepSeek-V2, V3, R1 and Kimi-K2 (their config.json): a cached token is the latent and one rotary key.
MLA_LATENT, MLA_ROPE, MLA_NOPE, MLA_VALUE = 512, 64, 128, 128

#: Sizes that a TimeTable covers, log2 in half octaves.
PREFILL_AXES = (half_octaves(20), half_octaves(23), half_octaves(7))
DECODE_AXES = (half_octaves(20), half_octaves(24), half_octaves(7))
MLA_AXES = (half_octaves(16), half_octaves(24), half_octaves(8))


class AttentionFit(RooflineFit):
    """One table of kernels. Residuals over, by operator,

    prefill: (sequences x query heads, tokens, query heads per KV head, head size);
    decode: (sequences x KV heads, cached tokens, query heads per KV head, head size);
    mla_prefill, mla_decode: (sequences, tokens, heads).
    """

    operator: Operator
    quant: NonEmpty
    kv_quant: NonEmpty
    kernels: NonEmpty


def prefill_work(
    rows: FloatArray, tokens: FloatArray, group: FloatArray, head_dim: float, kv_bytes: float
) -> tuple[FloatArray, FloatArray]:
    """FLOP and bytes of causal prompts: 4 h d s²/2; queries and results once, keys and values once.

    rows : sequences x query heads; group : query heads per KV head; head_dim : mean of key and value size.
    """
    moved = rows * tokens * head_dim * (2 * ACTIVATION_BYTES + 2 * kv_bytes / group)
    return 2 * rows * tokens**2 * head_dim, moved


def decode_work(
    rows: FloatArray, context: FloatArray, group: FloatArray, head_dim: float, kv_bytes: float
) -> tuple[FloatArray, FloatArray]:
    """FLOP and bytes of one new token per sequence: the whole cache is read. rows : sequences x KV heads."""
    moved = rows * head_dim * (2 * context * kv_bytes + 2 * group * ACTIVATION_BYTES)
    return 4 * rows * group * head_dim * context, moved


def mla_prefill_work(
    batch: FloatArray, tokens: FloatArray, heads: FloatArray, kv_bytes: float
) -> tuple[FloatArray, FloatArray]:
    """FLOP and bytes of causal prompts with keys and values unpacked per head."""
    width = MLA_NOPE + MLA_ROPE + MLA_VALUE
    moved = batch * tokens * heads * width * (ACTIVATION_BYTES + kv_bytes)
    return batch * tokens**2 * heads * width, moved


def mla_decode_work(
    batch: FloatArray, context: FloatArray, heads: FloatArray, kv_bytes: float
) -> tuple[FloatArray, FloatArray]:
    """FLOP and bytes of one new token per sequence in the absorbed form: all heads share one latent per token."""
    width = 2 * MLA_LATENT + MLA_ROPE
    moved = batch * (context * (MLA_LATENT + MLA_ROPE) * kv_bytes + heads * width * ACTIVATION_BYTES)
    return 2 * batch * heads * width * context, moved


def attention_law(
    fits: Sequence[AttentionFit],
    device: DeviceKind,
    operator: Operator,
    quant: str,
    kv_quant: str,
    backend: str | None,
) -> Law:
    """The law of an operator among `fits`. Nearest first: this arithmetic and cache, then this engine's kernels.

    A device without the arithmetic computes in 16 bits. Raises OptionError for unknown names.
    """
    if kv_quant not in KV_BYTES:
        raise OptionError(f"no KV cache format {kv_quant!r}; known: {', '.join(KV_BYTES)}")
    if quant not in ("bf16", "fp8"):
        raise OptionError(f"no attention arithmetic {quant!r}; known: bf16, fp8")
    if backend is not None and backend not in KERNELS:
        raise OptionError(f"no engine {backend!r}; known: {', '.join(KERNELS)}")
    unit = "fp8" if quant == "fp8" and "fp8" in device.flop_per_s else "bf16"
    cache = "fp8" if KV_BYTES[kv_quant] < KV_BYTES["bf16"] else "bf16"
    places = KERNELS[backend or "trtllm"]

    def rank(fit: AttentionFit) -> int | None:
        if fit.operator != operator:
            return None
        other_formats = 2 * (fit.quant != unit) + (fit.kv_quant != cache)
        return len(places) * other_formats + (places.index(fit.kernels) if backend else 0)

    wide = "bf16" if "bf16" in device.flop_per_s else "fp16"
    return law_of(fits, device, device.peak_flop_per_s(unit if unit == "fp8" else wide), rank)


@lru_cache(maxsize=1024)
def attention_table(law: Law, operator: Operator, head_dim: float, kv_bytes: float, launch: bool) -> TimeTable:
    """Times over the first three sizes of `AttentionFit` for one head size (unused by MLA).

    Rising with sequences and tokens, and in MLA with heads. Not with the group: engines change kernels with it, and
    TensorRT-LLM on Hopper decodes one query head per KV head slower than eight (forcing the order there costs ten
    points of error).
    """
    if operator == "prefill":
        rows, tokens, group = nodes(PREFILL_AXES)
        work = prefill_work(rows, tokens, group, head_dim, kv_bytes)
        return time_table(PREFILL_AXES, law.seconds(*work, (rows, tokens, group, head_dim), launch), rises=(0, 1))
    if operator == "decode":
        rows, tokens, group = nodes(DECODE_AXES)
        work = decode_work(rows, tokens, group, head_dim, kv_bytes)
        return time_table(DECODE_AXES, law.seconds(*work, (rows, tokens, group, head_dim), launch), rises=(0, 1))
    batch, tokens, heads = nodes(MLA_AXES)
    mla_work = mla_prefill_work if operator == "mla_prefill" else mla_decode_work
    seconds = law.seconds(*mla_work(batch, tokens, heads, kv_bytes), (batch, tokens, heads), launch)
    return time_table(MLA_AXES, seconds, rises=(0, 1, 2))


def _table(
    device: DeviceKind,
    operator: Operator,
    quant: str,
    kv_quant: str,
    backend: str | None,
    head_dim: float,
    launch: bool,
) -> TimeTable:
    law = attention_law(records("attention", AttentionFit), device, operator, quant, kv_quant, backend)
    return attention_table(law, operator, head_dim, KV_BYTES[kv_quant], launch)


def equivalent_prompt(tokens: FloatArray, context: FloatArray, window: FloatArray) -> FloatArray:
    """Length of the causal prompt with as many query-key pairs as `tokens` new ones behind `context` cached ones.

    window : a query sees at most so many keys; 0 is all of them. A prompt of s tokens has s²/2 pairs.
    """
    width = np.where(window > 0, window, np.inf)

    def pairs(end: FloatArray) -> FloatArray:
        """Pairs of the first `end` queries: a triangle, then a band."""
        inside = np.minimum(end, width)
        return np.asarray(inside * (end - inside / 2))

    return np.asarray(np.sqrt(2 * (pairs(context + tokens) - pairs(context))))


def _seen(context: FloatArray, window: FloatArray) -> FloatArray:
    """Cached tokens that a query sees."""
    return np.where(window > 0, np.minimum(context, window), context)


def _prompt(tokens: npt.ArrayLike, context: npt.ArrayLike, window: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Equivalent prompt, and the tokens whose keys and values are read."""
    (new,) = positive(tokens=tokens)
    cached, width = not_negative(context=context, window=window)
    return equivalent_prompt(new, cached, width), new + _seen(cached, width)


def attention_prefill_seconds(
    device: DeviceKind,
    *,
    tokens: npt.ArrayLike,
    num_heads: npt.ArrayLike,
    num_kv_heads: npt.ArrayLike,
    head_dim: int,
    v_head_dim: int | None = None,
    batch: npt.ArrayLike = 1,
    quant: str = "bf16",
    kv_quant: str = "bf16",
    window: npt.ArrayLike = 0,
    context: npt.ArrayLike = 0,
    backend: str | None = None,
    launch: bool = True,
) -> FloatArray:
    """Seconds of causal attention of `batch` prompts (or chunks) of `tokens` new tokens each, one layer, one GPU.

    num_heads, num_kv_heads : of this GPU. context : tokens already cached. window : 0 is full attention.
    quant, kv_quant : arithmetic and cache format. backend : trtllm, vllm, sglang, or None for any.
    launch : False is what it costs in a CUDA graph, see `Law.seconds`. Arrays broadcast; never less for more tokens,
    sequences or context. Raises OptionError for sizes that are not positive and unknown names.
    """
    sequences, heads, kv_heads = positive(batch=batch, num_heads=num_heads, num_kv_heads=num_kv_heads)
    width = _mean_width(head_dim, v_head_dim)
    prompt, read = _prompt(tokens, context, window)
    table = _table(device, "prefill", quant, kv_quant, backend, width, launch)
    cache_bytes = 2 * sequences * kv_heads * read * width * KV_BYTES[kv_quant]
    return np.maximum(
        table(sequences * heads, prompt, heads / kv_heads), cache_bytes / device.hbm_bandwidth_bytes_per_s
    )


def attention_decode_seconds(
    device: DeviceKind,
    *,
    batch: npt.ArrayLike,
    context: npt.ArrayLike,
    num_heads: npt.ArrayLike,
    num_kv_heads: npt.ArrayLike,
    head_dim: int,
    v_head_dim: int | None = None,
    kv_quant: str = "bf16",
    window: npt.ArrayLike = 0,
    backend: str | None = None,
    launch: bool = True,
) -> FloatArray:
    """Seconds of attention of one new token for each of `batch` sequences with `context` cached ones.

    One layer, one GPU; arguments as in `attention_prefill_seconds`. Never less for more sequences or context.
    """
    sequences, cached, heads, kv_heads = positive(
        batch=batch, context=context, num_heads=num_heads, num_kv_heads=num_kv_heads
    )
    (width,) = not_negative(window=window)
    table = _table(device, "decode", "bf16", kv_quant, backend, _mean_width(head_dim, v_head_dim), launch)
    return table(sequences * kv_heads, _seen(cached, width), heads / kv_heads)


def mla_prefill_seconds(
    device: DeviceKind,
    *,
    tokens: npt.ArrayLike,
    num_heads: npt.ArrayLike,
    batch: npt.ArrayLike = 1,
    context: npt.ArrayLike = 0,
    kv_quant: str = "bf16",
    launch: bool = True,
) -> FloatArray:
    """Seconds of multi-head latent attention of prompts, keys and values unpacked; one layer, heads of this GPU.

    The products that unpack them are dense and not in here. Never less for more tokens, sequences, context or heads.
    """
    sequences, heads = positive(batch=batch, num_heads=num_heads)
    prompt, read = _prompt(tokens, context, 0)
    table = _table(device, "mla_prefill", "bf16", kv_quant, None, 0, launch)
    cache_bytes = sequences * read * heads * (MLA_NOPE + MLA_ROPE + MLA_VALUE) * KV_BYTES[kv_quant]
    return np.maximum(table(sequences, prompt, heads), cache_bytes / device.hbm_bandwidth_bytes_per_s)


def mla_decode_seconds(
    device: DeviceKind,
    *,
    batch: npt.ArrayLike,
    context: npt.ArrayLike,
    num_heads: npt.ArrayLike,
    kv_quant: str = "bf16",
    launch: bool = True,
) -> FloatArray:
    """Seconds of multi-head latent attention of one new token per sequence, absorbed form; heads of this GPU.

    The latent cache is whole on every GPU of a tensor-parallel group. Never less for more sequences, context or heads.
    """
    table = _table(device, "mla_decode", "bf16", kv_quant, None, 0, launch)
    return table(*positive(batch=batch, context=context, num_heads=num_heads))


def attention_source(
    device: DeviceKind, operator: Operator, *, quant: str = "bf16", kv_quant: str = "bf16", backend: str | None = None
) -> Source:
    """Whether an operator rests on measurements of this device, formats and engine, of related ones, or on peaks."""
    return attention_law(records("attention", AttentionFit), device, operator, quant, kv_quant, backend).source


def _mean_width(head_dim: int, v_head_dim: int | None) -> float:
    """Mean of key and value size, which is what FLOP and bytes depend on."""
    positive(head_dim=head_dim, v_head_dim=head_dim if v_head_dim is None else v_head_dim)
    return head_dim if v_head_dim is None else (head_dim + v_head_dim) / 2
