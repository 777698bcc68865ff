"""Best split of replicated experts' tokens over their replicas: the per-batch LP, solved exactly in numpy.

    minimise T   subject to   sum_g x[e, g] = load[e],  x[e, g] >= 0 only on GPUs that hold e,
                              sum_e x[e, g] <= T * speed[g]

Gauss-Seidel water-filling: take one expert's tokens off its GPUs and pour them back to a common level. Each pour is
the exact minimum of sum_g speed[g] * (L_g / speed[g])**2 over that expert, so the sweeps converge to the least-squares
split, which also minimises T. A cut certifies it: for any set H of GPUs, T >= (load of experts that lie only on H) /
speed(H); at the optimum the GPUs above some level are such a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.workload import FloatArray, IntArray

#: Stop when the certified relative distance to the LP optimum is below this.
LP_TOLERANCE = 1e-6
#: Sweeps converge geometrically; chains of two-replica experts through many GPUs need the most.
MAX_SWEEPS = 2_000


def replica_table(physical_to_logical: IntArray, num_experts: int, num_gpus: int) -> tuple[IntArray, IntArray]:
    """GPUs that hold each expert, padded; two replicas on one GPU are one choice.

    physical_to_logical : int [L, S]. Returns gpus int64 [L, E, R] (-1 where unused; R the most GPUs of any expert) and
    count int64 [L, E].
    """
    num_layers, num_slots = physical_to_logical.shape
    held = np.zeros((num_layers, num_experts, num_gpus), dtype=bool)
    gpu_of_slot = np.arange(num_slots) // (num_slots // num_gpus)
    held[np.arange(num_layers)[:, None], physical_to_logical, gpu_of_slot] = True
    count = held.sum(axis=2)
    layer, expert, gpu = np.nonzero(held)
    start = np.cumsum(count.ravel()) - count.ravel()
    rank = np.arange(gpu.size) - start[layer * num_experts + expert]
    gpus = np.full((num_layers, num_experts, max(1, int(count.max()))), -1, dtype=np.int64)
    gpus[layer, expert, rank] = gpu
    return gpus, count


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
    Returns gpu_load [K, L, G] (in load units, not divided by speed) and bound [K, L] of max_g gpu_load / speed. They
    meet within `tolerance`, relative, unless max_sweeps runs out.
    """
    num_scenarios, num_layers, num_experts = load.shape
    gpus, count = replica_table(physical_to_logical, num_experts, speed.size)
    result = _even_gpu_load(load, gpus, count, speed.size)
    lower = np.zeros((num_scenarios, num_layers))
    # Pairs of layer and scenario are independent; those already certified drop out.
    layer_of, scenario_of = (a.ravel() for a in np.mgrid[:num_layers, :num_scenarios])
    blocks = [_Block.build(members, gpus, count, load, layer_of, scenario_of) for members in _classes(gpus, count)]
    level = result[scenario_of, layer_of]
    active = np.arange(layer_of.size)
    for sweep in range(max_sweeps):
        for block in blocks:
            block.pour(level, active, speed)
        if sweep % 5 == 4 or not blocks or sweep == max_sweeps - 1:
            bound = _cut(level[active], load, layer_of[active], scenario_of[active], gpus, speed)
            top = (level[active] / speed).max(axis=1)
            lower[scenario_of[active], layer_of[active]] = bound
            active = active[top - bound > tolerance * np.maximum(top, 1e-300)]
            if not active.size:
                break
    result[scenario_of, layer_of] = level
    return result, lower


