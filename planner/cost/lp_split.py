"""Best split of replicated experts' tokens over their replicas: the per-batch LP, solved exactly in numpy.

    minimise T   subject to   sum_g x[e, g] = load[e],  x[e, g] >= 0 only on GPUs that hold e,
                              sum_e x[e, g] <= T * speed[g]

Gauss-Seidel water-filling: take one expert's tokens off its GPUs and pour them back to a common level. Each pour is
the exact minimum of sum_g speed[g] * (L_g / speed[g])**2 over that expert, so the sweeps converge to the least-squares
split, which also minimises T. A cut certifies it: for any set H of GPUs, T >= (load of experts that lie only on H) /
speed(H); at the optimum the GPUs above some level are such a set.
"""

from __future__ import annotations

import numpy as np

from planner.workload import FloatArray, IntArray

#: Stop when the certified relative distance to the LP optimum is below this.
LP_TOLERANCE = 1e-7
#: Sweeps converge geometrically; chains of two-replica experts through many GPUs need the most.
MAX_SWEEPS = 2_000


def replica_table(physical_to_logical: IntArray, num_experts: int, num_gpus: int) -> tuple[IntArray, IntArray]:
    """GPUs of each expert's replicas, padded.

    physical_to_logical : int [L, S]. Returns gpus int64 [L, E, R] (-1 where unused; R the most replicas of any expert)
    and count int64 [L, E].
    """
    num_layers, num_slots = physical_to_logical.shape
    gpu = np.arange(num_slots) // (num_slots // num_gpus)
    key = physical_to_logical + (np.arange(num_layers) * num_experts)[:, None]
    count = np.bincount(key.ravel(), minlength=num_layers * num_experts)
    order = np.argsort(key, axis=None, kind="stable")
    start = np.concatenate(([0], np.cumsum(count)[:-1]))
    sorted_key = key.ravel()[order]
    rank = np.arange(order.size) - start[sorted_key]
    gpus = np.full((num_layers * num_experts, max(1, int(count.max()))), -1, dtype=np.int64)
    gpus[sorted_key, rank] = gpu[order % num_slots]
    return gpus.reshape(num_layers, num_experts, -1), count.reshape(num_layers, num_experts)


def lp_gpu_load(
    load: FloatArray,
    physical_to_logical: IntArray,
    speed: FloatArray,
    *,
    tolerance: float = LP_TOLERANCE,
    max_sweeps: int = MAX_SWEEPS,
) -> tuple[FloatArray, FloatArray]:
    """Load of every GPU under the LP split, and a certified lower bound of the hottest GPU's time.

    load : [K, L, E]; physical_to_logical : int [L, S]; speed : [G].
    Returns gpu_load [K, L, G] (in load units, not divided by speed) and bound [K, L] of max_g gpu_load / speed.
    """
    num_scenarios, num_layers, num_experts = load.shape
    num_gpus = speed.size
    gpus, count = replica_table(physical_to_logical, num_experts, num_gpus)
    # Experts by falling replica count, so that step i of every layer handles that layer's i-th most replicated expert.
    order = np.argsort(-count, axis=1, kind="stable")
    widths = np.take_along_axis(count, order, axis=1).max(axis=0)
    steps = int((widths > 1).sum())
    result = _even_gpu_load(load, physical_to_logical, count, num_gpus)
    lower = np.zeros((num_scenarios, num_layers))
    # Pairs of layer and scenario are independent; those already certified drop out.
    layer_of, scenario_of = (a.ravel() for a in np.mgrid[:num_layers, :num_scenarios])
    flow = [
        np.where(gpus[layer_of, order[layer_of, i], : widths[i]] >= 0, 1.0, 0.0)
        * (load[scenario_of, layer_of, order[layer_of, i]] / np.maximum(count[layer_of, order[layer_of, i]], 1))[:, None]
        for i in range(steps)
    ]
    level = result[scenario_of, layer_of]
    active = np.arange(layer_of.size)
    for sweep in range(max_sweeps):
        for i in range(steps):
            where = gpus[layer_of[active], order[layer_of[active], i], : widths[i]]
            _pour(level, flow[i], active, where, speed)
        if sweep % 5 == 4 or steps == 0 or sweep == max_sweeps - 1:
            bound = _cut(level[active], load, layer_of[active], scenario_of[active], gpus, speed)
            top = (level[active] / speed).max(axis=1)
            lower[scenario_of[active], layer_of[active]] = bound
            active = active[top - bound > tolerance * np.maximum(top, 1e-300)]
            if not active.size:
                break
    result[scenario_of, layer_of] = level
    return result, lower


def _even_gpu_load(load: FloatArray, physical_to_logical: IntArray, count: IntArray, num_gpus: int) -> FloatArray:
    share = load / np.maximum(count, 1)
    slots = np.take_along_axis(share, physical_to_logical[None].repeat(load.shape[0], axis=0), axis=2)
    return np.asarray(slots.reshape(*load.shape[:2], num_gpus, -1).sum(axis=3))


def _pour(level: FloatArray, flow: FloatArray, active: IntArray, where: IntArray, speed: FloatArray) -> None:
    """Repour one expert per active pair; updates `level` [P, G] and `flow` [P, R] in place."""
    valid = where >= 0
    target = np.where(valid, where, 0)
    current = flow[active]
    total = current.sum(axis=1)
    rate = np.where(valid, speed[target], 0.0)
    base = np.where(valid, level[active[:, None], target] - current, np.inf)
    height = base / np.where(valid, rate, 1.0)
    rank = np.argsort(height, axis=1)
    rows = np.arange(active.size)[:, None]
    sorted_height = height[rows, rank]
    cumulative_rate = np.cumsum(rate[rows, rank], axis=1)
    cumulative_base = np.cumsum(np.where(np.isfinite(sorted_height), base[rows, rank], 0.0), axis=1)
    water = (total[:, None] + cumulative_base) / np.maximum(cumulative_rate, 1e-300)
    # The first m lowest GPUs are filled when the level they reach stays below the next GPU's own height.
    following = np.concatenate((sorted_height[:, 1:], np.full((active.size, 1), np.inf)), axis=1)
    filled = np.argmax(water <= following, axis=1)
    surface = water[rows[:, 0], filled][:, None]
    fresh = np.where(valid, np.maximum(surface * rate - np.where(valid, base, 0.0), 0.0), 0.0)
    np.add.at(level, (active[:, None], target), np.where(valid, fresh - current, 0.0))
    flow[active] = fresh


def _cut(
    level: FloatArray, load: FloatArray, layer: IntArray, scenario: IntArray, gpus: IntArray, speed: FloatArray
) -> FloatArray:
    """Best cut over the sets of the m hottest GPUs, m = 1 .. G; [P]."""
    num_gpus = speed.size
    hot_first = np.argsort(-level / speed, axis=1, kind="stable")
    position = np.empty_like(hot_first)
    np.put_along_axis(position, hot_first, np.broadcast_to(np.arange(num_gpus), hot_first.shape), axis=1)
    best = np.zeros(layer.size)
    for row in range(layer.size):
        holders = gpus[layer[row]]
        last = np.where(holders >= 0, position[row][holders], -1).max(axis=1)
        inside = np.bincount(last, weights=load[scenario[row], layer[row]], minlength=num_gpus)
        best[row] = (np.cumsum(inside) / np.cumsum(speed[hot_first[row]])).max()
    return best
