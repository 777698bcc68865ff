"""A fleet plan as lines and tables: what to rent, what runs on it, and which requests go where."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
from rich.table import Table

from cli.render import Part, number, percent, printable, table
from formulations.gpu_fleet.insight import binding
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import Rows, instance_counts
from planner.fleet_plan import FleetPlan, Insight, Period, Relief
from planner.plan import PlanDocument
from planner.units import format_seconds

#: A twelfth of a year of 365 days.
HOURS_PER_MONTH = 730
#: Rows of each table that are printed; the document has all.
MOST_ROWS = 20


def fleet_answer(document: PlanDocument, problem: FleetProblem) -> Iterable[Part]:
    """Cost, instances, what is on them, what is left out, and what limits the plan."""
    plan = document.plan
    assert isinstance(plan, FleetPlan)
    cost, terms = plan.cost_usd_per_hour, document.outcome.terms
    per_tokens = number(terms.get("usd_per_million_output_tokens"))
    yield "cost", f"{number(cost)} USD/hour, {cost * HOURS_PER_MONTH:,.0f} USD a month of {HOURS_PER_MONTH} hours"
    yield "per token", f"{per_tokens} USD per million output tokens"
    busiest = max(plan.periods, key=lambda period: period.cost_usd_per_hour)
    full = {} if document.verdict is None else {metric.name: metric.value for metric in document.verdict.metrics}
    if len(plan.periods) == 1:
        yield "instances", _counts_text(Counter({row.offer: 0 for row in plan.allocation}), busiest)
    else:
        yield from hours_of(problem, plan)
    if "start_usd_per_hour" in terms:
        yield "starts", f"{number(terms['start_usd_per_hour'])} USD/hour besides, for instances that are started"
    if plan.changes is not None:
        changed = ", ".join(f"{count:+d} {printable(offer)}" for offer, count in plan.changes.items())
        yield "changes", changed or "none"
    watts = full.get("watts_peak", 0.0)
    if watts:
        yield "power", f"{watts / 1000:.4g} kW of GPUs" + ("" if len(plan.periods) == 1 else " at the peak")
    if "watts_drawn_peak" in full:
        drawn, chance = full["watts_drawn_peak"], full["capping_share"]
        text = f"{drawn / 1000:.4g} kW are expected, boards are {percent(full['oversubscription'])} of the cap"
        yield "draw", f"{text}; swings reach it in {percent(chance)} of moments, if they are as assumed"
    yield _runs(problem, busiest, full)
    yield from _unserved(problem, plan)
    limits = [f"{printable(limit.name)} {number(limit.now)}" for limit in binding(problem, plan)]
    yield "limits", f"reached: {', '.join(limits)}" if limits else "none is reached; demand alone sets the size"
    for model in problem.model_names:
        yield from _simulated(full, model)


def fleet_details(document: PlanDocument, problem: FleetProblem) -> Iterable[Part]:
    """Where requests go, sizes that are left out, and what limits cost where that was asked."""
    plan = document.plan
    assert isinstance(plan, FleetPlan)
    busiest = max(plan.periods, key=lambda period: period.cost_usd_per_hour)
    yield from _routes(problem, busiest)
    yield from _left_out(plan, busiest)
    if plan.insight is not None:
        yield from _insight(plan.insight)


def _counts_text(counts: Counter[str], period: Period) -> str:
    for row in period.allocation:
        counts[row.offer] += row.count
    return ", ".join(f"{count} x {printable(offer)}" for offer, count in counts.items())


def _runs(problem: FleetProblem, period: Period, full: dict[str, float]) -> Table:
    """Replicas by offer and model, with how full they are at the most."""
    counts: Counter[str] = Counter()
    for row in period.allocation:
        counts[row.offer] += row.count
    by_offer: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for replica in period.replicas:
        size = "1 GPU" if replica.gpus == 1 else f"{replica.gpus} GPUs"
        size += "" if replica.worker is None else f" ({printable(replica.worker)})"
        who = replica.model if replica.role == "both" else f"{replica.model}, {replica.role}"
        by_offer[replica.offer][who].append(f"{replica.count} of {size}")
    rows = []
    for offer, count in counts.items():
        price = problem.price[problem.offer_names.index(offer)]
        head = (printable(offer), str(count), number(count * price))
        hosted = by_offer.get(offer) or {"": []}
        for model, sizes in hosted.items():
            used = full.get(f"utilisation[{offer}, {model}]")
            cells = (printable(model), " + ".join(sizes) or "none", percent(used))
            rows.append((*head, *cells))
            head = ("", "", "")
    return table(("offer", "instances", "USD/hour", "model", "replicas", "full"), rows)


def _routes(problem: FleetProblem, period: Period) -> Iterator[Part]:
    """The largest flows of requests."""
    rate = problem.rate[problem.hours.index(period.hours)]
    known = Rows(problem)
    flows = [(float(rate[known.bucket(row)]) * row.fraction, row) for row in period.assignment]
    flows.sort(key=lambda flow: -flow[0])
    split = any(row.role != "both" for row in period.assignment)
    named = any(row.worker is not None for row in period.assignment)
    rows = [
        (
            f"{printable(row.model)} {row.input_tokens}/{row.output_tokens}",
            number(flow),
            percent(row.fraction),
            printable(row.offer),
            str(row.gpus),
            *([row.role] if split else []),
            *([printable(row.worker or "")] if named else []),
        )
        for flow, row in flows[:MOST_ROWS]
    ]
    more = (*(["role"] if split else []), *(["worker"] if named else []))
    yield table(("requests, tokens in/out", "a second", "share", "to", "GPUs", *more), rows)
    yield from _handovers(period)
    if len(flows) > MOST_ROWS:
        rest = sum(flow for flow, _ in flows[MOST_ROWS:]) / sum(flow for flow, _ in flows)
        yield "routes", f"{len(flows) - MOST_ROWS} more, {percent(rest)} of the requests; --json lists all"


def _handovers(period: Period) -> Iterator[Part]:
    """Bytes that roles hand to one another, by link."""
    links: dict[tuple[str, str | None, str | None], list[float | None]] = defaultdict(list)
    for flow in period.flows:
        links[flow.handover, flow.from_region, flow.to_region].append(flow.bytes_per_s)
    for (handover, start, end), sizes in links.items():
        way = "" if start == end else f"{printable(str(start))} to {printable(str(end))}: "
        known = [size for size in sizes if size is not None]
        amount = f"{sum(known) / 1e9:.4g} GB/s" if len(known) == len(sizes) else "of unknown size"
        yield handover.replace("_", " "), f"{way}{amount}"


def _unserved(problem: FleetProblem, plan: FleetPlan) -> Iterator[Part]:
    """What is left out by priority, with what is proven of it."""
    mean = problem.share @ problem.rate
    for tier in plan.tiers:
        if not tier.goal.startswith("unserved"):
            continue
        priority = int(tier.goal.rsplit(" ", 1)[1])
        asked = float(mean[problem.priority == priority].sum())
        proven = "nothing is proven of it" if tier.bound is None else f"at least {number(tier.bound)} in any plan"
        text = f"{number(tier.value)} of {number(asked)} requests/s; {proven}" if tier.value else "none"
        yield "unserved", f"priority {priority}: {text}"


def _left_out(plan: FleetPlan, busiest: Period) -> Iterator[Part]:
    """The sizes that are left out in the period with most of it."""
    worst = max(plan.periods, key=lambda period: sum(row.rate_per_s for row in period.unserved))
    if not worst.unserved:
        return
    if worst is not busiest:
        yield "unserved", f"most in hour {worst.hours[0]}, of which the table is"
    rows = [
        (
            f"{printable(row.model)} {row.input_tokens}/{row.output_tokens}",
            str(row.priority),
            number(row.rate_per_s),
            percent(row.fraction),
            printable(", ".join(row.limits)),
        )
        for row in worst.unserved[:MOST_ROWS]
    ]
    yield table(("unserved, tokens in/out", "priority", "a second", "share", "in the way"), rows)
    if len(worst.unserved) > MOST_ROWS:
        yield "unserved", f"{len(worst.unserved) - MOST_ROWS} more sizes; --json lists all"


def hours_of(problem: FleetProblem, plan: FleetPlan) -> Iterator[Part]:
    """Instances over the hours: by offer, then by distinct fleet."""
    counts = instance_counts(problem, plan)
    share = np.array([len(period.hours) for period in plan.periods], dtype=np.float64)
    mean = share @ counts / share.sum()
    used = np.flatnonzero(counts.max(axis=0)).tolist()
    rows = [
        (
            printable(problem.offer_names[k]),
            _market(problem, k),
            *(number(value) for value in (counts[:, k].max(), mean[k], counts[:, k].min(), mean[k] * problem.price[k])),
        )
        for k in used
    ]
    yield table(("offer", "market", "peak", "mean", "least", "USD/hour"), rows)
    fleets: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for period, row in zip(plan.periods, counts[:, used].astype(int).tolist(), strict=True):
        fleets[tuple(row)] += period.hours
    price = problem.price[used]
    ordered = sorted(fleets.items(), key=lambda item: -float(np.dot(item[0], price)))
    rows = [
        (_ranges(sorted(hours)), str(len(hours)), number(float(np.dot(fleet, price))), *map(str, fleet))
        for fleet, hours in ordered[:MOST_ROWS]
    ]
    yield table(("hours", "in all", "USD/hour", *(printable(problem.offer_names[k]) for k in used)), rows)
    if len(ordered) > MOST_ROWS:
        yield "hours", f"{len(ordered) - MOST_ROWS} cheaper fleets are not shown; --json lists all"
    base = float(sum(mean[k] * problem.price[k] for k in used if problem.reserved[k]))
    if base:
        yield "reserved", f"{number(base)} USD/hour at all hours, {percent(base / plan.cost_usd_per_hour)} of the cost"
    yield "busiest hour", "what follows is of the most expensive one"


def _market(problem: FleetProblem, offer: int) -> str:
    if problem.reserved[offer]:
        return "reserved"
    return "spot" if problem.spot[problem.pool_of_offer[offer]] else "on demand"


def _ranges(hours: Sequence[int], most: int = 4) -> str:
    """[0, 1, 2, 7] -> '0-2, 7'; the first few ranges."""
    runs = [[hour for _, hour in group] for _, group in groupby(enumerate(hours), lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def _simulated(metrics: dict[str, float], model: str) -> Iterator[Part]:
    """What the requests of a simulated trace met."""
    kept = metrics.get(f"slo_attainment[{model}]")
    if kept is None:
        return
    text = f"{printable(model)}: {percent(kept)} of requests within the limits"
    for name in ("ttft", "tpot"):
        shown = [key for key in metrics if key.startswith(f"{name}_p") and key.endswith(f"[{model}]")]
        values = [f"{key.split('[')[0].removeprefix(f'{name}_')} {format_seconds(metrics[key])}" for key in shown]
        text += f"; {name.upper()} {', '.join(values)}" if values else ""
    yield "simulated", text


def _insight(insight: Insight) -> Iterator[Part]:
    for relief in insight.reliefs:
        yield "relief", f"{printable(relief.limit)} {number(relief.now)} -> {number(relief.relaxed)}: {_saving(relief)}"
    if insight.untried:
        yield "relief", f"not tried: {', '.join(map(printable, insight.untried))}"
    gone = insight.without
    if gone.objective_usd_per_hour is None or gone.extra_usd_per_hour is None:
        known = "no fleet serves the demand" if gone.status == "infeasible" else "no plan was found in time"
        yield "without", f"{printable(gone.offer)}: {known}"
    else:
        instances = ", ".join(f"{count} x {printable(name)}" for name, count in gone.instances.items())
        extra, cost = number(gone.extra_usd_per_hour), number(gone.objective_usd_per_hour)
        more = f"+{extra}" if gone.unserved_per_s is None else _left(gone.unserved_per_s)
        yield "without", f"{printable(gone.offer)}: {cost} USD/hour ({more}, gap {percent(gone.gap)}): {instances}"


def _left(unserved: dict[str, float]) -> str:
    return "; ".join(f"{goal} {number(value)}/s" for goal, value in unserved.items())


def _saving(relief: Relief) -> str:
    if relief.unserved_per_s is not None:
        return _left(relief.unserved_per_s)
    least, most = relief.saves_at_least_usd_per_hour, relief.saves_at_most_usd_per_hour
    if least is None or most is None:
        return "not known, no answer in time"
    if most <= 1e-6:
        return "saves nothing"
    if least == 0.0:
        return f"within the gap: saves {number(most)} USD/hour at most"
    if most - least <= 1e-6 * most:
        return f"saves {number(least)} USD/hour"
    return f"saves {number(least)} to {number(most)} USD/hour"
