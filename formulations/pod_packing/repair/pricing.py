"""What a node may give up and get at prices: its best change, and a bound on all changes.

Data: π_j value of one more pod of class j; c_p price of moving pod p away (its class's value, a move, its budgets).
For prices λ_r >= 0 of amounts: v_j = π_j - λ·request_j and c'_p = c_p - λ·request_p. Of one node:
    f[m]    most value of share pods, any number of each, on m parts of a device
    A_d     = max over pods of device d that leave of f[parts free then] - sum of c'_p       (0/1 knapsack)
    W[g]    most value on g whole devices: pods that take whole ones, or shared devices worth f[whole]
    V[n]    = max over devices emptied and pods of whole devices removed, n devices in all, of what that brings
The node's best change is worth at most
    sum of A_d + max over n of (V[n] + W[free + n]) + sum over pods without devices of max(0, -c'_p) + λ·free
    + sum over classes without devices of max(0, v_j) × the number that could fit,
for every λ; the least of some is the bound. Each λ's best change, cut to what fits together with all amounts and filled
up, is a candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from formulations.pod_packing.problem import BoolArray, Leave, PodsProblem
from formulations.pod_packing.repair import kernel
from formulations.pod_packing.repair.kinds import Kinds
from formulations.pod_packing.state import State
from planner.kubernetes.snapshot import CPU, MEMORY, WHOLE_MILLI
from planner.workload import FloatArray, IntArray

#: Prices that are tried, as shares of the largest value of a unit: of cores alone, of memory alone, of both.
CORE_SHARES = 1.0 / 1.6 ** np.arange(16)
MEMORY_SHARES = 1.0 / 3.0 ** np.arange(6)
BOTH_SHARES = 1.0 / 2.5 ** np.arange(7)
#: A change must be worth this much more than nothing, relative to the largest value.
LEAST_WORTH = 1e-7


@dataclass(frozen=True, slots=True)
class Change:
    """What happens on one node: pods that leave it, those of them for good, and kinds that come, with their devices."""

    node: int
    removed: tuple[int, ...]
    evicted: tuple[int, ...]
    added: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def key(self) -> tuple[object, ...]:
        """Changes that differ in devices alone are one."""
        return self.node, self.removed, self.evicted, tuple(sorted(kind for kind, _ in self.added))


class Pricer:
    """Arrays of the cluster as it runs, for the kernel."""

    def __init__(self, problem: PodsProblem, leave: Leave, kinds: Kinds) -> None:
        self.problem, self.kinds = problem, kinds
        state = State(problem)
        self.free, self.device = state.free, state.device
        self.part = math.gcd(WHOLE_MILLI, *kinds.milli[kinds.is_share].tolist(), *_some(self.device))
        self.parts = np.where(kinds.is_share, kinds.milli // self.part, 0)
        self.wholes = np.where(kinds.is_share, 0, kinds.gpus)
        self.pods = np.flatnonzero(leave.movable)
        self.pod_kind = kinds.of_class[problem.pod_class[self.pods]]
        freed = self.free.copy()
        np.add.at(freed, problem.pod_node[self.pods], kinds.request[self.pod_kind])
        # What is too large for a node even when all who may have left it counts for nothing in its bound.
        fitting = kinds.allowed.T & (kinds.gpus <= problem.gpus[:, None])
        for r in range(kinds.request.shape[1]):
            fitting &= kinds.request[:, r] <= freed[:, r, None]
        rows, self.group = np.unique(fitting, axis=0, return_inverse=True)
        self.group, self.allowed = self.group.ravel().astype(np.int64), np.ascontiguousarray(rows)
        self.pod_bits = np.array([_bits(problem.pod_devices[p]) for p in self.pods.tolist()], dtype=np.int64)
        self._lists(leave)
        self.bare_kinds = np.flatnonzero(kinds.gpus == 0)
        some = np.maximum(kinds.request[self.bare_kinds], 1e-9)
        self.fits = np.floor((freed[:, None, :] / some).min(axis=2, initial=np.inf))
        self.fits = np.minimum(self.fits, kinds.counts(problem.demand + problem.running)[self.bare_kinds])

    def _lists(self, leave: Leave) -> None:
        """Per node: partly used devices with the pods that share them, pods of whole devices, pods without any."""
        problem = self.problem
        nodes = problem.num_nodes
        local = {p: index for index, p in enumerate(self.pods.tolist())}
        shares: list[dict[int, list[int]]] = [{} for _ in range(nodes)]
        fixed: list[set[int]] = [set() for _ in range(nodes)]
        whole: list[list[int]] = [[] for _ in range(nodes)]
        bare: list[list[int]] = [[] for _ in range(nodes)]
        for p in np.flatnonzero(problem.pod_node >= 0).tolist():
            n, devices = int(problem.pod_node[p]), problem.pod_devices[p]
            is_share = bool(problem.is_share[problem.pod_class[p]])
            if is_share:
                mine = shares[n].setdefault(devices[0], [])
                if p in local and len(mine) < kernel.MOST_BITS:
                    mine.append(local[p])
                else:
                    fixed[n].add(devices[0])
            elif p in local:
                (whole if devices else bare)[n].append(local[p])
        for n, d in np.argwhere((self.device > 0) & (self.device < WHOLE_MILLI)).tolist():
            shares[n].setdefault(d, [])
        used = [(n, d, pods) for n in range(nodes) for d, pods in sorted(shares[n].items())]
        self.device_start = _starts([len(one) for one in shares])
        self.device_free = np.array([self.device[n, d] // self.part for n, d, _ in used], dtype=np.int64)
        self.device_open = np.array([d not in fixed[n] for n, d, _ in used], dtype=np.bool_)
        self.device_index = np.array([d for _, d, _ in used], dtype=np.int64)
        self.device_pods = _starts([len(pods) for *_, pods in used])
        self.share_pod = _flat([pods for *_, pods in used])
        self.share_parts = self.parts[self.pod_kind[self.share_pod]]
        self.whole_start, self.whole_pod = _starts([len(one) for one in whole]), _flat(whole)
        self.bare_start, self.bare_pod = _starts([len(one) for one in bare]), _flat(bare)

    def _prices(self, values: FloatArray) -> FloatArray:
        """[L, R] prices of amounts that are tried; the first are none."""
        resources, request = self.problem.resources, self.kinds.request
        top = np.zeros(len(resources))
        for name in (CPU, MEMORY):
            if name in resources:
                r = resources.index(name)
                asked = request[:, r] > 0
                top[r] = (values[asked] / request[asked, r]).max(initial=0.0)
        cores = np.where([name == CPU for name in resources], top, 0.0)
        memory = top - cores
        return np.concatenate(
            [
                np.zeros((1, top.size)), CORE_SHARES[:, None] * cores, MEMORY_SHARES[:, None] * memory,
                BOTH_SHARES[:, None] * top,
            ]
        )  # fmt: skip

    def seek(
        self, nodes: IntArray, values: FloatArray, costs: FloatArray, left: IntArray, for_good: BoolArray
    ) -> tuple[FloatArray, list[Change]]:
        """Bounds [n] of the nodes at values [K] of kinds and costs [M] of the movable pods, and candidates.

        left : [K] most pods of a kind that a candidate adds. for_good : [M] pods that are evicted where they leave.
        """
        kinds = self.kinds
        order = np.argsort(-values, kind="stable")
        prices = self._prices(values)
        amounts = prices @ kinds.request.T
        net, cost = values - amounts, costs - amounts[:, self.pod_kind]
        ub, worth, removed, added, placed = kernel.price_nodes(
            nodes, prices, net, cost, values, costs, kinds.request, kinds.milli, kinds.gpus, self.parts, self.wholes,
            self.part, self.group, self.allowed, self.free, self.device, self.fits, left, order, self.device_start,
            self.device_free, self.device_open, self.device_index, self.device_pods, self.share_pod, self.share_parts,
            self.whole_start, self.whole_pod, self.bare_start, self.bare_pod, self.pod_kind, self.pod_bits,
            self.bare_kinds,
        )  # fmt: skip
        least = LEAST_WORTH * float(values.max(initial=1.0))
        found = []
        for place, rank in np.argwhere(worth > least).tolist():
            gone = removed[place, rank]
            gone = gone[gone >= 0]
            new = int((added[place, rank] >= 0).sum())
            pairs = zip(added[place, rank, :new].tolist(), placed[place, rank, :new].tolist(), strict=True)
            entries = tuple((kind, _devices(mask)) for kind, mask in pairs)
            found.append(
                Change(
                    int(nodes[place]), tuple(sorted(self.pods[gone].tolist())),
                    tuple(sorted(self.pods[gone[for_good[gone]]].tolist())), entries,
                )
            )  # fmt: skip
        return np.maximum(ub, 0.0), found


def _some(device: IntArray) -> list[int]:
    found: list[int] = np.unique(device[device > 0]).tolist()
    return found


def _bits(devices: tuple[int, ...]) -> int:
    return sum(1 << d for d in devices)


@cache
def _devices(bits: int) -> tuple[int, ...]:
    return tuple(d for d in range(bits.bit_length()) if bits >> d & 1)


def _starts(lengths: list[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _flat(lists: list[list[int]]) -> IntArray:
    return np.array([one for part in lists for one in part], dtype=np.int64)
