"""`gpuplan fleet`: the cheapest GPUs for a demand, from flags, or from an instance with flags over it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.options import (
    GapOption,
    JsonOption,
    MethodOption,
    OutputOption,
    QuietOption,
    SaveInstanceOption,
    SeedOption,
    ThreadsOption,
    TimeLimitOption,
    WorkLimitOption,
    solve_options,
)
from cli.options import panel_option as _flag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planner.files import Loc, SourceText
    from planner.overlay import Flag

WHAT, LIMITS, CHANGE = "Offers and demand", "Limits", "A fleet in force"
STUDIES = "Studies"
#: Keys that a file of each flag may give.
OFFERS_KEYS, DEMAND_KEYS = ("offers",), ("demand", "headroom", "pool_slack", "slo")


def fleet(
    instance: Annotated[
        str | None,
        typer.Argument(metavar="INSTANCE", help="instance file that the flags override; - is standard input"),
    ] = None,
    name: Annotated[str | None, _flag("name of the instance", WHAT, "TEXT")] = None,
    offers: Annotated[
        str | None, _flag("what can be rented: a file with `offers:`, as `gpuplan import prices` writes", WHAT, "FILE")
    ] = None,
    demand: Annotated[
        str | None, _flag("requests: a file with `demand:`, as `gpuplan import trace` writes", WHAT, "FILE")
    ] = None,
    model: Annotated[
        list[str] | None,
        _flag("what a model of the demand is: catalogue name or config.json; repeatable", WHAT, "NAME=MODEL"),
    ] = None,
    ttft: Annotated[str | None, _flag("limit on time to first token, such as 500ms", WHAT, "S")] = None,
    tpot: Annotated[str | None, _flag("limit on time per output token, such as 40ms", WHAT, "S")] = None,
    percentile: Annotated[
        float | None, _flag("of requests that keep the limits; default: their mean", WHAT, "P")
    ] = None,
    headroom: Annotated[
        float | None, _flag("capacity kept free, as a share of the demand, such as 0.2", LIMITS, "X")
    ] = None,
    budget: Annotated[str | None, _flag("most USD in any hour", LIMITS, "$/h")] = None,
    max_watts: Annotated[str | None, _flag("most power in any hour, such as 20kW", LIMITS, "W")] = None,
    spare: Annotated[int | None, _flag("1: survive the loss of any one instance, by re-routing", LIMITS, "0|1")] = None,
    spare_zones: Annotated[
        int | None, _flag("1: survive the loss of any one zone, by re-routing", LIMITS, "0|1")
    ] = None,
    max_spot_share: Annotated[
        float | None, _flag("most of each model's requests on spot, such as 0.5", LIMITS, "X")
    ] = None,
    unserved: Annotated[
        Literal["refuse", "by_priority"] | None,
        _flag("where not all can be served: no plan, or the lowest priorities left out first", LIMITS),
    ] = None,
    calibration: Annotated[
        str | None, _flag("your own measurements, from `gpuplan calibrate`", LIMITS, "efficiency.yaml")
    ] = None,
    current: Annotated[
        str | None, _flag("fleet in force: a plan document, or a file of `offer: count`", CHANGE, "PLAN.json")
    ] = None,
    max_changes: Annotated[int | None, _flag("most instances added or dropped", CHANGE, "N")] = None,
    change_cost: Annotated[float | None, _flag("price of one instance added or dropped, USD/hour", CHANGE, "$")] = None,
    explain: Annotated[
        bool,
        _flag(
            "also: what one unit more of each limit saves, and the plan without its main offer",
            STUDIES,
            None,
            "--explain",
        ),
    ] = False,
    sweep: Annotated[
        str | None,
        _flag(
            "instead of one plan: rate=1..4096, headroom=0..0.5, ttft=0.2..2 or tpot=..., :N points; -o writes CSV",
            STUDIES,
            "WHAT=LOW..HIGH[:N]",
        ),
    ] = None,
    bound_trace: Annotated[
        list[str] | None,
        _flag(
            "instead of one plan: the least USD and GPUs of every window of a request trace; -o writes CSV; repeatable",
            STUDIES,
            "[NAME=]TRACE",
        ),
    ] = None,
    window: Annotated[str, _flag("window of --bound-trace", STUDIES, "S")] = "10min",
    simulate: Annotated[
        list[str] | None,
        _flag("also: serve a request trace with the plan, request by request; repeatable", STUDIES, "[NAME=]TRACE"),
    ] = None,
    output: OutputOption = None,
    time_limit: TimeLimitOption = 30.0,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    gap: GapOption = None,
    method: MethodOption = None,
    save_instance: SaveInstanceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Rent the cheapest GPUs that serve a demand within its latency limits.

    The instance comes from flags, or from a file that the flags override. Counts, routing shares, cost, and what
    is proven of them. The time limit of a sweep is for all of its points.

    Exit codes: 0 a plan, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found,
    6 a simulated plan misses its limits, 7 bad files.
    """
    from cli import fleet_studies as studies
    from cli import fleet_traces as traces
    from cli.instances import beside, merge, save
    from cli.solving import Delivery
    from formulations.in_force import fleet_in_force
    from planner.errors import OptionError
    from planner.overlay import Flag

    chosen = [sweep is not None, bool(bound_trace), explain or bool(simulate)]
    if sum(chosen) > 1:
        raise OptionError("--sweep and --bound-trace stand alone: choose one of them, or a plan")
    options = solve_options("fleet", time_limit, work_limit, seed, threads, gap, method)
    flags = {
        ("name",): Flag("--name", name),
        **file_flags(instance, {"--offers": (offers, OFFERS_KEYS), "--demand": (demand, DEMAND_KEYS)}),
        **_quantities(headroom, budget, max_watts, ttft, tpot),
        ("slo", "percentile"): Flag("--percentile", percentile),
        ("spare_instances",): Flag("--spare", spare),
        ("spare_zones",): Flag("--spare-zones", spare_zones),
        ("max_spot_share",): Flag("--max-spot-share", max_spot_share),
        ("unserved",): Flag("--unserved", unserved),
        ("current",): Flag("--current") if current is None else fleet_in_force(current),
        ("calibration",): Flag("--calibration", beside(instance, calibration)),
        ("max_changes",): Flag("--max-changes", max_changes),
        ("change_cost_usd_per_hour",): Flag("--change-cost", change_cost),
    }
    if instance is None and name is None:
        flags["name",] = Flag("--name", _default_name(demand))
    source = with_models(instance, merge(instance, flags, problem="fleet"), model)
    if {("slo", "ttft_s"), ("slo", "tpot_s"), ("slo", "percentile")} & {loc for loc in flags if flags[loc].value}:
        _refuse_idle_limits(source)
    save(source, save_instance)
    if sweep is not None:
        return studies.sweep(source, options, sweep, Delivery(None, as_json, quiet), output)
    if bound_trace:
        return traces.bounds(source, bound_trace, window, as_json, output)
    return studies.plan(source, options, Delivery(output, as_json, quiet), explain, simulate or [])


