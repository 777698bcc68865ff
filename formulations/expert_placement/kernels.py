"""Compiled inner loops of the annealing: one layer, one thread, no Python objects.

Every function is plain Python on arrays; numba compiles it on first use and keeps the machine code on disk. The
uncompiled form (`function.py_func`) gives the same result, which the tests check.

State of a layer: slots[j] expert of slot j on GPU j // s; count[e] replicas; place[e, i] slot of the i-th replica of e
(i < count[e]); share or flow; level[g, k] = load / speed of GPU g in scenario k.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """numba.njit, cached on disk, without the interpreter lock, in strict floating-point order."""
    result: Function = numba.njit(cache=True, nogil=True)(function)
    return result


@compiled
def draw(state):  # type: ignore[no-untyped-def]
    """Next uniform float in [0, 1): xorshift64*, so that every layer has its own reproducible stream."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) / 9007199254740992.0


@compiled
def index_places(slots, num_experts, max_replicas):  # type: ignore[no-untyped-def]
    """count[E] and place[E, max_replicas] of a placement."""
    count = np.zeros(num_experts, np.int64)
    place = np.full((num_experts, max_replicas), -1, np.int64)
    for slot in range(slots.size):
        expert = slots[slot]
        place[expert, count[expert]] = slot
        count[expert] += 1
    return count, place


@compiled
def hottest_gpu(level, scenario):  # type: ignore[no-untyped-def]
    """Index of the most loaded GPU in one scenario."""
    best, top = 0, -1.0
    for gpu in range(level.shape[0]):
        if level[gpu, scenario] > top:
            best, top = gpu, level[gpu, scenario]
    return best


@compiled
def weighted_top(level, weight):  # type: ignore[no-untyped-def]
    """sum_k weight[k] * max_g level[g, k]."""
    total = 0.0
    for k in range(level.shape[1]):
        top = 0.0
        for gpu in range(level.shape[0]):
            top = max(top, level[gpu, k])
        total += weight[k] * top
    return total


@compiled
def even_level(load, slots, count, speed):  # type: ignore[no-untyped-def]
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
def replace_place(place, count, removed, added, slot):  # type: ignore[no-untyped-def]
    """Book-keeping when `slot` changes from expert `removed` to `added`."""
    for i in range(count[removed]):
        if place[removed, i] == slot:
            count[removed] -= 1
            place[removed, i] = place[removed, count[removed]]
            break
    place[added, count[added]] = slot
    count[added] += 1


