"""Figures of a plan document, by kind of instance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.sweep import scaled
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.training.mixed.plans import owner
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.timeline import timeline_of as mixed_timeline_of
from formulations.parallelism.training.search.explain import PART_WORDS
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.refine import timeline_of
from formulations.pod_packing.problem import PodsProblem
from formulations.reporting.placed import placed
from planner.cluster import Cluster
from planner.cost.expert_parallel import gpu_load
from planner.deploy_plan import DeployPlan
from planner.experts_plan import ExpertPlacement
from planner.fleet_plan import FleetPlan, Period
from planner.layers_plan import LayersPlan, WindowsPlan
from planner.parallel_plan import ParallelPlan
from planner.plan import PlanDocument
from planner.pods_plan import PodsPlan
from planner.reporting import charts
from planner.reporting.page import Figure
from planner.reporting.workbook.facts import Scenario
from planner.training_plan import TrainingPlan, TrainingStage
from planner.workload import FloatArray, IntArray

#: Nodes that a packing picture shows: wider ones are columns of less than a pixel.
MOST_NODES = 1500
#: Stages whose memory is drawn.
MOST_STAGES = 32


def figures(
    document: PlanDocument, problem: Any, cluster: Cluster | None = None, scenarios: Sequence[Scenario] = ()
) -> Iterator[Figure]:
    """What can be drawn of a plan, best first; nothing for a document without a plan. Raises MissingExtraError.

    cluster : of instances that describe one. scenarios : of a fleet, solved at other demands.
    """
    if document.plan is None:
        return
    yield from placed(document, problem, cluster)
    if scenarios:
        yield _against_demand(document, problem, scenarios)
    yield from FIGURES[document.kind_name](document.plan, problem)


def _experts(plan: ExpertPlacement, problem: ExpertPlacementProblem) -> Iterator[Figure]:
    name, rows = eplb(problem)

    def relative(placement: IntArray) -> FloatArray:
        load = gpu_load(problem.load, placement, problem.speed, problem.split) / problem.speed
        worst: FloatArray = (load / load.mean(axis=2, keepdims=True)).max(axis=0)
        return worst

    maps = {name: relative(rows), "this plan": relative(plan.array)}
    hottest = {which: float(values.max()) for which, values in maps.items()}
    caption = (
        "Load of each GPU in each MoE layer over the layer's mean, in the workload where that is most; dark is what a"
        f" layer waits for. Hottest: {hottest[name]:.3f} under {name}, {hottest['this plan']:.3f} here."
    )
    yield Figure(charts.heat_maps(maps, "GPU", "MoE layer", "load over mean"), caption)


def _fleet(plan: FleetPlan, problem: FleetProblem) -> Iterator[Figure]:
    price = dict(zip(problem.offer_names, problem.price.tolist(), strict=True))
    busiest = max(plan.periods, key=lambda period: period.cost_usd_per_hour)
    hours = sorted((hour, period) for period in plan.periods for hour in period.hours)
    if len(hours) > 1:
        yield from _by_hour([hour for hour, _ in hours], [_counts(period) for _, period in hours], price)
    counts = _counts(busiest)
    cost = np.array([count * price[offer] for offer, count in counts.items()])
    names = [f"{count} x {offer}" for offer, count in counts.items()]
    when = "" if len(hours) <= 1 else " in the most expensive hour"
    if names:
        yield Figure(charts.bars(names, {"USD per hour": cost}, "USD per hour"), f"What the instances cost{when}.")


def _by_hour(hours: Sequence[int], counts: Sequence[Mapping[str, int]], price: Mapping[str, float]) -> Iterator[Figure]:
    """Instances and their cost in each hour; offers that cost little as one, each of one colour in both."""
    there = {offer for count in counts for offer in count}
    rows = {offer: np.array([count.get(offer, 0) for count in counts], dtype=float) for offer in there}
    order = sorted(there, key=lambda offer: (-float(rows[offer].sum()) * price[offer], offer))
    kept = order if len(order) <= charts.MOST_NAMED else order[: charts.MOST_NAMED - 1]
    names = [*kept, *(["others"] if len(kept) < len(order) else [])]

    def stacked(weight: Mapping[str, float]) -> list[FloatArray]:
        rest = sum((rows[offer] * weight[offer] for offer in order[len(kept) :]), np.zeros(len(hours)))
        return [*(rows[offer] * weight[offer] for offer in kept), *([rest] if len(kept) < len(order) else [])]

    x, cost = np.array(hours, dtype=float), stacked(price)
    instances = stacked(dict.fromkeys(there, 1.0))
    yield Figure(charts.steps(names, instances, x, "hour", "instances"), "Instances that run in each hour, by offer.")
    total = np.sum(cost, axis=0)
    caption = (
        f"What they cost in each hour: {total.min():.4g} to {total.max():.4g} USD, {total.mean():.4g} in the mean."
    )
    yield Figure(charts.steps(names, cost, x, "hour", "USD per hour"), caption)


def _against_demand(document: PlanDocument, problem: FleetProblem, scenarios: Sequence[Scenario]) -> Figure:
    """Cost, what is proven of it and the plain rule's cost at multiples of the demand, each a fleet solved anew."""
    outcome, mean = document.outcome, float(problem.share @ problem.rate.sum(axis=1))
    points = [(one.factor, one.usd_per_hour, one.bound_usd_per_hour) for one in scenarios]
    points.append((1.0, outcome.objective, outcome.bound))
    points.sort(key=lambda point: point[0])
    x = np.array([factor for factor, _, _ in points]) * mean
    cost, bound = (np.array([np.nan if p[side] is None else p[side] for p in points], dtype=float) for side in (1, 2))
    name, rule = _rule(problem, x)
    curves = {"best fleet found": cost, "no fleet costs less": bound, f"{name}, limits aside": rule}
    marked = {} if outcome.objective is None else {"this plan": (mean, outcome.objective)}
    notes = [f"{one.factor:g} times: {_none(one)}." for one in scenarios if one.usd_per_hour is None]
    caption = (
        "Cost at other demands, every hour and size scaled alike: each mark is a fleet that was solved anew, with less"
        " time than the plan; between marks nothing was solved. No fleet can cost less than the lower dashed curve."
    )
    shown = charts.lines(x, curves, marked, "requests/s, mean over the hours", "USD per hour")
    return Figure(shown, " ".join([caption, *notes]))


