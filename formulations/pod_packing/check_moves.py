"""Rules of moves and evictions: leave, budgets, and every prefix of the order, to the device. No solver in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from formulations.pod_packing.problem import Leave, PodsProblem
from planner.cost.verdict import Violation
from planner.kubernetes.snapshot import CPU, MEMORY, WHOLE_MILLI
from planner.pods_plan import GpuShare, Placement, PodMove, PodsPlan
from planner.workload import IntArray

Devices = tuple[tuple[int, int], ...]
#: Node, devices, NUMA nodes.
Place = tuple[int, Devices, tuple[int, ...]]


def check_moves(problem: PodsProblem, plan: PodsPlan) -> list[Violation]:
    """Broken rules of what happens to running pods; names are known to be good but for those of moves."""
    pods = {name: pod for pod, name in enumerate(problem.pod_names)}
    nodes = {name: node for node, name in enumerate(problem.node_names)}
    unknown = [
        *(
            _broken("moves", name, f"{name} is no running pod")
            for name in _told(plan)
            if not _runs(problem, pods, name)
        ),
        *(
            _broken("moves", move.pod, f"{move.pod} is moved to or from an unknown node")
            for move in plan.moves
            if move.from_node not in nodes or move.to_node not in nodes
        ),
    ]
    if unknown:
        return unknown
    if problem.leave is None:
        return [
            *(
                _broken("moves", one.pod, f"{one.pod} is moved, which the instance does not allow")
                for one in plan.moves
            ),
            *(_broken("moves", one, f"{one} is evicted, which the instance does not allow") for one in plan.evictions),
        ]
    return [
        *_leave(problem, problem.leave, plan, pods),
        *_chains(problem, plan, pods),
        *_Prefixes(problem, pods, nodes).walk(plan),
    ]


def _broken(
    rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None
) -> Violation:
    return Violation(rule=rule, subject=subject, message=message, amount=amount, limit=limit)


def _told(plan: PodsPlan) -> dict[str, None]:
    """Pods that are moved or evicted, once each."""
    return dict.fromkeys([*(move.pod for move in plan.moves), *plan.evictions])


def _runs(problem: PodsProblem, pods: dict[str, int], name: str) -> bool:
    return name in pods and problem.pod_node[pods[name]] >= 0


def _leave(problem: PodsProblem, leave: Leave, plan: PodsPlan, pods: dict[str, int]) -> Iterator[Violation]:
    """Only pods that may, no more of them than allowed, and no more of any disruption budget."""
    told = _told(plan)
    for name in told:
        if not leave.movable[pods[name]]:
            yield _broken("leave", name, f"{name} must stay where it runs")
    for name in plan.evictions:
        if not leave.evictable[problem.pod_class[pods[name]]]:
            yield _broken("leave", name, f"{name} is evicted, and no pending pod with a higher priority may preempt it")
    if len(told) > leave.most:
        message = f"{len(told)} pods are moved or evicted, {leave.most} may be"
        yield _broken("moves_budget", problem.name, message, len(told), leave.most)
    for one in leave.budgets:
        hit = sum(bool(one.pods[pods[name]]) for name in told)
        if hit > one.allowed:
            yield _broken("disruption_budget", one.name, f"{one.name} allows {one.allowed}", hit, one.allowed)


def _chains(problem: PodsProblem, plan: PodsPlan, pods: dict[str, int]) -> Iterator[Violation]:
    """A pod's moves lead from where it runs to where it is placed; every pod that is elsewhere has moves."""
    steps: dict[str, list[PodMove]] = defaultdict(list)
    for move in plan.moves:
        steps[move.pod].append(move)
    placed = {one.pod: one for one in plan.placements}
    for name in plan.evictions:
        if name in placed or name in steps:
            yield _broken("moves", name, f"{name} is evicted for good, and has a place or a move too")
    for name, chain in steps.items():
        at, when = problem.node_names[problem.pod_node[pods[name]]], 0
        for move in chain:
            if move.from_node != at or move.step <= when:
                yield _broken("moves", name, f"{name} moves from {move.from_node} in step {move.step}, but is on {at}")
            late = move.arrives is not None and move.arrives < move.step
            if (move.way == "evict-first") != (move.arrives is not None) or late:
                yield _broken("moves", name, f"{name} is evicted first and arrives, or is neither")
            at, when = move.to_node, move.step if move.arrives is None else move.arrives
        end = placed.get(name)
        if end is None or end.node != at or end.running or not _same_place(end, chain[-1]):
            yield _broken("moves", name, f"{name} ends on {at}, which is not its place")
    for name, end in placed.items():
        if _runs(problem, pods, name) and name not in steps and not _stays(problem, pods[name], end):
            yield _broken("running", name, f"{name} is not where it runs, and no move takes it there")
    for pod, name in enumerate(problem.pod_names):
        if problem.pod_node[pod] >= 0 and name not in placed and name not in plan.evictions:
            yield _broken("running", name, f"{name} runs, and is neither placed nor evicted")


def _stays(problem: PodsProblem, pod: int, end: Placement) -> bool:
    devices = {share.index for share in end.gpus}
    numa = () if problem.numa is None else problem.numa.places[pod]
    return (
        end.running
        and set(end.numa) == set(numa)
        and end.node == problem.node_names[problem.pod_node[pod]]
        and devices == set(problem.pod_devices[pod])
    )


