"""The options that several commands share, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import Command

if TYPE_CHECKING:
    from formulations.kinds import Kind
    from formulations.outcome import SolveOptions

SEARCH, OUTPUT = "Search", "Output"


def panel_option(help: str, panel: str, metavar: str | None = None, *names: str) -> typer.models.OptionInfo:
    """An option under a heading of the help; names where typer's own would not do."""
    option: typer.models.OptionInfo = typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)
    return option


def methods() -> Mapping[str, str]:
    """Search methods of all problems by name, with the problems that each is for."""
    from formulations.kinds import HOMES, kind

    found: dict[str, list[str]] = {}
    for name in HOMES:
        for method, text in kind(name).formulation.methods.items():
            found.setdefault(method, []).append(f"{name}: {text}")
    return {method: "; ".join(texts) for method, texts in found.items()}


def _complete_method(incomplete: str) -> list[tuple[str, str]]:
    return [(name, text) for name, text in methods().items() if name.startswith(incomplete)]


class SolveCommand(Command):
    """A command that searches: its help lists the methods."""

    listing = ("Methods", methods)


class ExpertsCommand(Command):
    """A command that searches expert placements."""

    listing = ("Methods", lambda: _kind("experts").formulation.methods)


class FleetCommand(Command):
    """A command that searches fleets."""

    listing = ("Methods", lambda: _kind("fleet").formulation.methods)


class ParallelCommand(Command):
    """A command that searches serving workers."""

    listing = ("Methods", lambda: _kind("parallel").formulation.methods)


class PodsCommand(Command):
    """A command that searches places for pods."""

    listing = ("Methods", lambda: _kind("pods").formulation.methods)


class DeployCommand(Command):
    """A command that searches deployments."""

    listing = ("Methods", lambda: _kind("deploy").formulation.methods)


def _kind(name: str) -> Kind[Any, Any, Any]:
    from formulations.kinds import kind

    return kind(name)


InstanceArgument = Annotated[
    str, typer.Argument(metavar="INSTANCE", help="instance file, YAML or JSON; - is standard input")
]
PlanArgument = Annotated[str, typer.Argument(metavar="PLAN.json", help="a plan document; - is standard input")]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PLAN.json",
        help="write the plan document here; - is --json",
        rich_help_panel=OUTPUT,
    ),
]
SaveInstanceOption = Annotated[
    str | None,
    typer.Option(
        "--save-instance",
        metavar="INSTANCE.yaml",
        help="also write what is planned, file and flags together: for check, report, workbook, compare",
        rich_help_panel=OUTPUT,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON and nothing else", rich_help_panel=OUTPUT)]
QuietOption = Annotated[
    bool,
    typer.Option("--quiet", help="no progress, and no summary when -o is given", rich_help_panel=OUTPUT),
]
CurrentOption = Annotated[
    str | None,
    typer.Option(
        metavar="PLAN.json",
        help="plan or engine map in force, from which replicas move; over the instance's",
        rich_help_panel="Replanning",
    ),
]
TimeLimitOption = Annotated[float, typer.Option(metavar="S", help="seconds of search", rich_help_panel=SEARCH)]
WorkLimitOption = Annotated[
    float | None,
    typer.Option(metavar="W", help="effort in the method's own unit; repeatable on one thread", rich_help_panel=SEARCH),
]
SeedOption = Annotated[int, typer.Option(metavar="N", help="of random numbers", rich_help_panel=SEARCH)]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="default: every core this process may use, or one if the method takes one",
        rich_help_panel=SEARCH,
        show_default=False,
    ),
]
GapOption = Annotated[
    float | None,
    typer.Option(
        metavar="G",
        help="stop within this relative gap, such as 0.01; exit 4 short of it",
        rich_help_panel=SEARCH,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="see below; default: the first",
        rich_help_panel=SEARCH,
        autocompletion=_complete_method,
    ),
]


def default_threads(method: str, one_thread: frozenset[str]) -> int:
    """Every core that this process may run on, or as many as the method takes."""
    if method in one_thread:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def solve_options(
    problem: str,
    time_limit: float,
    work_limit: float | None,
    seed: int,
    threads: int | None,
    gap: float | None,
    method: str | None,
) -> SolveOptions:
    """The options of a search of one problem. Raises OptionError for limits out of range and an unknown method."""
    from formulations.kinds import kind
    from formulations.outcome import SolveOptions
    from planner.errors import OptionError

    known = kind(problem).formulation
    if method is not None and method not in known.methods:
        raise OptionError(f"{problem} has no method {method!r}; choose from {', '.join(known.methods)}")
    chosen = method or next(iter(known.methods))
    return SolveOptions(
        time_limit_s=time_limit,
        work_limit=work_limit,
        seed=seed,
        num_threads=default_threads(chosen, known.one_thread) if threads is None else threads,
        relative_gap=gap,
        method=method,
    )
