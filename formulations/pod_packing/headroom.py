"""How many more pods of one kind would fit, now and after some moves: an interval each.

Without moves the count is exact: pods of one kind go onto each node by plain arithmetic. With k moves it is the problem
of `repair` with these pods alone pending: at least as many as its plan places, at most its bound. Other pending pods
take no part. A gang of n such pods without topology fits as often as n goes into the count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from formulations.base import solve
from formulations.outcome import SolveOptions
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.problem import Leave, PodsProblem
from formulations.pod_packing.state import State
from planner.errors import OptionError
from planner.workload import IntArray


@dataclass(frozen=True, slots=True)
class Room:
    """With `moves` moves at least `least` and at most `most` more pods fit; `moved` are those of the plan found."""

    moves: int
    least: int
    most: int
    moved: int


def headroom(problem: PodsProblem, pod: str, moves: Sequence[int], options: SolveOptions) -> Iterator[Room]:
    """Intervals for pods like the pending pod `pod`, by number of moves; the time limit is for each.

    Raises OptionError for a pod that is not pending, one that rules tie to other pods, and moves that are not allowed.
    """
    if pod not in problem.pod_names:
        raise OptionError(f"{pod} is no pod of the instance")
    place = problem.pod_names.index(pod)
    j = int(problem.pod_class[place])
    if problem.pod_node[place] >= 0:
        raise OptionError(f"{pod} runs already; headroom is asked for a pending pod, or one added to the instance")
    if problem.crossing[j]:
        raise OptionError(f"{pod} is tied to other pods by affinity, spread or a gang")
    if problem.bound[j]:
        raise OptionError(f"{pod} asks for GPUs of one island; headroom does not count islands")
    if any(moves) and problem.leave is None:
        raise OptionError("the instance allows no moves")
    now = most_alone(problem, j)
    # After k moves no more fit than on empty nodes, and each pod that leaves admits few: a generous demand will do.
    empty = replace(problem, pod_node=np.full_like(problem.pod_node, -1))
    ceiling = int(most_alone(empty, j).sum())
    for count in moves:
        if count == 0:
            yield Room(0, int(now.sum()), int(now.sum()), 0)
            continue
        assert problem.leave is not None
        alone = _alone(problem, j, ceiling, problem.leave, count)
        outcome = solve(POD_PACKING, alone, replace(options, method="repair"))
        assert outcome.plan is not None
        (tier,) = outcome.plan.tiers
        per_pod = float(problem.milli[j]) / 1000 if problem.milli[j] else 1.0
        base = float(problem.milli @ problem.running) / 1000 if problem.milli[j] else float(problem.running.sum())
        bound = ceiling if tier.bound is None else int((tier.bound - base) / per_pod + 1e-6)
        moved = len({move.pod for move in outcome.plan.moves})
        yield Room(count, round((tier.value - base) / per_pod), min(bound, ceiling), moved)


def most_alone(problem: PodsProblem, j: int) -> IntArray:
    """Pods of class j that fit onto each node beside those that run, [N]; exact, since all are alike."""
    state = State(problem)
    request, gpus, milli = problem.request[j], int(problem.class_gpus[j]), int(problem.class_milli[j])
    asked = request > 0
    found = np.where(problem.allowed[j], np.iinfo(np.int32).max, 0).astype(np.int64)
    if asked.any():
        found = np.minimum(found, (state.free[:, asked] // request[asked]).min(axis=1))
    if gpus == 1:
        found = np.minimum(found, (np.maximum(state.device, 0) // milli).sum(axis=1))
    elif gpus:
        found = np.minimum(found, (state.device >= milli).sum(axis=1) // gpus)
    return np.maximum(found, 0)


def _alone(problem: PodsProblem, j: int, count: int, leave: Leave, moves: int) -> PodsProblem:
    """The problem with `count` pods of class j pending, and no other."""
    running = np.flatnonzero(problem.pod_node >= 0)
    names = tuple(problem.pod_names[p] for p in running.tolist()) + tuple(f"headroom/{i}" for i in range(count))
    more = np.zeros(count, dtype=np.int64)
    budgets = tuple(
        replace(one, pods=np.concatenate([one.pods[running], more.astype(np.bool_)])) for one in leave.budgets
    )
    movable = np.concatenate([leave.movable[running], more.astype(np.bool_)])
    return replace(
        problem,
        objective="allocation" if problem.milli[j] else "priority",
        priority=np.zeros_like(problem.priority),
        pod_names=names,
        pod_class=np.concatenate([problem.pod_class[running], more + j]),
        pod_node=np.concatenate([problem.pod_node[running], more - 1]),
        pod_devices=tuple(problem.pod_devices[p] for p in running.tolist()) + ((),) * count,
        pinned=np.concatenate([problem.pinned[running], more.astype(np.bool_)]),
        waiting=("",) * len(names),
        could_leave=None,
        leave=Leave(
            most=min(moves, int(movable.sum())),
            movable=movable,
            evictable=np.zeros_like(leave.evictable),
            budgets=budgets,
        ),
    )
