"""Plans, verdicts and tables as text: rich on a terminal, plain and unwrapped in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from planner.cost.verdict import Verdict
from planner.plan import BaselineRecord, OutcomeRecord, PlanDocument
from planner.units import format_bytes

#: Width of a pipe: nothing is wrapped there, so that lines can be searched.
PIPE_WIDTH = 1_000
#: Violations that are printed; a plan for another model breaks thousands of rules.
MOST_VIOLATIONS = 20
STATUS = {
    "optimal": "optimal plan",
    "feasible": "feasible plan",
    "infeasible": "no plan can exist",
    "unknown": "no plan found, and none ruled out",
}
STOP = {
    "proof": "proven",
    "gap": "stopped within the asked gap",
    "time_limit": "stopped at the time limit",
    "work_limit": "stopped at the work limit",
    "interrupted": "interrupted",
    "heuristic": "the search ran to its end, without proof of optimality",
}


class _Console(Console):
    """A console that leaves a closed pipe to the command instead of ending the program as a crash."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """A console that takes text as it is: no markup, no highlighting."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return _Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def printable(text: str) -> str:
    """Text from a file without control characters, which could take over a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def number(value: float | None) -> str:
    """Six significant digits; a dash for what is unknown."""
    return "-" if value is None else f"{value:.6g}"


def percent(value: float | None) -> str:
    """0.0123 -> '1.23%'; what is left of a subtraction, below 1e-12, is 0."""
    return "-" if value is None else f"{100 * round(value, 12):.3g}%"


def quantity(name: str, value: float, unit: str = "") -> str:
    """A term or metric, in the unit its name or the cost model says."""
    if unit == "bytes" or name.endswith("_bytes"):
        return format_bytes(value)
    if unit == "fraction" or name.endswith("_fraction"):
        return percent(value)
    return ratio(value) if name.startswith("balancedness") else number(value)


def ratio(value: float | None) -> str:
    """Four decimals, as balancedness is compared."""
    return "-" if value is None else f"{value:.4f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_width: int | None = None) -> Table:
    """Numbers to the right of a first column, or with `text_width` words wrapped at that many characters."""
    result = Table(box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        if index and text_width is None:
            result.add_column(column, justify="right", overflow="fold")
        else:
            result.add_column(column, overflow="fold", max_width=text_width if index else None)
    for row in rows:
        result.add_row(*row)
    return result


Part = tuple[str, str] | Table


def print_document(
    out: Console,
    document: PlanDocument,
    answer: Iterable[Part],
    details: Iterable[Part] = (),
    path: str | None = None,
) -> None:
    """The answer with its margins, the plain rule beside it, what is proven; then details and assumptions."""
    outcome, name = document.outcome, printable(document.instance.name)
    out.print(f"{name}: {STATUS[outcome.status]} ({STOP[outcome.stop]})", style="bold", soft_wrap=True)
    if document.plan is None:
        _print_ways_out(out, outcome)
    else:
        _print_parts(out, broken(document))
        _print_parts(out, answer)
        _print_parts(out, bottleneck(document))
        if document.baseline is not None:
            out.print(beside_baseline(outcome, document.baseline))
            _print_parts(out, beware(document.baseline))
        _print_parts(out, [("bound", bound(document))])
        _print_parts(out, details)
        if document.verdict is not None and document.verdict.assumptions:
            _print_parts(out, [("assumptions", "; ".join(document.verdict.assumptions))])
    solver = f"{outcome.method} ({outcome.solver} {outcome.solver_version})"
    aside = f", {outcome.aside_s:.2f} s for what is told beside it" if outcome.aside_s else ""
    took = f"{outcome.build_s + outcome.solve_s:.2f} s, {solver}, seed {outcome.seed}{aside}"
    _print_parts(out, [("search", took), *([] if path is None else [("written", path)])])


def _print_parts(out: Console, parts: Iterable[Part]) -> None:
    for part in parts:
        if isinstance(part, Table):
            out.print(part)
        else:
            out.print(f"  {part[0]:<13} {part[1]}", soft_wrap=True)


def print_reasons(out: Console, outcome: OutcomeRecord) -> None:
    """Why there is no plan, in lines that also make sense in a log."""
    out.print(f"{STATUS[outcome.status]} ({STOP[outcome.stop]})", soft_wrap=True)
    _print_ways_out(out, outcome)


def _print_ways_out(out: Console, outcome: OutcomeRecord) -> None:
    if outcome.reasons:
        out.print("because")
    for reason in outcome.reasons:
        out.print(f"  - {printable(reason)}", soft_wrap=True)
    if outcome.relaxations:
        out.print("each of these changes removes one of the reasons")
    for relaxation in outcome.relaxations:
        out.print(f"  - {printable(relaxation)}", soft_wrap=True)


def beside_baseline(outcome: OutcomeRecord, baseline: BaselineRecord) -> Table:
    """The plan's terms and those of the plain rule. What is to be most has no minus sign here."""
    rows = []
    ours = {"objective": outcome.objective, **outcome.terms}
    theirs = {"objective": baseline.objective, **baseline.terms}
    most = _is_most(outcome) and baseline.objective <= 0.0
    if most:
        # A term that is the objective with its sign would only repeat it.
        same = [name for name in ours if (ours[name], theirs.get(name)) == (outcome.objective, baseline.objective)]
        ours = {name: value for name, value in ours.items() if name not in same}
        theirs = {name: value for name, value in theirs.items() if name not in same}
        ours = {"objective (most)": -(outcome.objective or 0.0), **ours}
        theirs = {"objective (most)": -baseline.objective, **theirs}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        one, two = ours.get(name), theirs.get(name)
        cells = ["-" if value is None else quantity(name, value) for value in (one, two)]
        rows.append((name, *cells, _difference(name, one, two)))
    return table(("", "plan", baseline.name, "difference"), rows)


