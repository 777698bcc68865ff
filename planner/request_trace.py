"""RequestTrace: who asked when for how many tokens; its demand by size of request, and how bursty it is.

A plan is made for rates, and requests do not come at a rate. So a trace gives both: the mean rate of every size (or
one for each hour), and how far the rate of short windows rises above that mean, which is the headroom to keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from planner.units import HOUR_S
from planner.workload import FloatArray, IntArray, read_only

#: Sizes of Mélange's profiles, tokens. Source: tyler-griggs/melange-release @d46ab43, the example's workload.
MELANGE_INPUT = (25, 100, 250, 500, 1000, 2000, 4000, 8000, 12000, 16000)
MELANGE_OUTPUT = (25, 100, 250, 500, 1000, 2000)
#: Windows in which bursts are counted: about what a queue in front of a replica can carry over.
WINDOW_S = 10.0
#: Most rates of one demand: what a YAML instance can hold.
MAX_RATES = 1_000_000
#: Most windows that are counted.
MAX_WINDOWS = 50_000_000

Size = Literal["upper", "mean"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RequestTrace:
    """Requests in the order of their arrival, [n] each.

    arrival_s : float64, ascending from 0. input_tokens, output_tokens : int64, at least 1.
    prefix_tokens : int64 or None, leading prompt tokens that came before in the trace; at most input_tokens.
    source : file and format, for messages. num_failed : requests without a single output token, which were left out.
    """

    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    prefix_tokens: IntArray | None = None
    source: str = ""
    num_failed: int = 0

    def __post_init__(self) -> None:
        arrival = np.array(self.arrival_s, np.float64)
        if arrival.ndim != 1 or not len(arrival):
            raise ValueError(f"a trace needs at least one request, got shape {arrival.shape}")
        if arrival[0] != 0 or not np.isfinite(arrival).all() or (np.diff(arrival) < 0).any():
            raise ValueError("arrival_s must ascend from 0 and be finite")
        object.__setattr__(self, "arrival_s", arrival)
        for name in ("input_tokens", "output_tokens", "prefix_tokens"):
            given = getattr(self, name)
            if given is None:
                continue
            tokens = np.array(given, np.int64)
            if tokens.shape != arrival.shape or tokens.min() < (name != "prefix_tokens"):
                raise ValueError(f"{name} must be [{len(arrival)}] token counts, at least 1")
            read_only(tokens)
            object.__setattr__(self, name, tokens)
        if self.prefix_tokens is not None and (self.prefix_tokens > self.input_tokens).any():
            raise ValueError("prefix_tokens must be a part of input_tokens")
        read_only(arrival)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Time from the first arrival to the last."""
        return float(self.arrival_s[-1])

    @property
    def rate_per_s(self) -> float:
        """Mean rate: requests over the span. ValueError when all arrive at once."""
        if self.span_s <= 0:
            raise ValueError("all requests arrive at once: that is no rate")
        return len(self) / self.span_s


