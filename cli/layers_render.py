"""Layers over unequal devices as lines and tables: pipelines of a pool, and windows of a ring of home devices."""

from __future__ import annotations

from collections.abc import Iterable

from cli.render import Part, number, printable, table
from formulations.parallelism.layers.problem import LayersProblem
from formulations.parallelism.windows.problem import WindowsProblem
from planner.layers_plan import LayersPlan, WindowsPlan
from planner.plan import PlanDocument
from planner.units import format_bytes, format_seconds

#: Pipelines that are printed with all their stages; the document has more.
MOST_PIPELINES = 12


def layers_answer(document: PlanDocument, problem: LayersProblem) -> Iterable[Part]:
    """Throughput, latency, every pipeline's stages, and what stays idle."""
    plan = document.plan
    assert isinstance(plan, LayersPlan)
    pipelines = sum(one.count for one in plan.pipelines)
    yield "serves", f"{number(plan.tokens_per_s)} tokens/s, {pipelines} pipelines of {problem.num_layers} layers"
    worst = max(one.latency_s for one in plan.pipelines)
    limit = "" if problem.max_latency_s == float("inf") else f", limit {format_seconds(problem.max_latency_s)}"
    yield "latency", f"{format_seconds(worst)} a token at worst{limit}"
    rows = []
    for place, one in enumerate(plan.pipelines[:MOST_PIPELINES]):
        for stage in one.stages:
            first = stage.first_layer == 0
            rows.append(
                (
                    f"{place + 1}: {one.count} at {number(one.steps_per_s)} steps/s" if first else "",
                    _where(stage.device, stage.site),
                    f"{stage.first_layer}-{stage.first_layer + stage.num_layers - 1}",
                    str(stage.num_layers),
                    format_seconds(stage.stage_s),
                    f"{stage.stage_s / one.slot_s:.0%}",
                )
            )
    yield table(("pipeline", "device", "layers", "number", "a step", "busy"), rows)
    if len(plan.pipelines) > MOST_PIPELINES:
        yield "pipelines", f"{len(plan.pipelines) - MOST_PIPELINES} more kinds; --json lists them"
    idle = ", ".join(f"{one.count} x {_where(one.device, one.site)}" for one in plan.idle)
    yield "devices", f"{plan.num_devices} used; idle: {idle or 'none'}"


def windows_answer(document: PlanDocument, problem: WindowsProblem) -> Iterable[Part]:
    """Time of a token, each device's window, and who is left out."""
    plan = document.plan
    assert isinstance(plan, WindowsPlan)
    yield "token", f"{format_seconds(plan.token_s)}, {number(1.0 / plan.token_s)} tokens/s"
    disk = sum(one.reloaded_bytes for one in plan.windows)
    yield "from disk", f"{format_bytes(disk)} a token" if disk else "nothing: all layers stay in memory"
    rows = [
        (
            printable(one.device),
            str(one.num_layers),
            str(one.gpu_layers),
            format_bytes(one.resident_bytes),
            format_bytes(one.reloaded_bytes),
            format_seconds(one.compute_s),
            format_seconds(one.disk_s),
        )
        for one in plan.windows
    ]
    yield table(("device", "layers", "on GPU", "in RAM", "from disk", "computing", "reading"), rows)
    used = {one.device for one in plan.windows}
    left = [printable(name) for name in problem.names if name not in used]
    yield "left out", ", ".join(left) or "none"
    if plan.rounds > 1:
        yield "rounds", f"{plan.rounds}, each with these windows"


def _where(device: str, site: str | None) -> str:
    return printable(device if site is None else f"{device} at {site}")
