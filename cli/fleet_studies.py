"""What `gpuplan fleet` does with an instance: a plan, explained and simulated where asked, or a sweep."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from cli import fleet_traces as traces
from cli.command import ExitCode
from cli.progress import watched
from cli.render import console, number, percent, printable, table
from cli.solving import Delivery, print_json, run_plan
from formulations.gpu_fleet.insight import explain_plan
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.sweep import Point, grid, scaled
from formulations.gpu_fleet.sweep import sweep as solve_points
from formulations.outcome import SolveOptions
from formulations.planning import problem_of
from planner.errors import OptionError
from planner.files import SourceText, write_text
from planner.fleet_plan import FleetPlan
from planner.overlay import Flag, over
from planner.plan import FleetDocument
from planner.units import TIME_UNITS, parse_quantity

#: Points of a sweep: 1..4096 then goes by powers of two.
POINTS = 13
#: What can be swept, with its unit; whether points lie geometrically.
SWEEPS = {"rate": ("requests/s", True), "headroom": ("share", False), "ttft": ("s", True), "tpot": ("s", True)}
#: Characters of the longest bar of the curve.
BAR = 30


def plan(
    source: SourceText, options: SolveOptions, delivery: Delivery, explain: bool, simulate: Sequence[str]
) -> ExitCode:
    """One plan, explained and simulated where asked."""
    problem: FleetProblem = problem_of(source)
    replay_on = traces.simulation(source, simulate) if simulate else None

    def finish(document: FleetDocument) -> FleetDocument:
        if document.plan is None:
            return document
        if explain:
            document = _explained(problem, document, options)
        return document if replay_on is None else replay_on(problem, document)

    return run_plan(problem, options, delivery, finish)


def _explained(problem: FleetProblem, document: FleetDocument, options: SolveOptions) -> FleetDocument:
    assert isinstance(document.plan, FleetPlan)
    assert document.outcome.objective is not None
    insight = explain_plan(problem, document.plan, document.outcome.objective, document.outcome.bound, options)
    return document.model_copy(update={"plan": document.plan.model_copy(update={"insight": insight})})


def sweep(source: SourceText, options: SolveOptions, asked: str, delivery: Delivery, output: str | None) -> ExitCode:
    """Cost against one number of the instance, as a table, JSON rows or a CSV file."""
    if output not in (None, "-") and Path(str(output)).suffix.lower() != ".csv":
        raise OptionError(f"-o of a sweep writes a .csv file (got {output!r}); --json prints rows")
    what, values = _asked(asked)
    problem_at = _problem_at(source, what)
    with watched(delivery.quiet) as on_progress:
        points = solve_points(values, problem_at, options, on_progress)
    if output not in (None, "-"):
        write_text(str(output), _csv(what, points))
    if delivery.as_json or output == "-":
        print_json({"sweep": what, "unit": SWEEPS[what][0], "points": [asdict(point) for point in points]})
    elif output is None or not delivery.quiet:
        _print(what, points, source, output)
    return _code(points, options.relative_gap)


def _code(points: Sequence[Point], asked_gap: float | None) -> ExitCode:
    """As for one plan, of the best point: infeasible only where all are."""
    if not any(point.usd_per_hour is not None for point in points):
        all_ruled_out = all(point.status == "infeasible" for point in points)
        return ExitCode.INFEASIBLE if all_ruled_out else ExitCode.NO_PLAN
    solved = [point for point in points if point.usd_per_hour is not None]
    short = asked_gap is not None and any(point.gap is None or point.gap > asked_gap for point in solved)
    return ExitCode.SHORT_OF_GAP if short else ExitCode.OK


def _asked(text: str) -> tuple[str, list[float]]:
    """`rate=1..4096:13`; OptionError for what is none."""
    what, _, span = text.partition("=")
    if what not in SWEEPS:
        raise OptionError(f"--sweep is one of {', '.join(SWEEPS)}, as in rate=1..4096 (got {text!r})")
    ends, _, num = span.partition(":")
    low, dots, high = ends.partition("..")
    if not dots:
        raise OptionError(f"--sweep needs a range, as in {what}=1..8 (got {text!r})")
    try:
        units = TIME_UNITS if what in ("ttft", "tpot") else {}
        first, last = (parse_quantity(side, units, f"a value of {what}") for side in (low, high))
        count = int(num) if num else POINTS
    except ValueError as error:
        raise OptionError(f"--sweep {text}: {error}") from None
    if count > 1_000:
        raise OptionError(f"--sweep takes at most 1000 points, got {count}")
    return what, grid(first, last, count, SWEEPS[what][1])


def _problem_at(source: SourceText, what: str) -> Callable[[float], FleetProblem]:
    if what == "rate":
        problem = problem_of(source)
        return lambda value: scaled(problem, value)
    if what == "headroom":
        return lambda value: _problem(source, ("headroom",), value)
    if isinstance(source.value, dict) and source.value.get("profiles"):
        raise OptionError(f"{what} cannot be swept: the profiles give the throughput at one limit")
    models = source.value.get("models") if isinstance(source.value, dict) else None
    own = [str(one.get("name")) for one in models or () if isinstance(one, dict) and one.get("slo")]
    if own:
        raise OptionError(f"{what} cannot be swept: {', '.join(own)} has limits of its own in the instance")
    return lambda value: _problem(source, ("slo", f"{what}_s"), value)


def _problem(source: SourceText, loc: tuple[str, ...], value: float) -> FleetProblem:
    problem: FleetProblem = problem_of(over(source, {loc: Flag("--sweep", value)}))
    return problem


def _csv(what: str, points: Sequence[Point]) -> str:
    """One row a point; empty cells where there is no plan."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [name for name in Point.__dataclass_fields__ if name not in ("value", "instances", "reasons")]
    offers = list(dict.fromkeys(name for point in points for name in point.instances))
    writer.writerow([what, *fields, *(f"instances[{name}]" for name in offers), "reasons"])
    for point in points:
        cells = (getattr(point, name) for name in fields)
        counts = ["" if point.usd_per_hour is None else point.instances.get(name, 0) for name in offers]
        writer.writerow(
            [point.value, *("" if cell is None else cell for cell in cells), *counts, "; ".join(point.reasons)]
        )
    return text.getvalue()


