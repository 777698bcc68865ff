"""Micro-batches and shards of states in unequal parts over unequal devices, or micro-batches over unequal pipelines.

Sets
    i          devices of one data-parallel group, or whole pipelines
Data
    t[i], a[i]     seconds for each unit of batch, and whatever the batch; a pipeline of p stages has a = (p - 1) t
    B              units of batch in all
    k[i], M[i]     bytes that a unit keeps, and bytes there are
    S              bytes of states in all, sharded over the group (ZeRO, FSDP); 0 where each holds its own
    h              seconds to gather or scatter the states if one device held all of them
Variables
    b[i]           units of batch, integer
    r[i]           share of the states, continuous
    T
Objective
    minimise   T
Constraints
    time       a[i] + t[i] b[i] <= T                                                         where b[i] > 0
    gather     h r[i] <= T                                the largest shard is what a collective waits for
    memory     S r[i] + k[i] b[i] <= M[i]
    all        sum b = B, sum r = 1
Method, exact
    bisection of T. For a given T, device i takes at most floor((T - a) / t) units, and has room for
    min(M - k b, S T / h) bytes of states, which is concave in b: the units that cost least room first, B of them, leave
    the most room in all.

Reference: Cephalo (arXiv 2411.01075) splits batch and states apart by a program over both; Malleus and Hydraulis share
micro-batches over unequal pipelines.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE, Bound, SearchResult, Status, Stop
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Relative width at which the bisection ends.
WIDTH = 1e-9


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ShareProblem:
    """What is shared over n devices or pipelines; arrays [n]."""

    unit_s: FloatArray
    fixed_s: FloatArray
    unit_bytes: FloatArray
    capacity_bytes: FloatArray
    units: int
    state_bytes: float = 0.0
    gather_s: float = 0.0

    def __post_init__(self) -> None:
        arrays = (self.unit_s, self.fixed_s, self.unit_bytes, self.capacity_bytes)
        if any(array.shape != self.unit_s.shape or array.ndim != 1 for array in arrays) or not self.unit_s.size:
            raise ValueError("unit_s, fixed_s, unit_bytes and capacity_bytes are [n], and n is positive")
        if not all(np.isfinite(array).all() and (array >= 0).all() for array in arrays):
            raise ValueError("times and bytes must be finite and not negative")
        if self.units < 1 or not (self.unit_s > 0).all():
            raise ValueError("there must be something to share, and it must take time")
        if not (0 <= self.state_bytes < np.inf and 0 <= self.gather_s < np.inf):
            raise ValueError("states and their gathering must be finite and not negative")


@dataclass(frozen=True, slots=True)
class SharePlan:
    """Units of batch and shares of the states, by device."""

    units: tuple[int, ...]
    states: tuple[float, ...]


def slowest_s(problem: ShareProblem, plan: SharePlan) -> float:
    """The objective: the slowest device, or the largest shard's gathering."""
    units = np.array(plan.units)
    worked_s = np.where(units > 0, problem.fixed_s + problem.unit_s * units, 0.0)
    gathered_s = problem.gather_s * max(plan.states) if problem.state_bytes else 0.0
    return max(float(worked_s.max()), gathered_s)


def check(problem: ShareProblem, plan: SharePlan) -> list[Violation]:
    """Every broken rule: one entry a device, all units, all states, memory."""
    size = problem.unit_s.size
    if len(plan.units) != size or len(plan.states) != size or min(plan.units) < 0 or min(plan.states) < 0:
        message = f"{size} devices ask for as many parts, none negative"
        return [Violation(rule="parts", subject="shares", message=message)]
    broken: list[Violation] = []
    if sum(plan.units) != problem.units:
        message = f"{sum(plan.units)} units are shared, {problem.units} there are"
        broken.append(Violation(rule="units", subject="shares", message=message))
    if problem.state_bytes and abs(sum(plan.states) - 1.0) > TOLERANCE:
        message = f"shares of the states add up to {sum(plan.states):g}"
        broken.append(Violation(rule="states", subject="shares", message=message))
    used = problem.state_bytes * np.array(plan.states) + problem.unit_bytes * np.array(plan.units)
    for i in np.flatnonzero(used > problem.capacity_bytes * (1 + TOLERANCE)).tolist():
        message = f"{used[i]:g} bytes, room for {problem.capacity_bytes[i]:g}"
        broken.append(Violation(rule="memory", subject=f"device {i}", message=message))
    return broken


