"""A serving plan as lines and tables: what it does, its workers, the frontier they come from, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from cli.render import Part, number, percent, printable, table
from formulations.parallelism.problem import UNITS, ParallelProblem
from planner.cost.verdict import Metric
from planner.parallel_plan import Alternative, ParallelPlan, ParetoWorkers, Workers
from planner.plan import PlanDocument
from planner.units import format_bytes, format_seconds

#: Rows of the frontier that are printed; the document has more.
MOST_ROWS = 12

#: Parts of a worker's time and memory that are printed, and characters of a cell that holds them.
MOST_PARTS, WIDEST = 4, 110
#: Characters of the longest bar.
BAR = 24

#: What differs from the estimate of a worker that does both.
BEYOND = {
    "both": "",
    "prefill": "  # TTFT; the search adds a queue and the cache's way to a decode worker",
    "decode": "  # TPOT without the rows of other sequences' prompts",
}


def parallel_answer(document: PlanDocument, problem: ParallelProblem) -> Iterable[Part]:
    """Throughput, cost and latency beside their limits, the workers, and what runs in which hours."""
    plan = document.plan
    assert isinstance(plan, ParallelPlan)
    told = f"{number(plan.requests_per_s)} requests/s"
    if problem.target_per_s is not None:
        told = f"{number(problem.target_per_s)} requests/s asked, {number(plan.requests_per_s)} possible"
    yield "serves", f"{told}; {number(plan.output_tokens_per_s)} output tokens/s"
    yield "per GPU", f"{number(plan.output_tokens_per_s_per_gpu)} output tokens/s on {plan.num_gpus} GPUs"
    usd = document.outcome.terms.get("usd_per_hour")
    if usd:
        per_token = usd / 3600.0 / plan.output_tokens_per_s * 1e6
        yield "cost", f"{number(usd)} USD/hour, {number(per_token)} USD per million output tokens"
    found = {} if document.verdict is None else {one.name: one for one in document.verdict.metrics}
    for name in ("ttft_s", "tpot_s"):
        value, limit = getattr(plan, name), getattr(problem, name)
        if value is not None:
            told = "" if limit is None else f", limit {format_seconds(limit)}"
            yield name.removesuffix("_s").upper(), f"{format_seconds(value)}{told}{_interval(found.get(name))}"
    if rate := _interval(found.get("requests_per_s"), lambda value: f"{value:.3g}"):
        yield "throughput", f"{rate.removeprefix('; ')} requests/s, where all predictions are off the same way"
    watts, joules = (document.outcome.terms.get(name) for name in ("watts", "joules_per_output_token"))
    if watts and joules:
        yield "energy", f"{watts / 1e3:.3g} kW at full load, {joules:.3g} J an output token"
    routed: dict[str, float] = {}
    for way in plan.routing:
        routed[way.worker] = routed.get(way.worker, 0.0) + way.requests_per_s
    rows = [
        (
            f"{one.count} x {printable(one.name)}",
            one.role,
            str(one.num_gpus),
            number(routed.get(one.name, 0.0) / one.count if routed else one.requests_per_s),
            _time(one.ttft_s),
            _time(one.tpot_s),
        )
        for one in plan.workers
    ]
    yield table(("workers", "role", "GPUs each", "requests/s each", "TTFT", "TPOT"), rows)
    yield from _hours(problem, plan)
    yield "binds", "; ".join(_binds(problem, plan))


def parallel_details(document: PlanDocument, problem: ParallelProblem) -> Iterable[Part]:
    """Who serves what, changes, where time and memory go, the frontier, the next best plans, and what more brings."""
    plan = document.plan
    assert isinstance(plan, ParallelPlan)
    found = {} if document.verdict is None else {one.name: one for one in document.verdict.metrics}
    yield from _routing(plan)
    yield from _changes(plan)
    yield from _shares(plan, found)
    yield from _frontier(plan)
    yield from _tradeoffs(plan)
    for other in plan.runners_up:
        yield "runner-up", printable(_beside(problem, plan, other))
    yield from _reliefs(problem, plan)
    yield from _estimates(problem, plan)


def _interval(metric: Metric | None, written: Callable[[float], str] = format_seconds) -> str:
    """The interval of a prediction, where it has one."""
    if metric is None or metric.low is None or metric.high is None:
        return ""
    return f"; 80 % of measurements: {written(metric.low)} to {written(metric.high)}"


def _routing(plan: ParallelPlan) -> Iterator[Part]:
    """Which workers serve requests of which size."""
    rows = [
        (f"{one.input_tokens}/{one.output_tokens}", printable(one.worker), number(one.requests_per_s))
        for one in plan.routing
    ]
    if rows:
        yield table(("requests of tokens", "workers", "requests/s"), rows)


def _hours(problem: ParallelProblem, plan: ParallelPlan) -> Iterator[Part]:
    """What runs in which hours."""
    if not plan.periods:
        return
    rows = [
        (
            _ranges(one.hours),
            number(one.rate_per_s),
            str(one.num_gpus),
            *([] if problem.goal == "gpus" else [number(_sum(problem, one.workers))]),
            ", ".join(f"{worker.count} x {printable(worker.name)}" for worker in one.workers) or "nothing",
        )
        for one in sorted(plan.periods, key=lambda one: one.hours)
    ]
    unit = [] if problem.goal == "gpus" else [UNITS[problem.goal]]
    made = table(("hours", "requests/s", "GPUs", *unit, "workers"), rows)
    made.columns[-1].justify = "left"
    yield made
    hours = sum(len(one.hours) for one in plan.periods)
    gpu_hours = sum(one.num_gpus * len(one.hours) for one in plan.periods)
    told = f"{gpu_hours} GPU-hours in {hours} hours; {plan.num_gpus * hours} with the most of them throughout"
    usd = sum(
        price * worker.count * len(one.hours)
        for one in plan.periods
        for worker in one.workers
        for price in [float(problem.price[[known.name for known in problem.workers].index(worker.name)])]
    )
    yield "in all", told + (f"; {number(usd)} USD" if usd else "")


def _ranges(hours: Sequence[int]) -> str:
    """0, 1, 2, 5 -> 0-2, 5."""
    found: list[list[int]] = []
    for hour in hours:
        if found and hour == found[-1][-1] + 1:
            found[-1][1:] = [hour]
        else:
            found.append([hour])
    return ", ".join("-".join(map(str, ends)) for ends in found)


def _changes(plan: ParallelPlan) -> Iterator[Part]:
    """The steps of every change, and what they move."""
    for one in plan.changes[:MOST_ROWS]:
        steps = []
        for step in one.steps:
            for verb, moved in (("stop", step.stop), ("start", step.start)):
                if moved:
                    steps.append(f"{verb} {', '.join(f'{count} x {printable(name)}' for name, count in moved.items())}")
        told = f"before hour {one.hour}: {', then '.join(steps)}"
        if one.loaded_bytes:
            told += f"; {format_bytes(one.loaded_bytes)} of weights to load"
            told += f", {format_bytes(one.loaded_expert_bytes)} of them experts" if one.loaded_expert_bytes else ""
        if one.cache_bytes:
            told += f"; {format_bytes(one.cache_bytes)} of cache to drain or move"
        if one.short_per_s:
            told += f"; {number(one.short_per_s)} requests/s too few meanwhile"
        yield "change", told
    if len(plan.changes) > MOST_ROWS:
        yield "changes", f"{len(plan.changes) - MOST_ROWS} more; --json lists them"


def _shares(plan: ParallelPlan, found: Mapping[str, Metric]) -> Iterator[Part]:
    """Where the time and the memory of each worker go, largest parts first."""
    rows = []
    for one in plan.workers:
        cells = []
        for what in ("time", "memory"):
            named = {name: metric.value for name, metric in found.items() if name.startswith(f"{what}.")}
            own = {
                name.split(".", 1)[1][: -len(one.name) - 2]: v
                for name, v in named.items()
                if name.endswith(f"[{one.name}]")
            }
            whole = sum(own.values()) or 1.0
            largest = sorted(own.items(), key=lambda part: -part[1])[:MOST_PARTS]
            cells.append(", ".join(f"{part.replace('_', ' ')} {value / whole:.0%}" for part, value in largest))
        if any(cells):
            rows.append((printable(one.name), *cells))
    if rows:
        yield table(("worker", "its TPOT (prefill: TTFT) goes to", "memory of its fullest GPU"), rows, WIDEST)


def _time(value: float | None) -> str:
    return "-" if value is None else format_seconds(value)


def _frontier(plan: ParallelPlan) -> Iterator[Part]:
    """Workers that none beats in rate a GPU, latency and size together: of each role some, from end to end."""
    by_role = {role: list(group) for role, group in groupby(plan.pareto, key=lambda one: one.role)}
    if not by_role:
        return
    chosen = {one.name for one in plan.workers}
    shown = [one for group in by_role.values() for one in _spread(group, MOST_ROWS // len(by_role))]
    rows = [
        (
            printable(one.name) + (" *" if one.name in chosen else ""),
            one.role,
            str(one.num_gpus),
            number(one.requests_per_s_per_gpu),
            _time(one.ttft_s),
            _time(one.tpot_s),
        )
        for one in shown
    ]
    yield table(("Pareto frontier (* chosen)", "role", "GPUs", "requests/s a GPU", "TTFT", "TPOT"), rows)
    if len(shown) < len(plan.pareto):
        yield "frontier", f"{len(plan.pareto) - len(shown)} more workers; --json lists them"


def _tradeoffs(plan: ParallelPlan) -> Iterator[Part]:
    """The best plans at tighter limits on TPOT, with bars that plot throughput a GPU over speed for a reader."""
    if len(plan.tradeoffs) < 2:
        return
    most = max(one.output_tokens_per_s_per_gpu for one in plan.tradeoffs)
    rows = []
    for one in plan.tradeoffs:
        workers = ", ".join(f"{count} x {printable(name)}" for name, count in one.workers.items())
        bar = "#" * max(1, round(BAR * one.output_tokens_per_s_per_gpu / most))
        speed = "-" if not one.tpot_s else f"{1.0 / one.tpot_s:.0f}"
        rows.append((
            _time(one.tpot_s), speed, number(one.requests_per_s), str(one.num_gpus),
            f"{one.output_tokens_per_s_per_gpu:.0f}", bar, workers,
        ))  # fmt: skip
    columns = ("best plan with TPOT", "tokens/s a reader", "requests/s", "GPUs", "tokens/s a GPU", "", "workers")
    made = table(columns, rows)
    for place in (-2, -1):
        made.columns[place].justify = "left"
    yield made


def _reliefs(problem: ParallelProblem, plan: ParallelPlan) -> Iterator[Part]:
    """What a little more of each limit brings."""
    unit = UNITS[problem.goal]
    for one in plan.reliefs:
        if one.gains:
            sign = "+" if problem.goal == "throughput" else "-"
            told = f"{one.limit} from {number(one.now)} to {number(one.relaxed)}: {sign}{number(one.gains)} {unit}"
            yield "relief", printable(told)
    idle = [one.limit for one in plan.reliefs if not one.gains]
    if idle:
        yield "relief", printable(f"nothing from a little more of {', '.join(idle)}")


def _spread(group: Sequence[ParetoWorkers], most: int) -> list[ParetoWorkers]:
    """At most so many of a sorted list, its ends among them."""
    if len(group) <= most:
        return list(group)
    return [group[round(place * (len(group) - 1) / (most - 1))] for place in range(most)]


def _beside(problem: ParallelProblem, plan: ParallelPlan, other: Alternative) -> str:
    """Another plan, and how much worse it is in what was asked."""
    names = ", ".join(f"{one.count} x {one.name}" for one in other.workers)
    ours, theirs, unit = {
        "throughput": (plan.requests_per_s, other.requests_per_s, "requests/s"),
        "gpus": (plan.num_gpus, other.num_gpus, "GPUs"),
        "cost": (_sum(problem, plan.workers), _sum(problem, other.workers), "USD/hour"),
        "joules": (_sum(problem, plan.workers), _sum(problem, other.workers), "W"),
    }[problem.goal]
    told = f"{theirs - ours:+.4g} {unit} ({percent((theirs - ours) / ours)})" if theirs != ours else "as good"
    return f"{other.why}: {told}, {number(other.requests_per_s)} requests/s on {other.num_gpus} GPUs: {names}"


def _sum(problem: ParallelProblem, workers: Sequence[Workers]) -> float:
    """Worth of workers in what is minimised."""
    weight = {one.name: each for one, each in zip(problem.workers, problem.weight().tolist(), strict=True)}
    return float(sum(weight[one.name] * one.count for one in workers))


def _binds(problem: ParallelProblem, plan: ParallelPlan) -> Iterator[str]:
    """Limits that the plan has reached, and workers that the latency limits rule out."""
    used = dict.fromkeys(problem.device_names, 0)
    index = {one.name: int(place) for one, place in zip(problem.workers, problem.device, strict=True)}
    for one in plan.workers:
        used[problem.device_names[index[one.name]]] += one.count * one.num_gpus
    for name, nodes, size in zip(problem.device_names, problem.nodes.tolist(), problem.node_gpus.tolist(), strict=True):
        there = nodes * size
        yield f"all {there} {name} are used" if used[name] == there else f"{there - used[name]} of {there} {name} idle"
    if sum(one.count for one in plan.workers) == problem.max_workers:
        yield f"max_workers {problem.max_workers} is reached"
    yield from problem.dropped


def _estimates(problem: ParallelProblem, plan: ParallelPlan) -> Iterator[Part]:
    """Commands that show where the time and memory of each predicted worker go, and what the search adds to them."""
    if problem.source != "predicted" or plan.model is None:
        return
    if plan.model.endswith(".json") and not Path(plan.model).is_file():
        return
    for one in plan.workers:
        if one.context_parallel_size > 1 or one.redundant_experts or one.draft_tokens or one.two_batch_overlap:
            continue  # estimate has no flags for these
        argv = ["gpuplan", "estimate", "--model", plan.model, "--device", one.device, "--backend", str(plan.backend)]
        argv += ["--precision", plan.precision] if plan.precision else []
        for flag, size in (
            ("--tp", one.tensor_parallel_size),
            ("--pp", one.pipeline_parallel_size),
            ("--dp", one.data_parallel_size),
            ("--ep", one.expert_parallel_size),
        ):
            argv += [flag, str(size)] if size > 1 else []
        batch, answer = (one.max_batch_size or 1), problem.output_tokens
        if one.role == "prefill":
            batch, answer = one.data_parallel_size, 1
        argv += ["--input-tokens", str(problem.input_tokens), "--output-tokens", str(answer)]
        yield "look into", printable(shlex.join([*argv, "--concurrency", str(batch)])) + BEYOND[one.role]
