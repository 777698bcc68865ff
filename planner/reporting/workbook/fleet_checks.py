"""Checks and Solved for: whether the plan still keeps its limits, and whether the inputs are still those it was solved for."""

from __future__ import annotations

from collections.abc import Iterator

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan
from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, a1
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet_inputs import (
    HOURS_COL,
    MEAN_COL,
    NUMBER_ROW,
    PEAK_COL,
    columns_of,
    last_row,
    num_hours,
    scalar_value,
)
from planner.reporting.workbook.fleet_plan import (
    GROUP_KIND,
    GROUP_LOAD,
    PLAN_GPUS,
    ROUTE_THROUGHPUT,
    Places,
)
from planner.reporting.workbook.layout import (
    DEMAND,
    FIRST_ROW,
    INPUTS,
    OFFERS,
    SCALARS,
    TABLES,
    TITLE_ROW,
    TOLERANCE,
    UNIT_ROW,
    VALUE_COL,
)
from planner.reporting.workbook.values import to_cell

#: Relative overload that is rounding of a solver, as in the independent check.
ROUNDING = "0.00001"
CHECKS, SOLVED = "Checks", "Solved for"
STATUS_ROW = 2
#: Columns of Checks and of Solved for.
(CHECK, SUBJECT, VALUE, LIMIT, MARGIN, UNIT, HOLDS) = range(7)
(WHERE, WHAT, WAS, NOW, LEAST, MOST, INSIDE) = range(7)


def check_sheets(book: Book, instance: FleetInstance, plan: FleetPlan, places: Places, facts: FleetFacts) -> None:
    """Add Checks and Solved for, and the names Plan_status, Checks_failing and Inputs_changed."""
    checks = book.add(CHECKS, "Does the plan still hold?", "A margin below 0 breaks a limit; below 0.1 it is tight.")
    solved = book.add(
        SOLVED, "What the plan was solved for", "A number may move by the share that is let pass, all else not at all."
    )
    checks.row(TITLE_ROW + 3, ("check", "of", "value", "limit", "margin", "unit", "holds"), "head")
    checks.widths |= {0: 34, 1: 40, 2: 14, 3: 14, 4: 12, 5: 16, 6: 10}
    first = row = TITLE_ROW + 4
    for what, subject, value, limit, unit in _live(book, instance, plan, places):
        _check(checks, row, what, subject, Formula(value), limit, unit)
        row += 1
    for margin in facts.margins:
        _check(checks, row, margin.what, margin.subject, margin.value, margin.limit, margin.unit)
        row += 1
    holds = checks.ref(first, HOLDS, row - 1).split("!")[1]
    inside = _solved_for(book, solved, instance)
    checks.row(STATUS_ROW, ("the plan is",), "head")
    failing = checks.put(STATUS_ROW + 1, 1, Formula(f'=SUMPRODUCT(--({holds}<>"yes"))'), "whole")
    changed = checks.put(STATUS_ROW + 2, 1, Formula(f'=SUMPRODUCT(--({inside}<>"yes"))'), "whole")
    checks.put(STATUS_ROW + 1, 0, "checks that fail")
    checks.put(STATUS_ROW + 2, 0, "inputs that changed")
    status = checks.put(STATUS_ROW, 1, Formula(_status(a1(STATUS_ROW + 1, 1), a1(STATUS_ROW + 2, 1))), "flag")
    book.names |= {"Plan_status": status, "Checks_failing": failing, "Inputs_changed": changed}
    checks.rules += [
        Rule(checks.inside(STATUS_ROW, 1, STATUS_ROW, 1), "word", "CURRENT"),
        Rule(checks.inside(first, MARGIN, row - 1, MARGIN), "margin"),
        Rule(checks.inside(first, HOLDS, row - 1, HOLDS), "word"),
    ]
    checks.frozen = first, 1


def _status(failing: str, changed: str) -> str:
    broken = f'"BROKEN: "&{failing}&" checks fail; plan again"'
    stale = f'"STALE: "&{changed}&" inputs are not those it was solved for; plan again"'
    return f'=IF({failing}>0,{broken},IF({changed}>0,{stale},"CURRENT"))'


