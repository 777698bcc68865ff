"""Compiled building blocks of the annealing: no Python objects, one thread.

Every function is plain Python on arrays; numba compiles it on first use and keeps the machine code on disk. The
uncompiled form (`function.py_func`) gives the same result, which the tests check.

Numba's cache notices a change of the file a function stands in, not of the functions it calls in other files: after an
edit here, delete __pycache__.

State of a layer: slots[j] expert of slot j on GPU j // s; count[e] replicas; place[e, i] slot of the i-th replica of e
(i < count[e]); share or flow; level[g, k] = load / speed of GPU g in scenario k.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def compiled(function: Callable[..., Any]) -> Any:
    """numba.njit, cached on disk, without the interpreter lock, in strict floating-point order."""
    return numba.njit(cache=True, nogil=True)(function)


@compiled
def draw(state):
    """Next uniform float in [0, 1): xorshift64*, so that every layer has its own reproducible stream."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@compiled
def index_places(slots, num_experts, max_replicas):
    """count[E] and place[E, max_replicas] of a placement."""
    count = np.zeros(num_experts, np.int64)
    place = np.full((num_experts, max_replicas), -1, np.int64)
    for slot in range(slots.size):
        expert = slots[slot]
        place[expert, count[expert]] = slot
        count[expert] += 1
    return count, place


@compiled
def hottest_gpu(level, scenario):
    """Index of the most loaded GPU in one scenario."""
    best, top = 0, -1.0
    for gpu in range(level.shape[0]):
        if level[gpu, scenario] > top:
            best, top = gpu, level[gpu, scenario]
    return best


@compiled
def weighted_top(level, weight):
    """sum_k weight[k] * max_g level[g, k]."""
    total = 0.0
    for k in range(level.shape[1]):
        top = 0.0
        for gpu in range(level.shape[0]):
            top = max(top, level[gpu, k])
        total += weight[k] * top
    return total


@compiled
def even_level(load, slots, count, speed):
    """level[G, K] under even split."""
    num_gpus = speed.size
    per_gpu = slots.size // num_gpus
    level = np.zeros((num_gpus, load.shape[1]))
    for slot in range(slots.size):
        gpu, expert = slot // per_gpu, slots[slot]
        for k in range(load.shape[1]):
            level[gpu, k] += load[expert, k] / count[expert] / speed[gpu]
    return level


@compiled
def replace_place(place, count, removed, added, slot):
    """Book-keeping when `slot` changes from expert `removed` to `added`."""
    for i in range(count[removed]):
        if place[removed, i] == slot:
            count[removed] -= 1
            place[removed, i] = place[removed, count[removed]]
            break
    place[added, count[added]] = slot
    count[added] += 1


@compiled
def swap_place(place, count, one, slot_one, two, slot_two):
    """Book-keeping when expert `one` in slot_one and expert `two` in slot_two change places."""
    for i in range(count[one]):
        if place[one, i] == slot_one:
            place[one, i] = slot_two
            break
    for i in range(count[two]):
        if place[two, i] == slot_two:
            place[two, i] = slot_one
            break


@compiled
def swap_moves(old, one, two, hot, cold):
    """Change of the number of moves when expert `one` on `hot` and `two` on `cold` change places; old uint8 [E, G].

    np.int64, because numba makes int(uint8) unsigned, and a difference below 0 enormous.
    """
    saved = np.int64(old[one, hot]) + np.int64(old[two, cold])
    return saved - np.int64(old[one, cold]) - np.int64(old[two, hot])


@compiled
def replace_moves(old, removed, added, gpu):
    """Change of the number of moves when a slot on `gpu` changes from expert `removed` to `added`."""
    return np.int64(old[removed, gpu]) - np.int64(old[added, gpu])


@compiled
def start_random(seed):
    """State of `draw` for a seed; neighbouring seeds give unrelated streams."""
    random = np.array([np.uint64(seed) * np.uint64(2) + np.uint64(88172645463325253)], np.uint64)
    for _ in range(8):
        draw(random)
    return random


@compiled
def swap_levels(
    level, load, count, speed, weight, top, top_gpu, one, two, hot, cold, fresh_one, fresh_two, fresh_top, fresh_gpu
):
    """Price swapping expert `one` on GPU `hot` with `two` on `cold` under even split.

    Fills the fresh levels of both GPUs and the fresh maxima [K]; returns the change of sum_k weight * max.
    """
    change = 0.0
    for k in range(weight.size):
        shift = load[one, k] / count[one] - load[two, k] / count[two]
        fresh_one[k] = level[hot, k] - shift / speed[hot]
        fresh_two[k] = level[cold, k] + shift / speed[cold]
        if top_gpu[k] == hot or top_gpu[k] == cold:
            fresh_top[k], fresh_gpu[k] = fresh_one[k], hot
            for gpu in range(speed.size):
                if gpu != hot and gpu != cold and level[gpu, k] > fresh_top[k]:
                    fresh_top[k], fresh_gpu[k] = level[gpu, k], gpu
        else:
            fresh_top[k], fresh_gpu[k] = top[k], top_gpu[k]
            if fresh_one[k] > fresh_top[k]:
                fresh_top[k], fresh_gpu[k] = fresh_one[k], hot
        if fresh_two[k] > fresh_top[k]:
            fresh_top[k], fresh_gpu[k] = fresh_two[k], cold
        change += weight[k] * (fresh_top[k] - top[k])
    return change


@compiled
def replace_levels(level, load, count, place, speed, removed, added, gpu, per_gpu):
    """Apply to `level` that a slot on `gpu` changes from expert `removed` to `added`, under even split."""
    for k in range(load.shape[1]):
        before, after = load[removed, k] / count[removed], load[removed, k] / (count[removed] - 1)
        for i in range(count[removed]):
            holder = place[removed, i] // per_gpu
            level[holder, k] += (after - before) / speed[holder]
        level[gpu, k] -= after / speed[gpu]
        before, after = load[added, k] / count[added], load[added, k] / (count[added] + 1)
        for i in range(count[added]):
            holder = place[added, i] // per_gpu
            level[holder, k] += (after - before) / speed[holder]
        level[gpu, k] += after / speed[gpu]


@compiled
def find_tops(level, top, top_gpu):
    """Fill the hottest GPU of each scenario and its level."""
    for k in range(top.size):
        top_gpu[k] = hottest_gpu(level, k)
        top[k] = level[top_gpu[k], k]
