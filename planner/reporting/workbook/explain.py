"""Explain: what is proven of a plan, what is assumed, and what the plain rule would do. Of every kind of plan."""

from __future__ import annotations

from collections.abc import Sequence

from planner.plan import PlanDocument
from planner.reporting.workbook.cells import Book, Value

#: Words of people for what is proven.
STATUS = {
    "optimal": "optimal: no better plan exists",
    "feasible": "a plan that keeps every rule; how far from the best it can be is the gap",
    "infeasible": "no plan can exist",
    "unknown": "no plan was found, and none is ruled out",
}


def explain_sheet(book: Book, document: PlanDocument, more: Sequence[tuple[str, str]]) -> None:
    """Add the sheet. more : what the kind of plan adds."""
    outcome, verdict = document.outcome, document.verdict
    sheet = book.add("Explain", "Why this plan", "As it was solved.")
    sheet.widths |= {0: 34, 1: 110}
    unit = outcome.objective_unit
    rows: list[tuple[str, Value]] = [
        ("status", STATUS[outcome.status]),
        ("stopped", outcome.stop.replace("_", " ")),
        (f"objective, {unit}", outcome.objective),
        (f"bound, {unit}", outcome.bound),
        ("the bound is", outcome.bound_name),
        ("gap", outcome.gap),
    ]
    if document.baseline is not None:
        rows.append((f"plain rule: {document.baseline.name}, {unit}", document.baseline.objective))
        rows += [("beware, the plain rule breaks", one.message) for one in document.baseline.violations[:5]]
    rows += [("why there is no plan", reason) for reason in outcome.reasons]
    rows += [("what would be enough", way) for way in outcome.relaxations]
    if verdict is not None:
        rows += [("BREAKS", one.message) for one in verdict.violations]
        rows.append(("bottleneck", verdict.bottleneck))
        rows += [("assumed", one) for one in verdict.assumptions]
    rows += more
    rows += [(term, value) for term, value in outcome.terms.items()]
    rows.append(("solver", f"{outcome.method} ({outcome.solver} {outcome.solver_version}), seed {outcome.seed}"))
    for place, (label, value) in enumerate(rows):
        sheet.put(3 + place, 0, label, "unit")
        sheet.put(3 + place, 1, value, "number" if isinstance(value, float | int) else "text")
