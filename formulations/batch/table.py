"""Results as rows, one a job, and what they add up to."""

from __future__ import annotations

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from formulations.batch.results import ENDS, read_rows
from planner.errors import DescriptionError, MissingExtraError, OptionError
from planner.files import canonical_json, write_atomically, write_text

COLUMNS = (
    "job", "instance", "end", "problem", "status", "stop", "objective", "objective_unit", "bound", "gap", "baseline",
    "feasible", "seconds", "pays_back", "gain_per_hour", "move_cost", "error",
)  # fmt: skip
#: Kinds of tables, by suffix.
TABLES = (".csv", ".parquet", ".xlsx")
#: What a spreadsheet takes for the start of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table_row(record: dict[str, Any]) -> dict[str, Any]:
    """One job's record in the columns of a table, its swept values last."""
    document = record["document"] or {}
    outcome = document.get("outcome", {})
    replanning = record.get("replanning") or {}
    verdict, baseline = document.get("verdict") or {}, document.get("baseline") or {}
    found = {
        "job": record["job"],
        "instance": record["instance"],
        "end": record["end"],
        "problem": document.get("problem"),
        **{name: outcome.get(name) for name in ("status", "stop", "objective", "objective_unit", "bound", "gap")},
        "baseline": baseline.get("objective"),
        "feasible": verdict.get("feasible"),
        "seconds": record["seconds"],
        **{name: replanning.get(name) for name in ("pays_back", "gain_per_hour", "move_cost")},
        "error": next(iter(record["errors"]), next(iter(outcome.get("reasons", ())), None)),
    }
    return found | {key: value if _flat(value) else canonical_json(value) for key, value in record["values"].items()}


def _flat(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def table_rows(paths: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Rows of results files in the order of their files; of several records of one job in a file the last.

    Raises DescriptionError.
    """
    for path in paths:
        # Two passes, so that only the places of records are kept, not the records.
        last: dict[str, int] = {}
        for place, row in enumerate(read_rows(path)):
            if "gpuplan_batch" not in row:
                last[row["job"]] = place
        kept = set(last.values())
        yield from (table_row(row) for place, row in enumerate(read_rows(path)) if place in kept)


def write_table(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """A file of the rows. Raises OptionError (a suffix not in TABLES), MissingExtraError, DescriptionError."""
    suffix = Path(path).suffix.lower()
    if suffix not in TABLES:
        raise OptionError(f"a table is a {', '.join(TABLES[:-1])} or {TABLES[-1]} file, got {path!r}")
    columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
    if suffix == ".csv":
        write_text(path, _csv(columns, rows, escaped=True))
    elif suffix == ".xlsx":
        _write_xlsx(path, columns, rows)
    else:
        _write_parquet(path, columns, rows)


def _write_xlsx(path: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """One sheet that can be sorted and filtered; text stays text."""
    try:
        from xlsxwriter import Workbook
    except ImportError:
        raise MissingExtraError("workbooks need the extra gpuplan[xlsx]") from None

    def write(target: str) -> None:
        plain = {"strings_to_formulas": False, "strings_to_urls": False, "nan_inf_to_errors": True}
        with Workbook(target, plain) as book:
            sheet = book.add_worksheet("Jobs")
            sheet.freeze_panes(1, 1)
            cells = [[row.get(name) for name in columns] for row in rows]
            headings = [{"header": name} for name in columns]
            sheet.add_table(0, 0, max(1, len(rows)), len(columns) - 1, {"data": cells, "columns": headings})
            sheet.autofit()

    write_atomically(path, write)


def _write_parquet(path: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    try:
        import duckdb
    except ImportError:
        raise MissingExtraError("Parquet needs the extra gpuplan[parquet]") from None
    with tempfile.TemporaryDirectory() as folder:
        plain = str(Path(folder, "rows.csv"))
        write_text(plain, _csv(columns, rows, escaped=False))
        try:
            source = duckdb.read_csv(plain, header=True, sample_size=-1)
            write_atomically(path, lambda target: source.write_parquet(target))
        except duckdb.Error as error:
            raise DescriptionError.single(path, f"cannot be written as Parquet: {error}") from None


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]], escaped: bool) -> str:
    """escaped : names that a spreadsheet would take for a formula are kept as text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: str(value).lower() if isinstance(value, bool) else value for name, value in row.items()}
        if escaped:
            cells = {
                name: f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
                for name, value in cells.items()
            }
        writer.writerow(cells)
    return out.getvalue()


@dataclass(slots=True)
class Summary:
    """Counts of jobs by how they ended; those that were done, by what is proven."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Count one row of the table."""
        self.counts[how_it_ended(row)] += 1
        self.seconds += row["seconds"]


def how_it_ended(row: dict[str, Any]) -> str:
    """`optimal`, `feasible`, `infeasible` or `unknown` of a search that ended, `breaks a budget`, or the end."""
    if row["end"] != "done":
        return str(row["end"])
    return "breaks a budget" if row["feasible"] is False else str(row["status"])


#: In the order of a summary.
ORDER = ("optimal", "feasible", "breaks a budget", "infeasible", "unknown", *(end for end in ENDS if end != "done"))
