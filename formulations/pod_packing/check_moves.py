"""Rules of moves and evictions: leave, budgets, and every prefix of the order, to the device. No solver in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from formulations.pod_packing.problem import Leave, PodsProblem
from planner.cost.verdict import Violation
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import GpuShare, Placement, PodMove, PodsPlan

Devices = tuple[tuple[int, int], ...]


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
        if end is None or end.node != at or end.running or _devices(end) != _shares(chain[-1].gpus):
            yield _broken("moves", name, f"{name} ends on {at}, which is not its place")
    for name, end in placed.items():
        if _runs(problem, pods, name) and name not in steps and not _stays(problem, pods[name], end):
            yield _broken("running", name, f"{name} is not where it runs, and no move takes it there")
    for pod, name in enumerate(problem.pod_names):
        if problem.pod_node[pod] >= 0 and name not in placed and name not in plan.evictions:
            yield _broken("running", name, f"{name} runs, and is neither placed nor evicted")


def _stays(problem: PodsProblem, pod: int, end: Placement) -> bool:
    devices = {share.index for share in end.gpus}
    return (
        end.running
        and end.node == problem.node_names[problem.pod_node[pod]]
        and devices == set(problem.pod_devices[pod])
    )


def _shares(shares: tuple[GpuShare, ...]) -> set[tuple[int, int]]:
    return {(share.index, share.gpu_milli) for share in shares}


def _devices(end: Placement) -> set[tuple[int, int]]:
    return _shares(end.gpus)


class _Prefixes:
    """What every node gives after each step, old and new places of a step's moves both taken."""

    def __init__(self, problem: PodsProblem, pods: dict[str, int], nodes: dict[str, int]) -> None:
        self.problem, self.pods, self.nodes = problem, pods, nodes
        self.used = np.zeros_like(problem.capacity)
        self.given: dict[tuple[int, int], int] = defaultdict(int)
        self.place: dict[int, tuple[int, Devices]] = {}
        for pod in np.flatnonzero(problem.pod_node >= 0).tolist():
            milli = int(problem.class_milli[problem.pod_class[pod]])
            self._start(pod, int(problem.pod_node[pod]), tuple((d, milli) for d in problem.pod_devices[pod]))

    def _start(self, pod: int, node: int, devices: Devices) -> None:
        self.used[node] += self.problem.request[self.problem.pod_class[pod]]
        for index, milli in devices:
            self.given[node, index] += milli
        self.place[pod] = node, devices

    def _stop(self, pod: int, node: int, devices: Devices) -> None:
        self.used[node] -= self.problem.request[self.problem.pod_class[pod]]
        for index, milli in devices:
            self.given[node, index] -= milli

    def walk(self, plan: PodsPlan) -> Iterator[Violation]:
        """Evictions, then the steps."""
        for name in plan.evictions:
            self._stop(self.pods[name], *self.place[self.pods[name]])
        leaving: dict[int, list[PodMove]] = defaultdict(list)
        arriving: dict[int, list[PodMove]] = defaultdict(list)
        for move in plan.moves:
            if move.way == "evict-first":
                leaving[move.step].append(move)
            arriving[move.step if move.arrives is None else move.arrives].append(move)
        for step in sorted({*leaving, *arriving}):
            for move in leaving[step]:
                pod = self.pods[move.pod]
                self._stop(pod, *self.place[pod])
            old = []
            for move in arriving[step]:
                pod = self.pods[move.pod]
                if move.way != "evict-first":
                    old.append((pod, *self.place[pod]))
                self._start(pod, self.nodes[move.to_node], tuple((one.index, one.gpu_milli) for one in move.gpus))
                yield from self._one(move)
            yield from self._full(step, [self.nodes[move.to_node] for move in arriving[step]])
            for pod, node, devices in old:
                self._stop(pod, node, devices)

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
            for r in np.flatnonzero(self.used[node] > self.problem.capacity[node]).tolist():
                message = f"in step {step} {name} gives more of {self.problem.resources[r]} than it has"
                yield _broken("prefix", name, message, int(self.used[node, r]), int(self.problem.capacity[node, r]))
            for index in range(int(self.problem.gpus[node])):
                if self.given.get((node, index), 0) > WHOLE_MILLI:
                    message = f"in step {step} device {index} of {name} gives more than the whole of itself"
                    yield _broken("prefix", name, message, self.given[node, index], WHOLE_MILLI)