def _classes(gpus: IntArray, count: IntArray) -> list[IntArray]:
    """Replicated experts in classes whose members share no GPU, so that a class is poured at once.

    Returns arrays [L, members] of experts, -1 where a layer has fewer. Greedy colouring, most replicas first.
    """
    num_layers = count.shape[0]
    found: list[list[list[int]]] = []
    used: list[list[set[int]]] = []
    for layer in range(num_layers):
        order = np.argsort(-count[layer], kind="stable")
        for expert in order[count[layer, order] > 1].tolist():
            holders = set(gpus[layer, expert, : count[layer, expert]].tolist())
            for members, taken in zip(found, used, strict=True):
                if not holders & taken[layer]:
                    members[layer].append(expert)
                    taken[layer] |= holders
                    break
            else:
                found.append([[] for _ in range(num_layers)])
                used.append([set() for _ in range(num_layers)])
                found[-1][layer].append(expert)
                used[-1][layer] |= holders
    result = []
    for members in found:
        width = max(len(row) for row in members)
        result.append(np.array([row + [-1] * (width - len(row)) for row in members], dtype=np.int64))
    return result


def _even_gpu_load(load: FloatArray, gpus: IntArray, count: IntArray, num_gpus: int) -> FloatArray:
    """Every holder of an expert takes the same part, [K, L, G]."""
    layer, expert, rank = np.nonzero(gpus >= 0)
    share = (load / np.maximum(count, 1))[:, layer, expert]
    key = layer * num_gpus + gpus[layer, expert, rank]
    size = gpus.shape[0] * num_gpus
    flat = np.stack([np.bincount(key, weights=row, minlength=size) for row in share])
    return np.asarray(flat.reshape(load.shape[0], gpus.shape[0], num_gpus))


@dataclass(slots=True)
class _Block:
    """One class of experts for all pairs: where [P, M, R] GPUs, valid [P, M, R], total [P, M] and flow [P, M, R]."""

    where: IntArray
    valid: npt.NDArray[np.bool_]
    total: FloatArray
    flow: FloatArray

    @classmethod
    def build(
        cls,
        members: IntArray,
        gpus: IntArray,
        count: IntArray,
        load: FloatArray,
        layer_of: IntArray,
        scenario_of: IntArray,
    ) -> _Block:
        """Start from the even split."""
        rows = np.arange(len(members))[:, None]
        width = int(np.where(members >= 0, count[rows, members], 1).max())
        where = np.where((members >= 0)[:, :, None], gpus[rows, members, :width], -1)[layer_of]
        total = np.where(members[layer_of] >= 0, load[scenario_of[:, None], layer_of[:, None], members[layer_of]], 0)
        replicas = np.maximum(count[rows, members], 1)[layer_of]
        valid = where >= 0
        flow = np.where(valid, (total / replicas)[:, :, None], 0.0)
        return cls(np.where(valid, where, 0), valid, total, flow)

    def pour(self, level: FloatArray, active: IntArray, speed: FloatArray) -> None:
        """Repour every expert of the class for the active pairs; updates `level` [P, G] and `flow` in place."""
        where, valid, current = self.where[active], self.valid[active], self.flow[active]
        rate = np.where(valid, speed[where], 0.0)
        base = level[active[:, None, None], where] - current
        height = np.where(valid, base / np.where(valid, rate, 1.0), np.inf)
        rank = np.argsort(height, axis=2)
        ordered = np.take_along_axis(height, rank, axis=2)
        cumulative_rate = np.cumsum(np.take_along_axis(rate, rank, axis=2), axis=2)
        mass = np.cumsum(np.take_along_axis(np.where(valid, base, 0.0), rank, axis=2), axis=2)
        water = (self.total[active][:, :, None] + mass) / np.maximum(cumulative_rate, 1e-300)
        # The first m lowest GPUs are filled when the level they reach stays below the next GPU's own height.
        fits = np.ones(water.shape, dtype=bool)
        fits[:, :, :-1] = water[:, :, :-1] <= ordered[:, :, 1:]
        surface = np.take_along_axis(water, fits.argmax(axis=2)[:, :, None], axis=2)
        fresh = np.where(valid, np.maximum(surface * rate - base, 0.0), 0.0)
        pair, member, replica = np.nonzero(valid)
        gpu = where[pair, member, replica]
        level[active[pair], gpu] += (fresh - current)[pair, member, replica]
        self.flow[active] = fresh


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
