"""Nodes that are alike, and what one of them can hold: the K kinds of nodes and the classes that still want a place.

Two nodes are of one kind when the same amounts and the same parts of devices are free on them, the same classes may run
there, and they count the same when they are used. Numbers of classes are local: 0 .. len(classes) - 1.

A class that has to be spread over zones comes once for each zone, and may run there alone. So its kinds differ by zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from formulations.pod_packing.exchanges import fitting, shortest
from formulations.pod_packing.knapsack import packed
from formulations.pod_packing.problem import BoolArray, PodsProblem
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.workload import FloatArray, IntArray

#: A pod of a local class and its devices, numbered within the kind: fullest free first.
Entry = tuple[int, tuple[int, ...]]
Pattern = tuple[Entry, ...]
#: Zones up to which a spread is part of the program of patterns; over more (hosts), it is kept when pods are placed.
MOST_ZONES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Zoned:
    """Local classes that are one class in its zones: their numbers of pods differ by max_skew at most."""

    classes: IntArray
    max_skew: int


@dataclass(frozen=True, eq=False)
class Shapes:
    """classes : [J'] numbers of the problem's classes. nodes : nodes of each kind; count : how many, [K].

    free : [K, R]; device : [K, D], falling, -1 beyond the devices. allowed : [K, J']. cost : [K] of a node in use.
    alone : [J', J'] classes that do not share a node (by anti-affinity); on the diagonal: one of them a node.
    zone : [J'] domain of the topology `topology` [J'] that a class is for, both -1 for all.
    """

    problem: PodsProblem
    classes: IntArray
    nodes: tuple[IntArray, ...]
    free: IntArray
    device: IntArray
    allowed: BoolArray
    cost: FloatArray
    alone: BoolArray
    zone: IntArray
    topology: IntArray
    zoned: tuple[Zoned, ...]

    @property
    def count(self) -> IntArray:
        """[K]."""
        return np.array([len(nodes) for nodes in self.nodes], dtype=np.int64)

    @cached_property
    def request(self) -> IntArray:
        """[J', R]."""
        return self.problem.request[self.classes]

    @cached_property
    def fits(self) -> BoolArray:
        """Whether a place for local class b will do for a, [J', J'] (`exchanges`)."""
        gpus, milli = self.problem.class_gpus[self.classes], self.problem.class_milli[self.classes]
        return fitting(self.request, gpus, milli, self.allowed.T, self.problem.crossing[self.classes])

    @cached_property
    def exchanges(self) -> IntArray:
        """Pairs (a, b) of these, [E, 2], from which the others follow."""
        return shortest(self.fits)

    @cached_property
    def gangs(self) -> tuple[tuple[IntArray, int], ...]:
        """Local classes of each gang that has no pods yet, and how many of them run at least if any does."""
        problem, gang = self.problem, self.problem.gang[self.classes]
        fresh = [g for g in np.unique(gang[gang >= 0]).tolist() if not problem.running[problem.gang == g].any()]
        return tuple((np.flatnonzero(gang == g), int(problem.gang_least[g])) for g in fresh)

    def running(self, places: IntArray, demand: IntArray) -> IntArray:
        """Pods of each local class that run in so many places, at most `demand`, [J']: spread classes within their
        skew, gangs whole or not at all."""
        found = np.minimum(places, demand)
        for one in self.zoned:
            found[one.classes] = np.minimum(found[one.classes], found[one.classes].min() + one.max_skew)
        for mine, least in self.gangs:
            if found[mine].sum() < least:
                found[mine] = 0
        return found

    def holds(self, kind: int, pattern: Pattern) -> bool:
        """Whether a node of the kind has room for the pattern."""
        none = np.zeros(0, dtype=np.int64)
        return len(self.packed(kind, list(pattern), counts(self, pattern), none)) == len(pattern)

    def packed(self, kind: int, wanted: list[Entry], left: IntArray, order: IntArray) -> Pattern:
        """What fits on a node of the kind: of the pods wanted, in turn, those that do; then of each class of `order`
        as many as there is room for. At most `left` [J'] of a class."""
        problem, num_devices = self.problem, self.device.shape[1]
        devices = np.full((len(wanted), num_devices), -1, dtype=np.int64)
        for place, (_, mine) in enumerate(wanted):
            devices[place, : len(mine)] = mine
        found, places = packed(
            self.free[kind], self.device[kind], self.allowed[kind], self.request, problem.class_gpus[self.classes],
            problem.class_milli[self.classes], self.alone, left, np.array([j for j, _ in wanted], dtype=np.int64),
            devices, order,
        )  # fmt: skip
        gpus = problem.class_gpus[self.classes[found]].tolist()
        rows = zip(found.tolist(), places.tolist(), gpus, strict=True)
        return tuple((j, tuple(row[:number])) for j, row, number in rows)


def shapes_of(state: State, only: IntArray | None = None) -> Shapes:
    """The kinds of the nodes (of `only` some) as they are now, and the classes with pods that have no place."""
    problem = state.problem
    nodes = np.arange(problem.num_nodes) if only is None else only
    left = problem.demand + problem.running - state.placed
    wanted = np.flatnonzero((left > 0) & problem.allowed[:, nodes].any(axis=1))
    classes, zone, topology, zoned = _by_zone(problem, wanted)
    allowed = problem.allowed[np.ix_(classes, nodes)].T.copy()
    for index, j in enumerate(classes.tolist()):
        kept_out = _kept_out(state, j)
        if kept_out is not None:
            allowed[:, index] &= ~kept_out[nodes]
        if zone[index] >= 0:
            allowed[:, index] &= problem.domain[topology[index], nodes] == zone[index]
    device = -np.sort(-state.device[nodes], axis=1)
    cost = np.where(state.pods_on[nodes] > 0, 0.0, problem.node_cost[nodes])
    table = np.concatenate([state.free[nodes], device, allowed, cost[:, None]], axis=1)
    _, first, place = np.unique(table, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    starts = np.searchsorted(place.ravel()[order], np.arange(first.size + 1))
    return Shapes(
        problem=problem,
        classes=classes,
        nodes=tuple(nodes[order[starts[k] : starts[k + 1]]] for k in range(first.size)),
        free=state.free[nodes][first],
        device=device[first],
        allowed=allowed[first],
        cost=cost[first],
        alone=_alone(problem, classes),
        zone=zone,
        topology=topology,
        zoned=zoned,
    )


def _by_zone(problem: PodsProblem, wanted: IntArray) -> tuple[IntArray, IntArray, IntArray, tuple[Zoned, ...]]:
    """Classes, each as often as it has zones of its own; zone and topology of each, and which belong together.

    A spread is taken that means its own pending pods alone, over few domains, as many as it asks for.
    """
    spreads = {}
    for rule in problem.spread:
        domains = np.unique(problem.domain[rule.topology][rule.counted])
        domains = domains[domains >= 0]
        own = rule.matches[rule.owner] and rule.matches.sum() == 1 and not problem.running[rule.owner]
        if own and max(1, rule.min_domains) <= domains.size <= MOST_ZONES and rule.owner not in spreads:
            spreads[rule.owner] = rule, domains
    classes: list[int] = []
    zone: list[int] = []
    topology: list[int] = []
    zoned: list[Zoned] = []
    for j in wanted.tolist():
        domains = np.array([-1], dtype=np.int64)
        if j in spreads:
            rule, domains = spreads[j]
            zoned.append(Zoned(np.arange(len(classes), len(classes) + domains.size), rule.max_skew))
        classes += [j] * domains.size
        zone += domains.tolist()
        topology += [spreads[j][0].topology if j in spreads else -1] * domains.size
    arrays = (np.array(one, dtype=np.int64) for one in (classes, zone, topology))
    return (*arrays, tuple(zoned))  # type: ignore[return-value]


def _kept_out(state: State, j: int) -> BoolArray | None:
    """Nodes where anti-affinity to pods that are there keeps class j out, [N]; for good, because they stay."""
    problem = state.problem
    if not any(not rule.together and (rule.owner == j or rule.matches[j]) for rule in problem.near):
        return None
    return state.avoided(j)


def _alone(problem: PodsProblem, classes: IntArray) -> BoolArray:
    """Pairs that anti-affinity keeps off one node, whatever topology it is written for: a node is in one domain."""
    found = np.zeros((classes.size, classes.size), dtype=np.bool_)
    for rule in problem.near:
        owners = np.flatnonzero(classes == rule.owner)
        if rule.together or not owners.size or (problem.domain[rule.topology] < 0).any():
            continue
        row = rule.matches[classes]
        found[owners] |= row
        found[:, owners] |= row[:, None]
    return found


def counts(shapes: Shapes, pattern: Pattern) -> IntArray:
    """Pods of each local class in a pattern, [J']."""
    return np.bincount([j for j, _ in pattern], minlength=shapes.classes.size).astype(np.int64)


def whole_devices(device: IntArray) -> int:
    """Devices of a kind that nobody uses."""
    return int((device == WHOLE_MILLI).sum())
