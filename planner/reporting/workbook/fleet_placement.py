"""Placement of a fleet's workbook: which replicas run, which requests they serve, and how full that makes them.

A period is a set of hours with the same demand when the plan was made. A route's rate is the highest of its period's
hours, so that what is told of load is never too low when hours change.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import Assignment, FleetPlan
from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, a1
from planner.reporting.workbook.facts import FleetFacts
from planner.reporting.workbook.fleet_inputs import (
    FACTOR_COL,
    HOURS_COL,
    MEAN_COL,
    PERIOD_ROW,
    columns_of,
    num_hours,
)
from planner.reporting.workbook.layout import DEMAND, FIRST_ROW, OFFERS, PROFILES, TITLE_ROW, UNIT_ROW

#: Columns of Placement: routes, a gap, replicas.
(ROUTE_PERIOD, ROUTE_GROUP, ROUTE_MODEL, ROUTE_INPUT, ROUTE_OUTPUT, ROUTE_OFFER, ROUTE_GPUS, ROUTE_ROLE, ROUTE_SHARE,
 ROUTE_RATE, ROUTE_THROUGHPUT, ROUTE_BUSY, ROUTE_NEED, ROUTE_SPOT, ROUTE_FROM) = range(15)  # fmt: skip
(GROUP, GROUP_PERIOD, GROUP_KIND, GROUP_OFFER, GROUP_MODEL, GROUP_ROLE, GROUP_GPUS, GROUP_COUNT, GROUP_THERE,
 GROUP_NEED, GROUP_WHOLE, GROUP_SLACK, GROUP_USE, GROUP_LOAD, GROUP_WORKER) = range(16, 31)  # fmt: skip
#: First column of the periods in Plan's table.
PLAN_PERIODS = 7
#: Load of replicas that are not there, of capacity.
NEVER = 1_000_000_000
#: Offer, model, GPUs and role of replicas, and their worker of a table.
ReplicaKind = tuple[str, str, int, str, str | None]


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


def offer_cell(book: Book, instance: FleetInstance, offer: str, col: int) -> str:
    """A cell of the offer's row in the catalogue."""
    place = [one.name for one in instance.offers].index(offer)
    sheet = book.sheet(OFFERS.sheet)
    return sheet.ref(FIRST_ROW + place, col)


def add_replicas(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan) -> None:
    sheet = places.placement
    titles = ("no.", "period", "kind", "offer", "model", "role", "GPUs", "replicas", "there", "needed", "whole",
              "slack", "use", "full", *(["worker"] if instance.workers is not None else []))  # fmt: skip
    units = ("", "", "", "", "", "", "a replica", "planned", "on average", "with headroom", "needed", "replicas",
             "without headroom", "with headroom")  # fmt: skip
    sheet.row(TITLE_ROW, titles, "head", GROUP)
    sheet.row(UNIT_ROW, units, "unit", GROUP)
    sheet.widths |= {
        ROUTE_MODEL: 22,
        ROUTE_OFFER: 26,
        GROUP_OFFER: 26,
        GROUP_MODEL: 22,
        ROUTE_FROM: 14,
        GROUP_WORKER: 22,
    }
    availability = columns_of(OFFERS)["availability"]
    row = FIRST_ROW
    for number, period in enumerate(plan.periods, 1):
        for one in period.replicas:
            kind = one.offer, one.model, one.gpus, one.role, one.worker
            if kind not in places.kinds:
                places.kinds.append(kind)
            sheet.row(row, [row - FIRST_ROW + 1, number, places.kinds.index(kind) + 1], "whole", GROUP)
            sheet.row(row, [one.offer, one.model, one.role], "text", GROUP_OFFER)
            sheet.row(row, [one.gpus, one.count], "whole", GROUP_GPUS)
            sheet.put(row, GROUP_WORKER, one.worker)
            there = f"={a1(row, GROUP_COUNT)}*{offer_cell(book, instance, one.offer, availability)}"
            sheet.put(row, GROUP_THERE, Formula(there), "number")
            row += 1
    places.groups = range(FIRST_ROW, row)
    sheet.frozen = FIRST_ROW, 0