def _rule(problem: FleetProblem, rates: FloatArray) -> tuple[str, FloatArray]:
    """Name and cost of the plain rule at each mean rate, NaN where it has no fleet."""
    name, costs = "", []
    for rate in rates:
        asked = scaled(problem, float(rate))
        name, plan = GPU_FLEET.baseline(asked)
        costs.append(np.nan if plan is None else GPU_FLEET.objective(asked, plan).total)
    return name, np.array(costs)


def _none(scenario: Scenario) -> str:
    return "no fleet exists" if scenario.status == "infeasible" else "no fleet was found in the time"


def _counts(period: Period) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in period.allocation:
        if row.count:
            found[row.offer] = found.get(row.offer, 0) + row.count
    return found


def _parallel(plan: ParallelPlan, problem: ParallelProblem) -> Iterator[Figure]:
    if len(plan.tradeoffs) > 1:
        tpot = np.array([one.tpot_s for one in plan.tradeoffs])
        rate = np.array([one.output_tokens_per_s_per_gpu for one in plan.tradeoffs])
        marked = {}
        if plan.tpot_s is not None:
            marked["this plan"] = (plan.tpot_s * 1e3, plan.output_tokens_per_s_per_gpu)
        group = {"best plans": (tpot * 1e3, rate)}
        svg = charts.points(group, marked, "time per output token, ms", "output tokens/s a GPU", (tpot * 1e3, rate))
        yield Figure(svg, "The best plan under each limit on the time per output token: throughput against speed.")
    groups: dict[str, tuple[FloatArray, FloatArray]] = {}
    chosen: dict[str, tuple[float, float]] = {}
    used = {one.name for one in plan.workers}
    for role, time in (("both", "tpot_s"), ("decode", "tpot_s"), ("prefill", "ttft_s")):
        rows = [one for one in plan.pareto if one.role == role and getattr(one, time)]
        if not rows:
            continue
        x = np.array([getattr(one, time) for one in rows]) * 1e3
        groups[f"{role}: {time.split('_')[0].upper()}"] = (x, np.array([one.requests_per_s_per_gpu for one in rows]))
        chosen |= {one.name: (getattr(one, time) * 1e3, one.requests_per_s_per_gpu) for one in rows if one.name in used}
    if groups:
        svg = charts.points(groups, chosen, "TPOT, of prefill workers TTFT, ms", "requests/s a GPU", log=True)
        yield Figure(
            svg, "Workers that none beats in throughput, latency and size together; those of the plan are named."
        )


def _layers(plan: LayersPlan, problem: Any) -> Iterator[Figure]:
    stages = [
        (f"{stage.device}{'' if stage.site is None else f' at {stage.site}'}: {stage.num_layers} layers", stage.stage_s)
        for pipeline in plan.pipelines[:1]
        for stage in pipeline.stages
    ]
    times = np.array([time for _, time in stages]) * 1e3
    slot = plan.pipelines[0].slot_s * 1e3
    parts = {"stage": times, "waiting": np.maximum(0.0, slot - times)}
    caption = (
        f"Stages of the first pipeline ({plan.pipelines[0].count} of it); the slowest sets the step of {slot:.3g} ms."
    )
    yield Figure(charts.bars([name for name, _ in stages], parts, "ms of a step"), caption)


def _windows(plan: WindowsPlan, problem: Any) -> Iterator[Figure]:
    names = [f"{one.device}: {one.num_layers} layers, {one.gpu_layers} on GPU" for one in plan.windows]
    parts = {
        "computing": np.array([one.compute_s for one in plan.windows]),
        "disk": np.array([one.disk_s for one in plan.windows]),
        "link": np.array([one.hop_s for one in plan.windows]),
    }
    svg = charts.bars(names, {name: value * 1e3 for name, value in parts.items()}, "ms of a token")
    yield Figure(svg, f"Where the time of a token goes, device after device; together {plan.token_s * 1e3:.4g} ms.")


