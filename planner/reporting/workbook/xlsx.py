"""A book as an .xlsx file, with the true result of every formula stored beside it; and as CSV files.

Programs that trust stored results (LibreOffice, previews, pandas) would show XlsxWriter's zeros, so the file is
computed once by formualizer and written again with the results.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from planner.errors import ExportError, MissingExtraError
from planner.files import write_atomically, write_text
from planner.reporting.workbook.cells import Book, Chart, Formula, Rule, Sheet, Validation, a1

#: What a spreadsheet program would take for the start of a formula. Source: OWASP, CSV Injection.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
#: Longest text of a cell, and most rows and columns. Source: Excel specifications and limits.
MAX_CHARS, MAX_ROWS, MAX_COLUMNS = 32_767, 1_048_576, 16_384
MAX_FORMULA_CHARS = 8_192
#: Most cells of a book: about 100 MB, and a minute to open.
MAX_CELLS = 2_000_000

Results = Mapping[tuple[str, int, int], Any]

YELLOW, RED, AMBER, GREEN = "#FFF2CC", "#F8CBAD", "#FFE699", "#C6E0B4"
NUMBER_FORMATS = {"number": "#,##0.####", "whole": "#,##0", "usd": "#,##0.00", "percent": "0.0%"}
LOOKS: Mapping[str, Mapping[str, Any]] = {
    "title": {"bold": True, "font_size": 14},
    "note": {"italic": True, "font_color": "#595959"},
    "head": {"bold": True, "bg_color": "#D9E1F2", "bottom": 1, "text_wrap": True, "valign": "top"},
    "unit": {"font_color": "#595959", "italic": True},
    "flag": {"bold": True},
}


class _Exact(float):
    """A number that is written with all of its digits; XlsxWriter keeps 16, and a double may need 17."""

    def __format__(self, spec: str) -> str:
        return repr(float(self))


def require() -> None:
    """Raise MissingExtraError where a package that workbooks need is not installed."""
    for name in ("xlsxwriter", "formualizer"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError("workbooks need the extra gpuplan[xlsx]")


def write_xlsx(book: Book, path: str) -> Results:
    """Write the book, whole or not at all; returns the results of its formulas by sheet, row and column.

    Raises MissingExtraError, DescriptionError (the path) and ExportError (what a workbook cannot hold).
    """
    require()
    _refuse(book)
    results = computed(book)
    data = to_bytes(book, results)
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))
    return results


def computed(book: Book) -> Results:
    """The result of every formula. Raises ExportError where one is an error: a bug of ours, and no book to hand out."""
    import formualizer

    engine = formualizer.Workbook.from_bytes(to_bytes(book, {}))
    engine.evaluate_all()
    results: dict[tuple[str, int, int], Any] = {}
    for sheet in book.sheets:
        for (row, col), cell in sheet.cells.items():
            if isinstance(cell.value, Formula):
                value = engine.get_value(sheet.name, row + 1, col + 1)
                if value is None or isinstance(value, dict):
                    raise ExportError(f"{sheet.name}!{a1(row, col)}: {cell.value.text} has no result ({value})")
                results[sheet.name, row, col] = value
    return results


def to_bytes(book: Book, results: Results) -> bytes:
    """The .xlsx file with these results of formulas; 0 where there is none."""
    import xlsxwriter

    data = io.BytesIO()
    file = xlsxwriter.Workbook(data, {"in_memory": True, "strings_to_urls": False, "strings_to_formulas": False})
    file.set_properties({"title": book.title, "created": datetime.fromisoformat(book.written)})
    writer = _Writer(file, results)
    # All sheets first: formulas and charts refer to later ones.
    pages = [(sheet, file.add_worksheet(sheet.name)) for sheet in book.sheets]
    for name, reference in book.names.items():
        file.define_name(name, f"={reference}")
    for sheet, page in pages:
        writer.fill(sheet, page)
    file.close()
    return data.getvalue()


def write_csv(book: Book, results: Results, folder: str) -> list[str]:
    """One CSV a sheet, formulas as their results; the paths. Text that a program would run as a formula gets a '."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for sheet in book.sheets:
        path = str(Path(folder) / f"{sheet.name.lower().replace(' ', '_')}.csv")
        write_text(path, csv_text(sheet, results))
        paths.append(path)
    return paths


