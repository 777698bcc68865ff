"""Plan and Hours of a fleet's workbook: the solver's counts as values; cost, power and load as formulas."""

from __future__ import annotations

from collections import defaultdict

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan, Period
from planner.plan import FleetDocument
from planner.reporting.workbook.cells import Book, Formula, Rule, Style, a1, column_letters
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet_inputs import (
    FACTOR_COL,
    HOURS_COL,
    PERIOD_ROW,
    POWER_COL,
    columns_of,
    last_row,
    num_hours,
)
from planner.reporting.workbook.fleet_placement import (
    GROUP_COUNT,
    GROUP_GPUS,
    GROUP_LOAD,
    GROUP_PERIOD,
    PLAN_PERIODS,
    ROUTE_OUTPUT,
    ROUTE_PERIOD,
    ROUTE_RATE,
    ROUTE_ROLE,
    ROUTE_SHARE,
    ROUTE_SPOT,
    Places,
    add_need,
    add_replicas,
    add_routes,
    offer_cell,
)
from planner.reporting.workbook.layout import DEMAND, FIRST_ROW, OFFERS, TITLE_ROW, UNIT_ROW

#: Hours of a month, on average: 8760 / 12.
MONTH_H = 730
#: Columns of Plan's table, and the row of its head.
(PLAN_OFFER, PLAN_GPU, PLAN_GPUS, PLAN_PRICE, PLAN_POWER, PLAN_PEAK, PLAN_MEAN) = range(PLAN_PERIODS)
PLAN_ROW = 19

#: Rows of a sheet by period and name.
Rows = defaultdict[tuple[int, str], list[int]]
#: How numbers of Plan's totals are shown.
STYLES: dict[str, Style] = {
    "instances": "whole", "GPUs": "whole", "cost": "usd", "power": "whole", "load": "percent",
}  # fmt: skip


def plan_sheets(book: Book, instance: FleetInstance, document: FleetDocument, facts: FleetFacts) -> Places:
    """Add Plan, Placement and Hours of a document that holds a plan."""
    plan = document.plan
    assert plan is not None
    places = Places(
        book.add("Plan", "What to rent", "Counts are the solver's; cost, power and load follow from the yellow cells."),
        book.add("Placement", "Which replicas run where, and which requests they serve", "Shares are the solver's."),
        book.add("Hours", "Hour by hour", "Periods are the solver's: hours that had the same demand."),
        len(plan.periods),
    )
    add_replicas(book, places, instance, plan)
    add_routes(book, places, instance, plan, facts)
    add_need(places)
    _fleet(book, places, instance, plan)
    _hours(book, places, instance, plan)
    _key_numbers(book, places, document)
    return places


