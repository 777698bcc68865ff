"""Which workers, and how many of each: exact over integer counts.

Sets and data: see `problem`.

Variables, in every hour h where there are several
    n[w]    workers of a type, integer
    u[d,s,i] nodes of a device kind in which a worker of s GPUs takes those from i on, integer; see `packing`
    f       requests/s that go through prefill and decode workers, continuous
    several sizes m: x[m,w] requests/s that workers of a type serve, continuous, f[m] likewise, and served in place of
            its sum
    started[h,w]    workers that start before hour h, where that has a price

Objective
    maximise    served = sum_{both} rate n + f            (throughput)
    or minimise gpus n, price n or watts n  with  served >= target,
                mean over the hours, plus  change_cost gpus started / hours

Constraints
    prefill   f <= sum_{prefill} rate n
    decode    f <= sum_{decode} rate n
    sizes     f[m] <= sum_{prefill} x[m], sum_{decode} x[m];  sum_{both} x[m] + f[m] >= share[m] served
              sum_m x[m,w] / size_rate[m,w] <= n[w]                          in place of prefill and decode
    changes   started[h,w] >= n[h,w] - n[h-1,w], from what runs now or, without that, free before the first hour
    packing   sum_{w of size s on d} n <= sum_i u[d,s,i]                  sizes up to a node, every device kind
              sum_s u[d,s,i] <= sum_s u[d,s,i-s] at i > 0                  what starts at i comes after what ends there
    nodes     sum_s u[d,s,0] + sum_{w larger} ceil(gpus / node) n <= nodes
              where sizes divide one another, both are counted without u:
              sum_{w: gpus >= s} gpus n <= s floor(node / s) (nodes - sum_{w larger} ceil(gpus / node) n)
    workers   sum n <= max_workers

Of workers of one device, role and size the rows tell only the rate apart, so all but the fastest are left out (where
watts count: all but those that none beats in both).

The peers' rule is a special case: one worker type, or one prefill and one decode type, in replicas of equal size.
A worker serves one size for some of its time and another for the rest, each as fast as if there were no other.
Ignored: where in the network a node lies; transfers of the cache are in the workers' own times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import IntArray as Columns
from formulations.backends.linear import LinearBuilder, LinearModel
from formulations.parallelism.packing import add_packing
from formulations.parallelism.pareto import least
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, ParallelProblem

#: What the target, or the fastest worker, is in the rows of rates.
ROW_SCALE = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class ParallelModel:
    """The model, and where the counts are: columns [H, W], and [H, M, W] of flows where there are several sizes; -1 for
    workers that are left out."""

    model: LinearModel
    counts: Columns
    flows: Columns | None


def build(
    problem: ParallelProblem,
    *,
    without: frozenset[int] = frozenset(),
    hours: Sequence[tuple[float, int]] | None = None,
) -> ParallelModel:
    """The whole model.

    without : worker types to leave out, for the next best plan. hours : rates in a row and how many hours each lasts,
    for hours that a price of change joins; by default one, of the problem's target.
    """
    builder = LinearBuilder()
    kept = candidates(problem, without)
    blocks: list[tuple[float | None, float]] = [(problem.target_per_s, 1.0)]
    if hours is not None:
        total = sum(count for _, count in hours)
        blocks = [(rate, count / total) for rate, count in hours]
    width = len(problem.workers)
    counts = np.full((len(blocks), width), -1, dtype=np.int64)
    flows = None if problem.share is None else np.full((len(blocks), problem.share.size, width), -1, dtype=np.int64)
    most = _most(problem, kept, max((rate for rate, _ in blocks if rate is not None), default=None))
    for h, (rate, share) in enumerate(blocks):
        weight = np.zeros(kept.size) if problem.goal == "throughput" else problem.weight()[kept] * share
        n = counts[h, kept] = builder.variables((kept.size,), upper=most, cost=weight, integer=True)
        if flows is None:
            _serve(builder, problem, kept, n, rate)
        else:
            flows[h][:, kept] = _serve_sizes(builder, problem, kept, n, rate)
        for device in range(len(problem.device_names)):
            own = problem.device[kept] == device
            node, nodes = int(problem.node_gpus[device]), float(problem.nodes[device])
            add_packing(builder, n[own], problem.gpus[kept][own], node, nodes)
        if problem.max_workers is not None:
            builder.sparse_rows([-np.inf], float(problem.max_workers), (np.zeros(n.size), n, 1.0))
    if problem.change_cost:
        _changes(builder, problem, kept, counts[:, kept], sum(count for _, count in hours) if hours else 1)
    return ParallelModel(builder.build(), counts, flows)


def _serve(builder: LinearBuilder, problem: ParallelProblem, kept: Columns, n: Columns, target: float | None) -> None:
    """Requests of one size: what all mixed workers serve, and the scarcer side of the others."""
    role, rate = problem.role[kept], problem.rate[kept]
    served, flow = builder.variables((2,), upper=np.inf, cost=[-1.0 * (problem.goal == "throughput"), 0.0]).tolist()
    # Solvers keep rows to 1e-6, whatever the rates are: a hundredth of the target is their unit here.
    unit = (target or float(rate.max(initial=0.0)) or 1.0) / ROW_SCALE
    for side in (PREFILL, DECODE):
        of_side = role == side
        made = (np.zeros(of_side.sum()), n[of_side], -rate[of_side] / unit)
        builder.sparse_rows([-np.inf], 0.0, (0, flow, 1.0 / unit), made)
    mixed = role == BOTH
    entries = (np.zeros(mixed.sum()), n[mixed], -rate[mixed] / unit)
    builder.sparse_rows([-np.inf], 0.0, (0, served, 1.0 / unit), (0, flow, -1.0 / unit), entries)
    if target is not None:
        builder.sparse_rows([target / unit], np.inf, (0, served, 1.0 / unit))


def _serve_sizes(
    builder: LinearBuilder, problem: ParallelProblem, kept: Columns, n: Columns, target: float | None
) -> Columns:
    """Requests of several sizes: which types serve how many of each; columns [M, kept]."""
    assert problem.share is not None
    role, rates, share = problem.role[kept], problem.rates[:, kept], problem.share
    unit = (target or float(rates.max(initial=0.0)) or 1.0) / ROW_SCALE
    x = builder.variables(rates.shape, upper=np.where(rates > 0, np.inf, 0.0))
    pairs = builder.variables((share.size,), upper=np.inf)
    (served,) = builder.variables((1,), upper=np.inf, cost=-1.0 * (problem.goal == "throughput")).tolist()
    size, place = np.nonzero(rates > 0)
    busy = (place, x[size, place], 1.0 / rates[size, place])
    builder.sparse_rows(np.full(kept.size, -np.inf), 0.0, busy, (np.arange(kept.size), n, -1.0))
    rows = np.arange(share.size)

    def of(side: int, factor: float) -> tuple[Columns, Columns, float]:
        own = x[:, role == side]
        return np.repeat(rows, own.shape[1]), own.ravel(), factor / unit

    for side in (PREFILL, DECODE):
        builder.sparse_rows(np.full(share.size, -np.inf), 0.0, (rows, pairs, 1.0 / unit), of(side, -1.0))
    asked = (rows, served, share / unit)
    builder.sparse_rows(np.full(share.size, -np.inf), 0.0, asked, (rows, pairs, -1.0 / unit), of(BOTH, -1.0))
    if target is not None:
        builder.sparse_rows([target / unit], np.inf, (0, served, 1.0 / unit))
    return x


def _changes(builder: LinearBuilder, problem: ParallelProblem, kept: Columns, n: Columns, hours: int) -> None:
    """Workers that start before each hour, [H, kept]: paid for by the GPU."""
    price = problem.change_cost * problem.gpus[kept] / hours
    started = builder.variables(n.shape, upper=np.inf, cost=price)
    if problem.current is not None:
        builder.rows(-problem.running()[kept].astype(np.float64), np.inf, (started[0], 1.0), (n[0], -1.0))
    for before, after, new in zip(n, n[1:], started[1:], strict=False):
        builder.rows(0.0, np.inf, (new, 1.0), (before, 1.0), (after, -1.0))


def candidates(problem: ParallelProblem, without: frozenset[int] = frozenset()) -> Columns:
    """Usable worker types that some optimal plan can be made of."""
    usable = problem.usable & (problem.rates > 0).any(axis=0)
    usable[list(without)] = False
    kept = np.flatnonzero(usable)
    group = np.stack([problem.device[kept], problem.role[kept], problem.gpus[kept]], axis=1)
    _, group = np.unique(group, axis=0, return_inverse=True)
    worth = np.vstack([-problem.rates[:, kept], problem.watts[kept] * (problem.goal == "joules")]).T
    best = [
        kept[own][least(worth[own])] for own in (np.flatnonzero(group == g) for g in range(group.max(initial=-1) + 1))
    ]
    # Those that run already cost nothing to start.
    running = np.flatnonzero(usable & (problem.running() > 0)) if problem.change_cost else kept[:0]
    return np.unique(np.concatenate([*best, running, kept[:0]]))


def _most(
    problem: ParallelProblem, kept: Columns, target: float | None
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Workers of a type alone in the cluster; no more than the target takes."""
    node, nodes = problem.node_gpus[problem.device[kept]], problem.nodes[problem.device[kept]]
    size = problem.gpus[kept]
    most = np.where(size <= node, (node // size) * nodes, nodes // -(-size // node)).astype(np.float64)
    if target is not None:
        share = np.ones(1) if problem.share is None else problem.share
        rates = problem.rates[:, kept]
        with np.errstate(divide="ignore"):
            most = np.minimum(most, np.ceil(np.where(rates > 0, target * share[:, None] / rates, 0.0).sum(axis=0)))
    return np.maximum(most, 0.0)
