"""Pods onto nodes, exactly: how many pods of each group on each node and device. By CP-SAT. The mathematics:

Sets: nodes n with devices d, groups i of exchangeable pods (d_i pods, h of them at home at a place p = node, devices).
    A model may hold some nodes and some pods only: then all others stay where a given packing has them.
Variables: x_in pods of group i on node n; y_ind of a sharing group on a device; s_nd in {0,1}, a device is for sharing;
    t_ip pods that stay at home.
Objective: terms, one after the other, each kept for the next ones. `placed first`: the tiers of the problem, then
    fewest evictions, then fewest moves. `stability first`: each tier of pods is followed by fewest evictions and moves
    of its pods, before the next tier. `consolidate`: cost of nodes in use, every pod placed.
Constraints (one function each):
    _amounts       sum over i of request_ir x_in  <=  free_nr
    _devices       sum over i of milli_i y_ind  <=  free_nd, and 1000 s_nd where whole pods may use it too;
                   whole devices asked  <=  free devices that do not share
    _homes         t_ip <= x_in (y_ind); t_ip + s_nd <= 1 on whole devices; moves and evictions within the leave
    `ties`         affinity, anti-affinity, topology spread and gangs, as `check` reads them

Ignored: preferences; running pods that rules tie to others never move. All numbers are integers: nothing is rounded
but capacities, down to what sums of requests can reach.
Reference: the aggregation follows Christensen et al., "Priority Matters" (arXiv 2511.08373), whose own model, pod by
pod, is `priority_matters`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import IntegerValues, solve_cpsat
from formulations.backends.result import SolverResult
from formulations.outcome import Budget, SolveOptions
from formulations.pod_packing.islands import Islands
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import POWERED, Aim
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.workload import IntArray

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

Order = Literal["placed first", "stability first"]
#: A home: group, local node, devices.
Home = tuple[int, int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """Something to make large: an expression, how far apart its values can be, and its unit in units of the aim."""

    name: str
    expression: Any
    spread: int
    step: int = 1


class ExactModel:
    """nodes : [n] of the problem. pods : movable pods, placed on these nodes or on none."""

    def __init__(self, packing: Packing, nodes: IntArray, pods: IntArray, order: Order = "placed first") -> None:
        load_ortools_first()
        from ortools.sat.python import cp_model

        self.packing, self.problem, self.order = packing, packing.problem, order
        self.nodes, self.pods = nodes, pods
        self.model: cp_model.CpModel = cp_model.CpModel()
        names, self._group = np.unique(packing.group[pods], return_inverse=True)
        self.members: list[list[int]] = [[] for _ in names]
        for pod, i in zip(pods.tolist(), self._group.tolist(), strict=True):
            self.members[i].append(pod)
        self.first = np.array([members[0] for members in self.members], dtype=np.int64)
        self.klass = self.problem.pod_class[self.first]
        free, device = packing.left(pods)
        self.free, self.device = free[nodes], device[nodes]
        self.local = {node: k for k, node in enumerate(nodes.tolist())}
        self.x: dict[tuple[int, int], Any] = {}
        self.y: dict[tuple[int, int, int], Any] = {}
        self.sharing: dict[tuple[int, int], Any] = {}
        self.stay: dict[Home, Any] = {}
        self.at_home: dict[Home, list[int]] = defaultdict(list)
        for pod, i in zip(pods.tolist(), self._group.tolist(), strict=True):
            home = int(self.problem.pod_node[pod])
            if home in self.local:
                self.at_home[i, self.local[home], self.problem.pod_devices[pod]].append(pod)
        self._counts()
        self._amounts()
        self._homes()
        self.islands = Islands(self)
        self._devices()
        self.islands.limit()
        from formulations.pod_packing.ties import tie

        tie(self)
        self.terms = list(self._terms())

    def size(self, i: int) -> int:
        """Pods of a group."""
        return len(self.members[i])

    def on(self, i: int) -> Any:
        """Placed pods of a group, an expression."""
        return sum(self._of_group[i], 0)

    def _counts(self) -> None:
        """x and y, where at least one pod fits."""
        problem = self.problem
        for i, j in enumerate(self.klass.tolist()):
            milli, request = int(problem.class_milli[j]), problem.request[j]
            asked = request > 0
            for k, node in enumerate(self.nodes.tolist()):
                at_home = any(home[:2] == (i, k) for home in self.at_home)
                if not (problem.allowed[j, node] or at_home) or (self.free[k] < request).any():
                    continue
                most = min(self.size(i), int((self.free[k][asked] // request[asked]).min(initial=self.size(i))))
                if not problem.allowed[j, node]:
                    # Pods that were let in before may stay; no other may come.
                    most = min(most, sum(len(pods) for home, pods in self.at_home.items() if home[:2] == (i, k)))
                if problem.is_share[j]:
                    fitting = np.flatnonzero(self.device[k] >= milli).tolist()
                    for d in fitting:
                        upper = min(most, int(self.device[k, d]) // milli)
                        self.y[i, k, d] = self.model.new_int_var(0, upper, f"y{i}_{k}_{d}")
                    if fitting:
                        self.x[i, k] = sum(self.y[i, k, d] for d in fitting)
                        self.model.add(self.x[i, k] <= most)
                    continue
                if problem.class_gpus[j]:
                    whole = int((self.device[k] == WHOLE_MILLI).sum())
                    most = min(most, whole // int(problem.class_gpus[j]))
                if most:
                    self.x[i, k] = self.model.new_int_var(0, most, f"x{i}_{k}")
        self._of_group: list[list[Any]] = [[] for _ in self.members]
        self._of_node: list[list[tuple[int, Any]]] = [[] for _ in self.nodes]
        for (i, k), count in self.x.items():
            self._of_group[i].append(count)
            self._of_node[k].append((i, count))
        for i in range(len(self.members)):
            everything = self.problem.objective == "consolidate"
            self.model.add_linear_constraint(self.on(i), self.size(i) if everything else 0, self.size(i))

    def _amounts(self) -> None:
        """No node gives more than it has; amounts that cannot run short have no row."""
        for k in range(len(self.nodes)):
            here = self._of_node[k]
            for r in range(len(self.problem.resources)):
                asked = [(int(self.problem.request[self.klass[i], r]), i, count) for i, count in here]
                asked = [one for one in asked if one[0]]
                if sum(amount * self.size(i) for amount, i, _ in asked) <= self.free[k, r]:
                    continue
                step = math.gcd(*(amount for amount, _, _ in asked))
                self.model.add(
                    sum(amount // step * count for amount, _, count in asked) <= int(self.free[k, r]) // step
                )

    def _homes(self) -> None:
        """Who stays, and that no more are moved or evicted than there is leave for."""
        for home, pods in self.at_home.items():
            i, k, devices = home
            if (i, k) not in self.x:
                continue
            share = self.problem.is_share[self.klass[i]]
            count = self.y.get((i, k, devices[0]), 0) if share else self.x[i, k]
            self.stay[home] = self.model.new_int_var(0, len(pods), f"t{len(self.stay)}")
            self.model.add(self.stay[home] <= count)
        for i, k in {home[:2] for home in self.stay}:
            if not self.problem.is_share[self.klass[i]]:
                self.model.add(sum(t for home, t in self.stay.items() if home[:2] == (i, k)) <= self.x[i, k])
            if not self.problem.allowed[self.klass[i], self.nodes[k]]:
                self.model.add(sum(t for home, t in self.stay.items() if home[:2] == (i, k)) == self.x[i, k])
        self.evicted = [self.model.new_int_var(0, self._running(i), f"e{i}") for i in range(len(self.members))]
        for i, evicted in enumerate(self.evicted):
            if self._running(i):
                self.model.add(evicted >= self._running(i) - self.on(i))
                if not self._evictable(i):
                    self.model.add(evicted == 0)
        self._leave()

    def _leave(self) -> None:
        """No more pods are moved and evicted than there is leave for, in all and of each disruption budget."""
        leave = self.problem.leave
        if leave is None:
            return
        everyone = np.ones(len(self.packing.node), dtype=np.bool_)
        outside = np.concatenate([self.packing.evicted, self.packing.moved])
        outside = outside[~np.isin(outside, self.pods)]
        for mask, most in [(everyone, leave.most), *((one.pods, one.allowed) for one in leave.budgets)]:
            mine = {i for i, pod in enumerate(self.first.tolist()) if mask[pod]}
            disturbed = sum(map(self._running, mine)) - sum(t for home, t in self.stay.items() if home[0] in mine)
            self.model.add_linear_constraint(disturbed, 0, max(0, most - int(mask[outside].sum())))

    def _evictable(self, i: int) -> bool:
        """Whether the running pods of a group may lose their place for good."""
        leave = self.problem.leave
        running = [pod for pod in self.members[i] if self.problem.pod_node[pod] >= 0]
        return leave is not None and bool(leave.evictable[self.problem.pod_class[running]].all())

    def _running(self, i: int) -> int:
        """Pods of a group that run, at home here or elsewhere."""
        return int((self.problem.pod_node[self.members[i]] >= 0).sum())

    def _devices(self) -> None:
        """Shares fit onto their device, whole pods have devices of their own; alike devices are filled in order."""
        problem = self.problem
        for k in range(len(self.nodes)):
            wholes = [
                (int(problem.class_gpus[self.klass[i]]), count, i)
                for i, count in self._of_node[k]
                if problem.class_gpus[self.klass[i]] and not problem.is_share[self.klass[i]]
            ]
            kept = {home: t for home, t in self.stay.items() if home[1] == k and home[2]}
            loads: dict[int, Any] = {}
            for d in np.flatnonzero(self.device[k] > 0).tolist():
                shares = [
                    (int(problem.class_milli[self.klass[i]]), y)
                    for (i, node, at), y in self.y.items()
                    if node == k and at == d
                ]
                if not shares:
                    continue
                loads[d] = sum(milli * y for milli, y in shares)
                if self.device[k, d] < WHOLE_MILLI or not wholes:
                    self.model.add(loads[d] <= int(self.device[k, d]))
                    continue
                self.sharing[k, d] = self.model.new_bool_var(f"s{k}_{d}")
                self.model.add(loads[d] <= WHOLE_MILLI * self.sharing[k, d])
            staying: dict[int, Any] = defaultdict(int)
            for (i, _, devices), t in kept.items():
                for d in devices if not problem.is_share[self.klass[i]] else ():
                    staying[d] += t
            for d, t in staying.items():
                self.model.add(t + self.sharing.get((k, d), 0) <= 1)
            if wholes:
                free = np.flatnonzero(self.device[k] == WHOLE_MILLI).tolist()
                open_devices = sum(1 - self.sharing.get((k, d), 0) - staying.get(d, 0) for d in free)
                gpus_kept = sum(
                    len(devices) * t for (i, _, devices), t in kept.items() if not problem.is_share[self.klass[i]]
                )
                self.model.add(sum(gpus * count for gpus, count, _ in wholes) - gpus_kept <= open_devices)
            at_homes = {d for home in kept for d in home[2]}
            for one, two in self._alike(k):
                if one in loads and two in loads and not {one, two} & at_homes:
                    self.model.add(loads[one] >= loads[two])

    def _alike(self, k: int) -> Iterator[tuple[int, int]]:
        """Neighbouring devices with as much room (and of one island), in the order of their numbers."""
        last: dict[tuple[int, int], int] = {}
        for d, milli in enumerate(self.device[k].tolist()):
            like = milli, self.islands.of(k, d)
            if milli and like in last:
                yield last[like], d
            last[like] = d

    def _terms(self) -> Iterator[Term]:
        problem, everyone = self.problem, list(range(len(self.members)))
        if problem.objective == "consolidate":
            cost = np.round(1e6 * problem.node_cost[self.nodes]).astype(np.int64)
            step = max(1, math.gcd(*cost.tolist()))
            used = []
            for k, node in enumerate(self.nodes.tolist()):
                here = self._of_node[k]
                others = (self.packing.node == node) & ~np.isin(np.arange(len(self.packing.node)), self.pods)
                if not here or not cost[k] or others.any():
                    continue
                on = self.model.new_bool_var(f"u{k}")
                for i, count in here:
                    self.model.add(count <= self.size(i) * on)
                used.append((int(cost[k]) // step, on))
            yield Term(
                POWERED, -sum(amount * on for amount, on in used), sum(amount for amount, _ in used), max(1, step)
            )
        for aim in problem.aims if problem.objective != "consolidate" else ():
            weights = [int(aim.weight[self.klass[i]]) for i in everyone]
            step = max(1, math.gcd(*weights)) if weights else 1
            mine = [i for i in everyone if weights[i]]
            spread = sum(weights[i] // step * self.size(i) for i in mine)
            yield Term(aim.name, sum(weights[i] // step * self.on(i) for i in mine), spread, step)
            if self.order == "stability first" and problem.objective == "priority":
                yield from self._disturbed(mine)
        if self.order == "placed first" or problem.objective != "priority":
            yield from self._disturbed(everyone)

    def _disturbed(self, groups: list[int]) -> Iterator[Term]:
        """Fewest evictions, then fewest pods that leave their place."""
        running = sum(map(self._running, groups))
        if running:
            yield Term("evictions", -sum(self.evicted[i] for i in groups), running)
            yield Term("stay", sum((t for home, t in self.stay.items() if home[0] in groups), 0), running)

    def hint(self) -> None:
        """Start from where the packing has the pods."""
        problem, model = self.problem, self.model
        model.clear_hints()
        x: dict[tuple[int, int], int] = defaultdict(int)
        y: dict[tuple[int, int, int], int] = defaultdict(int)
        load: dict[tuple[int, int], int] = defaultdict(int)
        stays: dict[Home, int] = defaultdict(int)
        placed: dict[int, int] = defaultdict(int)
        for pod, i in zip(self.pods.tolist(), self._group.tolist(), strict=True):
            node = int(self.packing.node[pod])
            if node < 0:
                continue
            k, devices = self.local[node], self.packing.devices[pod]
            placed[i] += 1
            x[i, k] += 1
            stays[i, k, devices] += 1
            if problem.is_share[self.klass[i]]:
                y[i, k, devices[0]] += 1
                load[k, devices[0]] += int(problem.class_milli[self.klass[i]])
        for k in range(len(self.nodes)):
            y = self._in_order(k, y, load)
        for (i, k), count in self.x.items():
            if not problem.is_share[self.klass[i]]:
                model.add_hint(count, x[i, k])
        for (i, k, d), count in self.y.items():
            model.add_hint(count, y[i, k, d])
        for (k, d), sharing in self.sharing.items():
            model.add_hint(sharing, any(y[i, k, d] for i in range(len(self.members))))
        for home, t in self.stay.items():
            model.add_hint(t, min(len(self.at_home[home]), stays[home]))
        for i, evicted in enumerate(self.evicted):
            model.add_hint(evicted, max(0, self._running(i) - placed[i]))

    def _in_order(
        self, k: int, y: dict[tuple[int, int, int], int], load: dict[tuple[int, int], int]
    ) -> dict[tuple[int, int, int], int]:
        """The shares of a node's alike devices, fullest device first, as the model wants them."""
        at_homes = {d for home in self.at_home if home[1] == k for d in home[2]}
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for d, milli in enumerate(self.device[k].tolist()):
            if d not in at_homes:
                alike[milli, self.islands.of(k, d)].append(d)
        new: dict[int, int] = {}
        for devices in alike.values():
            fullest = sorted(devices, key=lambda d: -load[k, d])
            new |= dict(zip(fullest, devices, strict=True))
        found: dict[tuple[int, int, int], int] = defaultdict(int)
        for (i, node, d), count in y.items():
            found[i, node, new.get(d, d) if node == k else d] += count
        return found

    def in_aim(self, aim: Aim, term: Term, most: int) -> int:
        """A value of the term, in whole units of the aim, with what is outside the model."""
        problem, node = self.problem, self.packing.node
        outside = node >= 0
        outside[self.pods] = False
        if aim.sense == "most":
            return int(aim.weight[problem.pod_class[outside]].sum()) + term.step * most
        return round(1e6 * float(problem.node_cost[np.unique(node[outside])].sum())) - term.step * most

    def solve(self, objective: Any, budget: Budget, options: SolveOptions) -> tuple[SolverResult, IntegerValues | None]:
        """Make the expression as large as possible; the result has the sense of a minimum."""
        self.model.minimize(-objective)
        return solve_cpsat(self.model, budget, options)

    def packed(self, value: IntegerValues) -> Packing:
        """The packing of an answer: who can stays at home, then running pods come before pending ones."""
        problem, found = self.problem, self.packing.copy()
        found.node[self.pods] = -1
        for pod in self.pods.tolist():
            found.devices[pod] = ()
        queue = [sorted(pods, key=lambda pod: problem.pod_node[pod] >= 0) for pods in self.members]
        taken: dict[tuple[int, int, int], int] = defaultdict(int)
        here: dict[tuple[int, int], int] = defaultdict(int)
        used: dict[int, set[int]] = defaultdict(set)
        for home, t in self.stay.items():
            i, k, devices = home
            for pod in self.at_home[home][: value(t)]:
                found.node[pod], found.devices[pod] = self.nodes[k], devices
                queue[i].remove(pod)
                here[i, k] += 1
                if problem.is_share[self.klass[i]]:
                    taken[i, k, devices[0]] += 1
                else:
                    used[k] |= set(devices)
        for (i, k, d), y in self.y.items():
            used[k] |= {d} if value(y) else set()
            for _ in range(value(y) - taken[i, k, d]):
                pod = queue[i].pop()
                found.node[pod], found.devices[pod] = self.nodes[k], (d,)
        bound = {key: self.islands.islands(*key, value) for key in self.islands.z}
        for (i, k), count in sorted(self.x.items(), key=lambda item: item[0] not in bound):
            j = int(self.klass[i])
            if problem.is_share[j]:
                continue
            for index in range(value(count) - here[i, k]):
                pod, gpus = queue[i].pop(), int(problem.class_gpus[j])
                whole = np.flatnonzero(self.device[k] == WHOLE_MILLI).tolist()
                whole = self.islands.free(k)[bound[i, k][index]] if (i, k) in bound else whole
                free = [d for d in whole if d not in used[k]]
                used[k] |= set(free[:gpus])
                found.node[pod], found.devices[pod] = self.nodes[k], tuple(free[:gpus])
        return found
