"""Documents of `gpuplan import`, with what is to be told about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from cli.command import tell
from cli.flags import FlagReader
from cli.render import printable
from planner.descriptions.base import Description
from planner.descriptions.fleet import Offer
from planner.errors import DescriptionError, Finding
from planner.files import read_source, validate, write_text
from planner.readers.csv_table import MAX_FINDINGS
from planner.readers.price_tables import PriceFilter, read_price_table
from planner.readers.request_traces import read_request_trace
from planner.request_trace import (
    MELANGE_INPUT,
    MELANGE_OUTPUT,
    RequestTrace,
    TraceDemand,
    burst_quantiles,
    headroom,
    peak_to_mean,
    period_bursts,
    poisson_quantiles,
    quantile_edges,
    shared_burst,
    to_demand,
)
from planner.units import HOUR_S, TIME_UNITS, format_seconds
from planner.writers.fragments import to_json_lines, to_yaml

#: Most edges of a grid on one axis.
MAX_EDGES = 64
#: From this span on, rates are hourly unless asked otherwise.
HOURLY_FROM_S = 2 * HOUR_S
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Imported:
    """document : the part of an instance; comments : what is known about it; warnings : what a user should look at."""

    document: dict[str, Any]
    comments: Sequence[str]
    warnings: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFlags:
    """Flags of `gpuplan import trace`."""

    file: str
    model: str
    grid: str = "melange"
    size: Literal["upper", "mean"] = "upper"
    hourly: bool | None = None
    burst_quantile: float = 0.95
    window: str = "10s"
    burst_by: Literal["trace", "hour"] = "trace"
    pool_slack: bool = False
    scale: float = 1.0
    offers: str | None = None
    name: str | None = None
    ttft: str | None = None
    tpot: str | None = None


class OffersFile(Description):
    """What `import prices` writes."""

    offers: Annotated[tuple[Offer, ...], Field(min_length=1)]


def write(imported: Imported, output: str, as_json: bool) -> None:
    """The document to a file or stdout; what is to be told to stderr, where the file does not say it."""
    is_json = as_json or Path(output).suffix.lower() == ".json"
    text = to_json_lines(imported.document) if is_json else to_yaml(imported.document, imported.comments)
    write_text(output, text)
    for told in (*(imported.comments if is_json or output != "-" else ()), *imported.warnings):
        tell(printable(told))


def import_prices(file: str, only: PriceFilter, skip_bad: bool) -> Imported:
    """Offers of a price list; DescriptionError for a bad one, OptionError for a GPU that the catalogue lacks."""
    table = read_price_table(file, only, skip_bad=skip_bad)
    dates = sorted({offer.as_of for offer in table.offers if offer.as_of})
    found = f"{len(table.offers)} offers from {file}"
    if dates:
        found += f", prices of {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "")
    comments = [found, "list prices in USD an hour of an instance; max_count is not known to a price list"]
    if table.skipped:
        comments.append(f"{len(table.skipped)} problems in rows that were left out")
    warnings = [*_listed(table.notes), *(f"left out: {one}" for one in _listed(table.skipped))]
    return Imported({"offers": [offer.entry() for offer in table.offers]}, comments, warnings)


def _listed(findings: Sequence[Finding]) -> list[str]:
    more = [f"and {len(findings) - MAX_FINDINGS} more"] if len(findings) > MAX_FINDINGS else []
    return [*map(str, findings[:MAX_FINDINGS]), *more]


def import_trace(flags: TraceFlags) -> Imported:
    """Demand and headroom of a trace; with offers, a whole instance. DescriptionError for bad flags and files."""
    reader = FlagReader()
    slo = {
        f"{name}_s": reader.quantity(f"--{name}", text, TIME_UNITS, "a time in seconds")
        for name, text in (("ttft", flags.ttft), ("tpot", flags.tpot))
        if text is not None
    }
    window_s = reader.quantity("--window", flags.window, TIME_UNITS, "a time in seconds")
    if not 0 < flags.burst_quantile < 1:
        reader.tell("--burst-quantile", f"is {flags.burst_quantile:g}, but must be between 0 and 1")
    if flags.pool_slack and flags.burst_quantile < 0.5:
        reader.tell("--burst-quantile", f"is {flags.burst_quantile:g}, but must be at least 0.5 with --pool-slack")
    if not 0 < flags.scale <= 1e9:
        reader.tell("--scale", f"is {flags.scale:g}, but must be above 0 and up to 1e9")
    num_edges = _edges_asked(reader, flags.grid)
    for flag, text in (("--model", flags.model), ("--name", flags.name)):
        if text is not None and (not text.strip() or len(text) > 200 or not text.isprintable()):
            reader.tell(flag, "must be a name of 1 to 200 characters")
    if flags.name is not None and flags.offers is None:
        reader.tell("--name", "names an instance, which is written with --offers")
    offers = None if flags.offers is None else reader.take("--offers", lambda: _offers(str(flags.offers)))
    reader.refuse()
    assert window_s is not None

    trace = read_request_trace(flags.file)
    hourly = trace.span_s > HOURLY_FROM_S if flags.hourly is None else flags.hourly
    period_s = HOUR_S if hourly else None
    try:
        grid: tuple[tuple[int, ...], tuple[int, ...]] = MELANGE_INPUT, MELANGE_OUTPUT
        if num_edges is not None:
            grid = (
                quantile_edges(trace.input_tokens, num_edges[0]),
                quantile_edges(trace.output_tokens, num_edges[1]),
            )
        demand = to_demand(trace, *grid, window_s=period_s, size=flags.size)
        if flags.burst_by == "hour":
            bursts = period_bursts(trace, flags.burst_quantile, window_s, period_s)
        else:
            bursts = np.array([1.0 + headroom(trace, flags.burst_quantile, window_s, period_s)])
        if flags.pool_slack:
            rates = demand.rates_per_s.sum(axis=0)
            at = rates if flags.burst_by == "hour" else trace.rate_per_s
            bursts = shared_burst(bursts, at * window_s, flags.burst_quantile)
        comments = [*_described(trace, demand, flags, grid), *_bursts(trace, flags, window_s, period_s)]
    except ValueError as error:
        raise DescriptionError.single(flags.file, str(error)) from None
    part: dict[str, Any] = {"demand": list(_entries(demand, flags))}
    told = [round(burst, 4) for burst in bursts.tolist()]
    if flags.burst_by == "trace":
        part["headroom"] = round(told[0] - 1, 4)
    else:
        part["demand"] = [row | {"burst": told if hourly else told[0]} for row in part["demand"]]
    if flags.pool_slack:
        part["pool_slack"] = {"window_s": window_s, "quantile": flags.burst_quantile}
    part |= {"slo": slo} if slo else {}
    warnings = []
    num_windows = int(trace.span_s / window_s)
    if (1 - flags.burst_quantile) * num_windows < 1:
        warnings.append(f"{num_windows} windows are too few to tell their quantile {flags.burst_quantile:g}")
    if offers is None:
        return Imported(part, comments, warnings)
    if not slo:
        warnings.append("no slo is written: add one, or give --ttft and --tpot")
    name = flags.name or (Path(flags.file).stem if flags.file != "-" else "trace")
    models = [{"name": flags.model, "model": flags.model}]
    head = {"problem": "fleet", "name": printable(name)[:200], "offers": offers, "models": models}
    return Imported(head | part, comments, warnings)


def _edges_asked(reader: FlagReader, grid: str) -> tuple[int, int] | None:
    """Edges on each axis; None for Mélange's."""
    if grid == "quantile":
        return len(MELANGE_INPUT), len(MELANGE_OUTPUT)
    if grid != "melange":
        if grid.isascii() and grid.isdecimal() and len(grid) < 4 and 1 <= int(grid) <= MAX_EDGES:
            return int(grid), int(grid)
        reader.tell("--grid", f"is {grid[:40]!r}, but must be melange, quantile, or a number from 1 to {MAX_EDGES}")
    return None