def _is_most(outcome: OutcomeRecord) -> bool:
    """Objectives that are to be most are minimised with a minus sign."""
    return outcome.objective is not None and outcome.objective < 0.0


def _difference(name: str, one: float | None, two: float | None) -> str:
    if one is None or two is None:
        return "-"
    sign, size = "-" if one < two else "+", quantity(name, abs(one - two))
    return f"{sign}{size}" + (f" ({100 * (one - two) / abs(two):+.2f}%)" if two else "")


def broken(document: PlanDocument) -> Iterable[tuple[str, str]]:
    """Rules and budgets that the plan breaks."""
    for violation in () if document.verdict is None else document.verdict.violations[:MOST_VIOLATIONS]:
        yield "VIOLATION", f"{violation.rule}: {printable(violation.message)}"
    if document.verdict is not None and len(document.verdict.violations) > MOST_VIOLATIONS:
        yield "VIOLATION", f"and {len(document.verdict.violations) - MOST_VIOLATIONS} more; --json lists all"


def bottleneck(document: PlanDocument) -> Iterable[tuple[str, str]]:
    """What limits the plan, where the cost model says."""
    if document.verdict is not None and document.verdict.bottleneck is not None:
        yield "bottleneck", printable(document.verdict.bottleneck)


def beware(baseline: BaselineRecord) -> Iterable[tuple[str, str]]:
    """Rules that the plain rule breaks: it then is no alternative."""
    if baseline.violations:
        rules = ", ".join(dict.fromkeys(one.rule for one in baseline.violations))
        yield "beware", f"{baseline.name} breaks {rules}: {printable(baseline.violations[0].message)}"


def bound(document: PlanDocument) -> str:
    """What is proven of the objective."""
    outcome = document.outcome
    if outcome.bound is None:
        return "none known, so no gap either"
    by = "" if outcome.bound_name is None else f" ({outcome.bound_name})"
    limit = f"above {number(-outcome.bound)}" if _is_most(outcome) else f"below {number(outcome.bound)}"
    return f"no plan is {limit}{by}; gap {percent(outcome.gap)}"


def print_verdict(out: Console, name: str, verdict: Verdict) -> None:
    """The judgement of a plan, worst news first."""
    count = len(verdict.violations)
    broken = f"{count} violation{'' if count == 1 else 's'} of rules or budgets"
    judgement = "keeps every rule that was judged" if verdict.feasible else broken
    out.print(f"{printable(name)}: {judgement}", style="bold", soft_wrap=True)
    for violation in verdict.violations[:MOST_VIOLATIONS]:
        out.print(f"  - {violation.rule}: {printable(violation.message)}", soft_wrap=True)
    if count > MOST_VIOLATIONS:
        out.print(f"  and {count - MOST_VIOLATIONS} more; --json lists all")
    if verdict.metrics:
        rows = [
            (
                printable(metric.name),
                quantity(metric.name, metric.value, metric.unit),
                metric.unit,
                metric.source,
            )
            for metric in verdict.metrics
        ]
        out.print(table(("metric", "value", "unit", "source"), rows))
    if verdict.bottleneck is not None:
        out.print(f"bottleneck: {printable(verdict.bottleneck)}", soft_wrap=True)
    if verdict.assumptions:
        out.print(f"assumptions: {'; '.join(verdict.assumptions)}", soft_wrap=True)
