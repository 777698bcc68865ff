"""The integer program over the patterns known: whole nodes at once, where the dive settles them step by step.

Variables and rows as in `columns`, y integer; x_j and z_ab stay continuous: with y whole they are a flow, whose best
values are whole too but where gangs or tiers before cut across it; then what is over a whole place is left out.
Beside patterns that are settled already, with done_j places of class j, places may be done_j fewer and x_j counts all.
Gangs: sum of x over the gang's classes >= least × g and <= demand × g, g in {0, 1}.
Spread classes, whose numbers in the zones are settled: m <= x_jz <= m + skew, m whole.
"""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.columns import Program
from formulations.pod_packing.dive import Chosen
from formulations.pod_packing.problem import BoolArray
from formulations.pod_packing.shapes import Shapes, counts
from planner.workload import FloatArray, IntArray


def solve_master(
    program: Program, start: Chosen, useful: BoolArray, done: IntArray, budget: Budget, options: SolveOptions
) -> Chosen | None:
    """The best choice of known patterns, from a start; None where none was found in time.

    done : places of each class in patterns that are settled, [J']; the program's demand is what is left.
    useful : of the patterns known, those that may be chosen; those of the start always may.
    """
    shapes, columns = program.shapes, program.columns
    for kind, pattern, _ in start:
        program.add(kind, pattern)
    keys = zip(columns.kind, columns.count, strict=True)
    known = {(kind, count.tobytes()): q for q, (kind, count) in enumerate(keys)}
    begun = [known[kind, counts(shapes, pattern).tobytes()] for kind, pattern, _ in start]
    taking = np.union1d(np.flatnonzero(useful), np.array(begun, dtype=np.int64)).astype(np.int64)
    if not taking.size:
        return None
    model, y, z = master_model(program, taking, done)
    hint = np.full(model.num_variables, np.nan)
    hint[y] = 0.0
    for q, (_, _, times) in zip(begun, start, strict=True):
        hint[y[np.searchsorted(taking, q)]] += times
    _, values = solve_linear_mathopt(model, budget, options, start=hint if start else None)
    if values is None:
        return None
    nodes = np.round(values[y]).astype(np.int64).tolist()
    taken = [(q, number) for q, number in zip(taking.tolist(), nodes, strict=True) if number]
    chosen = [(columns.kind[q], columns.pattern[q], number) for q, number in taken]
    return passed_on(shapes, chosen, np.round(values[z]).astype(np.int64))


def passed_on(shapes: Shapes, chosen: Chosen, numbers: IntArray) -> Chosen:
    """The same nodes with so many places of each pair of `exchanges` given to the class that takes them, [E]."""
    gpus = shapes.problem.class_gpus[shapes.classes]
    nodes = [(kind, list(pattern)) for kind, pattern, times in chosen for _ in range(times)]
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for node, (_, entries) in enumerate(nodes):
        for place, (j, _) in enumerate(entries):
            places[j].append((node, place))
    for (a, b), number in zip(shapes.exchanges.tolist(), numbers.tolist(), strict=True):
        for _ in range(min(number, len(places[b]))):
            node, place = places[b].pop()
            entries = nodes[node][1]
            entries[place] = a, entries[place][1][: int(gpus[a])]
            places[a].append((node, place))
    counted = Counter((kind, tuple(entries)) for kind, entries in nodes)
    return [(kind, pattern, times) for (kind, pattern), times in counted.items()]


def master_model(program: Program, taking: IntArray, done: IntArray) -> tuple[LinearModel, IntArray, IntArray]:
    """The model over the patterns of these numbers, and its variables y and z."""
    shapes, goal, columns = program.shapes, program.goal, program.columns
    kinds = np.array(columns.kind, dtype=np.int64)[taking]
    builder = LinearBuilder()
    cost = shapes.cost[kinds] if goal.costs else 0.0
    y = builder.variables((kinds.size,), upper=program.nodes[kinds], cost=cost, integer=True)
    demand = program.demand + done
    least = demand if goal.must else 0.0
    x = builder.variables((shapes.classes.size,), lower=least, upper=demand, cost=-goal.weight)
    table = np.array(columns.count)[taking].T
    row, column = np.nonzero(table)
    places = np.arange(shapes.classes.size)
    pairs = shapes.exchanges
    z = builder.variables((len(pairs),), upper=np.inf)
    builder.sparse_rows(
        -done, np.full(places.size, np.inf), (row, y[column], table[row, column]), (places, x, -1.0),
        (pairs[:, 0], z, 1.0), (pairs[:, 1], z, -1.0),
    )  # fmt: skip
    all_kinds = np.arange(len(shapes.nodes))
    builder.sparse_rows(np.full(all_kinds.size, -np.inf), program.nodes, (kinds, y, 1.0))
    for (weight, _), kept in zip(goal.kept, program.kept, strict=True):
        builder.rows([kept + weight @ done], [np.inf], (x[None, :], weight))
    _gangs(builder, shapes, demand, x)
    _spreads(builder, shapes, x)
    return builder.build(), y, z


def _gangs(builder: LinearBuilder, shapes: Shapes, demand: FloatArray, x: IntArray) -> None:
    """All of a gang's least number, or none."""
    for mine, least in shapes.gangs:
        runs = builder.variables((1,), integer=True)[None, :]
        builder.rows([0.0], [np.inf], (x[mine][None, :], 1.0), (runs, -float(least)))
        builder.rows([-np.inf], [0.0], (x[mine][None, :], 1.0), (runs, -float(demand[mine].sum())))


def _spreads(builder: LinearBuilder, shapes: Shapes, x: IntArray) -> None:
    """Numbers of a class in its zones differ by its skew at most."""
    for one in shapes.zoned:
        least = builder.variables((1,), upper=np.inf, integer=True)
        builder.rows(
            0.0, float(one.max_skew), (x[one.classes][:, None], 1.0), (np.full((one.classes.size, 1), least[0]), -1.0)
        )
