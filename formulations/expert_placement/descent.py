"""Swap and replica-move descent, vectorised over layers, in numpy.

Each iteration ranks the GPUs of every layer by load (in one scenario drawn at random, or by the worst scenario), pairs
the i-th hottest with the i-th coldest, and makes the best swap inside each pair; then it tries a few replica moves per
layer (a slot gives up a replica of one expert for another replica of a hot one) and makes the best. Both are judged by
a smooth stand-in for  sum_s weight_s max_g level_{s,g}:  the sum of weight_s M_s (level_{s,g} / M_s) ** POWER with M_s
the present maximum. The best placement by the true objective is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.expert_placement.greedy import BoolArray
from formulations.outcome import Budget
from planner.workload import FloatArray, IntArray

#: Exponent of the stand-in for the maximum; a power of two, so that it costs five squarings.
POWER = 32
#: Replica moves tried per layer and iteration.
REPLACEMENTS = 12
#: Every how many iterations the GPUs are ranked by their worst scenario instead of a random one.
WORST_EVERY = 6
#: Stop when this many iterations have not improved any layer's best.
PATIENCE = 40


def _power(level: FloatArray) -> FloatArray:
    result = level * level
    for _ in range(4):
        result *= result
    return result


@dataclass(slots=True)
class _State:
    """Placements of all layers: slots [L, G, s], count [L, E], held [L, E, G], level [L, G, K] (load / speed)."""

    load: FloatArray  # [L, E, K]
    weight: FloatArray
    speed: FloatArray
    slots: IntArray
    count: IntArray
    held: BoolArray
    share: FloatArray  # [L, E, K]
    level: FloatArray

    @classmethod
    def build(cls, load: FloatArray, weight: FloatArray, speed: FloatArray, slots: IntArray) -> _State:
        num_layers, num_experts, _ = load.shape
        num_gpus = speed.size
        grid = slots.reshape(num_layers, num_gpus, -1).copy()
        held = np.zeros((num_layers, num_experts, num_gpus), dtype=bool)
        held[np.arange(num_layers)[:, None, None], grid, np.arange(num_gpus)[:, None]] = True
        count = held.sum(axis=2)
        share = load / count[:, :, None]
        state = cls(load, weight, speed, grid, count, held, share, np.empty(0))
        state.level = state.levels()
        return state

    def levels(self) -> FloatArray:
        rows = np.arange(len(self.slots))[:, None, None]
        return np.asarray(self.share[rows, self.slots].sum(axis=2) / self.speed[:, None])

    def price(self) -> FloatArray:
        """True objective of each layer, [L]."""
        return np.asarray(self.level.max(axis=1) @ self.weight)


def descend(
    load: FloatArray,
    weight: FloatArray,
    speed: FloatArray,
    slots: IntArray,
    max_replicas: int,
    rng: np.random.Generator,
    budget: Budget,
    iterations: int,
    *,
    allowed: BoolArray | None = None,
    target: FloatArray | None = None,
) -> tuple[IntArray, FloatArray]:
    """Improve valid placements.

    load : [K, L, E]; weight : [K]; slots : int [L, S]; allowed : bool [L, E, G] or None; target : [L], stop improving
    a layer once its objective is at most this. Returns the best placements [L, S] and their objective by layer, [L].
    """
    state = _State.build(np.ascontiguousarray(load.transpose(1, 2, 0)), weight, speed, slots)
    num_scenarios = weight.size
    best_slots, best = state.slots.copy(), state.price()
    stale = 0
    for iteration in range(iterations):
        key = _ranking_key(state, num_scenarios, iteration, rng)
        order = np.argsort(key, axis=1)
        _swap_pairs(state, order, iteration, rng, allowed)
        _replace(state, order, max_replicas, rng, allowed)
        price = state.price()
        better = price < best - 1e-12
        best = np.where(better, price, best)
        best_slots[better] = state.slots[better]
        stale = 0 if better.any() else stale + 1
        if stale >= PATIENCE or (target is not None and (best <= target).all()) or budget.stop():
            break
        if iteration % 50 == 49:
            # Sums of many updates drift; a fresh sum keeps the levels exact.
            state.level = state.levels()
    return best_slots.reshape(slots.shape), best


def _ranking_key(state: _State, num_scenarios: int, iteration: int, rng: np.random.Generator) -> FloatArray:
    if num_scenarios == 1:
        return state.level[:, :, 0]
    top = state.level.max(axis=1, keepdims=True)
    if iteration % WORST_EVERY == WORST_EVERY - 1:
        return np.asarray((state.level / np.maximum(top, 1e-300)).max(axis=2))
    chosen = rng.choice(num_scenarios, size=len(state.level), p=state.weight)
    return np.take_along_axis(state.level, chosen[:, None, None], axis=2)[:, :, 0]


def _scale(state: _State) -> tuple[FloatArray, FloatArray]:
    """1 / M and weight * M of each layer and scenario, both [L, K]."""
    top = np.maximum(state.level.max(axis=1), 1e-300)
    return 1.0 / top, state.weight * top


def _swap_pairs(
    state: _State, order: IntArray, iteration: int, rng: np.random.Generator, allowed: BoolArray | None
) -> None:
    num_layers, num_gpus, per_gpu = state.slots.shape
    half = num_gpus // 2
    if half == 0:
        return
    cold = order[:, :half]
    if iteration % 2:
        cold = np.roll(cold, int(rng.integers(half)), axis=1)
    hot = order[:, ::-1][:, :half]
    rows = np.arange(num_layers)[:, None]
    hot_experts, cold_experts = state.slots[rows, hot], state.slots[rows, cold]
    clash_hot = state.held[rows[:, :, None], hot_experts, cold[:, :, None]]
    clash_cold = state.held[rows[:, :, None], cold_experts, hot[:, :, None]]
    if allowed is not None:
        clash_hot = clash_hot | ~allowed[rows[:, :, None], hot_experts, cold[:, :, None]]
        clash_cold = clash_cold | ~allowed[rows[:, :, None], cold_experts, hot[:, :, None]]
    give = np.where(clash_hot[:, :, :, None], np.inf, state.share[rows[:, :, None], hot_experts])
    take = np.where(clash_cold[:, :, :, None], -np.inf, state.share[rows[:, :, None], cold_experts])
    choose = _choose_one_scenario if give.shape[-1] == 1 else _choose
    chosen, value, before = choose(state, hot, cold, give, take)
    layer, pair = np.nonzero(value < before * (1.0 - 1e-9))
    one, two = chosen[layer, pair] // per_gpu, chosen[layer, pair] % per_gpu
    gpu_one, gpu_two = hot[layer, pair], cold[layer, pair]
    expert_one, expert_two = state.slots[layer, gpu_one, one], state.slots[layer, gpu_two, two]
    state.slots[layer, gpu_one, one], state.slots[layer, gpu_two, two] = expert_two, expert_one
    state.held[layer, expert_one, gpu_one] = state.held[layer, expert_two, gpu_two] = False
    state.held[layer, expert_one, gpu_two] = state.held[layer, expert_two, gpu_one] = True
    change = state.share[layer, expert_one] - state.share[layer, expert_two]
    state.level[layer, gpu_one] -= change / state.speed[gpu_one][:, None]
    state.level[layer, gpu_two] += change / state.speed[gpu_two][:, None]


Choice = tuple[IntArray, FloatArray, FloatArray]


def _choose_one_scenario(state: _State, hot: IntArray, cold: IntArray, give: FloatArray, take: FloatArray) -> Choice:
    """Best swap of each pair: its index in s * s, its worth and the worth of no swap, each [L, P].

    give, take : shares [L, P, s, 1] of the two GPUs' replicas, infinite where a swap is barred. With one scenario the
    best swap is the one whose load comes nearest to levelling the pair.
    """
    rows = np.arange(len(hot))[:, None]
    level_hot, level_cold = state.level[rows, hot, 0], state.level[rows, cold, 0]
    speed_hot, speed_cold = state.speed[hot], state.speed[cold]
    levelling = (level_hot - level_cold) / (1.0 / speed_hot + 1.0 / speed_cold)
    miss = (give[..., 0] - levelling[:, :, None])[:, :, :, None] - take[:, :, None, :, 0]
    np.abs(miss, out=miss)
    flat = miss.reshape(*hot.shape, -1)
    chosen = flat.argmin(axis=2)
    per_gpu = give.shape[2]
    pairs = np.arange(hot.shape[1])
    load = give[rows, pairs, chosen // per_gpu, 0] - take[rows, pairs, chosen % per_gpu, 0]
    value = np.maximum(level_hot - load / speed_hot, level_cold + load / speed_cold)
    barred = ~np.isfinite(np.take_along_axis(flat, chosen[:, :, None], axis=2)[:, :, 0])
    return chosen, np.where(barred, np.inf, value), level_hot


def _choose(state: _State, hot: IntArray, cold: IntArray, give: FloatArray, take: FloatArray) -> Choice:
    """As `_choose_one_scenario`, by the smooth stand-in over all scenarios; shares [L, P, s, K]."""
    rows = np.arange(len(hot))[:, None]
    level_hot, level_cold = state.level[rows, hot], state.level[rows, cold]
    inverse, scale = _scale(state)
    inverse, scale = inverse[:, None], scale[:, None]
    before = ((_power(level_hot * inverse) + _power(level_cold * inverse)) * scale).sum(axis=2)
    gain = give[:, :, :, None] - take[:, :, None, :]
    inverse, scale = inverse[:, :, None, None], scale[:, :, None, None]
    after = _power((level_hot[:, :, None, None] - gain / state.speed[hot][:, :, None, None, None]) * inverse)
    after += _power((level_cold[:, :, None, None] + gain / state.speed[cold][:, :, None, None, None]) * inverse)
    flat = (after * scale).sum(axis=4).reshape(*hot.shape, -1)
    chosen = flat.argmin(axis=2)
    return chosen, np.take_along_axis(flat, chosen[:, :, None], axis=2)[:, :, 0], before


def _replace(
    state: _State, order: IntArray, max_replicas: int, rng: np.random.Generator, allowed: BoolArray | None
) -> None:
    num_layers, num_gpus, per_gpu = state.slots.shape
    shape = (num_layers, REPLACEMENTS)
    rows = np.arange(num_layers)[:, None]
    # The new replica is of an expert on one of the hottest GPUs; it goes anywhere but prefers the colder half.
    hot = order[rows, num_gpus - 1 - rng.integers(min(4, num_gpus), size=shape)]
    added = state.slots[rows, hot, rng.integers(per_gpu, size=shape)]
    gpu = order[rows, (num_gpus * rng.random(shape) ** 2).astype(np.int64)]
    slot = rng.integers(per_gpu, size=shape)
    removed = state.slots[rows, gpu, slot]
    valid = (state.count[rows, removed] > 1) & (state.count[rows, added] < max_replicas)
    valid &= ~state.held[rows, added, gpu]
    if allowed is not None:
        valid &= allowed[rows, added, gpu]
    layers, tries = np.nonzero(valid)
    if not layers.size:
        return
    added, removed, gpu, slot = (array[layers, tries] for array in (added, removed, gpu, slot))
    count_removed, count_added = state.count[layers, removed][:, None], state.count[layers, added][:, None]
    load_removed, load_added = state.load[layers, removed], state.load[layers, added]
    more = load_removed / (count_removed - 1) - load_removed / count_removed
    less = load_added / count_added - load_added / (count_added + 1)
    change = state.held[layers, removed][:, :, None] * more[:, None]
    change -= state.held[layers, added][:, :, None] * less[:, None]
    index = np.arange(layers.size)
    change[index, gpu] += load_added / (count_added + 1) - load_removed / (count_removed - 1)
    fresh = state.level[layers] + change / state.speed[:, None]
    inverse, scale = _scale(state)
    value = (_power(fresh * inverse[layers][:, None]) * scale[layers][:, None]).sum(axis=(1, 2))
    before = (_power(state.level * inverse[:, None]) * scale[:, None]).sum(axis=(1, 2))
    gain = value - before[layers] * (1.0 - 1e-9)
    # `layers` rises, so the best try of a layer is the first of its run after a sort by gain.
    best = np.lexsort((gain, layers))
    first = best[np.r_[True, layers[best][1:] != layers[best][:-1]]]
    first = first[gain[first] < 0]
    layer, plus, minus = layers[first], added[first], removed[first]
    state.slots[layer, gpu[first], slot[first]] = plus
    state.held[layer, minus, gpu[first]] = False
    state.held[layer, plus, gpu[first]] = True
    state.count[layer, minus] -= 1
    state.count[layer, plus] += 1
    for expert in (minus, plus):
        state.share[layer, expert] = state.load[layer, expert] / state.count[layer, expert][:, None]
    state.level[layer] = fresh[first]