def _check(sheet: Sheet, row: int, what: str, subject: str, value: Formula | float, limit: str | float | None,
           unit: str) -> None:  # fmt: skip
    """One row: the margin is the share of the limit that is left; without a limit there is none to break."""
    sheet.row(row, (what, subject))
    style = "percent" if unit == "share" else "number"
    sheet.put(row, VALUE, value, style)  # type: ignore[arg-type]
    shown = Formula(f'=IF(ISNUMBER({limit}),{limit},"")') if isinstance(limit, str) else limit
    sheet.put(row, LIMIT, shown, style)  # type: ignore[arg-type]
    v, most = a1(row, VALUE), a1(row, LIMIT)
    sheet.put(row, UNIT, unit)
    if what.startswith("least"):
        margin, holds = f"({v}-{most})/MAX({most},1)", f"{v}>={most}"
    else:
        margin, holds = f'IF({most}=0,"",1-{v}/{most})', f"{v}<={most}*(1+{ROUNDING})+{ROUNDING}"
    known = f"AND(ISNUMBER({v}),ISNUMBER({most}))"
    # A value that is not known does not keep a limit that is there.
    sheet.put(row, MARGIN, Formula(f'=IF({known},{margin},"")'), "number")
    text = f'=IFERROR(IF(ISNUMBER({most}),IF(ISNUMBER({v}),IF({holds},"yes","no"),"no"),"yes"),"no")'
    sheet.put(row, HOLDS, Formula(text))


Row = tuple[str, str, str, str | float | None, str]


def _live(book: Book, instance: FleetInstance, plan: FleetPlan, places: Places) -> Iterator[Row]:
    """(what, of what, formula of the value, limit, unit) of every limit of the instance."""
    offers, columns = book.sheet(OFFERS.sheet), columns_of(OFFERS)
    for number, (offer, model, gpus) in enumerate(places.kinds, 1):
        worst = f"=SUMPRODUCT(MAX(({places.group(GROUP_KIND)}={number})*{places.group(GROUP_LOAD)}))"
        yield "load with headroom", f"{model} on {offer}, replicas of {gpus}", worst, 1, "share"
    if places.routes:
        yield (
            "routes that serve nothing", "within the latency limits",
            f"=SUMPRODUCT(--({places.route(ROUTE_THROUGHPUT)}<=0))", 0, "routes",
        )  # fmt: skip
    for place, offer in enumerate(instance.offers):
        counts = places.over_periods(places.offer_rows[offer.name])
        limit = {title: offers.ref(FIRST_ROW + place, columns[title]) for title in ("most", "least")}
        yield "most instances", offer.name, f"=MAX({counts})", limit["most"], "instances"
        if offer.min_count:
            yield "least instances", offer.name, f"=MIN({counts})", limit["least"], "instances"
        if any(one.offer == offer.name for period in plan.periods for one in period.replicas):
            taken = places.over_periods(places.taken_rows[offer.name])
            size = places.plan.ref(places.offer_rows[offer.name], PLAN_GPUS)
            yield "GPUs beyond those there", offer.name, f"=SUMPRODUCT(MAX({taken}-{counts}*{size}))", 0, "GPUs"
    yield "budget", "any hour", "=Peak_cost", "Budget", "USD/hour"
    yield "power", "any hour", "=Peak_power", "Power", "W"
    quotas = book.sheet("Quotas")
    for place, quota in enumerate(instance.quotas):
        used = places.over_periods(places.quota_rows[quota.name])
        yield "quota", quota.name, f"=MAX({used})", quotas.ref(FIRST_ROW + place, 2), "GPUs"
    models = book.sheet("Models")
    for place, model in enumerate(instance.models):
        if model.name in places.least_rows:
            least = models.ref(FIRST_ROW + place, 5)
            running = places.over_periods(places.least_rows[model.name])
            yield "least replicas", model.name, f"=MIN({running})", least, "replicas"
        if model.name in places.spot_rows:
            share = places.over_periods(places.spot_rows[model.name])
            yield "share on spot", model.name, f"=MAX({share})", "Most_on_spot", "share"


