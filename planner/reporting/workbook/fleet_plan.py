"""Plan, Placement and Hours of a fleet's workbook: the solver's counts and shares as values, what follows as formulas.

A period is a set of hours with the same demand when the plan was made. A route's rate is the highest of its period's
hours, so that what is told of load is never too low when hours change.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan
from planner.plan import FleetDocument
from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, a1, column_letters
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet_inputs import (
    FACTOR_COL,
    HOURS_COL,
    MEAN_COL,
    PERIOD_ROW,
    POWER_COL,
    columns_of,
    last_row,
    num_hours,
)
from planner.reporting.workbook.layout import DEMAND, FIRST_ROW, OFFERS, PROFILES, TITLE_ROW, UNIT_ROW

#: Hours of a month, on average: 8760 / 12.
MONTH_H = 730
#: Columns of Placement: routes, a gap, replicas.
(ROUTE_PERIOD, ROUTE_GROUP, ROUTE_MODEL, ROUTE_INPUT, ROUTE_OUTPUT, ROUTE_OFFER, ROUTE_GPUS, ROUTE_SHARE, ROUTE_RATE,
 ROUTE_THROUGHPUT, ROUTE_BUSY, ROUTE_NEED, ROUTE_SPOT, ROUTE_FROM) = range(14)  # fmt: skip
(GROUP, GROUP_PERIOD, GROUP_KIND, GROUP_OFFER, GROUP_MODEL, GROUP_GPUS, GROUP_COUNT, GROUP_THERE, GROUP_NEED,
 GROUP_WHOLE, GROUP_SLACK, GROUP_USE, GROUP_LOAD) = range(15, 28)  # fmt: skip
#: Columns of Plan's table, and the row of its head.
(PLAN_OFFER, PLAN_GPU, PLAN_GPUS, PLAN_PRICE, PLAN_POWER, PLAN_PEAK, PLAN_MEAN, PLAN_PERIODS) = range(8)
PLAN_ROW = 24

#: Offer, model and GPUs of replicas.
ReplicaKind = tuple[str, str, int]
#: Rows of a sheet by period and name.
Rows = defaultdict[tuple[int, str], list[int]]


@dataclass(slots=True)
class Places:
    """Where the rows of the plan's sheets are, for the formulas of other sheets. Rows of Plan by what they tell."""

    plan: Sheet
    placement: Sheet
    hours: Sheet
    num_periods: int
    routes: range = range(0)
    groups: range = range(0)
    kinds: list[ReplicaKind] = field(default_factory=list)
    offer_rows: dict[str, int] = field(default_factory=dict)
    taken_rows: dict[str, int] = field(default_factory=dict)
    quota_rows: dict[tuple[str, int], int] = field(default_factory=dict)
    least_rows: dict[str, int] = field(default_factory=dict)
    spot_rows: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    def route(self, col: int) -> str:
        """A column of the routes."""
        return self.placement.ref(self.routes.start, col, self.routes.stop - 1)

    def group(self, col: int) -> str:
        """A column of the replicas."""
        return self.placement.ref(self.groups.start, col, self.groups.stop - 1)

    def over_periods(self, row: int) -> str:
        """A row of Plan, all periods."""
        return self.plan.ref(row, PLAN_PERIODS, row, PLAN_PERIODS + self.num_periods - 1)


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
    _replicas(book, places, instance, plan)
    _routes(book, places, instance, plan, facts)
    _need(places)
    _fleet(book, places, instance, plan)
    _hours(book, places, instance, plan)
    _key_numbers(book, places, document)
    return places


def _offer_cell(book: Book, instance: FleetInstance, offer: str, col: int) -> str:
    """A cell of the offer's row in the catalogue."""
    place = [one.name for one in instance.offers].index(offer)
    sheet = book.sheet(OFFERS.sheet)
    return sheet.ref(FIRST_ROW + place, col)


def _replicas(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan) -> None:
    sheet = places.placement
    titles = ("no.", "period", "kind", "offer", "model", "GPUs", "replicas", "there", "needed", "whole", "slack", "use",
              "full")  # fmt: skip
    units = ("", "", "", "", "", "a replica", "planned", "on average", "with headroom", "needed", "replicas",
             "without headroom", "with headroom")  # fmt: skip
    sheet.row(TITLE_ROW, titles, "head", GROUP)
    sheet.row(UNIT_ROW, units, "unit", GROUP)
    sheet.widths |= {ROUTE_MODEL: 22, ROUTE_OFFER: 26, GROUP_OFFER: 26, GROUP_MODEL: 22, ROUTE_FROM: 14}
    availability = columns_of(OFFERS)["availability"]
    row = FIRST_ROW
    for number, period in enumerate(plan.periods, 1):
        for one in period.replicas:
            kind = one.offer, one.model, one.gpus
            if kind not in places.kinds:
                places.kinds.append(kind)
            sheet.row(row, [row - FIRST_ROW + 1, number, places.kinds.index(kind) + 1], "whole", GROUP)
            sheet.row(row, [one.offer, one.model], "text", GROUP_OFFER)
            sheet.row(row, [one.gpus, one.count], "whole", GROUP_GPUS)
            there = f"={a1(row, GROUP_COUNT)}*{_offer_cell(book, instance, one.offer, availability)}"
            sheet.put(row, GROUP_THERE, Formula(there), "number")
            row += 1
    places.groups = range(FIRST_ROW, row)
    sheet.frozen = FIRST_ROW, 0


