"""The best schedule that can be found: rules, annealing, then intervals in CP-SAT (mathematics in `problem`).

Each step starts from the plan of the one before, and all stop where the plan meets the bound.

One interval a pass; `no_overlap` a device; memory as one `cumulative` a device: `until_backward_bytes` over
[F start, B end], `until_weight_bytes` over [F start, W end]. Micro-batches are alike, so passes of one kind and chunk
run in their order.

CP-SAT counts in whole ticks and bytes. Times that are whole already are taken as they are. Others are rounded down to
ticks of a 10,000th of the longest pass, which shortens every schedule and keeps the bound true; the order that is found
is then timed with the real ones, and the plan before stands where that is not shorter.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import IntegerValues, solve_cpsat
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.schedule.anneal import annealed
from formulations.parallelism.training.schedule.bound import period_bound_s
from formulations.parallelism.training.schedule.problem import (
    IntArray,
    Pass,
    SchedulePlan,
    ScheduleProblem,
    Task,
    peak_bytes,
    span_s,
    timed,
)
from formulations.parallelism.training.schedule.zero_bubble import best_rule

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

#: Rounds of annealing, each with its own random numbers, and passes that one prices in all: about a second.
ROUNDS, PRICED = 3, 20_000_000
#: Ticks of the longest pass where times are not whole, and parts of the capacity where bytes are rounded.
TICKS, PARTS = 10_000, 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Whole:
    """The problem in whole ticks and parts of memory, rounded down."""

    pass_ticks: IntArray
    send_ticks: IntArray
    until_backward: IntArray
    until_weight: IntArray
    capacity: IntArray
    tick_s: float
    exact: bool


def _whole(problem: ScheduleProblem) -> _Whole:
    times = np.concatenate([problem.pass_s.ravel(), problem.send_s])
    exact = bool((times == np.round(times)).all() and times.max() < 2**40)
    tick_s = 1.0 if exact else float(problem.pass_s.max()) / TICKS
    # Bytes down, capacity as it is: a looser memory keeps the bound, and the plan is measured in real bytes.
    part = float(problem.capacity_bytes.max()) / PARTS or 1.0
    return _Whole(
        pass_ticks=np.floor(problem.pass_s / tick_s + 1e-9).astype(np.int64),
        send_ticks=np.floor(problem.send_s / tick_s + 1e-9).astype(np.int64),
        until_backward=np.floor(problem.until_backward_bytes / part).astype(np.int64),
        until_weight=np.floor(problem.until_weight_bytes / part).astype(np.int64),
        capacity=np.floor(problem.capacity_bytes / part + 1e-9).astype(np.int64),
        tick_s=tick_s,
        exact=exact,
    )


@dataclass(slots=True, eq=False)
class _Model:
    model: cp_model.CpModel
    start: dict[Task, cp_model.IntVar]


def _build(problem: ScheduleProblem, whole: _Whole, hint: SchedulePlan, bound_s: float) -> _Model:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    micro, chunks = problem.micro_batches, problem.num_chunks
    begins = np.floor(hint.start_s / whole.tick_s + 1e-9).astype(np.int64)
    longest = int(np.ceil(span_s(problem, hint) / whole.tick_s))
    # The first chunk's device begins at 0 and holds the last backward pass, so that all others begin within its span.
    horizon = 2 * longest
    start: dict[Task, cp_model.IntVar] = {}
    spans: dict[Task, cp_model.IntervalVar] = {}
    for kind in Pass:
        for chunk in range(chunks):
            ticks = int(whole.pass_ticks[kind, chunk])
            for number in range(micro):
                task = (int(kind), chunk, number)
                start[task] = model.new_int_var(0, horizon, "")
                spans[task] = model.new_fixed_size_interval_var(start[task], ticks, "")
                model.add_hint(start[task], int(begins[task]))
    built = _Model(model, start)
    _waits(problem, whole, built)
    _memory(problem, whole, built, horizon)
    period = model.new_int_var(0, longest, "period")
    for device in range(problem.num_devices):
        own = np.flatnonzero(problem.device == device).tolist()
        model.add_no_overlap([spans[kind, chunk, i] for kind in range(3) for chunk in own for i in range(micro)])
        for first in own:
            for last in own:
                end = start[Pass.WEIGHT, last, micro - 1] + int(whole.pass_ticks[Pass.WEIGHT, last])
                model.add(period >= end - start[Pass.FORWARD, first, 0])
    if whole.exact:
        model.add(period >= int(np.ceil(bound_s - TOLERANCE)))
    model.minimize(period)
    return built


def _waits(problem: ScheduleProblem, whole: _Whole, built: _Model) -> None:
    """What a pass waits for; and passes of a kind and chunk in the order of micro-batches."""
    for task, begin in built.start.items():
        kind, chunk, number = task
        before = problem.predecessor(task)
        if before is not None:
            elsewhere = before[0][1]
            send = 0 if elsewhere == chunk else int(whole.send_ticks[min(elsewhere, chunk)])
            built.model.add(begin >= built.start[before[0]] + int(whole.pass_ticks[before[0][0], elsewhere]) + send)
        if number:
            built.model.add(begin >= built.start[kind, chunk, number - 1] + int(whole.pass_ticks[kind, chunk]))


def _memory(problem: ScheduleProblem, whole: _Whole, built: _Model, horizon: int) -> None:
    model = built.model
    for device in range(problem.num_devices):
        intervals, demands = [], []
        for chunk in np.flatnonzero(problem.device == device).tolist():
            for kind, kept in ((Pass.BACKWARD, whole.until_backward), (Pass.WEIGHT, whole.until_weight)):
                for number in range(problem.micro_batches if kept[chunk] else 0):
                    begin = built.start[Pass.FORWARD, chunk, number]
                    end = built.start[kind, chunk, number] + int(whole.pass_ticks[kind, chunk])
                    length = model.new_int_var(0, horizon, "")
                    intervals.append(model.new_interval_var(begin, length, end, ""))
                    demands.append(int(kept[chunk]))
        if sum(demands) > whole.capacity[device]:
            model.add_cumulative(intervals, demands, int(whole.capacity[device]))


def choose(
    problem: ScheduleProblem, options: SolveOptions | None = None, budget: Budget | None = None
) -> SearchResult[SchedulePlan]:
    """The best schedule found and a bound of the period. The work limit is in deterministic seconds."""
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    started_s = time.perf_counter()
    load_ortools_first()
    reasons = _why_not(problem)
    if reasons:
        return SearchResult(
            status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver="room", solver_version="", reasons=reasons
        )
    bound_s = period_bound_s(problem)
    plan = start(problem, options.seed, bound_s, budget)
    if span_s(problem, plan) <= bound_s * (1 + TOLERANCE) or budget.stop() is not None:
        return _result(problem, plan, bound_s, budget.stop() or Stop.PROOF, "rules and annealing", "", 0.0)
    whole = _whole(problem)
    built = _build(problem, whole, plan, bound_s)
    best = [plan]

    def on_solution(read: IntegerValues) -> None:
        found = _plan(problem, whole, built, read)
        fits = (peak_bytes(problem, found.order) <= problem.capacity_bytes * (1 + TOLERANCE)).all()
        if fits and span_s(problem, found) < span_s(problem, best[0]):
            best[0] = found

    build_s = time.perf_counter() - started_s
    result, _ = solve_cpsat(
        built.model,
        budget,
        options,
        scale=whole.tick_s,
        exact=whole.exact,
        unscale_bound=lambda ticks: ticks * whole.tick_s,
        on_solution=on_solution,
    )
    stop = Stop.HEURISTIC if result.stop is Stop.PROOF else result.stop
    bound_s = max(bound_s, result.bound or 0.0)
    return _result(problem, best[0], bound_s, stop, result.solver, result.solver_version, build_s)


def start(problem: ScheduleProblem, seed: int, enough_s: float, budget: Budget) -> SchedulePlan:
    """The best rule's plan, annealed; ends early where it is short enough."""
    named = best_rule(problem)
    plan = one_at_a_time(problem) if named is None else named[1]
    moves = PRICED // (3 * problem.num_chunks * problem.micro_batches)
    for turn in range(ROUNDS):
        if span_s(problem, plan) <= enough_s * (1 + TOLERANCE) or budget.stop() is not None:
            break
        plan = annealed(problem, plan, moves, seed * ROUNDS + turn)
    return plan


