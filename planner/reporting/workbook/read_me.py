"""Read me: what the workbook answers, how to use it, what was solved and when."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from planner.files import canonical_json
from planner.plan import PlanDocument
from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, Style, Value
from planner.reporting.workbook.explain import STATUS

HOW = (
    "Yellow cells are to fill in. Everything else is computed here, or was decided by the solver.",
    "Formulas follow what you type at once: demand, load, cost, power and margins. Counts and shares do not.",
    "The status says CURRENT, STALE (inputs are not those of the plan) or BROKEN (a limit is exceeded).",
    "To plan again, save this file and run: gpuplan plan plan.xlsx -o new.xlsx",
    "A formula in a yellow cell counts with the result that your program stored when it saved the file.",
)


def plan_hash(document: PlanDocument) -> str:
    """SHA-256 of the plan document."""
    return hashlib.sha256(canonical_json(document.model_dump(mode="json", by_alias=True)).encode()).hexdigest()


def read_me(
    book: Book,
    sheet: Sheet,
    document: PlanDocument | None,
    sheets: Sequence[tuple[str, str]],
    live: bool,
    answer: Sequence[tuple[str, Value | Formula, Style]] = (),
) -> None:
    """Fill the first sheet. live : whether the book computes a status of its own. answer : what was decided, first."""
    sheet.widths |= {0: 22, 1: 110}
    row = 3
    if live:
        sheet.put(row, 0, "status", "head")
        sheet.put(row, 1, Formula("=Plan_status"), "flag")
        sheet.rules.append(Rule(sheet.inside(row, 1, row, 1), "word", "CURRENT"))
        row += 1
    for label, value, style in answer:
        sheet.put(row, 0, label, "head")
        sheet.put(row, 1, value, style)
        row += 1
    lines: list[tuple[str, str]] = [("written", book.written)]
    if document is None:
        lines.append(("plan", "none yet: fill in the yellow cells and plan"))
    else:
        outcome = document.outcome
        gap = "" if outcome.gap is None else f", within {outcome.gap:.2%} of the best possible"
        lines += [
            ("plan", STATUS[outcome.status] + gap),
            ("instance", f"sha256 {document.instance.sha256}"),
            ("plan document", f"sha256 {plan_hash(document)}"),
            ("gpuplan", document.gpuplan_version),
        ]
        if document.verdict is not None:
            lines += [("assumed", text) for text in document.verdict.assumptions]
    for label, text in lines:
        sheet.put(row, 0, label, "unit")
        sheet.put(row, 1, text)
        row += 1
    for label, texts in (("how to use it", HOW),):
        row += 1
        sheet.put(row, 0, label, "head")
        for text in texts:
            sheet.put(row, 1, text)
            row += 1
    row += 1
    there = {one.name for one in book.sheets}
    sheet.put(row, 0, "sheet", "head")
    sheet.put(row, 1, "what is in it", "head")
    for name, text in sheets:
        if name in there:
            row += 1
            sheet.row(row, (name, text))
