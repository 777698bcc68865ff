"""From the program of patterns to whole nodes: take what is whole of its answer, solve what is left again, with new
patterns for it, until every node has its pattern or no pod is left."""

from __future__ import annotations

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
        for q, times in takes:
            kind, pattern = program.columns.kind[q], program.columns.pattern[q]
            for part, number in _fitting(program, kind, pattern, times, demand):
                used = counts(shapes, part) * number
                demand -= used
                nodes[kind] -= number
                kept = [
                    least - float(weight @ used) for (weight, _), least in zip(program.goal.kept, kept, strict=True)
                ]
                chosen.append((kind, part, number))
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


def _fitting(program: Program, kind: int, pattern: Pattern, times: int, demand: IntArray) -> list[tuple[Pattern, int]]:
    """The pattern as often as the pods left fill it, and then cut to the pods left."""
    shapes = program.shapes
    count = counts(shapes, pattern)
    used = np.flatnonzero(count)
    full = min(times, int((demand[used] // count[used]).min(initial=times)))
    found = [(pattern, full)] if full else []
    left = demand - full * count
    values = np.maximum(program.prices, 1e-9)
    for _ in range(times - full):
        part = program.pricer.trimmed(kind, list(pattern), values, left)
        if not part:
            break
        found.append((part, 1))
        left = left - counts(shapes, part)
    return found
