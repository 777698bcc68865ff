"""A deployment as lines and tables: what to rent or use, which workers, where they run, what binds, how to change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from rich.table import Table

from cli.fleet_render import HOURS_PER_MONTH, MOST_ROWS, hours_of
from cli.render import Part, number, percent, printable, table
from formulations.deployment.problem import DeployProblem
from planner.deploy_plan import Change, DeployPlan, SlotPrice, Step
from planner.plan import PlanDocument

#: Slot prices that are printed, pods and nodes of one step that are named, and couplings in words.
MOST_PRICES, MOST_NAMES = 8, 6
CUTS = {
    "sharing": "services on nodes of their own",
    "workers": "one worker a service and GPU, no prefill and decode apart",
    "nodes": "GPUs priced one by one, then packed onto nodes",
    "experts": "no second copies of busy experts",
    "pd": "no prefill and decode apart",
    "hours": "the peak rented in all hours",
}


def deploy_answer(document: PlanDocument, problem: DeployProblem) -> Iterable[Part]:
    """Cost, nodes, workers with how full they are, and what is left out."""
    plan = document.plan
    assert isinstance(plan, DeployPlan)
    terms, cost = document.outcome.terms, plan.cost_usd_per_hour
    yield "cost", f"{number(cost)} USD/hour, {cost * HOURS_PER_MONTH:,.0f} USD a month of {HOURS_PER_MONTH} hours"
    yield "per token", f"{number(terms.get('usd_per_million_output_tokens'))} USD per million output tokens"
    full = {} if document.verdict is None else {metric.name: metric.value for metric in document.verdict.metrics}
    there, inside = full.get("gpus_of_nodes"), full.get("gpus_in_workers")
    if there and inside is not None:
        yield "GPUs", f"{inside:g} of {there:g} are in workers" + _hours(plan)
    if len(plan.fleet.periods) > 1:
        yield from hours_of(problem.fleet, plan.fleet)
    yield _nodes(plan)
    yield _workers(plan, full)
    yield from _unserved(plan)


def deploy_details(document: PlanDocument, problem: DeployProblem) -> Iterable[Part]:
    """Who serves what, placements of experts, prices of slots, steps, and what each coupling is worth."""
    plan = document.plan
    assert isinstance(plan, DeployPlan)
    if len(plan.assignment) > len({(one.service, one.input_tokens, one.output_tokens) for one in plan.assignment}):
        yield _shares(plan)
    if plan.experts:
        yield _experts(plan)
    if plan.slot_prices:
        best: dict[str, list[str]] = defaultdict(list)
        for one in plan.slot_prices:
            best[_place(one)].append(f"{one.gpus} GPU{'s' * (one.gpus > 1)} {number(one.usd_per_hour)}")
        for place, prices in list(best.items())[:MOST_PRICES]:
            yield "one more place", f"on {printable(place)} is worth, USD/hour: {', '.join(prices)}"
    if plan.change is not None:
        yield from _change(plan.change)
    if plan.couplings:
        yield _couplings(plan)


def _place(one: SlotPrice) -> str:
    """Where a place is, in words."""
    where = ", ".join(name for name in (one.region, one.zone) if name is not None)
    return ("spot " if one.spot else "") + one.device + (f" in {where}" if where else "")


def _hours(plan: DeployPlan) -> str:
    if len(plan.fleet.periods) == 1:
        return ""
    count = sum(len(period.hours) for period in plan.fleet.periods)
    return f", in the dearest {len(plan.hours)} of {count} hours, which the tables are of"


def _nodes(plan: DeployPlan) -> Table:
    held = Counter(node for pod in plan.pods for node in [pod.node] * len(pod.gpus))
    rows = []
    for row in plan.nodes:
        used = sum(held[name] for name in row.names)
        what = printable(str(row.offer)) if row.node is None else f"{printable(row.node)} (stands)"
        counts = (str(row.count), str(row.gpus), percent(used / (row.count * row.gpus)))
        rows.append((what, printable(row.device), *counts, number(row.usd_per_hour)))
    return table(("nodes", "device", "count", "free GPUs each", "filled", "USD/hour"), rows)


def _workers(plan: DeployPlan, full: dict[str, float]) -> Table:
    split = any(row.role != "both" for row in plan.workers)
    rows = []
    for row in plan.workers[:MOST_ROWS]:
        who = row.service if row.role == "both" else f"{row.service}, {row.role}"
        offers = {one.offer for one in plan.assignment if (one.service, one.worker) == (row.service, row.worker)}
        used = max((full.get(f"utilisation[{offer}, {who}]", 0.0) for offer in offers), default=0.0)
        rows.append(
            (
                printable(row.service),
                printable(row.worker),
                *([row.role] if split else []),
                str(row.count),
                f"{row.num_gpus} x {printable(row.device)}",
                percent(used),
            )
        )
    if len(plan.workers) > MOST_ROWS:
        rows.append((f"{len(plan.workers) - MOST_ROWS} more kinds; --json lists all", *[""] * (4 + split)))
    return table(("service", "worker", *(["role"] if split else []), "count", "GPUs each", "full"), rows)


def _unserved(plan: DeployPlan) -> Iterator[Part]:
    for tier in plan.fleet.tiers:
        if tier.goal.startswith("unserved") and tier.value:
            proven = "" if tier.bound is None else f", at least {number(tier.bound)} in any plan"
            yield "unserved", f"{tier.goal.removeprefix('unserved, ')}: {number(tier.value)} requests/s{proven}"


def _experts(plan: DeployPlan) -> Table:
    rows = [
        (
            printable(one.service),
            printable(one.worker),
            f"{one.placement.num_slots} on {one.placement.num_gpus}",
            number(max(one.imbalance.values())),
            number(max(one.eplb_imbalance.values())),
        )
        for one in plan.experts
    ]
    return table(("experts of", "worker", "slots on GPUs", "busiest/mean", "EPLB's rule"), rows)


def _shares(plan: DeployPlan) -> Table:
    """Which workers serve which share of a service's requests of one size."""
    rows = [
        (
            printable(one.service),
            f"{one.input_tokens}/{one.output_tokens}",
            f"{printable(one.worker)}" + ("" if one.role == "both" else f", {one.role}"),
            printable(one.offer),
            percent(one.fraction),
        )
        for one in plan.assignment[:MOST_ROWS]
    ]
    if len(plan.assignment) > MOST_ROWS:
        rows.append((f"{len(plan.assignment) - MOST_ROWS} more; --json lists all", "", "", "", ""))
    return table(("requests of", "tokens", "are served by", "on", "share"), rows)


