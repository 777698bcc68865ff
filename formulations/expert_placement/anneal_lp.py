"""Annealing of one layer under LP split: placements are judged by the load that the per-batch LP would leave.

The LP is followed by warm Gauss-Seidel water-filling (see planner/cost/lp_split.py); any flow it holds is feasible, so
its value is never below the exact LP.
"""

from __future__ import annotations

import math

import numpy as np

from formulations.expert_placement.kernels import (
    compiled,
    draw,
    hottest_gpu,
    index_places,
    replace_moves,
    replace_place,
    start_random,
    swap_moves,
    swap_place,
    weighted_top,
)


@compiled
def pour(load, speed, place, count, flow, level, expert, scenario, per_gpu):
    """Spread one expert's tokens over its replicas so that the GPUs it reaches are level (LP split, one block)."""
    replicas = count[expert]
    base = np.empty(replicas)
    order = np.empty(replicas, np.int64)
    for i in range(replicas):
        slot = place[expert, i]
        gpu = slot // per_gpu
        level[gpu, scenario] -= flow[slot, scenario] / speed[gpu]
        base[i] = level[gpu, scenario]
        at = i
        while at > 0 and base[order[at - 1]] > base[i]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = i
    total, rate, mass, surface = load[expert, scenario], 0.0, 0.0, 0.0
    for at in range(replicas):
        i = order[at]
        gpu = place[expert, i] // per_gpu
        rate += speed[gpu]
        mass += base[i] * speed[gpu]
        surface = (total + mass) / rate
        if at + 1 == replicas or surface <= base[order[at + 1]]:
            break
    for i in range(replicas):
        slot = place[expert, i]
        gpu = slot // per_gpu
        poured = max(0.0, (surface - base[i]) * speed[gpu])
        flow[slot, scenario] = poured
        level[gpu, scenario] += poured / speed[gpu]


@compiled
def sweep(load, speed, place, count, flow, level, per_gpu, sweeps, tolerance):
    """Water-filling sweeps over every replicated expert and scenario whose GPUs differ by more than the tolerance."""
    for _ in range(sweeps):
        for expert in range(load.shape[0]):
            if count[expert] < 2:
                continue
            for scenario in range(load.shape[1]):
                low, high = np.inf, 0.0
                for i in range(count[expert]):
                    slot = place[expert, i]
                    at = level[slot // per_gpu, scenario]
                    low = min(low, at)
                    if flow[slot, scenario] > 0.0:
                        high = max(high, at)
                if high - low > tolerance:
                    pour(load, speed, place, count, flow, level, expert, scenario, per_gpu)


@compiled
def even_flow(load, slots, count):
    """flow[S, K] of an even split."""
    flow = np.empty((slots.size, load.shape[1]))
    for slot in range(slots.size):
        flow[slot] = load[slots[slot]] / count[slots[slot]]
    return flow


@compiled
def flow_level(flow, speed, per_gpu):
    """level[G, K] of given flows."""
    level = np.zeros((speed.size, flow.shape[1]))
    for slot in range(flow.shape[0]):
        gpu = slot // per_gpu
        for k in range(flow.shape[1]):
            level[gpu, k] += flow[slot, k] / speed[gpu]
    return level


@compiled
def anneal_lp(load, weight, speed, allowed, old, move_price, slots, max_replicas, proposals, hot_start, hot_end, seed):
    """Anneal one layer under LP split; arguments and results as `anneal_even`.

    Each proposal is priced by a few warm water-filling sweeps, whose value is never below the exact LP.
    """
    first_sweeps, warm_sweeps, tolerance = 20, 2, 2e-4
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
    flow = even_flow(load, slots, count)
    level = flow_level(flow, speed, per_gpu)
    sweep(load, speed, place, count, flow, level, per_gpu, first_sweeps, tolerance)
    value = weighted_top(level, weight) + move_price * moved
    best, best_slots = value, slots.copy()
    saved_flow, saved_level = flow.copy(), level.copy()
    cooling = math.log(hot_end / hot_start) / max(1, proposals)
    for proposal in range(proposals):
        temperature = hot_start * math.exp(cooling * proposal)
        hot = hottest_gpu(level, int(draw(random) * num_scenarios))
        swap = draw(random) < 0.5
        slot_one, slot_two = hot * per_gpu + int(draw(random) * per_gpu), int(draw(random) * slots.size)
        cold = slot_two // per_gpu
        one, two = slots[slot_one], slots[slot_two]
        if swap:
            if hot == cold or held[one, cold] or held[two, hot] or not (allowed[one, cold] and allowed[two, hot]):
                continue
            change_moved = swap_moves(old, one, two, hot, cold)
        else:
            if count[two] < 2 or count[one] >= max_replicas or held[one, cold] or not allowed[one, cold]:
                continue
            change_moved = replace_moves(old, two, one, cold)
        saved_flow[:] = flow
        saved_level[:] = level
        if swap:
            swap_place(place, count, one, slot_one, two, slot_two)
            slots[slot_one], slots[slot_two] = two, one
            for k in range(num_scenarios):
                shift = flow[slot_one, k] - flow[slot_two, k]
                level[hot, k] -= shift / speed[hot]
                level[cold, k] += shift / speed[cold]
                flow[slot_one, k], flow[slot_two, k] = flow[slot_two, k], flow[slot_one, k]
        else:
            replace_place(place, count, two, one, slot_two)
            slots[slot_two] = one
            for k in range(num_scenarios):
                level[cold, k] -= flow[slot_two, k] / speed[cold]
                flow[slot_two, k] = 0.0
                pour(load, speed, place, count, flow, level, two, k, per_gpu)
        sweep(load, speed, place, count, flow, level, per_gpu, warm_sweeps, tolerance)
        fresh = weighted_top(level, weight) + move_price * (moved + change_moved)
        if fresh - value > -temperature * math.log(max(draw(random), 1e-300)):
            flow[:] = saved_flow
            level[:] = saved_level
            if swap:
                swap_place(place, count, two, slot_one, one, slot_two)
                slots[slot_one], slots[slot_two] = one, two
            else:
                replace_place(place, count, one, two, slot_two)
                slots[slot_two] = two
            continue
        value = fresh
        moved += change_moved
        if swap:
            held[one, hot] = held[two, cold] = 0
            held[one, cold] = held[two, hot] = 1
        else:
            held[two, cold] = 0
            held[one, cold] = 1
        if value < best - 1e-12:
            best = value
            best_slots[:] = slots
    return best_slots, best
