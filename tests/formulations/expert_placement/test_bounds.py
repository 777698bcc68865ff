"""No bound is above the best of all placements, for every family of bounds; and they are tight where they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from placement_cases import brute_force, counts, instance, run
from small_cases import routed, travelling

from formulations.expert_placement.bounds import communication_bound, load_bound, lower_bound, pairing_bound
from formulations.expert_placement.check import communication
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Budget
from planner.workload import RoutingTrace

SEEDS = range(6)


def loads(seed: int, **keywords: Any) -> ExpertPlacementProblem:
    experts, gpus, slots = [(4, 2, 6), (5, 3, 6), (4, 3, 6), (3, 3, 6), (5, 2, 6), (4, 4, 4)][seed % 6]
    return instance(counts(1, 1, experts, seed=seed) ** 2, gpus, slots, **keywords)


def chain(seed: int, **keywords: Any) -> ExpertPlacementProblem:
    return travelling("chain", routed(4, 2, 1, seed=seed), 4, 2, 4 + 2 * (seed % 2), 0.1 + seed, **keywords)


def fan(seed: int, top_k: int = 3, **keywords: Any) -> ExpertPlacementProblem:
    return travelling("fanout", routed(4, 1, top_k, seed=seed, tokens=40), 4, 2, 4 + 2 * (seed % 2), **keywords)


FAMILIES: dict[str, Callable[[int], ExpertPlacementProblem]] = {
    "mean and hottest replica": loads,
    "lp split": lambda seed: loads(seed, split="lp"),
    "unequal speeds": lambda seed: loads(seed, speed=np.random.default_rng(seed).random(loads(seed).num_gpus) + 0.2),
    "several scenarios": lambda seed: instance(counts(3, 1, 4, seed=seed), 2, 6, weight=np.array([1.0, 2.0, 0.5])),
    "group on one node": lambda seed: instance(
        counts(1, 4, seed=seed), 4, 8, gpus_per_node=2, num_groups=2, group_spread=1
    ),
    "more groups than nodes": lambda seed: instance(
        counts(1, 3, seed=seed) ** 2, 4, 4, gpus_per_node=2, num_groups=3, group_spread=1
    ),
    "group on two of three nodes": lambda seed: instance(
        counts(1, 4, seed=seed), 3, 6, gpus_per_node=1, num_groups=2, group_spread=2
    ),
    "chain": chain,
    "chain over nodes": lambda seed: chain(seed, gpus_per_node=1),
    "chain, free inside a node": lambda seed: chain(seed, intra_node_cost=0.0, inter_node_cost=1.0),
    "fan-out": fan,
    "fan-out over nodes": lambda seed: fan(seed, 4, gpus_per_node=1),
    "fan-out, free inside a node": lambda seed: fan(seed, 4, gpus_per_node=1, intra_node_cost=0.0, inter_node_cost=1.0),
    "fan-out, network cheaper than the node": lambda seed: fan(
        seed, 4, gpus_per_node=1, intra_node_cost=1.0, inter_node_cost=0.25
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_placement_is_better_than_the_bound(family: str) -> None:
    for seed in SEEDS:
        problem = FAMILIES[family](seed)
        best = brute_force(problem)
        assert np.isfinite(best)
        assert lower_bound(problem).value <= best * (1 + 1e-8), seed


@pytest.mark.parametrize("seed", range(8))
def test_pairing_bound_lies_between_the_simple_bound_and_the_optimum(seed: int) -> None:
    experts, gpus = [(3, 3), (4, 3), (5, 3), (5, 4)][seed % 4]
    problem = instance(counts(1, experts, seed=seed) ** 2, gpus, 2 * gpus)
    best = brute_force(problem)
    low = float(load_bound(problem)[0][0, 0])
    found = pairing_bound(problem.load[0, 0], problem.num_slots, low, best * 1.2, Budget(20.0))
    assert low <= found <= best * (1 + 1e-6)


def test_pairing_bound_by_hand() -> None:
    """Loads 4, 4, 4 on two GPUs of two slots: one expert has two replicas of 2, so the sizes are 2, 2, 4, 4.

    Best pairing 4 + 2 on both GPUs: 6, which is the mean as well. Loads 9, 1, 1, 1 on two GPUs: no spare slot, 9 + 1 =
    10, while the mean is 6 and the hottest replica 9. Each replica above T / 2 needs a partner of at most T - size.
    """
    even = pairing_bound(np.array([4.0, 4.0, 4.0]), 4, 6.0, 7.0, Budget(20.0))
    assert 6.0 <= even <= 6.0 * (1 + 1e-6)
    steep = pairing_bound(np.array([9.0, 1.0, 1.0, 1.0]), 4, 9.0, 10.0, Budget(20.0))
    assert 10.0 * (1 - 2e-3) <= steep <= 10.0 * (1 + 1e-6)


def test_hottest_replica_by_hand() -> None:
    """Loads 12, 2, 2 on four GPUs of one slot: 12 gets the spare replica, 6 each; the mean is 4."""
    bound, names = load_bound(instance(np.array([[12.0, 2.0, 2.0]]) / 4, 4, 4))
    assert bound[0, 0] == pytest.approx(6.0 / 4)
    assert "hottest replica" in names


def test_group_bound_by_hand() -> None:
    """Groups of 6, 4 and 4 on two nodes of two GPUs, whose mean GPU has 14 / 4: two groups share a node.

    Those two bring at least 8 to its two GPUs: 4 / (14 / 4) = 8 / 7.
    """
    load = np.array([[3.0, 3.0, 2.0, 2.0, 2.0, 2.0]])
    bound, names = load_bound(instance(load, 4, 8, gpus_per_node=2, num_groups=3, group_spread=1))
    assert bound[0, 0] == pytest.approx(8 / 7)
    assert names == ["group spread"]


def test_chain_bound_by_hand() -> None:
    """Two GPUs of two slots, seven tokens: expert 0 goes to 0, 1, 2 and 3, the others to themselves.

    A GPU holds two of expert 0's four next experts, so two of the seven tokens cross; weight 2.
    """
    tokens = [[[0], [target]] for target in range(4)] + [[[expert], [expert]] for expert in range(1, 4)]
    problem = travelling("chain", RoutingTrace(experts=np.array(tokens)), 4, 2, 4, 2.0)
    assert communication_bound(problem) == pytest.approx(2.0 * 2 / 7)


def test_fanout_bound_by_hand() -> None:
    """Four experts of a token fill two GPUs of two slots; one of them is remote for any home: cost 1, weight 0.5."""
    problem = fan(0, 4)
    assert communication_bound(problem) == pytest.approx(0.5)
    rows = np.array([[0, 1, 2, 3]])
    assert 0.5 * communication(problem, rows).sum() == pytest.approx(0.5)


@pytest.mark.parametrize("method", ["local-search", "eplb"])
def test_every_outcome_carries_its_bound(method: str) -> None:
    limits = {} if method == "eplb" else {"work_limit": 200}
    for problem in (loads(1), chain(2), fan(0), instance(np.ones((2, 4)), 2, 4)):
        outcome = run(problem, method, **limits)
        assert outcome.bound is not None
        assert outcome.objective is not None
        assert outcome.bound.value <= outcome.objective.total * (1 + 1e-6)
        assert outcome.bound.name
