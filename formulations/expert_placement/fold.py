"""Two slots a GPU, one scenario, even split, equal GPUs: search over replica counts only.

For given replica sizes the best pairing is the fold: the largest with the smallest, the second largest with the second
smallest, and so on. So only the counts are annealed; the pairing follows.
"""

from __future__ import annotations

import math

import numpy as np

from formulations.expert_placement.greedy import repair_layer
from formulations.expert_placement.kernels import compiled, draw, start_random
from planner.workload import FloatArray, IntArray


@compiled
def fold_value(load, count, num_slots):
    """Hottest pair of the fold, and the expert of its larger half."""
    sizes = np.empty(num_slots)
    at = 0
    for expert in range(load.size):
        for _ in range(count[expert]):
            sizes[at] = load[expert] / count[expert]
            at += 1
    sizes.sort()
    top, larger = 0.0, 0.0
    for i in range(num_slots // 2):
        pair = sizes[i] + sizes[num_slots - 1 - i]
        if pair > top:
            top, larger = pair, sizes[num_slots - 1 - i]
    for expert in range(load.size):
        if load[expert] / count[expert] == larger:
            return top, expert
    return top, 0


@compiled
def anneal_counts(load, count, num_slots, max_replicas, proposals, seed):
    """Best replica counts [E] found by moving one replica at a time from any expert to (mostly) the hottest."""
    random = start_random(seed)
    count = count.copy()
    value, hot = fold_value(load, count, num_slots)
    best, best_count = value, count.copy()
    start, end = 0.01 * value, 1e-5 * value
    cooling = math.log(end / start) / max(1, proposals)
    for proposal in range(proposals):
        slack = -start * math.exp(cooling * proposal) * math.log(max(draw(random), 1e-300))
        plus = hot if draw(random) < 0.7 else int(draw(random) * load.size)
        minus = int(draw(random) * load.size)
        if plus == minus or count[minus] < 2 or count[plus] >= max_replicas:
            continue
        count[plus] += 1
        count[minus] -= 1
        fresh, fresh_hot = fold_value(load, count, num_slots)
        if fresh - value > slack:
            count[plus] -= 1
            count[minus] += 1
            continue
        value, hot = fresh, fresh_hot
        if value < best - 1e-12:
            best = value
            best_count[:] = count
    return best_count


def fold(load: FloatArray, count: IntArray) -> IntArray | None:
    """Slots [S] of one layer: fold of the replicas, same-expert pairs swapped apart; None when they cannot be."""
    experts = np.repeat(np.arange(load.size), count)
    order = experts[np.argsort((load / count)[experts], kind="stable")]
    slots = np.stack([order[: order.size // 2], order[::-1][: order.size // 2]], axis=1).ravel()
    return slots if repair_layer(slots, slots.size // 2, load / count) else None
