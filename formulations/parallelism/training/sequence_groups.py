"""Sequences of different lengths over sequence-parallel groups of different sizes, for one micro-batch.

A long sequence needs a large group; short ones lose time in it. All groups work side by side and wait for the slowest.

Sets
    i   sequences
    k   classes of sequences of similar length, at most MAX_CLASSES
    d   degrees: devices of a sequence-parallel group
Data
    l[i]       tokens of a sequence
    t[i,d]     seconds that a sequence adds to a group of degree d; infinite where it cannot go
    b[d]       seconds that a group takes whatever it holds
    N, C       devices, and tokens that one device has room for
    t[k,d], l[k]   the least of a class's members, so that the program below bounds the real problem
Variables
    a[k,d]     sequences of a class that go to groups of a degree, continuous
    n[d]       groups of a degree, integer
Program for a given time T
    minimise   sum_d d n[d]                     devices; T is within reach only if they are at most N
    classes    sum_d a[k,d] = size of k                                                     every class
    time       sum_k t[k,d] a[k,d] <= (T - b[d]) n[d]                                       every degree
    memory     sum_k l[k] a[k,d] <= C d n[d]                                                every degree
    fits       a[k,d] = 0 where t[k,d] > T - b[d] or l[k] > C d
Search
    bisection of T; the last T that is proven out of reach is a bound
    numbers of groups found on the way, and those for T a little higher, are packed with the true lengths: longest
    first, each to the group that then ends earliest; then sequences of the slowest group are moved and swapped, and
    groups are split and merged, while that helps

Ignored: where groups lie (with degrees that are powers of two, largest first, none straddles more nodes than it must),
and how sequences came into this micro-batch.
Reference: FlexSP (arXiv 2412.01523), whose program names every group; equal groups are interchangeable and their
number is all that matters.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from formulations.backends.linear import IntArray, LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.result import as_integer
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.cost.verdict import Violation

FloatArray = npt.NDArray[np.float64]

#: Classes of the program: enough that batches of some hundred sequences lose nothing, few enough for milliseconds.
MAX_CLASSES = 96
#: Relative width at which the bisection ends; cost models of groups are off by more.
WIDTH = 2e-3
#: How far above the bound numbers of groups are asked for: packing needs slack, which depends on the lengths.
SLACKS = (1.0, 1.01, 1.02, 1.05, 1.1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SequenceProblem:
    """One micro-batch. Times may be in any unit, all the same.

    tokens : [n] of each sequence, at least 1.
    degrees : [D] devices of a group, ascending and different.
    sequence_s : [n, D] that a sequence adds to a group; infinite where it cannot go.
    group_s : [D] of a group whatever it holds.
    """

    tokens: IntArray
    degrees: IntArray
    sequence_s: FloatArray
    group_s: FloatArray
    num_devices: int
    tokens_per_device: float

    def __post_init__(self) -> None:
        shape = (self.tokens.size, self.degrees.size)
        if self.sequence_s.shape != shape or self.group_s.shape != shape[1:] or not all(shape):
            raise ValueError("sequence_s is [sequences, degrees], group_s [degrees]; neither is empty")
        if (self.tokens < 1).any() or self.degrees[0] < 1 or (np.diff(self.degrees) <= 0).any():
            raise ValueError("sequences have tokens, and degrees are ascending")
        if not ((self.sequence_s >= 0).all() and (self.group_s >= 0).all() and np.isfinite(self.group_s).all()):
            raise ValueError("times must be numbers and not negative")
        if self.num_devices < 1 or not self.tokens_per_device > 0:
            raise ValueError("there must be devices, with room for tokens")

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Whether a sequence can go to a group of a degree at all, [n, D]."""
        room = self.tokens_per_device * self.degrees
        small = self.degrees <= self.num_devices
        return np.asarray(np.isfinite(self.sequence_s) & (self.tokens[:, None] <= room) & small)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that one sequence-parallel group works on, by number."""

    degree: int
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """Groups, largest first."""

    groups: tuple[Group, ...]


def makespan(problem: SequenceProblem, plan: SequencePlan) -> float:
    """Time of the slowest group."""
    place = {int(degree): d for d, degree in enumerate(problem.degrees)}
    return max(
        float(problem.group_s[place[group.degree]])
        + float(problem.sequence_s[list(group.sequences), place[group.degree]].sum())
        for group in plan.groups
    )


def check(problem: SequenceProblem, plan: SequencePlan) -> list[Violation]:
    """Every broken rule: degrees, devices, each sequence once, room for tokens."""
    broken: list[Violation] = []
    degrees = set(problem.degrees.tolist())
    for number, group in enumerate(plan.groups):
        subject = f"group {number}"
        if group.degree not in degrees:
            message = f"no group may have {group.degree} devices"
            broken.append(Violation(rule="degree", subject=subject, message=message))
        known = [i for i in group.sequences if 0 <= i < problem.tokens.size]
        tokens, room = int(problem.tokens[known].sum()), problem.tokens_per_device * group.degree
        if tokens > room * (1 + TOLERANCE):
            message = f"{tokens} tokens, room for {room:.0f}"
            broken.append(Violation(rule="memory", subject=subject, message=message))
        if not group.sequences:
            broken.append(Violation(rule="empty", subject=subject, message="a group without a sequence"))
    used = sum(group.degree for group in plan.groups)
    if used > problem.num_devices:
        message = f"{used} devices are used, {problem.num_devices} there are"
        broken.append(Violation(rule="devices", subject="groups", message=message))
    held = sorted(i for group in plan.groups for i in group.sequences)
    if held != list(range(problem.tokens.size)):
        broken.append(Violation(rule="cover", subject="sequences", message="not every sequence is held once"))
    return broken


# Classes of similar sequences and the program for a given time.


@dataclass(frozen=True, slots=True, eq=False)
class _Classes:
    size: FloatArray  # [K]
    tokens: FloatArray  # [K]
    sequence_s: FloatArray  # [K, D], infinite where no member fits


def _classes(problem: SequenceProblem) -> _Classes:
    order = np.argsort(problem.tokens, kind="stable")
    # The longest decide: half of the classes are one sequence each.
    single = order.size if order.size <= MAX_CLASSES else MAX_CLASSES // 2
    short = order.size - single
    starts = np.append(
        np.arange(MAX_CLASSES - single) * short // max(MAX_CLASSES - single, 1), short + np.arange(single)
    )
    starts = np.unique(starts)
    possible_s = np.where(problem.fits, problem.sequence_s, np.inf)[order]
    return _Classes(
        size=np.diff(np.append(starts, order.size)).astype(np.float64),
        tokens=problem.tokens[order][starts].astype(np.float64),
        sequence_s=np.minimum.reduceat(possible_s, starts, axis=0),
    )


def devices_needed(problem: SequenceProblem, classes: _Classes, limit_s: float) -> tuple[LinearModel, IntArray] | None:
    """The program of a time and the columns of n [D]; None where a class fits nowhere in that time."""
    spare_s = limit_s - problem.group_s
    allowed = classes.sequence_s <= spare_s
    if not allowed.any(axis=1).all():
        return None
    builder = LinearBuilder()
    most = problem.num_devices // problem.degrees
    n = builder.variables(most.shape, upper=most, cost=problem.degrees, integer=True)
    k, d = np.nonzero(allowed)
    a = builder.variables(k.shape, upper=classes.size[k])
    builder.sparse_rows(classes.size, classes.size, (k, a, 1.0))
    none = np.full(n.size, -np.inf)
    # A row in units of what one group can do.
    builder.sparse_rows(
        none, 0.0, (d, a, classes.sequence_s[allowed] / np.maximum(spare_s, 1e-12)[d]), (np.arange(n.size), n, -1.0)
    )
    room = problem.tokens_per_device * problem.degrees
    builder.sparse_rows(none, 0.0, (d, a, classes.tokens[k] / room[d]), (np.arange(n.size), n, -1.0))
    builder.sparse_rows([-np.inf], float(problem.num_devices), (0, n, problem.degrees))
    return builder.build(), n


# Packing of the true lengths.


@dataclass(slots=True, eq=False)
class _Packing:
    """Which group holds each sequence, and when groups end."""

    degree: IntArray  # [G] places in problem.degrees
    held_by: IntArray  # [n]
    end_s: FloatArray  # [G]
    tokens: FloatArray  # [G]

    @property
    def makespan(self) -> float:
        return float(self.end_s.max())


def pack(problem: SequenceProblem, groups: IntArray) -> _Packing | None:
    """Longest sequences first, each to the group that then ends earliest; None where one finds no room.

    groups : [D] how many of each degree.
    """
    degree = np.repeat(np.arange(groups.size), groups)[::-1]
    fits = problem.fits
    room = problem.tokens_per_device * problem.degrees
    # Of a degree only the group that ends first matters, as long as it has room.
    queues: list[list[tuple[float, int, float]]] = [[] for _ in groups]
    for group, d in enumerate(degree.tolist()):
        heapq.heappush(queues[d], (float(problem.group_s[d]), group, 0.0))
    held_by = np.zeros(problem.tokens.size, dtype=np.int64)
    order = np.argsort(-problem.tokens, kind="stable")
    for i, tokens in zip(order.tolist(), problem.tokens[order].tolist(), strict=True):
        best: tuple[float, int, int] | None = None
        for d in np.flatnonzero(fits[i]).tolist():
            for place, (end_s, _, used) in enumerate(queues[d]):
                after = end_s + float(problem.sequence_s[i, d])
                if best is not None and after >= best[0]:
                    if place == 0:
                        break
                    continue
                if used + tokens <= room[d]:
                    best = (after, d, place)
                    break
        if best is None:
            return None
        after, d, place = best
        _, group, used = queues[d][place]
        queues[d][place] = (after, group, used + tokens)
        heapq.heapify(queues[d])
        held_by[i] = group
    return _packing(problem, degree, held_by)


def _packing(problem: SequenceProblem, degree: IntArray, held_by: IntArray) -> _Packing:
    added = problem.sequence_s[np.arange(held_by.size), degree[held_by]]
    return _Packing(
        degree=degree,
        held_by=held_by,
        end_s=problem.group_s[degree] + np.bincount(held_by, weights=added, minlength=degree.size),
        tokens=np.bincount(held_by, weights=problem.tokens, minlength=degree.size).astype(np.float64),
    )


def improve(problem: SequenceProblem, packing: _Packing) -> _Packing:
    """Move or swap one sequence of the slowest group, the best way each time, until none helps."""
    room = (problem.tokens_per_device * problem.degrees)[packing.degree]
    every_s = np.where(problem.fits, problem.sequence_s, np.inf)
    while True:
        slow = int(packing.end_s.argmax())
        own = np.flatnonzero(packing.held_by == slow)
        own_s = every_s[own, packing.degree[slow]]
        # Moved to group g, which then ends at ...
        away_s = packing.end_s[slow] - own_s
        there_s = packing.end_s[None] + every_s[own][:, packing.degree]
        full = packing.tokens[None] + problem.tokens[own][:, None] > room[None]
        moved_s = np.where(full, np.inf, np.maximum(there_s, away_s[:, None]))
        moved_s[:, slow] = np.inf
        # Swapped with sequence j of another group.
        other = packing.held_by
        degree = packing.degree[other]
        change = problem.tokens[own][:, None] - problem.tokens[None]
        here_s = away_s[:, None] + every_s[:, packing.degree[slow]][None]
        gone_s = packing.end_s[other] - every_s[np.arange(other.size), degree]
        across_s = gone_s[None] + every_s[own][:, degree]
        full = (packing.tokens[other] + change > room[other]) | (packing.tokens[slow] - change > room[slow])
        swapped_s = np.where(full | (other == slow)[None], np.inf, np.maximum(here_s, across_s))
        best_s = min(moved_s.min(initial=np.inf), swapped_s.min(initial=np.inf))
        if not best_s < packing.end_s[slow] * (1 - 1e-9):
            return packing
        held_by = packing.held_by.copy()
        if moved_s.min(initial=np.inf) <= best_s:
            i, group = np.unravel_index(int(moved_s.argmin()), moved_s.shape)
            held_by[own[i]] = group
        else:
            i, j = np.unravel_index(int(swapped_s.argmin()), swapped_s.shape)
            held_by[own[i]], held_by[j] = other[j], slow
        packing = _packing(problem, packing.degree, held_by)


def neighbours(problem: SequenceProblem, groups: IntArray) -> Iterator[IntArray]:
    """One group taken away for others of the same devices in all, or one more where devices are free."""
    degrees = problem.degrees
    free = problem.num_devices - int(groups @ degrees)
    for d in np.flatnonzero(degrees <= free).tolist():
        yield groups + (np.arange(groups.size) == d)
    for large in range(groups.size):
        for small in range(large):
            parts = int(degrees[large] // degrees[small])
            change = (np.arange(groups.size) == large) - parts * (np.arange(groups.size) == small)
            for after in (groups + change, groups - change):
                if (after >= 0).all() and after @ degrees <= problem.num_devices:
                    yield after


@dataclass(slots=True)
class _Best:
    """The best packing so far; numbers of groups that were packed already."""

    problem: SequenceProblem
    packing: _Packing | None = None
    tried: set[tuple[int, ...]] = field(default_factory=set)

    def offer(self, groups: IntArray) -> bool:
        """Pack and improve these numbers of groups; whether the best got better."""
        key = tuple(groups.tolist())
        if key in self.tried:
            return False
        self.tried.add(key)
        found = pack(self.problem, groups)
        # Improvement rarely gains more than this, and costs more than packing.
        if found is None or (self.packing is not None and found.makespan > 1.1 * self.packing.makespan):
            return False
        found = improve(self.problem, found)
        if self.packing is not None and found.makespan >= self.packing.makespan * (1 - 1e-9):
            return False
        self.packing = found
        return True


def one_degree(problem: SequenceProblem) -> _Best:
    """The plain rule: groups of one degree, as many as there are devices for, packed longest first."""
    best = _Best(problem)
    for d, degree in enumerate(problem.degrees.tolist()):
        best.offer((np.arange(problem.degrees.size) == d) * (problem.num_devices // degree))
    return best


def choose(
    problem: SequenceProblem, options: SolveOptions | None = None, budget: Budget | None = None
) -> SearchResult[SequencePlan]:
    """Groups and their sequences, with a lower bound of the time of the slowest group."""
    options = options or SolveOptions()
    budget = budget or Budget(options.time_limit_s)
    reasons = _why_not(problem)
    if reasons:
        return SearchResult(
            status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver="room", solver_version="", reasons=reasons
        )
    best = one_degree(problem)
    classes = _classes(problem)
    bound_s, solver, version = _bisect(problem, classes, best, options, budget)
    if best.packing is not None:
        _descend(problem, best, budget)
    stop = budget.stop() or Stop.HEURISTIC
    plan = None if best.packing is None else _plan(problem, best.packing)
    claimed = None if plan is None else makespan(problem, plan)
    proven = claimed is not None and claimed <= bound_s * (1 + TOLERANCE)
    status = Status.UNKNOWN if plan is None else Status.OPTIMAL if proven else Status.FEASIBLE
    return SearchResult(
        status=status,
        stop=Stop.PROOF if proven else stop,
        plan=plan,
        solver=solver,
        solver_version=version,
        claimed=claimed,
        bound=Bound(value=bound_s, name="groups counted by degree"),
    )


def _why_not(problem: SequenceProblem) -> tuple[str, ...]:
    nowhere = np.flatnonzero(~problem.fits.any(axis=1))
    if nowhere.size:
        i = int(nowhere[problem.tokens[nowhere].argmax()])
        largest = int(problem.degrees[problem.degrees <= problem.num_devices].max(initial=0))
        room = largest * problem.tokens_per_device
        return (f"sequence {i} has {problem.tokens[i]} tokens; the largest group, of {largest}, holds {room:.0f}",)
    room = problem.num_devices * problem.tokens_per_device
    if problem.tokens.sum() > room:
        return (f"{problem.tokens.sum()} tokens in all, room for {room:.0f}",)
    return ()


def _bisect(
    problem: SequenceProblem, classes: _Classes, best: _Best, options: SolveOptions, budget: Budget
) -> tuple[float, str, str]:
    """The highest time that is proven out of reach; offers all numbers of groups that come up."""
    # No class can be faster than in its best group.
    low = float((classes.sequence_s + problem.group_s).min(axis=1).max())
    high = best.packing.makespan if best.packing is not None else np.inf
    if not np.isfinite(high):
        possible_s = np.where(problem.fits, problem.sequence_s, 0.0)
        high = float(possible_s.max(axis=1).sum() + problem.group_s.max())
    solver, version = "highs", ""
    reached = high
    while reached - low > WIDTH * reached and budget.stop() is None:
        middle = 0.5 * (low + reached)
        groups, proven, version = _numbers(problem, classes, middle, options, budget)
        if groups is not None:
            best.offer(groups)
            reached = middle
        elif proven:
            low = middle
        else:
            break
    for slack in SLACKS:
        groups, _, version = _numbers(problem, classes, reached * slack, options, budget)
        if groups is not None:
            best.offer(groups)
    return low, solver, version


def _numbers(
    problem: SequenceProblem, classes: _Classes, limit_s: float, options: SolveOptions, budget: Budget
) -> tuple[IntArray | None, bool, str]:
    """Groups of each degree [D] that may do in this time, or whether it is proven that none do."""
    built = devices_needed(problem, classes, limit_s)
    if built is None:
        return None, True, ""
    model, n = built
    result, values = solve_linear_mathopt(model, budget, options)
    if values is None:
        return None, result.status is Status.INFEASIBLE, result.solver_version
    return np.array([as_integer(value) for value in values[n]]), False, result.solver_version


def _descend(problem: SequenceProblem, best: _Best, budget: Budget) -> None:
    """Change numbers of groups while that helps."""
    better = True
    while better and budget.stop() is None:
        better = False
        packing = best.packing
        assert packing is not None
        groups = np.bincount(packing.degree, minlength=problem.degrees.size)
        for after in neighbours(problem, groups):
            better |= best.offer(after)


def _plan(problem: SequenceProblem, packing: _Packing) -> SequencePlan:
    groups = []
    for group, d in enumerate(packing.degree.tolist()):
        members = np.flatnonzero(packing.held_by == group).tolist()
        if members:
            groups.append(Group(int(problem.degrees[d]), tuple(members)))
    return SequencePlan(tuple(groups))