def csv_text(sheet: Sheet, results: Results) -> str:
    """The cells of a sheet as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    height = 1 + max((row for row, _ in sheet.cells), default=-1)
    width = 1 + max((col for _, col in sheet.cells), default=-1)
    grid: list[list[Any]] = [[""] * width for _ in range(height)]
    for (row, col), cell in sheet.cells.items():
        value = results[sheet.name, row, col] if isinstance(cell.value, Formula) else cell.value
        if isinstance(value, str) and value.startswith(FORMULA_STARTS):
            value = f"'{value}"
        grid[row][col] = "" if value is None else value
    writer.writerows(grid)
    return out.getvalue()


def _refuse(book: Book) -> None:
    """Refuse what a workbook cannot hold, naming the cell."""
    total = sum(len(sheet.cells) for sheet in book.sheets)
    if total > MAX_CELLS:
        raise ExportError(f"the workbook would have {total} cells, {MAX_CELLS} is the most; merge hours or sizes")
    for sheet in book.sheets:
        for (row, col), cell in sheet.cells.items():
            where = f"{sheet.name}!{a1(row, col)}"
            if row >= MAX_ROWS or col >= MAX_COLUMNS:
                raise ExportError(f"{where} lies beyond the last row or column of a workbook")
            if isinstance(cell.value, Formula) and len(cell.value.text) > MAX_FORMULA_CHARS:
                raise ExportError(
                    f"{where}: a formula has at most {MAX_FORMULA_CHARS} characters; merge offers or sizes"
                )
            if not isinstance(cell.value, str):
                continue
            if len(cell.value) > MAX_CHARS:
                raise ExportError(f"{where}: a cell holds at most {MAX_CHARS} characters, this text has more")
            if any(unicodedata.category(one) in ("Cc", "Cs") or one in "\ufffe\uffff" for one in cell.value):
                raise ExportError(f"{where}: a workbook cannot hold the control characters of {cell.value[:80]!r}")


class _Writer:
    """Cells, rules and charts of sheets into a file; formats are made once."""

    def __init__(self, file: Any, results: Results) -> None:
        self.file, self.results = file, results
        self.formats: dict[tuple[Any, ...], Any] = {}

    def look(self, style: str, asked: bool, quoted: bool = False) -> Any:
        key = style, asked, quoted
        if key not in self.formats:
            said = {**LOOKS.get(style, {})}
            if style in NUMBER_FORMATS:
                said["num_format"] = NUMBER_FORMATS[style]
            if asked:
                said |= {"bg_color": YELLOW, "border": 1, "border_color": "#BFBFBF"}
            if quoted:
                # The program keeps it as text, even when the cell is edited.
                said["quote_prefix"] = True
            self.formats[key] = self.file.add_format(said)
        return self.formats[key]

    def fill(self, sheet: Sheet, page: Any) -> None:
        for (row, col), cell in sorted(sheet.cells.items()):
            value = cell.value
            quoted = isinstance(value, str) and value.startswith(FORMULA_STARTS)
            look = self.look(cell.style, cell.asked, quoted)
            if isinstance(value, Formula):
                page.write_formula(row, col, value.text, look, self.results.get((sheet.name, row, col), 0))
            elif value is None or value == "":
                page.write_blank(row, col, None, look)
            elif isinstance(value, str):
                page.write_string(row, col, value, look)
            elif isinstance(value, bool):
                page.write_boolean(row, col, value, look)
            else:
                page.write_number(row, col, _Exact(value), look)
        for col, width in sheet.widths.items():
            page.set_column(col, col, width)
        if sheet.frozen != (0, 0):
            page.freeze_panes(*sheet.frozen)
        for validation in sheet.validations:
            page.data_validation(validation.cells, _validation(validation))
        for rule in sheet.rules:
            for said in _conditions(rule):
                colour = said.pop("colour", None)
                if colour is not None:
                    said["format"] = self.coloured(colour)
                page.conditional_format(rule.cells, said)
        for chart in sheet.charts:
            page.insert_chart(chart.row, 0, self.chart(chart))
        page.set_landscape()
        page.fit_to_pages(1, 0)

    def coloured(self, colour: str) -> Any:
        if ("colour", colour) not in self.formats:
            self.formats["colour", colour] = self.file.add_format({"bg_color": colour})
        return self.formats["colour", colour]

    def chart(self, chart: Chart) -> Any:
        drawn = self.file.add_chart({"type": chart.kind})
        for series in chart.series:
            said = {"name": series.name, "categories": f"={series.categories}", "values": f"={series.values}"}
            drawn.add_series({**said, "y2_axis": series.second_axis})
        drawn.set_title({"name": chart.title, "name_font": {"size": 12}})
        drawn.set_x_axis({"name": chart.x_title})
        drawn.set_y_axis({"name": chart.y_title, "min": 0})
        if chart.y2_title:
            drawn.set_y2_axis({"name": chart.y2_title, "min": 0})
        drawn.set_legend({"position": "bottom"})
        drawn.set_size({"width": 900, "height": 320})
        return drawn


def _validation(validation: Validation) -> dict[str, Any]:
    if validation.kind == "choices":
        source = f"={validation.choices}" if isinstance(validation.choices, str) else list(validation.choices)
        # A list warns and does not forbid: names may also be typed before they are listed.
        said: dict[str, Any] = {"validate": "list", "source": source, "error_type": "warning"}
    else:
        kind = "integer" if validation.kind == "whole" else "decimal"
        said = {"validate": kind, "criteria": "between", "minimum": validation.least, "maximum": validation.most}
        said["error_type"] = "warning"
    if validation.hint:
        said |= {"input_message": validation.hint[:255]}
    return said


def _conditions(rule: Rule) -> list[dict[str, Any]]:
    first = rule.cells.split(":")[0]
    if rule.kind == "bar":
        return [{"type": "data_bar", "bar_solid": True, "bar_color": "#8EA9DB", "min_type": "num", "min_value": 0}]
    if rule.kind == "word":
        return [
            {"type": "formula", "criteria": f'=LEFT({first},{len(rule.good)})="{rule.good}"', "colour": GREEN},
            {"type": "formula", "criteria": f"=LEN({first})>0", "colour": RED},
        ]
    # ISNUMBER: an empty cell or a word is no margin.
    return [
        {
            "type": "formula",
            "criteria": f"=AND(ISNUMBER({first}),{first}<-0.00001)",
            "colour": RED,
            "stop_if_true": True,
        },
        {"type": "formula", "criteria": f"=AND(ISNUMBER({first}),{first}<0.1)", "colour": AMBER, "stop_if_true": True},
        {"type": "formula", "criteria": f"=ISNUMBER({first})", "colour": GREEN},
    ]
