"""Pods being placed one by one: what is free on every node and device, and what the rules between pods allow.

The search works on it; `check` shares nothing with it.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from formulations.pod_packing.problem import BoolArray, PodsProblem
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import GpuShare, Placement, PodsPlan, Unplaced
from planner.workload import IntArray


class State:
    """free : [N, R]; device : [N, D] thousandths that are free, -1 beyond a node's devices.

    place_of : node and devices of each pod that the plan places. gone : running pods that leave their place; such a one
    is in place_of too where it is moved, else it is evicted.
    """

    def __init__(self, problem: PodsProblem) -> None:
        self.problem = problem
        self.free = problem.capacity.copy()
        most = int(problem.gpus.max(initial=0))
        self.device: IntArray = np.where(np.arange(most) < problem.gpus[:, None], WHOLE_MILLI, -1).astype(np.int64)
        self.place_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.gone: set[int] = set()
        self.placed = np.zeros(problem.num_classes, dtype=np.int64)
        self.pods_on = np.zeros(problem.num_nodes, dtype=np.int64)
        sizes = [int(problem.domain[rule.topology].max(initial=-1)) + 1 for rule in problem.rules]
        #: Pods that each rule means, and pods that have the rule, by domain.
        self._meant = [np.zeros(size, dtype=np.int64) for size in sizes]
        self._owners = [np.zeros(size, dtype=np.int64) for size in sizes]
        self._rules_of: dict[int, list[int]] = defaultdict(list)
        self._meaning: dict[int, list[int]] = defaultdict(list)
        for index, rule in enumerate(problem.rules):
            self._rules_of[rule.owner].append(index)
            for j in np.flatnonzero(rule.matches).tolist():
                self._meaning[j].append(index)
        self._rules = problem.rules
        for pod in np.flatnonzero(problem.pod_node >= 0).tolist():
            self._change(int(problem.pod_class[pod]), int(problem.pod_node[pod]), problem.pod_devices[pod], 1)

    def _change(self, j: int, node: int, devices: tuple[int, ...], sign: int) -> None:
        problem = self.problem
        self.free[node] -= sign * problem.request[j]
        for d in devices:
            self.device[node, d] -= sign * problem.class_milli[j]
        self.placed[j] += sign
        self.pods_on[node] += sign
        for index in self._meaning[j]:
            domain = problem.domain[self._rules[index].topology, node]
            if domain >= 0:
                self._meant[index][domain] += sign
        for index in self._rules_of[j]:
            domain = problem.domain[self._rules[index].topology, node]
            if domain >= 0:
                self._owners[index][domain] += sign

    def place(self, pod: int, node: int, devices: tuple[int, ...]) -> None:
        """Put a pod without a place on a node and its devices, which must have room."""
        self._change(int(self.problem.pod_class[pod]), node, devices, 1)
        self.place_of[pod] = node, devices

    def remove(self, pod: int) -> None:
        """Take a placed pod away again."""
        node, devices = self.place_of.pop(pod)
        self._change(int(self.problem.pod_class[pod]), node, devices, -1)

    def take(self, pod: int) -> None:
        """Take a running pod off its node."""
        problem = self.problem
        self._change(int(problem.pod_class[pod]), int(problem.pod_node[pod]), problem.pod_devices[pod], -1)
        self.gone.add(pod)

    def untake(self, pod: int) -> None:
        """Put a running pod back."""
        problem = self.problem
        self._change(int(problem.pod_class[pod]), int(problem.pod_node[pod]), problem.pod_devices[pod], 1)
        self.gone.remove(pod)

    def room(self, j: int, nodes: IntArray | None = None) -> BoolArray:
        """Nodes with room for a pod of class j that it may run on, rules between pods aside; [N] or [len(nodes)]."""
        problem = self.problem
        part = slice(None) if nodes is None else nodes
        fits: BoolArray = problem.allowed[j, part] & (self.free[part] >= problem.request[j]).all(axis=1)
        gpus = int(problem.class_gpus[j])
        if gpus:
            fits &= self.together(j, part) >= gpus
        return fits

    def together(self, j: int, part: slice | IntArray) -> IntArray:
        """Devices with room for class j on each node of a part, [n]; of one island where it asks for that."""
        enough = self.device[part] >= self.problem.class_milli[j]
        if not self.problem.bound[j] or self.problem.island is None:
            return np.asarray(enough.sum(axis=1), dtype=np.int64)
        number = np.arange(enough.shape[1]) // self.problem.island[part][:, None]
        counts = [(enough & (number == i)).sum(axis=1) for i in range(int(number.max(initial=0)) + 1)]
        return np.asarray(np.stack(counts).max(axis=0), dtype=np.int64)

    def devices(self, j: int, node: int) -> tuple[int, ...]:
        """Devices for a pod of class j on a node with room: those with the least left that is enough."""
        gpus = int(self.problem.class_gpus[j])
        if not gpus:
            return ()
        left = self.device[node]
        fitting = np.flatnonzero(left >= self.problem.class_milli[j])
        if self.problem.bound[j]:
            assert self.problem.island is not None
            number = fitting // self.problem.island[node]
            counts = np.bincount(number)
            fitting = fitting[number == np.where(counts >= gpus, counts, left.size + 1).argmin()]
        order = np.argsort(left[fitting], kind="stable")[:gpus]
        return tuple(fitting[order].tolist())

    def agreeable(self, j: int) -> BoolArray | None:
        """Nodes where no rule between pods speaks against a pod of class j, [N]; None where it has no such rule."""
        problem = self.problem
        if not (self._rules_of[j] or self._meaning[j]):
            return None
        found = np.ones(problem.num_nodes, dtype=np.bool_)
        for index in self._rules_of[j]:
            found &= self._keeps(index, j)
        for index in self._meaning[j]:
            if index < len(problem.near):
                if not problem.near[index].together:
                    found &= ~self._at(index, self._owners[index] > 0)
            elif problem.rules[index].owner != j:
                found &= self._within_skew(index, j) | ~self._at(index, self._owners[index] > 0)
        return found

    def avoided(self, j: int) -> BoolArray:
        """Nodes where anti-affinity, of class j or of pods there, keeps a pod of class j out, [N]."""
        found = np.zeros(self.problem.num_nodes, dtype=np.bool_)
        for index, rule in enumerate(self.problem.near):
            if not rule.together and rule.owner == j:
                found |= self._at(index, self._meant[index] > 0)
            if not rule.together and rule.matches[j]:
                found |= self._at(index, self._owners[index] > 0)
        return found

    def _at(self, index: int, by_domain: BoolArray) -> BoolArray:
        """A truth of domains, told of nodes; False where the node is in none."""
        domain = self.problem.domain[self._rules[index].topology]
        found: BoolArray = np.append(by_domain, False)[domain]
        return found

    def _keeps(self, index: int, j: int) -> BoolArray:
        problem = self.problem
        domain = problem.domain[self._rules[index].topology]
        meant = self._meant[index]
        if index < len(problem.near):
            rule = problem.near[index]
            if not rule.together:
                return ~self._at(index, meant > 0)
            # The first pod of a group that means itself may go anywhere.
            first = not meant.any() and rule.matches[j]
            return (domain >= 0) if first else self._at(index, meant > 0)
        return self._within_skew(index, j)

    def _within_skew(self, index: int, j: int) -> BoolArray:
        """Nodes whose domain may have one more pod of class j, [N]."""
        spread = self.problem.spread[index - len(self.problem.near)]
        return self._at(index, self._meant[index] + int(spread.matches[j]) - self._emptiest(index) <= spread.max_skew)

    def _emptiest(self, index: int) -> int:
        """Pods meant by a spread in the emptiest domain that counts; 0 where there are fewer domains than asked."""
        spread = self.problem.spread[index - len(self.problem.near)]
        domain = self.problem.domain[spread.topology]
        counted = np.unique(domain[spread.counted & (domain >= 0)])
        return int(self._meant[index][counted].min()) if counted.size >= max(1, spread.min_domains) else 0

    def candidates(self, j: int) -> BoolArray:
        """Nodes that can take a pod of class j now, [N]."""
        fits, agrees = self.room(j), self.agreeable(j)
        return fits if agrees is None else fits & agrees

    def broken_gangs(self) -> list[int]:
        """Gangs with some pods placed, and fewer than they need."""
        problem = self.problem
        gangs = np.bincount(problem.gang[problem.gang >= 0], weights=self.placed[problem.gang >= 0]).astype(np.int64)
        return [g for g, count in enumerate(gangs.tolist()) if 0 < count < problem.gang_least[g]]

    def drop_broken(self) -> list[int]:
        """Take away pods of broken gangs, and pods whose affinity or spread fails; the pods taken."""
        problem, taken = self.problem, list[int]()
        while True:
            gangs = set(self.broken_gangs())
            victims = [pod for pod in self.place_of if problem.gang[problem.pod_class[pod]] in gangs]
            if not victims:
                victims = self._without_company()
            if not victims:
                return taken
            for pod in victims:
                self.remove(pod)
            taken += victims

    def _without_company(self) -> list[int]:
        """Pods whose required affinity or spread does not hold any more."""
        problem = self.problem
        lonely = {}
        for index, rule in enumerate(problem.near):
            if rule.together:
                lonely[index] = set(np.flatnonzero((self._owners[index] > 0) & ~self._has_company(index)).tolist())
        skewed = {}
        for index, spread in enumerate(problem.spread, start=len(problem.near)):
            high = self._meant[index] - self._emptiest(index) > spread.max_skew
            skewed[index] = set(np.flatnonzero(high & (self._owners[index] > 0)).tolist())
        broken = {index: domains for index, domains in (lonely | skewed).items() if domains}
        if not broken:
            return []
        found = []
        for pod, (node, _) in self.place_of.items():
            for index in self._rules_of[int(problem.pod_class[pod])]:
                if int(problem.domain[problem.rules[index].topology, node]) in broken.get(index, ()):
                    found.append(pod)
                    if index in skewed:
                        # One at a time: taking one pod away may mend the rest.
                        return found
                    break
        return found

    def _has_company(self, index: int) -> BoolArray:
        """Domains with pods that an affinity means besides its owners; or one, where a group may begin by itself."""
        rule, others = self.problem.near[index], self._meant[index].copy()
        if not rule.matches[rule.owner]:
            return others > 0
        others -= self._owners[index]
        begins = not (self.problem.running[rule.matches] > 0).any()
        company = others > 0
        if begins and self._owners[index].any():
            alone = np.where(company, 0, self._owners[index])
            company[int(alone.argmax())] |= bool(alone.any())
        return company

    def plan(self, reasons: dict[int, str]) -> PodsPlan:
        """The plan of this state, in the order of the pods; `reasons` of those without a place."""
        problem = self.problem
        placements, unplaced = [], []
        for pod, name in enumerate(problem.pod_names):
            node, devices = int(problem.pod_node[pod]), problem.pod_devices[pod]
            running = node >= 0 and pod not in self.gone
            if not running:
                node, devices = self.place_of.get(pod, (-1, ()))
            if node < 0:
                unplaced.append(Unplaced(pod=name, reason=reasons[pod]))
                continue
            milli = int(problem.class_milli[problem.pod_class[pod]])
            shares = tuple(GpuShare(index=d, gpu_milli=milli) for d in sorted(devices))
            placements.append(Placement(pod=name, node=problem.node_names[node], gpus=shares, running=running))
        return PodsPlan(placements=tuple(placements), unplaced=tuple(unplaced))
