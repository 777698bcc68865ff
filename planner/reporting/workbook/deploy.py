"""The workbook of a deployment: what it costs and how full its workers are follow the inputs; places are as decided.

Nodes, workers and shares are those of the dearest hours, as in the plan. A worker's load is the sum over what it serves
of rate x share / throughput; it is divided by the number of these workers on the same offer or kind of node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.deploy_plan import DeployPlan
from planner.descriptions.deploy import DeployInstance
from planner.plan import DeployDocument
from planner.reporting.workbook.cells import Book, Formula, Rule, Sheet, a1
from planner.reporting.workbook.checks import Check, Input, check_sheets
from planner.reporting.workbook.explain import explain_sheet
from planner.reporting.workbook.layout import TITLE_ROW
from planner.reporting.workbook.plans import inputs_sheet
from planner.reporting.workbook.read_me import read_me
from planner.units import GIB

SHEETS = (
    ("Inputs", "the instance, one value a row: yellow cells are yours to change"),
    ("Plan", "nodes and what they cost, workers and how full they are, who serves what: computed from the inputs"),
    ("Placement", "which service has which device of which node"),
    ("Hours", "what runs and costs in which hours"),
    ("Checks", "margins of load, latency and money, and whether the plan is current, stale or broken"),
    ("Solved for", "every input as it was when the plan was made, and as it is now"),
    ("Explain", "what is proven, what is assumed, what the plain rule would do"),
)
#: Columns of Plan's tables: nodes; workers; shares.
(NODE_OFFER, NODE_DEVICE, NODE_COUNT, NODE_GPUS, NODE_PRICE, NODE_COST) = range(6)
(WORKER_NO, WORKER_SERVICE, WORKER_NAME, WORKER_ROLE, WORKER_OFFER, WORKER_GPUS, WORKER_COUNT, WORKER_FULL) = range(8)
(SHARE_OF, SHARE_SERVICE, SHARE_INPUT, SHARE_OUTPUT, SHARE_RATE, SHARE_FRACTION, SHARE_EACH, SHARE_LOAD) = range(8)


@dataclass(slots=True)
class _Live:
    """Cells that checks refer to. full : of each kind of worker on each offer."""

    cost: str = ""
    full: dict[tuple[str, str, str], str] = field(default_factory=dict)


def deploy_book(
    instance: DeployInstance, value: Mapping[str, Any], document: DeployDocument | None, folder: str, written: str
) -> Book:
    """The sheets of SHEETS; without a plan what there is of them."""
    book = Book(f"gpuplan: {instance.name}", written)
    front = book.add("Read me", instance.name, "A plan of a deployment, by gpuplan.")
    inputs = inputs_sheet(book, value, folder)
    solved = document is not None and document.plan is not None
    if document is not None:
        if document.plan is not None:
            live = _plan(book, instance, document.plan, inputs)
            _placement(book, document.plan)
            _hours(book, document.plan)
            check_sheets(book, _checks(instance, document, inputs, live), inputs.values())
        explain_sheet(book, document, [])
    read_me(book, front, document, SHEETS, solved)
    return book


def _number(inputs: Mapping[str, Input], path: str, otherwise: float | None) -> str | float | None:
    """The input's cell where it holds a number, else the value that was read of it: a text with a unit is no number."""
    known = inputs.get(path)
    plain = known is not None and isinstance(known.was, int | float) and not isinstance(known.was, bool)
    return known.cell if plain and known is not None else otherwise


def _shown(found: str | float | None) -> Formula | float | None:
    return Formula(f"={found}") if isinstance(found, str) else found


