"""The rule in use: Parallax's greedy first phase, which fills pipelines by memory and looks at no link.

Devices are taken by the layers that they hold, most first, until they hold the model. When the pipeline can be closed
and the devices that are left still hold another one, the smallest that closes it is taken instead. Layers are then
spread in proportion to speed, as far as memory lets them ("water-filling"), and rounded by largest remainders. This
repeats until what is left holds no pipeline. Written from the published description (arXiv:2509.26182); it is not its
code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from formulations.parallelism.layers.pipelines import pipeline, plan_of, stage_time_s
from formulations.parallelism.layers.problem import BOTH, EMBEDDING, HEAD, PLAIN, IntArray, LayersProblem
from planner.layers_plan import LayersPlan

#: Halvings of the water level. Source: Parallax's default.
HALVINGS = 40


def parallax_greedy(problem: LayersProblem) -> LayersPlan | None:
    """The greedy plan; None when it makes no pipeline, or one over a link that there is not."""
    caps = problem.cap.tolist()
    free = sorted(np.repeat(np.arange(problem.num_classes), problem.count).tolist(), key=lambda g: -caps[g][PLAIN])
    found: list[tuple[list[int], IntArray]] = []
    while sum(caps[g][PLAIN] for g in free) >= problem.num_layers:
        groups = _take(caps, problem.num_layers, free)
        layers = None if groups is None else _water_filled(problem, groups)
        if groups is None or layers is None:
            break
        kept = layers > 0
        found.append(([g for g, keep in zip(groups, kept.tolist(), strict=True) if keep], layers[kept]))
    return _plan(problem, found)


def _take(caps: list[list[int]], num_layers: int, free: list[int]) -> list[int] | None:
    """Devices of the next pipeline, taken out of `free`; None when they do not hold it."""
    groups: list[int] = []
    left = num_layers
    rest = sum(caps[g][PLAIN] for g in free)
    while left > 0 and free:
        ends = EMBEDDING if not groups else PLAIN
        last = BOTH if not groups else HEAD
        closing = [
            place for place, g in enumerate(free) if caps[g][last] >= left and rest - caps[g][PLAIN] >= num_layers
        ]
        group = free.pop(closing[-1] if closing else 0)
        rest -= caps[group][PLAIN]
        groups.append(group)
        held = caps[group][ends]
        left -= held if held < left else caps[group][last]
    return groups if left <= 0 else None


def _water_filled(problem: LayersProblem, groups: list[int]) -> IntArray | None:
    """Layers in proportion to speed within memory; sorts `groups` by memory, as the rule does."""
    groups.sort(key=lambda g: -problem.cap[g, PLAIN])
    ends = [PLAIN] * len(groups)
    ends[-1] |= HEAD
    ends[0] |= EMBEDDING
    caps = problem.cap[groups, ends]
    speed = 1.0 / problem.layer_s[groups]
    if caps.sum() < problem.num_layers:
        return None
    low, high = 0.0, float((caps / speed).max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = np.minimum(caps, middle * speed).sum() >= problem.num_layers
        low, high = (low, middle) if enough else (middle, high)
    target = np.minimum(caps, high * speed)
    layers = np.floor(target).astype(np.int64)
    for place in np.argsort(layers - target, kind="stable").tolist():
        if layers.sum() < problem.num_layers and layers[place] < caps[place]:
            layers[place] += 1
    return layers if layers.sum() == problem.num_layers else None


def _plan(problem: LayersProblem, found: Sequence[tuple[list[int], IntArray]]) -> LayersPlan | None:
    """Pipelines at the rate of their slowest stage, or an equal share of a link that they use together."""
    if not found:
        return None
    users = Counter(link for groups, _ in found for link in pairwise(problem.site[groups].tolist()))
    pipelines = []
    for groups, layers in found:
        stages = list(zip(groups, layers.tolist(), strict=True))
        times = [stage_time_s(problem, g, n, place == len(stages) - 1) for place, (g, n) in enumerate(stages)]
        slot_s = max(*times, problem.least_slot_s)
        way = list(pairwise(problem.site[groups].tolist()))
        if not all(np.isfinite(problem.hops.step_s[a, b]) for a, b in way):
            return None
        shares = [float(problem.hops.steps_per_s[a, b]) / users[a, b] for a, b in way if a != b]
        pipelines.append(pipeline(problem, stages, slot_s, min([1.0 / slot_s, *shares]), 1))
    return plan_of(problem, pipelines)
