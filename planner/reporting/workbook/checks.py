"""Checks and Solved for: does a plan still keep its limits, and are the inputs those that it was solved for?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, Style, a1
from planner.reporting.workbook.layout import FIRST_ROW, TITLE_ROW, UNIT_ROW

#: Relative overload that is rounding of a solver, as in the independent check.
ROUNDING = "0.00001"
#: Share of a number's change that is let pass unless the workbook says otherwise.
DEFAULT_TOLERANCE = 0.01
STATUS_ROW = 2
#: Columns of Checks and of Solved for.
(CHECK, SUBJECT, VALUE, LIMIT, MARGIN, UNIT, HOLDS) = range(7)
(WHERE, WHAT, WAS, NOW, LEAST, MOST, INSIDE) = range(7)

Was = str | float | bool | None


class Check(NamedTuple):
    """A value and its limit. limit : a number, or a reference to the cell with it; None, or an empty cell: no limit.

    what : begins with `least` where the value must not be below the limit.
    """

    what: str
    subject: str
    value: Formula | float
    limit: str | float | None
    unit: str


class Input(NamedTuple):
    """An input as it was. cell : a reference to it, or what is computed of some cells."""

    cell: str
    what: str
    was: Was


def check_sheets(book: Book, checks: Iterable[Check], inputs: Iterable[Input]) -> None:
    """Add Checks and Solved for, and the names Plan_status, Checks_failing and Inputs_changed."""
    sheet = book.add("Checks", "Does the plan still hold?", "A margin below 0 breaks a limit; below 0.1 it is tight.")
    solved = book.add("Solved for", "What the plan was solved for")
    sheet.row(TITLE_ROW + 3, ("check", "of", "value", "limit", "margin", "unit", "holds"), "head")
    sheet.widths |= {0: 34, 1: 46, 2: 14, 3: 14, 4: 12, 5: 16, 6: 10}
    first = row = TITLE_ROW + 4
    for one in checks:
        _check(sheet, row, one)
        row += 1
    holds = sheet.inside(first, HOLDS, max(first, row - 1), HOLDS)
    inside = _solved_for(book, solved, inputs)
    sheet.row(STATUS_ROW, ("the plan is",), "head")
    failing = sheet.put(STATUS_ROW + 1, 1, Formula(f'=SUMPRODUCT(--({holds}="no"))'), "whole")
    changed = sheet.put(STATUS_ROW + 2, 1, Formula(f'=SUMPRODUCT(--({inside}="no"))'), "whole")
    sheet.put(STATUS_ROW + 1, 0, "checks that fail")
    sheet.put(STATUS_ROW + 2, 0, "inputs that changed")
    status = sheet.put(STATUS_ROW, 1, Formula(_status(a1(STATUS_ROW + 1, 1), a1(STATUS_ROW + 2, 1))), "flag")
    book.names |= {"Plan_status": status, "Checks_failing": failing, "Inputs_changed": changed}
    sheet.rules += [
        Rule(sheet.inside(STATUS_ROW, 1, STATUS_ROW, 1), "word", "CURRENT"),
        Rule(sheet.inside(first, MARGIN, max(first, row - 1), MARGIN), "margin"),
        Rule(holds, "word"),
    ]
    sheet.frozen = first, 1


def _status(failing: str, changed: str) -> str:
    broken = f'"BROKEN: "&{failing}&" checks fail; plan again"'
    stale = f'"STALE: "&{changed}&" inputs are not those it was solved for; plan again"'
    return f'=IF({failing}>0,{broken},IF({changed}>0,{stale},"CURRENT"))'


def _check(sheet: Sheet, row: int, check: Check) -> None:
    """One row: the margin is the share of the limit that is left; without a limit there is none to break."""
    what, subject, value, limit, unit = check
    sheet.row(row, (what, subject))
    style: Style = "percent" if unit == "share" else "number"
    sheet.put(row, VALUE, value, style)
    shown = Formula(f'=IF(ISNUMBER({limit}),{limit},"")') if isinstance(limit, str) else limit
    sheet.put(row, LIMIT, shown, style)
    sheet.put(row, UNIT, unit)
    v, most = a1(row, VALUE), a1(row, LIMIT)
    if what.startswith("least"):
        margin, holds = f'IF({most}=0,"",{v}/{most}-1)', f"{v}>={most}"
    else:
        margin, holds = f'IF({most}=0,"",1-{v}/{most})', f"{v}<={most}*(1+{ROUNDING})+{ROUNDING}"
    known = f"AND(ISNUMBER({v}),ISNUMBER({most}))"
    sheet.put(row, MARGIN, Formula(f'=IF({known},{margin},"")'), "number")
    # A value that is not known does not keep a limit that is there.
    text = f'=IFERROR(IF(ISNUMBER({most}),IF(ISNUMBER({v}),IF({holds},"yes","no"),"no"),"yes"),"no")'
    sheet.put(row, HOLDS, Formula(text))


def _solved_for(book: Book, sheet: Sheet, inputs: Iterable[Input]) -> str:
    """One row an input; the cells that say whether it is inside its range."""
    sheet.put(1, 0, "change of a number that is let pass, as a share", "note")
    book.names["Let_pass"] = sheet.put(1, 2, DEFAULT_TOLERANCE, "number", asked=True)
    titles = ("cell", "what", "solved for", "now", "from", "to", "inside")
    sheet.row(TITLE_ROW, titles, "head")
    sheet.row(UNIT_ROW, ("", "", "", "", "", "", "yes or no"), "unit")
    sheet.widths |= {0: 20, 1: 46, 2: 18, 3: 18}
    sheet.frozen = FIRST_ROW, 0
    row = FIRST_ROW
    for one in inputs:
        _solved(sheet, row, one)
        row += 1
    sheet.rules.append(Rule(sheet.inside(FIRST_ROW, INSIDE, row - 1, INSIDE), "word"))
    return sheet.ref(FIRST_ROW, INSIDE, row - 1)


def _solved(sheet: Sheet, row: int, one: Input) -> None:
    cell, what, was = one
    sheet.put(row, WHERE, cell if "(" not in cell else "computed")
    sheet.put(row, WHAT, what)
    style: Style = "text" if isinstance(was, str | bool) else "number"
    sheet.put(row, WAS, was, style)
    now, before = a1(row, NOW), a1(row, WAS)
    if was is None:
        sheet.put(row, NOW, Formula(f'=IF(ISBLANK({cell}),"",{cell})'))
        inside = f'IFERROR(IF(ISBLANK({cell}),"yes","no"),"no")'
    else:
        sheet.put(row, NOW, Formula(f'=IFERROR({cell},"gone")'), style)
        if isinstance(was, bool):
            inside = f'IF(ISLOGICAL({now}),IF({now}={before},"yes","no"),"no")'
        elif isinstance(was, str):
            # A number typed for a text is another value, whatever its digits are.
            inside = f'IF(ISTEXT({now}),IF(EXACT({now},{before}),"yes","no"),"no")'
        else:
            # 1E-9: sums are rounded differently by different programs.
            around = f"ABS({before})*(Let_pass+0.000000001)"
            sheet.put(row, LEAST, Formula(f"={before}-{around}"), "number")
            sheet.put(row, MOST, Formula(f"={before}+{around}"), "number")
            least, most = a1(row, LEAST), a1(row, MOST)
            inside = f'IF(ISNUMBER({now}),IF(AND({now}>={least},{now}<={most}),"yes","no"),"no")'
    sheet.put(row, INSIDE, Formula(f"={inside}"))
