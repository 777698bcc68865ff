"""What a fleet's workbook checks: every limit of the instance, and every input against what it was."""

from __future__ import annotations

from collections.abc import Iterator

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan
from planner.reporting.workbook.cells import Book, Formula, Sheet
from planner.reporting.workbook.checks import Check, Input
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
from planner.reporting.workbook.fleet_placement import GROUP_KIND, GROUP_LOAD, ROUTE_THROUGHPUT, Places
from planner.reporting.workbook.fleet_plan import PLAN_GPUS
from planner.reporting.workbook.layout import (
    DEMAND,
    FIRST_ROW,
    INPUTS,
    MODELS,
    OFFERS,
    QUOTAS,
    SCALARS,
    TABLES,
    VALUE_COL,
)
from planner.reporting.workbook.values import to_cell


def live_checks(
    book: Book, instance: FleetInstance, plan: FleetPlan, places: Places, facts: FleetFacts
) -> Iterator[Check]:
    """Every limit of the instance, live; and the margins of the cost model, as they were when it was solved."""
    for number, (offer, name, gpus, role, worker) in enumerate(places.kinds, 1):
        worst = f"=SUMPRODUCT(MAX(({places.group(GROUP_KIND)}={number})*{places.group(GROUP_LOAD)}))"
        where = f"{name} on {offer}, {gpus} GPU{'s' if gpus > 1 else ''}, {worker or role}"
        yield Check("load with headroom", where, Formula(worst), 1, "share")
    if places.routes:
        none = Formula(f"=SUMPRODUCT(--({places.route(ROUTE_THROUGHPUT)}<=0))")
        yield Check("routes that serve nothing", "within the latency limits", none, 0, "routes")
    yield from _offers(book, instance, plan, places)
    yield Check("budget", "any hour", Formula("=Peak_cost"), "Budget", "USD/hour")
    yield _power(instance, facts)
    quotas, models = book.sheet(QUOTAS.sheet), book.sheet(MODELS.sheet)
    for place, quota in enumerate(instance.quotas):
        used = Formula(f"=MAX({places.over_periods(places.quota_rows[quota.name, place])})")
        limit = quotas.ref(FIRST_ROW + place, columns_of(QUOTAS)["most GPUs"])
        yield Check("quota", quota.name, used, limit, "GPUs")
    for place, model in enumerate(instance.models):
        if model.name in places.least_rows:
            running = Formula(f"=MIN({places.over_periods(places.least_rows[model.name])})")
            limit = models.ref(FIRST_ROW + place, columns_of(MODELS)["least replicas"])
            yield Check("least replicas", model.name, running, limit, "replicas")
        if model.name in places.spot_rows:
            share = Formula(f"=MAX({places.over_periods(places.spot_rows[model.name])})")
            yield Check("share on spot", model.name, share, "Most_on_spot", "share")
    for margin in facts.margins:
        yield Check(margin.what, margin.subject, margin.value, margin.limit, margin.unit)


def _power(instance: FleetInstance, facts: FleetFacts) -> Check:
    """Board power against the limit, or what is expected to be drawn against what the margin leaves of it."""
    if instance.power is None:
        return Check("power", "any hour", Formula("=Peak_power"), "Power", "W")
    left = "(Power*(1-Power_margin))"
    if instance.power.draw == "phases":
        return Check("expected draw", "any hour, as solved", facts.watts_drawn or 0.0, left, "W")
    drawn = Formula('=IF(ISNUMBER(Peak_power),Peak_power*Expected_draw,"unknown")')
    return Check("expected draw", "any hour", drawn, left, "W")


