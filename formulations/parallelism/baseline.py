"""The peers' rule (AIConfigurator): equal replicas of one mixed worker, or of x prefill and y decode workers.

Replica sizes are 1, 2, 4, 8, 16, 24, ... 128 GPUs, and a replica is repeated as often as it goes into the cluster.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from formulations.parallelism.check import fits
from formulations.parallelism.plans import period_of, plan_of, served_per_s
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, IntArray, ParallelProblem
from planner.parallel_plan import ParallelPlan, Period

#: GPUs of a disaggregated replica. Source: ai-dynamo/aiconfigurator, its replica sizes; documented.
REPLICA_GPUS = (1, 2, 4, 8, *range(16, 129, 8))
#: Workers of a side in a replica, at most. Source: as above (1 .. 32).
MOST_OF_A_SIDE = 32
#: Types of each side that are paired, best rate a GPU first. Source: as above (32 prefill, 16 decode).
MOST_TYPES = 32


def best_uniform(problem: ParallelProblem) -> ParallelPlan | None:
    """The best of these on one device kind, for the problem's goal; None where none serves the rate or fits."""
    best: tuple[float, IntArray] | None = None
    for counts in (*_aggregated(problem), *_disaggregated(problem)):
        rate = served_per_s(problem, counts)
        if rate <= 0 or (problem.target_per_s is not None and rate < problem.target_per_s):
            continue
        worth = -rate if problem.goal == "throughput" else float(counts @ problem.weight())
        if (best is None or worth < best[0]) and _allowed(problem, counts):
            best = worth, counts
    if best is None:
        return None
    return plan_of(problem, best[1]).model_copy(update={"periods": _throughout(problem, best[1])})


def _throughout(problem: ParallelProblem, counts: IntArray) -> tuple[Period, ...]:
    """The same workers in all hours; none where the demand is not by the hour."""
    rates = [] if problem.hourly is None else problem.hourly.tolist()
    return tuple(
        period_of(problem, tuple(hour for hour, each in enumerate(rates) if each == rate), rate, counts, None)
        for rate in sorted(set(rates))
    )


def _allowed(problem: ParallelProblem, counts: IntArray) -> bool:
    """No more workers than may be, and all of them fit onto the nodes: the rule itself knows of neither."""
    if problem.max_workers is not None and counts.sum() > problem.max_workers:
        return False
    used = np.flatnonzero(counts).tolist()
    for device in {int(problem.device[w]) for w in used}:
        sizes = Counter[int]()
        for w in used:
            if problem.device[w] == device:
                sizes[int(problem.gpus[w])] += int(counts[w])
        if not fits(sizes, int(problem.node_gpus[device]), int(problem.nodes[device])):
            return False
    return True


def _aggregated(problem: ParallelProblem) -> list[IntArray]:
    found = []
    for w in np.flatnonzero(problem.usable & (problem.role == BOTH) & (problem.rate > 0)).tolist():
        most = _alone(problem, w)
        wanted = most
        if problem.target_per_s is not None:
            wanted = int(np.ceil(problem.target_per_s / problem.rate[w] - 1e-9))
        if 0 < wanted <= most:
            counts = np.zeros(len(problem.workers), dtype=np.int64)
            counts[w] = wanted
            found.append(counts)
    return found


def _alone(problem: ParallelProblem, w: int) -> int:
    """Workers of one type that fit into the cluster by themselves."""
    node, nodes, size = problem.node_gpus[problem.device[w]], problem.nodes[problem.device[w]], problem.gpus[w]
    return int(nodes * (node // size) if size <= node else nodes // -(-size // node))


def _disaggregated(problem: ParallelProblem) -> list[IntArray]:
    """The best replica of every size for every pair of types, repeated."""
    found = []
    for device in range(len(problem.device_names)):
        total = int(problem.nodes[device] * problem.node_gpus[device])
        prefill, decode = (_best_types(problem, device, role) for role in (PREFILL, DECODE))
        side = np.arange(1, MOST_OF_A_SIDE + 1)
        x, y = np.meshgrid(side, side, indexing="ij")
        for p in prefill:
            for d in decode:
                gpus = x * problem.gpus[p] + y * problem.gpus[d]
                rate = np.minimum(x * problem.rate[p], y * problem.rate[d])
                for size in REPLICA_GPUS:
                    repeats = total // size
                    fits = gpus <= size
                    if not repeats or not fits.any():
                        continue
                    place = int(np.where(fits, rate, -1.0).argmax())
                    times = repeats
                    if problem.target_per_s is not None:
                        times = int(np.ceil(problem.target_per_s / rate.flat[place] - 1e-9))
                    if times <= repeats:
                        counts = np.zeros(len(problem.workers), dtype=np.int64)
                        counts[p], counts[d] = x.flat[place] * times, y.flat[place] * times
                        found.append(counts)
    return found


def _best_types(problem: ParallelProblem, device: int, role: int) -> list[int]:
    own = np.flatnonzero(problem.usable & (problem.role == role) & (problem.device == device) & (problem.rate > 0))
    order = np.argsort(-(problem.rate[own] / problem.gpus[own]), kind="stable")
    return [int(w) for w in own[order][:MOST_TYPES]]
