"""From the program of patterns to whole nodes: take what is whole of its answer, solve what is left again, with new
patterns for it, until every node has its pattern or no pod is left."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from formulations.outcome import Budget
from formulations.pod_packing.columns import Program
from formulations.pod_packing.shapes import Pattern, counts
from planner.workload import FloatArray, IntArray

#: Rounds of new patterns after each step.
ROUNDS = 3
#: A pattern with this much of a node is taken as one, and at least this share of the nodes left is settled a step.
ALMOST, LEAST_SHARE = 0.7, 0.04

#: A kind of nodes, what goes on one of them, and on how many.
Chosen = list[tuple[int, Pattern, int]]


def dive(program: Program, amounts: FloatArray, budget: Budget) -> Chosen:
    """Whole nodes from the program's answer `amounts`; the program is used up. What no time is left for stays empty."""
    shapes = program.shapes
    nodes, demand = program.nodes.astype(np.int64), program.demand.astype(np.int64)
    kept = list(program.kept)
    chosen: Chosen = []
    answer: FloatArray | None = amounts
    while answer is not None and nodes.any() and demand.any():
        takes = _settled(program, answer, nodes)
        if not takes:
            break
        for kind, pattern, number in _served(program, takes, demand):
            used = counts(shapes, pattern) * number
            demand -= used
            nodes[kind] -= number
            kept = [least - float(weight @ used) for (weight, _), least in zip(program.goal.kept, kept, strict=True)]
            chosen.append((kind, pattern, number))
        program.shrink(nodes, demand, kept)
        if budget.stop() is not None:
            break
        answer = program.improve(budget, ROUNDS, bounded=False)
    return chosen


def _settled(program: Program, answer: FloatArray, nodes: IntArray) -> list[tuple[int, int]]:
    """Patterns to take now, and how often: whole parts, then what is almost whole, then the largest parts."""
    whole = np.floor(answer + 1e-6).astype(np.int64)
    left = nodes.copy()
    kinds = np.array(program.columns.kind[: answer.size], dtype=np.int64)
    takes = [(q, int(whole[q])) for q in np.flatnonzero(whole).tolist()]
    for q, times in takes:
        left[kinds[q]] -= times
    parts = answer - whole
    goal = 0 if takes else max(1, int(LEAST_SHARE * nodes.sum()))
    added = 0
    for q in np.argsort(-parts, kind="stable").tolist():
        if parts[q] <= 1e-6 or (parts[q] < ALMOST and added >= goal):
            break
        if left[kinds[q]] > 0:
            takes.append((q, 1))
            left[kinds[q]] -= 1
            added += 1
    return takes


def _served(program: Program, takes: list[tuple[int, int]], demand: IntArray) -> Chosen:
    """Patterns and how often, with the pods there are: places that their class leaves over go to pods of others that
    fit into them, those of the highest price first and then the largest; the rest is filled up anew."""
    shapes, columns = program.shapes, program.columns
    nodes = [(columns.kind[q], list(columns.pattern[q])) for q, times in takes for _ in range(times)]
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for node, (_, entries) in enumerate(nodes):
        for place, (j, _) in enumerate(entries):
            places[j].append((node, place))
    left, over = demand.copy(), dict[int, list[tuple[int, int]]]()
    for j, mine in places.items():
        used = min(len(mine), int(left[j]))
        left[j] -= used
        if used < len(mine):
            over[j] = mine[used:]
    gpus = shapes.problem.class_gpus[shapes.classes]
    wide = shapes.fits.sum(axis=0)
    for a in np.lexsort((-wide, -np.round(program.prices, 9))).tolist():
        for b in sorted((b for b in over if shapes.fits[a, b]), key=lambda b: wide[b]) if left[a] else ():
            while left[a] and over[b]:
                node, place = over[b].pop()
                entries = nodes[node][1]
                entries[place] = a, entries[place][1][: int(gpus[a])]
                left[a] -= 1
    empty = defaultdict(set)
    for mine in over.values():
        for node, place in mine:
            empty[node].add(place)
    values = np.maximum(program.prices, 1e-9)
    for node, gone in empty.items():
        kind, entries = nodes[node]
        entries[:] = [entry for place, entry in enumerate(entries) if place not in gone]
        had = counts(shapes, tuple(entries))
        entries[:] = program.pricer.trimmed(kind, entries, values, left + had)
        left -= counts(shapes, tuple(entries)) - had
    counted = Counter((kind, tuple(entries)) for kind, entries in nodes if entries)
    return [(kind, pattern, times) for (kind, pattern), times in counted.items()]
