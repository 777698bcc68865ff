"""What a plan says in a few labelled lines, by the problem that it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cli.render import number, percent, ratio
from planner.plan import PlanDocument
from planner.units import format_bytes


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


def fleet(document: PlanDocument, problem: Any) -> Iterable[tuple[str, str]]:
    """Cost, instances by offer, and how full they are."""
    plan: Any = document.plan
    terms = document.outcome.terms
    yield "cost", f"{number(plan.cost_usd_per_hour)} USD/hour, {number(plan.cost_usd_per_hour * 730)} USD a month"
    tokens = terms["usd_per_million_output_tokens"]
    yield "per token", f"{number(tokens)} USD per million output tokens"
    counts: dict[str, int] = {}
    for row in plan.allocation:
        counts[row.offer] = counts.get(row.offer, 0) + row.count
    peak = "" if len(plan.periods) == 1 else " at the peak"
    yield "instances", ", ".join(f"{count} x {offer}" for offer, count in counts.items()) + peak
    for row in plan.assignment:
        share = "" if row.fraction > 1 - 1e-6 else f"{percent(row.fraction)} of "
        size = f"{row.input_tokens}/{row.output_tokens}"
        yield "route", f"{share}{row.model} {size} tokens to {row.offer}" + (f" (replicas of {row.gpus} GPUs)")
    if plan.changes is not None:
        changed = ", ".join(f"{count:+d} {offer}" for offer, count in plan.changes.items())
        yield "changes", changed or "none"


ANSWERS: Mapping[str, Callable[[PlanDocument, Any], Iterable[tuple[str, str]]]] = {
    "experts": experts,
    "fleet": fleet,
}


def answer(document: PlanDocument, problem: Any) -> Iterable[tuple[str, str]]:
    """The lines of any document that holds a plan, for the problem that it was made for."""
    return ANSWERS[document.problem](document, problem) if document.plan is not None else ()
