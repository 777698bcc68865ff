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

#: A table of workers, and a fleet of all that may come with one: named configurations of one size, roles apart, hours,
#: zones of which one may be lost, reserved instances, a quota and a least number of replicas.
WORKERS = """worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s
tp1,chat,l40s,A,1,250,100,4
tp1,chat,l40s,A,1,2000,200,0.8
tp2,chat,h100_sxm,A,2,250,100,22
tp2,chat,h100_sxm,A,2,2000,200,6
tp2 long,chat,h100_sxm,A,2,250,100,17
tp2 long,chat,h100_sxm,A,2,2000,200,8
pre,coder,h100_sxm,P,1,4000,400,9
dec,coder,h100_sxm,D,1,4000,400,5
dec l40s,coder,l40s,D,1,4000,400,1.5
"""
OF_WORKERS = """
problem: fleet
name: workers
workers: workers.csv
headroom: 0.1
spare_zones: 1
budget_usd_per_hour: 1000
quotas: [{name: l40s, max_gpus: 120, offers: [l40s a, l40s b]}]
models: [{name: chat}, {name: coder, min_replicas: 1}]
offers:
  - {name: l40s a, device: l40s, gpus: 4, price_usd_per_hour: 7, zone: a, region: east, max_count: 40}
  - {name: l40s b, device: l40s, gpus: 4, price_usd_per_hour: 7, zone: b, region: east, max_count: 40}
  - {name: h100 a, device: h100_sxm, gpus: 8, price_usd_per_hour: 40, zone: a, region: east, max_count: 10}
  - {name: h100 b, device: h100_sxm, gpus: 8, price_usd_per_hour: 40, zone: b, region: east, max_count: 10}
  - {name: base, device: h100_sxm, gpus: 8, price_usd_per_hour: 30, zone: c, region: east, market: reserved}
demand:
  - {model: chat, input_tokens: 250, output_tokens: 100, hourly: [10, 30, 60, 20]}
  - {model: chat, input_tokens: 2000, output_tokens: 200, hourly: [3, 8, 12, 5]}
  - {model: coder, input_tokens: 4000, output_tokens: 400, hourly: [1, 6, 9, 2]}
"""

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


def of_workers(folder: Path) -> Path:
    """The fleet of a table of workers, written into a folder."""
    (folder / "workers.csv").write_text(WORKERS)
    (folder / "of_workers.yaml").write_text(OF_WORKERS)
    return folder / "of_workers.yaml"
