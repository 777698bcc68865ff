"""The yellow sheets of a fleet's workbook: Inputs, Models, Catalogue, Demand, Profiles, Quotas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner import catalog
from planner.catalog.devices import device_names, folded
from planner.descriptions.base import Description
from planner.descriptions.fleet import FleetInstance
from planner.errors import DescriptionError, OptionError
from planner.reporting.workbook.cells import Book, Formula, Sheet, Style, Validation, column_letters
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
    MODELS,
    OFFERS,
    PROBLEM,
    PROFILES,
    SCALARS,
    TABLES,
    TITLE_ROW,
    UNIT_ROW,
    VALUE_COL,
    Field,
    Table,
)
from planner.reporting.workbook.values import to_cell
from planner.units import GIB, GIGA

#: Empty yellow rows under a list: at least so many.
SPARE_ROWS = 5
#: Columns of Demand that are computed, after those of its fields.
FACTOR_COL, MEAN_COL, PEAK_COL, HOURS_COL = (len(DEMAND.fields) + place for place in range(4))
#: The computed column of Catalogue, and the first of the GPUs beside it.
POWER_COL = len(OFFERS.fields)
GPU_COL = POWER_COL + 2
#: Rows of Demand with the number of each hour, from 1, and its period.
NUMBER_ROW, PERIOD_ROW = 1, 2


def last_row(table: Table, instance: FleetInstance) -> int:
    """The last yellow row of a list's sheet."""
    return FIRST_ROW + len(getattr(instance, table.key)) + SPARE_ROWS - 1


def input_sheets(book: Book, instance: FleetInstance, folder: str) -> None:
    """Add the yellow sheets. folder : what relative paths in the instance are relative to, from the workbook."""
    _scalars(book, instance, folder)
    for table in TABLES:
        sheet = book.add(table.sheet, table.title, table.note)
        _table(sheet, table, instance)
    _gpus(book.sheet(OFFERS.sheet), instance)
    _demand(book.sheet(DEMAND.sheet), instance)
    _name_lists(book, instance)


def _scalars(book: Book, instance: FleetInstance, folder: str) -> None:
    sheet = book.add(
        INPUTS, "What to plan", "Fill in the yellow cells, save, and run: gpuplan plan plan.xlsx -o new.xlsx"
    )
    sheet.row(TITLE_ROW, ["what", "value", "unit", "note"], "head")
    sheet.widths |= {0: 28, 1: 24, 2: 16, 3: 70}
    sheet.frozen = FIRST_ROW, 0
    row = FIRST_ROW
    sheet.row(row, [PROBLEM, "fleet"])
    sheet.row(row + 1, [FOLDER, folder, "", "relative names of files begin here, as seen from this workbook"])
    for place, field in enumerate(SCALARS):
        here = row + 2 + place
        sheet.row(here, [field.title, None, field.unit, field.note])
        style = style_of(field)
        reference = sheet.put(here, VALUE_COL, to_cell(scalar_value(instance, field)), style, asked=True)
        _validate(sheet, field, here, here, VALUE_COL)
        book.names[_name(field.title)] = reference


def style_of(field: Field) -> Style:
    """How the values of a field are shown."""
    return "number" if field.kind in ("number", "whole") else "text"


def _name(title: str) -> str:
    """A cell's name in formulas: `headroom` is Headroom, `growth of all demand` Growth_of_all_demand."""
    return title[:1].upper() + title[1:].replace(" ", "_")


def scalar_value(instance: FleetInstance, field: Field) -> Any:
    """What the instance says for a row of Inputs."""
    if field is GROWTH:
        return 1
    if field is IN_FORCE:
        return instance.current is not None
    return value_of(instance, field)


def value_of(described: Description, field: Field) -> Any:
    """The value of a field's keys; True for `yes` fields where there is something."""
    value: Any = described
    for key in field.keys:
        value = None if value is None else getattr(value, key)
    return value is not None if field.kind == "yes" else value


def _table(sheet: Sheet, table: Table, instance: FleetInstance) -> None:
    end = last_row(table, instance)
    entries = getattr(instance, table.key)
    for col, field in enumerate(table.fields):
        sheet.put(TITLE_ROW, col, field.title, "head")
        sheet.put(UNIT_ROW, col, field.unit or None, "unit")
        sheet.widths[col] = 30 if field.kind in ("text", "names") and not field.choices else 12
        style = style_of(field)
        for row in range(FIRST_ROW, end + 1):
            sheet.put(row, col, None, style, asked=True)
        for place, entry in enumerate(entries):
            if field is CURRENT:
                value = (instance.current or {}).get(entry.name)
            else:
                value = 1 if field is DEMAND_GROWTH else value_of(entry, field)
            sheet.put(FIRST_ROW + place, col, to_cell(value), style, asked=True)
        _validate(sheet, field, FIRST_ROW, end, col)
    sheet.frozen = FIRST_ROW, 1


def _validate(sheet: Sheet, field: Field, first: int, last: int, col: int) -> None:
    cells = sheet.inside(first, col, last, col)
    if field.choices:
        sheet.validations.append(Validation(cells, "choices", field.choices, hint=field.note))
    elif field.kind in ("yes", "true"):
        sheet.validations.append(Validation(cells, "choices", ("yes",), hint=field.note))
    elif field.kind in ("whole", "number"):
        least = -1000 if field.title == "priority" else 0
        kind: Any = field.kind
        sheet.validations.append(Validation(cells, kind, least=least, hint=field.note))


