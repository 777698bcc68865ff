"""The greedy zero-bubble rule: W fills the gaps in which a device would wait, within a limit of memory.

Source: the automatic scheduler of sail-sg/zero-bubble-pipeline-parallelism (arXiv 2401.10241, section 3), with its
eight variants, of which the best is taken. With a capacity of p micro-batches it is ZB-1p, with 2 p it is ZB-2p.

Micro-batches go round by round: in each, devices that should take a forward pass, then all devices take the round's
backward pass, last device first. Before either, a device runs W passes that memory asks for, then those that end before
the awaited data come, then perhaps one that ends a little later.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from formulations.parallelism.training.schedule.baseline import (
    Order,
    breadth_first,
    joined,
    one_forward_one_backward,
)
from formulations.parallelism.training.schedule.problem import (
    Pass,
    SchedulePlan,
    ScheduleProblem,
    Task,
    peak_bytes,
    span_s,
    timed,
)

F, B, W = Pass.FORWARD, Pass.BACKWARD, Pass.WEIGHT


class _Stuck(Exception):
    """A device has no room for the pass that comes next, or would wait for one that has not been placed."""


class _Builder:
    """A schedule that grows pass by pass; one chunk a device.

    wait_first : a device may wait for its first backward pass rather than overrun it with one more forward pass.
    hold_forwards : a device that is two forward passes ahead may leave out the next, to be free for the backward pass.
    fill_small : a gap that is no longer than what the device has been idle less than others is filled too.
    """

    def __init__(self, problem: ScheduleProblem, wait_first: bool, hold_forwards: bool, fill_small: bool) -> None:
        self.problem = problem
        self.wait_first, self.hold_forwards, self.fill_small = wait_first, hold_forwards, fill_small
        size, micro = problem.num_devices, problem.micro_batches
        self.cost: list[list[float]] = problem.pass_s.tolist()
        self.send: list[float] = problem.send_s.tolist()
        self.room: list[float] = problem.capacity_bytes.tolist()
        self.end = np.zeros((3, size, micro))
        self.count = [[0] * size for _ in range(3)]
        self.free, self.held, self.idle = [0.0] * size, [0.0] * size, [0.0] * size
        self.order: list[list[Task]] = [[] for _ in range(size)]

    def build(self) -> Order:
        size, micro = self.problem.num_devices, self.problem.micro_batches
        self._warm_up()
        for device in reversed(range(size)):
            self._run(B, device)
        for number in range(1, micro):
            for device in self._forwards():
                self._make_room(device, F)
                if device:
                    self._fill(device, float(self.end[F, device - 1, self.count[F][device]]) + self.send[device - 1])
                self._run(F, device)
            for device in reversed(range(size)):
                self._make_room(device, B)
                if device + 1 < size:
                    self._fill(device, float(self.end[B, device + 1, number]) + self.send[device])
                if device == 0 and self.count[F][0] == micro:
                    self._drain(0)
                self._run(B, device)
        for device in range(size):
            self._drain(device)
        return tuple(tuple(tasks) for tasks in self.order)

    def _run(self, kind: int, device: int) -> None:
        """The next pass of a kind, as early as its data allow."""
        number = self.count[kind][device]
        begin = self.free[device]
        if kind == F and device:
            if self.count[F][device - 1] <= number:
                raise _Stuck
            begin = max(begin, float(self.end[F, device - 1, number]) + self.send[device - 1])
        if kind == B and device + 1 < self.problem.num_devices:
            if self.count[B][device + 1] <= number:
                raise _Stuck
            begin = max(begin, float(self.end[B, device + 1, number]) + self.send[device])
        if self.count[F][device]:
            self.idle[device] += begin - self.free[device]
        self.free[device] = begin + self.cost[kind][device]
        self.end[kind, device, number] = self.free[device]
        self.held[device] += self.problem.memory_change((kind, device, number))
        self.count[kind][device] += 1
        self.order[device].append((kind, device, number))

    def _warm_up(self) -> None:
        """The first forward pass everywhere, and more while the first backward pass is far."""
        size, micro = self.problem.num_devices, self.problem.micro_batches
        for device in range(size):
            self._fits(device, F)
            self._run(F, device)
        more = [0] * size
        back = self.free[-1] + self.cost[B][-1]
        for device in reversed(range(size - 1)):
            arrival = back + self.send[device]
            held, busy, keep = self.held[device], self.free[device], float(self.problem.forward_bytes[device])
            while 1 + more[device] < micro and held + keep <= self.room[device]:
                overrun = busy + self.cost[F][device] > arrival if self.wait_first else busy >= arrival
                if overrun:
                    break
                held, busy, more[device] = held + keep, busy + self.cost[F][device], more[device] + 1
            back = max(busy, arrival) + self.cost[B][device]
        for device in range(1, size):
            # A device needs one forward pass fewer than the one before it, unless all are done.
            if 0 < more[device] >= more[device - 1] and 1 + more[device] < micro:
                more[device] = min(more[device], max(more[device - 1] - 1, 0))
            more[device] = min(more[device], more[device - 1])
        for device in range(size):
            for _ in range(more[device]):
                self._run(F, device)

    def _forwards(self) -> list[int]:
        """Devices that take a forward pass this round; none after one that does not."""
        micro, size = self.problem.micro_batches, self.problem.num_devices
        wanted = [self.count[F][d] < micro and not self._holds(d) for d in range(size)]
        for device in reversed(range(size - 1)):
            wanted[device] = wanted[device] and wanted[device + 1]
        return [device for device in range(size) if wanted[device]]

    def _holds(self, device: int) -> bool:
        """Whether the next forward pass should wait, because the backward pass comes first."""
        after = device + 1
        done = self.count[F]
        if not self.hold_forwards or after == self.problem.num_devices or done[device] < done[after] + 2:
            return False
        back = self.free[after] + self.cost[F][after] + self.cost[B][after] + self.send[device]
        if self.free[device] >= back:
            return True
        held = self.held[device] + float(self.problem.forward_bytes[device])
        spare, spent = self.count[B][device] - self.count[W][device], 0.0
        while held > self.room[device] and spare:
            held -= float(self.problem.until_weight_bytes[device])
            spent, spare = spent + self.cost[W][device], spare - 1
        if self.free[device] + self.cost[F][device] + spent <= back:
            return False
        return back - self.free[device] <= max(self.idle) - self.idle[device]

    def _fits(self, device: int, kind: int) -> bool:
        change = float(self.problem.forward_bytes[device]) if kind == F else 0.0
        return self.held[device] + change <= self.room[device]

    def _make_room(self, device: int, kind: int) -> None:
        while not self._fits(device, kind):
            if self.count[W][device] >= self.count[B][device]:
                raise _Stuck
            self._run(W, device)

    def _fill(self, device: int, arrival: float) -> None:
        """W passes until the awaited data come."""
        while self._has_weight(device) and self.free[device] + self.cost[W][device] <= arrival:
            self._run(W, device)
        gap = arrival - self.free[device]
        if self._has_weight(device) and gap > 0:
            small = gap <= max(self.idle) - self.idle[device]
            if self.fill_small or not small:
                self._run(W, device)

    def _has_weight(self, device: int) -> bool:
        return self.count[W][device] < self.count[B][device]

    def _drain(self, device: int) -> None:
        while self._has_weight(device):
            self._run(W, device)


def zero_bubble(problem: ScheduleProblem) -> SchedulePlan | None:
    """The best of the eight variants that fit; None where none does. ValueError unless device d holds chunk d."""
    if problem.device.tolist() != list(range(problem.num_devices)):
        raise ValueError("the zero-bubble rule takes one chunk a device, in order")
    best: SchedulePlan | None = None
    for flags in product((True, False), repeat=3):
        try:
            order = _Builder(problem, *flags).build()
        except _Stuck:
            continue
        if (peak_bytes(problem, order) > problem.capacity_bytes).any():
            continue
        plan = timed(problem, order)
        if best is None or span_s(problem, plan) < span_s(problem, best):
            best = plan
    return best


def best_rule(problem: ScheduleProblem) -> tuple[str, SchedulePlan] | None:
    """The shortest of the rules that fit into memory, and its name; None where none fits."""
    found: list[tuple[str, SchedulePlan]] = []
    if problem.device.tolist() == list(range(problem.num_devices)):
        plan = zero_bubble(problem)
        if plan is not None:
            found.append(("zero bubble", plan))
    for name, rule in (("1F1B", one_forward_one_backward), ("breadth-first", breadth_first)):
        try:
            order = rule(problem)
        except ValueError:
            # The rule does not know this layout or number of micro-batches.
            continue
        if not (peak_bytes(problem, order) > problem.capacity_bytes).any():
            found.append((name, joined(problem, order)))
    return min(found, key=lambda named: span_s(problem, named[1]), default=None)