def _plan(book: Book, instance: DeployInstance, plan: DeployPlan, inputs: Mapping[str, Input]) -> _Live:
    live = _Live()
    sheet = book.add(
        "Plan", "What was decided", "Counts and shares as they were solved; cost and load follow the inputs."
    )
    sheet.widths |= {0: 26, 1: 18, 2: 34, 3: 12, 4: 22}
    row = _nodes(sheet, instance, plan, inputs, live)
    groups = _groups(plan)
    first = row + 2
    titles = ("no.", "service", "worker", "role", "on", "GPUs each", "count", "full")
    sheet.row(row + 1, titles, "head")
    routes = first + len(groups) + 2
    column = {col: sheet.inside(routes, col, routes + len(plan.assignment) - 1, col) for col in (SHARE_OF, SHARE_LOAD)}
    kinds = {(one.service, one.worker): one for one in plan.workers}
    for place, (key, count) in enumerate(groups.items()):
        service, worker, offer = key
        kind, at = kinds[service, worker], first + place
        sheet.row(at, (place + 1, service, worker, kind.role, offer, kind.num_gpus, count))
        load = f"SUMIFS({column[SHARE_LOAD]},{column[SHARE_OF]},{a1(at, WORKER_NO)})"
        live.full[key] = sheet.put(at, WORKER_FULL, Formula(f"={load}/{a1(at, WORKER_COUNT)}"), "percent")
    sheet.rules.append(Rule(sheet.inside(first, WORKER_FULL, first + len(groups) - 1, WORKER_FULL), "bar"))
    titles = (
        "worker no.",
        "service",
        "input tokens",
        "output tokens",
        "requests/s",
        "share",
        "requests/s of one",
        "load",
    )
    sheet.row(routes - 1, titles, "head")
    rates = {
        (service, worker, rate.input_tokens, rate.output_tokens): rate.requests_per_s
        for (service, worker), kind in kinds.items()
        for rate in kind.rates
    }
    for place, one in enumerate(plan.assignment):
        at = routes + place
        each = rates[one.service, one.worker, one.input_tokens, one.output_tokens]
        number = list(groups).index((one.service, one.worker, one.offer)) + 1
        sheet.row(at, (number, one.service, one.input_tokens, one.output_tokens))
        sheet.put(
            at, SHARE_RATE, _rate(instance, plan, inputs, one.service, (one.input_tokens, one.output_tokens)), "number"
        )
        sheet.put(at, SHARE_FRACTION, one.fraction, "percent")
        sheet.put(at, SHARE_EACH, each, "number")
        product = f"={a1(at, SHARE_RATE)}*{a1(at, SHARE_FRACTION)}/{a1(at, SHARE_EACH)}"
        sheet.put(at, SHARE_LOAD, Formula(product), "number")
    return live


def _nodes(sheet: Sheet, instance: DeployInstance, plan: DeployPlan, inputs: Mapping[str, Input], live: _Live) -> int:
    """The nodes and their cost; the row below."""
    sheet.row(TITLE_ROW, ("nodes", "device", "count", "free GPUs each", "USD/hour each", "USD/hour"), "head")
    row = TITLE_ROW
    for row, one in enumerate(plan.nodes, start=TITLE_ROW + 1):
        name = str(one.offer) if one.node is None else f"{one.node} (stands)"
        sheet.row(row, (name, one.device, one.count, one.gpus))
        known = [place for place, offer in enumerate(instance.offers) if offer.name == one.offer]
        path = f"offers/{known[0]}/price_usd_per_hour" if known else ""
        price = _number(inputs, path, one.usd_per_hour / one.count)
        sheet.put(row, NODE_PRICE, _shown(price), "usd")
        sheet.put(row, NODE_COST, Formula(f"={a1(row, NODE_COUNT)}*{a1(row, NODE_PRICE)}"), "usd")
    cells = sheet.inside(TITLE_ROW + 1, NODE_COST, max(row, TITLE_ROW + 1), NODE_COST)
    sheet.put(row + 1, 0, "together", "unit")
    live.cost = sheet.put(row + 1, NODE_COST, Formula(f"=SUM({cells})"), "usd")
    return row + 2


def _groups(plan: DeployPlan) -> Counter[tuple[str, str, str]]:
    """Workers by service, kind and what their nodes are of."""
    place = {name: str(row.offer or row.node) for row in plan.nodes for name in row.names}
    return Counter((pod.service, pod.worker, place[pod.node]) for pod in plan.pods if pod.part == 0)


def _rate(
    instance: DeployInstance, plan: DeployPlan, inputs: Mapping[str, Input], service: str, size: tuple[int, int]
) -> Formula | float | None:
    """Requests/s of a size: the input, or that of the hour that the plan is told of."""
    place = [one.name for one in instance.services].index(service)
    asked = instance.services[place].demand
    entry = [(one.input_tokens, one.output_tokens) for one in asked].index(size)
    one = asked[entry]
    if one.hourly is None:
        return _shown(_number(inputs, f"services/{place}/demand/{entry}/rate_per_s", one.rate_per_s))
    lengths = instance.hours or (1,) * len(one.hourly)
    stretched = [rate for rate, length in zip(one.hourly, lengths, strict=True) for _ in range(length)]
    return stretched[plan.hours[0]]


