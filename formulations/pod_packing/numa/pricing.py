"""The best change of each machine at given prices, exactly in cores and memory. The mathematics:

Of a node with NUMA nodes h: VMs p that run there stay, or leave at the price c_p = π_j + μ + sum of ρ of their budgets;
VMs of class j come, each at the value π_j; and each chunk of cores that is free afterwards counts 1.
    f_h(c, m)    most value of the VMs on one NUMA node that use c cores and m of memory: its VMs stay or leave, then
                 any number of VMs come, by dynamic programming
    g_h(c, m)    max over k chunks of  k + max over c' <= c - chunk × k, m' <= m of f_h(c', m')
    d(c, m)      the same as f_h for VMs on both NUMA nodes, which take as much of each
    worth        max over c, m of  d(c, m) + g_0(C - c, M - m) + g_1(C - c, M - m)
Units: the greatest common divisor of all sizes where the tables stay small. Else coarser ones, VMs rounded down, so
that the worth is never too low; changes that then do not fit are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from formulations.pod_packing.numa.slots import Slots
from planner.workload import FloatArray, IntArray

#: Cells of one table at most along each side, and nodes of one block of tables.
CORES, MEMORY_CELLS, BLOCK = 96, 96, 256
#: Values this close are the same.
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Change:
    """Of one node: VMs that leave, (class, NUMA nodes) that come, and chunks of free cores that are won."""

    node: int
    removed: tuple[int, ...]
    added: tuple[tuple[int, tuple[int, ...]], ...]
    gain: int


class Pricer:
    """Tables of every node of a cluster."""

    def __init__(self, slots: Slots, movable: IntArray) -> None:
        problem, numa = slots.problem, slots.numa
        self.slots, self.problem, self.numa = slots, problem, numa
        running = np.flatnonzero(problem.pod_node >= 0)
        share = slots.share
        capacity = np.stack([problem.capacity[:, r] for r in self._known()], axis=1) // numa.count[:, None]
        used = share[np.unique(problem.pod_class[running])]
        self.unit = np.array(
            [
                _unit([*used[:, 0].tolist(), numa.chunk], int(capacity[:, 0].max()), CORES),
                _unit(used[:, 1].tolist(), int(capacity[:, 1].max()), MEMORY_CELLS),
            ]
        )
        self.size: IntArray = share // self.unit
        self.most: IntArray = capacity // self.unit
        self.chunk = int(numa.chunk // self.unit[0])
        self.shape = int(self.most[:, 0].max()) + 1, int(self.most[:, 1].max()) + 1
        #: VMs of each node by NUMA node, those on both last; VMs of no size count nothing and stay.
        self.here: list[tuple[list[int], list[int], list[int]]] = [([], [], []) for _ in range(problem.num_nodes)]
        self.stays = np.ones(len(problem.pod_node), dtype=np.bool_)
        self.stays[movable] = False
        for pod in running.tolist():
            at = numa.places[pod]
            self.here[problem.pod_node[pod]][2 if len(at) == 2 else at[0]].append(pod)
        self.blocks = [
            np.arange(start, min(start + BLOCK, problem.num_nodes)) for start in range(0, problem.num_nodes, BLOCK)
        ]
        self.turns = [[self._turns(block, h) for h in range(3)] for block in self.blocks]
        self.coming = [int(j) for j in np.unique(problem.pod_class[movable]) if self.size[j, 0] > 0]

    def _turns(self, block: IntArray, h: int) -> list[tuple[IntArray, IntArray]]:
        """First, second, ... VM of each node on NUMA node h (2: on both), -1 for none, [n]; and their sizes, [n, 2]."""
        lists = [self.here[node][h] for node in block.tolist()]
        found = []
        for i in range(max(map(len, lists))):
            pods = np.array([pods[i] if i < len(pods) else -1 for pods in lists], dtype=np.int64)
            found.append((pods, np.where(pods[:, None] >= 0, self.size[self.problem.pod_class[pods]], 0)))
        return found

    def _known(self) -> list[int]:
        names = self.problem.resources
        return [names.index("cpu"), names.index("memory") if "memory" in names else names.index("cpu")]

    def best(self, value: FloatArray, leaving: FloatArray, least: FloatArray) -> tuple[FloatArray, list[Change]]:
        """What a change of each node is worth at most, [N], without what it has now; and changes worth more than least.

        value : [J] of a VM that comes. leaving : [P] price of each VM that leaves. least : [N].
        """
        worth = np.zeros(self.problem.num_nodes)
        found: list[Change] = []
        price = np.append(np.where(self.stays, np.inf, leaving), 0.0)
        for nodes, turns in zip(self.blocks, self.turns, strict=True):
            tables = _Tables(self, nodes, turns, value, price)
            now = (self.slots.free[nodes][:, :, 0] // self.numa.chunk).sum(axis=1)
            worth[nodes] = np.maximum(0.0, tables.worth - now)
            for b in np.flatnonzero(worth[nodes] > least[nodes] + EPSILON).tolist():
                change = self._real(int(nodes[b]), *tables.content(b))
                if change is not None:
                    found.append(change)
        return worth, found

    def _real(self, node: int, removed: list[int], added: list[tuple[int, tuple[int, ...]]]) -> Change | None:
        """The change with its true gain; None where it changes nothing, or does not fit."""
        slots, problem = self.slots, self.problem
        for pod in list(removed):
            # One that leaves and comes back to where it was stays.
            same = int(problem.pod_class[pod]), self.numa.places[pod]
            if same in added:
                added.remove(same)
                removed.remove(pod)
        before = slots.free[node].copy(), slots.left[node].copy()
        for pod in removed:
            slots.put(node, int(problem.pod_class[pod]), self.numa.places[pod], -1)
        for j, at in added:
            slots.put(node, j, at)
        fits = (slots.free[node] >= 0).all() and (slots.left[node] >= 0).all()
        gain = int((slots.free[node, :, 0] // self.numa.chunk - before[0][:, 0] // self.numa.chunk).sum())
        slots.free[node], slots.left[node] = before
        if not fits or not (removed or added):
            return None
        return Change(node, tuple(sorted(removed)), tuple(sorted(added)), gain)


def _unit(sizes: list[int], most: int, cells: int) -> int:
    """The greatest common divisor, or what makes so many cells where that is finer."""
    return max(1, math.gcd(*sizes), -(-most // cells))


class _Tables:
    """Of a block of nodes, for one set of prices; arrays are [nodes, 2, cores, memory], or without the 2."""

    def __init__(
        self,
        pricer: Pricer,
        nodes: IntArray,
        turns: list[list[tuple[IntArray, IntArray]]],
        value: FloatArray,
        price: FloatArray,
    ) -> None:
        self.pricer, self.nodes, self.value = pricer, nodes, value
        numa, problem = pricer.numa, pricer.problem
        self.cells = pricer.shape[0] * pricer.shape[1]
        allowed = problem.allowed[:, nodes]
        both = numa.count[nodes] == 2
        self.may = {
            j: np.where(allowed[j] & (both if numa.width[j] == 2 else True), 0.0, -np.inf) for j in pricer.coming
        }
        single = [j for j in pricer.coming if numa.width[j] == 1]
        double = [j for j in pricer.coming if numa.width[j] == 2]
        self.stages = [self._stay_or_leave(nodes.size, one, price) for one in turns]
        self.full = [self._come(self.stages[h][-1], single if h < 2 else double) for h in range(3)]
        self.classes = (single, single, double)
        self.high = [np.maximum.accumulate(np.maximum.accumulate(self.full[h], axis=1), axis=2) for h in range(2)]
        self.g = [self._with_chunks(high) for high in self.high]
        self.joint = self.full[2].copy()
        cores, memory = np.indices(pricer.shape)
        top = pricer.most[nodes]
        c, m = top[:, 0, None, None] - cores, top[:, 1, None, None] - memory
        ok = (c >= 0) & (m >= 0)
        block = np.arange(nodes.size)[:, None, None]
        for h in range(2):
            there = (h < numa.count[nodes])[:, None, None]
            mine = np.where(ok, self.g[h][block, np.maximum(c, 0), np.maximum(m, 0)], -np.inf)
            self.joint += np.where(there, mine, np.where(ok, 0.0, -np.inf))
        flat = self.joint.reshape(nodes.size, -1)
        self.at = flat.argmax(axis=1)
        self.worth: FloatArray = flat[np.arange(nodes.size), self.at]

    def _stay_or_leave(self, num: int, turns: list[tuple[IntArray, IntArray]], price: FloatArray) -> list[FloatArray]:
        """The table of nothing, then after each VM of the nodes, in the order of their lists."""
        shape = self.pricer.shape
        table = np.full((num, *shape), -np.inf)
        table[:, 0, 0] = 0.0
        found = [table]
        flat_index = np.arange(self.cells)
        cores, memory = flat_index // shape[1], flat_index % shape[1]
        for pods, size in turns:
            back = flat_index - size[:, :1] * shape[1] - size[:, 1:]
            back = np.where((cores >= size[:, :1]) & (memory >= size[:, 1:]), back, self.cells)
            flat = np.concatenate([table.reshape(num, -1), np.full((num, 1), -np.inf)], axis=1)
            stay = np.take_along_axis(flat, back, axis=1).reshape(table.shape)
            table = np.maximum(stay, table - price[pods][:, None, None])
            found.append(table)
        return found

    def _come(self, table: FloatArray, classes: list[int]) -> FloatArray:
        """After any number of VMs of these classes have come."""
        table = table.copy()
        cores, memory = self.pricer.shape
        for j in classes:
            c, m = self.pricer.size[j].tolist()
            worth = (self.value[j] + self.may[j])[:, None]
            if m >= memory:
                continue
            for at in range(c, cores):
                np.maximum(table[:, at, m:], table[:, at - c, : memory - m] + worth, out=table[:, at, m:])
        return table

    def _with_chunks(self, high: FloatArray) -> FloatArray:
        found = high.copy()
        for k in range(1, (self.pricer.shape[0] - 1) // self.pricer.chunk + 1 if self.pricer.chunk else 1):
            used = k * self.pricer.chunk
            np.maximum(found[:, used:], high[:, : self.pricer.shape[0] - used] + k, out=found[:, used:])
        return found

    def content(self, b: int) -> tuple[list[int], list[tuple[int, tuple[int, ...]]]]:
        """VMs that leave node b of the block in its best change, and (class, NUMA nodes) that come."""
        pricer, node = self.pricer, int(self.nodes[b])
        c, m = divmod(int(self.at[b]), pricer.shape[1])
        removed: list[int] = []
        added: list[tuple[int, tuple[int, ...]]] = []
        self._trace(2, b, c, m, removed, added)
        top = int(pricer.most[node, 0]) - c, int(pricer.most[node, 1]) - m
        for h in range(int(pricer.numa.count[node])):
            goal = self.g[h][b, top[0], top[1]]
            k = 0
            while self.high[h][b, top[0] - k * pricer.chunk, top[1]] + k < goal - EPSILON:
                k += 1
            part = self.full[h][b, : top[0] - k * pricer.chunk + 1, : top[1] + 1]
            at = divmod(int(part.argmax()), part.shape[1])
            self._trace(h, b, at[0], at[1], removed, added)
        return removed, added

    def _trace(
        self, h: int, b: int, c: int, m: int, removed: list[int], added: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        pricer, stages = self.pricer, self.stages[h]
        full, before = self.full[h][b], stages[-1][b]
        at = (0, 1) if h == 2 else (h,)
        while full[c, m] > before[c, m] + EPSILON:
            j = next(self._came(full, b, c, m, h))
            added.append((j, at))
            c, m = c - int(pricer.size[j, 0]), m - int(pricer.size[j, 1])
        pods = pricer.here[int(self.nodes[b])][h]
        for i in range(len(pods) - 1, -1, -1):
            w, v = pricer.size[pricer.problem.pod_class[pods[i]]].tolist()
            last = stages[i][b]
            if c >= w and m >= v and last[c - w, m - v] >= stages[i + 1][b, c, m] - EPSILON:
                c, m = c - w, m - v
            else:
                removed.append(pods[i])

    def _came(self, full: FloatArray, b: int, c: int, m: int, h: int) -> Iterator[int]:
        """Classes of which one may have come last."""
        for j in self.classes[h]:
            w, v = self.pricer.size[j].tolist()
            if c >= w and m >= v and full[c - w, m - v] + self.value[j] + self.may[j][b] >= full[c, m] - EPSILON:
                yield j
