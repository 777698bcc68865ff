"""Which node works on which stage of which pipeline, for measured bandwidth between nodes.

Tensor parallelism stays inside a node; what is mapped here is the pipeline and the data-parallel ring across nodes.

Sets
    p, s       pipelines (data-parallel ranks) and their stages; p = 1 .. P, s = 1 .. S
    u          nodes, P S of them
Data
    r[u,v]     seconds a byte from node u to node v: measured, not symmetric
    A          bytes of activations that a stage sends on; gradients come back
    G[s]       bytes that a stage's ring reduces; embedding and head make the ends larger; 0 leaves a stage unpriced
Variables
    u(p,s)     node of a place: a permutation
Objective
    minimise   max_p sum_{s < S} 2 A r[u(p,s), u(p,s+1)]                                 the slowest pipeline
             + max_s 2 (P - 1)/P G[s] max_p r[u(p,s), u(p+1,s)]                          the slowest ring, p + 1 cyclic
Bound
    pipelines  a path cover of all nodes by P paths has N - P edges; the slowest path is no faster than the mean of the
               cheapest assignment of as many edges
    rings      each node of a ring sends, so its largest r is at least the P-th smallest of the nodes' least r; with all
               stages priced, the node with the worst least r is in some ring
Search
    iterated local search. Only a swap with a node of the slowest pipeline or of the slowest link of the slowest ring
    can help, so these are priced, all at once; where none helps, a few random swaps, and back to the best where that
    fails.

A cost of 1e-3 of the mean over pipelines and rings breaks the ties that a maximum leaves.
Ignored: several rings at a time on one link; latency, for messages of megabytes.
Reference: Pipette (DATE 2024), which prices the rings of the first stages only and anneals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from formulations.backends.linear import IntArray
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]

#: Weight of the means that break ties; small enough never to trade against a maximum that matters.
TIE = 1e-3
#: Random swaps of a kick, and kicks without a gain after which the search goes back to its best.
KICK_SWAPS, PATIENCE = 3, 12
#: Kicks of a search without a work limit of its own, per node; it ends there or at the time limit.
KICKS_PER_NODE = 150


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MappingProblem:
    """Nodes to be mapped.

    bandwidth_bytes_per_s : [N, N] from row to column, positive off the diagonal, which is not read.
    pipelines, stages : N = pipelines x stages.
    activation_bytes : sent forward, and as gradients back, between neighbouring stages.
    gradient_bytes : [stages] reduced over each stage's ring.
    """

    bandwidth_bytes_per_s: FloatArray
    pipelines: int
    stages: int
    activation_bytes: float
    gradient_bytes: FloatArray

    def __post_init__(self) -> None:
        bandwidth = self.bandwidth_bytes_per_s
        if bandwidth.ndim != 2 or bandwidth.shape[0] != bandwidth.shape[1]:
            raise ValueError(f"the bandwidth matrix has shape {bandwidth.shape}; it must be square")
        if self.pipelines < 1 or self.stages < 1 or self.pipelines * self.stages != bandwidth.shape[0]:
            raise ValueError(f"{self.pipelines} pipelines of {self.stages} stages do not take {len(bandwidth)} nodes")
        apart = ~np.eye(len(bandwidth), dtype=bool)
        bad = np.argwhere(apart & ~((bandwidth > 0) & np.isfinite(bandwidth)))
        if bad.size:
            u, v = bad[0]
            raise ValueError(f"bandwidth from node {u} to node {v} is {bandwidth[u, v]}; it must be positive")
        if self.gradient_bytes.shape != (self.stages,) or not (self.gradient_bytes >= 0).all():
            raise ValueError("gradient_bytes is [stages] and not negative")
        if not self.activation_bytes >= 0:
            raise ValueError("activation_bytes must not be negative")

    @property
    def second_per_byte(self) -> FloatArray:
        """[N, N], 0 on the diagonal."""
        apart = ~np.eye(len(self.bandwidth_bytes_per_s), dtype=bool)
        found: FloatArray = np.zeros(self.bandwidth_bytes_per_s.shape)
        found[apart] = 1.0 / self.bandwidth_bytes_per_s[apart]
        return found


@dataclass(frozen=True, slots=True)
class Mapping:
    """Node of every place: one row a pipeline, one column a stage."""

    nodes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class MappingCost:
    """Seconds of B mappings: the pipelines [B, P], and the rings [B, S]."""

    pipelines_s: FloatArray
    rings_s: FloatArray

    @property
    def total_s(self) -> FloatArray:
        """Slowest pipeline and slowest ring, [B]."""
        return np.asarray(self.pipelines_s.max(axis=1) + self.rings_s.max(axis=1))

    @property
    def rank_s(self) -> FloatArray:
        """What the search minimises, [B]: the total, and a little of the means."""
        return np.asarray(self.total_s + TIE * (self.pipelines_s.mean(axis=1) + self.rings_s.mean(axis=1)))


def cost(problem: MappingProblem, places: IntArray) -> MappingCost:
    """Price mappings [B, pipelines, stages] of nodes."""
    return _cost(problem, problem.second_per_byte, places)


def _cost(problem: MappingProblem, second_per_byte: FloatArray, places: IntArray) -> MappingCost:
    hops = second_per_byte[places[:, :, :-1], places[:, :, 1:]]
    links = second_per_byte[places, np.roll(places, -1, axis=1)]
    return MappingCost(
        pipelines_s=2.0 * problem.activation_bytes * hops.sum(axis=2),
        rings_s=_ring_bytes(problem) * links.max(axis=1),
    )


def _ring_bytes(problem: MappingProblem) -> FloatArray:
    """Bytes that each link of a stage's ring carries in a reduce-scatter and an all-gather, [S]."""
    return 2.0 * (problem.pipelines - 1) / problem.pipelines * problem.gradient_bytes