def _fleet(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan) -> None:
    """Counts by offer and period, and what follows from them."""
    sheet, columns = places.plan, columns_of(OFFERS)
    end = PLAN_PERIODS + places.num_periods - 1
    sheet.row(PLAN_ROW, ("offer", "GPU", "GPUs", "USD/hour", "W", "most", "mean"), "head")
    sheet.row(PLAN_ROW + 1, ("hours in the period", "", "an instance", "an instance", "an instance", "", ""), "unit")
    sheet.widths |= {0: 34, 1: 18, 2: 14, 3: 14}
    places.totals["hours"] = PLAN_ROW + 1
    hours = num_hours(instance)
    of_hours = places.hours.ref(FIRST_ROW, 1, FIRST_ROW + hours - 1)
    for number in range(1, places.num_periods + 1):
        col = PLAN_PERIODS + number - 1
        sheet.put(PLAN_ROW, col, number, "head")
        sheet.put(PLAN_ROW + 1, col, Formula(f"=SUMPRODUCT(--({of_hours}={number}))"), "whole")
    row = first = PLAN_ROW + 2
    for offer in instance.offers:
        places.offer_rows[offer.name] = row
        sheet.put(row, PLAN_OFFER, Formula(f"={offer_cell(book, instance, offer.name, columns['name'])}"))
        sheet.put(row, PLAN_GPU, Formula(f"={offer_cell(book, instance, offer.name, columns['GPU'])}"))
        for col, source in ((PLAN_GPUS, columns["GPUs"]), (PLAN_PRICE, columns["price"]), (PLAN_POWER, POWER_COL)):
            cell = offer_cell(book, instance, offer.name, source)
            sheet.put(row, col, Formula(f"={cell}"), "usd" if col == PLAN_PRICE else "whole")
        for number, period in enumerate(plan.periods):
            count = sum(one.count for one in period.allocation if one.offer == offer.name)
            sheet.put(row, PLAN_PERIODS + number, count, "whole")
        row += 1
    last = row - 1
    names = ("instances", "GPUs", "cost", "power", "requests", "served", "output tokens", "load")
    units = ("", "", "USD/hour", "W", "asked, requests/s", "requests/s", "served, 1/s", "fullest, with headroom")
    for name, unit in zip(names, units, strict=True):
        places.totals[name] = row
        sheet.put(row, PLAN_OFFER, name, "head")
        sheet.put(row, PLAN_GPU, unit, "unit")
        row += 1
    for number in range(1, places.num_periods + 1):
        col = PLAN_PERIODS + number - 1
        letters = column_letters(col)
        counts = f"{letters}{first + 1}:{letters}{last + 1}"
        gpus, price, power = (sheet.ref(first, one, last).split("!")[1] for one in (PLAN_GPUS, PLAN_PRICE, PLAN_POWER))
        in_period = f"({places.route(ROUTE_PERIOD)}={number})" if places.routes else ""
        # Each request is prefilled once, by replicas that do all of it or that alone.
        once = f'(({places.route(ROUTE_ROLE)}="both")+({places.route(ROUTE_ROLE)}="prefill"))' if places.routes else ""
        served = f"{in_period}*{once}*{places.route(ROUTE_RATE)}*{places.route(ROUTE_SHARE)}"
        of_hours_rate = places.hours.ref(FIRST_ROW, 2, FIRST_ROW + hours - 1)
        texts = {
            "instances": f"=SUM({counts})",
            "GPUs": f"=SUMPRODUCT({gpus},{counts})",
            "cost": f"=SUMPRODUCT({price},{counts})",
            "power": f'=IF(SUMPRODUCT(({counts}>0)*({power}=""))>0,"unknown",SUMPRODUCT({power},{counts}))',
            "requests": f"=SUMPRODUCT(MAX(({of_hours}={number})*{of_hours_rate}))",
            "served": f"=SUMPRODUCT({served})" if places.routes else "=0",
            "output tokens": f"=SUMPRODUCT({served}*{places.route(ROUTE_OUTPUT)})" if places.routes else "=0",
            "load": "=0",
        }
        if places.groups:
            full = f"({places.group(GROUP_PERIOD)}={number})*{places.group(GROUP_LOAD)}"
            texts["load"] = f"=SUMPRODUCT(MAX({full}))"
        for name, text in texts.items():
            sheet.put(places.totals[name], col, Formula(text), STYLES.get(name, "number"))
    hours_row = sheet.ref(PLAN_ROW + 1, PLAN_PERIODS, PLAN_ROW + 1, end).split("!")[1]
    for here in (*places.offer_rows.values(), *(places.totals[name] for name in ("instances", "GPUs", "cost"))):
        span = sheet.inside(here, PLAN_PERIODS, here, end)
        sheet.put(here, PLAN_PEAK, Formula(f"=MAX({span})"), "number")
        sheet.put(here, PLAN_MEAN, Formula(f"=SUMPRODUCT({hours_row},{span})/SUM({hours_row})"), "number")
    _limit_rows(places, instance, plan, row)
    sheet.frozen = 3, 1


