"""Attention and MLA: work by hand, chunks and windows by counting pairs, order in sizes and peaks, measured rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.refit import attention as refit
from benchmarks.refit.common import mape
from planner.catalog import device
from planner.cost.operators.attention import (
    AttentionFit,
    Operator,
    attention_decode_seconds,
    attention_prefill_seconds,
    attention_source,
    decode_work,
    equivalent_prompt,
    mla_decode_seconds,
    mla_decode_work,
    mla_prefill_seconds,
    prefill_work,
)
from planner.cost.operators.tables import records
from planner.errors import OptionError

#: Equal but for the rounding of an interpolation.
ROUNDING = 1 + 1e-12
devices = st.sampled_from(["a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "h20_sxm", "mi300x"])
backends = st.sampled_from([None, "trtllm", "vllm", "sglang"])
kv_formats = st.sampled_from(["bf16", "fp8"])
lengths = st.integers(1, 300_000)
batches = st.integers(1, 3_000)
head_pairs = st.sampled_from([(1, 1), (5, 1), (8, 8), (8, 1), (32, 8), (64, 4), (128, 8)])
widths = st.sampled_from([64, 96, 128, 256])


def array(value: float) -> np.ndarray:
    return np.asarray(float(value))


def test_work_by_hand() -> None:
    """2 prompts of 10 tokens, 8 heads, 2 KV heads, size 4, fp8 cache.

    Prefill: 4 · 8 · 4 · 100 / 2 · 2 = 12,800 FLOP; in and out 2 · 2 · 16 · 10 · 4, cache 2 · 1 · 4 · 10 · 4 bytes.
    Decode: 4 · 8 · 4 · 10 · 2 = 2,560 FLOP; cache the same 320 bytes, in and out 2 · 2 · 16 · 4 = 256.
    """
    group = array(4)
    flop, moved = prefill_work(array(16), array(10), group, 4, 1.0)
    assert (flop, moved) == (12_800, 2_560 + 320)
    flop, moved = decode_work(array(4), array(10), group, 4, 1.0)
    assert (flop, moved) == (2_560, 320 + 256)


def test_mla_reads_one_latent_for_all_heads() -> None:
    """16 heads, 100 tokens, bf16: 100 · 576 · 2 bytes of cache whatever the heads, 2 · 16 · (576 + 512) · 100 FLOP."""
    flop, moved = mla_decode_work(array(1), array(100), array(16), 2.0)
    assert flop == 2 * 16 * 1088 * 100
    assert moved == 100 * 576 * 2 + 16 * 1088 * 2


@pytest.mark.parametrize(
    ("tokens", "context", "window"), [(7, 0, 0), (7, 5, 0), (9, 0, 4), (9, 3, 4), (3, 9, 4), (1, 100, 0), (5, 2, 100)]
)
def test_equivalent_prompt_counts_pairs(tokens: int, context: int, window: int) -> None:
    """The i-th new token stands at context + i + 1/2 and sees no more than the window: the midpoint rule is exact."""
    pairs = sum(min(context + i + 0.5, window or np.inf) for i in range(tokens))
    # A query on the edge of the window is half in: whole windows are counted where it is past the edge.
    same = equivalent_prompt(array(tokens), array(context), array(window))
    assert same**2 / 2 == pytest.approx(pairs)


def test_a_chunked_prompt_costs_what_it_has_in_pairs() -> None:
    """Two chunks of 8192 as one prompt of 16384, but for the efficiency that kernels gain with the length."""
    kind, shape = device("h200_sxm"), {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "launch": False}
    whole = attention_prefill_seconds(kind, tokens=16384, **shape)
    chunks = attention_prefill_seconds(kind, tokens=8192, context=np.array([0, 8192]), **shape).sum()
    assert chunks == pytest.approx(whole, rel=0.1)


def test_windows() -> None:
    """A window as long as the context changes nothing; decode behind a window is decode of the window."""
    kind, shape = device("h100_sxm"), {"num_heads": 8, "num_kv_heads": 1, "head_dim": 64}
    for window in (4096, 0):
        assert attention_prefill_seconds(kind, tokens=4096, window=window, **shape) == attention_prefill_seconds(
            kind, tokens=4096, **shape
        )
    assert attention_prefill_seconds(kind, tokens=16384, window=128, **shape) < 0.3 * attention_prefill_seconds(
        kind, tokens=16384, **shape
    )
    near, far = (
        attention_decode_seconds(kind, batch=32, context=context, window=window, **shape)
        for context, window in ((128, 0), (100_000, 128))
    )
    assert near == far


def test_long_caches_are_read_at_the_memory_bandwidth() -> None:
    """64 sequences of 32k tokens, 8 KV heads of 128, bf16: 8.6 GB a layer, at 0.8 to 1 of the peak bandwidth."""
    for name in ("h100_sxm", "h200_sxm", "b200_sxm"):
        kind = device(name)
        seconds = attention_decode_seconds(
            kind, batch=64, context=32_768, num_heads=64, num_kv_heads=8, head_dim=128, launch=False
        )
        reached = 64 * 32_768 * 8 * 128 * 2 * 2 / seconds / kind.hbm_bandwidth_bytes_per_s
        assert 0.8 < reached < 1 + 1e-9


def test_value_heads_of_another_size() -> None:
    """Sizes 192 and 128 are the work of 160 and 160."""
    kind, shape = device("h100_sxm"), {"tokens": 5000, "num_heads": 16, "num_kv_heads": 16}
    assert attention_prefill_seconds(kind, head_dim=192, v_head_dim=128, **shape) == attention_prefill_seconds(
        kind, head_dim=160, **shape
    )


@pytest.mark.parametrize(
    ("name", "operator", "quant", "kv_quant", "backend", "source"),
    [
        ("h100_sxm", "prefill", "bf16", "fp8", "vllm", "measured"),
        ("h100_sxm", "prefill", "fp8", "fp8", "trtllm", "measured"),
        ("h100_sxm", "prefill", "fp8", "fp8", "vllm", "calibrated"),
        ("h100_sxm", "decode", "bf16", "bf16", "sglang", "calibrated"),
        ("a100_sxm", "decode", "bf16", "bf16", "sglang", "measured"),
        ("a100_sxm", "decode", "bf16", "bf16", None, "measured"),
        ("a100_sxm", "decode", "bf16", "fp8", None, "calibrated"),
        ("a100_sxm", "mla_decode", "bf16", "fp8", None, "measured"),
        ("gb200", "mla_prefill", "bf16", "bf16", None, "calibrated"),
        ("h20_sxm", "prefill", "bf16", "bf16", "trtllm", "calibrated"),
        ("l40s", "mla_decode", "bf16", "bf16", None, "datasheet"),
        ("mi300x", "decode", "bf16", "bf16", "vllm", "datasheet"),
        ("t4", "decode", "bf16", "bf16", None, "datasheet"),
    ],
)
def test_which_fit_stands_for_what(
    name: str, operator: Operator, quant: str, kv_quant: str, backend: str | None, source: str
) -> None:
    assert attention_source(device(name), operator, quant=quant, kv_quant=kv_quant, backend=backend) == source


@settings(max_examples=60, deadline=None)
@given(
    name=devices, backend=backends, kv=kv_formats, heads=head_pairs, width=widths, batch=batches, tokens=lengths,
    context=st.integers(0, 100_000), window=st.sampled_from([0, 128, 4096]), more=st.integers(0, 100_000),
    grow=st.sampled_from(["batch", "tokens", "context"]), launch=st.booleans(),
)  # fmt: skip
def test_prefill_of_more_is_never_faster(
    name: str, backend: str | None, kv: str, heads: tuple[int, int], width: int, batch: int, tokens: int,
    context: int, window: int, grow: str, more: int, launch: bool,
) -> None:  # fmt: skip
    fixed = {"num_heads": heads[0], "num_kv_heads": heads[1], "head_dim": width, "kv_quant": kv, "window": window}
    before = {"batch": batch, "tokens": tokens, "context": context}
    first, second = (
        attention_prefill_seconds(device(name), **fixed, **size, backend=backend, launch=launch)
        for size in (before, before | {grow: before[grow] + more})
    )
    assert 0 < first <= second * ROUNDING
    assert np.isfinite(second)


@settings(max_examples=60, deadline=None)
@given(
    name=devices, backend=backends, kv=kv_formats, heads=head_pairs, width=widths, batch=batches, context=lengths,
    window=st.sampled_from([0, 128, 4096]), grow=st.sampled_from(["batch", "context"]), more=st.integers(0, 100_000),
    launch=st.booleans(),
)  # fmt: skip
def test_decode_of_more_is_never_faster(
    name: str, backend: str | None, kv: str, heads: tuple[int, int], width: int, batch: int, context: int,
    window: int, grow: str, more: int, launch: bool,
) -> None:  # fmt: skip
    fixed = {"num_heads": heads[0], "num_kv_heads": heads[1], "head_dim": width, "kv_quant": kv, "window": window}
    before = {"batch": batch, "context": context}
    first, second = (
        attention_decode_seconds(device(name), **fixed, **size, backend=backend, launch=launch)
        for size in (before, before | {grow: before[grow] + more})
    )
    assert 0 < first <= second * ROUNDING
    assert np.isfinite(second)


@settings(max_examples=60, deadline=None)
@given(
    name=devices, kv=kv_formats, batch=batches, length=lengths, heads=st.integers(1, 128), launch=st.booleans(),
    grow=st.sampled_from(["batch", "length", "num_heads"]), factor=st.floats(1, 50), phase=st.booleans(),
)  # fmt: skip
def test_mla_of_more_is_never_faster(
    name: str, kv: str, batch: int, length: int, heads: int, launch: bool, grow: str, factor: float, phase: bool
) -> None:
    before = {"batch": float(batch), "length": float(length), "num_heads": float(heads)}

    def seconds(size: dict[str, float]) -> np.ndarray:
        rest = {"batch": size["batch"], "num_heads": size["num_heads"], "kv_quant": kv, "launch": launch}
        if phase:
            return mla_prefill_seconds(device(name), tokens=size["length"], **rest)
        return mla_decode_seconds(device(name), context=size["length"], **rest)

    first, second = seconds(before), seconds(before | {grow: before[grow] * factor})
    assert 0 < first <= second * ROUNDING
    assert np.isfinite(second)


@settings(max_examples=60, deadline=None)
@given(
    name=devices, kv=kv_formats, heads=head_pairs, batch=batches, length=lengths, bandwidth=st.floats(1, 4),
    peak=st.floats(1, 4),
)  # fmt: skip
def test_a_faster_device_is_never_slower(
    name: str, kv: str, heads: tuple[int, int], batch: int, length: int, bandwidth: float, peak: float
) -> None:
    kind = device(name)
    faster = kind.model_copy(
        update={
            "hbm_bandwidth_bytes_per_s": kind.hbm_bandwidth_bytes_per_s * bandwidth,
            "flop_per_s": {dtype: rate * peak for dtype, rate in kind.flop_per_s.items()},
        }
    )
    shape = {"batch": batch, "num_heads": heads[0], "num_kv_heads": heads[1], "head_dim": 128, "kv_quant": kv}
    for seconds in (
        lambda one: attention_prefill_seconds(one, tokens=length, **shape),
        lambda one: attention_decode_seconds(one, context=length, **shape),
        lambda one: mla_decode_seconds(one, batch=batch, context=length, num_heads=heads[0], kv_quant=kv),
    ):
        assert seconds(faster) <= seconds(kind) * ROUNDING


def test_arrays_broadcast() -> None:
    seconds = attention_decode_seconds(
        device("h100_sxm"), batch=np.arange(1, 6)[:, None], context=np.array([100, 200]), num_heads=8, num_kv_heads=1,
        head_dim=128,
    )  # fmt: skip
    assert seconds.shape == (5, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens must be positive"),
        ({"num_kv_heads": 0}, "num_kv_heads must be positive"),
        ({"head_dim": -1}, "head_dim must be positive"),
        ({"context": -1}, "context must be 0 or more"),
        ({"window": np.nan}, "window must be 0 or more"),
        ({"kv_quant": "fp3"}, "no KV cache format 'fp3'; known: bf16"),
        ({"quant": "int4"}, "no attention arithmetic 'int4'"),
        ({"backend": "tgi"}, "no engine 'tgi'; known: trtllm, vllm, sglang"),
    ],
)
def test_bad_input(change: dict[str, object], message: str) -> None:
    good = {"tokens": 10, "num_heads": 8, "num_kv_heads": 1, "head_dim": 128}
    with pytest.raises(OptionError, match=message):
        attention_prefill_seconds(device("h100_sxm"), **(good | change))


def test_every_record_says_how_far_it_is_off() -> None:
    found = records("attention", AttentionFit)
    keys = {(fit.device, fit.operator, fit.quant, fit.kv_quant, fit.kernels) for fit in found}
    assert len(keys) == len(found) == 51
    assert all(0 < fit.error_in_sample <= fit.error_held_out < 0.15 for fit in found)


def test_the_catalogue_is_what_the_data_say(shared_data: Path) -> None:
    """A refit gives the catalogue's fit and errors, for one grouped table and one of MLA."""
    known = {
        f"{fit.device} {fit.operator} {fit.quant}/{fit.kv_quant} {fit.kernels}": fit
        for fit in records("attention", AttentionFit)
    }
    chosen = ("h200_sxm decode bf16/fp8 vllm", "b200_sxm mla_decode bf16/bf16 trtllm")
    for table in (one for one in refit.tables(shared_data / "inference") if one.name in chosen):
        kept, again = known[table.name], table.fit()
        assert again.launch_s == pytest.approx(kept.launch_s, rel=0.01)
        assert again.memory_efficiency == pytest.approx(kept.memory_efficiency, rel=0.01)
        np.testing.assert_allclose(again.residuals.values, kept.residuals.values, atol=0.01)
        assert mape(table.predicted(kept), table.seconds) == pytest.approx(kept.error_in_sample, abs=1e-3)
        held_out = max(table.shapes_out(), table.loads_out())
        assert held_out == pytest.approx(kept.error_held_out, abs=2e-3)


