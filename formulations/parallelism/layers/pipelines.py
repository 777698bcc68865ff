"""A chosen pipeline as stages in order: who holds the embedding and the head, and how many layers each device runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from formulations.parallelism.layers.pricing import Column
from formulations.parallelism.layers.problem import BOTH, EMBEDDING, HEAD, PLAIN, IntArray, LayersProblem
from planner.cost.layers import pipeline_latency_s
from planner.layers_plan import IdleDevices, LayerPipeline, LayersPlan, LayerStage


def stages_of(problem: LayersProblem, column: Column) -> tuple[tuple[int, int], ...]:
    """(class, layers) of each stage; fast devices first filled, so that a step takes least time within the slot.

    Raises ValueError for devices that do not hold all layers: the column would be a mistake of ours.
    """
    slot = np.array([column.slot_s])
    within = {ends: problem.layers_within(slot, ends)[0] for ends in range(4)}
    order = [
        group
        for site in column.path
        for group in np.flatnonzero(problem.site == site).tolist()
        for _ in range(column.counts[group])
    ]
    if len(order) == 1:
        return ((order[0], problem.num_layers),) if within[BOTH][order[0]] >= problem.num_layers else _not(column)
    best: tuple[float, list[tuple[int, int]]] | None = None
    of_site = problem.site[order]
    firsts = {order[i]: i for i in reversed(np.flatnonzero(of_site == column.path[0]).tolist())}
    lasts = {order[i]: i for i in np.flatnonzero(of_site == column.path[-1]).tolist()}
    for i in firsts.values():
        for j in lasts.values():
            if i == j:
                continue
            # The first and the last of their classes go to the ends of their sites.
            middle = [k for k in range(len(order)) if k not in (i, j)]
            way = sorted(middle, key=lambda k: column.path.index(int(problem.site[order[k]])))
            groups = [order[k] for k in (i, *way, j)]
            caps = np.array([within[PLAIN][g] for g in groups])
            caps[0], caps[-1] = within[EMBEDDING][groups[0]], within[HEAD][groups[-1]]
            layers = _filled(problem, groups, caps)
            if layers is None:
                continue
            time_s = float(layers @ problem.layer_s[groups]) + float(problem.head_s[groups[-1]])
            if best is None or time_s < best[0]:
                best = time_s, list(zip(groups, layers.tolist(), strict=True))
    return tuple(best[1]) if best is not None else _not(column)


def _not(column: Column) -> tuple[tuple[int, int], ...]:
    raise ValueError(f"the devices of {column} do not hold all layers")


def _filled(problem: LayersProblem, groups: Sequence[int], caps: IntArray) -> IntArray | None:
    """A layer for each, and the rest for the fastest; None where there is no room."""
    left = problem.num_layers - len(groups)
    if left < 0 or (caps < 1).any() or caps.sum() < problem.num_layers:
        return None
    layers = np.ones(len(groups), dtype=np.int64)
    for place in np.argsort(problem.layer_s[list(groups)], kind="stable").tolist():
        more = min(left, int(caps[place]) - 1)
        layers[place] += more
        left -= more
    return layers


def stage_time_s(problem: LayersProblem, group: int, layers: int, last: bool) -> float:
    """Layers, and on the last stage the head."""
    return layers * float(problem.layer_s[group]) + (float(problem.head_s[group]) if last else 0.0)


def pipeline(
    problem: LayersProblem, stages: Sequence[tuple[int, int]], slot_s: float, steps_per_s: float, count: int
) -> LayerPipeline:
    """`count` pipelines of these stages, (class, layers)."""
    named = []
    first = 0
    for place, (group, layers) in enumerate(stages):
        stage_s = stage_time_s(problem, group, layers, place == len(stages) - 1)
        named.append(
            LayerStage(
                device=problem.names[group],
                site=problem.site_names[problem.site[group]] if problem.site_names else None,
                first_layer=first,
                num_layers=layers,
                stage_s=stage_s,
            )
        )
        first += layers
    sites = [int(problem.site[group]) for group, _ in stages]
    latency_s = pipeline_latency_s(slot_s, sites, problem.hops)
    return LayerPipeline(count=count, slot_s=slot_s, steps_per_s=steps_per_s, latency_s=latency_s, stages=tuple(named))


def plan_of(problem: LayersProblem, pipelines: Sequence[LayerPipeline]) -> LayersPlan:
    """The plan that some pipelines are, fastest first, and what stays idle."""
    used = used_devices(pipelines)
    idle = []
    for group, name in enumerate(problem.names):
        site = problem.site_names[problem.site[group]] if problem.site_names else None
        left = int(problem.count[group]) - used[name, site]
        if left > 0:
            idle.append(IdleDevices(device=name, site=site, count=left))
    return LayersPlan(
        num_layers=problem.num_layers,
        num_devices=sum(used.values()),
        tokens_per_s=tokens_per_s(problem, pipelines),
        pipelines=tuple(sorted(pipelines, key=lambda one: -one.steps_per_s)),
        idle=tuple(idle),
    )


def used_devices(pipelines: Sequence[LayerPipeline]) -> Counter[tuple[str, str | None]]:
    """Devices by name and site."""
    used: Counter[tuple[str, str | None]] = Counter()
    for one in pipelines:
        for stage in one.stages:
            used[stage.device, stage.site] += one.count
    return used


def tokens_per_s(problem: LayersProblem, pipelines: Sequence[LayerPipeline]) -> float:
    """Of all pipelines, a token for each sequence of a step."""
    return problem.batch * sum(one.count * one.steps_per_s for one in pipelines)
