"""What a plan says in a few labelled lines, by the problem that it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.table import Table

from cli.fleet_render import fleet_answer
from cli.render import number, percent, printable, ratio, table
from planner.plan import PlanDocument
from planner.units import format_bytes, format_seconds


def experts(document: PlanDocument, problem: Any) -> Iterable[tuple[str, str]]:
    """Objective, balance, crossings, memory and moves of an expert placement."""
    plan: Any = document.plan
    gpu_memory_bytes: float | None = problem.gpu_memory_bytes
    outcome = document.outcome
    yield "objective", f"{number(outcome.objective)} {outcome.objective_unit}"
    terms = outcome.terms
    if "balancedness_mean" in terms:
        worst = terms.get("balancedness_worst")
        mean = f"{ratio(terms['balancedness_mean'])} mean"
        yield "balancedness", mean if worst is None else f"{mean}, {ratio(worst)} worst"
    metrics = {} if document.verdict is None else {m.name: m.value for m in document.verdict.metrics}
    if "cross_gpu_fraction" in metrics:
        node = metrics.get("cross_node_fraction")
        crossings = f"{percent(metrics['cross_gpu_fraction'])} of a token's steps change GPU"
        yield "crossings", crossings + ("" if node is None else f", {percent(node)} change node")
    need = metrics.get("expert_memory_per_gpu")
    if need is not None:
        text = f"{format_bytes(need)} of experts on each GPU"
        if gpu_memory_bytes is not None:
            text += f", {format_bytes(gpu_memory_bytes - need)} of {format_bytes(gpu_memory_bytes)} free"
        yield "memory", text
    if plan.moves is not None:
        moved = outcome.terms.get("moved_bytes")
        steps = len({move.step for move in plan.moves})
        size = "" if moved is None else f", {format_bytes(moved)}"
        yield "moves", f"{len(plan.moves)} replicas{size}, in {steps} steps" if plan.moves else "none"


def parallel(document: PlanDocument, problem: Any) -> Iterable[tuple[str, str] | Table]:
    """Throughput, latency, the workers and what comes next."""
    plan: Any = document.plan
    yield "serves", f"{number(plan.requests_per_s)} requests/s, {number(plan.output_tokens_per_s)} output tokens/s"
    yield "per GPU", f"{number(plan.output_tokens_per_s_per_gpu)} output tokens/s on {plan.num_gpus} GPUs"
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
            "-" if one.ttft_s is None else format_seconds(one.ttft_s),
            "-" if one.tpot_s is None else format_seconds(one.tpot_s),
        )
        for one in plan.workers
    ]
    yield table(("workers", "role", "GPUs each", "requests/s each", "TTFT", "TPOT"), rows)
    for other in plan.runners_up:
        names = ", ".join(f"{one.count} x {one.name}" for one in other.workers)
        told = f"{number(other.requests_per_s)} requests/s on {other.num_gpus} GPUs: {names}"
        yield "runner-up", printable(f"{other.why}: {told}")


ANSWERS: Mapping[str, Callable[[PlanDocument, Any], Iterable[tuple[str, str] | Table]]] = {
    "experts": experts,
    "fleet": fleet_answer,
    "parallel": parallel,
}


def answer(document: PlanDocument, problem: Any) -> Iterable[tuple[str, str] | Table]:
    """The lines and tables of any document that holds a plan, for the problem that it was made for."""
    return ANSWERS[document.problem](document, problem) if document.plan is not None else ()
