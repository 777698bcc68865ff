"""The workbook of a fleet: what to fill in, what to rent, whether it still holds, what would change it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan
from planner.plan import FleetDocument
from planner.reporting.workbook.cells import Book, Chart, ChartKind, Formula, Rule, Series, Sheet, Style, Value, a1
from planner.reporting.workbook.checks import check_sheets
from planner.reporting.workbook.explain import explain_sheet
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet_checks import all_inputs, live_checks, not_followed
from planner.reporting.workbook.fleet_inputs import input_sheets, num_hours
from planner.reporting.workbook.fleet_placement import GROUP_KIND, GROUP_LOAD, GROUP_MODEL, Places
from planner.reporting.workbook.fleet_plan import PLAN_MEAN, PLAN_OFFER, PLAN_PRICE, plan_sheets
from planner.reporting.workbook.layout import FIRST_ROW, TITLE_ROW
from planner.reporting.workbook.read_me import read_me


def fleet_book(instance: FleetInstance, document: FleetDocument | None, facts: FleetFacts, written: str) -> Book:
    """The sheets of a fleet; without a plan those to fill in, and why there is none.

    document : the plan for this instance. written : date, ISO 8601.
    """
    book = Book(f"gpuplan: {instance.name}", written)
    front = book.add("Read me", instance.name, "A fleet of GPUs for a demand, planned by gpuplan.")
    input_sheets(book, instance, facts.folder)
    solved = document is not None and document.plan is not None
    if document is not None and document.plan is not None:
        places = plan_sheets(book, instance, document, facts)
        checks = live_checks(book, instance, document.plan, places, facts)
        check_sheets(book, checks, all_inputs(book, instance))
        _scenarios(book, facts)
        _sensitivity(book, instance, document, places, facts)
        followed = [("formulas do not follow", what) for what in not_followed(instance)]
        explain_sheet(book, document, [*followed, *_told(document)])
        _charts(book, instance, facts, places)
    elif document is not None:
        explain_sheet(book, document, [])
    answer = _answer(document.plan) if document is not None and document.plan is not None else ()
    read_me(book, front, document, _SHEETS, solved, answer)
    return book


_SHEETS = (
    ("Inputs", "limits, headroom, growth: yellow cells are yours to change"),
    ("Models", "what is served"),
    ("Catalogue", "what can be rented, at what price; GPUs with their source"),
    ("Demand", "requests a second by model and size, and by hour"),
    ("Profiles", "throughput that was measured; empty: the cost model computes it"),
    ("Quotas", "limits over several offers together"),
    ("Links", "bandwidth between regions"),
    ("Plan", "what to rent, and what it costs"),
    ("Placement", "which replicas run where, and which requests they serve"),
    ("Hours", "demand, instances, cost, power and load of every hour"),
    ("Checks", "margins of every limit, and whether the plan is current, stale or broken"),
    ("Solved for", "every input as it was when the plan was made, and as it is now"),
    ("Scenarios", "the best plan at other demands, solved anew, beside this plan"),
    ("Sensitivity", "what prices, growth and limits do to the cost"),
    ("Explain", "what is proven, what is assumed, what the plain rule would do"),
    ("Charts", "hours, offers, load, scenarios"),
)


def _answer(plan: FleetPlan) -> Sequence[tuple[str, Value | Formula, Style]]:
    """What to rent, and what it costs as things stand."""
    most: dict[str, int] = {}
    for period in plan.periods:
        there: dict[str, int] = {}
        for row in period.allocation:
            there[row.offer] = there.get(row.offer, 0) + row.count
        most |= {offer: max(count, most.get(offer, 0)) for offer, count in there.items()}
    rent = ", ".join(f"{count} x {offer}" for offer, count in most.items() if count)
    when = "rent" if len(plan.periods) == 1 else "rent, at most at a time"
    return (when, rent or "nothing", "text"), ("USD an hour", Formula("=Cost"), "usd")


def _scenarios(book: Book, facts: FleetFacts) -> None:
    sheet = book.add(
        "Scenarios", "At other demands", "All rates times a factor. Costs and mixes are solved anew; the last are live."
    )
    titles = ("demand", "status", "cost", "no plan below", "gap", "GPUs", "instances", "this plan holds", "this plan")
    sheet.row(TITLE_ROW, titles, "head")
    sheet.row(TITLE_ROW + 1, ("times", "", "USD/hour", "USD/hour", "", "most", "most of each", "", "USD/hour"), "unit")
    sheet.widths |= {1: 14, 6: 60, 7: 16}
    if not facts.scenarios:
        sheet.put(FIRST_ROW, 0, "not solved: gpuplan workbook writes this sheet with --studies", "note")
    for place, one in enumerate(facts.scenarios):
        row = FIRST_ROW + place
        mix = ", ".join(f"{count} x {name}" for name, count in one.instances.items())
        sheet.row(row, (one.factor, one.status), "text")
        sheet.row(row, (one.usd_per_hour, one.bound_usd_per_hour), "usd", 2)
        sheet.put(row, 4, one.gap, "percent")
        sheet.put(row, 5, one.gpus_peak, "whole")
        sheet.put(row, 6, mix or "; ".join(one.reasons)[:1000])
        # Load is proportional to the demand; growth that was typed in is already in it.
        load = f"{a1(row, 0)}*Fullest/Growth_of_all_demand"
        sheet.put(row, 7, Formula(f'=IF(Growth_of_all_demand>0,IF({load}<=1.00001,"yes","no"),"yes")'))
        sheet.put(row, 8, Formula("=Cost"), "usd")
    if facts.scenarios:
        cells = sheet.inside(FIRST_ROW, 7, FIRST_ROW + len(facts.scenarios) - 1, 7)
        sheet.rules.append(Rule(cells, "word"))


def _sensitivity(
    book: Book, instance: FleetInstance, document: FleetDocument, places: Places, facts: FleetFacts
) -> None:
    sheet = book.add("Sensitivity", "What moves the cost", "Shares and room for growth are live; reliefs were solved.")
    sheet.widths |= {0: 40, 1: 16, 2: 16, 3: 18, 4: 18}
    row = TITLE_ROW
    sheet.row(row, ("offer", "cost", "share", "10 % dearer adds"), "head")
    sheet.row(row + 1, ("", "USD/hour, mean", "of the cost", "USD/hour"), "unit")
    row += 2
    for offer in instance.offers:
        here = places.offer_rows[offer.name]
        sheet.put(row, 0, Formula(f"={places.plan.ref(here, PLAN_OFFER)}"))
        cost = f"={places.plan.ref(here, PLAN_PRICE)}*{places.plan.ref(here, PLAN_MEAN)}"
        sheet.put(row, 1, Formula(cost), "usd")
        sheet.put(row, 2, Formula(f"=IF(Cost>0,{a1(row, 1)}/Cost,0)"), "percent")
        sheet.put(row, 3, Formula(f"=0.1*{a1(row, 1)}"), "usd")
        row += 1
    row += 1
    sheet.row(row, ("model", "fullest", "room for growth"), "head")
    for model in instance.models:
        row += 1
        own = [number for number, kind in enumerate(places.kinds, 1) if kind[1] == model.name]
        of_kinds = "+".join(f"({places.group(GROUP_KIND)}={number})" for number in own)
        fullest = f"SUMPRODUCT(MAX(({of_kinds})*{places.group(GROUP_LOAD)}))" if own else "0"
        sheet.put(row, 0, model.name)
        sheet.put(row, 1, Formula(f"={fullest}"), "percent")
        sheet.put(row, 2, Formula(f'=IF({a1(row, 1)}>0,1/{a1(row, 1)}-1,"")'), "percent")
    row += 2
    titles = ("limit that binds", "now", "relaxed to", "saves at least", "saves at most")
    sheet.row(row, titles, "head")
    sheet.row(row + 1, ("", "", "", "USD/hour", "USD/hour"), "unit")
    row += 2
    insight = None if document.plan is None else document.plan.insight
    for relief in () if insight is None else insight.reliefs:
        saved = (relief.saves_at_least_usd_per_hour, relief.saves_at_most_usd_per_hour)
        sheet.row(row, (relief.limit, relief.now, relief.relaxed, *saved), "number")
        row += 1
    if insight is None or not insight.reliefs:
        told = "no limit binds" if facts.studied else "not solved: gpuplan workbook solves it with --studies"
        sheet.put(row, 0, told, "note")


def _told(document: FleetDocument) -> Iterator[tuple[str, str]]:
    """What an insight says of the plan without its main offer, and what stays unserved."""
    plan = document.plan
    assert plan is not None
    for tier in plan.tiers:
        yield f"goal: {tier.goal}", f"{tier.value:.6g} {tier.unit}"
    for period in plan.periods[:1] if len(plan.periods) == 1 else ():
        for left in period.unserved:
            size = f"{left.model} {left.input_tokens}/{left.output_tokens} tokens"
            yield "unserved", f"{left.rate_per_s:.6g} requests/s of {size}: {'; '.join(left.limits)}"
    if plan.insight is not None:
        other = plan.insight.without
        if other.objective_usd_per_hour is None:
            yield f"without {other.offer}", f"{other.status}: no plan"
        else:
            mix = ", ".join(f"{count} x {name}" for name, count in other.instances.items())
            yield f"without {other.offer}", f"{other.extra_usd_per_hour:.6g} USD/hour more: {mix}"


def _charts(book: Book, instance: FleetInstance, facts: FleetFacts, places: Places) -> None:
    sheet = book.add("Charts", "To look at")
    row = 2
    hours, plan = places.hours, places.plan
    last = FIRST_ROW + num_hours(instance) - 1
    if last > FIRST_ROW:
        hour = hours.ref(FIRST_ROW, 0, last)
        row = _chart(sheet, row, "line", "Cost and demand by the hour", "hour", "USD/hour", (
            Series("cost", hour, hours.ref(FIRST_ROW, 5, last)),
            Series("requests", hour, hours.ref(FIRST_ROW, 2, last), second_axis=True),
        ), "requests/s")  # fmt: skip
        row = _chart(sheet, row, "line", "Fullest replicas by the hour", "hour", "share of capacity", (
            Series("load with headroom", hour, hours.ref(FIRST_ROW, 7, last)),
        ))  # fmt: skip
    rows = list(places.offer_rows.values())
    names = plan.ref(rows[0], PLAN_OFFER, rows[-1])
    row = _chart(sheet, row, "bar", "Instances of each offer, on average", "", "instances", (
        Series("instances", names, plan.ref(rows[0], PLAN_MEAN, rows[-1])),
    ))  # fmt: skip
    if places.groups and len(places.groups) <= 60:
        labels = places.group(GROUP_MODEL)
        row = _chart(sheet, row, "bar", "Load of the replicas, headroom included", "", "share of capacity", (
            Series("load", labels, places.group(GROUP_LOAD)),
        ))  # fmt: skip
    solved = [place for place, one in enumerate(facts.scenarios) if one.usd_per_hour is not None]
    if len(solved) > 1:
        scenarios = book.sheet("Scenarios")
        end = FIRST_ROW + len(facts.scenarios) - 1
        factor = scenarios.ref(FIRST_ROW, 0, end)
        _chart(sheet, row, "line", "Cost at other demands", "demand, times", "USD/hour", (
            Series("solved anew", factor, scenarios.ref(FIRST_ROW, 2, end)),
            Series("no plan below", factor, scenarios.ref(FIRST_ROW, 3, end)),
        ))  # fmt: skip


def _chart(
    sheet: Sheet, row: int, kind: ChartKind, title: str, x: str, y: str, series: tuple[Series, ...], y2: str = ""
) -> int:
    """Draw one chart and say where the next begins."""
    sheet.charts.append(Chart(kind, title, series, x, y, row, y2))
    return row + 17
