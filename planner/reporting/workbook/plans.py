"""The workbook of a plan of any other problem: its inputs by path, the plan as tables, margins, and what is proven."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from planner.descriptions.base import Description
from planner.plan import PlanDocument
from planner.reporting.workbook.cells import Book, Formula, Sheet, Style, a1
from planner.reporting.workbook.checks import Check, Input, check_sheets
from planner.reporting.workbook.explain import explain_sheet
from planner.reporting.workbook.layout import FIRST_ROW, FOLDER, INPUTS, PROBLEM, TITLE_ROW, VALUE_COL
from planner.reporting.workbook.read_me import read_me
from planner.reporting.workbook.values import flattened
from planner.units import GIB

#: Longest text of a cell that holds what is inside an entry.
MAX_INNER_CHARS = 2_000
SHEETS = (
    ("Inputs", "the instance, one value a row: yellow cells are yours to change"),
    ("Plan", "what was decided"),
    ("Checks", "margins of memory and latency, and whether the plan is current, stale or broken"),
    ("Solved for", "every input as it was when the plan was made, and as it is now"),
    ("Explain", "what is proven, what is assumed, what the plain rule would do"),
)


def plan_book(
    instance: Description, value: Mapping[str, Any], document: PlanDocument | None, folder: str, written: str
) -> Book:
    """Read me, Inputs, Plan, Checks, Solved for and Explain; without a plan what there is of them.

    value : the instance as it was written. folder : where relative paths in it begin, from the workbook.
    """
    name = str(value.get("name", ""))
    book = Book(f"gpuplan: {name}", written)
    front = book.add("Read me", name, f"A plan of the problem {value.get(PROBLEM)}, by gpuplan.")
    inputs = inputs_sheet(book, value, folder)
    solved = document is not None and document.plan is not None
    if document is not None:
        if document.plan is not None:
            tables = _plan(book, document.plan)
            check_sheets(book, _checks(instance, document, inputs, tables), inputs.values())
        explain_sheet(book, document, [])
    read_me(book, front, document, SHEETS, solved)
    return book


def inputs_sheet(book: Book, value: Mapping[str, Any], folder: str) -> dict[str, Input]:
    """The instance as paths and values; each with its cell."""
    note = "Fill in the yellow cells, save, and run: gpuplan plan plan.xlsx -o new.xlsx"
    sheet = book.add(INPUTS, "What to plan", note)
    sheet.row(TITLE_ROW, ("what", "value"), "head")
    sheet.widths |= {0: 44, 1: 44}
    sheet.frozen = FIRST_ROW, 0
    found: dict[str, Input] = {}
    # The problem first: it says how the rest is read.
    ordered = {PROBLEM: value.get(PROBLEM), **value}
    for place, (path, one) in enumerate(flattened(ordered)):
        row = FIRST_ROW + place
        sheet.put(row, 0, path)
        style: Style = "text" if isinstance(one, str | bool) else "number"
        cell = sheet.put(row, VALUE_COL, one, style, asked=path != PROBLEM)
        found[path] = Input(cell, path, one)
    row = FIRST_ROW + len(found)
    sheet.row(row, (FOLDER, folder, "relative names of files begin here, as seen from this workbook"))
    return found


def _plan(book: Book, plan: Description) -> dict[str, tuple[Sheet, dict[str, int], range]]:
    """The plan's values and tables; of each table its sheet, columns and rows."""
    sheet = book.add("Plan", "What was decided", "As it was solved; totals are computed.")
    sheet.widths |= {0: 30, 1: 22}
    tables: dict[str, tuple[Sheet, dict[str, int], range]] = {}
    row = TITLE_ROW
    said = plan.model_dump(mode="json", by_alias=True)
    for key, value in said.items():
        if not isinstance(value, list | dict):
            sheet.put(row, 0, key)
            sheet.put(row, 1, value, "number" if isinstance(value, int | float) else "text")
            row += 1
    for key, value in said.items():
        if isinstance(value, dict) and value:
            value = [{"name": name, "value": one} for name, one in value.items()]
        if not isinstance(value, list) or not value:
            continue
        row += 1
        sheet.put(row, 0, key, "title")
        row += 1
        if isinstance(value[0], dict):
            columns = {name: col for col, name in enumerate(dict.fromkeys(name for one in value for name in one))}
            sheet.row(row, tuple(columns), "head")
            rows: list[Sequence[Any]] = [[one.get(name) for name in columns] for one in value]
        else:
            columns, rows = {}, [one if isinstance(one, list) else [one] for one in value]
        tables[key] = sheet, columns, range(row + 1, row + 1 + len(rows))
        for entry in rows:
            row += 1
            sheet.row(row, [_inner(one) for one in entry], "number")
        row += 1
    return tables


def _inner(value: Any) -> Any:
    """What stands in one cell: lists and mappings in words."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{name} {_inner(one)}" for name, one in value.items() if one is not None)
    elif isinstance(value, list):
        text = "; ".join(str(_inner(one)) for one in value)
    else:
        return value
    return text if len(text) <= MAX_INNER_CHARS else f"{text[:MAX_INNER_CHARS]} ..."


def _checks(
    instance: Any,
    document: PlanDocument,
    inputs: Mapping[str, Input],
    tables: Mapping[str, tuple[Sheet, dict[str, int], range]],
) -> Iterator[Check]:
    """Limits of the kind, live where the input is a number; then what the verdict measured and finds broken."""
    checked: list[str] = []
    if "workers" in tables:
        limits = list(_workers(instance, inputs, *tables["workers"]))
        checked = [one.what for one in limits]
        yield from limits
    verdict = document.verdict
    if verdict is None:
        return
    for one in verdict.metrics:
        if one.name in checked:
            continue
        limit = getattr(instance, "gpu_memory_bytes", None) if one.name == "expert_memory_per_gpu" else None
        scale, unit = (GIB, "GiB") if one.unit == "bytes" else (1.0, one.unit)
        yield Check(one.name, one.source, one.value / scale, None if limit is None else limit / scale, unit)
    for broken in verdict.violations:
        yield Check(f"broken: {broken.rule}", broken.message[:1000], 1.0, 0, "")


def _workers(
    instance: Any, inputs: Mapping[str, Input], sheet: Sheet, columns: dict[str, int], rows: range
) -> Iterator[Check]:
    """Latency of the workers that are used, where the table tells it, and their sums under the table."""
    slo = getattr(instance, "slo", None)
    first, last = rows.start, rows.stop - 1
    for what in ("ttft_s", "tpot_s"):
        if what not in columns:
            continue
        cells = sheet.ref(first, columns[what], last)
        cell = inputs.get(f"slo/{what}")
        # A limit with a unit, as "2s", is no number to a formula: then it is as it was solved for.
        limit = cell.cell if cell is not None and isinstance(cell.was, int | float) else getattr(slo, what, None)
        yield Check(what, "the slowest workers in use", Formula(f"=MAX({cells})"), limit, "s")
    count, gpus = (a1(first, columns[name]) + ":" + a1(last, columns[name]) for name in ("count", "num_gpus"))
    sheet.put(last + 1, 0, "GPUs in all", "unit")
    sheet.put(last + 1, columns["num_gpus"], Formula(f"=SUMPRODUCT({count},{gpus})"), "number")
