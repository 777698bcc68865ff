"""Numbers of groups by bisection of the time, packed on the way (mathematics in `problem`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.result import as_integer
from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.sequences.packing import Best, Packing, neighbours, one_degree
from formulations.parallelism.training.sequences.problem import (
    FloatArray,
    Group,
    IntArray,
    SequencePlan,
    SequenceProblem,
    makespan,
)

#: Classes of the program: enough that batches of some hundred sequences lose nothing, few enough for milliseconds.
MAX_CLASSES = 96
#: Relative width at which the bisection ends; cost models of groups are off by more.
WIDTH = 2e-3
#: How far above the bound numbers of groups are asked for: packing needs slack, which depends on the lengths.
SLACKS = (1.01, 1.03, 1.1)


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
    problem: SequenceProblem, classes: _Classes, best: Best, options: SolveOptions, budget: Budget
) -> tuple[float, str, str]:
    """The highest time that is proven out of reach; offers all numbers of groups that come up."""
    # No class can be faster than in its best group, and all devices together no faster than in their best groups.
    low = float((classes.sequence_s + problem.group_s).min(axis=1).max())
    device_s = (np.where(problem.fits, problem.sequence_s, np.inf) * problem.degrees).min(axis=1).sum()
    low = max(low, float(problem.group_s.min() + device_s / problem.num_devices))
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


def _descend(problem: SequenceProblem, best: Best, budget: Budget) -> None:
    """Change numbers of groups while that helps."""
    better = True
    while better and budget.stop() is None:
        better = False
        packing = best.packing
        assert packing is not None
        groups = np.bincount(packing.degree, minlength=problem.degrees.size)
        for after in neighbours(problem, groups):
            better |= best.offer(after)


def _plan(problem: SequenceProblem, packing: Packing) -> SequencePlan:
    groups = []
    for group, d in enumerate(packing.degree.tolist()):
        members = np.flatnonzero(packing.held_by == group).tolist()
        if members:
            groups.append(Group(int(problem.degrees[d]), tuple(members)))
    return SequencePlan(tuple(groups))
