"""Dense products: the roofline by hand, which fit stands for what, order in every size and peak, measured rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.refit import gemm as refit
from benchmarks.refit.common import mape
from planner.catalog import device
from planner.cost.operators.gemm import GemmFit, arithmetic, gemm_law, gemm_seconds, gemm_source
from planner.cost.operators.roofline import Law, half_octaves, law_of, nodes, rising, time_table
from planner.cost.operators.tables import Residuals, records
from planner.errors import DescriptionError, OptionError

#: Equal but for the rounding of an interpolation.
ROUNDING = 1 + 1e-12
CASES = [
    ("a100_sxm", "bf16"),
    ("l40s", "fp8"),
    ("h100_sxm", "fp8_block"),
    ("h20_sxm", "bf16"),
    ("b200_sxm", "nvfp4"),
    ("mi300x", "fp8"),
    ("a100_sxm", "int4"),
]
sizes = st.integers(1, 200_000)
cases = st.sampled_from(CASES)


def test_roofline_by_hand() -> None:
    """3 s of arithmetic and 4 s of traffic are 5 s; with 2 s of launch 7 s; a residual of log 2 doubles them."""
    plain = Law(2.0, 1e12, 1e9, 2e9, None, "datasheet")
    flop, moved = np.asarray(3e12), np.asarray(4e9)
    assert plain.seconds(flop, moved, (), launch=False) == pytest.approx(5.0)
    assert plain.seconds(flop, moved, (), launch=True) == pytest.approx(7.0)
    double = Residuals(axes=((0.0, 1.0),), values=(float(np.log(2)),) * 2)
    assert Law(2.0, 1e12, 1e9, 2e9, double, "measured").seconds(flop, moved, (1.0,), True) == pytest.approx(14.0)


def test_product_of_a_device_without_fit_by_hand() -> None:
    """MI300X bf16, m = n = k = 4096: 2 · 4096³ FLOP, 3 · 2 · 4096² bytes, at the mean efficiencies of all bf16 fits."""
    mi300x = device("mi300x")
    fits = [fit for fit in records("gemm", GemmFit) if fit.quant == "bf16"]
    launch_s = np.prod([fit.launch_s for fit in fits]) ** (1 / len(fits))
    compute = np.prod([fit.compute_efficiency for fit in fits]) ** (1 / len(fits))
    memory = np.prod([fit.memory_efficiency for fit in fits]) ** (1 / len(fits))
    arithmetic_s = 2 * 4096**3 / (compute * mi300x.peak_flop_per_s("bf16"))
    traffic_s = 3 * 2 * 4096**2 / (memory * mi300x.hbm_bandwidth_bytes_per_s)
    expected = launch_s + np.hypot(arithmetic_s, traffic_s)
    assert gemm_seconds(mi300x, "bf16", 4096, 4096, 4096) == pytest.approx(expected, rel=1e-9)


def test_table_is_the_law_between_its_nodes_too() -> None:
    """Half octaves are fine enough: the p-norm's bend costs under one percent."""
    law = Law(5e-6, 5e14, 2e12, 3e12, None, "datasheet")
    axes = (half_octaves(14),)
    flop_per_row, bytes_per_row = 2e9, 1e4
    (rows,) = nodes(axes)
    table = time_table(axes, law.seconds(rows * flop_per_row, 1e8 + rows * bytes_per_row, (), True), (0,))
    odd = np.array([1, 3, 37, 777, 9999.0])
    expected = law.seconds(odd * flop_per_row, 1e8 + odd * bytes_per_row, (), True)
    np.testing.assert_allclose(table(odd), expected, rtol=0.01)
    assert table(2.0**16) == pytest.approx(4 * table(2.0**14))
    assert table(0.5) == table(1.0)


def test_rising_keeps_what_rises_and_splits_the_difference() -> None:
    """5 before 3: both become 4. What already rises stays. In two dimensions all rows and columns rise."""
    np.testing.assert_allclose(rising(np.array([1.0, 5.0, 3.0, 6.0]), [0]), [1, 4, 4, 6])
    np.testing.assert_allclose(rising(np.arange(6.0).reshape(2, 3), [0, 1]), np.arange(6.0).reshape(2, 3))
    values = rising(np.random.default_rng(0).normal(size=(9, 8, 7)), [0, 1, 2])
    assert all((np.diff(values, axis=dimension) >= 0).all() for dimension in range(3))