def _routes(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan, facts: FleetFacts) -> None:
    sheet = places.placement
    titles = ("period", "replicas no.", "model", "input", "output", "offer", "GPUs", "share", "rate", "one replica",
              "busy", "needed", "on spot", "one replica is")  # fmt: skip
    units = ("", "", "", "tokens", "tokens", "", "a replica", "of this size", "requests/s", "requests/s", "replicas",
             "with headroom", "requests/s", "from")  # fmt: skip
    sheet.row(TITLE_ROW, titles, "head")
    sheet.row(UNIT_ROW, units, "unit")
    sizes = {(one.model, one.input_tokens, one.output_tokens): place for place, one in enumerate(instance.demand)}
    market = columns_of(OFFERS)["market"]
    row, before = FIRST_ROW, 0
    for number, period in enumerate(plan.periods, 1):
        groups = {(one.offer, one.model, one.gpus): before + place for place, one in enumerate(period.replicas, 1)}
        before += len(period.replicas)
        for one in period.assignment:
            demand = sizes[one.model, one.input_tokens, one.output_tokens]
            sheet.row(row, [number, groups[one.offer, one.model, one.gpus]], "whole", ROUTE_PERIOD)
            sheet.put(row, ROUTE_MODEL, one.model)
            sheet.row(row, [one.input_tokens, one.output_tokens], "whole", ROUTE_INPUT)
            sheet.put(row, ROUTE_OFFER, one.offer)
            sheet.put(row, ROUTE_GPUS, one.gpus, "whole")
            sheet.put(row, ROUTE_SHARE, one.fraction, "percent")
            sheet.put(row, ROUTE_RATE, Formula(_rate(book, instance, demand, number)), "number")
            throughput = facts.throughput[demand, one.offer, one.gpus]
            profile = _profile(instance, demand, one.offer, one.gpus, throughput)
            if profile is None:
                sheet.put(row, ROUTE_THROUGHPUT, throughput, "number")
                sheet.put(row, ROUTE_FROM, "cost model")
            else:
                cell = book.sheet(PROFILES.sheet).ref(FIRST_ROW + profile, columns_of(PROFILES)["highest rate"])
                sheet.put(row, ROUTE_THROUGHPUT, Formula(f"={cell}"), "number")
                sheet.put(row, ROUTE_FROM, "profile")
            rate, share, served = (a1(row, col) for col in (ROUTE_RATE, ROUTE_SHARE, ROUTE_THROUGHPUT))
            sheet.put(row, ROUTE_BUSY, Formula(f"=IF({served}>0,{rate}*{share}/{served},0)"), "number")
            sheet.put(row, ROUTE_NEED, Formula(f"={a1(row, ROUTE_BUSY)}*(1+Headroom)"), "number")
            spot = f'=IF({_offer_cell(book, instance, one.offer, market)}="spot",{rate}*{share},0)'
            sheet.put(row, ROUTE_SPOT, Formula(spot), "number")
            row += 1
    places.routes = range(FIRST_ROW, row)


def _rate(book: Book, instance: FleetInstance, demand: int, period: int) -> str:
    """Requests/s of a row of Demand in a period, growth included."""
    sheet = book.sheet(DEMAND.sheet)
    row = FIRST_ROW + demand
    if instance.demand[demand].hourly is None:
        return f"={sheet.ref(row, MEAN_COL)}"
    end = HOURS_COL + num_hours(instance) - 1
    of_period = f"({sheet.ref(PERIOD_ROW, HOURS_COL, PERIOD_ROW, end)}={period})*{sheet.ref(row, HOURS_COL, row, end)}"
    return f"={sheet.ref(row, FACTOR_COL)}*SUMPRODUCT(MAX({of_period}))"


