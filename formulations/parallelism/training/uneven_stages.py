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

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.uneven_problem import (
    Runs,
    Stage,
    UnevenCost,
    UnevenPlan,
    UnevenProblem,
    check,
    cost,
)

__all__ = ["Stage", "UnevenCost", "UnevenPlan", "UnevenProblem", "check", "choose", "choose_among", "cost"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Caps go down by more than rounding.
_BELOW = 1 - 1e-9
#: Bounds are sums of floats.
_ROUNDING = 1 - 1e-9
#: Share of its value to which the least bottleneck is narrowed down, and of the step's the least reduction.
_NARROW = 1e-3
#: The first cap that is tried lies this share above the bottleneck's bound; steps double from there.
_FIRST_STEP = 0.02


class _Program:
    """The dynamic program under caps, over those runs of layers alone that are within them.

    A run is in no pipeline with a bottleneck below its `pace_s`: its own, or what the devices before and behind it need
    for the layers that it leaves them. Runs of pipelines that take `below_s` or more are left out at once.
    """

    def __init__(self, problem: UnevenProblem, below_s: float = np.inf) -> None:
        self.problem = problem
        self.most = min(problem.num_layers, problem.num_devices, problem.stages or problem.num_layers)
        self.work, self.speed, self.least_ratio = _relative(problem)
        others, through_s = problem.micro_batches - 1, self.floors_s()[1]
        most_pace_s = (below_s - through_s) / others if others else np.inf
        runs = problem.runs(most_pace_s)
        pace_s = np.maximum(runs.pace_s, self._beside_s(runs))
        useful = np.isfinite(pace_s) & (pace_s <= most_pace_s)
        option, first, last = (one[useful] for one in (runs.option, runs.first, runs.last))
        self.option, self.first, self.last, self.pace_s = option, first, last, pace_s[useful]
        closing_s = np.where(last == problem.num_layers, problem.closing_s[option], 0.0)
        self.through_s = runs.through_s[useful] + closing_s
        self.sync_s = problem.sync_of(option, first, last)
        self.most_flying = runs.most_flying[useful]
        width = problem.num_layers + 1
        self.after = problem.end[option] * width + last
        # Runs of one option from one layer on stand together; a state is where they begin.
        self.run = option * width + first
        self.state = problem.begin[option] * width + first

    def floors_s(self) -> tuple[float, float]:
        """No pipeline has a lower bottleneck, or a shorter way through: all work at each place's best speed."""
        whole = float(self.work.sum())
        if not whole:
            return 0.0, 0.0
        return whole / float(self.speed.sum()) * _ROUNDING, whole * self.least_ratio * _ROUNDING

    def _beside_s(self, runs: Runs) -> FloatArray:
        """The bottleneck that the layers before and after each run need at least on the devices before and behind."""
        done = np.concatenate([[0.0], np.cumsum(self.work)])
        speed = np.concatenate([[0.0], np.cumsum(self.speed)])
        begin, end = self.problem.begin[runs.option], self.problem.end[runs.option]
        with np.errstate(divide="ignore", invalid="ignore"):
            before_s = np.where(runs.first > 0, done[runs.first] / speed[begin], 0.0)
            left, places = done[-1] - done[runs.last], speed[-1] - speed[end]
            after_s = np.where(runs.last < self.problem.num_layers, left / places, 0.0)
        # Without work to go by, only what has no device at all is known to be impossible.
        return np.nan_to_num(np.maximum(before_s, after_s), nan=0.0, posinf=np.inf) * _ROUNDING

    def solve(
        self, pace_cap_s: float, sync_cap_s: float, through_cap_s: float = np.inf
    ) -> tuple[float, UnevenPlan] | None:
        """The least sum of T + c (and e) under all caps; None where no pipeline is within them."""
        problem = self.problem
        chosen = np.flatnonzero((self.pace_s <= pace_cap_s) & (self.sync_s <= sync_cap_s))
        width = problem.num_layers + 1
        best = np.full((self.most + 1, (problem.num_devices + 1) * width), np.inf)
        best[0, problem.num_layers :: width] = 0.0
        through_s, after, flying = self.through_s[chosen], self.after[chosen], self.most_flying[chosen]
        starts = np.flatnonzero(np.diff(self.run[chosen], prepend=-1))
        for k in range(1, self.most + 1):
            holds = flying >= min(k, problem.micro_batches)
            if not holds.all():
                chosen, through_s, after, flying = chosen[holds], through_s[holds], after[holds], flying[holds]
                starts = np.flatnonzero(np.diff(self.run[chosen], prepend=-1))
            if not chosen.size:
                break
            least_s = np.minimum.reduceat(through_s + best[k - 1, after], starts)
            np.minimum.at(best[k], self.state[chosen[starts]], least_s)
            best[k, best[k] > through_cap_s] = np.inf
            if not np.isfinite(best[k]).any():
                break
        whole = best[:, ::width]
        if problem.stages is not None:
            whole = np.where(np.arange(len(whole))[:, None] == problem.stages, whole, np.inf)
        count, place = np.unravel_index(int(whole.argmin()), whole.shape)
        total_s = float(whole[count, place])
        if not np.isfinite(total_s):
            return None
        allowed = (self.pace_s <= pace_cap_s) & (self.sync_s <= sync_cap_s)
        stages: list[Stage] = []
        here, layer = int(place), 0
        for left in range(int(count), 0, -1):
            own = np.flatnonzero(allowed & (self.state == here * width + layer))
            own = own[self.most_flying[own] >= min(left, problem.micro_batches)]
            run = int(own[(self.through_s[own] + best[left - 1, self.after[own]]).argmin()])
            stages.append(Stage(int(self.option[run]), layer, int(self.last[run])))
            here, layer = int(problem.end[self.option[run]]), int(self.last[run])
        return total_s, UnevenPlan(tuple(stages))


def _relative(problem: UnevenProblem) -> tuple[FloatArray, FloatArray, float]:
    """Work of each layer, [L], what a device at each place does of it a second at most, and the least s of a unit.

    With w the work of layers under some option, and r[o] the least of an option's layers over it, a stage takes
    T >= r sum of w; so max T is at least the sum of w of some layers over the sum of the highest 1 / (r places) of the
    places that they lie on. No work where some layer takes no time.
    """
    work = problem.layer_s[0]
    if not (work > 0).all():
        return np.zeros(problem.num_layers), np.zeros(problem.num_devices), 0.0
    ratio = (problem.layer_s / work).min(axis=1)
    with np.errstate(divide="ignore"):
        each = 1.0 / (ratio * (problem.end - problem.begin))
    speed = np.zeros(problem.num_devices)
    for begin, end, one in zip(problem.begin.tolist(), problem.end.tolist(), each.tolist(), strict=True):
        speed[begin:end] = np.maximum(speed[begin:end], one)
    return work, speed, float(ratio.min())


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
    search = _Search(_Program(problem, below_s), budget, below_s)
    reached = search.climb()
    if search.stop is None and not reached:
        if below_s < np.inf:
            return _result(problem, None, Status.UNKNOWN, Stop.PROOF, below_s)
        reason = "no run of options leads from the first layer to the last within memory"
        return _result(problem, None, Status.INFEASIBLE, Stop.PROOF, None, (reason,))
    search.narrow()
    # A pipeline with a slower stage than this cannot better what was found, however short its way through is.
    cap_s: float | None = search.worst_pace_s()
    while cap_s is not None and search.stop is None:
        cap_s = search.descend(min(cap_s, search.worst_pace_s()))
    best, best_s, stop = search.best, search.best_s, search.stop
    if stop is not None:
        floor_s = min(search.floor_s + search.least_through_s, best_s)
        return _result(problem, best, Status.UNKNOWN if best is None else Status.FEASIBLE, stop, floor_s)
    return _result(problem, best, Status.UNKNOWN if best is None else Status.OPTIMAL, Stop.PROOF, best_s)


class _Search:
    """Caps of the bottleneck, from below until there is a pipeline, then from above; and the best plan so far.

    least_* : of any pipeline that betters the best.
    """

    def __init__(self, program: _Program, budget: Budget, below_s: float) -> None:
        self.program, self.budget = program, budget
        self.others = program.problem.micro_batches - 1
        self.least_pace_s, self.least_through_s = program.floors_s()
        self.least_sync_s = 0.0
        self.best: UnevenPlan | None = None
        self.best_s = below_s
        self.stop: Stop | None = None

    @property
    def floor_s(self) -> float:
        """What all micro-batches but one, and the reduction, take."""
        return self.others * self.least_pace_s + self.least_sync_s

    def climb(self) -> bool:
        """Higher and higher caps until one lets a pipeline through that could better the best."""
        most_s = float(self.program.pace_s.max(initial=0.0))
        growth = _FIRST_STEP
        while self.stop is None:
            worst_s = min(self.worst_pace_s(), most_s)
            cap_s = min(self.least_pace_s * (1.0 + growth), worst_s) if self.least_pace_s > 0 else worst_s
            if self.least_pace_s <= worst_s and self._try(cap_s):
                return True
            if cap_s >= worst_s:
                return False
            self.least_pace_s, growth = cap_s, 2.0 * growth
            self.stop = self.budget.stop()
        return False

    def narrow(self) -> None:
        """Raise the least bottleneck, then the least reduction, by halves."""
        high_s = np.inf if self.best is None else cost(self.program.problem, self.best).bottleneck_s
        while self.stop is None and high_s - self.least_pace_s > _NARROW * high_s < np.inf:
            middle_s = 0.5 * (self.least_pace_s + high_s)
            if self._try(middle_s):
                high_s = middle_s
            else:
                self.least_pace_s = middle_s
            self.stop = self.budget.stop()
        worst_s, sync_s = self.worst_pace_s(), self.program.sync_s
        high_s = float(sync_s.max(initial=0.0))
        while self.stop is None and high_s - self.least_sync_s > _NARROW * self.best_s:
            middle_s = 0.5 * (self.least_sync_s + high_s)
            if self.program.solve(worst_s, middle_s, self.best_s - self.floor_s) is None:
                self.least_sync_s = middle_s
            else:
                high_s = middle_s
            self.stop = self.budget.stop()

    def _try(self, pace_cap_s: float) -> bool:
        """Whether a pipeline within the cap could better the best; it is taken where it does."""
        found = self.program.solve(pace_cap_s, np.inf, self.best_s - self.floor_s)
        if found is None:
            return False
        self._take(found[1])
        return True

    def _take(self, plan: UnevenPlan) -> UnevenCost:
        priced = cost(self.program.problem, plan)
        if priced.total_s < self.best_s:
            self.best, self.best_s = plan, priced.total_s
        return priced

    def worst_pace_s(self) -> float:
        """Bottlenecks above this are of no use."""
        if not self.others:
            return np.inf
        return (self.best_s - self.least_through_s - self.least_sync_s) / self.others

    def descend(self, pace_cap_s: float) -> float | None:
        """All reductions under one cap of the bottleneck; the next cap below it, or None where none is of use."""
        problem = self.program.problem
        found = self.program.solve(pace_cap_s, np.inf, self.best_s - self.floor_s)
        if found is None or found[0] + self.floor_s >= self.best_s:
            return None
        # The least way through under a cap that all better pipelines keep.
        self.least_through_s = max(self.least_through_s, found[0])
        next_cap_s = cost(problem, found[1]).bottleneck_s * _BELOW
        while found is not None and found[0] + self.floor_s < self.best_s:
            priced = self._take(found[1])
            self.stop = self.budget.stop()
            if self.stop is not None or priced.sync_s == 0.0:
                break
            found = self.program.solve(pace_cap_s, priced.sync_s * _BELOW, self.best_s - self.floor_s)
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
