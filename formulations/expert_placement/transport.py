"""Chain communication as alternating transportation problems.

With the neighbouring layers fixed, placing one layer's experts at least travel cost is a transportation problem (each
GPU takes as many experts as it has slots), solved exactly by `linear_sum_assignment`. A forward pass starts from the
first layer, so that GPU labels agree from layer to layer; sweeps back and forth then improve to a local optimum.
"""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.greedy import BoolArray
from formulations.outcome import Budget
from planner.workload import FloatArray, IntArray

#: Sweeps stop when nothing changes; this many never were needed on measured traces.
MAX_SWEEPS = 100
#: Makes a forbidden GPU dearer than any travel (fractions of tokens times hop costs).
FORBIDDEN = 1e9


def transport_start(
    transitions: FloatArray,
    cost: FloatArray,
    load: FloatArray,
    num_slots: int,
    budget: Budget,
    allowed: BoolArray | None = None,
) -> IntArray:
    """Placement [L, num_slots] of small chain cost.

    transitions [L-1, E, E]; cost [G, G]; load [L, E] decides which experts the spare slots replicate.
    """
    gpu = _assign(transitions, cost, num_slots, budget, allowed)
    return _fill_spare(gpu, load, cost.shape[0], num_slots, allowed)


def any_valid(load: FloatArray, num_gpus: int, num_slots: int, allowed: BoolArray | None) -> IntArray:
    """A placement [L, num_slots] in which every expert has an allowed GPU: for where greedy rules get stuck.

    load [L, E]: heavy experts come first on emptier GPUs. Invalid only where no assignment of single experts exists, or
    a GPU may not hold enough different experts.
    """
    from scipy.optimize import linear_sum_assignment

    num_layers, num_experts = load.shape
    column_gpu = np.arange(num_slots) // (num_slots // num_gpus)
    column_rank = np.arange(num_slots) % (num_slots // num_gpus)
    gpu = np.empty((num_layers, num_experts), dtype=np.int64)
    for layer in range(num_layers):
        price = load[layer][:, None] * column_rank
        if allowed is not None:
            price = price + np.where(allowed[layer], 0.0, FORBIDDEN)[:, column_gpu]
        rows, columns = linear_sum_assignment(price)
        gpu[layer, rows] = column_gpu[columns]
    return _fill_spare(gpu, load, num_gpus, num_slots, allowed)


def _assign(
    transitions: FloatArray, cost: FloatArray, num_slots: int, budget: Budget, allowed: BoolArray | None
) -> IntArray:
    """One GPU for each expert of each layer, [L, E]."""
    from scipy.optimize import linear_sum_assignment

    num_layers, num_experts, num_gpus = transitions.shape[0] + 1, transitions.shape[1], cost.shape[0]
    column_gpu = np.arange(num_slots) // (num_slots // num_gpus)
    gpu = np.zeros((num_layers, num_experts), dtype=np.int64)

    def place(layer: int, before: bool, after: bool) -> IntArray:
        price = np.zeros((num_experts, num_gpus))
        if before:
            price += transitions[layer - 1].T @ cost[gpu[layer - 1]]
        if after:
            price += transitions[layer] @ cost[:, gpu[layer + 1]].T
        if allowed is not None:
            price += np.where(allowed[layer], 0.0, FORBIDDEN)
        if not before and not after:
            # Any balanced start will do for the first layer: experts in order, as engines do without a map.
            price += np.abs(np.arange(num_experts)[:, None] * num_gpus // num_experts - np.arange(num_gpus))
        rows, columns = linear_sum_assignment(price[:, column_gpu])
        found = np.empty(num_experts, dtype=np.int64)
        found[rows] = column_gpu[columns]
        return found

    for layer in range(num_layers):
        gpu[layer] = place(layer, layer > 0, False)
    for _ in range(MAX_SWEEPS):
        before = gpu.copy()
        for layer in (*range(num_layers), *reversed(range(num_layers))):
            gpu[layer] = place(layer, layer > 0, layer + 1 < num_layers)
            if budget.stop():
                return gpu
        if np.array_equal(before, gpu):
            break
    return gpu


def _fill_spare(gpu: IntArray, load: FloatArray, num_gpus: int, num_slots: int, allowed: BoolArray | None) -> IntArray:
    """Slots from GPUs of experts; spare slots take another replica of the largest expert that may go there."""
    num_layers, num_experts = gpu.shape
    per_gpu = num_slots // num_gpus
    slots = np.empty((num_layers, num_gpus, per_gpu), dtype=np.int64)
    for layer in range(num_layers):
        held = np.zeros((num_experts, num_gpus), dtype=bool)
        held[np.arange(num_experts), gpu[layer]] = True
        count = np.ones(num_experts)
        used = np.bincount(gpu[layer], minlength=num_gpus)
        for slot in range(per_gpu):
            for g in np.flatnonzero(used <= slot).tolist():
                share = load[layer] / count
                barred = held[:, g] if allowed is None else held[:, g] | ~allowed[layer, :, g]
                expert = int(np.where(barred, -1.0, share).argmax())
                held[expert, g] = True
                count[expert] += 1
        for g in range(num_gpus):
            # Where fewer experts may lie than there are slots, the last one is repeated, and the check says so.
            slots[layer, g] = np.resize(np.flatnonzero(held[:, g]), per_gpu)
    return slots.reshape(num_layers, num_slots)
