"""A pool of unequal devices cut into pipelines: exact over whole pipelines.

Sets    p in pipelines that may be: devices n[p, g] of each class, a path of sites, a slot (time of its slowest stage)
Data    see `problem`; rate[p] = 1 / slot; uses[p, a, b] the path goes over the link from a to b

Variables
    z[p]  pipelines of this kind, integer
    r[p]  steps/s of all of them, <= rate z; only where links between sites are used, else rate z itself

Objective
    maximise batch (sum_{p at one site} rate z + sum_{others} r)

Constraints
    devices    sum_p n[p, g] z[p] <= count[g]
    links      sum_p uses[p, a, b] r[p] <= steps_per_s[a, b]
    shared     r[p] <= rate[p] z[p]
    pipelines  sum_p z[p] <= floor(sum_g cap[g] count[g] / L)            (implied; makes the relaxation tighter)

What a pipeline is (the rate level formulation of one pipeline, by `pricing`): at the level of a slot, device g runs
c_g = min(cap[g], floor(slot / layer_s)) layers, fewer beside the embedding (first stage) and the head (last stage);
their sum is at least L. Stages of one site follow one another. Its latency, stages x slot + hops, is within
max_latency_s, and within in_flight slots, so that caches last for the steps under way. A slot is no shorter than a
local link's transfer. Slots are the times that stages may take; a pipeline is not slowed to keep a limit.

The pipelines are far too many to list, so the linear relaxation is solved by column generation. Its value bounds every
plan. A pipeline whose reduced cost is above the gap between that bound and the best known plan is in no better plan;
all others are listed and the model over them is exact. When those are too many, only the nearest are, and the bound
says so. Equal devices are one class, and pipelines are interchangeable, so nothing is symmetric: the size grows with
kinds of devices, not with their number.

Ignored: unequal layers (the largest counts for all), and how requests arrive. Reference: the rate level form of
Parallax's first phase (arXiv:2509.26182); Gilmore and Gomory for the columns; Helix (arXiv:2406.01566) for links as
capacities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel
from formulations.parallelism.layers.pricing import Column
from formulations.parallelism.layers.problem import FloatArray, IntArray, LayersProblem


@dataclass(frozen=True, slots=True, eq=False)
class Master:
    """The model over some pipelines; columns of z and r (-1 for pipelines of one site); rows of classes, links, count.

    Objective and rates are in `unit` steps/s.
    """

    model: LinearModel
    z: IntArray
    r: IntArray
    class_rows: slice
    link_rows: slice
    links: tuple[tuple[int, int], ...]
    unit: float


def build(problem: LayersProblem, columns: Sequence[Column]) -> Master:
    """The whole model over these pipelines."""
    builder = LinearBuilder()
    counts = np.array([one.counts for one in columns], dtype=np.int64).reshape(-1, problem.num_classes)
    rate = np.array([1.0 / one.slot_s for one in columns])
    unit = float(rate.max(initial=0.0)) or 1.0
    shared = np.array([len(one.path) > 1 for one in columns], dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        most = np.where(counts > 0, problem.count // np.maximum(counts, 1), problem.most_pipelines).min(axis=1)
    z = builder.variables((len(columns),), upper=most, cost=np.where(shared, 0.0, -rate / unit), integer=True)
    r = np.full(len(columns), -1, dtype=np.int64)
    r[shared] = builder.variables((int(shared.sum()),), upper=np.inf, cost=-1.0)
    of, group = np.nonzero(counts)
    builder.sparse_rows(np.full(problem.num_classes, -np.inf), problem.count, (group, z[of], counts[of, group]))
    links = link_list(problem)
    index = {link: row for row, link in enumerate(links)}
    uses = [(index[link], p) for p, one in enumerate(columns) for link in pairwise(one.path) if link in index]
    if links:
        carried = np.array([problem.hops.steps_per_s[link] for link in links]) / unit
        rows, cols = (np.array(side, dtype=np.int64) for side in (zip(*uses, strict=True) if uses else ((), ())))
        builder.sparse_rows(np.full(len(links), -np.inf), carried, (rows, r[cols], 1.0))
    builder.sparse_rows([-np.inf], float(problem.most_pipelines), (np.zeros(z.size), z, 1.0))
    if shared.any():
        builder.rows(-np.inf, 0.0, (r[shared], 1.0), (z[shared], -rate[shared] / unit))
    classes = slice(0, problem.num_classes)
    return Master(builder.build(), z, r, classes, slice(classes.stop, classes.stop + len(links)), links, unit)


def link_list(problem: LayersProblem) -> tuple[tuple[int, int], ...]:
    """Links between sites that carry a finite number of steps."""
    size = problem.num_sites
    carried = problem.hops.steps_per_s
    return tuple((a, b) for a in range(size) for b in range(size) if a != b and np.isfinite(carried[a, b]))


def path_price(links: Sequence[tuple[int, int]], prices: FloatArray, path: tuple[int, ...]) -> float:
    """Price of a step/s along a path, by the prices of its links."""
    of = dict(zip(links, prices.tolist(), strict=True))
    return float(sum(of.get(link, 0.0) for link in pairwise(path)))