def add_routes(book: Book, places: Places, instance: FleetInstance, plan: FleetPlan, facts: FleetFacts) -> None:
    sheet = places.placement
    titles = ("period", "replicas no.", "model", "input", "output", "offer", "GPUs", "role", "share", "rate",
              "one replica", "busy", "needed", "on spot",
              "one replica is" if instance.workers is None else "worker")  # fmt: skip
    units = ("", "", "", "tokens", "tokens", "", "a replica", "", "of this size", "requests/s", "requests/s",
             "replicas", "with headroom", "requests/s", "from" if instance.workers is None else "")  # fmt: skip
    sheet.row(TITLE_ROW, titles, "head")
    sheet.row(UNIT_ROW, units, "unit")
    sizes = {(one.model, one.input_tokens, one.output_tokens): place for place, one in enumerate(instance.demand)}
    market = columns_of(OFFERS)["market"]
    row, before = FIRST_ROW, 0
    for number, period in enumerate(plan.periods, 1):
        groups = {
            (one.offer, one.model, one.gpus, one.role, one.worker): before + place
            for place, one in enumerate(period.replicas, 1)
        }
        before += len(period.replicas)
        for one in period.assignment:
            demand = sizes[one.model, one.input_tokens, one.output_tokens]
            sheet.row(
                row, [number, groups[one.offer, one.model, one.gpus, one.role, one.worker]], "whole", ROUTE_PERIOD
            )
            sheet.put(row, ROUTE_MODEL, one.model)
            sheet.row(row, [one.input_tokens, one.output_tokens], "whole", ROUTE_INPUT)
            sheet.put(row, ROUTE_OFFER, one.offer)
            sheet.put(row, ROUTE_GPUS, one.gpus, "whole")
            sheet.put(row, ROUTE_ROLE, one.role)
            sheet.put(row, ROUTE_SHARE, one.fraction, "percent")
            sheet.put(row, ROUTE_RATE, Formula(_rate(book, instance, demand, number)), "number")
            throughput = facts.throughput[demand, one.offer, one.gpus, one.role, one.worker]
            profile = _profile(instance, demand, one, throughput)
            if profile is None:
                sheet.put(row, ROUTE_THROUGHPUT, throughput, "number")
                sheet.put(row, ROUTE_FROM, "cost model" if instance.workers is None else one.worker)
            else:
                cell = book.sheet(PROFILES.sheet).ref(FIRST_ROW + profile, columns_of(PROFILES)["highest rate"])
                sheet.put(row, ROUTE_THROUGHPUT, Formula(f"={cell}"), "number")
                sheet.put(row, ROUTE_FROM, "profile")
            rate, share, served = (a1(row, col) for col in (ROUTE_RATE, ROUTE_SHARE, ROUTE_THROUGHPUT))
            sheet.put(row, ROUTE_BUSY, Formula(f"=IF({served}>0,{rate}*{share}/{served},0)"), "number")
            sheet.put(
                row,
                ROUTE_NEED,
                Formula(f"={a1(row, ROUTE_BUSY)}*{_ready(book, instance, demand, period.hours)}"),
                "number",
            )
            spot = f'=IF({offer_cell(book, instance, one.offer, market)}="spot",{rate}*{share},0)'
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


def _profile(instance: FleetInstance, demand: int, route: Assignment, throughput: float) -> int | None:
    """The row of Profiles that a route's throughput is from; None where the cost model computed it."""
    asked = instance.demand[demand]
    own = {one.name: one.gpus for one in instance.offers}[route.offer]
    wanted = route.offer, asked.model, route.gpus, route.role, throughput
    found = [
        (one.input_tokens * one.output_tokens, place)
        for place, one in enumerate(instance.profiles)
        if (one.offer, one.model, one.gpus or own, one.role, one.max_rate_per_s) == wanted
        and one.input_tokens >= asked.input_tokens
        and one.output_tokens >= asked.output_tokens
    ]
    return min(found)[1] if found else None


def _ready(book: Book, instance: FleetInstance, demand: int, hours: tuple[int, ...]) -> str:
    """How many times its rate a row of Demand is to be ready for, in these hours."""
    cell = book.sheet(DEMAND.sheet).ref(FIRST_ROW + demand, columns_of(DEMAND)["burst"])
    burst = instance.demand[demand].burst
    # A list of hours is text in its cell: then the largest of the period, as it was.
    listed = max(burst[hour] for hour in hours) if isinstance(burst, tuple) else None
    otherwise = "1+Headroom" if listed is None else f"IF(ISTEXT({cell}),{listed!r},1+Headroom)"
    return f"IF(ISNUMBER({cell}),{cell},{otherwise})"


def add_need(places: Places) -> None:
    """What the replicas of each group have to do."""
    sheet = places.placement
    for row in places.groups:
        there = a1(row, GROUP_THERE)
        need = f"SUMIFS({places.route(ROUTE_NEED)},{places.route(ROUTE_GROUP)},{a1(row, GROUP)})"
        busy = f"SUMIFS({places.route(ROUTE_BUSY)},{places.route(ROUTE_GROUP)},{a1(row, GROUP)})"
        if not places.routes:
            need = busy = "0"
        sheet.put(row, GROUP_NEED, Formula(f"={need}"), "number")
        share = f"IF({there}>0,{there}/{a1(row, GROUP_COUNT)},1)"
        # 1E-9: what rounding leaves over is no replica.
        whole = f"=MAX(0,ROUNDUP({a1(row, GROUP_NEED)}/{share}-0.000000001,0))"
        sheet.put(row, GROUP_WHOLE, Formula(whole), "whole")
        sheet.put(row, GROUP_SLACK, Formula(f"={there}-{a1(row, GROUP_NEED)}"), "number")
        sheet.put(row, GROUP_USE, Formula(f"=IF({there}>0,{busy}/{there},0)"), "percent")
        sheet.put(
            row,
            GROUP_LOAD,
            Formula(f"=IF({there}>0,{a1(row, GROUP_NEED)}/{there},IF({a1(row, GROUP_NEED)}>0,{NEVER},0))"),
            "percent",
        )
    if places.groups:
        for col in (GROUP_USE, GROUP_LOAD):
            cells = sheet.inside(places.groups.start, col, places.groups.stop - 1, col)
            sheet.rules.append(Rule(cells, "bar"))