def _result(
    problem: ScheduleProblem, plan: SchedulePlan, bound_s: float, stop: Stop, solver: str, version: str, build_s: float
) -> SearchResult[SchedulePlan]:
    claimed = span_s(problem, plan)
    proven = claimed <= bound_s * (1 + TOLERANCE)
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else stop,
        plan=plan,
        solver=solver,
        solver_version=version,
        claimed=claimed,
        bound=Bound(value=bound_s, name="work, waiting that memory forces, and CP-SAT"),
        build_s=build_s,
    )


def _why_not(problem: ScheduleProblem) -> tuple[str, ...]:
    """One micro-batch at a time keeps the least memory there can be: all chunks of a device at once."""
    least = np.bincount(problem.device, weights=problem.forward_bytes)
    short = np.flatnonzero(least > problem.capacity_bytes * (1 + TOLERANCE)).tolist()
    return tuple(
        f"device {d} keeps {least[d]:g} bytes for one micro-batch, room for {problem.capacity_bytes[d]:g}"
        for d in short
    )


def one_at_a_time(problem: ScheduleProblem) -> SchedulePlan:
    """Micro-batch after micro-batch through the whole pipeline: slow, and within the least memory."""
    order: list[list[Task]] = [[] for _ in range(problem.num_devices)]
    for number in range(problem.micro_batches):
        for chunk in range(problem.num_chunks):
            order[int(problem.device[chunk])].append((Pass.FORWARD, chunk, number))
        for chunk in reversed(range(problem.num_chunks)):
            order[int(problem.device[chunk])] += [(Pass.BACKWARD, chunk, number), (Pass.WEIGHT, chunk, number)]
    return timed(problem, order)


def _plan(problem: ScheduleProblem, whole: _Whole, built: _Model, read: IntegerValues) -> SchedulePlan:
    start = np.zeros((3, problem.num_chunks, problem.micro_batches))
    for task, variable in built.start.items():
        start[task] = read(variable)
    order: list[list[Task]] = [[] for _ in range(problem.num_devices)]
    # Passes of no length sort after what they wait for: F before B before W.
    for task in sorted(built.start, key=lambda task: (start[task], task[0], task[2])):
        order[int(problem.device[task[1]])].append(task)
    if whole.exact:
        return SchedulePlan((start - start.min()) * whole.tick_s, tuple(tuple(tasks) for tasks in order))
    return timed(problem, order)
