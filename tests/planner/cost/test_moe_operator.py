"""The fused-MoE law: hand arithmetic, expected loads against draws, monotonicity, fallbacks, measured tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.refit import moe as refit
from planner.catalog import device
from planner.cost.operators.moe import QUANTS, RATES, MoeFit, moe_seconds, moe_source, rank_load, work
from planner.cost.operators.tables import Residuals, records
from planner.errors import OptionError
from planner.hardware import DeviceKind

QWEN = {"hidden_size": 2048, "moe_intermediate_size": 768, "top_k": 8, "num_experts": 128}
DEVICES = ("a100_sxm", "h100_sxm", "b200_sxm", "l40s", "mi300x")


def seconds(name: str, quant: str, tokens: object, **changes: object) -> np.ndarray:
    sizes = {**QWEN, "moe_tp": 1, "moe_ep": 1, "tokens": tokens, **changes}
    return moe_seconds(device(name), quant, **sizes)  # type: ignore[arg-type]


def test_work_of_one_expert() -> None:
    """hidden 4, inter 6, fp8: weights 3*4*6 = 72 B; a row 4*(1+2) + 6*(3+2) = 42 B and 2*72 FLOP; a token 4*3 B."""
    four, six = np.asarray(4.0), np.asarray(6.0)
    assert tuple(map(float, work(RATES["fp8"], four, six))) == (12, 72, 42, 144)


def test_the_law_by_hand() -> None:
    """A device without a fit of its own or of its kin: mean coefficients, no grids, balanced routing.

    16 tokens x 8 choices over 128 experts on 4 ranks: 32 rows, 32 touched experts on each.
    """
    kind = device("mi300x")
    fits = [fit for fit in records("moe", MoeFit) if fit.arithmetic == "bf16"]
    names = ("launch_s", "expert_s", "memory_efficiency", "compute_efficiency", "row_passes", "token_passes")
    launch, expert, memory, compute, rows, tokens = (
        np.prod([getattr(fit, name) for fit in fits]) ** (1 / len(fits)) for name in names
    )
    weights = 3 * 2048 * 768 * 2
    row_bytes = 2048 * 4 + 768 * 8
    bandwidth, peak = kind.hbm_bandwidth_bytes_per_s, kind.peak_flop_per_s("bf16")
    by_hand = (
        32 * (expert + weights / memory / bandwidth)
        + 32 * (6 * 2048 * 768 / compute / peak + rows * row_bytes / bandwidth)
        + tokens * 16 * 2048 * 4 / bandwidth
    )
    assert seconds("mi300x", "bf16", 16, moe_ep=4, routing="balanced", launch=False) == pytest.approx(by_hand)
    assert seconds("mi300x", "bf16", 16, moe_ep=4, routing="balanced") == pytest.approx(by_hand + launch)


def test_balanced_load() -> None:
    """4 tokens x 2 over 8 experts: all 8 once; on 4 ranks 2 rows and both experts; 1 token on 8 ranks: one row."""
    assert (rank_load(4, 8, 2, 4, "balanced").rows, rank_load(4, 8, 2, 4, "balanced").touched) == (2, 2)
    assert (rank_load(1, 8, 2, 8, "balanced").rows, rank_load(1, 8, 2, 8, "balanced").touched) == (1, 1)
    assert rank_load(100, 8, 2, 1, "balanced").touched == 8


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "ranks"), [(1024, 128, 8, 8), (4096, 256, 8, 32), (512, 8, 2, 4)]
)
@pytest.mark.parametrize("exponent", [1.01, 1.2])
def test_load_of_the_busiest_rank_against_draws(
    tokens: int, experts: int, top_k: int, ranks: int, exponent: float
) -> None:
    """Popularity drawn from the bounded power law by inversion; the busiest rank in the mean of 400 draws."""
    draw, power = np.random.default_rng(0), 1 - exponent
    top = 0.8 * tokens
    share = (1 + draw.random((400, experts)) * (top**power - 1)) ** (1 / power)
    counts = np.minimum(share / share.sum(axis=1, keepdims=True) * tokens * top_k, tokens)
    busiest = counts.reshape(400, ranks, -1).sum(axis=2).max(axis=1).mean()
    assert float(rank_load(tokens, experts, top_k, ranks, exponent).rows) == pytest.approx(busiest, rel=0.15)


@given(
    tokens=st.lists(st.integers(1, 300_000), min_size=2, max_size=30),
    model=st.sampled_from([(2048, 768, 8, 128), (7168, 2048, 8, 256), (4096, 14336, 2, 8), (2880, 2880, 4, 32)]),
    split=st.sampled_from([(1, 1), (8, 1), (1, 8), (4, 2), (1, 4)]),
    kind=st.sampled_from(DEVICES),
    quant=st.sampled_from(QUANTS),
    routing=st.sampled_from(["balanced", "power_law_1.01", "power_law_1.2", 0.5, 1.0, 2.0, 3.0]),
)
@settings(max_examples=150, deadline=None)
def test_more_tokens_are_never_faster(
    tokens: list[int],
    model: tuple[int, int, int, int],
    split: tuple[int, int],
    kind: str,
    quant: str,
    routing: str | float,
) -> None:
    hidden, inter, top_k, experts = model
    times = moe_seconds(
        device(kind),
        quant,
        tokens=np.sort(tokens),
        hidden_size=hidden,
        moe_intermediate_size=inter,
        top_k=top_k,
        num_experts=experts,
        moe_tp=split[0],
        moe_ep=split[1],
        routing=routing,
    )
    assert (np.diff(times) >= -1e-12 * times[1:]).all()
    assert (times > 0).all()


def faster(kind: DeviceKind, bandwidth: float, peak: float) -> DeviceKind:
    rates = {dtype: rate * peak for dtype, rate in kind.flop_per_s.items()}
    changes = {"hbm_bandwidth_bytes_per_s": kind.hbm_bandwidth_bytes_per_s * bandwidth, "flop_per_s": rates}
    return kind.model_copy(update=changes)


@given(
    bandwidth=st.floats(1, 4),
    peak=st.floats(1, 4),
    kind=st.sampled_from(DEVICES),
    quant=st.sampled_from(QUANTS),
    tokens=st.integers(1, 100_000),
)
@settings(max_examples=60, deadline=None)
def test_a_faster_device_is_never_slower(bandwidth: float, peak: float, kind: str, quant: str, tokens: int) -> None:
    sizes = {**QWEN, "moe_tp": 1, "moe_ep": 4, "tokens": tokens}
    slow = moe_seconds(device(kind), quant, **sizes)  # type: ignore[arg-type]
    fast = moe_seconds(faster(device(kind), bandwidth, peak), quant, **sizes)  # type: ignore[arg-type]
    assert fast <= slow * (1 + 1e-12)


def test_skew_makes_the_busiest_rank_slower() -> None:
    balanced, mild, strong = (
        seconds("h200_sxm", "bf16", 4096, moe_ep=16, routing=routing) for routing in ("balanced", 1.01, 1.2)
    )
    assert balanced < mild < strong


def test_sizes_broadcast() -> None:
    table = seconds("h100_sxm", "fp8", np.array([[1], [64]]), moe_ep=np.array([1, 2, 8]))
    assert table.shape == (2, 3)
    assert table[1, 2] == pytest.approx(seconds("h100_sxm", "fp8", 64, moe_ep=8))


def test_where_coefficients_come_from() -> None:
    """Timed itself; its architecture or a like kernel; nothing but the peaks; a user's variant is not measured."""
    assert moe_source(device("h200_sxm"), "fp8_block") == "measured"
    assert moe_source(device("h100_sxm"), "mxfp4") == "measured"
    assert moe_source(device("h100_sxm"), "nvfp4") == "calibrated"
    assert moe_source(device("a100_sxm"), "fp8") == "calibrated"
    assert moe_source(device("h20"), "bf16") == "calibrated"
    assert moe_source(device("mi300x"), "bf16") == "datasheet"
    assert moe_source(faster(device("h200_sxm"), 1.1, 1.0), "fp8") == "calibrated"


