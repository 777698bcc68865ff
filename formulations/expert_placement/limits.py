"""When no placement can exist: which requirements conflict, in the user's words, and the cheapest ways out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from formulations.expert_placement.check import expert_memory_bytes
from formulations.expert_placement.problem import ExpertPlacementProblem
from planner.cost.expert_parallel import membership
from planner.units import format_bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """One proof of infeasibility and the changes that would lift it, smallest first."""

    reason: str
    relaxations: tuple[str, ...]


def conflicts(problem: ExpertPlacementProblem) -> list[Conflict]:
    """Every proof that no valid placement exists; empty when none is known."""
    found = [_distinct(problem), _memory(problem), _groups(problem), _moves(problem)]
    return [conflict for conflict in found if conflict is not None]


def _distinct(problem: ExpertPlacementProblem) -> Conflict | None:
    most = problem.num_experts * problem.num_gpus
    if problem.num_slots <= most:
        return None
    return Conflict(
        f"num_slots {problem.num_slots}: {problem.num_experts} experts on distinct GPUs fill at most {most} slots",
        (f"num_slots: {most}",),
    )


def _memory(problem: ExpertPlacementProblem) -> Conflict | None:
    if problem.gpu_memory_bytes is None or problem.expert_bytes is None:
        return None
    need = expert_memory_bytes(problem)
    if need <= problem.gpu_memory_bytes:
        return None
    fitting = math.floor(problem.gpu_memory_bytes / (problem.num_layers * problem.expert_bytes))
    ways = [f"gpu_memory_bytes: {math.ceil(need)}"]
    if fitting * problem.num_gpus >= problem.num_experts:
        ways.insert(0, f"num_slots: {fitting * problem.num_gpus}")
    elif fitting > 0:
        whole = problem.gpus_per_node
        gpus = math.ceil(problem.num_experts / fitting / whole) * whole
        ways.insert(0, f"num_gpus: {gpus} with num_slots: {gpus * fitting}")
    each = f"{problem.slots_per_gpu} slots x {problem.num_layers} layers x {format_bytes(problem.expert_bytes)}"
    return Conflict(
        f"gpu_memory_bytes {format_bytes(problem.gpu_memory_bytes)}: each GPU needs {each} = {format_bytes(need)}",
        tuple(ways),
    )


def _groups(problem: ExpertPlacementProblem) -> Conflict | None:
    """With group_spread k, the groups of a node must bring enough experts to fill it, and not too many to hold."""
    if problem.group_of is None or problem.group_spread is None or problem.group_spread >= problem.num_nodes:
        return None
    num_groups = int(problem.group_of.max()) + 1
    size = problem.num_experts // num_groups
    per_node = problem.slots_per_gpu * problem.gpus_per_node
    node_groups = num_groups * problem.group_spread
    # A GPU holds slots_per_gpu different experts, which its node's groups must provide.
    needed_groups = math.ceil(problem.slots_per_gpu / size)
    if node_groups < needed_groups * problem.num_nodes:
        wider = math.ceil(needed_groups * problem.num_nodes / num_groups)
        return Conflict(
            f"group_spread {problem.group_spread}: {num_groups} groups cannot fill the slots of"
            f" {problem.num_nodes} nodes with different experts on each GPU",
            (f"group_spread: {wider}",) if wider <= problem.num_nodes else ("fewer num_slots",),
        )
    if problem.group_spread == 1:
        fullest = math.ceil(num_groups / problem.num_nodes)
        if fullest * size > per_node:
            slots = math.ceil(fullest * size / problem.gpus_per_node) * problem.num_gpus
            return Conflict(
                f"group_spread 1: some node must hold {fullest} groups of {size} experts, it has {per_node} slots",
                ("group_spread: 2", f"num_slots: {slots}"),
            )
    return None


def fewest_moves(problem: ExpertPlacementProblem) -> int:
    """Replicas that any valid plan must load anew, given the current placement; 0 without one.

    A layer's missing experts must each be loaded once, and so must each slot that repeats an expert on its GPU.
    """
    if problem.current is None:
        return 0
    held = membership(problem.current, problem.num_experts, problem.num_gpus)
    missing = (held.sum(axis=2) == 0).sum(axis=1)
    twice = np.maximum(held - 1, 0).sum(axis=(1, 2)).astype(np.int64)
    return int(np.maximum(missing, twice).sum())


def _moves(problem: ExpertPlacementProblem) -> Conflict | None:
    least = fewest_moves(problem)
    if problem.max_moves is None or least <= problem.max_moves:
        return None
    return Conflict(
        f"max_moves {problem.max_moves}: the current placement misses or repeats experts; mending it takes {least}",
        (f"max_moves: {least}",),
    )