@dataclass(frozen=True, slots=True, eq=False)
class Periods:
    """Equal periods from the first arrival on. index : of each request, [n]; covered_s : of each period, [periods].

    A last period that the trace covers less than half joins the one before, so no request is lost and no rate is
    taken of a few seconds.
    """

    index: IntArray
    covered_s: FloatArray

    @classmethod
    def of(cls, times_s: FloatArray, span_s: float, period_s: float | None) -> Periods:
        """Periods of `period_s` (None: the whole span is one). ValueError for a span or period that is not above 0."""
        length = span_s if period_s is None else period_s
        if not 0 < length < math.inf or span_s <= 0:
            raise ValueError(f"periods need a length above 0, got {length:g} s of a span of {span_s:g} s")
        whole = int(span_s // length)
        rest = span_s - whole * length
        num = max(1, whole + (rest >= length / 2))
        if num > MAX_WINDOWS:
            raise ValueError(f"{num} periods are too many; choose longer ones")
        covered = np.full(num, length)
        covered[-1] = span_s - (num - 1) * length
        return cls(np.minimum(times_s // length, num - 1).astype(np.int64), covered)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TraceDemand:
    """Rates by size of request.

    input_tokens, output_tokens : int64 [buckets], the size that stands for a bucket; all pairs differ.
    requests : int64 [buckets], counted. rates_per_s : float64 [buckets, periods].
    period_s : length of a period, None when the one period is the whole trace.
    beyond_grid : requests above the last edge of the grid, in buckets of their own.
    """

    input_tokens: IntArray
    output_tokens: IntArray
    requests: IntArray
    rates_per_s: FloatArray
    period_s: float | None
    beyond_grid: int

    def __len__(self) -> int:
        return len(self.requests)


def to_demand(
    trace: RequestTrace,
    edges_input: Sequence[int] = MELANGE_INPUT,
    edges_output: Sequence[int] = MELANGE_OUTPUT,
    *,
    window_s: float | None = None,
    size: Size = "upper",
) -> TraceDemand:
    """Count the requests on a grid of sizes; buckets without a request are left out.

    edges_input, edges_output : ascending token counts; a request belongs to the first edge that it does not exceed.
    Above the last edge the edges go on doubling, and such a bucket's size is the largest that is in it: nothing is
    clipped to the grid. window_s : None for one mean rate, 3600 for hourly rates (see Periods).
    size : what stands for a bucket, `upper` its edge (no request is larger), `mean` the mean of its requests, up to
    the next whole token.

    Raises ValueError: edges that do not ascend from 1, more than MAX_RATES rates, a trace without a span.
    """
    row, input_beyond = _bins(trace.input_tokens, edges_input)
    column, output_beyond = _bins(trace.output_tokens, edges_output)
    width = int(column.max()) + 1
    cells, bucket, requests = np.unique(row * width + column, return_inverse=True, return_counts=True)
    sizes = []
    for tokens, edges, bins in (
        (trace.input_tokens, edges_input, cells // width),
        (trace.output_tokens, edges_output, cells % width),
    ):
        if size == "mean":
            sizes.append(np.ceil(np.bincount(bucket, tokens) / requests).astype(np.int64))
            continue
        largest = np.zeros(len(cells), np.int64)
        np.maximum.at(largest, bucket, tokens)
        known = np.array(edges)
        sizes.append(np.where(bins < len(known), known[np.minimum(bins, len(known) - 1)], largest))
    periods = Periods.of(trace.arrival_s, trace.span_s, window_s)
    num = len(periods.covered_s)
    if len(cells) * num > MAX_RATES:
        raise ValueError(f"{len(cells)} sizes x {num} periods are more than {MAX_RATES} rates; choose a coarser grid")
    counts = np.bincount(bucket * num + periods.index, minlength=len(cells) * num).reshape(len(cells), num)
    return TraceDemand(
        input_tokens=sizes[0],
        output_tokens=sizes[1],
        requests=requests,
        rates_per_s=counts / periods.covered_s,
        period_s=window_s,
        beyond_grid=int((input_beyond | output_beyond).sum()),
    )


def _bins(tokens: IntArray, edges: Sequence[int]) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """The edge of each request, [n], with edges that double above the last; and which requests are above it, [n]."""
    known = [int(edge) for edge in edges]
    if not known or known[0] < 1 or any(low >= high for low, high in pairwise(known)):
        raise ValueError(f"edges of a grid must ascend from at least 1, got {list(edges)[:20]}")
    last, most = known[-1], int(tokens.max())
    while known[-1] < most:
        known.append(2 * known[-1])
    return np.searchsorted(np.array(known), tokens).astype(np.int64), tokens > last


def quantile_edges(tokens: IntArray, num: int) -> tuple[int, ...]:
    """At most `num` edges with equally many requests between them; the last is the largest size there is."""
    if num < 1:
        raise ValueError(f"a grid needs at least one edge, got {num}")
    shares = np.arange(1, num + 1) / num
    found = np.quantile(tokens, shares, method="inverted_cdf")
    return tuple(int(edge) for edge in np.unique(found))


def window_counts(trace: RequestTrace, window_s: float = WINDOW_S) -> IntArray:
    """Requests in each whole window from the first arrival on, [windows]; the rest after the last is left out.

    ValueError when the trace is shorter than a window, or has more than MAX_WINDOWS.
    """
    if not 0 < window_s < math.inf:
        raise ValueError(f"a window needs a length above 0, got {window_s:g} s")
    num = int(trace.span_s // window_s)
    if not 1 <= num <= MAX_WINDOWS:
        raise ValueError(f"{trace.span_s:g} s hold {num} windows of {window_s:g} s; needs 1 to {MAX_WINDOWS}")
    index = (trace.arrival_s // window_s).astype(np.int64)
    return np.bincount(index[index < num], minlength=num)


def burst_ratios(trace: RequestTrace, window_s: float = WINDOW_S, within_s: float | None = None) -> FloatArray:
    """Rate of each window over the mean, [windows]; over the mean of its own period of `within_s` where that is given.

    With `within_s` the swing from hour to hour, which hourly rates hold already, is not counted as a burst; windows
    of periods without any request are left out. ValueError as for window_counts.
    """
    counts = window_counts(trace, window_s)
    if within_s is None:
        return np.asarray(counts / counts.mean(), np.float64)
    starts = np.arange(len(counts), dtype=np.float64) * window_s
    period = Periods.of(starts, trace.span_s, max(within_s, window_s)).index
    means = np.bincount(period, counts) / np.maximum(1, np.bincount(period))
    known = means[period] > 0
    return np.asarray(counts[known] / means[period][known], np.float64)


def burst_quantiles(
    trace: RequestTrace,
    window_s: float = WINDOW_S,
    quantiles: Sequence[float] = (0.5, 0.9, 0.99),
    within_s: float | None = None,
) -> FloatArray:
    """Quantiles of the rate in windows over the mean rate, in the order asked; arguments as for burst_ratios."""
    return np.asarray(np.quantile(burst_ratios(trace, window_s, within_s), list(quantiles)), np.float64)


def headroom(trace: RequestTrace, quantile: float, window_s: float = WINDOW_S, within_s: float | None = None) -> float:
    """Share of the mean rate to keep free so that this share of windows stays within capacity; at least 0."""
    return max(0.0, float(burst_quantiles(trace, window_s, (quantile,), within_s)[0]) - 1.0)


def period_bursts(
    trace: RequestTrace, quantile: float, window_s: float = WINDOW_S, period_s: float | None = None
) -> FloatArray:
    """The quantile of the rates of each period's windows over the period's mean rate, [periods]; at least 1.

    1 where a period has no request. The periods are those of `to_demand`. ValueError as for window_counts.
    """
    counts = window_counts(trace, window_s)
    starts = np.arange(len(counts), dtype=np.float64) * window_s
    periods = Periods.of(starts, trace.span_s, period_s)
    found = np.ones(len(periods.covered_s))
    for place in range(len(found)):
        own = counts[periods.index == place]
        if own.any():
            found[place] = max(1.0, float(np.quantile(own, quantile)) / float(own.mean()))
    return found


def shared_burst(burst: npt.ArrayLike, counts: npt.ArrayLike, quantile: float) -> FloatArray:
    """What is left of bursts (as multiples of the mean) that windows of so many independent requests do not explain.

    Excesses over the mean add up in squares, as standard deviations do: a stream that swings of itself, and arrivals
    that are independent given its rate. What is left stays in every random part of the stream; the other does not.
    """
    excess = np.asarray(burst, np.float64) - 1.0
    mean = np.broadcast_to(np.asarray(counts, np.float64), excess.shape)
    independent = [
        max(0.0, float(poisson_quantiles(one, (quantile,))[0]) - 1.0) if one > 0 else 0.0
        for one in mean.ravel().tolist()
    ]
    own = excess**2 - np.reshape(independent, excess.shape) ** 2
    return np.asarray(1.0 + np.sqrt(np.maximum(0.0, own)), np.float64)


def share_above(trace: RequestTrace, headroom: float, window_s: float = WINDOW_S) -> float:
    """Share of windows whose rate is above mean x (1 + headroom): those that a fleet so sized is too small for."""
    return float((burst_ratios(trace, window_s) > 1.0 + headroom).mean())


def peak_to_mean(trace: RequestTrace, period_s: float = HOUR_S) -> float:
    """Highest rate of a period over the mean rate."""
    periods = Periods.of(trace.arrival_s, trace.span_s, period_s)
    rates = np.bincount(periods.index, minlength=len(periods.covered_s)) / periods.covered_s
    return float(rates.max() / trace.rate_per_s)


def poisson_quantiles(mean: float, quantiles: Sequence[float] = (0.5, 0.9, 0.99)) -> FloatArray:
    """Quantiles of a Poisson count over its mean: burst_quantiles of independent arrivals, `mean` in a window."""
    if not 0 < mean < math.inf:
        raise ValueError(f"a mean must be above 0, got {mean:g}")
    # 12 standard deviations to both sides hold all but 1e-30; the floor is for small means.
    low = max(0, int(mean - 12 * math.sqrt(mean)))
    counts = np.arange(low, int(mean + 12 * math.sqrt(mean)) + 40)
    steps = np.log(mean) - np.log(np.maximum(1, counts[1:]))
    start = low * math.log(mean) - mean - math.lgamma(low + 1)
    reached = np.cumsum(np.exp(start + np.concatenate(([0.0], np.cumsum(steps)))))
    found = np.searchsorted(reached, np.array(quantiles, np.float64))
    return np.asarray(counts[np.minimum(found, len(counts) - 1)] / mean, np.float64)
