"""A strategy for every layer of one pipeline stage: tensor-parallel size, sharding of states, recomputation.

Equal layers are told apart by nothing, so the choice is how many of them take which strategy, not which.

Sets
    k   runs of equal layers, in the order of depth
    s   strategies; each belongs to a family f(s) (its tensor-parallel layout), between which activations are moved
    T   trails: a set of families with a first and a last one
Data
    n[k]       layers of a run
    t[k,s]     seconds of one layer under a strategy; infinite where it cannot take it
    m[k,s]     bytes of one layer, whole: states and the activations of all micro-batches in flight
    c[f,g]     seconds to go from family f to family g; 0 within a family
    M          bytes that the stage may use
    path[T]    cheapest way through all families of T from its first to its last (dynamic program over subsets)
Variables
    x[k,s]     layers of run k with strategy s, integer
    z[k,T]     1 if run k goes through the families of T, binary
    w[k,f,g]   1 if run k ends in f and run k + 1 begins in g, continuous (integral where z is)
Objective
    minimise   sum t x + sum path z + sum c w
Constraints
    cover      sum_s x[k,s] = n[k]                                                          every run
    memory     sum m x <= M
    one trail  sum_T z[k,T] = 1                                                             every run
    used       x[k,s] <= n[k] sum_{T with f(s)} z[k,T]                                      every run, strategy
    visited    sum_{s of f} x[k,s] >= sum_{T with f} z[k,T]                                 every run, family
    junction   sum_g w[k,f,g] = sum_{T to f} z[k,T];  sum_f w[k,f,g] = sum_{T from g} z[k+1,T]

A family's layers of a run lie together, so each switch is paid once; with one family z and w fall away. A strategy is
dropped where another of its family is neither slower nor larger. With these the program has a dozen integers at most.

Ignored: layers of a run are exchangeable, so that ZeRO prefetch between particular neighbours is not priced.
Reference: Galvatron's dynamic program over (layer, megabyte, strategy) (PKU-DAIR/Hetu-Galvatron), whose choices this
program contains.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

from formulations.backends.linear import IntArray, LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.result import as_integer
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LayerProblem:
    """Layers of one stage.

    layers : [K] layers of each run, at least one.
    time_s, memory_bytes : [K, S] of one layer; time is infinite where a strategy is not possible.
    family : [S] in 0 .. F-1.
    switch_s : [F, F], diagonal 0.
    """

    layers: IntArray
    time_s: FloatArray
    memory_bytes: FloatArray
    family: IntArray
    switch_s: FloatArray
    capacity_bytes: float

    def __post_init__(self) -> None:
        runs, strategies = self.time_s.shape
        families = self.switch_s.shape[0]
        if self.memory_bytes.shape != (runs, strategies) or self.layers.shape != (runs,):
            raise ValueError("layers is [K], time_s and memory_bytes are [K, S]")
        if self.family.shape != (strategies,) or self.switch_s.shape != (families, families):
            raise ValueError("family is [S], switch_s is [F, F]")
        if not (runs and strategies and (self.layers >= 1).all()):
            raise ValueError("there must be a run, a strategy, and a layer in every run")
        if self.family.min() < 0 or self.family.max() >= families:
            raise ValueError(f"families are numbered 0 .. {families - 1}")
        if np.diag(self.switch_s).any() or not (self.switch_s >= 0).all() or not (self.time_s >= 0).all():
            raise ValueError("times must not be negative, and staying in a family costs nothing")
        if not (np.isfinite(self.memory_bytes).all() and (self.memory_bytes >= 0).all()):
            raise ValueError("memory must be finite and not negative")


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring layers of one run under one strategy."""

    run: int
    strategy: int
    layers: int


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Blocks in the order of depth."""

    blocks: tuple[Block, ...]

    def counts(self, problem: LayerProblem) -> IntArray:
        """Layers by run and strategy, [K, S]."""
        found = np.zeros(problem.time_s.shape, dtype=np.int64)
        for block in self.blocks:
            found[block.run, block.strategy] += block.layers
        return found


def time_of(problem: LayerProblem, plan: LayerPlan) -> float:
    """Seconds of all layers and of the switches between neighbouring blocks."""
    layers_s = sum(block.layers * float(problem.time_s[block.run, block.strategy]) for block in plan.blocks)
    families = [int(problem.family[block.strategy]) for block in plan.blocks]
    return layers_s + sum(float(problem.switch_s[a, b]) for a, b in pairwise(families))


def memory_of(problem: LayerProblem, plan: LayerPlan) -> float:
    """Bytes of all layers."""
    return sum(block.layers * float(problem.memory_bytes[block.run, block.strategy]) for block in plan.blocks)


def check(problem: LayerProblem, plan: LayerPlan) -> list[Violation]:
    """Every broken rule: runs in order, each layer once, possible strategies, memory."""
    broken: list[Violation] = []
    runs, strategies = problem.time_s.shape
    for block in plan.blocks:
        if not (0 <= block.run < runs and 0 <= block.strategy < strategies and block.layers >= 1):
            message = f"{block} names no run, no strategy or no layer"
            return [Violation(rule="blocks", subject="layers", message=message)]
    order = [block.run for block in plan.blocks]
    if order != sorted(order):
        broken.append(Violation(rule="order", subject="layers", message=f"runs come as {order}"))
    held = plan.counts(problem).sum(axis=1)
    for run in np.flatnonzero(held != problem.layers).tolist():
        message = f"run {run} has {problem.layers[run]} layers, the plan {held[run]}"
        broken.append(Violation(rule="cover", subject=f"run {run}", message=message))
    if not np.isfinite(time_of(problem, plan)):
        broken.append(Violation(rule="possible", subject="layers", message="a layer has an impossible strategy"))
    used = memory_of(problem, plan)
    if used > problem.capacity_bytes * (1 + TOLERANCE):
        message = f"{used:.0f} bytes are used, {problem.capacity_bytes:.0f} there are"
        broken.append(Violation(rule="memory", subject="layers", message=message))
    return broken


def undominated(problem: LayerProblem) -> npt.NDArray[np.bool_]:
    """Strategies worth a look, bool [K, S]: possible, and no other of the family is as fast and as small."""
    time_s, memory = problem.time_s, problem.memory_bytes
    earlier = np.arange(time_s.shape[1])
    no_worse = (time_s[:, :, None] <= time_s[:, None]) & (memory[:, :, None] <= memory[:, None])
    better = (time_s[:, :, None] < time_s[:, None]) | (memory[:, :, None] < memory[:, None])
    first = earlier[:, None] < earlier[None]
    same_family = problem.family[:, None] == problem.family[None]
    dominated = (no_worse & (better | first) & same_family).any(axis=1)
    return np.asarray(np.isfinite(time_s) & ~dominated)


@dataclass(frozen=True, slots=True)
class Trail:
    """Families in the order in which a run goes through them, and the seconds of its switches."""

    families: tuple[int, ...]
    seconds: float


def trails(switch_s: FloatArray) -> list[Trail]:
    """The cheapest trail for every set of families, first and last one."""
    count = switch_s.shape[0]
    best = {(frozenset((f,)), f, f): Trail((f,), 0.0) for f in range(count)}
    for size in range(2, count + 1):
        for members in combinations(range(count), size):
            whole = frozenset(members)
            for last in members:
                rest = whole - {last}
                for first in rest:
                    ways = (
                        (best[key].seconds + float(switch_s[before, last]), (*best[key].families, last))
                        for before in rest
                        if (key := (rest, first, before)) in best
                    )
                    seconds, families = min(ways)
                    best[whole, first, last] = Trail(families, seconds)
    return list(best.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    model: LinearModel
    x: IntArray  # [K, S] columns, -1 where dropped
    z: IntArray  # [K, trails] columns; no trails with a single family
    unit_s: float


def _build(problem: LayerProblem, kept: npt.NDArray[np.bool_], ways: list[Trail]) -> _Model:
    builder = LinearBuilder()
    runs = problem.layers.size
    # Solvers hold tolerances of 1e-6: seconds and bytes go in as shares of what is large here.
    unit_s = float(problem.time_s[kept].max()) or 1.0
    unit_bytes = max(problem.capacity_bytes, float(problem.memory_bytes[kept].max())) or 1.0
    x = np.full(problem.time_s.shape, -1, dtype=np.int64)
    run = np.nonzero(kept)[0]
    columns = builder.variables(run.shape, upper=problem.layers[run], cost=problem.time_s[kept] / unit_s, integer=True)
    x[kept] = columns
    builder.sparse_rows(problem.layers, problem.layers, (run, columns, 1.0))
    memory = problem.memory_bytes[kept] / unit_bytes
    builder.sparse_rows([-np.inf], problem.capacity_bytes / unit_bytes, (np.zeros(run.size), columns, memory))
    z = np.zeros((runs, 0), dtype=np.int64)
    if len(ways) > 1:
        seconds = np.array([way.seconds for way in ways])
        z = builder.variables((runs, len(ways)), cost=seconds / unit_s, integer=True)
        builder.rows(1.0, 1.0, (z, 1.0))
        _families(builder, problem, x, z, ways)
        _junctions(builder, problem, z, ways, unit_s)
    return _Model(builder.build(), x, z, unit_s)


def _families(builder: LinearBuilder, problem: LayerProblem, x: IntArray, z: IntArray, ways: list[Trail]) -> None:
    """Layers take strategies of the families that their run goes through, and at least one of each."""
    for run in range(z.shape[0]):
        for family in range(problem.switch_s.shape[0]):
            through = z[run, [family in way.families for way in ways]]
            own = x[run, problem.family == family]
            own = own[own >= 0]
            rows = np.arange(own.size)
            layers = float(problem.layers[run])
            if own.size:
                builder.sparse_rows(
                    np.full(own.size, -np.inf), 0.0, (rows, own, 1.0), (rows[:, None], through[None], -layers)
                )
            builder.sparse_rows([0.0], np.inf, (0, own, 1.0), (0, through, -1.0))


def _junctions(builder: LinearBuilder, problem: LayerProblem, z: IntArray, ways: list[Trail], unit_s: float) -> None:
    families = problem.switch_s.shape[0]
    for run in range(z.shape[0] - 1):
        w = builder.variables((families, families), cost=problem.switch_s / unit_s)
        for family in range(families):
            ends = z[run, [way.families[-1] == family for way in ways]]
            begins = z[run + 1, [way.families[0] == family for way in ways]]
            builder.sparse_rows([0.0], 0.0, (0, w[family], 1.0), (0, ends, -1.0))
            builder.sparse_rows([0.0], 0.0, (0, w[:, family], 1.0), (0, begins, -1.0))


def choose(
    problem: LayerProblem, options: SolveOptions | None = None, budget: Budget | None = None
) -> SearchResult[LayerPlan]:
    """The fastest strategies that fit, with HiGHS; infeasible where even the smallest do not fit."""
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    started_s = time.perf_counter()
    kept = undominated(problem)
    reasons = _why_not(problem, kept)
    if reasons:
        return SearchResult(
            status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver="sum of the smallest", solver_version="",
            reasons=reasons,
        )  # fmt: skip
    ways = trails(problem.switch_s)
    built = _build(problem, kept, ways)
    build_s = time.perf_counter() - started_s
    result, values = solve_linear_mathopt(built.model, budget, options)
    plan = None if values is None else _read(problem, built, ways, values)
    reasons = ()
    if result.status is Status.INFEASIBLE:
        reasons = (f"no choice of strategies fits into {problem.capacity_bytes:.0f} bytes",)
    return SearchResult(
        status=result.status,
        stop=result.stop,
        plan=plan,
        solver=result.solver,
        solver_version=result.solver_version,
        claimed=None if plan is None else time_of(problem, plan),
        bound=None if result.bound is None else Bound(value=result.bound * built.unit_s, name="integer program"),
        build_s=build_s,
        reasons=reasons,
    )


def _why_not(problem: LayerProblem, kept: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    without = np.flatnonzero(~kept.any(axis=1)).tolist()
    if without:
        return tuple(f"run {run} has no possible strategy" for run in without)
    least = float((np.where(kept, problem.memory_bytes, np.inf).min(axis=1) * problem.layers).sum())
    if least <= problem.capacity_bytes:
        return ()
    return (f"the smallest strategies take {least:.0f} bytes, {problem.capacity_bytes:.0f} there are",)


def _read(problem: LayerProblem, built: _Model, ways: list[Trail], values: FloatArray) -> LayerPlan:
    blocks: list[Block] = []
    for run in range(problem.layers.size):
        way = ways[0]
        if built.z.shape[1]:
            way = ways[int(values[built.z[run]].argmax())]
        for family in way.families:
            for strategy in np.flatnonzero((problem.family == family) & (built.x[run] >= 0)).tolist():
                layers = as_integer(values[built.x[run, strategy]])
                if layers:
                    blocks.append(Block(run, strategy, layers))
    return LayerPlan(tuple(blocks))