def _pods(plan: PodsPlan, problem: PodsProblem) -> Iterator[Figure]:
    with_gpus = np.flatnonzero(problem.gpus > 0)
    if not with_gpus.size:
        return
    shown = with_gpus[:MOST_NODES]
    place = {problem.node_names[node]: column for column, node in enumerate(shown.tolist())}
    kinds = ["whole GPUs, one", "whole GPUs, several", "shares of a GPU"]
    rows = np.full((int(problem.gpus[shown].max()), shown.size), -2)
    for column, node in enumerate(shown.tolist()):
        rows[: problem.gpus[node], column] = -1
    for one in plan.placements:
        at = place.get(one.node)
        if at is None:
            continue
        kind = 2 if any(share.gpu_milli < 1000 for share in one.gpus) else int(len(one.gpus) > 1)
        for share in one.gpus:
            rows[share.index, at] = kind
    # Full nodes first, so that what is free stands together.
    order = np.lexsort((-(rows >= 0).sum(axis=0), -problem.gpus[shown]))
    free = int((rows == -1).sum())
    more = "" if shown.size == with_gpus.size else f" The first {shown.size} of {with_gpus.size} nodes are shown."
    caption = f"Devices (rows) of the nodes with GPUs (columns), full ones first; {free} devices are free.{more}"
    yield Figure(charts.slots(rows[:, order], kinds, "node", "GPU"), caption)


def _training(plan: TrainingPlan, problem: TrainProblem | MixedProblem) -> Iterator[Figure]:
    mixed = isinstance(problem, MixedProblem)
    shown = mixed_timeline_of(problem, plan) if isinstance(problem, MixedProblem) else timeline_of(problem, plan)
    if shown is not None:
        asked, times = shown
        kinds = {}
        for name, kind in (("forward", 0), ("backward", 1), ("weight gradient", 2)):
            start_s, length_s = times.start_s[kind], asked.pass_s[kind][:, None]
            rows = np.broadcast_to(asked.device[:, None], start_s.shape)
            lengths = np.broadcast_to(length_s, start_s.shape)
            kinds[name] = (rows.ravel(), start_s.ravel(), lengths.ravel())
        part = "" if asked.micro_batches == plan.num_micro_batches else f" of {plan.num_micro_batches}"
        caption = f"Passes of {asked.micro_batches}{part} micro-batches under {plan.schedule}, stage by stage."
        kind_of = [f", {stage.device}" if mixed else "" for stage in plan.stages]
        names = [f"stage {stage}{kind_of[stage]}" for stage in range(plan.pipeline_parallel_size)]
        yield Figure(charts.timeline(names, kinds, "s"), caption)
    stages = plan.stages[:MOST_STAGES]
    parts = {PART_WORDS[name]: np.array([one.memory[name] for one in stages]) / 2.0**30 for name in PART_WORDS}
    room = np.array([_room(problem, one) for one in stages])
    parts["free"] = (room - np.array([one.peak_memory_bytes for one in stages])) / 2.0**30
    names = [
        f"stage {place}: {one.num_layers} layers" + (f" on {one.device}" if mixed else "")
        for place, one in enumerate(stages)
    ]
    yield Figure(charts.bars(names, parts, "GiB of a GPU"), "Where the memory of each stage's GPUs goes.")
    if len(plan.pareto) > 1:
        hours = np.array([one.gpu_s for one in plan.pareto]) / 3600.0
        group = {"plans": (np.array([one.step_s for one in plan.pareto]), hours)}
        marked = {"this plan": (plan.step_s, plan.step_s * plan.num_gpus / 3600.0)}
        svg = charts.points(group, marked, "seconds of a step", "GPU hours of a step", log=True)
        yield Figure(svg, "Plans that none beats in step time, free memory, cost and energy together.")


def _room(problem: TrainProblem | MixedProblem, stage: TrainingStage) -> float:
    """Bytes of a GPU of a stage that may be used."""
    if isinstance(problem, TrainProblem):
        return problem.capacity_bytes
    number = owner(problem, stage)
    assert number is not None
    return problem.blocks[number].capacity_bytes


def _deploy(plan: DeployPlan, problem: Any) -> Iterator[Figure]:
    hours = sorted((hour, period) for period in plan.fleet.periods for hour in period.hours)
    if len(hours) > 1:
        x = np.array([hour for hour, _ in hours], dtype=float)
        cost = np.array([period.cost_usd_per_hour for _, period in hours])
        told = f"{cost.min():.4g} to {cost.max():.4g} USD, {cost.mean():.4g} in the mean"
        yield Figure(charts.steps(["all nodes"], [cost], x, "hour", "USD per hour"), f"Cost of each hour: {told}.")


FIGURES: Mapping[str, Callable[[Any, Any], Iterator[Figure]]] = {
    "experts": _experts,
    "fleet": _fleet,
    "parallel": _parallel,
    "layers": _layers,
    "windows": _windows,
    "training": _training,
    "pods": _pods,
    "deploy": _deploy,
}
