"""More tiny expert placements: communication of both kinds, and hypothesis strategies for instances and placements."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from placement_cases import instance

from formulations.expert_placement.problem import CommunicationModel, ExpertPlacementProblem
from planner.topology import hop_costs
from planner.workload import RoutingTrace


def routed(experts: int, layers: int, top_k: int, tokens: int = 200, seed: int = 0, stay: float = 0.5) -> RoutingTrace:
    """A trace with distinct choices of a token, uneven experts, and neighbouring layers that resemble each other."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0.0, 1.0, (layers, experts))
    draws = rng.gumbel(size=(tokens, layers, experts))
    for layer in range(1, layers):
        kept = rng.random(tokens) < stay
        draws[kept, layer] = draws[kept, layer - 1]
    order = np.argsort(-(np.log(popularity)[None] + draws), axis=2)
    return RoutingTrace(experts=np.ascontiguousarray(order[:, :, :top_k]))


def travelling(
    model: Literal["chain", "fanout"],
    trace: RoutingTrace,
    num_experts: int,
    num_gpus: int,
    num_slots: int,
    weight: float = 0.5,
    *,
    gpus_per_node: int | None = None,
    intra_node_cost: float = 1.0,
    inter_node_cost: float | None = None,
    **keywords: Any,
) -> ExpertPlacementProblem:
    """A trace as a problem with communication."""
    per_node = gpus_per_node or num_gpus
    cost, intra, inter = hop_costs(num_gpus, per_node, intra_node_cost, inter_node_cost)
    communication = CommunicationModel(
        model=model, weight=weight, cost=cost, intra_node_cost=intra, inter_node_cost=inter
    )
    return instance(
        trace.counts(num_experts)[None],
        num_gpus,
        num_slots,
        trace=trace,
        communication=communication,
        gpus_per_node=per_node,
        **keywords,
    )


def random_placement(rng: np.random.Generator, layers: int, experts: int, gpus: int, per_gpu: int) -> np.ndarray:
    """Valid rows [L, S]: every expert somewhere, none twice on a GPU."""
    rows = np.empty((layers, gpus, per_gpu), dtype=np.int64)
    for row in rows:
        first = rng.permutation(np.concatenate([rng.permutation(experts), np.full(gpus * per_gpu - experts, -1)]))
        row[:] = first.reshape(gpus, per_gpu)
        for gpu in range(gpus):
            free = rng.permutation(np.setdiff1d(np.arange(experts), row[gpu]))
            row[gpu, row[gpu] < 0] = free[: (row[gpu] < 0).sum()]
    return rows.reshape(layers, -1)


@st.composite
def shapes(draw: st.DrawFn, most_experts: int = 10, most_gpus: int = 5) -> tuple[int, int, int]:
    """(experts, GPUs, slots of a GPU) that some valid placement fits."""
    gpus = draw(st.integers(1, most_gpus))
    experts = draw(st.integers(max(1, gpus // 2), most_experts))
    least = -(-experts // gpus)
    per_gpu = draw(st.integers(least, min(experts, least + 3)))
    return experts, gpus, per_gpu


@st.composite
def load_instances(draw: st.DrawFn, scenarios: int = 1, **keywords: Any) -> ExpertPlacementProblem:
    """Instances with loads alone: idle experts, huge and tiny loads, one or more layers."""
    experts, gpus, per_gpu = draw(shapes())
    layers = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    load = rng.lognormal(0.0, draw(st.sampled_from([0.0, 0.5, 2.0])), (scenarios, layers, experts))
    load *= rng.random(load.shape) < draw(st.sampled_from([1.0, 0.7]))
    load[:, :, 0] += 0.01
    speed = rng.choice([1.0, 0.5, 2.0], gpus) if draw(st.booleans()) else None
    return instance(load, gpus, gpus * per_gpu, speed=speed, **keywords)