def _same_place(end: Placement, last: PodMove) -> bool:
    return _shares(end.gpus) == _shares(last.gpus) and set(end.numa) == set(last.numa)


def _shares(shares: tuple[GpuShare, ...]) -> set[tuple[int, int]]:
    return {(share.index, share.gpu_milli) for share in shares}


class _Prefixes:
    """What every node gives after each step, old and new places of a step's moves both taken."""

    def __init__(self, problem: PodsProblem, pods: dict[str, int], nodes: dict[str, int]) -> None:
        self.problem, self.pods, self.nodes = problem, pods, nodes
        self.used = np.zeros_like(problem.capacity)
        self.given: dict[tuple[int, int], int] = defaultdict(int)
        self.on_numa: dict[tuple[int, int], IntArray] = defaultdict(lambda: np.zeros(len(problem.resources), np.int64))
        self.place: dict[int, Place] = {}
        for pod in np.flatnonzero(problem.pod_node >= 0).tolist():
            milli = int(problem.class_milli[problem.pod_class[pod]])
            numa = () if problem.numa is None else problem.numa.places[pod]
            self._start(pod, (int(problem.pod_node[pod]), tuple((d, milli) for d in problem.pod_devices[pod]), numa))

    def _start(self, pod: int, place: Place) -> None:
        self._count(pod, place, 1)
        self.place[pod] = place

    def _stop(self, pod: int, place: Place) -> None:
        self._count(pod, place, -1)

    def _count(self, pod: int, place: Place, sign: int) -> None:
        node, devices, numa = place
        j = int(self.problem.pod_class[pod])
        self.used[node] += sign * self.problem.request[j]
        for index, milli in devices:
            self.given[node, index] += sign * milli
        for h in numa:
            self.on_numa[node, h] += sign * numa_share(self.problem, j)

    def walk(self, plan: PodsPlan) -> Iterator[Violation]:
        """Evictions, then the steps."""
        for name in plan.evictions:
            self._stop(self.pods[name], self.place[self.pods[name]])
        leaving: dict[int, list[PodMove]] = defaultdict(list)
        arriving: dict[int, list[PodMove]] = defaultdict(list)
        for move in plan.moves:
            if move.way == "evict-first":
                leaving[move.step].append(move)
            arriving[move.step if move.arrives is None else move.arrives].append(move)
        for step in sorted({*leaving, *arriving}):
            for move in leaving[step]:
                pod = self.pods[move.pod]
                self._stop(pod, self.place[pod])
            old = []
            for move in arriving[step]:
                pod = self.pods[move.pod]
                if move.way != "evict-first":
                    old.append((pod, self.place[pod]))
                devices = tuple((one.index, one.gpu_milli) for one in move.gpus)
                self._start(pod, (self.nodes[move.to_node], devices, move.numa))
                yield from self._one(move)
            yield from self._full(step, [self.nodes[move.to_node] for move in arriving[step]])
            for pod, place in old:
                self._stop(pod, place)

    def _one(self, move: PodMove) -> Iterator[Violation]:
        """The node admits the pod, and gives it the devices that it asks for."""
        problem, node = self.problem, self.nodes[move.to_node]
        j = int(problem.pod_class[self.pods[move.pod]])
        if not problem.allowed[j, node]:
            yield _broken("allowed", move.pod, f"{move.pod} may not run on {move.to_node}")
        indices = [share.index for share in move.gpus if share.gpu_milli == problem.class_milli[j]]
        wrong = len(indices) != len(move.gpus) or any(index >= problem.gpus[node] for index in indices)
        if wrong or len(set(indices)) != len(indices) or len(indices) != problem.class_gpus[j]:
            yield _broken(
                "devices", move.pod, f"{move.pod} does not get the devices that it asks for in step {move.step}"
            )

    def _full(self, step: int, nodes: list[int]) -> Iterator[Violation]:
        for node in sorted(set(nodes)):
            name = self.problem.node_names[node]
            for h in range(2 if self.problem.numa is not None else 0):
                if (self.on_numa[node, h] > numa_capacity(self.problem, node, h)).any():
                    yield _broken("prefix", name, f"in step {step} NUMA node {h} of {name} gives more than it has")
            for r in np.flatnonzero(self.used[node] > self.problem.capacity[node]).tolist():
                message = f"in step {step} {name} gives more of {self.problem.resources[r]} than it has"
                yield _broken("prefix", name, message, int(self.used[node, r]), int(self.problem.capacity[node, r]))
            for index in range(int(self.problem.gpus[node])):
                if self.given.get((node, index), 0) > WHOLE_MILLI:
                    message = f"in step {step} device {index} of {name} gives more than the whole of itself"
                    yield _broken("prefix", name, message, self.given[node, index], WHOLE_MILLI)


def numa_share(problem: PodsProblem, j: int) -> IntArray:
    """What a pod of class j takes of each NUMA node that it is on, [R]: cores and memory alone."""
    assert problem.numa is not None
    split = np.array([name in (CPU, MEMORY) for name in problem.resources])
    found: IntArray = np.where(split, -(-problem.request[j] // problem.numa.width[j]), 0)
    return found


def numa_capacity(problem: PodsProblem, node: int, h: int) -> IntArray:
    """What NUMA node h of a node has, [R]; nothing beyond those that there are."""
    assert problem.numa is not None
    count = problem.numa.count[node]
    found: IntArray = problem.capacity[node] // count if h < count else np.zeros_like(problem.capacity[node])
    return found
