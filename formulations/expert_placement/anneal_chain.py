"""Annealing of all layers together for hottest load plus chain communication, even split.

For each layer l, expert e, GPU g the state keeps, so that a proposal costs O(G) and only an accepted one O(E G):
near[l, e, g]     cost from g to the nearest replica of e
inflow[l, e, g]   tokens that come for e from g (previous layer's expert on g, spread evenly over its replicas)
outcost[l, e, g]  cost of what e's tokens do next if e lies on g:  sum_f transitions[l, e, f] near[l + 1, f, g]
"""

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
def nearest(cost, place, count, expert, per_gpu, drop, add, out):
    """Fill out[g]: cost from g to the nearest replica of an expert without slot `drop` and with GPU `add` (or -1)."""
    for gpu in range(cost.shape[0]):
        best = cost[gpu, add] if add >= 0 else np.inf
        for i in range(count[expert]):
            slot = place[expert, i]
            if slot != drop:
                best = min(best, cost[gpu, slot // per_gpu])
        out[gpu] = best


@compiled
def mean_outcost(outcost, place, count, expert, per_gpu, drop, add):
    """Mean of outcost[g] over the replicas of an expert without slot `drop` and with GPU `add` (or -1)."""
    total, replicas = 0.0, 0
    for i in range(count[expert]):
        slot = place[expert, i]
        if slot != drop:
            total += outcost[slot // per_gpu]
            replicas += 1
    if add >= 0:
        total += outcost[add]
        replicas += 1
    return total / replicas


@compiled
def add_inflow(transitions, inflow, place, count, expert, per_gpu, sign):
    """Add (or take away) the flow that leaves an expert to the next layer's inflow [E, G]."""
    for i in range(count[expert]):
        gpu = place[expert, i] // per_gpu
        for target in range(inflow.shape[0]):
            inflow[target, gpu] += sign * transitions[expert, target] / count[expert]


@compiled
def fill_outcost(transitions, near, outcost):
    """outcost[e, g] = sum_f transitions[e, f] near[f, g]."""
    outcost[:] = 0.0
    for expert in range(transitions.shape[0]):
        for target in range(transitions.shape[1]):
            flow = transitions[expert, target]
            if flow > 0.0:
                for gpu in range(near.shape[1]):
                    outcost[expert, gpu] += flow * near[target, gpu]


@compiled
def shift_outcost(transitions, outcost, target, change):
    """Update the previous layer's outcost for a change [G] of near[target]."""
    for expert in range(transitions.shape[0]):
        flow = transitions[expert, target]
        if flow > 0.0:
            for gpu in range(change.size):
                outcost[expert, gpu] += flow * change[gpu]


@compiled
def target_change(inflow, near, fresh):
    """Change of arrival cost of one expert when near [G] becomes fresh [G]."""
    total = 0.0
    for gpu in range(near.size):
        total += inflow[gpu] * (fresh[gpu] - near[gpu])
    return total


@compiled
def anneal_chain(
    load, weight, speed, allowed, old, move_price, transitions, cost, comm_weight, slots, max_replicas, proposals,
    hot_start, hot_end, seed
):  # fmt: skip
    """Anneal all layers; returns the last slots [L, S], the best slots, and both objectives relative to the start's.

    load [L, E, K]; allowed, old uint8 [L, E, G]; transitions [L - 1, E, E]; cost [G, G]; slots int64 [L, S], valid, not
    changed. The other arguments as in `anneal_even`.
    """
    num_layers, num_experts, num_scenarios = load.shape
    num_gpus = speed.size
    per_gpu = slots.shape[1] // num_gpus
    random = start_random(seed)
    slots = slots.copy()
    count = np.zeros((num_layers, num_experts), np.int64)
    place = np.zeros((num_layers, num_experts, max_replicas), np.int64)
    held = np.zeros((num_layers, num_experts, num_gpus), np.uint8)
    level = np.zeros((num_layers, num_gpus, num_scenarios))
    top, top_gpu = np.zeros((num_layers, num_scenarios)), np.zeros((num_layers, num_scenarios), np.int64)
    near = np.zeros((num_layers, num_experts, num_gpus))
    inflow = np.zeros((num_layers, num_experts, num_gpus))
    outcost = np.zeros((num_layers, num_experts, num_gpus))
    for layer in range(num_layers):
        count[layer], place[layer] = index_places(slots[layer], num_experts, max_replicas)
        for slot in range(slots.shape[1]):
            held[layer, slots[layer, slot], slot // per_gpu] = 1
        level[layer] = even_level(load[layer], slots[layer], count[layer], speed)
        find_tops(level[layer], top[layer], top_gpu[layer])
        for expert in range(num_experts):
            nearest(cost, place[layer], count[layer], expert, per_gpu, -1, -1, near[layer, expert])
    for layer in range(num_layers - 1):
        fill_outcost(transitions[layer], near[layer + 1], outcost[layer])
        for expert in range(num_experts):
            add_inflow(transitions[layer], inflow[layer + 1], place[layer], count[layer], expert, per_gpu, 1.0)
    value, best, best_slots = 0.0, 0.0, slots.copy()
    fresh_one, fresh_two = np.zeros(num_scenarios), np.zeros(num_scenarios)
    fresh_top, fresh_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    near_one, near_two = np.zeros(num_gpus), np.zeros(num_gpus)
    saved = np.zeros((num_gpus, num_scenarios))
    cooling = math.log(hot_end / hot_start) / max(1, proposals)
    for proposal in range(proposals):
        slack = -hot_start * math.exp(cooling * proposal) * math.log(max(draw(random), 1e-300))
        layer = int(draw(random) * num_layers)
        slot_one, slot_two = int(draw(random) * slots.shape[1]), int(draw(random) * slots.shape[1])
        hot, cold = slot_one // per_gpu, slot_two // per_gpu
        one, two = slots[layer, slot_one], slots[layer, slot_two]
        if held[layer, one, cold] or not allowed[layer, one, cold]:
            continue
        swap = max_replicas == 1 or draw(random) < 0.7
        travel = 0.0
        counts, places = count[layer], place[layer]
        if swap:
            if held[layer, two, hot] or not allowed[layer, two, hot]:
                continue
            change_moved = swap_moves(old[layer], one, two, hot, cold)
            nearest(cost, places, counts, one, per_gpu, slot_one, cold, near_one)
            nearest(cost, places, counts, two, per_gpu, slot_two, hot, near_two)
            if layer + 1 < num_layers:
                travel += (outcost[layer, one, cold] - outcost[layer, one, hot]) / counts[one]
                travel += (outcost[layer, two, hot] - outcost[layer, two, cold]) / counts[two]
        else:
            # The slot of `two` on GPU `cold` becomes another replica of `one`.
            if counts[two] < 2 or counts[one] >= max_replicas:
                continue
            change_moved = replace_moves(old[layer], two, one, cold)
            nearest(cost, places, counts, one, per_gpu, -1, cold, near_one)
            nearest(cost, places, counts, two, per_gpu, slot_two, -1, near_two)
            if layer + 1 < num_layers:
                out = outcost[layer]
                travel += mean_outcost(out[one], places, counts, one, per_gpu, -1, cold)
                travel -= mean_outcost(out[one], places, counts, one, per_gpu, -1, -1)
                travel += mean_outcost(out[two], places, counts, two, per_gpu, slot_two, -1)
                travel -= mean_outcost(out[two], places, counts, two, per_gpu, -1, -1)
        if layer > 0:
            travel += target_change(inflow[layer, one], near[layer, one], near_one)
            travel += target_change(inflow[layer, two], near[layer, two], near_two)
        change = comm_weight * travel + move_price * change_moved
        if swap:
            change += swap_levels(
                level[layer], load[layer], counts, speed, weight, top[layer], top_gpu[layer], one, two, hot, cold,
                fresh_one, fresh_two, fresh_top, fresh_gpu,
            )  # fmt: skip
            if change > slack:
                continue
            level[layer, hot], level[layer, cold] = fresh_one, fresh_two
            top[layer], top_gpu[layer] = fresh_top, fresh_gpu
        else:
            saved[:] = level[layer]
            replace_levels(level[layer], load[layer], counts, places, speed, two, one, cold, per_gpu)
            change += weighted_top(level[layer], weight)
            for k in range(num_scenarios):
                change -= weight[k] * top[layer, k]
            if change > slack:
                level[layer] = saved
                continue
            find_tops(level[layer], top[layer], top_gpu[layer])
        if layer + 1 < num_layers:
            add_inflow(transitions[layer], inflow[layer + 1], places, counts, one, per_gpu, -1.0)
            add_inflow(transitions[layer], inflow[layer + 1], places, counts, two, per_gpu, -1.0)
        held[layer, two, cold] = 0
        held[layer, one, cold] = 1
        slots[layer, slot_two] = one
        if swap:
            held[layer, one, hot] = 0
            held[layer, two, hot] = 1
            slots[layer, slot_one] = two
            swap_place(places, counts, one, slot_one, two, slot_two)
        else:
            replace_place(places, counts, two, one, slot_two)
        if layer + 1 < num_layers:
            add_inflow(transitions[layer], inflow[layer + 1], places, counts, one, per_gpu, 1.0)
            add_inflow(transitions[layer], inflow[layer + 1], places, counts, two, per_gpu, 1.0)
        if layer > 0:
            shift_outcost(transitions[layer - 1], outcost[layer - 1], one, near_one - near[layer, one])
            shift_outcost(transitions[layer - 1], outcost[layer - 1], two, near_two - near[layer, two])
        near[layer, one] = near_one
        near[layer, two] = near_two
        value += change
        if value < best - 1e-12:
            best = value
            best_slots[:] = slots
    return slots, best_slots, value, best