def _print(what: str, points: Sequence[Point], source: SourceText, output: str | None) -> None:
    out = console()
    unit = SWEEPS[what][0]
    name = source.value.get("name", "fleet") if isinstance(source.value, dict) else "fleet"
    out.print(f"{printable(str(name))}: cost against {what}", style="bold", soft_wrap=True)
    # Money for tokens shows what scale saves; at one demand it is the cost itself that changes.
    per_tokens = what == "rate"
    heights = [point.usd_per_million_output_tokens if per_tokens else point.usd_per_hour for point in points]
    out.print(_curve(f"{what} {unit}", points, heights, "USD/M tokens" if per_tokens else "USD/hour"))
    for point in points:
        for reason in point.reasons:
            out.print(f"  {number(point.value)} {unit}: {printable(reason)}", soft_wrap=True)
    if output not in (None, "-"):
        out.print(f"  {'written':<13} {output}", soft_wrap=True)


def _curve(first: str, points: Sequence[Point], heights: Sequence[float | None], label: str) -> Table:
    top = max((height for height in heights if height is not None), default=1.0) or 1.0
    rows = []
    short = any(point.unserved_per_s for point in points)
    for point, height in zip(points, heights, strict=True):
        mix = ", ".join(f"{count} x {printable(name)}" for name, count in point.instances.items())
        bar = "" if height is None else "█" * max(1, round(BAR * height / top))
        cost, tokens = number(point.usd_per_hour), number(point.usd_per_million_output_tokens)
        left = [number(point.unserved_per_s)] if short else []
        rows.append((number(point.value), cost, tokens, percent(point.gap), *left, bar, mix or point.status))
    gap = ("gap", "unserved/s") if short else ("gap",)
    shown = table((first, "USD/hour", "USD/M tokens", *gap, f"{label} (longest: {number(top)})", "instances"), rows)
    for column in shown.columns[-2:]:
        column.justify = "left"
    return shown