def _solved_for(book: Book, sheet: Sheet, instance: FleetInstance) -> str:
    """One row an input; the cells that say whether it is inside its range."""
    titles = ("cell", "what", "solved for", "now", "from", "to", "inside")
    sheet.row(TITLE_ROW, titles, "head")
    sheet.row(UNIT_ROW, ("", "", "", "", "", "", "yes or no"), "unit")
    sheet.widths |= {0: 20, 1: 40, 2: 18, 3: 18}
    sheet.frozen = FIRST_ROW, 0
    row = FIRST_ROW
    for cell, what, was in _inputs(book, instance):
        _solved(sheet, row, cell, what, was)
        row += 1
    inside = sheet.ref(FIRST_ROW, INSIDE, row - 1)
    sheet.rules.append(Rule(sheet.inside(FIRST_ROW, INSIDE, row - 1, INSIDE), "word"))
    return inside


Was = str | float | None


def _inputs(book: Book, instance: FleetInstance) -> Iterator[tuple[str, str, Was]]:
    """(cell, what it is, value) of every input."""
    inputs = book.sheet(INPUTS)
    for place, field in enumerate(SCALARS):
        if field is not TOLERANCE:
            cell = inputs.ref(FIRST_ROW + 2 + place, VALUE_COL)
            yield cell, field.title, to_cell(scalar_value(instance, field))
    for table in TABLES:
        sheet = book.sheet(table.sheet)
        end = last_row(table, instance)
        entries = getattr(instance, table.key)
        named = sheet.ref(FIRST_ROW, 0, end)
        yield f"COUNTA({named})", f"rows of {table.sheet}", len(entries)
        for place in range(len(entries)):
            for col, field in enumerate(table.fields):
                value = sheet.cells[FIRST_ROW + place, col].value
                assert not isinstance(value, Formula)
                yield sheet.ref(FIRST_ROW + place, col), f"{table.sheet} {place + 1}: {field.title}", value
    yield from _hourly(book.sheet(DEMAND.sheet), instance)


def _hourly(sheet: Sheet, instance: FleetInstance) -> Iterator[tuple[str, str, Was]]:
    """Of hourly rates: the mean, the peak, and the hour on which they centre, which a shift in time moves."""
    end = HOURS_COL + num_hours(instance) - 1
    for place, one in enumerate(instance.demand):
        if one.hourly is None or not any(one.hourly):
            continue
        row = FIRST_ROW + place
        label = f"Demand {place + 1}:"
        rates = sheet.ref(row, HOURS_COL, row, end)
        mean = sum(one.hourly) / len(one.hourly)
        yield f"{sheet.ref(row, MEAN_COL)}", f"{label} mean of the hours, growth included", mean
        yield f"{sheet.ref(row, PEAK_COL)}", f"{label} peak of the hours, growth included", max(one.hourly)
        centre = sum((hour + 1) * rate for hour, rate in enumerate(one.hourly)) / sum(one.hourly)
        numbers = sheet.ref(NUMBER_ROW, HOURS_COL, NUMBER_ROW, end)
        yield f"SUMPRODUCT({rates},{numbers})/SUM({rates})", f"{label} hour they centre on", centre


def _solved(sheet: Sheet, row: int, cell: str, what: str, was: Was) -> None:
    sheet.put(row, WHERE, cell if "(" not in cell else "computed")
    sheet.put(row, WHAT, what)
    style = "number" if isinstance(was, int | float) else "text"
    sheet.put(row, WAS, was, style)  # type: ignore[arg-type]
    if was is None:
        sheet.put(row, NOW, Formula(f'=IF(ISBLANK({cell}),"",{cell})'))
        sheet.put(row, INSIDE, Formula(f'=IFERROR(IF(ISBLANK({cell}),"yes","no"),"no")'))
        return
    sheet.put(row, NOW, Formula(f'=IFERROR({cell},"gone")'), style)  # type: ignore[arg-type]
    now, before = a1(row, NOW), a1(row, WAS)
    if isinstance(was, str):
        # A number typed for a text is another value, whatever its digits are.
        sheet.put(row, INSIDE, Formula(f'=IF(AND(ISTEXT({now}),EXACT({now},{before})),"yes","no")'))
        return
    # 1E-9: sums are rounded differently by different programs.
    around = f"ABS({before})*(Change_that_is_let_pass+0.000000001)"
    sheet.put(row, LEAST, Formula(f"={before}-{around}"), "number")
    sheet.put(row, MOST, Formula(f"={before}+{around}"), "number")
    least, most = a1(row, LEAST), a1(row, MOST)
    text = f'=IF(ISNUMBER({now}),IF(AND({now}>={least},{now}<={most}),"yes","no"),"no")'
    sheet.put(row, INSIDE, Formula(text))