def even(problem: ShareProblem) -> SharePlan:
    """The plain rule: equal parts, the first devices one unit more. It may break memory."""
    size = problem.unit_s.size
    each, left = divmod(problem.units, size)
    return SharePlan(tuple(each + (i < left) for i in range(size)), (1.0 / size,) * size)


def choose(problem: ShareProblem) -> SearchResult[SharePlan]:
    """The shares whose slowest part is least, to a relative 1e-9."""
    longest_s = float((problem.fixed_s + problem.unit_s * problem.units).max()) + problem.gather_s
    plan = _within(problem, longest_s)
    if plan is None:
        return SearchResult(
            status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver="greedy by room", solver_version="",
            reasons=(_why_not(problem),),
        )  # fmt: skip
    low, high = 0.0, slowest_s(problem, plan)
    while high - low > WIDTH * high:
        middle = 0.5 * (low + high)
        found = _within(problem, middle)
        if found is None:
            low = middle
        else:
            plan, high = found, slowest_s(problem, found)
    return SearchResult(
        status=Status.OPTIMAL,
        stop=Stop.PROOF,
        plan=plan,
        solver="greedy by room",
        solver_version="",
        claimed=slowest_s(problem, plan),
        bound=Bound(value=low, name="no shares within this time"),
    )


def _within(problem: ShareProblem, limit_s: float) -> SharePlan | None:
    """Shares that take no longer, or None."""
    most = np.floor((limit_s - problem.fixed_s) / problem.unit_s + 1e-12)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_room = np.where(
            problem.unit_bytes > 0, np.floor(problem.capacity_bytes / problem.unit_bytes + 1e-12), problem.units
        )
    most = np.clip(np.minimum(most, by_room), 0, problem.units).astype(np.int64)
    if most.sum() < problem.units:
        return None
    largest = problem.state_bytes
    if problem.state_bytes and problem.gather_s:
        largest = min(largest, problem.state_bytes * limit_s / problem.gather_s)
    units = _least_room(problem, most, largest)
    room = np.clip(problem.capacity_bytes - problem.unit_bytes * units, 0.0, largest)
    if not problem.state_bytes:
        return SharePlan(tuple(units.tolist()), (0.0,) * units.size)
    if room.sum() < problem.state_bytes * (1 - 1e-12):
        return None
    # As equal as the rooms allow, so that the largest shard is least.
    return SharePlan(tuple(units.tolist()), tuple(_level(room, problem.state_bytes).tolist()))


def _least_room(problem: ShareProblem, most: IntArray, largest: float) -> IntArray:
    """Units by device, at most `most`, that take the least room from shards of up to `largest` bytes."""
    if not problem.state_bytes or not problem.unit_bytes.any():
        return _fill(most, np.argsort(problem.unit_bytes, kind="stable"), problem.units)

    def room(i: int, units: int) -> float:
        return float(np.clip(problem.capacity_bytes[i] - problem.unit_bytes[i] * units, 0.0, largest))

    units = np.zeros(most.size, dtype=np.int64)
    queue = [(room(i, 0) - room(i, 1), i) for i in range(most.size) if most[i]]
    heapq.heapify(queue)
    for _ in range(problem.units):
        _, i = heapq.heappop(queue)
        units[i] += 1
        if units[i] < most[i]:
            heapq.heappush(queue, (room(i, int(units[i])) - room(i, int(units[i]) + 1), i))
    return units


def _fill(most: IntArray, order: IntArray, units: int) -> IntArray:
    before = np.cumsum(most[order]) - most[order]
    filled = np.zeros(most.size, dtype=np.int64)
    filled[order] = np.clip(units - before, 0, most[order])
    return filled


def _level(room: FloatArray, state_bytes: float) -> FloatArray:
    """Shares under the rooms, all at one level or at their room, that add up to 1."""
    order = np.sort(room)
    left, level = state_bytes, 0.0
    for place, one in enumerate(order.tolist()):
        level = left / (order.size - place)
        if level <= one:
            break
        left -= one
    held = np.minimum(room, level)
    return np.asarray(held / held.sum())


def _why_not(problem: ShareProblem) -> str:
    need = problem.state_bytes + problem.units * float(problem.unit_bytes.min())
    return (
        f"{problem.units} units and their states take {need:g} bytes or more, in parts of whole units;"
        f" {problem.capacity_bytes.sum():g} there are"
    )
