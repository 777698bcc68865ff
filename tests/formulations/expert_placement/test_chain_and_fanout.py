"""Communication in the plan: planted placements are found again, and the term is what an own count says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from placement_cases import crossings, planted_trace, run
from small_cases import random_placement, routed, travelling

from formulations.expert_placement.check import communication, objective
from formulations.expert_placement.transport import transport_start
from formulations.outcome import Budget
from planner.cost.expert_parallel import membership
from planner.topology import hop_costs
from planner.workload import RoutingTrace


@pytest.mark.parametrize("seed", range(3))
def test_planted_clusters_are_found_again(seed: int) -> None:
    """16 experts, 4 layers, 4 GPUs; tokens stay in their hidden cluster with chance 0.8: cross as rarely as planted."""
    trace, hidden = planted_trace(16, 4, 4, stay=0.8, seed=seed)
    problem = travelling("chain", trace, 16, 4, 16, 1.0)
    outcome = run(problem, "local-search", work_limit=20_000)
    assert outcome.plan is not None
    planted = crossings(hidden, problem.transitions, 4)
    assert crossings(outcome.plan.array, problem.transitions, 4) <= planted * (1 + 1e-9) + 0.002
    assert outcome.objective is not None
    assert outcome.objective.total <= objective(problem, problem.placement(hidden)).total * (1 + 1e-3)


def test_transportation_alone_finds_planted_clusters_that_never_mix() -> None:
    trace, _ = planted_trace(12, 4, 3, stay=1.0)
    flow = trace.transitions(12)
    cost, _, _ = hop_costs(3, 3)
    rows = transport_start(flow, cost, trace.counts(12), 12, Budget(20.0))
    assert crossings(rows, flow, 3) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("slots", [8, 12, 16])
def test_transportation_starts_are_valid(slots: int) -> None:
    trace = routed(8, 3, 1)
    cost, _, _ = hop_costs(4, 2)
    allowed = np.ones((3, 8, 4), dtype=bool)
    allowed[:, 0, 1:] = False
    rows = transport_start(trace.transitions(8), cost, trace.counts(8), slots, Budget(20.0), allowed)
    held = membership(rows, 8, 4)
    assert (held <= 1).all()
    assert (held.sum(axis=2) >= 1).all()
    assert not ((held > 0) & ~allowed).any()


def travel(rows: np.ndarray, trace: RoutingTrace, gpus: int, per_node: int, intra: float, inter: float) -> float:
    """Mean cost of the chain, summed over transitions, token by token: any replica, then the cheapest next one."""
    per_gpu = rows.shape[1] // gpus
    ids = trace.experts[:, :, 0]
    total = 0.0
    for token in ids:
        for layer in range(ids.shape[1] - 1):
            here = np.flatnonzero(rows[layer] == token[layer]) // per_gpu
            there = np.flatnonzero(rows[layer + 1] == token[layer + 1]) // per_gpu
            for one in here:
                total += min(
                    0.0 if one == two else intra if one // per_node == two // per_node else inter for two in there
                ) / len(here)
    return total / len(ids)


def spread(rows: np.ndarray, trace: RoutingTrace, gpus: int, per_node: int, intra: float, inter: float) -> float:
    """Mean cost of the fan-out, summed over layers, without replicas: distinct remote GPUs and nodes of each home."""
    per_gpu = rows.shape[1] // gpus
    total = 0.0
    for token in trace.experts:
        for layer, experts in enumerate(token):
            used = {int(np.flatnonzero(rows[layer] == expert)[0]) // per_gpu for expert in experts}
            for home in range(gpus):
                remote = used - {home}
                nodes = {gpu // per_node for gpu in used} - {home // per_node}
                total += (intra * len(remote) + (inter - intra) * len(nodes)) / gpus
    return total / len(trace.experts)


@pytest.mark.parametrize("slots", [8, 12])
@pytest.mark.parametrize("costs", [(1.0, 9.0), (0.0, 1.0), (2.0, 2.0), (1.0, 0.5)])
def test_the_chain_term_is_what_tokens_travel(slots: int, costs: tuple[float, float]) -> None:
    trace = routed(8, 3, 1, tokens=60)
    problem = travelling(
        "chain", trace, 8, 4, slots, 0.7, gpus_per_node=2, intra_node_cost=costs[0], inter_node_cost=costs[1]
    )
    outcome = run(problem, "local-search", work_limit=300)
    assert outcome.plan is not None
    assert outcome.objective is not None
    term = outcome.objective.parts["communication"]
    assert term == pytest.approx(0.7 * travel(outcome.plan.array, trace, 4, 2, *costs), abs=1e-9)
    assert outcome.objective.total == pytest.approx(sum(outcome.objective.parts.values()))


@pytest.mark.parametrize("costs", [(1.0, 9.0), (0.0, 1.0), (2.0, 2.0), (1.0, 0.5)])
def test_the_fanout_term_is_what_tokens_touch(costs: tuple[float, float]) -> None:
    trace = routed(8, 2, 3, tokens=40)
    problem = travelling(
        "fanout", trace, 8, 4, 8, 0.7, gpus_per_node=2, intra_node_cost=costs[0], inter_node_cost=costs[1]
    )
    outcome = run(problem, "local-search", work_limit=2_000)
    assert outcome.plan is not None
    assert outcome.objective is not None
    term = outcome.objective.parts["communication"]
    assert term == pytest.approx(0.7 * spread(outcome.plan.array, trace, 4, 2, *costs), abs=1e-9)


@pytest.mark.parametrize("model", ["chain", "fanout"])
def test_more_weight_never_buys_more_travel_on_a_clear_case(model: Any) -> None:
    """Tokens of two disjoint halves of the experts: with weight, the halves settle and travel falls."""
    rng = np.random.default_rng(0)
    half = rng.integers(2, size=400)
    experts = np.stack([np.stack([rng.permutation(4)[:2] + 4 * h for _ in range(2)]) for h in half])
    trace = RoutingTrace(experts=experts)
    cost = []
    for weight in (0.0, 5.0):
        problem = travelling(model, trace, 8, 2, 8, weight, gpus_per_node=1)
        outcome = run(problem, "local-search", work_limit=4_000)
        assert outcome.plan is not None
        cost.append(float(communication(problem, outcome.plan.array).sum()))
    assert cost[1] <= cost[0] + 1e-9
    if model == "chain":
        assert cost[1] == pytest.approx(0.0, abs=1e-12)
    else:
        assert cost[1] == pytest.approx(2 * 0.5 * 9)


def test_relabelled_gpus_and_nodes_cost_the_same() -> None:
    rng = np.random.default_rng(0)
    rows = random_placement(rng, 3, 8, 4, 3)
    other = rows.reshape(3, 4, 3)[:, [3, 2, 0, 1]].reshape(3, 12)
    for model in ("chain", "fanout"):
        problem = travelling(model, routed(8, 3, 2), 8, 4, 12, gpus_per_node=2)  # type: ignore[arg-type]
        one, two = (objective(problem, problem.placement(r)).total for r in (rows, other))
        assert one == pytest.approx(two, rel=1e-12)


def test_one_gpu_and_one_layer_travel_nowhere() -> None:
    for model in ("chain", "fanout"):
        for trace, gpus in ((routed(4, 2, 2), 1), (routed(4, 1, 2), 2)):
            problem = travelling(model, trace, 4, gpus, 4)  # type: ignore[arg-type]
            outcome = run(problem, "local-search", work_limit=100)
            assert outcome.objective is not None
            if gpus == 1 or model == "chain":
                assert outcome.objective.parts["communication"] == 0.0
