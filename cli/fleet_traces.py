"""Request traces in `gpuplan fleet`: the least that one can cost, and a plan that has to serve one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.command import ExitCode, tell
from cli.render import console, number, printable, table
from cli.solving import print_json
from formulations.gpu_fleet.explain import impossible_buckets
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.replay import Replayed, replay
from formulations.gpu_fleet.trace_bound import WindowBound, window_bounds
from planner import catalog
from planner.descriptions.fleet import FleetInstance
from planner.errors import DescriptionError, OptionError
from planner.files import SourceText, validate, write_text
from planner.fleet_plan import FleetPlan
from planner.overlay import Flag, over
from planner.plan import FleetDocument
from planner.readers.request_traces import read_request_trace
from planner.request_trace import MELANGE_INPUT, MELANGE_OUTPUT, Periods, RequestTrace, to_demand
from planner.units import HOUR_S, TIME_UNITS, format_seconds, parse_quantity

#: Windows that are printed; --json and -o have all.
MOST_WINDOWS = 24
#: Keys that say nothing of a trace by itself.
OF_ONE_FLEET = ("current", "max_changes", "change_cost_usd_per_hour", "headroom", "pool_slack")
#: Most windows: as many as an instance holds hours.
MAX_WINDOWS = 8784


def read_traces(source: SourceText, given: Sequence[str]) -> dict[str, RequestTrace]:
    """`[NAME=]TRACE` by model name; the name may be left out where the instance has one model."""
    value = source.value if isinstance(source.value, dict) else {}
    models = [one["name"] for one in value.get("models") or () if isinstance(one, dict) and "name" in one]
    found: dict[str, RequestTrace] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or name not in models:
            if len(models) != 1:
                known = ", ".join(map(str, models))
                raise OptionError(f"whose requests are {text!r}? Write NAME=TRACE, with one of: {known}")
            name, path = models[0], text
        if name in found:
            raise OptionError(f"two traces are given for {name!r}")
        found[name] = read_request_trace(path)
    return found


def bounds(source: SourceText, given: Sequence[str], window: str, as_json: bool, output: str | None) -> ExitCode:
    """The least cost and GPUs of each window of the traces."""
    if output not in (None, "-") and Path(str(output)).suffix.lower() != ".csv":
        raise OptionError(f"-o of --bound-trace writes a .csv file (got {output!r}); --json prints rows")
    try:
        window_s = parse_quantity(window, TIME_UNITS, "a time in seconds")
    except ValueError as error:
        raise OptionError(f"--window: {error}") from None
    traces = read_traces(source, given)
    problem, covered_s = _windows(source, traces, window_s)
    hopeless = [problem.bucket_name(bucket) for bucket in impossible_buckets(problem)]
    if hopeless:
        for name in hopeless:
            tell(f"no offer serves {printable(name)} within the SLO")
        return ExitCode.INFEASIBLE
    found = window_bounds(problem)
    # Rates that never change are one period, whatever the number of windows.
    found = found * (len(covered_s) // len(found))
    if output not in (None, "-"):
        write_text(str(output), _csv(found, window_s))
    summary = _summary(found, covered_s)
    if as_json or output == "-":
        print_json({"window_s": window_s, "windows": _rows(found, window_s), **summary})
    else:
        _print(problem.name, found, window_s, summary, output)
    return ExitCode.INFEASIBLE if any(one.usd_per_hour is None for one in found) else ExitCode.OK


def _windows(
    source: SourceText, traces: Mapping[str, RequestTrace], window_s: float
) -> tuple[FleetProblem, list[float]]:
    """The instance with the traces' windows for hours, and nothing in it that is of one fleet; seconds of each."""
    value = {key: what for key, what in source.value.items() if key not in OF_ONE_FLEET}
    profiles = [row for row in value.get("profiles") or () if isinstance(row, dict)]
    demand: list[dict[str, Any]] = []
    for name, trace in traces.items():
        own = [row for row in profiles if row.get("model") == name]
        grid: tuple[Sequence[int], Sequence[int]] = MELANGE_INPUT, MELANGE_OUTPUT
        if own:
            grid = tuple(sorted({row[what] for row in own}) for what in ("input_tokens", "output_tokens"))  # type: ignore[assignment]
        try:
            counted = to_demand(trace, *grid, window_s=window_s)
        except ValueError as error:
            raise DescriptionError.single(trace.source, str(error)) from None
        demand += [
            {"model": name, "input_tokens": inputs, "output_tokens": outputs, "hourly": rates}
            for inputs, outputs, rates in zip(
                counted.input_tokens.tolist(),
                counted.output_tokens.tolist(),
                counted.rates_per_s.tolist(),
                strict=True,
            )
        ]
    lengths = {len(row["hourly"]) for row in demand}
    if len(lengths) > 1:
        raise OptionError(f"the traces have {' and '.join(map(str, sorted(lengths)))} windows: cut them to one length")
    if max(lengths) > MAX_WINDOWS:
        raise OptionError(f"{max(lengths)} windows are too many, {MAX_WINDOWS} at most: choose a longer --window")
    bare = SourceText(source.path, source.text, value, source.base_dir)
    changed = over(bare, {("demand",): Flag("--bound-trace", demand)})
    # The last window may be cut short: a cost that holds for all traces counts the shortest.
    shortest = min(traces.values(), key=lambda trace: trace.span_s)
    covered = Periods.of(shortest.arrival_s, shortest.span_s, window_s).covered_s.tolist()
    return read_problem(validate(changed, FleetInstance), changed), covered


