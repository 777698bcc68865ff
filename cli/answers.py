"""What a plan says in a few labelled lines, by the kind of instance that it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cli.deploy_render import deploy_answer, deploy_details
from cli.fleet_render import fleet_answer, fleet_details
from cli.layers_render import layers_answer, windows_answer
from cli.parallel_render import parallel_answer, parallel_details
from cli.pods_render import pods_answer, pods_details
from cli.render import Part, number, percent, ratio
from cli.training_render import training_answer, training_details
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


ANSWERS: Mapping[str, Callable[[PlanDocument, Any], Iterable[Part]]] = {
    "experts": experts,
    "fleet": fleet_answer,
    "parallel": parallel_answer,
    "layers": layers_answer,
    "windows": windows_answer,
    "training": training_answer,
    "pods": pods_answer,
    "deploy": deploy_answer,
}
DETAILS: Mapping[str, Callable[[PlanDocument, Any], Iterable[Part]]] = {
    "deploy": deploy_details,
    "fleet": fleet_details,
    "parallel": parallel_details,
    "training": training_details,
    "pods": pods_details,
}


def answer(document: PlanDocument, problem: Any) -> Iterable[Part]:
    """The lines and tables of any document that holds a plan, for the problem that it was made for."""
    return ANSWERS[document.kind_name](document, problem) if document.plan is not None else ()


def details(document: PlanDocument, problem: Any) -> Iterable[Part]:
    """What a second reading needs: where requests go, what comes next, why."""
    if document.plan is None or document.kind_name not in DETAILS:
        return ()
    return DETAILS[document.kind_name](document, problem)
