"""GPU loads, balancedness and the two communication models, by hand and by enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

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
from planner.topology import hop_costs
from planner.workload import RoutingTrace

#: Two nodes of two GPUs, two slots each, six experts; 0 and 1 have two replicas.
ROWS = np.array([[0, 1, 2, 3, 0, 4, 1, 5]])


def trace(*tokens: list[list[int]]) -> RoutingTrace:
    return RoutingTrace(experts=np.array(tokens))


def random_rows(rng: np.random.Generator, layers: int, experts: int, gpus: int, per_gpu: int) -> np.ndarray:
    """Valid placements, drawn until every expert occurs."""
    rows = []
    while len(rows) < layers:
        row = np.concatenate([rng.choice(experts, per_gpu, replace=False) for _ in range(gpus)])
        if np.unique(row).size == experts:
            rows.append(row)
    return np.array(rows)


def random_trace(rng: np.random.Generator, tokens: int, layers: int, experts: int, top_k: int) -> RoutingTrace:
    ids = np.array([[rng.permutation(experts)[:top_k] for _ in range(layers)] for _ in range(tokens)])
    return RoutingTrace(experts=ids)


def test_even_split_by_hand() -> None:
    """Loads 8, 4, 3, 2, 1, 6: expert 0 gives 4 to GPUs 0 and 2, expert 1 gives 2 to GPUs 0 and 3.

    GPU 0: 4 + 2 = 6; GPU 1: 3 + 2 = 5; GPU 2: 4 + 1 = 5; GPU 3: 2 + 6 = 8. Mean 24 / 4 = 6, hottest 8: 0.75.
    """
    load = np.array([[[8.0, 4.0, 3.0, 2.0, 1.0, 6.0]]])
    level = gpu_load(load, ROWS, np.ones(4), "even")
    assert level.tolist() == [[[6.0, 5.0, 5.0, 8.0]]]
    assert hottest(level, np.ones(4)).tolist() == [[8.0]]
    assert balancedness(level, np.ones(4)).tolist() == [[0.75]]


def test_unequal_speeds_by_hand() -> None:
    """The same with GPU 3 twice as fast: times 6, 5, 5, 4; mean time 24 / 5 = 4.8; 4.8 / 6 = 0.8."""
    load = np.array([[[8.0, 4.0, 3.0, 2.0, 1.0, 6.0]]])
    speed = np.array([1.0, 1.0, 1.0, 2.0])
    level = gpu_load(load, ROWS, speed, "even")
    assert hottest(level, speed).tolist() == [[6.0]]
    assert balancedness(level, speed)[0, 0] == pytest.approx(0.8)


def test_lp_split_is_never_slower_and_keeps_every_token() -> None:
    rng = np.random.default_rng(3)
    rows = random_rows(rng, 3, 6, 4, 3)
    load = rng.lognormal(0, 1, (2, 3, 6))
    even, best = (gpu_load(load, rows, np.ones(4), split) for split in ("even", "lp"))
    assert (hottest(best, np.ones(4)) <= hottest(even, np.ones(4)) + 1e-9).all()
    np.testing.assert_allclose(best.sum(axis=2), load.sum(axis=2))
    np.testing.assert_allclose(even.sum(axis=2), load.sum(axis=2))


def test_a_layer_without_load_is_balanced() -> None:
    assert balancedness(np.zeros((1, 1, 4)), np.ones(4)).tolist() == [[1.0]]


def test_membership_and_moves_by_hand() -> None:
    """GPU 0 gains expert 4 and loses 1; GPU 2 gains 1 and loses 4: two loads. Order inside a GPU is no move."""
    assert membership(ROWS, 6, 4)[0, 0].tolist() == [1, 0, 1, 0]
    new = np.array([[4, 0, 3, 2, 1, 0, 5, 1]])
    assert moved_replicas(new, ROWS, 6, 4).tolist() == [2]
    assert moved_replicas(ROWS[:, [1, 0, 3, 2, 5, 4, 7, 6]], ROWS, 6, 4).tolist() == [0]


def test_the_nearest_replica_serves_by_hand() -> None:
    """One slot a GPU, two nodes of two GPUs. Layer 0: experts 0 1 2 3. Layer 1: 0 0 1 2 (expert 0 twice), 3 absent.

    Token 0 -> 0: on GPU 0, stays. Token 1 -> 0: on GPU 1, stays. Token 2 -> 0: from GPU 2, no replica in its node,
    so it goes to GPU 0 or 1 and changes node. Token 3 -> 1: from GPU 3 to GPU 2, inside the node.
    Crossings: 2 of 4 change GPU, 1 of 4 changes node. Load of layer 1: GPUs 0 and 1 have 1.5 each, 2 has 1, 3 none.
    """
    rows = np.array([[0, 1, 2, 3], [0, 0, 1, 2]])
    tokens = trace([[0], [0]], [[1], [0]], [[2], [0]], [[3], [1]])
    crossed, crossed_node, load = simulate_chain(rows, tokens, 4, 4, 2)
    assert crossed.tolist() == [0.5]
    assert crossed_node.tolist() == [0.25]
    assert load.tolist() == [[1, 1, 1, 1], [1.5, 1.5, 1.0, 0.0]]


def test_chain_cost_by_hand() -> None:
    """Two nodes of one GPU, hop cost 9. Layer 0: 0 1 3 | 0 2 3. Layer 1: 0 1 3 | 0 2 3.

    0 -> 0 and 2 -> 0 stay; 1 -> 2 crosses; 3 -> 1 crosses from one of expert 3's two places: (9 + 9 / 2) / 4 = 3.375.
    """
    rows = np.array([[0, 1, 3, 0, 2, 3], [0, 1, 3, 0, 2, 3]])
    tokens = trace([[0], [0]], [[2], [0]], [[1], [2]], [[3], [1]])
    cost, _, _ = hop_costs(2, 1)
    assert chain_cost(rows, tokens.transitions(4), cost)[0] == pytest.approx(3.375)


@pytest.mark.parametrize("seed", range(8))
def test_without_replicas_the_simulation_is_the_chain_cost(seed: int) -> None:
    """Cost of a transition = fraction inside a node x intra + fraction between nodes x inter."""
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(8) for _ in range(3)])
    tokens = random_trace(rng, 60, 3, 8, 1)
    cost, intra, inter = hop_costs(4, 2, 1.0, 7.0)
    crossed, crossed_node, load = simulate_chain(rows, tokens, 8, 4, 2)
    expected = intra * (crossed - crossed_node) + inter * crossed_node
    np.testing.assert_allclose(chain_cost(rows, tokens.transitions(8), cost), expected, atol=1e-12)
    np.testing.assert_allclose(load.sum(axis=1), 60)
    by_gpu = gpu_load(tokens.counts(8)[None], rows, np.ones(4), "even")[0]
    np.testing.assert_allclose(load, by_gpu)


def walk(rows: np.ndarray, experts: list[int], per_gpu: int, per_node: int) -> dict[tuple[int, ...], float]:
    """Every way of one token through the layers under own-GPU, own-node, any, with its chance."""
    ways: dict[tuple[int, ...], float] = {(): 1.0}
    for layer, expert in enumerate(experts):
        fresh: dict[tuple[int, ...], float] = {}
        for way, chance in ways.items():
            options = sorted({slot // per_gpu for slot in np.flatnonzero(rows[layer] == expert)})
            if way:
                here = way[-1]
                near = [gpu for gpu in options if gpu // per_node == here // per_node]
                options = [here] if here in options else near or options
            for gpu in options:
                fresh[(*way, gpu)] = fresh.get((*way, gpu), 0.0) + chance / len(options)
        ways = fresh
    return ways


@pytest.mark.parametrize("seed", range(6))
def test_the_simulation_equals_the_enumeration_of_all_ways(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 3, 5, 4, 2)
    tokens = random_trace(rng, 12, 3, 5, 1)
    crossed, crossed_node, load = simulate_chain(rows, tokens, 5, 4, 2)
    expected, expected_node, expected_load = np.zeros(2), np.zeros(2), np.zeros((3, 4))
    for token in tokens.experts[:, :, 0]:
        for way, chance in walk(rows, token.tolist(), 2, 2).items():
            gpus = np.array(way)
            expected += chance * (gpus[1:] != gpus[:-1]) / 12
            expected_node += chance * (gpus[1:] // 2 != gpus[:-1] // 2) / 12
            expected_load[np.arange(3), gpus] += chance
    np.testing.assert_allclose(crossed, expected, atol=1e-12)
    np.testing.assert_allclose(crossed_node, expected_node, atol=1e-12)
    np.testing.assert_allclose(load, expected_load, atol=1e-12)


def test_fan_out_by_hand() -> None:
    """Two nodes of one GPU, experts 0 and 1 on GPU 0, 2 and 3 on GPU 1.

    A token of experts 0 and 1 needs GPU 0: remote for half of the homes. A token of 0 and 2 needs both GPUs: one is
    always remote. Mean (0.5 + 1) / 2 = 0.75 remote GPUs, and as many nodes. At costs 1 and 9: 0.75 + 8 * 0.75 = 6.75.
    """
    rows, tokens = np.array([[0, 1, 2, 3]]), trace([[0, 1]], [[0, 2]])
    gpus, nodes = fanout(rows, tokens, 4, 2, 1)
    assert gpus.tolist() == [0.75]
    assert nodes.tolist() == [0.75]
    assert fanout_cost(gpus, nodes, 1.0, 9.0).tolist() == [6.75]


def enumerated_fanout(rows: np.ndarray, tokens: RoutingTrace, gpus: int, per_node: int) -> np.ndarray:
    """Mean remote GPUs and nodes over tokens, homes and every choice of replicas, [2, L]."""
    per_gpu = rows.shape[1] // gpus
    num_tokens, num_layers, _ = tokens.experts.shape
    total = np.zeros((2, num_layers))
    for token, layer, home in itertools.product(range(num_tokens), range(num_layers), range(gpus)):
        choices = []
        for expert in tokens.experts[token, layer]:
            if expert < 0:
                continue
            options = sorted({slot // per_gpu for slot in np.flatnonzero(rows[layer] == expert)})
            near = [gpu for gpu in options if gpu // per_node == home // per_node]
            choices.append([home] if home in options else near or options)
        ways = list(itertools.product(*choices))
        for way in ways:
            used = set(way) - {home}
            away = {gpu // per_node for gpu in way} - {home // per_node}
            total[0, layer] += len(used) / len(ways)
            total[1, layer] += len(away) / len(ways)
    return total / (num_tokens * gpus)


@pytest.mark.parametrize("seed", range(6))
def test_fan_out_equals_the_enumeration_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 2, 5, 4, 3)
    tokens = random_trace(rng, 8, 2, 5, 3)
    if seed % 2:
        ids = tokens.experts.copy()
        ids[::3, 0, 1] = -1
        tokens = RoutingTrace(experts=ids)
    found = np.stack(fanout(rows, tokens, 5, 4, 2))
    np.testing.assert_allclose(found, enumerated_fanout(rows, tokens, 4, 2), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_relabelling_gpus_inside_nodes_and_nodes_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 3, 6, 6, 2)
    tokens = random_trace(rng, 20, 3, 6, 2)
    order = (rng.permutation(3)[:, None] * 2 + np.stack([rng.permutation(2) for _ in range(3)])).ravel()
    other = rows.reshape(3, 6, 2)[:, order].reshape(3, 12)
    load = rng.random((2, 3, 6))
    cost, _, _ = hop_costs(6, 2)
    for split in ("even", "lp"):
        one, two = (hottest(gpu_load(load, r, np.ones(6), split), np.ones(6)) for r in (rows, other))
        np.testing.assert_allclose(one, two, rtol=2e-6)
    flow = tokens.transitions(6)
    np.testing.assert_allclose(chain_cost(rows, flow, cost), chain_cost(other, flow, cost))
    np.testing.assert_allclose(fanout(rows, tokens, 6, 6, 2), fanout(other, tokens, 6, 6, 2))
    for one, two in zip(
        simulate_chain(rows, tokens, 6, 6, 2)[:2], simulate_chain(other, tokens, 6, 6, 2)[:2], strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-12)


def test_one_layer_makes_no_transition() -> None:
    crossed, crossed_node, load = simulate_chain(ROWS, trace([[0]], [[5]]), 6, 4, 2)
    assert crossed.size == 0
    assert crossed_node.size == 0
    assert load.tolist() == [[0.5, 0.0, 0.5, 1.0]]


def test_incomplete_tokens_are_left_out_of_the_chain() -> None:
    rows = np.array([[0, 1], [0, 1]])
    crossed, _, load = simulate_chain(rows, trace([[0], [1]], [[0], [-1]]), 2, 2, 1)
    assert crossed.tolist() == [1.0]
    assert load.sum(axis=1).tolist() == [1.0, 1.0]