def not_followed(instance: FleetInstance) -> list[str]:
    """Rules of the instance that formulas do not follow: the plan keeps them, and a change of inputs makes it stale."""
    said = {
        "slack of small pools": instance.pool_slack is not None,
        "survival of a lost instance": bool(instance.spare_instances),
        "survival of a lost zone": bool(instance.spare_zones),
        "links between regions": bool(instance.links),
        "networks of instances": any(one.network_bytes_per_s is not None for one in instance.offers),
        "starts and stops, and their cost": any(one.start_cost_usd for one in instance.offers)
        or instance.max_starts is not None
        or instance.max_stops is not None,
        "changes from the fleet in force": instance.current is not None,
        "power by phases": instance.power is not None and instance.power.draw == "phases",
    }
    return [what for what, there in said.items() if there]


def _offers(book: Book, instance: FleetInstance, plan: FleetPlan, places: Places) -> Iterator[Check]:
    """Counts within their limits, and replicas within the GPUs that are there."""
    sheet, columns = book.sheet(OFFERS.sheet), columns_of(OFFERS)
    hosts = {one.offer for period in plan.periods for one in period.replicas}
    for place, offer in enumerate(instance.offers):
        counts = places.over_periods(places.offer_rows[offer.name])
        most, least = (sheet.ref(FIRST_ROW + place, columns[title]) for title in ("most", "least"))
        yield Check("most instances", offer.name, Formula(f"=MAX({counts})"), most, "instances")
        if offer.min_count:
            yield Check("least instances", offer.name, Formula(f"=MIN({counts})"), least, "instances")
        if offer.name in hosts:
            taken = places.over_periods(places.taken_rows[offer.name])
            size = places.plan.ref(places.offer_rows[offer.name], PLAN_GPUS)
            beyond = Formula(f"=SUMPRODUCT(MAX({taken}-{counts}*{size}))")
            yield Check("GPUs beyond those there", offer.name, beyond, 0, "GPUs")


def all_inputs(book: Book, instance: FleetInstance) -> Iterator[Input]:
    """Every input and what it was."""
    inputs = book.sheet(INPUTS)
    for place, field in enumerate(SCALARS):
        cell = inputs.ref(FIRST_ROW + 2 + place, VALUE_COL)
        yield Input(cell, field.title, to_cell(scalar_value(instance, field)))
    for table in TABLES:
        sheet = book.sheet(table.sheet)
        end = last_row(table, instance)
        entries = getattr(instance, table.key)
        named = sheet.ref(FIRST_ROW, 0, end)
        yield Input(f"COUNTA({named})", f"rows of {table.sheet}", len(entries))
        for place in range(len(entries)):
            for col, field in enumerate(table.fields):
                value = sheet.cells[FIRST_ROW + place, col].value
                assert not isinstance(value, Formula)
                label = f"{table.sheet} {place + 1}: {field.title}"
                yield Input(sheet.ref(FIRST_ROW + place, col), label, value)
    yield from _hourly(book.sheet(DEMAND.sheet), instance)


def _hourly(sheet: Sheet, instance: FleetInstance) -> Iterator[Input]:
    """Of hourly rates: the mean, the peak, and the hour on which they centre, which a shift in time moves."""
    end = HOURS_COL + num_hours(instance) - 1
    for place, one in enumerate(instance.demand):
        if one.hourly is None or not any(one.hourly):
            continue
        row = FIRST_ROW + place
        label = f"Demand {place + 1}:"
        rates = sheet.ref(row, HOURS_COL, row, end)
        mean = sum(one.hourly) / len(one.hourly)
        yield Input(sheet.ref(row, MEAN_COL), f"{label} mean of the hours, growth included", mean)
        yield Input(sheet.ref(row, PEAK_COL), f"{label} peak of the hours, growth included", max(one.hourly))
        centre = sum((hour + 1) * rate for hour, rate in enumerate(one.hourly)) / sum(one.hourly)
        numbers = sheet.ref(NUMBER_ROW, HOURS_COL, NUMBER_ROW, end)
        yield Input(f"SUMPRODUCT({rates},{numbers})/SUM({rates})", f"{label} hour they centre on", centre)
