"""Annealing of one layer for hottest load plus fan-out, even split; see `kernels` for the state.

A token's cost is the expected number of remote GPUs (and nodes) that its k experts touch, over all home GPUs, with
home-first dispatch as in planner/cost/expert_parallel.py. Only tokens that use a changed expert are priced again.
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
def fill_choice(choice, held, expert, gpus_per_node):
    """choice[expert, home, gpu]: chance that a token at `home` uses the replica on `gpu`. Own GPU, own node, any."""
    num_gpus = held.shape[1]
    for home in range(num_gpus):
        choice[expert, home] = 0.0
        if held[expert, home]:
            choice[expert, home, home] = 1.0
            continue
        first = home // gpus_per_node * gpus_per_node
        near, total = 0, 0
        for gpu in range(num_gpus):
            if held[expert, gpu]:
                total += 1
                if first <= gpu < first + gpus_per_node:
                    near += 1
        for gpu in range(num_gpus):
            if held[expert, gpu]:
                if near == 0:
                    choice[expert, home, gpu] = 1.0 / total
                elif first <= gpu < first + gpus_per_node:
                    choice[expert, home, gpu] = 1.0 / near


@compiled
def token_cost(choice, experts, gpus_per_node, intra, inter):
    """Expected fan-out cost of one token: experts [k]."""
    num_gpus = choice.shape[1]
    total = 0.0
    for home in range(num_gpus):
        for first in range(0, num_gpus, gpus_per_node):
            quiet_node = 1.0
            for k in range(experts.size):
                inside = 0.0
                for gpu in range(first, first + gpus_per_node):
                    inside += choice[experts[k], home, gpu]
                quiet_node *= 1.0 - inside
            if quiet_node >= 1.0:
                continue
            if home // gpus_per_node * gpus_per_node != first:
                total += (inter - intra) * (1.0 - quiet_node)
            for gpu in range(first, first + gpus_per_node):
                if gpu != home:
                    quiet = 1.0
                    for k in range(experts.size):
                        quiet *= 1.0 - choice[experts[k], home, gpu]
                    total += intra * (1.0 - quiet)
    return total / num_gpus


@compiled
def reprice(tokens, users, start, one, two, choice, gpus_per_node, intra, inter, token_value, fresh):
    """Price again the tokens that use `one` or `two`; fills fresh[t] and returns the change of the mean cost."""
    change = 0.0
    for expert in (one, two):
        for at in range(start[expert], start[expert + 1]):
            token = users[at]
            if expert == two:
                shared = False
                for k in range(tokens.shape[1]):
                    shared = shared or tokens[token, k] == one
                if shared:
                    continue
            fresh[token] = token_cost(choice, tokens[token], gpus_per_node, intra, inter)
            change += fresh[token] - token_value[token]
    return change / tokens.shape[0]


@compiled
def anneal_fanout(
    load, weight, speed, allowed, old, move_price, tokens, users, start, gpus_per_node, intra, inter, comm_weight,
    slots, max_replicas, proposals, hot_start, hot_end, seed
):  # fmt: skip
    """Anneal one layer; returns the best slots [S].

    tokens int64 [T, k], complete; users int64: tokens of expert e are users[start[e] : start[e + 1]]; intra, inter:
    cost of a remote GPU in and outside the own node. The other arguments as in `anneal_even`.
    """
    num_gpus, num_experts, num_scenarios = speed.size, load.shape[0], load.shape[1]
    per_gpu = slots.size // num_gpus
    random = start_random(seed)
    slots = slots.copy()
    count, place = index_places(slots, num_experts, max_replicas)
    held = np.zeros((num_experts, num_gpus), np.uint8)
    for slot in range(slots.size):
        held[slots[slot], slot // per_gpu] = 1
    level = even_level(load, slots, count, speed)
    top, top_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    find_tops(level, top, top_gpu)
    choice = np.zeros((num_experts, num_gpus, num_gpus))
    for expert in range(num_experts):
        fill_choice(choice, held, expert, gpus_per_node)
    token_value = np.zeros(tokens.shape[0])
    for token in range(tokens.shape[0]):
        token_value[token] = token_cost(choice, tokens[token], gpus_per_node, intra, inter)
    fresh = token_value.copy()
    value, best, best_slots = 0.0, 0.0, slots.copy()
    fresh_one, fresh_two = np.zeros(num_scenarios), np.zeros(num_scenarios)
    fresh_top, fresh_gpu = np.zeros(num_scenarios), np.zeros(num_scenarios, np.int64)
    saved = np.zeros((num_gpus, num_scenarios))
    cooling = math.log(hot_end / hot_start) / max(1, proposals)
    for proposal in range(proposals):
        slack = -hot_start * math.exp(cooling * proposal) * math.log(max(draw(random), 1e-300))
        slot_one, slot_two = int(draw(random) * slots.size), int(draw(random) * slots.size)
        hot, cold = slot_one // per_gpu, slot_two // per_gpu
        one, two = slots[slot_one], slots[slot_two]
        if held[one, cold] or not allowed[one, cold]:
            continue
        swap = max_replicas == 1 or draw(random) < 0.7
        if swap:
            if held[two, hot] or not allowed[two, hot]:
                continue
            change_moved = swap_moves(old, one, two, hot, cold)
            change = swap_levels(
                level, load, count, speed, weight, top, top_gpu, one, two, hot, cold,
                fresh_one, fresh_two, fresh_top, fresh_gpu,
            )  # fmt: skip
        else:
            if count[two] < 2 or count[one] >= max_replicas:
                continue
            change_moved = replace_moves(old, two, one, cold)
            saved[:] = level
            replace_levels(level, load, count, place, speed, two, one, cold, per_gpu)
            change = weighted_top(level, weight)
            for k in range(num_scenarios):
                change -= weight[k] * top[k]
        held[two, cold] = 0
        held[one, cold] = 1
        if swap:
            held[one, hot] = 0
            held[two, hot] = 1
        fill_choice(choice, held, one, gpus_per_node)
        fill_choice(choice, held, two, gpus_per_node)
        travel = reprice(tokens, users, start, one, two, choice, gpus_per_node, intra, inter, token_value, fresh)
        change += comm_weight * travel + move_price * change_moved
        if change > slack:
            held[two, cold] = 1
            held[one, cold] = 0
            if swap:
                held[one, hot] = 1
                held[two, hot] = 0
            else:
                level[:] = saved
            fill_choice(choice, held, one, gpus_per_node)
            fill_choice(choice, held, two, gpus_per_node)
            continue
        for expert in (one, two):
            for at in range(start[expert], start[expert + 1]):
                token_value[users[at]] = fresh[users[at]]
        slots[slot_two] = one
        if swap:
            level[hot], level[cold] = fresh_one, fresh_two
            top[:], top_gpu[:] = fresh_top, fresh_gpu
            slots[slot_one] = two
            swap_place(place, count, one, slot_one, two, slot_two)
        else:
            replace_place(place, count, two, one, slot_two)
            find_tops(level, top, top_gpu)
        value += change
        if value < best - 1e-12:
            best = value
            best_slots[:] = slots
    return best_slots
