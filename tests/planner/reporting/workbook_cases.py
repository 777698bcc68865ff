"""Workbooks in tests: written, edited as a person would, computed anew, and read by their stored results."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import formualizer
import openpyxl

from formulations.gpu_fleet.facts import margins, route_throughput
from formulations.kinds import read_instance
from formulations.outcome import SolveOptions
from formulations.planning import plan
from planner.files import read_source
from planner.plan import FleetDocument, read_document
from planner.reporting.workbook.cells import Book
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet import fleet_book

ROOT = Path(__file__).resolve().parents[3] / "instances"
DATE = "2026-11-21"


def book_of(path: Path, document: FleetDocument | None = None, **facts: Any) -> tuple[Book, FleetDocument]:
    """The workbook of a fleet's file; without a document it is solved."""
    source = read_source(path)
    found, instance = read_instance(source)
    problem = found.read(instance, source)
    solved: Any = document or plan(problem, options=SolveOptions(time_limit_s=20))
    known = FleetFacts(
        throughput=route_throughput(problem, solved.plan),
        margins=margins(instance, problem, solved.plan, source),
        **facts,
    )
    return fleet_book(instance, solved, known, DATE), solved


@cache
def shipped(name: str) -> tuple[Book, FleetDocument]:
    """The workbook of a shipped fleet and its best known plan."""
    document: Any = read_document(ROOT / "fleet" / f"{name}.best.json")
    return book_of(ROOT / "fleet" / f"{name}.yaml", document)


def place(cell: str) -> tuple[str, int, int]:
    """Plan!B6 -> sheet, row and column from 1."""
    sheet, name = cell.split("!")
    row, col = openpyxl.utils.cell.coordinate_to_tuple(name)
    return sheet, row, col


class Engine:
    """A workbook that computes itself, as a spreadsheet program would."""

    def __init__(self, path: Path) -> None:
        self.book = formualizer.Workbook.from_path(str(path))
        self.book.evaluate_all()

    def __getitem__(self, cell: str) -> Any:
        return self.book.get_value(*place(cell))

    def type(self, cell: str, value: Any) -> None:
        """Type a value into a cell."""
        self.book.set_value(*place(cell), value)
        self.book.evaluate_all()


def stored(path: Path) -> dict[str, Any]:
    """What is stored of every cell that is not empty: of formulas their results."""
    with warnings.catch_warnings():
        # It knows no data bars.
        warnings.simplefilter("ignore")
        file = openpyxl.load_workbook(path, read_only=True, data_only=True)
        found = {
            f"{sheet.title}!{cell.coordinate}": cell.value
            for sheet in file.worksheets
            for row in sheet.iter_rows()
            for cell in row
            if cell.value not in (None, "")
        }
        file.close()
    return found


def edited(path: Path, cells: Mapping[str, Any]) -> Path:
    """The file with other values in some cells, saved by another program."""
    with warnings.catch_warnings():
        # It loses data bars; the yellow cells stay.
        warnings.simplefilter("ignore")
        file = openpyxl.load_workbook(path)
    for cell, value in cells.items():
        sheet, row, col = place(cell)
        file[sheet].cell(row, col).value = value
    target = path.with_name(f"edited_{path.name}")
    file.save(target)
    return target


def cell_of(path: Path, sheet: str, label: str) -> str:
    """The cell beside a label in column A."""
    found = [name for name, value in stored(path).items() if value == label and name.startswith(f"{sheet}!A")]
    assert len(found) == 1, (label, found)
    return f"{sheet}!B{found[0].split('!A')[1]}"
