"""The integer program over the changes known (see `columns`), y_q in {0, 1}: the best whole changes.

z_ab are whole where all y are: the rows of kinds are a network then. They are declared so all the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from formulations.backends.linear import LinearBuilder, solve_linear_mathopt
from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.repair.columns import Program
from formulations.pod_packing.repair.kinds import Kinds
from formulations.pod_packing.repair.pricing import Change
from planner.workload import IntArray

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


def solve_master(
    program: Program, start: list[Change], rest: list[Change], budget: Budget, options: SolveOptions
) -> list[Change] | None:
    """The best choice of changes, `start` being one, and the `rest` elsewhere; None where time was too short for any.

    Places that pods of another kind take come back as places for that kind, of the rest too: its places are free for
    others where the pods that took them stay now.
    """
    for change in start:
        program.add(change)
    keys = {change.key for change in start}
    must = [q for q, change in enumerate(program.changes) if change.key in keys]
    numbers = sorted({*_best(program, OF_A_NODE, IN_ALL), *must})
    if not numbers:
        return rest
    cluster, goal, share = program.cluster, program.goal, program.share
    kinds, pod_class = cluster.kinds, cluster.problem.pod_class
    changes = [program.changes[q] for q in numbers]
    # Of plans that place as much, one with few moves: all moves together weigh less than any pod.
    step = float(goal.weight[goal.weight > 0].min(initial=1.0))
    light = 0.2 * min(1e-2, step) / (share.moves + 1)
    gone = np.array([len(change.removed) for change in changes], dtype=np.float64)
    lost = [pod_class[list(change.evicted)] for change in changes]
    builder = LinearBuilder()
    y = builder.variables(
        (len(changes),), cost=light * gone + [float(goal.weight[one].sum()) for one in lost], integer=True
    )
    x = builder.variables((goal.weight.size,), upper=share.demand, cost=-goal.weight)
    most = float(max(1, int(share.demand.sum()) + share.moves))
    z = builder.variables((len(kinds.exchanges),), upper=most, integer=True)
    entries = [(a, y[q], n) for q, change in enumerate(changes) for a, n in cluster.amounts(change).items() if n]
    row, column, value = (np.array(part) for part in zip(*entries, strict=True))
    builder.sparse_rows(
        share.owed,
        np.full(kinds.count, np.inf),
        (row, column, value),
        (kinds.of_class, x, -1.0),
        (kinds.exchanges[:, 0], z, 1.0),
        (kinds.exchanges[:, 1], z, -1.0),
    )
    place = {node: index for index, node in enumerate(share.nodes.tolist())}
    nodes = np.array([place[change.node] for change in changes])
    builder.sparse_rows(np.full(share.nodes.size, -np.inf), np.ones(share.nodes.size), (nodes, y, 1.0))
    builder.rows([-np.inf], [float(share.moves)], (y[None, :], gone))
    for b, allowed in enumerate(share.allowed.tolist()):
        counted = [sum(b in cluster.budgets_of[p] for p in change.removed) for change in changes]
        builder.rows([-np.inf], [float(allowed)], (y[None, :], np.array(counted, dtype=np.float64)))
    for weight, least in goal.kept:
        builder.rows([least], [np.inf], (x[None, :], weight), (y[None, :], [-float(weight[one].sum()) for one in lost]))
    hint = np.full(builder.num_variables, np.nan)
    hint[y] = [float(change.key in keys) for change in changes]
    _, values = solve_linear_mathopt(builder.build(), budget, options, start=hint)
    if values is None:
        return None
    chosen = [changes[q] for q in np.flatnonzero(np.round(values[y])).tolist()]
    return _passed_on([*rest, *chosen], kinds, np.round(values[z]).astype(np.int64))


def _passed_on(changes: list[Change], kinds: Kinds, times: IntArray) -> list[Change]:
    """With places given to the kinds that take them, from the largest kind on."""
    added = [list(change.added) for change in changes]
    places: dict[int, list[tuple[int, int]]] = {}
    for q, entries in enumerate(added):
        for at, (kind, _) in enumerate(entries):
            places.setdefault(kind, []).append((q, at))
    for (a, b), count in zip(kinds.exchanges.tolist(), times.tolist(), strict=True):
        for _ in range(count):
            q, at = places[b].pop()
            added[q][at] = a, added[q][at][1][: int(kinds.gpus[a])]
            places.setdefault(a, []).append((q, at))
    return [replace(change, added=tuple(entries)) for change, entries in zip(changes, added, strict=True)]
