"""A serving plan as lines and tables: what it does, its workers, the frontier they come from, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.table import Table

from cli.render import number, percent, printable, table
from formulations.parallelism.problem import ParallelProblem
from planner.parallel_plan import Alternative, ParallelPlan, ParetoWorkers, Workers
from planner.plan import PlanDocument
from planner.units import format_seconds

#: Rows of the frontier that are printed; the document has more.
MOST_ROWS = 12

#: What differs from the estimate of a worker that does both.
BEYOND = {
    "both": "",
    "prefill": "  # TTFT; the search adds a queue and the cache's way to a decode worker",
    "decode": "  # TPOT without the rows of other sequences' prompts",
}

Part = tuple[str, str] | Table


def parallel_answer(document: PlanDocument, problem: ParallelProblem) -> Iterable[Part]:
    """Throughput, cost and latency, the workers, the frontier, the next best plans, and what binds."""
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
    for name in ("ttft_s", "tpot_s"):
        value, limit = getattr(plan, name), getattr(problem, name)
        if value is not None:
            told = "" if limit is None else f", limit {format_seconds(limit)}"
            yield name.removesuffix("_s").upper(), f"{format_seconds(value)}{told}"
    rows = [
        (
            f"{one.count} x {printable(one.name)}",
            one.role,
            str(one.num_gpus),
            number(one.requests_per_s),
            _time(one.ttft_s),
            _time(one.tpot_s),
        )
        for one in plan.workers
    ]
    yield table(("workers", "role", "GPUs each", "requests/s each", "TTFT", "TPOT"), rows)
    yield from _frontier(plan)
    for other in plan.runners_up:
        yield "runner-up", printable(_beside(problem, plan, other))
    yield "binds", "; ".join(_binds(problem, plan))
    yield from _estimates(problem, plan)


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
        "cost": (_usd(problem, plan.workers), _usd(problem, other.workers), "USD/hour"),
    }[problem.goal]
    told = f"{theirs - ours:+.4g} {unit} ({percent((theirs - ours) / ours)})" if theirs != ours else "as good"
    return f"{other.why}: {told}, {number(other.requests_per_s)} requests/s on {other.num_gpus} GPUs: {names}"


def _usd(problem: ParallelProblem, workers: Sequence[Workers]) -> float:
    prices = {one.name: price for one, price in zip(problem.workers, problem.price.tolist(), strict=True)}
    return float(sum(prices[one.name] * one.count for one in workers))


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