@pytest.mark.parametrize(
    ("name", "quant", "dtype", "weight_bytes", "source"),
    [
        ("h100_sxm", "bf16", "bf16", 2, "measured"),
        ("h100_sxm", "fp8", "fp8", 1, "measured"),
        ("a100_sxm", "fp8", "bf16", 1, "calibrated"),
        ("a100_sxm", "int8", "int8", 1, "calibrated"),
        ("h200_sxm", "mxfp4", "bf16", 4.25 / 8, "calibrated"),
        ("h200_sxm", "nvfp4", "bf16", 4.5 / 8, "calibrated"),
        ("b200_sxm", "nvfp4", "fp4", 4.5 / 8, "measured"),
        ("b200_sxm", "mxfp4", "fp4", 4.25 / 8, "calibrated"),
        ("b300_sxm", "nvfp4", "fp4", 4.5 / 8, "calibrated"),
        ("h20_sxm", "fp8_block", "fp8", 1, "calibrated"),
        ("t4", "bf16", "fp16", 2, "datasheet"),
        ("mi355x", "nvfp4", "fp4", 4.5 / 8, "datasheet"),
        ("h100_sxm", "int4", "bf16", 4.125 / 8, "calibrated"),
    ],
)
def test_where_each_format_computes(name: str, quant: str, dtype: str, weight_bytes: float, source: str) -> None:
    runs = arithmetic(device(name), quant)
    assert runs.dtype == dtype
    assert runs.weight_bytes == pytest.approx(weight_bytes, rel=1e-3)
    assert gemm_source(device(name), quant) == source


def test_a_users_variant_is_not_measured() -> None:
    faster = device("h100_sxm").model_copy(update={"hbm_bandwidth_bytes_per_s": 5e12})
    assert gemm_source(faster, "bf16") == "calibrated"
    assert gemm_seconds(faster, "bf16", 1, 8192, 8192) < gemm_seconds(device("h100_sxm"), "bf16", 1, 8192, 8192)


def test_fewer_weight_bytes_help_small_batches_only() -> None:
    """Decode of one token is traffic: int4 nears a quarter of bf16. A large prompt is arithmetic: no gain."""
    a100 = device("a100_sxm")
    small, large = (
        gemm_seconds(a100, "int4", m, 8192, 8192, launch=False)
        / gemm_seconds(a100, "bf16", m, 8192, 8192, launch=False)
        for m in (1, 8192)
    )
    assert small < 0.35
    assert large == pytest.approx(1, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(case=cases, m=sizes, n=sizes, k=sizes, grow=st.sampled_from("mnk"), to=sizes, launch=st.booleans())
def test_more_work_is_never_faster(
    case: tuple[str, str], m: int, n: int, k: int, grow: str, to: int, launch: bool
) -> None:
    kind, before = device(case[0]), {"m": m, "n": n, "k": k}
    after = before | {grow: max(to, before[grow])}
    first, second = (gemm_seconds(kind, case[1], **size, launch=launch) for size in (before, after))
    assert 0 < first <= second * ROUNDING
    assert np.isfinite(second)


@settings(max_examples=60, deadline=None)
@given(case=cases, m=sizes, n=sizes, k=sizes, bandwidth=st.floats(1, 4), peak=st.floats(1, 4))
def test_a_faster_device_is_never_slower(
    case: tuple[str, str], m: int, n: int, k: int, bandwidth: float, peak: float
) -> None:
    kind = device(case[0])
    faster = kind.model_copy(
        update={
            "hbm_bandwidth_bytes_per_s": kind.hbm_bandwidth_bytes_per_s * bandwidth,
            "flop_per_s": {dtype: rate * peak for dtype, rate in kind.flop_per_s.items()},
        }
    )
    assert gemm_seconds(faster, case[1], m, n, k) <= gemm_seconds(kind, case[1], m, n, k) * ROUNDING


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(["h100_sxm", "h200_sxm", "mi300x"]), m=sizes, n=sizes, k=sizes)
def test_a_launch_costs(name: str, m: int, n: int, k: int) -> None:
    inside, isolated = (gemm_seconds(device(name), "bf16", m, n, k, launch=launch) for launch in (False, True))
    assert inside <= isolated