def test_public_functions_meet_measured_rows(shared_data: Path) -> None:
    """Arguments reach the sizes of the fit: the functions give the errors of the tables that they come from."""
    tables = {one.name: one for one in refit.tables(shared_data / "inference")}
    h100 = device("h100_sxm")
    prefill = tables["h100_sxm prefill fp8/fp8 trtllm"]
    rows, tokens, group, width = (size[prefill.sizes[3] == 128] for size in prefill.sizes)
    batch = prefill.batch[prefill.sizes[3] == 128]
    seconds = attention_prefill_seconds(
        h100, tokens=tokens, batch=batch, num_heads=rows / batch, num_kv_heads=rows / batch / group, head_dim=128,
        quant="fp8", kv_quant="fp8", backend="trtllm",
    )  # fmt: skip
    assert width.size > 2000
    assert mape(seconds, prefill.seconds[prefill.sizes[3] == 128]) < 0.05
    decode = tables["h100_sxm decode bf16/bf16 vllm"]
    mine = decode.sizes[3] == 64
    rows, tokens, group, _ = (size[mine] for size in decode.sizes)
    heads = rows / decode.batch[mine]
    seconds = attention_decode_seconds(
        h100, batch=decode.batch[mine], context=tokens, num_heads=heads * group, num_kv_heads=heads, head_dim=64,
        backend="vllm",
    )  # fmt: skip
    assert mape(seconds, decode.seconds[mine]) < 0.07
    latent = tables["h100_sxm mla_prefill bf16/bf16 trtllm"]
    batch, tokens, heads = latent.sizes
    assert mape(mla_prefill_seconds(h100, tokens=tokens, batch=batch, num_heads=heads), latent.seconds) < 0.06