def _limit_rows(places: Places, instance: FleetInstance, plan: FleetPlan, row: int) -> None:
    """Sums over several offers or models, by period, that limits are about."""
    sheet, replicas, routes = places.plan, *_rows(plan)
    row += 1
    sheet.put(row, PLAN_OFFER, "GPUs that replicas take", "head")
    for offer in instance.offers:
        row += 1
        places.taken_rows[offer.name] = row
        sheet.put(row, PLAN_OFFER, Formula(f"={a1(places.offer_rows[offer.name], PLAN_OFFER)}"))
        for number in range(1, places.num_periods + 1):
            cells = [
                f"{places.placement.ref(here, GROUP_GPUS)}*{places.placement.ref(here, GROUP_COUNT)}"
                for here in replicas.get((number, offer.name), [])
            ]
            sheet.put(row, PLAN_PERIODS + number - 1, Formula(f"={'+'.join(cells) or '0'}"), "whole")
    row += 1
    for place, quota in enumerate(instance.quotas):
        row += 1
        places.quota_rows[quota.name, place] = row
        sheet.row(row, (quota.name, "GPUs of a quota"))
        for number in range(places.num_periods):
            col = PLAN_PERIODS + number
            rows = [places.offer_rows[name] for name in dict.fromkeys(quota.offers)]
            text = "+".join(f"$C${here + 1}*{a1(here, col)}" for here in rows)
            sheet.put(row, col, Formula(f"={text}"), "whole")
    for model in instance.models:
        if model.min_replicas:
            row += 1
            places.least_rows[model.name] = row
            sheet.row(row, (model.name, "replicas in all"))
            for number, period in enumerate(plan.periods):
                count = sum(one.count for one in period.replicas if one.model == model.name)
                sheet.put(row, PLAN_PERIODS + number, count, "whole")
    if instance.max_spot_share is not None and places.routes:
        for model in instance.models:
            row += 1
            places.spot_rows[model.name] = row
            sheet.row(row, (model.name, "share on spot"))
            for number, period in enumerate(plan.periods, 1):
                text = _spot_share(places, period, routes.get((number, model.name), []), routes[number, ""])
                sheet.put(row, PLAN_PERIODS + number - 1, Formula(text), "percent")