def _change(change: Change) -> Iterator[Part]:
    yield "change", f"{change.kept} workers stay, {change.started} start, {change.stopped} stop"
    told = f"{len(change.steps)} steps; served at the worst {percent(change.served_least)} of the demand"
    before = change.served_before
    yield "order", told + (f", as now {percent(before)}" if before < 1 else "")
    if change.lent_nodes:
        yield "lent", f"for the time of the change: {', '.join(map(printable, change.lent_nodes))}"
    if change.steps:
        rows = [(str(place), *_step(step), percent(step.served)) for place, step in enumerate(change.steps, start=1)]
        yield table(("step", "nodes added", "start", "stop", "nodes given back", "then served"), rows)


def _step(step: Step) -> Iterator[str]:
    for names in (step.add_nodes, step.start, step.stop, step.drop_nodes):
        shown = ", ".join(map(printable, names[:MOST_NAMES]))
        yield shown + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _couplings(plan: DeployPlan) -> Table:
    rows = [
        (
            one.cut,
            CUTS[one.cut],
            number(one.usd_per_hour) if one.usd_per_hour is not None else one.status,
            "" if one.extra is None else f"{100 * one.extra:+.1f}%",
        )
        for one in plan.couplings
    ]
    return table(("cut", "planned with", "USD/hour", "against this plan"), rows)