def seconds(problem: MappingProblem, mapping: Mapping) -> float:
    """The objective of one mapping."""
    return float(cost(problem, np.array([mapping.nodes])).total_s[0])


def check(problem: MappingProblem, mapping: Mapping) -> list[Violation]:
    """Every broken rule: shape, each node once."""
    lengths = [len(row) for row in mapping.nodes]
    if lengths != [problem.stages] * problem.pipelines:
        message = f"pipelines have {lengths} stages; there are {problem.pipelines} of {problem.stages}"
        return [Violation(rule="shape", subject="mapping", message=message)]
    held = sorted(node for row in mapping.nodes for node in row)
    if held != list(range(problem.pipelines * problem.stages)):
        return [Violation(rule="cover", subject="mapping", message="not every node has one place")]
    return []


def in_order(problem: MappingProblem) -> Mapping:
    """The plain rule: nodes as they are numbered, a pipeline after the other."""
    places = np.arange(problem.pipelines * problem.stages).reshape(problem.pipelines, problem.stages)
    return Mapping(tuple(map(tuple, places.tolist())))


def bound_s(problem: MappingProblem) -> float:
    """No mapping takes less."""
    return _pipelines_bound_s(problem) + _rings_bound_s(problem)


def _pipelines_bound_s(problem: MappingProblem) -> float:
    from scipy.optimize import linear_sum_assignment

    if problem.stages == 1:
        return 0.0
    nodes, paths = problem.pipelines * problem.stages, problem.pipelines
    hop_s = problem.second_per_byte.copy()
    np.fill_diagonal(hop_s, hop_s.sum())
    # Each path's last node goes nowhere and its first comes from nowhere: dummies, which do not meet.
    square = np.zeros((nodes + paths, nodes + paths))
    square[:nodes, :nodes] = hop_s
    square[nodes:, nodes:] = hop_s.sum()
    row, column = linear_sum_assignment(square)
    return float(2.0 * problem.activation_bytes * square[row, column].sum() / paths)


def _rings_bound_s(problem: MappingProblem) -> float:
    if problem.pipelines == 1:
        return 0.0
    link_s = problem.second_per_byte.copy()
    np.fill_diagonal(link_s, np.inf)
    least = np.sort(np.maximum(link_s.min(axis=0), link_s.min(axis=1)))
    ring = _ring_bytes(problem)
    return float(max(ring.max() * least[problem.pipelines - 1], ring.min() * least[-1]))


