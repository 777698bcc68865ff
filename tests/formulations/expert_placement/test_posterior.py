"""A small sample of a new workload, combined with the workloads already known."""

from __future__ import annotations

import numpy as np
import pytest

from formulations.expert_placement.posterior import FEW_TOKENS, posterior, scenarios_with_sample


def shares(rng: np.random.Generator, *shape: int) -> np.ndarray:
    load = rng.lognormal(0, 1, shape)
    return load / load.sum(axis=-1, keepdims=True)


def off(one: np.ndarray, two: np.ndarray) -> float:
    """Total variation, mean over layers."""
    return float(0.5 * np.abs(one - two).sum(axis=1).mean())


@pytest.mark.parametrize("seed", range(4))
def test_many_samples_are_believed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known, truth = shares(rng, 3, 2, 32), shares(rng, 2, 32)
    counts = np.stack([rng.multinomial(2_000_000, row) for row in truth]).astype(float)
    found = posterior(known, counts)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert off(found, truth) < 0.005


@pytest.mark.parametrize("seed", range(4))
def test_a_small_sample_of_a_known_workload_leans_on_it(seed: int) -> None:
    """600 selections over 32 experts are noisy; the mixture that explains them is nearly the truth."""
    rng = np.random.default_rng(seed)
    known = shares(rng, 3, 2, 32)
    counts = np.stack([rng.multinomial(600, row) for row in known[1]]).astype(float)
    sample = counts / counts.sum(axis=1, keepdims=True)
    assert off(posterior(known, counts), known[1]) < 0.6 * off(sample, known[1])


@pytest.mark.parametrize("seed", range(4))
def test_mixtures_of_known_workloads_are_recognised(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = shares(rng, 3, 2, 32)
    truth = 0.5 * known[0] + 0.5 * known[2]
    counts = np.stack([rng.multinomial(800, row) for row in truth]).astype(float)
    sample = counts / counts.sum(axis=1, keepdims=True)
    assert off(posterior(known, counts), truth) < 0.8 * off(sample, truth)


def test_it_is_never_much_worse_than_the_sample_alone() -> None:
    """Whatever the truth, on average over draws."""
    rng = np.random.default_rng(0)
    gain = []
    for _ in range(20):
        known, truth = shares(rng, 3, 1, 32), shares(rng, 1, 32)
        counts = rng.multinomial(500, truth[0])[None].astype(float)
        gain.append(off(posterior(known, counts), truth) / off(counts / 500, truth))
    assert np.mean(gain) < 1.05


def test_a_layer_without_a_sample_keeps_the_mean() -> None:
    known = shares(np.random.default_rng(0), 2, 2, 8)
    counts = np.zeros((2, 8))
    counts[0] = 100.0
    np.testing.assert_allclose(posterior(known, counts)[1], known[:, 1].mean(axis=0))


def test_unseen_experts_and_single_scenarios_are_no_obstacle() -> None:
    known = shares(np.random.default_rng(0), 1, 1, 8)
    counts = np.zeros((1, 8))
    counts[0, 3] = 5.0
    found = posterior(known, counts)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert found[0, 3] > known[0, 0, 3]
    nowhere = np.zeros((1, 1, 8))
    assert posterior(nowhere, counts)[0, 3] == pytest.approx(1.0)


def test_few_tokens_keep_half_of_the_old_scenarios() -> None:
    known = shares(np.random.default_rng(0), 2, 1, 8) * 4
    counts = np.full((1, 8), 10.0)
    load, weight = scenarios_with_sample(known, np.array([0.25, 0.75]), counts, FEW_TOKENS - 1)
    assert weight.tolist() == [0.5, 0.125, 0.375]
    np.testing.assert_allclose(load[1:], known)
    np.testing.assert_allclose(load.sum(axis=2), 4.0)
    load, weight = scenarios_with_sample(known, np.array([0.25, 0.75]), counts, FEW_TOKENS)
    assert weight.tolist() == [1.0]
    assert load.shape == (1, 1, 8)
