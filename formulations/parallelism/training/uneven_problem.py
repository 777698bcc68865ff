"""Options of stages on an order of devices, pipelines of them, their price and their rules; see `uneven_stages`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Options whose runs of layers are looked at together.
MOST_TOGETHER = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class UnevenProblem:
    """Options of stages on one order of devices, and one number of micro-batches.

    begin, end : [O] places of the first device and after the last.
    layer_s, layer_bytes, kept_bytes, sync_s : [O, L].
    send_s : [O, L + 1] by layers done; the first and last columns are not read.
    capacity_bytes, closing_s : [O].
    receive_s : [O], where stages wait for their sends; None where those run beside the work.
    sync_runs_s : [O, L + 1, L + 1] by first layer and the one after the last, in place of sums of sync_s.
    stages : how many there must be; any number where None.
    """

    begin: IntArray
    end: IntArray
    layer_s: FloatArray
    layer_bytes: FloatArray
    kept_bytes: FloatArray
    sync_s: FloatArray
    send_s: FloatArray
    capacity_bytes: FloatArray
    closing_s: FloatArray
    micro_batches: int
    receive_s: FloatArray | None = None
    sync_runs_s: FloatArray | None = None
    stages: int | None = None

    def __post_init__(self) -> None:
        options, layers = self.layer_s.shape
        shapes = {
            "begin": (options,), "end": (options,), "capacity_bytes": (options,), "closing_s": (options,),
            "layer_bytes": (options, layers), "kept_bytes": (options, layers), "sync_s": (options, layers),
            "send_s": (options, layers + 1),
        }  # fmt: skip
        if self.receive_s is not None:
            shapes["receive_s"] = (options,)
        if self.sync_runs_s is not None:
            shapes["sync_runs_s"] = (options, layers + 1, layers + 1)
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}; layer_s asks for {shape}")
        if not (options and layers and self.micro_batches >= 1):
            raise ValueError("there must be an option, a layer and a micro-batch")
        if (self.begin < 0).any() or (self.begin >= self.end).any():
            raise ValueError("an option must begin before it ends")
        for field in fields(self):
            array = getattr(self, field.name)
            if array is None:
                continue
            if field.name.endswith(("_s", "_bytes")) and not (np.isfinite(array).all() and (array >= 0).all()):
                raise ValueError(f"{field.name} must be finite and not negative")

    @property
    def num_layers(self) -> int:
        """Layers, embedding and head included."""
        return int(self.layer_s.shape[1])

    @property
    def num_devices(self) -> int:
        """Places of the order."""
        return int(self.end.max())

    def runs(self, most_pace_s: float = np.inf) -> Runs:
        """All runs of layers of all options that fit with one micro-batch in flight, and are no slower than a cap."""
        places = np.arange(self.num_layers + 1)
        later = places[None] > places[:, None]
        sent_s = self.link_s
        found = []
        for start in range(0, len(self.begin), MOST_TOGETHER):
            part = slice(start, start + MOST_TOGETHER)
            done_s = _before(self.layer_s[part])
            work_s = done_s[:, None, :] - done_s[:, :, None]
            if self.receive_s is not None:
                work_s[:, 1:, :] += self.receive_s[part, None, None]
                work_s[:, :, :-1] += self.send_s[part, None, :-1]
            pace_s = np.maximum(work_s, sent_s[part, None, :])
            option, first, last = np.nonzero((pace_s <= most_pace_s) & later)
            seconds = work_s[option, first, last], pace_s[option, first, last]
            option = option + start
            flying = self._most_flying(option, first, last)
            holds = flying >= 1
            found.append([one[holds] for one in (option, first, last, *seconds, flying)])
        option, first, last, through_s, pace_s, flying = (np.concatenate(column) for column in zip(*found, strict=True))
        return Runs(option, first, last, through_s + sent_s[option, last], pace_s, flying)

    def sync_of(self, option: IntArray, first: IntArray, last: IntArray) -> FloatArray:
        """G of runs of layers."""
        if self.sync_runs_s is not None:
            return np.asarray(self.sync_runs_s[option, first, last])
        done_s = _before(self.sync_s)
        return np.asarray(done_s[option, last] - done_s[option, first])

    @cached_property
    def link_s(self) -> FloatArray:
        """c of every option by layers done, [O, L + 1]; 0 after the last layer, and where it is part of T."""
        sent = self.send_s.copy()
        sent[:, -1 if self.receive_s is None else 0 :] = 0.0
        return sent

    def _most_flying(self, option: IntArray, first: IntArray, last: IntArray) -> FloatArray:
        """Micro-batches in flight for which stages have room; below 1 they do not fit at all."""
        held, kept = self._held
        room = self.capacity_bytes[option] * (1 + TOLERANCE) - (held[option, last] - held[option, first])
        each = kept[option, last] - kept[option, first]
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(each > 0, room / each, np.where(room >= 0, np.inf, 0.0))
        return np.asarray(most * (1 + 1e-12))

    @cached_property
    def _held(self) -> tuple[FloatArray, FloatArray]:
        """Bytes of states, and for each micro-batch in flight, of layers up to each, [O, L + 1]."""
        return _before(self.layer_bytes), _before(self.kept_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Runs of layers first .. last - 1 under an option, arrays [n] in that order.

    through_s : T + c. pace_s : max(T, c). most_flying : micro-batches in flight for which there is room.
    """

    option: IntArray
    first: IntArray
    last: IntArray
    through_s: FloatArray
    pace_s: FloatArray
    most_flying: FloatArray