def _offers(path: str) -> list[Any]:
    source = read_source(path)
    validate(source, OffersFile)
    # As the user wrote them, units and all.
    offers: list[Any] = source.value["offers"]
    return offers


def _entries(demand: TraceDemand, flags: TraceFlags) -> Iterator[dict[str, Any]]:
    for inputs, outputs, rates in zip(
        demand.input_tokens.tolist(), demand.output_tokens.tolist(), demand.rates_per_s.tolist(), strict=True
    ):
        scaled = [float(f"{flags.scale * rate:.6g}") for rate in rates]
        rate = {"rate_per_s": scaled[0]} if demand.period_s is None else {"hourly": scaled}
        yield {"model": flags.model, "input_tokens": inputs, "output_tokens": outputs} | rate


def _described(
    trace: RequestTrace, demand: TraceDemand, flags: TraceFlags, grid: tuple[Sequence[int], Sequence[int]]
) -> Iterator[str]:
    yield f"demand of {trace.source}"
    span = f"{trace.span_s / HOUR_S:.4g} h" if trace.span_s >= HOUR_S else format_seconds(trace.span_s)
    text = f"{len(trace)} requests over {span}, {trace.rate_per_s:.4g} a second on average"
    if trace.span_s > HOURLY_FROM_S:
        text += f", {peak_to_mean(trace):.3g} times that in the busiest hour"
    yield text
    if flags.scale != 1:
        yield f"rates are {flags.scale:g} times those; the headroom is the trace's, and fewer requests swing more"
    if trace.num_failed:
        yield f"{trace.num_failed} requests without output failed and are left out"
    over = [
        float((demand.requests * sizes).sum() / tokens.sum())
        for sizes, tokens in (
            (demand.input_tokens, trace.input_tokens),
            (demand.output_tokens, trace.output_tokens),
        )
    ]
    rule = "the upper edge" if flags.size == "upper" else "the mean"
    yield f"{len(demand)} sizes, {rule} of each: {over[0]:.3g} times the input and {over[1]:.3g} times the output"
    if demand.beyond_grid:
        share = demand.beyond_grid / len(trace)
        yield (
            f"{demand.beyond_grid} requests ({share:.1%}) are beyond the grid of {grid[0][-1]} input and {grid[1][-1]} "
            "output tokens: in buckets of their own largest size"
        )
    if trace.prefix_tokens is not None:
        shared = float(trace.prefix_tokens.sum() / trace.input_tokens.sum())
        yield f"{shared:.1%} of the input tokens came before in the trace, as a prefix; they are not taken off"


def _bursts(trace: RequestTrace, flags: TraceFlags, window_s: float, period_s: float | None) -> Iterator[str]:
    seen = burst_quantiles(trace, window_s, QUANTILES, period_s)
    independent = poisson_quantiles(trace.rate_per_s * window_s, QUANTILES)
    names = ", ".join(f"p{100 * quantile:g}" for quantile in QUANTILES)
    mean = "mean" if period_s is None else "mean of their hour"
    yield (
        f"rate of {format_seconds(window_s)} windows over the {mean} ({names}): {_ratios(seen)}; "
        f"independent arrivals: {_ratios(independent)}"
    )
    what = "headroom covers" if flags.burst_by == "trace" else "bursts cover"
    text = f"the {what} {100 * flags.burst_quantile:g} % of these windows"
    yield text + (", with the slack that pool_slack adds to each pool" if flags.pool_slack else "")


def _ratios(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
