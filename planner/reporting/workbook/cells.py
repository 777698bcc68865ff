"""A workbook as data: cells, formulas, and what a spreadsheet program shows of them. No file format is known here.

Rows and columns count from 0, as everywhere in Python; references in formulas are made by `Sheet.ref` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

ChartKind = Literal["line", "column", "bar"]
#: How a value is shown. Names of styles, and of number formats in `xlsx`.
Style = Literal["text", "number", "whole", "usd", "percent", "title", "note", "head", "unit", "flag"]


@dataclass(frozen=True, slots=True)
class Formula:
    """What a spreadsheet program computes. No text of a user stands in it: it refers to the cell with the text."""

    text: str


Value = str | float | int | bool | None | Formula


@dataclass(frozen=True, slots=True)
class Cell:
    """A value and its looks; `asked` cells are yellow: the ones to fill in."""

    value: Value
    style: Style = "text"
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Validation:
    """What a spreadsheet program lets one type into cells. choices : words, or a reference to cells with them."""

    cells: str
    kind: Literal["choices", "whole", "number"]
    choices: Sequence[str] | str = ()
    least: float = 0.0
    most: float = 1e9
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """Colours by value. margin: red below 0, amber below 0.1, green above; word: `good` green, others red; bar."""

    cells: str
    kind: Literal["margin", "word", "bar"]
    good: str = "yes"


@dataclass(frozen=True, slots=True)
class Series:
    """One line or set of columns of a chart; references with their sheet."""

    name: str
    categories: str
    values: str
    second_axis: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart and the cell of its upper left corner."""

    kind: ChartKind
    title: str
    series: Sequence[Series]
    x_title: str
    y_title: str
    row: int
    y2_title: str = ""


def column_letters(col: int) -> str:
    """0 -> A, 26 -> AA."""
    letters = ""
    while col >= 0:
        col, digit = divmod(col, 26)
        letters, col = chr(ord("A") + digit) + letters, col - 1
    return letters


def a1(row: int, col: int) -> str:
    """Name of a cell, as people say it: B6."""
    return f"{column_letters(col)}{row + 1}"


@dataclass(slots=True)
class Sheet:
    """One sheet, filled cell by cell. frozen : rows and columns that stay in sight."""

    name: str
    cells: dict[tuple[int, int], Cell] = field(default_factory=dict)
    widths: dict[int, float] = field(default_factory=dict)
    frozen: tuple[int, int] = (0, 0)
    validations: list[Validation] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)

    def put(self, row: int, col: int, value: Value, style: Style = "text", asked: bool = False) -> str:
        """Fill a cell; the reference to it."""
        self.cells[row, col] = Cell(value, style, asked)
        return self.ref(row, col)

    def row(self, row: int, values: Sequence[Value], style: Style = "text", col: int = 0) -> None:
        """Fill a row from a column on."""
        for place, value in enumerate(values):
            self.put(row, col + place, value, style)

    def ref(self, row: int, col: int, last_row: int | None = None, last_col: int | None = None) -> str:
        """An absolute reference to a cell, or to the block from it to the last row and column."""
        first = f"${column_letters(col)}${row + 1}"
        name = self.name if self.name.isalnum() else f"'{self.name}'"
        if last_row is None and last_col is None:
            return f"{name}!{first}"
        last = f"${column_letters(col if last_col is None else last_col)}${(row if last_row is None else last_row) + 1}"
        return f"{name}!{first}:{last}"

    def inside(self, row: int, col: int, last_row: int, last_col: int) -> str:
        """The block without the sheet's name, as rules and validations want it."""
        return f"{a1(row, col)}:{a1(last_row, last_col)}"


@dataclass(slots=True)
class Book:
    """Sheets in order and names of cells. written : date of the book, ISO 8601, for its properties."""

    title: str
    written: str
    sheets: list[Sheet] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, title: str, note: str = "") -> Sheet:
        """A new sheet with its title and a line on what it is for."""
        sheet = Sheet(name)
        sheet.put(0, 0, title, "title")
        if note:
            sheet.put(1, 0, note, "note")
        self.sheets.append(sheet)
        return sheet

    def sheet(self, name: str) -> Sheet:
        """A sheet by its name; KeyError when there is none."""
        for sheet in self.sheets:
            if sheet.name == name:
                return sheet
        raise KeyError(name)
