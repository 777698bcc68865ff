"""Annealing of one layer under even split; see `kernels` for the state."""

from __future__ import annotations

import math

import numpy as np

from formulations.expert_placement.kernels import (
    compiled,
    draw,
    even_level,
    find_tops,
    index_places,
    replace_levels,
    replace_moves,
    replace_place,
    start_random,
    swap_levels,
    swap_moves,
    swap_place,
    weighted_top,
)


@compiled
def anneal_even(
    load, weight, speed, allowed, old, move_price, slots, max_replicas, proposals, hot_start, hot_end, seed
):
    """Anneal one layer; returns the best slots and their objective.

    load [E, K]; weight [K]; speed [G]; allowed uint8 [E, G]; old uint8 [E, G], where the expert lies now; move_price
    per replica that is not in old; slots int64 [S], valid, not changed; temperatures fall geometrically from hot_start
    to hot_end, in units of the objective. Three proposals in four are swaps, the rest replica moves; most touch the
    hottest GPU of a random scenario.
    """
    num_gpus, num_experts, num_scenarios = speed.size, load.shape[0], load.shape[1]
    per_gpu = slots.size // num_gpus
    random = start_random(seed)
    slots = slots.copy()
    count, place = index_places(slots, num_experts, max_replicas)
    held = np.zeros((num_experts, num_gpus), np.uint8)
    moved = 0
    for slot in range(slots.size):
        held[slots[slot], slot // per_gpu] = 1
        moved += 1 - np.int64(old[slots[slot], slot // per_gpu])
    level = even_level(load, slots, count, speed)
    top, top_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    find_tops(level, top, top_gpu)
    value = weighted_top(level, weight) + move_price * moved
    best, best_slots, best_moved = value, slots.copy(), moved
    fresh_one, fresh_two = np.zeros(num_scenarios), np.zeros(num_scenarios)
    fresh_top, fresh_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    saved = np.zeros((num_gpus, num_scenarios))
    cooling = math.log(hot_end / hot_start) / max(1, proposals)
    for proposal in range(proposals):
        # Accept up to `slack` worse: the Metropolis rule with the random number drawn first.
        slack = -hot_start * math.exp(cooling * proposal) * math.log(max(draw(random), 1e-300))
        scenario = int(draw(random) * num_scenarios)
        hot = top_gpu[scenario] if draw(random) < 0.85 else int(draw(random) * num_gpus)
        slot_one, slot_two = hot * per_gpu + int(draw(random) * per_gpu), int(draw(random) * slots.size)
        cold = slot_two // per_gpu
        one, two = slots[slot_one], slots[slot_two]
        if held[one, cold] or not allowed[one, cold]:
            continue
        if draw(random) < 0.75:
            if held[two, hot] or not allowed[two, hot]:
                continue
            change_moved = swap_moves(old, one, two, hot, cold)
            change = move_price * change_moved + swap_levels(
                level, load, count, speed, weight, top, top_gpu, one, two, hot, cold,
                fresh_one, fresh_two, fresh_top, fresh_gpu,
            )  # fmt: skip
            if change > slack:
                continue
            level[hot], level[cold] = fresh_one, fresh_two
            top[:], top_gpu[:] = fresh_top, fresh_gpu
            slots[slot_one], slots[slot_two] = two, one
            held[one, hot] = held[two, cold] = 0
            held[one, cold] = held[two, hot] = 1
            swap_place(place, count, one, slot_one, two, slot_two)
        else:
            if count[two] < 2 or count[one] >= max_replicas:
                continue
            change_moved = replace_moves(old, two, one, cold)
            saved[:] = level
            replace_levels(level, load, count, place, speed, two, one, cold, per_gpu)
            change = move_price * change_moved + weighted_top(level, weight)
            for k in range(num_scenarios):
                change -= weight[k] * top[k]
            if change > slack:
                level[:] = saved
                continue
            replace_place(place, count, two, one, slot_two)
            slots[slot_two] = one
            held[two, cold] = 0
            held[one, cold] = 1
            find_tops(level, top, top_gpu)
        moved += change_moved
        value += change
        if value < best - 1e-12:
            best, best_moved = value, moved
            best_slots[:] = slots
        if proposal % 4096 == 4095:
            # A fresh sum against drift.
            level = even_level(load, slots, count, speed)
            find_tops(level, top, top_gpu)
            value = weighted_top(level, weight) + move_price * moved
    count, place = index_places(best_slots, num_experts, max_replicas)
    return best_slots, weighted_top(even_level(load, best_slots, count, speed), weight) + move_price * best_moved