def _placement(book: Book, plan: DeployPlan) -> None:
    """A row a node, a column a device."""
    sheet = book.add("Placement", "Which service has which device", "Empty: free, or taken by what ran there before.")
    most = max((1 + max(pod.gpus) for pod in plan.pods), default=0)
    sheet.row(TITLE_ROW, ("node", "of", *(f"GPU {gpu}" for gpu in range(most))), "head")
    sheet.widths |= {0: 24, 1: 24}
    rows: dict[str, int] = {}
    for one in plan.nodes:
        for name in one.names:
            rows[name] = TITLE_ROW + 1 + len(rows)
            sheet.row(rows[name], (name, str(one.offer) if one.node is None else f"{one.node} (stands)"))
    for pod in plan.pods:
        for gpu in pod.gpus:
            sheet.put(rows[pod.node], 2 + gpu, f"{pod.pod}: {pod.service}")
    sheet.frozen = TITLE_ROW + 1, 1


def _hours(book: Book, plan: DeployPlan) -> None:
    """A row for hours that are alike: what runs, and its cost."""
    sheet = book.add("Hours", "What runs in which hours", "As it was solved; the mean is computed.")
    offers = list(dict.fromkeys(row.offer for period in plan.fleet.periods for row in period.allocation))
    sheet.row(TITLE_ROW, ("hours", "number of them", "USD/hour", *offers), "head")
    row = TITLE_ROW
    for row, period in enumerate(plan.fleet.periods, start=TITLE_ROW + 1):
        counts = Counter[str]()
        for one in period.allocation:
            counts[one.offer] += one.count
        sheet.row(row, (", ".join(map(str, period.hours)), len(period.hours)))
        sheet.put(row, 2, period.cost_usd_per_hour, "usd")
        sheet.row(row, [counts[offer] for offer in offers], "whole", 3)
    number, cost = (sheet.inside(TITLE_ROW + 1, col, row, col) for col in (1, 2))
    sheet.put(row + 1, 0, "mean", "unit")
    sheet.put(row + 1, 2, Formula(f"=SUMPRODUCT({number},{cost})/SUM({number})"), "usd")


def _checks(
    instance: DeployInstance, document: DeployDocument, inputs: Mapping[str, Input], live: _Live
) -> Iterator[Check]:
    """Load, money and latency against their limits; then what else the verdict measured, and what it finds broken."""
    assert document.plan is not None
    most = _number(inputs, "utilisation", instance.utilisation)
    for (service, worker, offer), cell in live.full.items():
        yield Check(f"load of {service}", f"{worker} on {offer}", Formula(f"={cell}"), most, "share")
    if instance.budget_usd_per_hour is not None:
        budget = _number(inputs, "budget_usd_per_hour", instance.budget_usd_per_hour)
        yield Check("cost", "of the dearest hours", Formula(f"={live.cost}"), budget, "USD/hour")
    if document.verdict is None:
        return
    limits: dict[str, str | float | None] = {}
    for row in document.plan.workers:
        place = [one.name for one in instance.services].index(row.service)
        mine = instance.services[place].slo
        at, slo = ("slo", instance.slo) if mine is None else (f"services/{place}/slo", mine)
        for what in ("ttft_s", "tpot_s"):
            for rate in row.rates:
                name = f"{what}[{row.service}, {row.worker}, {rate.input_tokens}/{rate.output_tokens}]"
                limits[name] = _number(inputs, f"{at}/{what}", None if slo is None else getattr(slo, what))
    for one in document.verdict.metrics:
        if not one.name.startswith("utilisation["):
            scale, unit = (GIB, "GiB") if one.unit == "bytes" else (1.0, one.unit)
            yield Check(one.name, one.source, one.value / scale, limits.get(one.name), unit)
    for broken in document.verdict.violations:
        yield Check(f"broken: {broken.rule}", broken.message[:1000], 1.0, 0, "")
