"""CSV with a header -> text columns by name, each row with the line it begins at. Files come from outside: hostile."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from planner.errors import DescriptionError, Finding, OptionError
from planner.files import read_text

FoundT = TypeVar("FoundT")

#: Largest table that is read: about 400,000 serving runs.
MAX_TABLE_BYTES = 64 * 2**20
#: Findings that one message shows; a table with the wrong columns has one in every row.
MAX_FINDINGS = 100
#: Said of a header that has a known name in its first place and nowhere else.
TRANSPOSED = "looks transposed: only its first column has a name that is known; names belong in the first line"
#: Characters of a cell that a message quotes.
QUOTED = 40


@dataclass(frozen=True, slots=True)
class CsvTable:
    """header, fields : the file as it is, all rows as long as the header; lines : where each row begins, from 1."""

    path: str
    header: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The header as columns are looked up: no case, no surrounding space."""
        return tuple(name.strip().lower() for name in self.header)

    def rows(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        """Each row's line and its cells by column name."""
        names = self.names
        for line, fields in zip(self.lines, self.fields, strict=True):
            yield line, dict(zip(names, fields, strict=True))

    def column(self, name: str) -> tuple[str, ...]:
        """One column as text; empty strings when the table has none of that name."""
        names = self.names
        if name not in names:
            return ("",) * len(self.fields)
        index = names.index(name)
        return tuple(row[index] for row in self.fields)

    def with_columns(self, columns: Mapping[str, Sequence[str]], renamed: Mapping[str, str]) -> str:
        """The table as CSV text with more columns at its end, [rows] each.

        renamed : what columns of the table are called that have one of the new names; input_<name> where it says
        nothing. DescriptionError when that name is taken.
        """
        taken, header = set(self.names), []
        for text, name in zip(self.header, self.names, strict=True):
            if name in columns:
                text = renamed.get(name, f"input_{name}")
                if text in taken or text in columns:
                    told = f"column {name} would be written as {text}, and there is one of that name"
                    raise DescriptionError.single(self.path, told, 1)
            header.append(text)
        out = _Lines()
        writer = csv.writer(out)
        writer.writerow([*header, *columns])
        writer.writerows([*row, *added] for row, *added in zip(self.fields, *columns.values(), strict=True))
        return "".join(out.written)


class _Lines:
    """Lines that end in a line feed; a writer that is told to end them so leaves carriage returns in cells bare."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        self.written.append(line.removesuffix("\r\n") + "\n")


def read_csv_table(path: str | Path, required: Sequence[str]) -> CsvTable:
    """Read a table ('-' is standard input); blank lines are left out.

    Raises DescriptionError: too large, not UTF-8, not CSV, no rows, missing or doubled columns, rows of other lengths.
    """
    reader = csv.reader(io.StringIO(read_text(path, MAX_TABLE_BYTES), newline=""), strict=True)
    header: tuple[str, ...] | None = None
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    ragged: list[Finding] = []
    begins = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                if header is None:
                    header = tuple(fields)
                    _check_header(path, header, required, begins)
                elif len(fields) == len(header):
                    rows.append(tuple(fields))
                    lines.append(begins)
                elif len(ragged) < MAX_FINDINGS:
                    told = f"has {len(fields)} fields, but the header has {len(header)}"
                    ragged.append(Finding(str(path), told, begins))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DescriptionError.single(path, f"not valid CSV: {error}", begins) from None
    if ragged:
        raise DescriptionError(ragged)
    if header is None or not rows:
        raise DescriptionError.single(path, "is empty" if header is None else "has no rows below its header")
    return CsvTable(str(path), header, tuple(rows), tuple(lines))


def _check_header(path: str | Path, header: tuple[str, ...], required: Sequence[str], line: int) -> None:
    names = CsvTable(str(path), header, (), ()).names
    findings = []
    missing = [name for name in required if name not in names]
    if missing:
        hint = "; fields are separated by commas" if len(names) == 1 and set(names[0]) & set(";\t") else ""
        findings.append(f"has no column {', '.join(missing)}{hint}")
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        told = ", ".join(map(quoted, twice))
        findings.append(f"has two columns {told}; the first line has the names of columns, each once (not transposed)")
    if findings:
        raise DescriptionError([Finding(str(path), told, line) for told in findings])


def quoted(text: str) -> str:
    """A cell in a message: its beginning, control characters escaped."""
    return repr(text if len(text) <= QUOTED else f"{text[:QUOTED]}...")


class Findings:
    """What is wrong with a table's cells, all of it, told once the whole table is read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.found: list[Finding] = []
        self._once: set[str] = set()

    def __len__(self) -> int:
        return len(self.found)

    def tell(self, line: int, message: str, *, once: bool = False) -> None:
        """Add one; `once`: the same message at another line says nothing new."""
        if not once or message not in self._once:
            self._once.add(message)
            self.found.append(Finding(self.path, message, line))

    def refuse(self) -> None:
        """Raise DescriptionError with the first MAX_FINDINGS of them, if there are any."""
        if len(self.found) > MAX_FINDINGS:
            more = Finding(self.path, f"and {len(self.found) - MAX_FINDINGS} more problems", self.found[-1].line)
            raise DescriptionError([*self.found[:MAX_FINDINGS], more])
        if self.found:
            raise DescriptionError(self.found)

    def whole(self, line: int, column: str, text: str, most: int) -> int:
        """A whole number from 1; a spreadsheet may have written it as 8.0."""
        whole, _, fraction = text.strip().partition(".")
        digits = whole.isascii() and whole.isdecimal() and len(whole) < 10 and not fraction.strip("0")
        if digits and 1 <= int(whole) <= most:
            return int(whole)
        self.tell(line, f"{column} is {quoted(text)}, not a whole number from 1 to {most}")
        return 1

    def positive(self, line: int, column: str, text: str, most: float) -> float:
        """A number above zero; NaN for an empty cell, and for a wrong one."""
        if not text.strip():
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            self.tell(line, f"{column} is {quoted(text.strip())}, not a number above 0 and up to {most:g}")
            return math.nan
        return value

    def choice(self, line: int, column: str, text: str, known: Mapping[str, FoundT]) -> FoundT | None:
        """What a word means, whatever its case; None for one that is not known, which is told once."""
        found = known.get(text.strip().lower())
        if found is None:
            names = ", ".join(sorted(filter(None, known)))
            self.tell(line, f"unknown {column} {quoted(text)}; known: {names}", once=True)
        return found

    def look_up(
        self, known: dict[str, FoundT | None], line: int, column: str, name: str, find: Callable[[str], FoundT]
    ) -> FoundT | None:
        """What a name means, found once and kept in `known`; None for one that means nothing, which is told once."""
        if name not in known:
            known[name] = None
            try:
                known[name] = find(name)
            except OptionError as error:
                self.tell(line, f"{column}: {error}")
            except DescriptionError as error:
                self.found.extend(error.findings)
        return known[name]
