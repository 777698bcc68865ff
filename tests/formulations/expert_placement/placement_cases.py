"""Tiny expert placements: instances, all of their placements, and traces with a planted optimum."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from formulations.base import solve
from formulations.expert_placement.check import check, objective
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import CommunicationModel, ExpertPlacementProblem
from formulations.outcome import OnProgress, Outcome, SolveOptions
from planner.experts_plan import ExpertPlacement
from planner.topology import hop_costs
from planner.workload import RoutingTrace


def counts(*shape: int, seed: int = 0) -> np.ndarray:
    """Uneven loads."""
    return np.random.default_rng(seed).lognormal(0.0, 0.8, shape)


def instance(
    load: np.ndarray, num_gpus: int = 2, num_slots: int | None = None, **keywords: Any
) -> ExpertPlacementProblem:
    """A problem; no spare slots unless asked for."""
    slots = load.shape[-1] if num_slots is None else num_slots
    return ExpertPlacementProblem.from_arrays(load, num_gpus=num_gpus, num_slots=slots, **keywords)


def chain_instance(
    trace: RoutingTrace, num_experts: int, num_gpus: int, weight: float = 0.5, **keywords: Any
) -> ExpertPlacementProblem:
    """A trace as a problem with chain communication."""
    cost, intra, inter = hop_costs(num_gpus, keywords.get("gpus_per_node", num_gpus))
    model = CommunicationModel(model="chain", weight=weight, cost=cost, intra_node_cost=intra, inter_node_cost=inter)
    load = trace.counts(num_experts)[None]
    return instance(load, num_gpus, trace=trace, communication=model, **keywords)


def planted_trace(
    num_experts: int, num_layers: int, num_gpus: int, stay: float = 0.6, seed: int = 0, tokens: int = 3000
) -> tuple[RoutingTrace, np.ndarray]:
    """A trace whose tokens stay in hidden clusters with chance `stay`, and the clusters as rows [L, E]."""
    rng = np.random.default_rng(seed)
    size = num_experts // num_gpus
    hidden = np.stack([rng.permutation(num_experts) for _ in range(num_layers)])
    experts = np.empty((tokens, num_layers, 1), dtype=np.int64)
    slot = rng.integers(num_experts, size=tokens)
    for layer in range(num_layers):
        experts[:, layer, 0] = hidden[layer, slot]
        inside = slot // size * size + rng.integers(size, size=tokens)
        slot = np.where(rng.random(tokens) < stay, inside, rng.integers(num_experts, size=tokens))
    return RoutingTrace(experts=experts), hidden


def crossings(rows: np.ndarray, transitions: np.ndarray, num_gpus: int) -> float:
    """Fraction of transitions between GPUs, summed over layers; rows without replicas."""
    gpu = np.argsort(rows, axis=1) // (rows.shape[1] // num_gpus)
    return float((transitions * (gpu[:-1, :, None] != gpu[1:, None, :])).sum())


def run(
    problem: ExpertPlacementProblem,
    method: str,
    hint: ExpertPlacement | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Outcome[ExpertPlacement]:
    """Search, check, re-price; raises when the method's claim or bound is wrong."""
    limits = SolveOptions(method=method, **{"time_limit_s": 20.0, **options})
    return solve(EXPERT_PLACEMENT, problem, limits, hint=hint, on_progress=on_progress)


def brute_force(problem: ExpertPlacementProblem) -> float:
    """Least objective over all placements; infinite when none is valid."""
    per_gpu = list(itertools.combinations(range(problem.num_experts), problem.slots_per_gpu))
    layer = [
        row
        for row in (sum(sets, ()) for sets in itertools.product(per_gpu, repeat=problem.num_gpus))
        if len(set(row)) == problem.num_experts
    ]
    plans = (problem.placement(np.array(rows)) for rows in itertools.product(layer, repeat=problem.num_layers))
    return min((objective(problem, plan).total for plan in plans if not check(problem, plan)), default=float("inf"))
