"""Packing of workers into nodes, exactly, as rows of a model.

Where sizes divide one another it is enough to count, from the largest down: workers of at least s GPUs fit into s x
floor(node / s) of every node. Other sizes go through an arc-flow graph (Valerio de Carvalho 1999): its points are the
GPUs of a node that are taken so far, an arc of size s leads from i to i + s, and a path from 0 is one node's workers,
largest first. A flow of as many paths as there are nodes has room for n[s] workers where its arcs of size s are at
least n[s]. Points and arcs grow with the GPUs of a node times the sizes, ways to fill a node with their product.

Workers larger than a node take whole nodes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from formulations.backends.linear import IntArray, LinearBuilder


def add_packing(builder: LinearBuilder, counts: IntArray, size: IntArray, node: int, nodes: float) -> None:
    """Rows that pack the workers in columns `counts` [k], of `size` GPUs each [k], into nodes of `node` GPUs."""
    larger = size > node
    whole = -(-size[larger] // node)
    taken = (np.zeros(larger.sum()), counts[larger], whole.astype(np.float64))
    sizes = np.unique(size[~larger]).tolist()
    if divide_one_another(sizes):
        builder.sparse_rows([-np.inf], nodes, taken)
        for least in sizes:
            room = least * (node // least)
            of_size = ~larger & (size >= least)
            used = (np.zeros(of_size.sum()), counts[of_size], size[of_size])
            builder.sparse_rows([-np.inf], room * nodes, used, (taken[0], taken[1], room * taken[2]))
        return
    arcs = packing_arcs(sizes, node)
    flow = builder.variables((len(arcs),), upper=nodes * node, integer=True)
    for one in sizes:
        fits, along = size == one, arcs[:, 0] == one
        there = (np.zeros(along.sum()), flow[along], -1.0)
        builder.sparse_rows([-np.inf], 0.0, (np.zeros(fits.sum()), counts[fits], 1.0), there)
    for point in np.unique(arcs[:, 1]).tolist():
        out, into = arcs[:, 1] == point, arcs[:, 1] + arcs[:, 0] == point
        leaving = (np.zeros(out.sum()), flow[out], 1.0)
        if point == 0:
            builder.sparse_rows([-np.inf], nodes, leaving, taken)
        else:
            # A path may end anywhere.
            builder.sparse_rows([-np.inf], 0.0, leaving, (np.zeros(into.sum()), flow[into], -1.0))


def divide_one_another(sizes: list[int]) -> bool:
    """Each size divides the next, so that what fits can be counted from the largest down."""
    return all(large % small == 0 for small, large in pairwise(sorted(sizes)))


def packing_arcs(sizes: list[int], node: int) -> IntArray:
    """Size and start of every arc [arcs, 2]; each path from 0 holds its workers largest first."""
    reached, arcs = {0}, []
    for size in sorted(sizes, reverse=True):
        for start in range(node - size + 1):
            if start in reached:
                arcs.append((size, start))
                reached.add(start + size)
    return np.array(arcs, dtype=np.int64).reshape(len(arcs), 2)
