"""Pipelines over unequal devices as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.kinds import Kind
from formulations.parallelism.layers.check import check
from formulations.parallelism.layers.formulation import LAYERS
from formulations.parallelism.layers.problem import LayersProblem
from formulations.parallelism.layers.reading import read_problem
from planner.cost.verdict import Metric, Verdict, Violation
from planner.descriptions.layers import LayersInstance
from planner.layers_plan import LayersPlan
from planner.plan import LayersDocument


def judge(problem: LayersProblem, plan: LayersPlan) -> Verdict:
    """The rules, the rates and latencies, and the stage that sets the fastest pipeline's slot."""
    broken = tuple(check(problem, plan))
    if broken:
        return Verdict(violations=broken, assumptions=problem.assumptions)
    units = {"tokens_per_s": "1/s", "worst_latency_s": "s", "num_pipelines": "count", "num_devices": "count"}
    measures = LAYERS.objective(problem, plan).measures
    metrics = [Metric(name=name, value=measures[name], unit=unit, source="modelled") for name, unit in units.items()]
    metrics.append(
        Metric(name="devices_idle", value=sum(one.count for one in plan.idle), unit="count", source="modelled")
    )
    fastest = plan.pipelines[0]
    slowest = max(fastest.stages, key=lambda one: one.stage_s)
    told = f"{slowest.device}, {slowest.num_layers} layers, sets the pace of the fastest pipeline"
    if fastest.steps_per_s * fastest.slot_s < 1 - 1e-3:
        told = "links between sites: the fastest pipeline waits for them"
    return Verdict(metrics=tuple(metrics), bottleneck=told, assumptions=problem.assumptions)


def judge_alone(plan: LayersPlan) -> Verdict:
    """Layers once and in order; memory, links and times need the instance."""
    found = []
    for place, one in enumerate(plan.pipelines):
        first = 0
        for stage in one.stages:
            if stage.first_layer != first:
                message = f"pipeline {place + 1}: a stage begins at layer {stage.first_layer}, not {first}"
                found.append(Violation(rule="cover", subject=f"pipeline {place + 1}", message=message))
            first = stage.first_layer + stage.num_layers
        if first != plan.num_layers:
            message = f"pipeline {place + 1} ends at layer {first} of {plan.num_layers}"
            found.append(Violation(rule="cover", subject=f"pipeline {place + 1}", message=message))
    return Verdict(violations=tuple(found), assumptions=("no instance given: memory, links and times are not judged",))


KIND: Kind[LayersInstance, LayersProblem, LayersPlan] = Kind(
    name="layers",
    instance=LayersInstance,
    document=LayersDocument,
    formulation=LAYERS,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
