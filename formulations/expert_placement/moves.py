"""From the current placement to the new one: aligned slots, and moves in an order that is safe at every step.

A move overwrites one slot: its expert leaves, another arrives, copied from a GPU that holds it at that moment. No GPU
ever holds more than its slots, and no expert ever loses its last replica. Moves that wait for each other in a ring (a
swap without spare replicas) are made as one step, through a staging buffer of one expert on each GPU involved.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from planner.cost.expert_parallel import membership
from planner.experts_plan import Move
from planner.workload import IntArray


def align(physical_to_logical: IntArray, current: IntArray, num_gpus: int) -> IntArray:
    """Reorder the slots inside each GPU so that replicas that stay keep their slot. Both [L, S]."""
    num_layers, num_slots = current.shape
    per_gpu = num_slots // num_gpus
    result = np.empty_like(physical_to_logical)
    for layer in range(num_layers):
        for start in range(0, num_slots, per_gpu):
            old = current[layer, start : start + per_gpu]
            new = Counter(physical_to_logical[layer, start : start + per_gpu].tolist())
            row = np.full(per_gpu, -1, dtype=np.int64)
            for slot, expert in enumerate(old.tolist()):
                if new[expert] > 0:
                    row[slot] = expert
                    new[expert] -= 1
            row[row < 0] = sorted(new.elements())
            result[layer, start : start + per_gpu] = row
    return result


def relabel(physical_to_logical: IntArray, current: IntArray, num_experts: int, num_gpus: int) -> IntArray:
    """Give each GPU's contents to the GPU that already holds most of them; for loads that do not tell GPUs apart."""
    from scipy.optimize import linear_sum_assignment

    new = membership(physical_to_logical, num_experts, num_gpus) > 0
    old = membership(current, num_experts, num_gpus) > 0
    grid = physical_to_logical.reshape(len(physical_to_logical), num_gpus, -1)
    result = np.empty_like(grid)
    for layer in range(len(grid)):
        shared = new[layer].T.astype(np.float64) @ old[layer]
        source, target = linear_sum_assignment(-shared)
        result[layer, target] = grid[layer, source]
    return result.reshape(physical_to_logical.shape)


def ordered_moves(
    physical_to_logical: IntArray, current: IntArray, layer_ids: tuple[int, ...], num_gpus: int
) -> tuple[Move, ...]:
    """Moves from `current` to an aligned placement, both [L, S]; steps are numbered through all layers."""
    per_gpu = current.shape[1] // num_gpus
    moves: list[Move] = []
    step = 0
    for row, layer in enumerate(layer_ids):
        state = current[row].copy()
        for slots in _steps(state, physical_to_logical[row]):
            before = state.copy()
            for slot in slots:
                expert = int(physical_to_logical[row, slot])
                gpu = slot // per_gpu
                holders = np.flatnonzero(before == expert) // per_gpu
                # The copy is read from the same GPU if it can be, else from the next holder round the ring of GPUs;
                # an expert that the current placement lost comes from the checkpoint.
                source = int(holders[((holders - gpu) % num_gpus).argmin()]) if holders.size else None
                moves.append(
                    Move(
                        step=step,
                        layer=layer,
                        slot=slot,
                        expert=expert,
                        replaces=int(before[slot]),
                        from_gpu=source,
                        to_gpu=gpu,
                    )
                )
                state[slot] = expert
            step += 1
    return tuple(moves)


def _steps(start: IntArray, target: IntArray) -> list[list[int]]:
    """Slots of one layer in a safe order; each entry is one step."""
    state = start.copy()
    count = Counter(state.tolist())
    waiting = set(np.flatnonzero(state != target).tolist())
    steps: list[list[int]] = []
    while waiting:
        # A slot whose expert has another replica may be overwritten now.
        free = sorted(slot for slot in waiting if count[int(state[slot])] > 1)
        together = free[:1] or _ring(state, target, waiting)
        steps.append(together)
        for slot in together:
            count[int(state[slot])] -= 1
            count[int(target[slot])] += 1
            state[slot] = target[slot]
            waiting.discard(slot)
    return steps


def _ring(state: IntArray, target: IntArray, waiting: set[int]) -> list[int]:
    """Slots that wait for each other.

    Every waiting slot holds the last replica of its expert, which some other waiting slot is to get; following that
    from slot to slot must come round.
    """
    heir: dict[int, int] = {}
    for slot in sorted(waiting):
        heir.setdefault(int(target[slot]), slot)
    slot, seen = min(waiting), list[int]()
    while slot not in seen:
        seen.append(slot)
        slot = heir[int(state[slot])]
    return seen[seen.index(slot) :]