def _rows(found: Sequence[WindowBound], window_s: float) -> list[dict[str, float | int | None]]:
    return [
        {
            "start_s": place * window_s,
            "rate_per_s": one.rate_per_s,
            "usd_per_hour_at_least": one.usd_per_hour,
            "gpus_at_least": one.gpus,
        }
        for place, one in enumerate(found)
    ]


def _csv(found: Sequence[WindowBound], window_s: float) -> str:
    text = io.StringIO()
    rows = _rows(found, window_s)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if cell is None else cell for key, cell in row.items()} for row in rows)
    return text.getvalue()


def _summary(found: Sequence[WindowBound], covered_s: Sequence[float]) -> dict[str, float | None]:
    """Peak, mean and sum over the trace; None where a window has no fleet."""
    costs = [one.usd_per_hour for one in found if one.usd_per_hour is not None]
    gpus = [one.gpus for one in found if one.gpus is not None]
    if len(costs) < len(found):
        return {"usd": None, "usd_per_hour_mean": None, "usd_per_hour_peak": None, "gpus_mean": None, "gpus_peak": None}
    usd = sum(cost * seconds for cost, seconds in zip(costs, covered_s, strict=True)) / HOUR_S
    return {
        "usd": usd,
        "usd_per_hour_mean": usd / (sum(covered_s) / HOUR_S),
        "usd_per_hour_peak": max(costs),
        "gpus_mean": sum(gpus) / len(gpus),
        "gpus_peak": float(max(gpus)),
    }


def _print(
    name: str, found: Sequence[WindowBound], window_s: float, summary: Mapping[str, float | None], output: str | None
) -> None:
    out = console()
    windows = f"{len(found)} windows of {format_seconds(window_s)}"
    out.print(f"{printable(name)}: the least that any fleet needs, {windows}", style="bold", soft_wrap=True)
    rows = [
        (
            _clock(place * window_s),
            number(one.rate_per_s),
            "no fleet" if one.usd_per_hour is None else number(one.usd_per_hour),
            "-" if one.gpus is None else str(one.gpus),
        )
        for place, one in enumerate(found[:MOST_WINDOWS])
    ]
    out.print(table(("from", "requests/s", "USD/hour at least", "GPUs at least"), rows))
    if len(found) > MOST_WINDOWS:
        out.print(f"  {len(found) - MOST_WINDOWS} more windows; --json and -o list all", soft_wrap=True)
    if summary["usd"] is not None:
        out.print(f"  {'cost':<13} {number(summary['usd'])} USD for the trace at least", soft_wrap=True)
        for label, key in (("USD/hour", "usd_per_hour"), ("GPUs", "gpus")):
            mean, peak = number(summary[f"{key}_mean"]), number(summary[f"{key}_peak"])
            out.print(f"  {label:<13} {mean} mean, {peak} peak", soft_wrap=True)
    out.print(
        f"  {'assumptions':<13} sizes count as the edge above them; every window for itself, counts may be fractions",
        soft_wrap=True,
    )
    if output not in (None, "-"):
        out.print(f"  {'written':<13} {output}", soft_wrap=True)


def _clock(seconds: float) -> str:
    """3660 -> '1:01:00'."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def simulation(source: SourceText, given: Sequence[str]) -> Callable[[FleetProblem, FleetDocument], FleetDocument]:
    """What to do with a document once it is solved; what cannot be simulated is refused before that."""
    instance = validate(source, FleetInstance)
    if instance.profiles:
        raise OptionError("--simulate needs step times, and profiles give rates alone: leave them out")
    traces = read_traces(source, given)
    specs = {}
    for model in instance.models:
        name = str(model.model)
        specs[model.name] = catalog.model(source.base_dir / name if name.endswith(".json") else name)

    def finish(problem: FleetProblem, document: FleetDocument) -> FleetDocument:
        assert isinstance(document.plan, FleetPlan)
        assert document.verdict is not None
        found = replay(instance, specs, problem, document.plan, traces)
        verdict = document.verdict
        changes = {
            "metrics": (*verdict.metrics, *(metric for one in found for metric in one.metrics())),
            "violations": (*verdict.violations, *(broken for one in found for broken in one.violations())),
            "assumptions": (*verdict.assumptions, *map(_said, found)),
        }
        judged = type(verdict)(**{**dict(verdict), **changes})
        return document.model_copy(update={"verdict": judged})

    return finish


def _said(one: Replayed) -> str:
    text = (
        f"simulated on {len(one.ttft_s)} requests to {one.model}, {one.rate_per_s:.4g} a second"
        f" ({one.planned_per_s:.4g} planned)"
    )
    return text + (f", {one.beyond} of them larger than any planned size" if one.beyond else "")
