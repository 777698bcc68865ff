"""`gpuplan report`: a plan as one page to read, print or send."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.command import ExitCode
from cli.options import CurrentOption, PlanArgument

if TYPE_CHECKING:
    from rich.table import Column, Table

    from cli.render import Part
    from planner.cluster import Cluster
    from planner.files import SourceText
    from planner.plan import PlanDocument
    from planner.reporting.page import Block, Figure, Report, Section
    from planner.reporting.workbook.facts import Scenario

FORMATS = (".html", ".md")

PageOption = Annotated[
    str, typer.Option("--output", "-o", metavar="report.html|.md", help="one page, nothing beside it")
]
OfInstanceOption = Annotated[
    str | None,
    typer.Option("--instance", metavar="INSTANCE", help="what the plan answers: needed for figures and details"),
]


def report(
    plan: PlanArgument,
    output: PageOption,
    instance: OfInstanceOption = None,
    current: CurrentOption = None,
    studies: Annotated[
        bool, typer.Option("--studies/--no-studies", help="also solve a fleet at other demands, for its cost curve")
    ] = True,
    time_limit: Annotated[float, typer.Option(metavar="S", help="seconds for the studies together")] = 30.0,
) -> int:
    """Write a plan as a page: the answer first, then cost, margins, what binds, the plain rule, bound and assumptions.

    With the instance, the page has the details of `gpuplan plan` and figures, and the plan is judged anew.

    Exit codes: 0 written, 2 usage, 6 written, but the plan breaks a rule or a budget, 7 bad files.
    """
    from cli.instances import with_current
    from formulations.kinds import read_instance
    from formulations.planning import check_document
    from planner.errors import DescriptionError, OptionError
    from planner.files import write_text
    from planner.plan import read_document
    from planner.reporting.html import to_html
    from planner.reporting.markdown import to_markdown

    suffix = Path(output).suffix.lower()
    if suffix not in FORMATS:
        raise OptionError(f"a report is a {' or '.join(FORMATS)} file, got {output!r}")
    document = read_document(plan)
    problem, drawn = None, []
    if instance is not None:
        source = with_current(instance, current)
        found, described = read_instance(source)
        problem = found.read(described, source)
        if problem.sha256 != document.instance.sha256:
            message = f"answers another instance than {instance} (the hash of its inputs differs)"
            raise DescriptionError.single(plan, message)
        if document.plan is not None:
            document = document.model_copy(update={"verdict": check_document(document, problem)})
            drawn = list(_figures(document, problem, _cluster(described, source), time_limit if studies else None))
    page = page_of(document, problem, drawn, (plan, instance, current))
    write_text(output, to_html(page) if suffix == ".html" else to_markdown(page))
    return ExitCode.BROKEN if document.verdict is not None and not document.verdict.feasible else ExitCode.OK


def _cluster(instance: Any, source: SourceText) -> Cluster | None:
    """The cluster that an instance describes, or names."""
    from planner.cluster import Cluster
    from planner.files import read_as

    given = getattr(instance, "cluster", None)
    return read_as(source.base_dir / given, Cluster) if isinstance(given, str) else given


def _figures(
    document: PlanDocument, problem: Any, cluster: Cluster | None, time_limit_s: float | None
) -> Iterator[Figure]:
    """The drawings; those of other demands only with a time limit for their solving."""
    from formulations.reporting.figures import figures

    scenarios: Sequence[Scenario] = ()
    if problem.kind == "fleet" and time_limit_s is not None:
        from cli.options import solve_options
        from cli.progress import watched
        from formulations.gpu_fleet.facts import scenarios as solved

        outcome = document.outcome
        options = solve_options("fleet", time_limit_s, None, outcome.seed, 1, None, outcome.method)
        with watched(quiet=False) as on_progress:
            scenarios = solved(problem, options, on_progress)
    yield from figures(document, problem, cluster, scenarios)


def page_of(
    document: PlanDocument, problem: Any, drawn: Sequence[Figure], files: tuple[str, str | None, str | None]
) -> Report:
    """A document's page.

    problem : the arrays of its instance, or None. drawn : its figures. files : the plan, its
    instance and the plan in force, to make it again.
    """
    from cli.render import STATUS, STOP
    from planner.reporting.page import Report

    outcome = document.outcome
    good = document.plan is not None and (document.verdict is None or document.verdict.feasible)
    broken = document.plan is not None and not good
    answer = f"{STATUS[outcome.status]} ({STOP[outcome.stop]})" + (
        ", but it breaks a rule or a budget" if broken else ""
    )
    sections = [
        *_answer(document, problem, drawn),
        *_judged(document),
        *_proof(document),
        *_remake(document, *files),
    ]
    return Report(title=document.instance.name, answer=answer, good=good, sections=sections)


def _answer(document: PlanDocument, problem: Any, drawn: Sequence[Figure]) -> Iterator[Section]:
    from cli.answers import details
    from planner.reporting.page import Items, Section

    outcome = document.outcome
    if document.plan is None:
        if outcome.reasons:
            yield Section("Why there is no plan", [Items(outcome.reasons)])
        if outcome.relaxations:
            yield Section("What would remove a reason", [Items(outcome.relaxations)])
        return
    yield Section("The answer", _told(document, problem))
    if document.baseline is not None:
        yield Section("Beside today's rule", _baseline(document))
    if drawn:
        yield Section("To look at", drawn)
    if problem is not None:
        detailed = _blocks(details(document, problem))
        if detailed:
            yield Section("In detail", detailed)


def _told(document: PlanDocument, problem: Any) -> list[Block]:
    """What `gpuplan plan` prints of a plan, as blocks."""
    from cli.answers import answer
    from cli.render import number
    from planner.reporting.page import Lines

    outcome = document.outcome
    if problem is None:
        return [Lines([("objective", f"{number(outcome.objective)} {outcome.objective_unit}")])]
    return _blocks(answer(document, problem))


def _blocks(parts: Iterable[Part]) -> list[Block]:
    """Lines that follow one another as one block, tables as they are."""
    from planner.reporting.page import Lines

    blocks: list[Block] = []
    for part in parts:
        last = blocks[-1] if blocks else None
        if not isinstance(part, tuple):
            blocks.append(_grid(part))
        elif isinstance(last, Lines):
            blocks[-1] = Lines([*last.rows, part])
        else:
            blocks.append(Lines([part]))
    return blocks


def _baseline(document: PlanDocument) -> list[Block]:
    from cli.render import beside_baseline, beware
    from planner.reporting.page import Lines

    assert document.baseline is not None
    blocks: list[Block] = [_grid(beside_baseline(document.outcome, document.baseline))]
    told = list(beware(document.baseline))
    if told:
        blocks.append(Lines(told))
    return blocks


def _judged(document: PlanDocument) -> Iterator[Section]:
    from cli.render import MOST_VIOLATIONS, quantity
    from planner.reporting.page import Grid, Lines, Section

    verdict = document.verdict
    if verdict is None:
        return
    blocks: list[Block] = []
    if verdict.violations:
        broken = [(one.rule, one.message) for one in verdict.violations[:MOST_VIOLATIONS]]
        blocks.append(Lines(broken, frozenset(rule for rule, _ in broken)))
        if len(verdict.violations) > MOST_VIOLATIONS:
            blocks.append(Lines([("and", f"{len(verdict.violations) - MOST_VIOLATIONS} more")]))
    if verdict.bottleneck is not None:
        blocks.append(Lines([("bottleneck", verdict.bottleneck)]))
    rows = []
    for one in verdict.metrics:
        between = ""
        if one.low is not None and one.high is not None:
            between = f"{quantity(one.name, one.low, one.unit)} to {quantity(one.name, one.high, one.unit)}"
        rows.append((one.name, quantity(one.name, one.value, one.unit), between, one.unit, one.source))
    if rows:
        columns = ("what", "value", "80 % of measurements", "unit", "from")
        blocks.append(Grid(columns, rows, frozenset({1, 2})))
    if blocks:
        yield Section("Judged by the cost model", blocks)


def _proof(document: PlanDocument) -> Iterator[Section]:
    from cli.render import bound
    from planner.reporting.page import Items, Lines, Section

    lines = [("bound", bound(document))]
    outcome = document.outcome
    solver = f"{outcome.method} ({outcome.solver} {outcome.solver_version}), seed {outcome.seed}"
    lines.append(("search", f"{outcome.build_s + outcome.solve_s:.2f} s, {solver}, {outcome.num_threads} thread(s)"))
    yield Section("How good it is proven to be", [Lines(lines)])
    if document.verdict is not None and document.verdict.assumptions:
        yield Section("What it assumes", [Items(document.verdict.assumptions)])


def _remake(document: PlanDocument, plan: str, instance: str | None, current: str | None) -> Iterator[Section]:
    from planner.reporting.page import Items, Lines, Section

    outcome = document.outcome
    where = [instance or "INSTANCE", *([] if current is None else ["--current", current])]
    solve = ["gpuplan", "plan", *where, "--method", outcome.method, "--seed", str(outcome.seed), "-o", plan]
    check = ["gpuplan", "check", plan, "--instance", *where]
    reference = [("gpuplan", document.gpuplan_version), ("instance", f"sha256 {document.instance.sha256}")]
    yield Section("To make it again", [Items([shlex.join(solve), shlex.join(check)], code=True), Lines(reference)])


def _grid(table: Table) -> Block:
    from planner.reporting.page import Grid

    # Bars of characters are for terminals: a page has figures.
    kept = [column for column in table.columns if not (column.header == "" and _is_bar(column))]
    numeric = frozenset(place for place, column in enumerate(kept) if column.justify == "right")
    rows = [tuple(str(cell) for cell in row) for row in zip(*(column.cells for column in kept), strict=True)]
    return Grid([str(column.header) for column in kept], rows, numeric)


def _is_bar(column: Column) -> bool:
    return all(set(str(cell)) == {"#"} for cell in column.cells)
