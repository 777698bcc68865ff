"""Greedy replication and longest-processing-time packing, for all layers at once.

Replication (EPLB's rule): give each spare slot to the expert whose replicas are the largest. Packing (LPT): replicas in
falling size, each onto the least loaded GPU that has room. The layer axis is vectorised; the loops run over slots.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.workload import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


def replicate(load: FloatArray, num_slots: int, max_replicas: int) -> IntArray:
    """Replicas of each expert: load [L, E] -> int64 [L, E] summing to num_slots, each in 1 .. max_replicas.

    The cap is inside the rule, so no slot is lost to an expert that cannot use it. Needs
    num_experts <= num_slots <= num_experts * max_replicas.
    """
    num_layers, num_experts = load.shape
    count = np.ones((num_layers, num_experts), dtype=np.int64)
    size = load.astype(np.float64)
    if max_replicas == 1:
        size = np.full_like(size, -np.inf)
    rows = np.arange(num_layers)
    for _ in range(num_slots - num_experts):
        chosen = size.argmax(axis=1)
        count[rows, chosen] += 1
        now = count[rows, chosen]
        size[rows, chosen] = np.where(now < max_replicas, load[rows, chosen] / now, -np.inf)
    return count


def replicas_in_falling_size(load: FloatArray, count: IntArray) -> tuple[IntArray, FloatArray]:
    """Experts of all replicas, largest replica first: ([L, S] experts, [L, S] sizes)."""
    num_layers, num_experts = load.shape
    num_slots = int(count[0].sum())
    flat = np.repeat(np.tile(np.arange(num_experts), num_layers), count.ravel()).reshape(num_layers, num_slots)
    size = np.take_along_axis(load / count, flat, axis=1)
    order = np.argsort(-size, axis=1, kind="stable")
    return np.take_along_axis(flat, order, axis=1), np.take_along_axis(size, order, axis=1)


def pack(
    experts: IntArray,
    size: FloatArray,
    num_bins: int,
    *,
    speed: FloatArray | None = None,
    num_experts: int | None = None,
    allowed: BoolArray | None = None,
) -> IntArray:
    """LPT with equal item counts per bin: items [L, S] in falling size -> item per slot [L, S], bin by bin.

    speed : [num_bins]; the bin that would be finished first takes the item. num_experts : when given, two items of one
    expert never share a bin if any other bin has room. allowed : bool [L, num_experts, num_bins] restricts bins.
    """
    num_layers, num_items = experts.shape
    per_bin = num_items // num_bins
    rows = np.arange(num_layers)
    filled = np.zeros((num_layers, num_bins), dtype=np.int64)
    level = np.zeros((num_layers, num_bins))
    slots = np.full((num_layers, num_bins * per_bin), -1, dtype=np.int64)
    held = None if num_experts is None else np.zeros((num_layers, num_experts, num_bins), dtype=bool)
    for item in range(num_items):
        expert, weight = experts[:, item], size[:, item]
        finish = level if speed is None else (level + weight[:, None]) / speed
        key = np.where(filled < per_bin, finish, np.inf)
        if held is not None:
            # A soft barrier: a full pass may leave only bins that already hold the expert; `repair` mends those.
            barred = held[rows, expert]
            if allowed is not None:
                barred = barred | ~allowed[rows, expert]
            key = key + np.where(barred, 1e30, 0.0)
        chosen = key.argmin(axis=1)
        slots[rows, chosen * per_bin + filled[rows, chosen]] = expert
        filled[rows, chosen] += 1
        level[rows, chosen] += weight
        if held is not None:
            held[rows, expert, chosen] = True
    return slots


def repair_layer(slots: IntArray, num_bins: int, share: FloatArray, allowed: BoolArray | None = None) -> bool:
    """Make one layer's slots valid in place: no expert twice on a GPU, none on a GPU it may not use.

    Each misplaced replica is swapped with the slot nearest in size where the exchange is valid for both sides, or,
    failing that, for at least the misplaced one, a few rounds long. share : [E], size of one replica.
    Returns whether the layer is valid now.
    """
    num_experts = share.size
    per_bin = slots.size // num_bins
    bin_of = np.arange(slots.size) // per_bin
    held = np.zeros((num_experts, num_bins), dtype=np.int64)
    np.add.at(held, (slots, bin_of), 1)
    may = np.ones((num_experts, num_bins), dtype=bool) if allowed is None else allowed

    def wrong() -> IntArray:
        twice = held[slots, bin_of] > 1
        return np.flatnonzero(twice | ~may[slots, bin_of])

    for attempt in range(4 * num_bins):
        bad = wrong()
        if not bad.size:
            return True
        for slot in bad:
            expert, here = slots[slot], bin_of[slot]
            if held[expert, here] <= 1 and may[expert, here]:
                continue
            takes = may[expert, bin_of] & (held[expert, bin_of] == 0)
            gives = may[slots, here] & (held[slots, here] == 0)
            both = np.flatnonzero(takes & gives)
            if both.size:
                other = both[np.abs(share[slots[both]] - share[expert]).argmin()]
            else:
                chain = np.flatnonzero(takes & (bin_of != here))
                if not chain.size:
                    continue
                # Push the problem on to another GPU; varying the choice avoids cycles.
                other = chain[(int(slot) * 7 + attempt) % chain.size]
            for one, two in ((slot, other), (other, slot)):
                held[slots[one], bin_of[one]] -= 1
                held[slots[one], bin_of[two]] += 1
            slots[slot], slots[other] = slots[other], slots[slot]
    return not wrong().size


def repair(slots: IntArray, num_bins: int, share: FloatArray, allowed: BoolArray | None = None) -> BoolArray:
    """`repair_layer` for every layer of [L, S], share [L, E]; returns which layers are valid, [L]."""
    return np.array(
        [
            repair_layer(row, num_bins, share[layer], None if allowed is None else allowed[layer])
            for layer, row in enumerate(slots)
        ]
    )
