"""The per-batch LP split against scipy's HiGHS, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from planner.cost.lp_split import LP_TOLERANCE, lp_gpu_load, replica_table


def exact(load: np.ndarray, row: np.ndarray, speed: np.ndarray) -> float:
    """Least time of the hottest GPU for one layer and scenario, by an LP solver."""
    num_gpus = speed.size
    per_gpu = row.size // num_gpus
    pairs = sorted({(int(expert), slot // per_gpu) for slot, expert in enumerate(row)})
    equality, upper = np.zeros((load.size, len(pairs) + 1)), np.zeros((num_gpus, len(pairs) + 1))
    for column, (expert, gpu) in enumerate(pairs):
        equality[expert, column] = 1.0
        upper[gpu, column] = 1.0
    upper[:, -1] = -speed
    price = np.zeros(len(pairs) + 1)
    price[-1] = 1.0
    result = linprog(price, A_ub=upper, b_ub=np.zeros(num_gpus), A_eq=equality, b_eq=load, method="highs")
    assert result.status == 0
    return float(result.fun)


def random_rows(rng: np.random.Generator, layers: int, experts: int, slots: int) -> np.ndarray:
    """Placements in which every expert occurs; an expert may lie on a GPU twice."""
    spare = rng.integers(experts, size=(layers, slots - experts))
    rows = np.concatenate([np.tile(np.arange(experts), (layers, 1)), spare], axis=1)
    return rng.permuted(rows, axis=1)


@pytest.mark.parametrize("seed", range(30))
def test_random_cases_reach_the_solver_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gpus, per_gpu = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    slots = gpus * per_gpu
    experts = int(rng.integers(max(1, slots // 3), slots + 1))
    layers, scenarios = 2, 2
    load = rng.lognormal(0, 1.5, (scenarios, layers, experts)) * (rng.random((scenarios, layers, experts)) > 0.2)
    load[:, :, 0] += 0.1
    speed = rng.choice([1.0, 0.5, 1.7], size=gpus) if seed % 2 else np.ones(gpus)
    rows = random_rows(rng, layers, experts, slots)
    level, bound = lp_gpu_load(load, rows, speed)
    assert (level >= -1e-12).all()
    np.testing.assert_allclose(level.sum(axis=2), load.sum(axis=2), rtol=1e-9)
    time = (level / speed).max(axis=2)
    assert (bound <= time * (1 + 1e-12)).all()
    for scenario in range(scenarios):
        for layer in range(layers):
            best = exact(load[scenario, layer], rows[layer], speed)
            assert time[scenario, layer] == pytest.approx(best, rel=10 * LP_TOLERANCE)
            assert bound[scenario, layer] <= best * (1 + 1e-7)
            assert bound[scenario, layer] >= best * (1 - 10 * LP_TOLERANCE)


def test_one_expert_on_two_gpus_levels_them_by_hand() -> None:
    """Loads a 6, b 1, c 1; GPU 0 holds a and b, GPU 1 holds a and c.

    Equal speeds: 8 / 2 = 4 each. Speeds 1 and 3: level 8 / 4 = 2, so GPU 0 takes 2 (b and 1 of a), GPU 1 takes 6.
    """
    rows, load = np.array([[0, 1, 0, 2]]), np.array([[[6.0, 1.0, 1.0]]])
    np.testing.assert_allclose(lp_gpu_load(load, rows, np.ones(2))[0][0, 0], [4.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(lp_gpu_load(load, rows, np.array([1.0, 3.0]))[0][0, 0], [2.0, 6.0], rtol=1e-6)


def test_a_replica_that_cannot_help_takes_nothing() -> None:
    """a 1 lies on both GPUs, b 9 only on GPU 1: all of a stays on GPU 0, and the bound is b's 9."""
    level, bound = lp_gpu_load(np.array([[[1.0, 9.0, 0.0]]]), np.array([[0, 2, 0, 1]]), np.ones(2))
    np.testing.assert_allclose(level[0, 0], [1.0, 9.0], rtol=1e-6)
    assert bound[0, 0] == pytest.approx(9.0)


def test_two_replicas_on_one_gpu_are_one_choice() -> None:
    """a lies twice on GPU 0 and once on GPU 1, b once on GPU 1; a 4, b 2: 3 each, as without the duplicate."""
    gpus, count = replica_table(np.array([[0, 0, 0, 1]]), 2, 2)
    assert count.tolist() == [[2, 1]]
    assert gpus.tolist() == [[[0, 1], [1, -1]]]
    level, bound = lp_gpu_load(np.array([[[4.0, 2.0]]]), np.array([[0, 0, 0, 1]]), np.ones(2))
    np.testing.assert_allclose(level[0, 0], [3.0, 3.0], rtol=1e-6)
    assert bound[0, 0] == pytest.approx(3.0, rel=1e-5)


def test_without_replicas_there_is_nothing_to_split() -> None:
    """GPU 0 holds 1 + 2, GPU 1 holds 3 + 4."""
    level, bound = lp_gpu_load(np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[0, 1, 2, 3]]), np.ones(2))
    assert level.tolist() == [[[3.0, 7.0]]]
    assert bound.tolist() == [[7.0]]


def test_a_layer_without_load_is_level_zero() -> None:
    level, bound = lp_gpu_load(np.zeros((1, 1, 3)), np.array([[0, 1, 0, 2]]), np.ones(2))
    assert level.tolist() == [[[0.0, 0.0]]]
    assert bound.tolist() == [[0.0]]


def test_a_long_chain_of_two_replica_experts_converges() -> None:
    """32 GPUs in a path, expert i on GPUs i and i + 1, one end hot: the worst case for sweeps, still exact."""
    gpus = 32
    rows = np.empty((1, 2 * gpus), dtype=np.int64)
    rows[0, 0] = gpus
    rows[0, 1::2] = np.arange(gpus)
    rows[0, 2::2] = np.arange(gpus - 1)
    load = np.ones((1, 1, gpus + 1))
    load[0, 0, 0] = 20.0
    level, bound = lp_gpu_load(load, rows, np.ones(gpus))
    best = exact(load[0, 0], rows[0], np.ones(gpus))
    assert level[0, 0].max() == pytest.approx(best, rel=1e-4)
    assert bound[0, 0] <= best * (1 + 1e-9)
