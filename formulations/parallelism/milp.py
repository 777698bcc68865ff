"""Which workers, and how many of each: exact over integer counts.

Sets and data: see `problem`.

Variables
    n[w]    workers of a type, integer
    u[d,q]  nodes of a device kind that are cut up by pattern q, integer; a pattern is a largest multiset of worker
            sizes that fits into a node, so that packing is exact for any sizes
    f       requests/s that go through prefill and decode workers, continuous

Objective
    maximise    served = sum_{both} rate n + f            (throughput)
    or minimise gpus n, price n or watts n  with  served >= target

Constraints
    prefill   f <= sum_{prefill} rate n
    decode    f <= sum_{decode} rate n
    packing   sum_{w of size s on d} n <= sum_q pattern[q, s] u[d, q]        sizes up to a node
    nodes     sum_q u[d, q] + sum_{w larger} ceil(gpus / node) n <= nodes    every device kind
              where sizes divide one another, both are counted without patterns:
              sum_{w: gpus >= s} gpus n <= s floor(node / s) (nodes - sum_{w larger} ceil(gpus / node) n)
    workers   sum n <= max_workers

Of workers of one device, role and size the rows tell only the rate apart, so all but the fastest are left out (where
watts count: all but those that none beats in both).

The peers' rule is a special case: one worker type, or one prefill and one decode type, in replicas of equal size.
Ignored: where in the network a node lies; transfers of the cache are in the workers' own times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from formulations.backends.linear import IntArray as Columns
from formulations.backends.linear import LinearBuilder, LinearModel
from formulations.parallelism.pareto import least
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, ParallelProblem

#: What the target, or the fastest worker, is in the rows of rates.
ROW_SCALE = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class ParallelModel:
    """The model, and where the counts are: columns [W], -1 for workers that are left out."""

    model: LinearModel
    counts: Columns
    flow: int


def build(problem: ParallelProblem, *, without: frozenset[int] = frozenset()) -> ParallelModel:
    """The whole model; `without` leaves out worker types, for the next best plan."""
    builder = LinearBuilder()
    kept = candidates(problem, without)
    counts = np.full(len(problem.workers), -1, dtype=np.int64)
    role, rate = problem.role[kept], problem.rate[kept]
    throughput = problem.goal == "throughput"
    cost = -rate * (role == BOTH) if throughput else problem.weight()[kept]
    n = builder.variables((kept.size,), upper=_most(problem, kept), cost=cost, integer=True)
    counts[kept] = n
    (flow,) = builder.variables((1,), upper=np.inf, cost=-1.0 if throughput else 0.0).tolist()
    # Solvers keep rows to 1e-6, whatever the rates are: a hundredth of the target is their unit here.
    unit = (problem.target_per_s or float(rate.max(initial=0.0)) or 1.0) / ROW_SCALE
    for side in (PREFILL, DECODE):
        of_side = role == side
        made = (np.zeros(of_side.sum()), n[of_side], -rate[of_side] / unit)
        builder.sparse_rows([-np.inf], 0.0, (0, flow, 1.0 / unit), made)
    if problem.target_per_s is not None:
        mixed = role == BOTH
        entries = ((0, flow, 1.0 / unit), (np.zeros(mixed.sum()), n[mixed], rate[mixed] / unit))
        builder.sparse_rows([ROW_SCALE], np.inf, *entries)
    for device in range(len(problem.device_names)):
        _pack(builder, problem, device, kept, n)
    if problem.max_workers is not None:
        builder.sparse_rows([-np.inf], float(problem.max_workers), (np.zeros(n.size), n, 1.0))
    return ParallelModel(builder.build(), counts, flow)


def candidates(problem: ParallelProblem, without: frozenset[int] = frozenset()) -> Columns:
    """Usable worker types that some optimal plan can be made of."""
    usable = problem.usable & (problem.rate > 0)
    usable[list(without)] = False
    kept = np.flatnonzero(usable)
    group = np.stack([problem.device[kept], problem.role[kept], problem.gpus[kept]], axis=1)
    _, group = np.unique(group, axis=0, return_inverse=True)
    worth = np.stack([-problem.rate[kept], problem.watts[kept] * (problem.goal == "joules")], axis=1)
    best = [
        kept[own][least(worth[own])] for own in (np.flatnonzero(group == g) for g in range(group.max(initial=-1) + 1))
    ]
    return np.sort(np.concatenate([*best, kept[:0]]))


def _most(problem: ParallelProblem, kept: Columns) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Workers of a type alone in the cluster; no more than the target takes."""
    node, nodes = problem.node_gpus[problem.device[kept]], problem.nodes[problem.device[kept]]
    size = problem.gpus[kept]
    most = np.where(size <= node, (node // size) * nodes, nodes // -(-size // node)).astype(np.float64)
    if problem.target_per_s is not None:
        with np.errstate(divide="ignore"):
            most = np.minimum(most, np.ceil(problem.target_per_s / problem.rate[kept]))
    return np.maximum(most, 0.0)


def _pack(builder: LinearBuilder, problem: ParallelProblem, device: int, kept: Columns, n: Columns) -> None:
    own = problem.device[kept] == device
    size, node, nodes = problem.gpus[kept], int(problem.node_gpus[device]), float(problem.nodes[device])
    inside, larger = own & (size <= node), own & (size > node)
    whole = -(-size[larger] // node)
    taken = (np.zeros(larger.sum()), n[larger], whole)
    sizes = np.unique(size[inside])
    if divide_one_another(sizes.tolist()):
        builder.sparse_rows([-np.inf], nodes, taken)
        for least in sizes.tolist():
            room = least * (node // least)
            of_size = inside & (size >= least)
            used = (np.zeros(of_size.sum()), n[of_size], size[of_size])
            builder.sparse_rows([-np.inf], room * nodes, used, (taken[0], taken[1], room * whole))
        return
    patterns = np.array(list(largest_patterns(sizes.tolist(), node)), dtype=np.int64)
    u = builder.variables((len(patterns),), upper=nodes, integer=True)
    for place, one in enumerate(sizes):
        fits = inside & (size == one)
        builder.sparse_rows(
            [-np.inf], 0.0, (np.zeros(fits.sum()), n[fits], 1.0), (np.zeros(u.size), u, -patterns[:, place])
        )
    builder.sparse_rows([-np.inf], nodes, (np.zeros(u.size), u, 1.0), taken)


def divide_one_another(sizes: list[int]) -> bool:
    """Each size divides the next, so that what fits can be counted from the largest down."""
    return all(large % small == 0 for small, large in pairwise(sorted(sizes)))


def largest_patterns(sizes: list[int], node: int) -> Iterator[tuple[int, ...]]:
    """Counts of each size (ascending) that fit into a node of so many GPUs with no room for one more."""

    def fill(place: int, free: int) -> Iterator[tuple[int, ...]]:
        if place < 0:
            yield ()
            return
        for count in range(free // sizes[place], -1, -1):
            for rest in fill(place - 1, free - count * sizes[place]):
                yield (*rest, count)

    for counts in fill(len(sizes) - 1, node):
        used = sum(count * size for count, size in zip(counts, sizes, strict=True))
        if sizes and node - used < sizes[0]:
            yield counts
