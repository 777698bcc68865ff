"""When each pass of a pipeline runs.

A model is cut into chunks in the order of depth; a device holds one (plain pipelines) or several (interleaved, V).
Each micro-batch goes forward (F) through all chunks, then backward: B, the gradient of the input, which the chunk
before waits for, and W, the gradient of the weights, for which nobody waits.

Sets
    c, i       chunks and micro-batches; d(c) the device of a chunk
    k          passes F, B, W
Data
    t[k,c]     seconds of a pass
    s[c]       seconds to send between chunks c and c + 1, either way; 0 on one device
    mb[c], mw[c]   bytes kept from the start of F to the end of B, and to the end of W
    M[d]       bytes of activations that a device may keep
Variables
    x[k,c,i]   start of a pass, continuous
Objective
    minimise   max_d (end of the last pass of d - start of its first)         period at which steps can follow
Constraints
    forward    x[F,c+1,i] >= x[F,c,i] + t[F,c] + s[c]                                        every chunk but the last
    turn       x[B,last,i] >= x[F,last,i] + t[F,last]
    backward   x[B,c,i] >= x[B,c+1,i] + t[B,c+1] + s[c]                                      every chunk but the last
    weight     x[W,c,i] >= x[B,c,i] + t[B,c]
    one pass   passes of a device do not overlap
    memory     sum of mb over F started and B not ended, and of mw over F started and W not ended, <= M[d] at all times

As passes of a device do not overlap, its memory depends on their order alone.
Ignored: sends that share a link, optimizer and gradient reduction after the last pass.
Reference: Zero Bubble Pipeline Parallelism (Qi et al., arXiv 2401.10241).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Pass(IntEnum):
    """What a device does with one micro-batch and chunk."""

    FORWARD = 0
    BACKWARD = 1  # gradient of the input
    WEIGHT = 2  # gradient of the weights


#: A pass of a chunk for a micro-batch: (pass, chunk, micro-batch).
Task = tuple[int, int, int]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScheduleProblem:
    """A pipeline of C chunks on D devices and m micro-batches.

    device : [C] of each chunk, in the order of depth.
    pass_s : [3, C] seconds of F, B and W.
    send_s : [C - 1] seconds between neighbouring chunks.
    until_backward_bytes, until_weight_bytes : [C] kept from the start of F to the end of B, and of W.
    capacity_bytes : [D].
    """

    device: IntArray
    pass_s: FloatArray
    send_s: FloatArray
    until_backward_bytes: FloatArray
    until_weight_bytes: FloatArray
    capacity_bytes: FloatArray
    micro_batches: int

    def __post_init__(self) -> None:
        chunks = self.device.size
        shapes = {
            "pass_s": (self.pass_s.shape, (3, chunks)),
            "send_s": (self.send_s.shape, (chunks - 1,)),
            "until_backward_bytes": (self.until_backward_bytes.shape, (chunks,)),
            "until_weight_bytes": (self.until_weight_bytes.shape, (chunks,)),
        }
        for name, (found, asked) in shapes.items():
            if found != asked:
                raise ValueError(f"{name} has shape {found}, {chunks} chunks ask for {asked}")
        if self.capacity_bytes.ndim != 1 or set(self.device.tolist()) != set(range(self.capacity_bytes.size)):
            raise ValueError("each device of capacity_bytes must hold a chunk, and no other there is")
        for name in ("pass_s", "send_s", "until_backward_bytes", "until_weight_bytes"):
            array = getattr(self, name)
            if not (np.isfinite(array).all() and (array >= 0).all()):
                raise ValueError(f"{name} must be finite and not negative")
        if self.micro_batches < 1 or not self.pass_s.any():
            raise ValueError("there must be a micro-batch, and something to do")

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole pipeline."""
        return self.device.size

    @property
    def num_devices(self) -> int:
        """Devices of the pipeline."""
        return self.capacity_bytes.size

    @property
    def forward_bytes(self) -> FloatArray:
        """Bytes that a forward pass begins to keep, [C]."""
        return self.until_backward_bytes + self.until_weight_bytes

    @property
    def work_s(self) -> FloatArray:
        """Seconds that each device works in a step, [D]."""
        return np.bincount(self.device, weights=self.micro_batches * self.pass_s.sum(axis=0)).astype(np.float64)

    def memory_change(self, task: Task) -> float:
        """Bytes that a pass adds when it starts (F) or gives back when it ends (B, W)."""
        kind, chunk, _ = task
        if kind == Pass.FORWARD:
            return float(self.forward_bytes[chunk])
        given = self.until_backward_bytes if kind == Pass.BACKWARD else self.until_weight_bytes
        return -float(given[chunk])

    def predecessor(self, task: Task) -> tuple[Task, float] | None:
        """The pass that must end, so many seconds before, elsewhere or here; None for the first chunk's forward."""
        kind, chunk, micro = task
        if kind == Pass.WEIGHT:
            return (Pass.BACKWARD, chunk, micro), 0.0
        if kind == Pass.FORWARD:
            return None if chunk == 0 else ((Pass.FORWARD, chunk - 1, micro), float(self.send_s[chunk - 1]))
        if chunk == self.num_chunks - 1:
            return (Pass.FORWARD, chunk, micro), 0.0
        return (Pass.BACKWARD, chunk + 1, micro), float(self.send_s[chunk])


