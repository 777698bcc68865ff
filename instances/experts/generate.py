"""Write the data files of the instances in this folder: `python instances/experts/generate.py`.

Synthetic, with the traits of recorded DeepSeek-V3 counts that matter for placement: a heavy tail (hottest expert 5 to
10 times the mean), workloads that share most of it, and copies of a workload that differ by a few percent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NUM_DENSE, NUM_MOE, NUM_EXPERTS = 3, 58, 256  # layer counts of DeepSeek-V3
TOKENS = 200_000


def workloads(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Counts [61, 256] of four workloads that share two topics, with a drift of their own."""
    base = rng.normal(0, 0.75, (NUM_MOE, NUM_EXPERTS))
    topics = rng.normal(0, 0.25, (2, *base.shape))
    mixes = {"chat-morning": (1, 0), "chat-evening": (0.95, 0.05), "code": (0, 1), "translation": (0.6, 0.4)}
    result = {}
    for name, mix in mixes.items():
        share = np.exp(base + np.tensordot(mix, topics, axes=1) + rng.normal(0, 0.02, base.shape))
        share /= share.sum(axis=1, keepdims=True)
        counts = np.stack([rng.multinomial(TOKENS * 8, row) for row in share])
        result[name] = np.concatenate([np.zeros((NUM_DENSE, NUM_EXPERTS), dtype=np.int64), counts])
    return result


def planted_trace(rng: np.random.Generator) -> np.ndarray:
    """Top-2 trace uint8 [4000, 12, 2], 64 experts; tokens stay in one of 8 hidden groups 60 % of the time."""
    experts, layers, groups, tokens = 64, 12, 8, 4_000
    part = np.stack([rng.permutation(experts) for _ in range(layers)]).reshape(layers, groups, -1)
    trace = np.zeros((tokens, layers, 2), dtype=np.uint8)
    group = rng.integers(groups, size=tokens)
    for layer in range(layers):
        group = np.where(rng.random(tokens) < 0.6, group, rng.integers(groups, size=tokens))
        first = rng.integers(experts // groups, size=tokens)
        second = (first + 1 + rng.integers(experts // groups - 1, size=tokens)) % (experts // groups)
        trace[:, layer, 0] = part[layer][group, first]
        trace[:, layer, 1] = part[layer][group, second]
    return trace


def main() -> None:
    rng = np.random.default_rng(20_261_121)
    for name, counts in workloads(rng).items():
        np.save(HERE / f"{name}.npy", counts.astype(np.uint32))
    np.save(HERE / "planted_trace.npy", planted_trace(rng))


if __name__ == "__main__":
    main()