def _name_lists(book: Book, instance: FleetInstance) -> None:
    """Names are chosen from those that are listed on other sheets."""
    offers, models = book.sheet(OFFERS.sheet), book.sheet(MODELS.sheet)
    offer_names = offers.ref(FIRST_ROW, 0, last_row(OFFERS, instance))
    model_names = models.ref(FIRST_ROW, 0, last_row(MODELS, instance))
    for table, col, choices in ((DEMAND, 0, model_names), (PROFILES, 0, offer_names), (PROFILES, 1, model_names)):
        sheet = book.sheet(table.sheet)
        cells = sheet.inside(FIRST_ROW, col, last_row(table, instance), col)
        sheet.validations.append(Validation(cells, "choices", choices))
    gpus = [row for row, col in offers.cells if col == GPU_COL and row >= FIRST_ROW]
    cells = offers.inside(FIRST_ROW, 1, last_row(OFFERS, instance), 1)
    offers.validations.append(Validation(cells, "choices", offers.ref(FIRST_ROW, GPU_COL, max(gpus))))


def _gpus(sheet: Sheet, instance: FleetInstance) -> None:
    """GPUs of the catalogue by the names in use, with their source; and the power of each offer, computed."""
    titles = ("GPU of the catalogue", "memory", "bandwidth", "board power", "source")
    sheet.row(TITLE_ROW, titles, "head", GPU_COL)
    sheet.row(UNIT_ROW, ("", "GiB", "GB/s", "W", ""), "unit", GPU_COL)
    sheet.widths |= {POWER_COL: 12, GPU_COL: 22, GPU_COL + 4: 60}
    names = {folded(name): name for name in device_names()}
    # An offer's own spelling comes first: power is looked up by it.
    spelt = {offer.device.casefold(): offer.device for offer in instance.offers}
    listed = [*spelt.values(), *(name for name in names.values() if name.casefold() not in spelt)]
    row = FIRST_ROW
    for name in listed:
        try:
            kind = catalog.device(name)
        except (OptionError, DescriptionError):
            continue
        memory, bandwidth = kind.memory_bytes / GIB, kind.hbm_bandwidth_bytes_per_s / GIGA
        sheet.row(row, [name, round(memory, 1), round(bandwidth, 1), kind.power_w, kind.source], "number", GPU_COL)
        row += 1
    known = sheet.ref(FIRST_ROW, GPU_COL, row - 1).split("!")[1]
    power = sheet.ref(FIRST_ROW, GPU_COL + 3, row - 1).split("!")[1]
    columns = {field.title: place for place, field in enumerate(OFFERS.fields)}
    sheet.put(TITLE_ROW, POWER_COL, "power", "head")
    sheet.put(UNIT_ROW, POWER_COL, "W, empty: unknown", "unit")
    for place in range(FIRST_ROW, last_row(OFFERS, instance) + 1):
        device, gpus, watts = (cell_name(place, columns[title]) for title in ("GPU", "GPUs", "watts"))
        board = f"SUMPRODUCT(({known}={device})*{power})"
        text = f'=IF(ISNUMBER({watts}),{watts},IF(OR({device}="",{board}=0),"",{gpus}*{board}))'
        sheet.put(place, POWER_COL, Formula(text), "number")


def _demand(sheet: Sheet, instance: FleetInstance) -> None:
    """Growth, mean and peak of each row, computed; and its hours, if any row has hours."""
    for col, title, unit in (
        (FACTOR_COL, "growth in all", "times"),
        (MEAN_COL, "mean", "requests/s"),
        (PEAK_COL, "peak", "requests/s"),
    ):
        sheet.put(TITLE_ROW, col, title, "head")
        sheet.put(UNIT_ROW, col, unit, "unit")
        sheet.widths[col] = 12
    hours = num_hours(instance)
    hourly = any(one.hourly is not None for one in instance.demand)
    end = HOURS_COL + hours - 1
    for hour in range(hours if hourly else 0):
        sheet.put(TITLE_ROW, HOURS_COL + hour, f"{HOUR}{hour}", "head")
        sheet.put(UNIT_ROW, HOURS_COL + hour, "requests/s", "unit")
        sheet.put(NUMBER_ROW, HOURS_COL + hour, hour + 1, "unit")
    rows = range(FIRST_ROW, last_row(DEMAND, instance) + 1)
    for place, row in enumerate(rows):
        given = instance.demand[place].hourly if place < len(instance.demand) else None
        for hour in range(hours if hourly else 0):
            sheet.put(row, HOURS_COL + hour, None if given is None else given[hour], "number", asked=True)
        model, rate, growth = (cell_name(row, col) for col in (0, 4, 5))
        factor = cell_name(row, FACTOR_COL)
        text = f'=IF({model}="",0,IF(ISNUMBER({growth}),{growth},1)*Growth_of_all_demand)'
        sheet.put(row, FACTOR_COL, Formula(text), "number")
        for col, function in ((MEAN_COL, "AVERAGE"), (PEAK_COL, "MAX")):
            span = sheet.inside(row, HOURS_COL, row, end)
            over_hours = f"IF(COUNT({span})=0,0,{function}({span}))" if hourly else "0"
            sheet.put(row, col, Formula(f"={factor}*IF(ISNUMBER({rate}),{rate},{over_hours})"), "number")


def num_hours(instance: FleetInstance) -> int:
    """Hours of the demand; 1 where it is constant."""
    return max((len(one.hourly) for one in instance.demand if one.hourly is not None), default=1)


def cell_name(row: int, col: int) -> str:
    """A cell of the same sheet whose column stays when the formula is copied."""
    return f"${column_letters(col)}{row + 1}"


def columns_of(table: Table) -> Mapping[str, int]:
    """Column of each title."""
    return {field.title: place for place, field in enumerate(table.fields)}