def test_weights_of_eight_bits_without_fp8_units_save_memory_traffic_alone() -> None:
    """On an A100 one token reads half the weights; at many tokens 16-bit arithmetic takes about as long."""
    assert seconds("a100_sxm", "fp8", 1) < seconds("a100_sxm", "bf16", 1)
    assert seconds("a100_sxm", "fp8", 100_000) == pytest.approx(seconds("a100_sxm", "bf16", 100_000), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 0},
        {"hidden_size": -1},
        {"top_k": 129},
        {"moe_ep": 256},
        {"routing": "uniform"},
        {"routing": -1.0},
        {"tokens": np.nan},
    ],
)
def test_refused(changes: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        seconds("h100_sxm", "bf16", **{"tokens": 1, **changes})  # type: ignore[arg-type]


def test_unknown_format() -> None:
    with pytest.raises(OptionError, match="int2"):
        seconds("h100_sxm", "int2", 1)


def test_a_grid_that_would_make_more_work_faster_is_refused() -> None:
    fit = records("moe", MoeFit)[0]
    steep = Residuals(axes=((0.0, 1.0),), values=(1.0, 0.0))
    with pytest.raises(ValueError, match="less time"):
        MoeFit.model_validate(fit.model_dump() | {"memory": steep.model_dump()})


def test_every_record_reaches_the_target() -> None:
    assert max(fit.error_held_out for fit in records("moe", MoeFit)) < 0.25


def test_predicts_the_measured_tables(shared_data: Path) -> None:
    """The user's function on the rows of one table, not the fit's own code."""
    for table in refit.read(shared_data / "inference"):
        if (table.device, table.arithmetic) == ("h200_sxm", "fp8_block"):
            tokens, hidden, inter, top_k, experts, tp, ep = table.sizes.T
            at = table.routing == "power_law_1.01"
            times = moe_seconds(
                device("h200_sxm"),
                "fp8_block",
                tokens=tokens[at],
                hidden_size=hidden[at],
                moe_intermediate_size=inter[at],
                top_k=top_k[at],
                num_experts=experts[at],
                moe_tp=tp[at],
                moe_ep=ep[at],
            )
            assert np.abs(times / table.seconds[at] - 1).mean() < 0.12
            return
    pytest.fail("no such table")