def test_a_graph_reads_from_memory() -> None:
    """L40S, one token, 2048 x 4096: 17 MB that an isolated kernel finds in its L2 cache, above 864 GB/s."""
    l40s, matrix_bytes = device("l40s"), 2048 * 4096 * 2
    isolated, inside = (gemm_seconds(l40s, "bf16", 1, 2048, 4096, launch=launch) for launch in (True, False))
    assert isolated < 0.9 * matrix_bytes / l40s.hbm_bandwidth_bytes_per_s
    assert inside == pytest.approx(matrix_bytes / l40s.hbm_bandwidth_bytes_per_s, rel=0.01)


def test_arrays_broadcast() -> None:
    seconds = gemm_seconds(device("h100_sxm"), "fp8", np.arange(1, 6)[:, None], np.array([512, 1024]), 4096)
    assert seconds.shape == (5, 2)
    assert seconds[2, 1] == gemm_seconds(device("h100_sxm"), "fp8", 3, 1024, 4096)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf])
def test_sizes_that_are_none(bad: float) -> None:
    with pytest.raises(OptionError, match="k must be positive"):
        gemm_seconds(device("h100_sxm"), "bf16", 1, 1, [1, bad])


def test_unknown_format_says_which_there_are() -> None:
    with pytest.raises(OptionError, match="no quantisation 'fp3'; known: bf16"):
        gemm_seconds(device("h100_sxm"), "fp3", 1, 1, 1)


def test_residuals_must_fit_their_nodes() -> None:
    with pytest.raises(ValueError, match="one for each node"):
        Residuals(axes=((0.0, 1.0), (0.0, 1.0)), values=(0.0,) * 3)
    with pytest.raises(ValueError, match="ascending"):
        Residuals(axes=((1.0, 0.0),), values=(0.0, 0.0))
    with pytest.raises(DescriptionError, match=r"nothing\.json"):
        records("nothing", GemmFit)


def test_no_fit_at_all_for_a_rank_is_our_bug() -> None:
    with pytest.raises(ValueError, match="empty"):
        law_of(records("gemm", GemmFit), device("t4"), 1.0, lambda _: None)


def test_every_record_says_how_far_it_is_off() -> None:
    found = records("gemm", GemmFit)
    assert len({(fit.device, fit.quant) for fit in found}) == len(found) == 18
    for fit in found:
        assert device(fit.device).name == fit.device
        assert 0 < fit.error_in_sample <= fit.error_held_out


def test_the_catalogue_is_what_the_data_say(shared_data: Path) -> None:
    """A refit gives the catalogue's coefficients and errors, for one table of each kind of device."""
    known = {(fit.device, fit.quant): fit for fit in records("gemm", GemmFit)}
    for table in refit.tables(shared_data / "inference"):
        if (table.device.name, table.quant) not in (("a100_sxm", "bf16"), ("b200_sxm", "nvfp4")):
            continue
        kept, again = known[table.device.name, table.quant], table.fit()
        assert again.launch_s == pytest.approx(kept.launch_s, rel=0.01)
        assert again.compute_efficiency == pytest.approx(kept.compute_efficiency, rel=0.01)
        assert again.memory_efficiency == pytest.approx(kept.memory_efficiency, rel=0.01)
        np.testing.assert_allclose(again.residuals.values, kept.residuals.values, atol=0.01)
        seen = gemm_seconds(table.device, table.quant, table.m, table.n, table.k)
        assert mape(seen, table.seconds) == pytest.approx(kept.error_in_sample, abs=1e-3)
        assert table.held_out(table.n, table.k) == pytest.approx(kept.error_held_out, abs=2e-3)


def test_a_fit_carries_over_to_a_sibling(shared_data: Path) -> None:
    """H100's fit on H200's peaks: within 8 % of what was measured there, against 40 % and more of a plain roofline."""
    fit = next(fit for fit in records("gemm", GemmFit) if (fit.device, fit.quant) == ("h100_sxm", "bf16"))
    table = next(
        one for one in refit.tables(shared_data / "inference") if (one.device.name, one.quant) == ("h200_sxm", "bf16")
    )
    assert gemm_law(table.device, "bf16", [fit])[0].source == "calibrated"
    assert mape(table.predicted(fit.model_copy(update={"device": "h200_sxm"})), table.seconds) < 0.08