def _before(by_layer: FloatArray) -> FloatArray:
    """Sums over the layers before each, [n, L + 1]."""
    return np.concatenate([np.zeros((len(by_layer), 1)), np.cumsum(by_layer, axis=1)], axis=1)


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers first .. last - 1 by one option."""

    option: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class UnevenPlan:
    """Stages from the first layer to the last."""

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class UnevenCost:
    """Parts of a step, seconds: all micro-batches but one at the slowest pace, one through all stages, the end."""

    bottleneck_s: float
    through_s: float
    sync_s: float
    closing_s: float
    micro_batches: int

    @property
    def total_s(self) -> float:
        """The objective."""
        return (self.micro_batches - 1) * self.bottleneck_s + self.through_s + self.sync_s + self.closing_s


def cost(problem: UnevenProblem, plan: UnevenPlan) -> UnevenCost:
    """Price a plan from the layers of its stages."""
    slowest = through = sync = 0.0
    for stage in plan.stages:
        run = slice(stage.first, stage.last)
        worked_s = float(problem.layer_s[stage.option, run].sum())
        sent_s = float(problem.send_s[stage.option, stage.last]) if stage.last < problem.num_layers else 0.0
        through += worked_s + sent_s
        if problem.receive_s is not None:
            received_s = float(problem.receive_s[stage.option]) if stage.first else 0.0
            through, worked_s = through + received_s, worked_s + received_s + sent_s
        slowest = max(slowest, worked_s, sent_s)
        if problem.sync_runs_s is None:
            sync = max(sync, float(problem.sync_s[stage.option, run].sum()))
        else:
            sync = max(sync, float(problem.sync_runs_s[stage.option, stage.first, stage.last]))
    closing = float(problem.closing_s[plan.stages[-1].option])
    return UnevenCost(slowest, through, sync, closing, problem.micro_batches)


def check(problem: UnevenProblem, plan: UnevenPlan) -> list[Violation]:
    """Every broken rule: options, each layer once and no stage empty, neighbouring devices, memory."""
    if not plan.stages or any(not 0 <= stage.option < len(problem.begin) for stage in plan.stages):
        return [Violation(rule="option", subject="pipeline", message="no stage, or one without an option")]
    broken: list[Violation] = []
    cuts = [(stage.first, stage.last) for stage in plan.stages]
    ends = [0, *(last for _, last in cuts)]
    if [first for first, _ in cuts] != ends[:-1] or ends[-1] != problem.num_layers:
        message = f"stages hold layers {cuts} of {problem.num_layers}"
        broken.append(Violation(rule="cover", subject="pipeline", message=message))
    if problem.stages is not None and len(plan.stages) != problem.stages:
        message = f"{len(plan.stages)} stages, {problem.stages} are asked for"
        broken.append(Violation(rule="stages", subject="pipeline", message=message))
    for number, stage in enumerate(plan.stages):
        subject = f"stage {number}"
        if stage.first >= stage.last:
            broken.append(Violation(rule="empty", subject=subject, message="a stage without a layer"))
        if number and problem.begin[stage.option] != problem.end[plan.stages[number - 1].option]:
            message = "its devices do not follow those of the stage before"
            broken.append(Violation(rule="devices", subject=subject, message=message))
        flying = min(len(plan.stages) - number, problem.micro_batches)
        run = slice(stage.first, stage.last)
        used = float((problem.layer_bytes[stage.option, run] + flying * problem.kept_bytes[stage.option, run]).sum())
        room = float(problem.capacity_bytes[stage.option])
        if used > room * (1 + 2 * TOLERANCE):
            message = f"{used:g} bytes with {flying} micro-batches in flight, room for {room:g}"
            broken.append(Violation(rule="memory", subject=subject, message=message))
    return broken