def _default_name(demand: str | None) -> str:
    from pathlib import PurePath

    return "fleet" if demand is None else PurePath(demand).name.split(".")[0] or "fleet"


def file_flags(instance: str | None, files: Mapping[str, tuple[str | None, tuple[str, ...]]]) -> dict[Loc, Flag]:
    """What the files of some flags give; by flag its path and the keys that it may have, the first one always.

    DescriptionError for other keys, or none, in them.
    """
    from planner.errors import DescriptionError, OptionError
    from planner.files import read_source
    from planner.overlay import Flag

    if [instance, *(path for path, _ in files.values())].count("-") > 1:
        raise OptionError(f"only one of INSTANCE, {' and '.join(files)} can be standard input")
    found: dict[Loc, Flag] = {(keys[0],): Flag(flag) for flag, (_, keys) in files.items()}
    for flag, (path, keys) in files.items():
        if path is None:
            continue
        source = read_source(path)
        value = source.value if isinstance(source.value, dict) else {}
        wrong = [source.finding((key,), f"{flag} reads {', '.join(keys)} alone") for key in value if key not in keys]
        if keys[0] not in value:
            wrong.append(source.finding((), f"has no `{keys[0]}:` for {flag}"))
        if wrong:
            raise DescriptionError(wrong)
        found |= {(key,): Flag(flag, value[key], source) for key in keys if key in value}
    return found


