"""`gpuplan workbook`: a plan as a spreadsheet that recomputes itself; `gpuplan plan` reads it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import ExitCode, tell
from cli.options import (
    OUTPUT,
    GapOption,
    MethodOption,
    QuietOption,
    SeedOption,
    ThreadsOption,
    TimeLimitOption,
    WorkLimitOption,
    solve_options,
)

if TYPE_CHECKING:
    from formulations.outcome import SolveOptions
    from planner.files import SourceText
    from planner.plan import PlanDocument

SUFFIX = ".xlsx"

BookOption = Annotated[
    str,
    typer.Option("--output", "-o", metavar="plan.xlsx", help="the workbook to write", rich_help_panel=OUTPUT),
]


def workbook(
    output: BookOption,
    instance: Annotated[
        str | None,
        typer.Argument(
            metavar="INSTANCE|PLAN.json",
            help="instance file or filled-in workbook, which is solved; a plan, with --instance; - is standard input;"
            " without one: a small fleet to write over, nothing is solved",
        ),
    ] = None,
    of: Annotated[str | None, typer.Option("--instance", metavar="INSTANCE", help="what PLAN.json answers")] = None,
    blank: Annotated[bool, typer.Option("--blank", help="only the sheets to fill in: nothing is solved")] = False,
    studies: Annotated[
        bool,
        typer.Option("--studies/--no-studies", help="also solve other demands, and what each limit costs (fleets)"),
    ] = True,
    csv: Annotated[
        str | None,
        typer.Option("--csv", metavar="DIR", help="also write a CSV file of every sheet", rich_help_panel=OUTPUT),
    ] = None,
    time_limit: TimeLimitOption = 30.0,
    work_limit: WorkLimitOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    gap: GapOption = None,
    method: MethodOption = None,
    quiet: QuietOption = False,
) -> int:
    """Write a plan as a workbook: what to fill in, the plan, and formulas that recompute it.

    Yellow cells are inputs. `gpuplan plan plan.xlsx -o new.xlsx` plans what is filled in. The studies of a fleet have
    a time limit of their own, as long as that of the plan.

    Exit codes: 0 written, 2 usage, 3 proven infeasible, 4 short of the asked gap, 5 no plan found,
    6 the plan breaks a rule, 7 bad files.
    """
    from pathlib import Path

    from formulations.kinds import kind_name
    from planner.errors import OptionError
    from planner.files import read_source

    if not is_workbook(output):
        raise OptionError(f"a workbook is a {SUFFIX} file, got {output!r}")
    if instance is None:
        from planner.reporting.workbook.starter import starter

        source, blank = starter(Path(output).resolve().parent), True
        tell("a workbook to write over: fill in its yellow cells, save it, then: gpuplan plan plan.xlsx -o new.xlsx")
    else:
        source = read_source(instance)
    document = None
    if isinstance(source.value, dict) and "schema_version" in source.value:
        if of is None:
            raise OptionError(f"{instance} is a plan: --instance names the instance that it answers")
        if blank:
            raise OptionError("--blank is of an instance, not of a plan")
        source, document = read_source(of), _document(source)
    elif of is not None:
        raise OptionError("--instance goes with a plan, not with an instance")
    options = solve_options(kind_name(source), time_limit, work_limit, seed, threads, gap, method)
    return write_workbook(source, document, options, output, blank=blank, studies=studies, csv=csv, quiet=quiet)


def is_workbook(output: str) -> bool:
    """Whether an output names a workbook."""
    return output.lower().endswith(SUFFIX)


def _document(source: SourceText) -> PlanDocument:
    from planner.errors import DescriptionError
    from planner.files import validate
    from planner.plan import DOCUMENTS

    name = source.value.get("kind", source.value.get("problem"))
    if not isinstance(name, str) or name not in DOCUMENTS:
        raise DescriptionError([source.finding(("problem",), f"must be one of: {', '.join(DOCUMENTS)}")])
    return validate(source, DOCUMENTS[name])


def write_workbook(
    source: SourceText,
    document: PlanDocument | None,
    options: SolveOptions,
    output: str,
    *,
    blank: bool = False,
    studies: bool = True,
    csv: str | None = None,
    quiet: bool = False,
) -> ExitCode:
    """Solve where there is no document yet, and write the workbook of the instance and its plan."""
    from cli.progress import watched
    from cli.solving import exit_code
    from formulations.kinds import read_instance
    from formulations.planning import check_document, plan
    from planner.errors import DescriptionError
    from planner.reporting.workbook.xlsx import require, write_csv, write_xlsx

    require()
    found, instance = read_instance(source)
    problem = found.read(instance, source)
    given = document is not None
    if document is not None:
        if document.instance.sha256 != problem.sha256:
            message = f"answers another instance than {source.path} is now (the hash of its inputs differs)"
            raise DescriptionError.single("PLAN.json", message)
        document = document.model_copy(update={"verdict": check_document(document, problem)})
    elif not blank:
        with watched(quiet) as on_progress:
            document = plan(problem, options=options, on_progress=on_progress)
    book = _book(source, instance, problem, document, options, output, studies=studies and not blank, quiet=quiet)
    results = write_xlsx(book, output)
    if csv is not None:
        write_csv(book, results, csv)
    if document is None:
        return ExitCode.OK
    if not quiet:
        _tell(document, output)
    return exit_code(document, None if given else options.relative_gap)


def _book(
    source: SourceText,
    instance: Any,
    problem: Any,
    document: Any,
    options: SolveOptions,
    output: str,
    *,
    studies: bool,
    quiet: bool,
) -> Any:
    import os
    from datetime import UTC, datetime
    from pathlib import Path

    folder = os.path.relpath(source.base_dir, Path(output).resolve().parent)
    written = datetime.now(UTC).date().isoformat()
    if problem.kind == "deploy":
        from planner.reporting.workbook.deploy import deploy_book

        return deploy_book(instance, source.value, document, folder, written)
    if problem.kind != "fleet":
        from planner.reporting.workbook.plans import plan_book

        return plan_book(instance, source.value, document, folder, written)
    from cli.progress import watched
    from formulations.gpu_fleet import facts
    from planner.reporting.workbook.facts import FleetFacts
    from planner.reporting.workbook.fleet import fleet_book

    if document is None or document.plan is None:
        return fleet_book(instance, document, FleetFacts(folder=folder), written)
    others: tuple[Any, ...] = ()
    if studies:
        with watched(quiet) as on_progress:
            others = facts.scenarios(problem, options, on_progress)
            document = facts.with_insight(problem, document, options, on_progress)
    known = FleetFacts(
        folder=folder,
        throughput=facts.route_throughput(problem, document.plan),
        margins=facts.margins(instance, problem, document.plan, source),
        watts_drawn=None if document.verdict is None else _metric(document, "watts_drawn_peak"),
        scenarios=others,
        studied=studies,
    )
    return fleet_book(instance, document, known, written)


def _metric(document: Any, name: str) -> float | None:
    """A metric of the verdict; None where it has none of that name."""
    return next((one.value for one in document.verdict.metrics if one.name == name), None)


def _tell(document: PlanDocument, output: str) -> None:
    from cli.render import STATUS, STOP, printable

    outcome = document.outcome
    name = printable(document.instance.name)
    tell(f"{name}: {STATUS[outcome.status]} ({STOP[outcome.stop]}); written {output}")
