"""The workers of each role that no other one beats in rate a GPU, latency and size together."""

from __future__ import annotations

import numpy as np

from formulations.parallelism.problem import BoolArray, FloatArray, ParallelProblem
from planner.parallel_plan import ParetoWorkers

#: Workers that are told.
MOST_TOLD = 40


def undominated(rate_per_gpu: FloatArray, ttft: FloatArray, tpot: FloatArray, size: FloatArray) -> BoolArray:
    """Rows that none beats in all four (more rate, less of the rest); equal rows: the first stays. All [n]."""
    return least(np.stack([-rate_per_gpu, ttft, tpot, size], axis=1))


def least(columns: FloatArray) -> BoolArray:
    """Rows [n, k] to which no other one is as low in all columns; of equal rows the first."""
    order = np.lexsort(columns.T[::-1])
    kept = np.ones(len(columns), dtype=np.bool_)
    ordered = columns[order]
    for place in range(len(ordered)):
        if kept[order[place]]:
            beaten = (ordered[place] <= ordered[place + 1 :]).all(axis=1)
            kept[order[place + 1 :][beaten]] = False
    return kept


def frontier(problem: ParallelProblem) -> tuple[ParetoWorkers, ...]:
    """The frontier of every role among workers that keep the limits, most rate a GPU first."""
    told = []
    for role in np.unique(problem.role):
        own = np.flatnonzero(problem.usable & (problem.role == role) & (problem.rate > 0))
        if not own.size:
            continue
        workers = [problem.workers[w] for w in own.tolist()]
        ttft = np.array([0.0 if one.ttft_s is None else one.ttft_s for one in workers])
        tpot = np.array([0.0 if one.tpot_s is None else one.tpot_s for one in workers])
        per_gpu = problem.rate[own] / problem.gpus[own]
        kept = np.flatnonzero(undominated(per_gpu, ttft, tpot, problem.gpus[own].astype(np.float64)))
        for place in kept[np.argsort(-per_gpu[kept])][:MOST_TOLD].tolist():
            one = workers[place]
            told.append(
                ParetoWorkers(
                    name=one.name,
                    role=one.role,
                    num_gpus=one.num_gpus,
                    requests_per_s_per_gpu=float(per_gpu[place]),
                    ttft_s=one.ttft_s,
                    tpot_s=one.tpot_s,
                )
            )
    return tuple(told)
