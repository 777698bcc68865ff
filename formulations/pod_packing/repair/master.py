"""The integer program over the changes known (see `columns`), y_q in {0, 1}: the best whole changes."""

from __future__ import annotations

from collections import Counter

import numpy as np

from formulations.backends.linear import LinearBuilder, solve_linear_mathopt
from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.repair.columns import Program
from formulations.pod_packing.repair.pricing import Change

#: Changes that take part: the best of each node, and so many in all; and of each node where parts are joined.
OF_A_NODE, IN_ALL, POOLED = 3, 6000, 4


def _best(program: Program, of_a_node: int, in_all: int) -> list[int]:
    """Numbers of the best changes by reduced cost: so many in all, and so many of each node."""
    order = np.argsort(program.reduced_costs(), kind="stable").tolist()
    taken = Counter[int]()
    found = []
    for rank, q in enumerate(order):
        node = program.changes[q].node
        taken[node] += 1
        if taken[node] <= of_a_node or rank < in_all:
            found.append(q)
    return found


def pooled(program: Program) -> list[Change]:
    """The best changes of each node."""
    return [program.changes[q] for q in _best(program, POOLED, 0)]


def solve_master(program: Program, start: list[Change], budget: Budget, options: SolveOptions) -> list[Change] | None:
    """The best choice of changes, `start` being one; None where the time was too short for any."""
    for change in start:
        program.add(change)
    keys = {_key(change) for change in start}
    must = [q for q, change in enumerate(program.changes) if _key(change) in keys]
    numbers = sorted({*_best(program, OF_A_NODE, IN_ALL), *must})
    if not numbers:
        return []
    cluster, goal, share = program.cluster, program.goal, program.share
    changes = [program.changes[q] for q in numbers]
    # Of plans that place as much, one with few moves: all moves together weigh less than any pod.
    step = float(goal.weight[goal.weight > 0].min(initial=1.0))
    light = 0.2 * min(1e-2, step) / (share.moves + 1)
    builder = LinearBuilder()
    gone = np.array([len(change.removed) for change in changes], dtype=np.float64)
    y = builder.variables((len(changes),), cost=light * gone, integer=True)
    x = builder.variables((goal.weight.size,), upper=share.demand, cost=-goal.weight)
    e = builder.variables((goal.weight.size,), upper=cluster.evictable, cost=goal.weight)
    entries = [(j, y[q], n) for q, change in enumerate(changes) for j, n in cluster.amounts(change).items() if n]
    row, column, value = (np.array(part) for part in zip(*entries, strict=True))
    classes = np.arange(goal.weight.size)
    builder.sparse_rows(
        np.zeros(classes.size),
        np.full(classes.size, np.inf),
        (row, column, value),
        (classes, x, -1.0),
        (classes, e, 1.0),
    )
    place = {node: index for index, node in enumerate(share.nodes.tolist())}
    nodes = np.array([place[change.node] for change in changes])
    builder.sparse_rows(np.full(share.nodes.size, -np.inf), np.ones(share.nodes.size), (nodes, y, 1.0))
    builder.rows([-np.inf], [float(share.moves)], (y[None, :], gone))
    for b, allowed in enumerate(share.allowed.tolist()):
        counted = [sum(b in cluster.budgets_of[p] for p in change.removed) for change in changes]
        builder.rows([-np.inf], [float(allowed)], (y[None, :], np.array(counted, dtype=np.float64)))
    for weight, least in goal.kept:
        builder.rows([least], [np.inf], (x[None, :], weight), (e[None, :], -weight))
    hint = np.full(builder.num_variables, np.nan)
    hint[y] = [float(_key(change) in keys) for change in changes]
    _, values = solve_linear_mathopt(builder.build(), budget, options, start=hint)
    if values is None:
        return None
    return [changes[q] for q in np.flatnonzero(np.round(values[y])).tolist()]


def _key(change: Change) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return change.node, change.removed, tuple(sorted(j for j, _ in change.added))