def _spot_share(places: Places, period: Period, rows: list[int], all_rows: list[int]) -> str:
    """The largest share on spot of any stage of a model's requests; each stage is done once."""
    first = all_rows[0] if all_rows else 0
    shares = []
    for roles in (("both", "prefill"), ("both", "decode", "attention"), ("both", "decode", "experts")):
        own = [row for row in rows if period.assignment[row - first].role in roles]
        if own:
            sheet, runs = places.placement, _runs(own)
            spot = "+".join(f"SUM({sheet.ref(low, ROUTE_SPOT, high)})" for low, high in runs)
            served = "+".join(
                f"SUMPRODUCT({sheet.ref(low, ROUTE_RATE, high)},{sheet.ref(low, ROUTE_SHARE, high)})"
                for low, high in runs
            )
            shares.append(f"IF({served}>0,({spot})/({served}),0)")
    return f"=MAX({','.join(dict.fromkeys(shares)) or 0})"


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """First and last of rows that follow one another: formulas have at most 8192 characters."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        low = runs.pop()[0] if runs and runs[-1][1] == row - 1 else row
        runs.append((low, row))
    return runs


def _rows(plan: FleetPlan) -> tuple[Rows, Rows]:
    """Rows of Placement: of replicas by period and offer, of routes by period and model, and of all under ""."""
    replicas, routes = Rows(list), Rows(list)
    group = route = FIRST_ROW
    for number, period in enumerate(plan.periods, 1):
        for place, replica in enumerate(period.replicas):
            replicas[number, replica.offer].append(group + place)
        for place, one in enumerate(period.assignment):
            routes[number, one.model].append(route + place)
            routes[number, ""].append(route + place)
        group, route = group + len(period.replicas), route + len(period.assignment)
    return replicas, routes


def _hours(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan) -> None:
    sheet, demand = places.hours, book.sheet(DEMAND.sheet)
    sheet.row(TITLE_ROW, ("hour", "period", "requests", "instances", "GPUs", "cost", "power", "fullest"), "head")
    sheet.row(UNIT_ROW, ("", "", "requests/s", "", "", "USD/hour", "W", "with headroom"), "unit")
    sheet.frozen = FIRST_ROW, 1
    end = last_row(DEMAND, instance)
    hourly = any(one.hourly is not None for one in instance.demand)
    factor = demand.ref(FIRST_ROW, FACTOR_COL, end)
    rate = demand.ref(FIRST_ROW, columns_of(DEMAND)["rate"], end)
    period_of = {hour: number for number, period in enumerate(plan.periods, 1) for hour in period.hours}
    if hourly:
        demand.put(PERIOD_ROW, HOURS_COL - 1, "period", "unit")
    for hour in range(num_hours(instance)):
        row = FIRST_ROW + hour
        sheet.row(row, (hour, period_of[hour]), "whole")
        text = f"=SUMPRODUCT({factor},{rate})"
        if hourly:
            demand.put(PERIOD_ROW, HOURS_COL + hour, period_of[hour], "unit")
            text += f"+SUMPRODUCT({factor},{demand.ref(FIRST_ROW, HOURS_COL + hour, end)})"
        sheet.put(row, 2, Formula(text), "number")
        for place, (name, style) in enumerate(STYLES.items()):
            text = f"=INDEX({places.over_periods(places.totals[name])},1,{a1(row, 1)})"
            sheet.put(row, 3 + place, Formula(text), style)


def _key_numbers(book: Book, places: Places, document: FleetDocument) -> None:
    """The numbers that people ask for, now and as solved."""
    sheet, outcome = places.plan, document.outcome
    hours, cost = places.over_periods(places.totals["hours"]), places.over_periods(places.totals["cost"])
    power, gpus = places.over_periods(places.totals["power"]), places.over_periods(places.totals["GPUs"])
    mean = f"SUMPRODUCT({hours},{cost})/SUM({hours})"
    metrics = {} if document.verdict is None else {one.name: one.value for one in document.verdict.metrics}
    terms = outcome.terms

    def per_million(name: str) -> str:
        served = f"SUMPRODUCT({hours},{places.over_periods(places.totals[name])})"
        return f"=IF({served}>0,SUMPRODUCT({hours},{cost})/3600/{served}*1000000,0)"

    watts = f'=IF(COUNT({power})<COUNT({hours}),"unknown",MAX({power}))'
    rent = terms.get("rent_usd_per_hour")
    baseline = None if document.baseline is None else document.baseline.objective
    rows: tuple[tuple[str, str | None, float | None, str, Style, str], ...] = (
        ("cost, mean", f"={mean}", rent, "USD/hour", "usd", "Cost"),
        ("cost, a month", f"={mean}*{MONTH_H}", None if rent is None else rent * MONTH_H, "USD", "usd", "Cost_a_month"),
        ("cost, most expensive hour", f"=MAX({cost})", None, "USD/hour", "usd", "Peak_cost"),
        ("power, most", watts, metrics.get("watts_peak"), "W", "whole", "Peak_power"),
        ("GPUs, most", f"=MAX({gpus})", terms.get("gpus_peak"), "", "whole", "Peak_GPUs"),
        ("cost of requests", per_million("served"), terms.get("usd_per_million_requests"), "USD/million", "usd", ""),
        ("cost of output tokens", per_million("output tokens"), terms.get("usd_per_million_output_tokens"),
         "USD/million", "usd", ""),
        ("fullest replicas", f"=MAX({places.over_periods(places.totals['load'])})", None, "of capacity", "percent",
         "Fullest"),
        ("objective", None, outcome.objective, outcome.objective_unit, "usd", ""),
        ("proven: no plan costs less than", None, outcome.bound, outcome.objective_unit, "usd", ""),
        ("gap", None, outcome.gap, "", "percent", ""),
        ("plain rule: " + (document.baseline.name if document.baseline else "none"), None, baseline,
         outcome.objective_unit, "usd", ""),
    )  # fmt: skip
    sheet.put(2, 0, "status", "head")
    sheet.put(2, 1, Formula("=Plan_status"), "flag")
    sheet.rules.append(Rule("B3:B3", "word", "CURRENT"))
    sheet.row(4, ("what", "now", "when solved", "unit"), "head")
    for place, (label, text, solved, unit, style, name) in enumerate(rows):
        row = 5 + place
        sheet.put(row, 0, label)
        if text is not None:
            reference = sheet.put(row, 1, Formula(text), style)
            if name:
                book.names[name] = reference
        sheet.put(row, 2, solved, style)
        sheet.put(row, 3, unit)
