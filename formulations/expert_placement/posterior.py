"""A few thousand tokens of a new workload, combined with the scenarios already known.

For each layer: m is the mixture of the scenarios that is nearest to the sample (non-negative least squares, weighted by
1 / share); the sample is then added to a Dirichlet prior around m whose strength tau matches how far the sample lies
from m beyond its own noise:

    tau = (E - 1) / (chi2(sample, m) - (E - 1) / n)        n tokens x k selections in the sample
    posterior = (counts + tau m) / (n + tau)

A sample that the mixture explains within its noise gives a strong prior, one that it does not gives a weak one.
"""

from __future__ import annotations

import numpy as np

from planner.workload import FloatArray

#: Below this many tokens the posterior is too noisy to plan on alone: with the old scenarios at half the weight, plans
#: for 1,024 and 4,096 tokens of a held-out DeepSeek-V3 cluster were 0.2 to 0.8 points more even (benchmarks.experts).
FEW_TOKENS = 10_000
#: Regularises the weights 1 / share of experts that the sample did not see.
SHARE_FLOOR = 1e-4


def posterior(load: FloatArray, counts: FloatArray) -> FloatArray:
    """Expected shares of the new workload, [L, E]; load [K, L, E] scenarios, counts [L, E] selections seen.

    A layer without any sample keeps the mean of the scenarios.
    """
    from scipy.optimize import nnls

    num_layers, num_experts = counts.shape
    shares = load / np.maximum(load.sum(axis=2, keepdims=True), 1e-300)
    result = np.empty((num_layers, num_experts))
    for layer in range(num_layers):
        seen = counts[layer].sum()
        if seen == 0:
            result[layer] = shares[:, layer].mean(axis=0)
            continue
        sample = counts[layer] / seen
        root = 1.0 / np.sqrt(sample + SHARE_FLOOR)
        mix, _ = nnls((shares[:, layer] * root).T, sample * root)
        mixture = mix @ shares[:, layer]
        if mixture.sum() <= 0:
            result[layer] = sample
            continue
        mixture = mixture / mixture.sum()
        floor = np.maximum(mixture, 1e-12)
        distance = float(((sample - mixture) ** 2 / floor).sum())
        strength = (num_experts - 1) / max(distance - (num_experts - 1) / seen, 1e-6)
        result[layer] = (counts[layer] + strength * mixture) / (seen + strength)
    return result


def scenarios_with_sample(
    load: FloatArray, weight: FloatArray, counts: FloatArray, num_tokens: float
) -> tuple[FloatArray, FloatArray]:
    """Scenarios and weights to plan for, given a sample of `num_tokens` tokens.

    With enough tokens only the posterior; with few, the old scenarios keep half of the weight.
    """
    scale = load.sum(axis=2).mean(axis=0)
    fresh = (posterior(load, counts) * scale[:, None])[None]
    if num_tokens >= FEW_TOKENS:
        return fresh, np.ones(1)
    return np.concatenate([fresh, load]), np.concatenate([[0.5], 0.5 * weight / weight.sum()])