def choose(
    problem: MappingProblem, options: SolveOptions | None = None, budget: Budget | None = None
) -> SearchResult[Mapping]:
    """A mapping by iterated local search and its bound. The work limit counts kicks."""
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    search = _Search(problem, options.seed)
    bound = Bound(value=bound_s(problem), name="assignment of hops, and least links of rings")
    kicks = int(options.work_limit or KICKS_PER_NODE * problem.pipelines * problem.stages)
    stop = search.run(budget, kicks, bound.value) or (Stop.HEURISTIC if options.work_limit is None else Stop.WORK_LIMIT)
    plan = Mapping(tuple(map(tuple, search.best.tolist())))
    claimed = seconds(problem, plan)
    proven = claimed <= bound.value * (1 + TOLERANCE)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else stop,
        plan=plan,
        solver="local search",
        solver_version="",
        claimed=claimed,
        bound=bound,
    )


class _Search:
    """Iterated local search over permutations, [pipelines, stages]."""

    def __init__(self, problem: MappingProblem, seed: int) -> None:
        self.problem = problem
        self.second_per_byte = problem.second_per_byte
        self.draw = np.random.default_rng(seed)
        self.best: IntArray = np.array(in_order(problem).nodes, dtype=np.int64)
        self.best_s = self._price(self.best)

    def run(self, budget: Budget, kicks: int, enough_s: float) -> Stop | None:
        """Descend from the plain rule, then kick and descend; None at the end of the kicks."""
        size = self.best.size
        if size == 1:
            return None
        here, here_s = self._descend(self.best, self.best_s, budget)
        self._keep(here, here_s)
        failed = 0
        for _ in range(kicks):
            if self._total(self.best) <= enough_s * (1 + TOLERANCE):
                return None
            stop = budget.stop()
            if stop is not None:
                return stop
            there = here.copy().ravel()
            for _ in range(KICK_SWAPS):
                i, j = self.draw.integers(0, size, 2)
                there[i], there[j] = there[j], there[i]
            shaken = there.reshape(here.shape)
            found, found_s = self._descend(shaken, self._price(shaken), budget)
            failed = 0 if found_s < here_s * (1 - 1e-12) else failed + 1
            if found_s <= here_s:
                here, here_s = found, found_s
            self._keep(here, here_s)
            if failed >= PATIENCE:
                # Half of the time on from the best, half from somewhere else.
                failed = 0
                here = self.best if self.draw.random() < 0.5 else self.draw.permutation(size).reshape(here.shape)
                here, here_s = self._descend(here, self._price(here), budget)
                self._keep(here, here_s)
        return None

    def _keep(self, places: IntArray, rank_s: float) -> None:
        # The tie-breaker guides, the total decides.
        if (self._total(places), rank_s) < (self._total(self.best), self.best_s):
            self.best, self.best_s = places, rank_s

    def _price(self, places: IntArray) -> float:
        return float(_cost(self.problem, self.second_per_byte, places[None]).rank_s[0])

    def _total(self, places: IntArray) -> float:
        return float(_cost(self.problem, self.second_per_byte, places[None]).total_s[0])

    def _descend(self, places: IntArray, rank_s: float, budget: Budget) -> tuple[IntArray, float]:
        """Take the best swap until none helps."""
        while budget.stop() is None:
            neighbours = self._swaps(places)
            priced_s = _cost(self.problem, self.second_per_byte, neighbours).rank_s
            best = int(priced_s.argmin())
            if not priced_s[best] < rank_s * (1 - 1e-12):
                break
            places, rank_s = neighbours[best], float(priced_s[best])
        return places, rank_s

    def _swaps(self, places: IntArray) -> IntArray:
        """All mappings one swap away that can be better, [B, pipelines, stages]."""
        priced = _cost(self.problem, self.second_per_byte, places[None])
        pipeline, stage = int(priced.pipelines_s[0].argmax()), int(priced.rings_s[0].argmax())
        ring = places[:, stage]
        link = int(self.second_per_byte[ring, np.roll(ring, -1)].argmax())
        after = (link + 1) % self.problem.pipelines
        stages = self.problem.stages
        critical = np.unique([*(pipeline * stages + np.arange(stages)), link * stages + stage, after * stages + stage])
        i, j = (side.ravel() for side in np.meshgrid(critical, np.arange(places.size), indexing="ij"))
        fresh = (i != j) & ~(np.isin(j, critical) & (j < i))
        i, j = i[fresh], j[fresh]
        flat = np.repeat(places.reshape(1, -1), i.size, axis=0)
        rows = np.arange(i.size)
        flat[rows, i], flat[rows, j] = places.ravel()[j], places.ravel()[i]
        return flat.reshape(-1, *places.shape)
