"""Independent check and pricing of an expert placement. No solver and no search code in here."""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Objective
from planner.cost.expert_parallel import (
    balancedness,
    chain_cost,
    fanout,
    fanout_cost,
    gpu_load,
    hottest,
    membership,
    moved_replicas,
    simulate_chain,
)
from planner.cost.verdict import Violation
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray


def check(problem: ExpertPlacementProblem, plan: ExpertPlacement) -> list[Violation]:
    """Every broken rule of the placement, in the instance's words."""
    rows = plan.array
    shape = (problem.num_layers, problem.num_slots)
    cluster = (problem.num_gpus, problem.gpus_per_node)
    if rows.shape != shape or (plan.num_gpus, plan.gpus_per_node) != cluster or plan.layer_ids != problem.layer_ids:
        message = f"the plan is for {rows.shape} layers x slots on {plan.num_gpus} GPUs, the instance for {shape}"
        return [Violation(rule="shape", subject="plan", message=f"{message} on {problem.num_gpus}")]
    if rows.min() < 0 or rows.max() >= problem.num_experts:
        return [Violation(rule="expert_ids", subject="plan", message="a slot names an expert that does not exist")]
    found: list[Violation] = []
    held = membership(rows, problem.num_experts, problem.num_gpus)
    layer_name = [f"layer {layer}" for layer in problem.layer_ids]
    for layer, expert in np.argwhere(held.sum(axis=2) == 0):
        message = f"{layer_name[layer]}: expert {expert} has no replica"
        found.append(Violation(rule="every_expert_placed", subject=layer_name[layer], message=message))
    for layer, expert, gpu in np.argwhere(held > 1):
        message = f"{layer_name[layer]}: GPU {gpu} holds expert {expert} {int(held[layer, expert, gpu])} times"
        found.append(Violation(rule="distinct_gpus", subject=layer_name[layer], message=message))
    if plan.split != problem.split:
        message = f"the plan was made for split {plan.split}, the instance splits {problem.split}"
        found.append(Violation(rule="split", subject="plan", message=message))
    if not np.array_equal(np.array(plan.replicas), held.sum(axis=2)):
        found.append(Violation(rule="replicas", subject="plan", message="replicas do not match the slots"))
    found += _group_spread(problem, held, layer_name)
    found += _moves(problem, plan, rows)
    found += _memory(problem)
    return found


def _group_spread(problem: ExpertPlacementProblem, held: FloatArray, layer_name: list[str]) -> list[Violation]:
    if problem.group_of is None or problem.group_spread is None:
        return []
    by_node = held.reshape(*held.shape[:2], problem.num_nodes, problem.gpus_per_node).sum(axis=3) > 0
    found = []
    for group in range(int(problem.group_of.max()) + 1):
        nodes = by_node[:, problem.group_of == group].any(axis=1).sum(axis=1)
        for layer in np.flatnonzero(nodes > problem.group_spread):
            message = f"{layer_name[layer]}: group {group} lies on {nodes[layer]} nodes"
            limit = float(problem.group_spread)
            found.append(
                Violation(
                    rule="group_spread",
                    subject=layer_name[layer],
                    message=f"{message}, at most {problem.group_spread} are allowed",
                    amount=float(nodes[layer]),
                    limit=limit,
                )
            )
    return found


def _moves(problem: ExpertPlacementProblem, plan: ExpertPlacement, rows: IntArray) -> list[Violation]:
    if problem.current is None:
        return []
    found = []
    moved = int(moved_replicas(rows, problem.current, problem.num_experts, problem.num_gpus).sum())
    if problem.max_moves is not None and moved > problem.max_moves:
        message = f"{moved} replicas move, at most {problem.max_moves} may"
        found.append(
            Violation(rule="max_moves", subject="plan", message=message, amount=moved, limit=float(problem.max_moves))
        )
    if plan.moves is not None:
        found += check_moves(problem, plan)
    return found