def _profile(instance: FleetInstance, demand: int, offer: str, gpus: int, throughput: float) -> int | None:
    """The row of Profiles that a route's throughput is from; None where the cost model computed it."""
    asked = instance.demand[demand]
    own = {one.name: one.gpus for one in instance.offers}[offer]
    found = [
        (one.input_tokens * one.output_tokens, place)
        for place, one in enumerate(instance.profiles)
        if (one.offer, one.model, one.gpus or own, one.max_rate_per_s) == (offer, asked.model, gpus, throughput)
        and one.input_tokens >= asked.input_tokens
        and one.output_tokens >= asked.output_tokens
    ]
    return min(found)[1] if found else None


def _need(places: Places) -> None:
    """What the replicas of each group have to do."""
    sheet = places.placement
    for row in places.groups:
        there = a1(row, GROUP_THERE)
        need = f"SUMIFS({places.route(ROUTE_NEED)},{places.route(ROUTE_GROUP)},{a1(row, GROUP)})"
        busy = f"SUMIFS({places.route(ROUTE_BUSY)},{places.route(ROUTE_GROUP)},{a1(row, GROUP)})"
        if not places.routes:
            need = busy = "0"
        sheet.put(row, GROUP_NEED, Formula(f"={need}"), "number")
        share = f"IF({a1(row, GROUP_COUNT)}>0,{there}/{a1(row, GROUP_COUNT)},1)"
        # 1E-9: what rounding leaves over is no replica.
        sheet.put(row, GROUP_WHOLE, Formula(f"=ROUNDUP({a1(row, GROUP_NEED)}/{share}-0.000000001,0)"), "whole")
        sheet.put(row, GROUP_SLACK, Formula(f"={there}-{a1(row, GROUP_NEED)}"), "number")
        sheet.put(row, GROUP_USE, Formula(f"=IF({there}>0,{busy}/{there},0)"), "percent")
        sheet.put(row, GROUP_LOAD, Formula(f"=IF({there}>0,{a1(row, GROUP_NEED)}/{there},0)"), "percent")
    if places.groups:
        for col in (GROUP_USE, GROUP_LOAD):
            cells = sheet.inside(places.groups.start, col, places.groups.stop - 1, col)
            sheet.rules.append(Rule(cells, "bar"))


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
        sheet.put(row, PLAN_OFFER, Formula(f"={_offer_cell(book, instance, offer.name, columns['name'])}"))
        sheet.put(row, PLAN_GPU, Formula(f"={_offer_cell(book, instance, offer.name, columns['GPU'])}"))
        for col, source in ((PLAN_GPUS, columns["GPUs"]), (PLAN_PRICE, columns["price"]), (PLAN_POWER, POWER_COL)):
            cell = _offer_cell(book, instance, offer.name, source)
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
        served = f"{in_period}*{places.route(ROUTE_RATE)}*{places.route(ROUTE_SHARE)}"
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
            style = {"cost": "usd", "load": "percent", "instances": "whole", "GPUs": "whole", "power": "whole"}
            sheet.put(places.totals[name], col, Formula(text), style.get(name, "number"))  # type: ignore[arg-type]
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
                for here in replicas.get((number, offer.name), ())
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
            for number in range(1, places.num_periods + 1):
                rows = routes.get((number, model.name), ())
                spot = "+".join(places.placement.ref(here, ROUTE_SPOT) for here in rows) or "0"
                served = "+".join(
                    f"{places.placement.ref(here, ROUTE_RATE)}*{places.placement.ref(here, ROUTE_SHARE)}"
                    for here in rows
                )
                text = f"=IF({served}>0,({spot})/({served}),0)" if served else "=0"
                sheet.put(row, PLAN_PERIODS + number - 1, Formula(text), "percent")


def _rows(plan: FleetPlan) -> tuple[Rows, Rows]:
    """Rows of Placement: of replicas by period and offer, of routes by period and model."""
    replicas, routes = Rows(list), Rows(list)
    group = route = FIRST_ROW
    for number, period in enumerate(plan.periods, 1):
        for place, replica in enumerate(period.replicas):
            replicas[number, replica.offer].append(group + place)
        for place, one in enumerate(period.assignment):
            routes[number, one.model].append(route + place)
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
        shown = (("instances", "whole"), ("GPUs", "whole"), ("cost", "usd"), ("power", "whole"), ("load", "percent"))
        for place, (name, style) in enumerate(shown):
            text = f"=INDEX({places.over_periods(places.totals[name])},1,{a1(row, 1)})"
            sheet.put(row, 3 + place, Formula(text), style)  # type: ignore[arg-type]


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
    rows = (
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
            reference = sheet.put(row, 1, Formula(text), style)  # type: ignore[arg-type]
            if name:
                book.names[name] = reference
        sheet.put(row, 2, solved, style)  # type: ignore[arg-type]
        sheet.put(row, 3, unit)
