"""Pipelines of unequal stages on unequal devices: which devices and layers each stage gets.

Devices stand in an order; a stage takes neighbours in it and a run of layers. The embedding and the output head are
layers like others, the first and the last, with their own times and bytes.

Sets
    l          layers in the order of depth, embedding and head among them; L of them
    o          options of a stage: devices from place begin[o] to end[o], worked in some way (data- and tensor-parallel
               sizes, recomputation)
    i          stages, 1 .. p; k = p - i + 1 of them from stage i on
Data
    t[o,l]     seconds of a layer for one micro-batch, forward and backward
    w[o,l], a[o,l], M[o]   bytes of its states, bytes kept for each micro-batch in flight, and bytes there are
    c[o,b]     seconds to send on what layers 1 .. b made, and to get its gradient back
    g[o,l]     seconds to reduce gradients and update
    e[o]       seconds a step beside, where the stage is the last
    m          micro-batches
    r[o]       seconds to receive what a stage works on, and to send its gradient back
Variables
    o(i), cut points 0 = b(0) < b(1) < ... < b(p) = L
Objective
    minimise   (m - 1) max_i max(T_i, c_i) + sum_i (T_i + c_i) + max_i G_i + e        T, G: sums of t, g over a stage's
                                                                                      layers; the last sends nothing
Constraints
    devices    begin[o(i + 1)] = end[o(i)]; devices at both ends of the order may be left out
    memory     sum w + min(k, m) sum a <= M                                            1F1B keeps k micro-batches
Method, exact
    F[k, q, b] = least sum of T + c to do the layers after b in k stages on devices from place q on, by dynamic program
    over k, under a cap of the slowest stage or link and a cap of G. Caps go down from what the last answer had, so that
    every pair of bottleneck and G that the best plan may have is met. It ends where even the least bottleneck cannot
    better the plan.

Sends of their own, as above, run beside the work. Where r is given, a stage waits for its sends instead: c is then
part of T (not of the last stage), and r too (not of the first). G is a sum over layers, or given for every run of them.

Ignored: orders of devices are the caller's to list.
Reference: Metis (ATC 2024), whose rules for groups and layers this contains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Caps go down by more than rounding.
_BELOW = 1 - 1e-9


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

    @cached_property
    def stage_s(self) -> FloatArray:
        """T of every option and run of layers [O, L + 1, L + 1], infinite for empty ones."""
        worked_s = self._runs(self.layer_s, np.inf)
        if self.receive_s is not None:
            worked_s[:, 1:, :] += self.receive_s[:, None, None]
            worked_s[:, :, :-1] += self.send_s[:, None, :-1]
        return worked_s

    @cached_property
    def stage_sync_s(self) -> FloatArray:
        """G of every option and run of layers."""
        return self._runs(self.sync_s, 0.0) if self.sync_runs_s is None else self.sync_runs_s

    @cached_property
    def link_s(self) -> FloatArray:
        """c of every option by layers done, [O, L + 1]; 0 after the last layer, and where it is part of T."""
        sent = self.send_s.copy()
        sent[:, -1 if self.receive_s is None else 0 :] = 0.0
        return sent

    def fits(self, from_here: int) -> npt.NDArray[np.bool_]:
        """Whether a stage fits into memory with so many stages from it on, [O, L + 1, L + 1]."""
        flying = min(from_here, self.micro_batches)
        used = self._runs(self.layer_bytes + flying * self.kept_bytes, 0.0)
        return np.asarray(used <= self.capacity_bytes[:, None, None] * (1 + TOLERANCE))

    def _runs(self, by_layer: FloatArray, empty: float) -> FloatArray:
        """Sums over layers a .. b - 1 at [o, a, b]; `empty` where b <= a."""
        before = np.concatenate([np.zeros((len(by_layer), 1)), np.cumsum(by_layer, axis=1)], axis=1)
        places = np.arange(before.shape[1])
        return np.where(places[None] > places[:, None], before[:, None, :] - before[:, :, None], empty)


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


class _Program:
    """The dynamic program under caps."""

    def __init__(self, problem: UnevenProblem) -> None:
        self.problem = problem
        self.most = min(problem.num_layers, problem.num_devices, problem.stages or problem.num_layers)
        stage_s = problem.stage_s
        self.pace_s = np.maximum(stage_s, problem.link_s[:, None, :])
        self.through_s = stage_s + problem.link_s[:, None, :]
        self.through_s[:, :, -1] += problem.closing_s[:, None]
        same = not problem.kept_bytes.any()
        first = problem.fits(1)
        # [k] from 1; one array serves all where memory does not depend on k.
        self.fits = [first if same or k == 0 else problem.fits(k + 1) for k in range(self.most)]

    def solve(self, pace_cap_s: float, sync_cap_s: float) -> tuple[float, UnevenPlan] | None:
        """The least sum of T + c (and e) under both caps; None where no pipeline is within them."""
        problem = self.problem
        allowed = (self.pace_s <= pace_cap_s) & (problem.stage_sync_s <= sync_cap_s)
        best = np.full((self.most + 1, problem.num_devices + 1, problem.num_layers + 1), np.inf)
        best[0, :, -1] = 0.0
        for k in range(1, self.most + 1):
            value_s = self._values(k, best, allowed).min(axis=2)
            np.minimum.at(best[k], problem.begin, value_s)
        if problem.stages is not None:
            best[: problem.stages, :, 0] = np.inf
        count, place = np.unravel_index(int(best[:, :, 0].argmin()), best.shape[:2])
        total_s = float(best[count, place, 0])
        if not np.isfinite(total_s):
            return None
        stages: list[Stage] = []
        here, layer = int(place), 0
        for left in range(int(count), 0, -1):
            value_s = self._values(left, best, allowed)[problem.begin == here, layer]
            own, last = np.unravel_index(int(value_s.argmin()), value_s.shape)
            option = int(np.flatnonzero(problem.begin == here)[own])
            stages.append(Stage(option, layer, int(last)))
            here, layer = int(problem.end[option]), int(last)
        return total_s, UnevenPlan(tuple(stages))

    def _values(self, k: int, best: FloatArray, allowed: npt.NDArray[np.bool_]) -> FloatArray:
        after = best[k - 1, self.problem.end]
        usable = allowed & self.fits[k - 1]
        return np.where(usable, self.through_s + after[:, None, :], np.inf)

    def least_pace_s(self) -> float:
        """The smallest cap of the slowest stage or link under which there is a pipeline."""
        return self._least(self.pace_s, lambda cap_s: self.solve(cap_s, np.inf))

    def least_sync_s(self) -> float:
        """The same of the reduction."""
        return self._least(self.problem.stage_sync_s, lambda cap_s: self.solve(np.inf, cap_s))

    def _least(self, values_s: FloatArray, solve: Callable[[float], object]) -> float:
        caps = np.unique(values_s[self.fits[0] & np.isfinite(self.pace_s)])
        low, high = 0, caps.size - 1
        while low < high:
            middle = (low + high) // 2
            if solve(float(caps[middle])) is None:
                low = middle + 1
            else:
                high = middle
        return float(caps[low])


def choose(
    problem: UnevenProblem,
    options: SolveOptions | None = None,
    budget: Budget | None = None,
    below_s: float = np.inf,
) -> SearchResult[UnevenPlan]:
    """The fastest pipeline on this order of devices; one that takes `below_s` or more need not be found.

    Without a plan: INFEASIBLE where there is none at all; where all take at least `below_s`, UNKNOWN with its bound.
    """
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    program = _Program(problem)
    fastest = program.solve(np.inf, np.inf)
    if fastest is None:
        reason = "no run of options leads from the first layer to the last within memory"
        return _result(problem, None, Status.INFEASIBLE, Stop.PROOF, None, (reason,))
    search = _Search(program, budget, below_s, fastest[0])
    search.descend(search.least_pace_s)
    # A pipeline with a slower stage than this cannot better what was found, however short its way through is.
    cap_s: float | None = search.worst_pace_s()
    while cap_s is not None and search.stop is None:
        cap_s = search.descend(min(cap_s, search.worst_pace_s()))
    best, best_s, stop, floor_s = search.best, search.best_s, search.stop, fastest[0] + search.floor_s
    if stop is not None:
        return _result(problem, best, Status.UNKNOWN if best is None else Status.FEASIBLE, stop, floor_s)
    return _result(problem, best, Status.UNKNOWN if best is None else Status.OPTIMAL, Stop.PROOF, best_s)


class _Search:
    """Caps from high to low, and the best plan so far.

    floor_s : what all micro-batches but one, and the reduction, take in any pipeline.
    """

    def __init__(self, program: _Program, budget: Budget, below_s: float, through_s: float) -> None:
        self.program, self.budget = program, budget
        self.others = program.problem.micro_batches - 1
        self.least_pace_s, self.least_sync_s = program.least_pace_s(), program.least_sync_s()
        self.floor_s = self.others * self.least_pace_s + self.least_sync_s
        self.through_s = through_s
        self.best: UnevenPlan | None = None
        self.best_s = below_s
        self.stop: Stop | None = None

    def worst_pace_s(self) -> float:
        """Bottlenecks above this are of no use."""
        if not self.others:
            return np.inf
        return (self.best_s - self.through_s - self.least_sync_s) / self.others

    def descend(self, pace_cap_s: float) -> float | None:
        """All reductions under one cap of the bottleneck; the next cap below it, or None where none is of use."""
        problem = self.program.problem
        found = self.program.solve(pace_cap_s, np.inf)
        if found is None or found[0] + self.floor_s >= self.best_s:
            return None
        next_cap_s = cost(problem, found[1]).bottleneck_s * _BELOW
        while found is not None and found[0] + self.floor_s < self.best_s:
            priced = cost(problem, found[1])
            if priced.total_s < self.best_s:
                self.best, self.best_s = found[1], priced.total_s
            self.stop = self.budget.stop()
            if self.stop is not None or priced.sync_s == 0.0:
                break
            found = self.program.solve(pace_cap_s, priced.sync_s * _BELOW)
        return next_cap_s


def choose_among(
    problems: Sequence[UnevenProblem], options: SolveOptions | None = None, budget: Budget | None = None
) -> tuple[int, SearchResult[UnevenPlan]]:
    """The best of several orders of devices and numbers of micro-batches: its number, and its result.

    The bound holds for all of them. Raises ValueError without a problem.
    """
    if not problems:
        raise ValueError("there is no problem to choose among")
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    place, best = 0, choose(problems[0], options, budget)
    bounds = [best.bound]
    for number, problem in enumerate(problems[1:], start=1):
        found = choose(problem, options, budget, np.inf if best.claimed is None else best.claimed)
        bounds.append(found.bound)
        if found.plan is not None:
            place, best = number, found
    known = [bound.value for bound in bounds if bound is not None]
    if best.plan is None or best.claimed is None:
        return place, best
    bound_s = min(known)
    problem = problems[place]
    proven = bound_s >= best.claimed * (1 - TOLERANCE)
    status = Status.OPTIMAL if proven else Status.FEASIBLE
    return place, _result(problem, best.plan, status, Stop.PROOF if proven else budget.stop() or best.stop, bound_s)


def _result(
    problem: UnevenProblem,
    plan: UnevenPlan | None,
    status: Status,
    stop: Stop,
    bound_s: float | None,
    reasons: tuple[str, ...] = (),
) -> SearchResult[UnevenPlan]:
    return SearchResult(
        status=status,
        stop=stop,
        plan=plan,
        solver="dynamic program",
        solver_version="",
        claimed=None if plan is None else cost(problem, plan).total_s,
        bound=None if bound_s is None else Bound(value=bound_s, name="all bottlenecks and reductions"),
        reasons=reasons,
    )
