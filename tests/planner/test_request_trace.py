"""Demand by size and burst statistics of traces: arithmetic by hand, properties, and the recorded traces."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.readers.request_traces import read_request_trace
from planner.request_trace import (
    MELANGE_INPUT,
    MELANGE_OUTPUT,
    RequestTrace,
    burst_quantiles,
    burst_ratios,
    headroom,
    peak_to_mean,
    period_bursts,
    poisson_quantiles,
    quantile_edges,
    share_above,
    shared_burst,
    to_demand,
    window_counts,
)


def make(arrival: list[float], inputs: list[int] | int = 10, outputs: list[int] | int = 10) -> RequestTrace:
    ones = np.ones(len(arrival), np.int64)
    return RequestTrace(
        arrival_s=np.array(arrival, np.float64),
        input_tokens=ones * inputs,
        output_tokens=ones * outputs,
    )


def rates(trace: RequestTrace, *args: tuple[int, ...], **how: object) -> dict[tuple[int, int], list[float]]:
    found = to_demand(trace, *args, **how)  # type: ignore[arg-type]
    sizes = zip(found.input_tokens.tolist(), found.output_tokens.tolist(), strict=True)
    return dict(zip(sizes, found.rates_per_s.tolist(), strict=True))


def test_requests_are_rounded_up_to_the_grid() -> None:
    """Five requests in 10 s: an edge belongs to its own bucket, one token more to the next."""
    trace = make([0, 1, 2, 3, 10], [25, 26, 100, 101, 25], [25, 25, 25, 26, 25])
    assert rates(trace) == {(25, 25): [0.2], (100, 25): [0.2], (250, 100): [0.1]}
    assert to_demand(trace).beyond_grid == 0


def test_beyond_the_grid_nothing_is_clipped() -> None:
    """Above 100 the edges go on with 200 and 400: 150 and 180 share a bucket of 180, 300 has its own."""
    trace = make([0, 1, 2, 3, 10], [50, 150, 180, 300, 100], [7, 7, 7, 7, 9])
    found = rates(trace, (100,), (7,))
    assert found == {(100, 7): [0.1], (180, 7): [0.2], (300, 7): [0.1], (100, 9): [0.1]}
    assert to_demand(trace, (100,), (7,)).beyond_grid == 4


def test_the_mean_of_a_bucket() -> None:
    trace = make([0, 1, 10], [30, 41, 200], [5, 5, 6])
    assert rates(trace, size="mean") == {(36, 5): [0.2], (200, 6): [0.1]}


def test_hourly_rates() -> None:
    """2.6 hours: 36 requests in the first hour, 0 in the second, 18 in the last 0.6."""
    trace = make([*np.linspace(0, 3599, 36), *np.linspace(7200, 9360, 18)])
    assert rates(trace, window_s=3600) == {(25, 25): [0.01, 0.0, pytest.approx(18 / 2160)]}
    shorter = make([*np.linspace(0, 3599, 36), *np.linspace(7200, 8800, 18)])
    assert rates(shorter, window_s=3600) == {(25, 25): [0.01, pytest.approx(18 / 5200)]}, "0.44 h join the hour before"
    assert peak_to_mean(trace) == pytest.approx(0.01 / (54 / 9360))


@given(st.data())
def test_demand_keeps_every_request(data: st.DataObject) -> None:
    number = data.draw(st.integers(2, 60))
    steps = data.draw(st.lists(st.floats(0.01, 4000), min_size=number - 1, max_size=number - 1))
    sizes = st.lists(st.integers(1, 300_000), min_size=number, max_size=number)
    trace = make([0.0, *np.cumsum(steps)], data.draw(sizes), data.draw(sizes))
    hourly = data.draw(st.sampled_from([None, 3600.0, 60.0]))
    edges = data.draw(st.sampled_from([(MELANGE_INPUT, MELANGE_OUTPUT), ((1,), (1,)), ((7, 90), (10**6,))]))
    for size in ("upper", "mean"):
        found = to_demand(trace, *edges, window_s=hourly, size=size)  # type: ignore[arg-type]
        assert found.requests.sum() == number
        assert len(set(zip(found.input_tokens, found.output_tokens, strict=True))) == len(found)
        length = trace.span_s if hourly is None else hourly
        covered = np.full(found.rates_per_s.shape[1], length)
        covered[-1] = trace.span_s - covered[:-1].sum()
        assert (found.rates_per_s * covered).sum() == pytest.approx(number)
        tokens = (found.requests * found.input_tokens).sum()
        assert tokens >= trace.input_tokens.sum(), "never fewer tokens than there were"


def test_quantile_edges() -> None:
    tokens = np.arange(1, 101)
    assert quantile_edges(tokens, 4) == (25, 50, 75, 100)
    assert quantile_edges(np.array([5, 5, 5, 9]), 4) == (5, 9)
    assert to_demand(make([0, 1], [5, 9]), (5, 9), (10,)).beyond_grid == 0
    with pytest.raises(ValueError, match="at least one edge"):
        quantile_edges(tokens, 0)


def test_bursts_by_hand() -> None:
    """Windows of 10 s with 1, 3, 2 requests and one after the last whole window: mean 2."""
    trace = make([0, 10, 11, 19.9, 20, 29, 30])
    assert window_counts(trace).tolist() == [1, 3, 2]
    assert burst_ratios(trace).tolist() == [0.5, 1.5, 1.0]
    assert burst_quantiles(trace, quantiles=(0.0, 0.5, 1.0)).tolist() == [0.5, 1.0, 1.5]
    assert headroom(trace, 1.0) == 0.5
    assert headroom(trace, 0.1) == 0.0, "never negative"
    assert share_above(trace, 0.0) == pytest.approx(1 / 3)
    assert share_above(trace, 0.5) == 0.0


def test_a_swing_of_the_hours_is_no_burst_of_an_hourly_plan() -> None:
    """360 requests evenly over an hour, then 720: bursts over the whole mean, none within an hour."""
    quiet, busy = np.arange(360) * 10.0, 3600 + np.arange(720) * 5.0
    trace = make([*quiet, *busy, 7200.0])
    assert headroom(trace, 0.99) == pytest.approx(2 / 1.5 - 1)
    assert headroom(trace, 0.99, within_s=3600) == pytest.approx(0.0)


@given(st.floats(0.05, 5_000), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=4))
def test_poisson_quantiles_are_those_of_the_definition(mean: float, quantiles: list[float]) -> None:
    for quantile, ratio in zip(quantiles, poisson_quantiles(mean, quantiles), strict=True):
        count = round(ratio * mean)

        def below(most: int) -> float:
            logs = (k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(most + 1))
            return math.fsum(map(math.exp, logs))

        assert below(count) >= quantile - 1e-9
        assert count == 0 or below(count - 1) < quantile + 1e-9


@pytest.mark.parametrize(
    ("name", "above", "p99", "poisson_p99"),
    [
        ("azure2023_conv", (0.45, 0.17, 0.05), 1.6, 1.3),
        ("azure2023_code", (0.32, 0.28, 0.26), 6.1, 1.5),
        ("mooncake_conversation", (0.51, 0.15, 0.03), 1.7, 1.4),
    ],
)
def test_bursts_of_recorded_traces(
    shared_data: Path, name: str, above: tuple[float, ...], p99: float, poisson_p99: float
) -> None:
    """Share of 10 s windows above 1, 1.25 and 1.5 times the mean, as measured independently on the same files."""
    trace = read_request_trace(shared_data / "fleet" / f"{name}.csv")
    for free, share in zip((0.0, 0.25, 0.5), above, strict=True):
        assert share_above(trace, free) == pytest.approx(share, abs=0.02)
    assert burst_quantiles(trace, quantiles=(0.99,))[0] == pytest.approx(p99, abs=0.06)
    assert poisson_quantiles(10 * trace.rate_per_s, (0.99,))[0] == pytest.approx(poisson_p99, abs=0.06)
    covered = headroom(trace, 0.95)
    assert share_above(trace, covered) == pytest.approx(0.05, abs=0.02)


def test_the_grid_reproduces_a_recorded_histogram(shared_data: Path) -> None:
    """Shares per bucket of Mélange's grid, counted by others on the same traces; theirs clip above the last edge."""
    with (shared_data / "fleet" / "size_hist.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["grid"] == "melange"]
    for name in ("azure2023_conv", "azure2023_code", "mooncake_conversation"):
        mine = [row for row in rows if row["dataset"] == name]
        trace = read_request_trace(shared_data / "fleet" / f"{name}.csv")
        clipped = to_demand(trace).beyond_grid / len(trace)
        assert clipped == pytest.approx(float(mine[0]["share_clipped_total"]), abs=1e-4)
        if clipped:
            continue
        wanted = {(int(row["input_le"]), int(row["output_le"])): float(row["share"]) for row in mine}
        found = rates(trace)
        assert found.keys() == wanted.keys()
        for size, share in wanted.items():
            assert found[size][0] / trace.rate_per_s == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: make([]),
        lambda: make([1.0, 2.0]),
        lambda: make([0.0, 2.0, 1.0]),
        lambda: make([0.0, math.nan]),
        lambda: make([0.0, 1.0], [1, 0]),
        lambda: make([0.0, 1.0]).rate_per_s + make([0.0]).rate_per_s,
        lambda: to_demand(make([0.0, 1.0]), (5, 5), (1,)),
        lambda: to_demand(make([0.0, 1.0]), (), (1,)),
        lambda: to_demand(make([0.0, 0.0])),
        lambda: to_demand(make([0.0, 1e9]), window_s=10),
        lambda: window_counts(make([0.0, 5.0])),
        lambda: window_counts(make([0.0, 5.0]), 0.0),
        lambda: poisson_quantiles(0.0),
        lambda: RequestTrace(
            arrival_s=np.zeros(1),
            input_tokens=np.array([3]),
            output_tokens=np.array([3]),
            prefix_tokens=np.array([4]),
        ),
    ],
)
def test_what_cannot_be(build: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()  # type: ignore[operator]


def test_bursts_of_each_period_by_hand() -> None:
    """Periods of 40 s, windows of 10 s: 1, 1, 1, 5 requests (mean 2, most 5), then one in each: no burst."""
    arrival = [0.0, 10.0, 20.0, 30.0, 31.0, 32.0, 33.0, 34.0, 40.0, 50.0, 60.0, 70.0, 80.0]
    found = period_bursts(make(arrival), 1.0, 10.0, 40.0)
    assert found.tolist() == [2.5, 1.0]
    assert period_bursts(make(arrival), 0.0, 10.0, 40.0).tolist() == [1.0, 1.0], "never below 1"
    (whole,) = period_bursts(make(arrival), 1.0, 10.0)
    assert whole == pytest.approx(5 / 1.5)


def test_what_independent_arrivals_do_not_explain() -> None:
    """The 95 % quantile of Poisson(100) is 117: 1.17 is all of it; of 1.50 sqrt(0.5^2 - 0.17^2) are left."""
    assert shared_burst(1.17, 100.0, 0.95) == pytest.approx(1.0)
    assert shared_burst(1.05, 100.0, 0.95) == pytest.approx(1.0)
    assert shared_burst(1.50, 100.0, 0.95) == pytest.approx(1 + math.sqrt(0.5**2 - 0.17**2))
    assert shared_burst([2.0, 1.0], [0.0, 0.0], 0.95).tolist() == [2.0, 1.0]


def test_thinned_swings_are_covered() -> None:
    """A stream whose rate swings by itself: a tenth of it stays within shared burst and Poisson quantile of a tenth."""
    rng = np.random.default_rng(5)
    rate = rng.choice([60.0, 100.0, 140.0], 20_000)
    whole = rng.poisson(rate)
    part = rng.binomial(whole, 0.1)
    burst = float(np.quantile(whole, 0.95) / whole.mean())
    shared = float(shared_burst(burst, whole.mean(), 0.95))
    room = shared + float(poisson_quantiles(part.mean(), (0.95,))[0]) - 1
    assert (part > room * part.mean()).mean() <= 0.05
    # One share for all would not do.
    assert (part > burst * part.mean()).mean() > 0.05