def check_moves(problem: ExpertPlacementProblem, plan: ExpertPlacement) -> list[Violation]:
    """Replay the move list from the current placement; every step must be executable and the end must be the plan."""
    assert problem.current is not None
    assert plan.moves is not None
    per_gpu = problem.slots_per_gpu
    state = problem.current.copy()
    row_of = {layer: row for row, layer in enumerate(problem.layer_ids)}
    found = []

    def broken(step: int, message: str) -> None:
        found.append(Violation(rule="move_order", subject=f"step {step}", message=f"step {step}: {message}"))

    steps: dict[int, list[int]] = {}
    for index, move in enumerate(plan.moves):
        steps.setdefault(move.step, []).append(index)
    for step in sorted(steps):
        before = state.copy()
        for index in steps[step]:
            move = plan.moves[index]
            if move.layer not in row_of or move.slot >= problem.num_slots or move.expert >= problem.num_experts:
                broken(step, f"layer {move.layer}, slot {move.slot} or expert {move.expert} does not exist")
                continue
            row = row_of[move.layer]
            if move.from_gpu is None:
                source = np.setdiff1d([move.expert], before[row])
            else:
                source = before[row, move.from_gpu * per_gpu : (move.from_gpu + 1) * per_gpu]
            if move.expert not in source:
                where = "the checkpoint need" if move.from_gpu is None else f"GPU {move.from_gpu} does"
                broken(step, f"{where} not hold expert {move.expert}")
            if before[row, move.slot] != move.replaces or move.slot // per_gpu != move.to_gpu:
                broken(step, f"slot {move.slot} does not hold expert {move.replaces} on GPU {move.to_gpu}")
            state[row, move.slot] = move.expert
        for row in {row_of[plan.moves[index].layer] for index in steps[step] if plan.moves[index].layer in row_of}:
            lost = np.setdiff1d(before[row], state[row])
            if lost.size:
                broken(step, f"layer {problem.layer_ids[row]} loses expert {lost[0]}")
    reached, planned = (membership(rows, problem.num_experts, problem.num_gpus) for rows in (state, plan.array))
    if not np.array_equal(reached, planned):
        broken(len(steps), "the moves do not end at the plan")
    return found


def _memory(problem: ExpertPlacementProblem) -> list[Violation]:
    if problem.gpu_memory_bytes is None or problem.expert_bytes is None:
        return []
    need = expert_memory_bytes(problem)
    if need <= problem.gpu_memory_bytes:
        return []
    message = f"each GPU holds {need:.4g} bytes of experts, it has {problem.gpu_memory_bytes:.4g}"
    return [
        Violation(
            rule="gpu_memory",
            subject="every GPU",
            message=message,
            amount=need,
            limit=problem.gpu_memory_bytes,
            unit="bytes",
        )
    ]


def expert_memory_bytes(problem: ExpertPlacementProblem) -> float:
    """Expert weights on each GPU, all MoE layers."""
    return problem.slots_per_gpu * problem.num_layers * (problem.expert_bytes or 0.0)


def objective(problem: ExpertPlacementProblem, plan: ExpertPlacement) -> Objective:
    """Price the plan: parts add up to the total; measures are what people compare."""
    rows = plan.array
    load = gpu_load(problem.load, rows, problem.speed, problem.split)
    balance = balancedness(load, problem.speed)
    parts = {"hottest_gpu_load": float((problem.weight @ hottest(load, problem.speed)).sum())}
    measures = {
        "balancedness_mean": float((problem.weight @ balance).mean()),
        "balancedness_worst": float(balance.min()),
    }
    comm = problem.communication
    if problem.trace is not None and problem.num_layers > 1:
        size = (problem.num_experts, problem.num_gpus, problem.gpus_per_node)
        crossed, crossed_node, _ = simulate_chain(rows, problem.trace, *size)
        measures["cross_gpu_fraction"] = float(crossed.mean())
        measures["cross_node_fraction"] = float(crossed_node.mean())
    if comm is not None:
        parts["communication"] = comm.weight * float(communication(problem, rows).sum())
    if problem.current is not None:
        moved = int(moved_replicas(rows, problem.current, problem.num_experts, problem.num_gpus).sum())
        parts["moves"] = problem.move_cost * moved
        measures["moved_replicas"] = moved
        if problem.expert_bytes is not None:
            measures["moved_bytes"] = moved * problem.expert_bytes
    return Objective(total=sum(parts.values()), parts=parts, measures=measures)


def communication(problem: ExpertPlacementProblem, rows: IntArray) -> FloatArray:
    """Unweighted communication cost of a token: by transition (chain) or by layer (fan-out)."""
    comm = problem.communication
    assert comm is not None
    assert problem.trace is not None
    if comm.model == "chain":
        return chain_cost(rows, problem.transitions, comm.cost)
    gpus, nodes = fanout(rows, problem.trace, problem.num_experts, problem.num_gpus, problem.gpus_per_node)
    return fanout_cost(gpus, nodes, comm.intra_node_cost, comm.inter_node_cost)
