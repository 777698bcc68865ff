"""Every rule of a plan of pipelines, from its decisions alone; no solver."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from formulations.parallelism.layers.pipelines import stage_time_s, tokens_per_s, used_devices
from formulations.parallelism.layers.problem import BOTH, EMBEDDING, HEAD, PLAIN, LayersProblem
from planner.cost.layers import pipeline_latency_s
from planner.cost.verdict import Violation
from planner.layers_plan import LayerPipeline, LayersPlan

#: Relative difference of a claimed number that is rounding.
ROUNDING = 1e-6


def check(problem: LayersProblem, plan: LayersPlan) -> list[Violation]:
    """Broken rules; an empty list for a plan that keeps them all."""
    groups = _groups(problem)
    unknown = {
        f"{stage.device} at {stage.site}" if stage.site else stage.device
        for one in plan.pipelines
        for stage in one.stages
        if (stage.device, stage.site) not in groups
    }
    if unknown:
        return [_broken("device", name, f"there is no device {name}") for name in sorted(unknown)]
    found: list[Violation] = []
    carried: defaultdict[tuple[int, int], float] = defaultdict(float)
    for place, one in enumerate(plan.pipelines):
        found += _pipeline(problem, groups, f"pipeline {place + 1}", one)
        sites = [int(problem.site[groups[stage.device, stage.site]]) for stage in one.stages]
        for link in pairwise(sites):
            if link[0] != link[1]:
                carried[link] += one.count * one.steps_per_s
    found += _shared(problem, plan, groups, carried)
    rate = tokens_per_s(problem, plan.pipelines)
    used = sum(used_devices(plan.pipelines).values())
    for key, value, said in (
        ("tokens_per_s", rate, plan.tokens_per_s),
        ("num_devices", used, plan.num_devices),
        ("num_layers", problem.num_layers, plan.num_layers),
    ):
        if abs(value - said) > ROUNDING * max(abs(value), abs(said)):
            found.append(_broken(key, "plan", f"{key} is {value:.6g}, the plan says {said:.6g}", said, value))
    return found


def _groups(problem: LayersProblem) -> dict[tuple[str, str | None], int]:
    """Classes by name and site."""
    sites = problem.site_names
    return {(name, sites[problem.site[g]] if sites else None): g for g, name in enumerate(problem.names)}


def _pipeline(
    problem: LayersProblem, groups: dict[tuple[str, str | None], int], subject: str, one: LayerPipeline
) -> Iterator[Violation]:
    """Layers once and in order, memory, time of every stage, links, latency and steps under way."""
    first = 0
    last = len(one.stages) - 1
    slack = 1 + ROUNDING
    sites = []
    for place, stage in enumerate(one.stages):
        group = groups[stage.device, stage.site]
        sites.append(int(problem.site[group]))
        if stage.first_layer != first:
            message = f"stage {place + 1} of {subject} begins at layer {stage.first_layer}, not {first}"
            yield _broken("cover", subject, message)
        first = stage.first_layer + stage.num_layers
        ends = (EMBEDDING if place == 0 else PLAIN) | (HEAD if place == last else PLAIN)
        assert ends <= BOTH
        most = int(problem.cap[group, ends])
        if stage.num_layers > most:
            message = f"{stage.num_layers} layers on {stage.device}, whose memory holds {most} there"
            yield _broken("memory", subject, message, float(stage.num_layers), float(most))
        time_s = stage_time_s(problem, group, stage.num_layers, place == last)
        if abs(time_s - stage.stage_s) > ROUNDING * time_s:
            message = f"stage {place + 1} of {subject} takes {time_s:.6g} s, the plan says {stage.stage_s:.6g} s"
            yield _broken("stage_s", subject, message, stage.stage_s, time_s)
        if time_s > one.slot_s * slack:
            message = f"stage {place + 1} of {subject} takes {time_s:.6g} s, longer than its slot of {one.slot_s:.6g} s"
            yield _broken("slot", subject, message, time_s, one.slot_s)
    if first != problem.num_layers:
        yield _broken("cover", subject, f"{subject} ends at layer {first} of {problem.num_layers}")
    if one.slot_s * slack < problem.least_slot_s:
        message = f"a local link takes {problem.least_slot_s:.6g} s a step, the slot is {one.slot_s:.6g} s"
        yield _broken("local_link", subject, message, one.slot_s, problem.least_slot_s)
    if one.steps_per_s * one.slot_s > slack:
        message = f"{one.steps_per_s:.6g} steps/s in slots of {one.slot_s:.6g} s"
        yield _broken("rate", subject, message, one.steps_per_s, 1.0 / one.slot_s)
    latency_s = pipeline_latency_s(one.slot_s, sites, problem.hops)
    if not np.isfinite(latency_s):
        yield _broken("link", subject, f"stages of {subject} follow one another without a link between their sites")
        return
    if abs(latency_s - one.latency_s) > ROUNDING * latency_s:
        message = f"a step through {subject} takes {latency_s:.6g} s, the plan says {one.latency_s:.6g} s"
        yield _broken("latency_s", subject, message, one.latency_s, latency_s)
    if latency_s > problem.max_latency_s * slack:
        message = f"a step through {subject} takes {latency_s:.6g} s, the limit is {problem.max_latency_s:.6g} s"
        yield _broken("max_latency_s", subject, message, latency_s, problem.max_latency_s)
    if latency_s > problem.in_flight * one.slot_s * slack:
        message = f"{subject} has {latency_s / one.slot_s:.6g} steps under way, caches hold {problem.in_flight:g}"
        yield _broken("kv_tokens", subject, message, latency_s / one.slot_s, problem.in_flight)


def _shared(
    problem: LayersProblem,
    plan: LayersPlan,
    groups: dict[tuple[str, str | None], int],
    carried: dict[tuple[int, int], float],
) -> Iterator[Violation]:
    """Devices that there are, and links between sites."""
    for (name, site), used in used_devices(plan.pipelines).items():
        there = int(problem.count[groups[name, site]])
        where = f" at {site}" if site else ""
        if used > there:
            yield _broken("devices", name, f"{used} {name}{where} are used of {there}", float(used), float(there))
    for (a, b), steps in carried.items():
        most = float(problem.hops.steps_per_s[a, b])
        if steps > most * (1 + ROUNDING):
            told = f"{problem.site_names[a]} to {problem.site_names[b]}"
            yield _broken("bandwidth", told, f"{told} carries {steps:.6g} steps/s of {most:.6g}", steps, most)


def _broken(
    rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None
) -> Violation:
    return Violation(rule=rule, subject=subject, message=message, amount=amount, limit=limit)
