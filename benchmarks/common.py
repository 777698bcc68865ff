"""What every benchmark needs: where the data is, rows, and how they are printed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cli.command import keep_stdout


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure beside its reference, both from this run unless reference_name says otherwise."""

    case: str
    measure: str
    ours: float
    reference: float | None
    reference_name: str
    unit: str
    better: str


def data_folder(topic: str) -> Path:
    """Folder of real measurements; set GPUPLAN_SHARED_DATA when it is not beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("GPUPLAN_SHARED_DATA", default)) / topic
    if not folder.is_dir():
        sys.exit(f"benchmark data not found in {folder}; set GPUPLAN_SHARED_DATA")
    return folder


def seconds(action: Callable[[], object], repeats: int = 3) -> float:
    """Shortest of a few runs: what is left of a shared machine's noise."""
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
    return best


def main(topic: str, cases: dict[str, Callable[[bool], Iterable[Row]]]) -> None:
    """Run the cases (all, or those named) and print a table, or JSON rows."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{topic}")
    parser.add_argument("--short", action="store_true", help="a form that ends within a minute or two")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    parser.add_argument("--case", action="append", choices=sorted(cases), help="only this case (repeatable)")
    options = parser.parse_args()
    keep_stdout()
    chosen = options.case or list(cases)
    rows: list[Row] = []
    if not options.json:
        print(f"{'case':34} {'measure':34} {'ours':>10} {'reference':>10}  {'unit':8} reference is")
    for name in chosen:
        for row in _flushed(cases[name](options.short)):
            rows.append(row)
            if not options.json:
                reference = "-" if row.reference is None else f"{row.reference:10.4f}"
                print(
                    f"{row.case:34} {row.measure:34} {row.ours:10.4f} {reference:>10}  {row.unit:8}"
                    f" {row.reference_name}",
                    flush=True,
                )
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))


def _flushed(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        sys.stderr.flush()
        yield row