@compiled
def swap_place(place, count, one, slot_one, two, slot_two):  # type: ignore[no-untyped-def]
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
def anneal_even(  # type: ignore[no-untyped-def]
    load, weight, speed, allowed, old, move_price, slots, max_replicas, proposals, hot_start, hot_end, seed
):
    """Anneal one layer under even split; returns the best slots and their objective.

    load [E, K]; weight [K]; speed [G]; allowed uint8 [E, G]; old uint8 [E, G], where the expert lies now; move_price
    per replica that is not in old; slots int64 [S], valid, not changed; temperatures fall geometrically from hot_start
    to hot_end, in units of the objective.
    """
    num_gpus, num_experts, num_scenarios = speed.size, load.shape[0], load.shape[1]
    per_gpu = slots.size // num_gpus
    random = np.array([np.uint64(seed) * np.uint64(2) + np.uint64(88172645463325253)], np.uint64)
    for _ in range(8):
        draw(random)
    slots = slots.copy()
    count, place = index_places(slots, num_experts, max_replicas)
    held = np.zeros((num_experts, num_gpus), np.uint8)
    moved = 0
    for slot in range(slots.size):
        held[slots[slot], slot // per_gpu] = 1
        moved += 1 - old[slots[slot], slot // per_gpu]
    level = even_level(load, slots, count, speed)
    top, top_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    for k in range(num_scenarios):
        top_gpu[k] = hottest_gpu(level, k)
        top[k] = level[top_gpu[k], k]
    value = weighted_top(level, weight) + move_price * moved
    best, best_slots = value, slots.copy()
    fresh_one, fresh_two = np.zeros(num_scenarios), np.zeros(num_scenarios)
    fresh_top, fresh_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    saved = np.zeros((num_gpus, num_scenarios))
    cooling = math.log(hot_end / hot_start) / max(1, proposals)
    for proposal in range(proposals):
        temperature = hot_start * math.exp(cooling * proposal)
        scenario = int(draw(random) * num_scenarios)
        hot = top_gpu[scenario] if draw(random) < 0.85 else int(draw(random) * num_gpus)
        # Far more often than not the threshold decides without pricing the rest: accept up to this much worse.
        slack = -temperature * math.log(max(draw(random), 1e-300))
        if draw(random) < 0.75:
            slot_one, slot_two = hot * per_gpu + int(draw(random) * per_gpu), int(draw(random) * slots.size)
            cold = slot_two // per_gpu
            one, two = slots[slot_one], slots[slot_two]
            if hot == cold or held[one, cold] or held[two, hot] or not (allowed[one, cold] and allowed[two, hot]):
                continue
            change_moved = int(old[one, hot]) - int(old[one, cold]) + int(old[two, cold]) - int(old[two, hot])
            change = move_price * change_moved
            for k in range(num_scenarios):
                shift = load[one, k] / count[one] - load[two, k] / count[two]
                fresh_one[k] = level[hot, k] - shift / speed[hot]
                fresh_two[k] = level[cold, k] + shift / speed[cold]
                if top_gpu[k] == hot or top_gpu[k] == cold:
                    fresh_top[k] = fresh_one[k]
                    fresh_gpu[k] = hot
                    for gpu in range(num_gpus):
                        if gpu != hot and gpu != cold and level[gpu, k] > fresh_top[k]:
                            fresh_top[k], fresh_gpu[k] = level[gpu, k], gpu
                else:
                    fresh_top[k], fresh_gpu[k] = top[k], top_gpu[k]
                    if fresh_one[k] > fresh_top[k]:
                        fresh_top[k], fresh_gpu[k] = fresh_one[k], hot
                if fresh_two[k] > fresh_top[k]:
                    fresh_top[k], fresh_gpu[k] = fresh_two[k], cold
                change += weight[k] * (fresh_top[k] - top[k])
            if change > slack:
                continue
            for k in range(num_scenarios):
                level[hot, k], level[cold, k] = fresh_one[k], fresh_two[k]
                top[k], top_gpu[k] = fresh_top[k], fresh_gpu[k]
            slots[slot_one], slots[slot_two] = two, one
            held[one, hot] = held[two, cold] = 0
            held[one, cold] = held[two, hot] = 1
            swap_place(place, count, one, slot_one, two, slot_two)
            moved += change_moved
        else:
            added = slots[hot * per_gpu + int(draw(random) * per_gpu)]
            slot = int(draw(random) * slots.size)
            gpu, removed = slot // per_gpu, slots[slot]
            if (
                count[removed] < 2
                or count[added] >= max_replicas
                or added == removed
                or held[added, gpu]
                or not allowed[added, gpu]
            ):
                continue
            change_moved = int(old[removed, gpu]) - int(old[added, gpu])
            saved[:] = level
            for k in range(num_scenarios):
                before = load[removed, k] / count[removed]
                after = load[removed, k] / (count[removed] - 1)
                for i in range(count[removed]):
                    holder = place[removed, i] // per_gpu
                    level[holder, k] += (after - before) / speed[holder]
                level[gpu, k] -= after / speed[gpu]
                before, after = load[added, k] / count[added], load[added, k] / (count[added] + 1)
                for i in range(count[added]):
                    holder = place[added, i] // per_gpu
                    level[holder, k] += (after - before) / speed[holder]
                level[gpu, k] += after / speed[gpu]
            fresh = weighted_top(level, weight)
            old_value = 0.0
            for k in range(num_scenarios):
                old_value += weight[k] * top[k]
            change = fresh - old_value + move_price * change_moved
            if change > slack:
                level[:] = saved
                continue
            replace_place(place, count, removed, added, slot)
            slots[slot] = added
            held[removed, gpu] = 0
            held[added, gpu] = 1
            moved += change_moved
            for k in range(num_scenarios):
                top_gpu[k] = hottest_gpu(level, k)
                top[k] = level[top_gpu[k], k]
        value += change
        if value < best - 1e-12:
            best = value
            best_slots[:] = slots
        if proposal % 4096 == 4095:
            # A fresh sum against drift.
            level = even_level(load, slots, count, speed)
    count, place = index_places(best_slots, num_experts, max_replicas)
    moved = 0
    for slot in range(slots.size):
        moved += 1 - old[best_slots[slot], slot // per_gpu]
    return best_slots, weighted_top(even_level(load, best_slots, count, speed), weight) + move_price * moved
