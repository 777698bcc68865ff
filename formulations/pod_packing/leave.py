"""What an instance allows to happen to running pods, as arrays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.pod_packing.problem import EvictionBudget, Leave, PodsProblem
from planner.descriptions.pods import Moves
from planner.kubernetes.snapshot import Snapshot

#: Nodes with more devices keep their pods: sets of devices and pods are bits of one number.
MOST_DEVICES = 31


def with_leave(problem: PodsProblem, moves: Moves, snapshot: Snapshot) -> PodsProblem:
    """The problem with what could happen to running pods, and with leave for it where the instance allows moves.

    Pinned pods (DaemonSet, static, ending) stay, and so do pods that affinity, spread or a gang ties to others: moving
    one of them could break a rule of the rest. A pod may be evicted for good where a pending pod that may preempt has a
    higher priority.
    """
    running = problem.pod_node >= 0
    tied = (problem.crossing | problem.bound)[problem.pod_class] & running & ~problem.pinned
    wide = problem.gpus[problem.pod_node] > MOST_DEVICES
    movable = running & ~problem.pinned & ~tied & ~wide
    assumptions = list(problem.assumptions)
    if tied.any():
        assumptions.append(
            f"{int(tied.sum())} running pods with affinity, spread, a gang or an island of GPUs are not moved"
        )
    if (wide & running).any():
        assumptions.append(f"pods on nodes with more than {MOST_DEVICES} GPUs are not moved")
    preempting = np.array([pod.preempts for pod in snapshot.pods], dtype=np.bool_) & problem.pending
    top = problem.priority[problem.pod_class[preempting]].max(initial=np.iinfo(np.int64).min)
    evictable = (problem.priority < top) & moves.evict
    most = int(movable.sum()) if moves.max is None else min(moves.max, int(movable.sum()))
    budgets = []
    for one in snapshot.budgets:
        pods = np.array([one.pods.matches(pod.namespace, pod.labels) for pod in snapshot.pods], dtype=np.bool_)
        if (pods & movable).any():
            budgets.append(EvictionBudget(one.name, pods, one.allowed))
    leave = Leave(most=most, movable=movable, evictable=evictable, budgets=tuple(budgets))
    if not moves.allowed:
        return replace(problem, could_leave=leave)
    return replace(problem, leave=leave, could_leave=leave, assumptions=tuple(assumptions))