@dataclass(frozen=True, slots=True, eq=False)
class SchedulePlan:
    """start_s : [3, C, m] start of every pass; order : passes of each device."""

    start_s: FloatArray
    order: tuple[tuple[Task, ...], ...]


def span_s(problem: ScheduleProblem, plan: SchedulePlan) -> float:
    """The objective: from a device's first start to its last end, on the device where that is longest."""
    ends = plan.start_s + problem.pass_s[:, :, None]
    spans = []
    for device in range(problem.num_devices):
        own = problem.device == device
        spans.append(ends[:, own].max() - plan.start_s[:, own].min())
    return float(max(spans))


def idle_share(problem: ScheduleProblem, plan: SchedulePlan) -> float:
    """Share of the period in which the busiest device waits: the bubble."""
    return 1.0 - float(problem.work_s.max()) / span_s(problem, plan)


def timed(problem: ScheduleProblem, order: Sequence[Sequence[Task]]) -> SchedulePlan:
    """Start times for passes in given orders: devices end as early as they can, and begin as late as that allows.

    Raises ValueError for orders that wait for one another for ever, or leave out a pass.
    """
    shape = (3, problem.num_chunks, problem.micro_batches)
    sequence = _sequence(problem, order)
    if len(sequence) != np.prod(shape):
        raise ValueError("the orders wait for one another, or leave out a pass")
    duration = problem.pass_s.tolist()
    start = np.zeros(shape)
    free = [0.0] * problem.num_devices
    for task in sequence:
        device = int(problem.device[task[1]])
        before = problem.predecessor(task)
        ready = 0.0 if before is None else start[before[0]] + duration[before[0][0]][before[0][1]] + before[1]
        start[task] = max(free[device], ready)
        free[device] = start[task] + duration[task[0]][task[1]]
    # Backwards: each pass as late as its successors and the end of its device allow.
    latest = np.full(shape, np.inf)
    for task in reversed(sequence):
        device = int(problem.device[task[1]])
        end = min(free[device], float(latest[task]))
        start[task] = free[device] = end - duration[task[0]][task[1]]
        before = problem.predecessor(task)
        if before is not None:
            latest[before[0]] = min(latest[before[0]], start[task] - before[1])
    return SchedulePlan(start - start.min(), tuple(tuple(tasks) for tasks in order))


def _sequence(problem: ScheduleProblem, order: Sequence[Sequence[Task]]) -> list[Task]:
    """All passes so that each comes after what it waits for; shorter where that is not possible."""
    place = [0] * len(order)
    done: set[Task] = set()
    sequence: list[Task] = []
    moved = True
    while moved:
        moved = False
        for device, tasks in enumerate(order):
            while place[device] < len(tasks):
                task = tasks[place[device]]
                before = problem.predecessor(task)
                if before is not None and before[0] not in done:
                    break
                done.add(task)
                sequence.append(task)
                place[device] += 1
                moved = True
    return sequence


def peak_bytes(problem: ScheduleProblem, order: Sequence[Sequence[Task]]) -> FloatArray:
    """Most bytes that each device keeps, [D]."""
    peaks = []
    for tasks in order:
        held = np.cumsum([problem.memory_change(task) for task in tasks])
        peaks.append(float(held.max(initial=0.0)))
    return np.array(peaks)
