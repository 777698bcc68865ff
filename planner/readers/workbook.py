"""A filled-in workbook -> an instance, with every mistake located at its cell.

The file comes from outside. It is a ZIP of XML: sizes are bounded before anything is unpacked, entities are refused,
macros and links are never looked at. Only the yellow sheets are read. A formula in a yellow cell counts with the result
that the program stored when it saved the file; one without a stored result, or with an error, is refused.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import DescriptionError, Finding, MissingExtraError
from planner.files import MAX_FINDINGS, Loc, SourceText, canonical_json
from planner.reporting.workbook.cells import a1
from planner.reporting.workbook.layout import (
    CURRENT,
    DEMAND,
    DEMAND_GROWTH,
    FIRST_ROW,
    FOLDER,
    GROWTH,
    HOUR,
    IN_FORCE,
    INPUTS,
    LABEL_COL,
    PROBLEM,
    SCALARS,
    TABLES,
    TITLE_ROW,
    VALUE_COL,
    Field,
    Table,
)
from planner.reporting.workbook.values import names, scalar, unflattened

#: Largest file, most parts in it, and most bytes that they unpack to. Our own books of a year of hours stay far below.
MAX_FILE_BYTES, MAX_PARTS, MAX_UNPACKED_BYTES = 64 * 2**20, 2_000, 512 * 2**20
#: Most rows and columns of a sheet that are read, and most cells of it.
MAX_ROWS, MAX_COLUMNS, MAX_CELLS = 100_000, 10_000, 4_000_000
#: What starts the declarations that blow XML up, in the encodings that XML parsers read.
DECLARATIONS = tuple("<!DOCTYPE".encode(code) for code in ("ascii", "utf-16-le", "utf-16-be"))

Grid = list[list[Any]]


@dataclass(frozen=True)
class WorkbookSource(SourceText):
    """An instance read from a workbook. cells : by key, the sheet and cell that gave the value, as `Inputs!B6`."""

    cells: Mapping[Loc, str] = field(default_factory=dict)

    def finding(self, loc: Loc, message: str) -> Finding:
        """A Finding at the cell of the key, or of its nearest parent."""
        for length in range(len(loc), -1, -1):
            cell = self.cells.get(loc[:length])
            if cell is not None:
                break
        rest = ".".join(str(step) for step in loc[length:])
        if cell is None:
            return Finding(self.path, f"{rest}: {message}" if rest else message)
        return Finding(f"{self.path}:{cell}", f"{rest}: {message}" if rest else message)


def read_workbook(path: str | Path) -> WorkbookSource:
    """The instance in a workbook. Raises MissingExtraError, and DescriptionError with all that cannot be read."""
    name = str(path)
    _refuse_bombs(name)
    grids = _grids(name)
    if INPUTS not in grids:
        raise DescriptionError.single(name, f"has no sheet {INPUTS!r}: is it a workbook of gpuplan?")
    reader = _Reader(name, grids)
    value = reader.instance()
    if reader.findings:
        raise DescriptionError(reader.findings[:MAX_FINDINGS])
    base_dir = (Path(name).resolve().parent / reader.folder).resolve()
    return WorkbookSource(name, canonical_json(value), value, base_dir, reader.cells)


def _refuse_bombs(name: str) -> None:
    """Bound what the file unpacks to, by its own directory, and refuse XML that declares entities."""
    try:
        if Path(name).stat().st_size > MAX_FILE_BYTES:
            raise DescriptionError.single(name, f"is larger than {MAX_FILE_BYTES} bytes")
        with zipfile.ZipFile(name) as archive:
            parts = archive.infolist()
            if len(parts) > MAX_PARTS or sum(part.file_size for part in parts) > MAX_UNPACKED_BYTES:
                message = f"unpacks to more than {MAX_UNPACKED_BYTES} bytes or {MAX_PARTS} parts: no workbook of ours"
                raise DescriptionError.single(name, message)
            for part in parts:
                # zipfile reads no more of a part than the directory says.
                if part.filename.endswith((".xml", ".rels")):
                    _refuse_entities(name, archive.read(part), part.filename)
    except OSError as error:
        raise DescriptionError.single(name, f"cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise DescriptionError.single(name, f"is no .xlsx file: {error}") from None


def _refuse_entities(name: str, data: bytes, part: str) -> None:
    if any(mark in data for mark in DECLARATIONS):
        raise DescriptionError.single(name, f"{part} declares XML entities, which no spreadsheet program writes")


def _grids(name: str) -> dict[str, Grid]:
    """Values of the yellow sheets, by sheet."""
    try:
        import openpyxl
    except ImportError:
        raise MissingExtraError("workbooks need the extra gpuplan[xlsx]") from None
    try:
        with warnings.catch_warnings(), open(name, "rb") as one, open(name, "rb") as other:
            # openpyxl tells of looks that it would lose in writing; nothing is written.
            warnings.simplefilter("ignore")
            values = openpyxl.load_workbook(one, read_only=True, data_only=True, keep_links=False)
            formulas = openpyxl.load_workbook(other, read_only=True, data_only=False, keep_links=False)
            wanted = [INPUTS, *(table.sheet for table in TABLES)]
            found = {
                sheet: _grid(name, values[sheet], formulas[sheet]) for sheet in wanted if sheet in values.sheetnames
            }
            values.close()
            formulas.close()
    except DescriptionError:
        raise
    except Exception as error:
        # openpyxl raises whatever its parsing runs into: KeyError, TypeError, ParseError, AttributeError.
        raise DescriptionError.single(
            name, f"is no .xlsx file that can be read: {error or type(error).__name__}"
        ) from None
    return found


def _grid(name: str, values: Any, formulas: Any) -> Grid:
    """Rows of values; a _Mistake where a formula has no stored result, or an error is stored."""
    if not hasattr(values, "iter_rows"):
        return []
    grid: Grid = []
    cells = 0
    for sheet in (values, formulas):
        # What the file says of its own size is not believed.
        sheet.reset_dimensions()
    rows = zip(values.iter_rows(), formulas.iter_rows(), strict=True)
    for number, (row, asked) in enumerate(rows):
        cells += len(row)
        if number >= MAX_ROWS or len(row) > MAX_COLUMNS or cells > MAX_CELLS:
            message = (
                f"the sheet {values.title} has more than {MAX_ROWS} rows, {MAX_COLUMNS} columns or {MAX_CELLS} cells"
            )
            raise DescriptionError.single(name, message)
        grid.append([_value(one, other) for one, other in zip(row, asked, strict=False)])
    return grid


@dataclass(frozen=True, slots=True)
class _Mistake:
    """Why a cell has no value."""

    message: str


def _value(stored: Any, asked: Any) -> Any:
    value = stored.value
    if value is None:
        is_formula = asked.value is not None and getattr(asked, "data_type", "") == "f"
        return (
            _Mistake("holds a formula without a stored result: open the file, save it, and try again")
            if (is_formula)
            else None
        )
    if stored.data_type == "e":
        return _Mistake(f"holds the error {value}")
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return _Mistake(f"holds {value}, a date or time, where text or a number belongs")


class _Reader:
    """Takes the instance out of the grids; collects findings at cells."""

    def __init__(self, path: str, grids: Mapping[str, Grid]) -> None:
        self.path, self.grids = path, grids
        self.findings: list[Finding] = []
        self.cells: dict[Loc, str] = {}
        self.folder = "."

    def find(self, sheet: str, row: int, col: int, message: str) -> None:
        self.findings.append(Finding(f"{self.path}:{sheet}!{a1(row, col)}", message))

    def instance(self) -> Any:
        """The instance's value, by the problem that Inputs names."""
        rows = self._inputs()
        problem = rows.get(PROBLEM, (FIRST_ROW, None))
        folder = rows.get(FOLDER, (FIRST_ROW, "."))
        if isinstance(folder[1], str):
            self.folder = folder[1]
        if problem[1] == "fleet":
            return self._fleet(rows)
        return self._flat(rows)

    def at(self, sheet: str, row: int, col: int) -> Any:
        """The value of a cell; None where it is empty or mistaken, which is then found."""
        grid = self.grids.get(sheet, [])
        value = grid[row][col] if row < len(grid) and col < len(grid[row]) else None
        if isinstance(value, _Mistake):
            self.find(sheet, row, col, value.message)
            return None
        return value

    def _inputs(self) -> dict[str, tuple[int, Any]]:
        """Row and value of each label of Inputs."""
        found: dict[str, tuple[int, Any]] = {}
        for row in range(FIRST_ROW, len(self.grids[INPUTS])):
            label = self.at(INPUTS, row, LABEL_COL)
            if label is None:
                continue
            if str(label) in found:
                self.find(INPUTS, row, LABEL_COL, f"{label!s:.80} stands here twice")
            found[str(label)] = row, self.at(INPUTS, row, VALUE_COL)
        return found

    def _flat(self, rows: Mapping[str, tuple[int, Any]]) -> Any:
        """Instances of other problems: one value a row, under its path."""
        pairs: list[tuple[str, Any]] = []
        for label, (row, value) in rows.items():
            if label == FOLDER or value is None:
                continue
            loc = tuple(int(step) if step.isascii() and step.isdecimal() else step for step in label.split("/"))
            self.cells[loc] = f"{INPUTS}!{a1(row, VALUE_COL)}"
            try:
                pairs.append((label, scalar(value)))
            except ValueError:
                self.find(INPUTS, row, VALUE_COL, "starts with a quote, but is no JSON text")
        try:
            return unflattened(pairs)
        except ValueError as error:
            label, message = error.args
            self.find(INPUTS, rows.get(label, (FIRST_ROW, None))[0], LABEL_COL, f"{label}: {message}")
            return {}

    def _fleet(self, rows: Mapping[str, tuple[int, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {"problem": "fleet"}
        self.cells[()] = f"{INPUTS}!A1"
        known = {one.title for one in SCALARS} | {PROBLEM, FOLDER}
        for label, (row, _) in rows.items():
            if label not in known:
                self.find(
                    INPUTS, row, LABEL_COL, f"{label[:80]!r} is no key of a fleet; known: {', '.join(sorted(known))}"
                )
        for one in SCALARS:
            row, cell = rows.get(one.title, (FIRST_ROW, None))
            if one.keys:
                self.cells.setdefault(one.keys[:1], f"{INPUTS}!{a1(row, VALUE_COL)}")
                self.cells[one.keys] = f"{INPUTS}!{a1(row, VALUE_COL)}"
            if cell is not None and one.keys and one is not IN_FORCE:
                self._put(value, one, cell, INPUTS, row, VALUE_COL)
        for table in TABLES:
            value[table.key] = self._table(table)
        in_force = rows.get(IN_FORCE.title, (FIRST_ROW, None))[1]
        counts = {
            offer["name"]: offer.pop("current") for offer in value["offers"] if "current" in offer and "name" in offer
        }
        if in_force is not None or counts:
            value["current"] = counts
        self._grow(value["demand"], rows)
        return value

    def _factor(self, cell: Any, sheet: str, row: int, col: int) -> float:
        """A multiple of the demand; 1 where the cell is empty."""
        if cell is None:
            return 1
        if isinstance(cell, bool) or not isinstance(cell, int | float) or not 0 <= cell <= 1e6:
            self.find(sheet, row, col, f"must be a number from 0 to a million (got {str(cell)[:80]!r})")
            return 1
        return cell

    def _grow(self, demand: list[dict[str, Any]], rows: Mapping[str, tuple[int, Any]]) -> None:
        """Rates with the growth that was typed in: the new plan is for them, and its workbook begins at 1 again."""
        row, cell = rows.get(GROWTH.title, (FIRST_ROW, None))
        everywhere = self._factor(cell, INPUTS, row, VALUE_COL)
        for entry in demand:
            factor = entry.pop(DEMAND_GROWTH.title, 1) * everywhere
            if factor == 1:
                continue
            if isinstance(entry.get("rate_per_s"), int | float):
                entry["rate_per_s"] *= factor
            if "hourly" in entry:
                entry["hourly"] = [rate * factor if isinstance(rate, int | float) else rate for rate in entry["hourly"]]

    def _table(self, table: Table) -> list[dict[str, Any]]:
        """Entries of a list's sheet; rows in which nothing is filled in are none."""
        grid = self.grids.get(table.sheet)
        if grid is None:
            self.findings.append(Finding(self.path, f"the sheet {table.sheet!r} is missing"))
            return []
        self.cells[table.key,] = f"{table.sheet}!A{FIRST_ROW + 1}"
        columns = self._columns(table, grid)
        hours = self._hours(grid) if table is DEMAND else []
        entries: list[dict[str, Any]] = []
        for row in range(FIRST_ROW, len(grid)):
            given = [(one, col, self.at(table.sheet, row, col)) for one, col in columns]
            rates = [(col, self.at(table.sheet, row, col)) for col in hours]
            if all(cell is None for _, _, cell in given) and all(cell is None for _, cell in rates):
                continue
            place = len(entries)
            self.cells[table.key, place] = f"{table.sheet}!{a1(row, 0)}"
            entry: dict[str, Any] = {}
            for one, col, cell in given:
                keys = one.keys or (one.title,)
                self.cells.setdefault((table.key, place, *keys[:1]), f"{table.sheet}!{a1(row, col)}")
                self.cells[table.key, place, *keys] = f"{table.sheet}!{a1(row, col)}"
                if one is DEMAND_GROWTH:
                    entry[one.title] = self._factor(cell, table.sheet, row, col)
                elif cell is not None:
                    self._put(entry, one, cell, table.sheet, row, col)
            if any(cell is not None for _, cell in rates):
                entry["hourly"] = list(self._hourly(rates, row, place))
            entries.append(entry)
        return entries

    def _columns(self, table: Table, grid: Grid) -> list[tuple[Field, int]]:
        """The column of each field, by its title; the first where a title stands twice."""
        titles = [str(title) for title in (grid[TITLE_ROW] if len(grid) > TITLE_ROW else [])]
        found = []
        for one in table.fields:
            if one.title in titles:
                found.append((one, titles.index(one.title)))
            elif one is not CURRENT:
                self.find(table.sheet, TITLE_ROW, 0, f"the column {one.title!r} is missing in this row")
        return found

    def _hours(self, grid: Grid) -> list[int]:
        """Columns of the hours, in their order."""
        numbered = {}
        for col, title in enumerate(grid[TITLE_ROW] if len(grid) > TITLE_ROW else []):
            match = re.fullmatch(re.escape(HOUR) + r"(\d{1,5})", str(title))
            if match is not None:
                numbered[int(match[1])] = col
        if sorted(numbered) != list(range(len(numbered))):
            self.find(DEMAND.sheet, TITLE_ROW, min(numbered.values()), "the hours are not numbered 0, 1, 2 ...")
        return [numbered[hour] for hour in sorted(numbered)]

    def _hourly(self, rates: list[tuple[int, Any]], row: int, place: int) -> Iterator[Any]:
        for hour, (col, cell) in enumerate(rates):
            self.cells["demand", place, "hourly", hour] = f"{DEMAND.sheet}!{a1(row, col)}"
            if cell is None:
                self.find(DEMAND.sheet, row, col, "is empty, but other hours of this row have rates; 0 is no request")
            yield 0 if cell is None else cell

    def _put(self, entry: dict[str, Any], one: Field, cell: Any, sheet: str, row: int, col: int) -> None:
        """Put a cell's value under the field's keys; what it must be is the description's to say."""
        value: Any = cell
        if one.kind in ("yes", "true"):
            if cell is not True and str(cell).strip().lower() not in ("yes", "y", "true"):
                self.find(sheet, row, col, f"must be yes or empty (got {str(cell)[:80]!r})")
            value = {} if one.kind == "yes" else True
        elif one.kind == "text" and isinstance(cell, int) and not isinstance(cell, bool):
            # A name of digits, which programs take for a number.
            value = str(cell)
        elif one.kind in ("names", "wholes") or (one.kind == "numbers" and isinstance(cell, str)):
            value = self._list(one, cell, sheet, row, col)
        here = entry
        for key in one.keys[:-1]:
            here = here.setdefault(key, {})
        if one.kind == "yes":
            here.setdefault(one.keys[-1], value)
        else:
            here[one.keys[-1]] = value

    def _list(self, one: Field, cell: Any, sheet: str, row: int, col: int) -> Any:
        try:
            parts = names(str(cell))
            read = {"wholes": int, "numbers": float}.get(one.kind, str)
            return [read(part) for part in parts]
        except (ValueError, TypeError, RecursionError):
            what = {"wholes": "whole numbers", "numbers": "numbers"}.get(one.kind, "names")
            self.find(sheet, row, col, f"must be {what} with a ';' between (got {str(cell)[:80]!r})")
            return []