def _quantities(
    headroom: float | None, budget: str | None, max_watts: str | None, ttft: str | None, tpot: str | None
) -> dict[Loc, Flag]:
    """Flags with units, in SI; DescriptionError with all that cannot be read."""
    from cli.flags import FlagReader
    from planner.overlay import Flag
    from planner.units import POWER_UNITS, PRICE_UNITS, TIME_UNITS, parse_quantity

    reader = FlagReader()

    def read(flag: str, text: str | None, units: Any, what: str) -> Flag:
        if text is None:
            return Flag(flag)
        return Flag(flag, reader.take(flag, lambda: parse_quantity(text, units, what)))

    found: dict[Loc, Flag] = {
        ("budget_usd_per_hour",): read("--budget", budget, PRICE_UNITS, "a price in USD per hour"),
        ("max_watts",): read("--max-watts", max_watts, POWER_UNITS, "a power in watts"),
        ("slo", "ttft_s"): read("--ttft", ttft, TIME_UNITS, "a time in seconds"),
        ("slo", "tpot_s"): read("--tpot", tpot, TIME_UNITS, "a time in seconds"),
    }
    if headroom is not None:
        found["headroom",] = Flag("--headroom", headroom)
    reader.refuse()
    return found


def with_models(instance: str | None, source: SourceText, given: list[str] | None) -> SourceText:
    """Put --model over the models of the same name; without any, the demand's names are catalogue names."""
    from cli.instances import beside
    from planner.errors import OptionError
    from planner.overlay import Flag, over

    if not isinstance(source.value, dict):
        return source
    models = source.value.get("models")
    if models is not None and not isinstance(models, list):
        return source
    by_name: dict[str, Any] = {}
    for text in given or ():
        name, equals, what = text.partition("=")
        if not (name and equals and what):
            raise OptionError(f"--model is NAME=MODEL, the demand's name and what it is (got {text!r})")
        by_name[name] = beside(instance, what) if what.endswith(".json") else what
    if models is None and not by_name:
        demand = source.value.get("demand")
        rows = [row for row in demand if isinstance(row, dict)] if isinstance(demand, list) else []
        names = dict.fromkeys(row["model"] for row in rows if isinstance(row.get("model"), str))
        by_name = {name: name for name in names}
    if not by_name:
        return source
    kept = [
        {**one, "model": by_name.pop(one["name"])} if isinstance(one, dict) and one.get("name") in by_name else one
        for one in models or ()
    ]
    kept += [{"name": name, "model": what} for name, what in by_name.items()]
    return over(source, {("models",): Flag("--model", kept)})


def _refuse_idle_limits(source: SourceText) -> None:
    """Latency limits change nothing where the throughput is given or each model has limits of its own."""
    from cli.command import tell
    from planner.errors import OptionError

    if not isinstance(source.value, dict):
        return
    if source.value.get("profiles"):
        raise OptionError("--ttft, --tpot and --percentile change nothing: the profiles were measured at their limits")
    models = source.value.get("models")
    own = [one["name"] for one in models or () if isinstance(one, dict) and one.get("slo") and "name" in one]
    if own:
        tell(f"warning: {', '.join(map(str, own))}: the instance gives limits of its own, which stay")
