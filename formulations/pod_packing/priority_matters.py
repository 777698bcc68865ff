"""The model of "Priority Matters" as published: pod by pod, tier by tier, from the snapshot. The baseline of `cp-sat`.

Sets: movable pods i (all that run and are not protected, and pending ones), nodes j that could hold i alone.
Variables: x_ij in {0,1}; placed_i = sum over j of x_ij <= 1; stay_i = x_ij of the node where i runs.
Objective: for each priority p from the highest, (1) most pods of priority >= p placed, then (2) for running ones of
    priority >= p least sum of (placed_i - 2 stay_i): to stay counts -1, an eviction 0, a move 1. Each result is kept
    for what follows, as an equation where it was proven, else as a least (most) value.
Constraints: cores and memory of each node; at least one pending pod is placed, which makes the start infeasible.
Hints: the nodes of running pods first, then the last solution.
Time: the limit less 0.2 s; 60 % in equal windows for the tiers, 40 % more for the first one; half of a window for (1).

It ignores devices, every other amount, and all rules but which nodes admit a pod; such instances are refused here.
A tier that times out leaves pods of lower tiers unplaced: that is part of it. No bound is claimed: "optimal" of each
step is optimal for this order of steps alone.
Reference: Christensen et al., arXiv 2511.08373; henrikdchristensen/scheduler-plugins, scripts/python_solver.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import IntegerValues, solve_cpsat
from formulations.outcome import Budget, PartBudget, SolveOptions, Status
from formulations.pod_packing.packing import Packing
from formulations.pod_packing.problem import PodsProblem
from planner.errors import OptionError
from planner.kubernetes.snapshot import CPU, MEMORY, PODS

#: Seconds that the published plug-in keeps for itself, share of windows of equal length, share of one for placement.
GUARD_S, EQUAL, PLACEMENT = 0.2, 0.6, 0.5


class Published:
    """One run. `packing` is the last solution, None where none was found; `proven`, whether every step was."""

    def __init__(self, problem: PodsProblem, options: SolveOptions, budget: Budget) -> None:
        _refuse(problem)
        self.problem, self.options, self.budget = problem, options, budget
        self.packing: Packing | None = None
        self.proven = True
        load_ortools_first()
        from ortools.sat.python import cp_model

        self.model: cp_model.CpModel = cp_model.CpModel()
        start = Packing(problem)
        self.pods = np.flatnonzero(start.movable).tolist()
        self.priority = problem.priority[problem.pod_class]
        free, _ = start.left(np.array(self.pods, dtype=np.int64))
        self.x: dict[int, dict[int, Any]] = {}
        for pod in self.pods:
            j = int(problem.pod_class[pod])
            nodes = np.flatnonzero(problem.allowed[j] & (free >= problem.request[j]).all(axis=1)).tolist()
            self.x[pod] = {node: self.model.new_bool_var(f"x{pod}_{node}") for node in nodes}
        self.placed = {pod: sum(self.x[pod].values()) for pod in self.pods}
        self._constraints(free)
        self._hint(start)

    def _constraints(self, free: np.ndarray) -> None:
        problem = self.problem
        for pod in self.pods:
            running = problem.pod_node[pod] >= 0
            evictable = problem.leave is not None and problem.leave.evictable[problem.pod_class[pod]]
            self.model.add_linear_constraint(self.placed[pod], int(running and not evictable), 1)
        for node in range(problem.num_nodes):
            here = [
                (self.x[pod][node], problem.request[problem.pod_class[pod]]) for pod in self.pods if node in self.x[pod]
            ]
            for r in range(len(problem.resources)):
                if any(request[r] for _, request in here):
                    self.model.add(sum(int(request[r]) * x for x, request in here) <= int(free[node, r]))
        pending = [pod for pod in self.pods if problem.pod_node[pod] < 0]
        if pending:
            self.model.add(sum(self.placed[pod] for pod in pending) >= 1)

    def _hint(self, packing: Packing) -> None:
        """Running pods on their nodes; of a solution every pod."""
        self.model.clear_hints()
        for pod in self.pods:
            if packing.node[pod] >= 0 or packing is self.packing:
                for node, x in self.x[pod].items():
                    self.model.add_hint(x, node == packing.node[pod])

    def run(self) -> None:
        """Both steps of each tier, within their windows."""
        levels = np.unique(self.priority[self.pods])[::-1].tolist()
        total_s = self.budget.remaining_s - GUARD_S
        for place, level in enumerate(levels):
            window_s = EQUAL * total_s / len(levels) + (0.0 if place else (1.0 - EQUAL) * total_s)
            started_s = self.budget.elapsed_s
            tier = [pod for pod in self.pods if self.priority[pod] >= level]
            if not self._step(sum(self.placed[pod] for pod in tier), PLACEMENT * window_s):
                return
            left_s = window_s - (self.budget.elapsed_s - started_s)
            if not self._step(-self._disturbed(tier), left_s):
                return

    def _disturbed(self, tier: list[int]) -> Any:
        running = [pod for pod in tier if self.problem.pod_node[pod] >= 0]
        stay = [self.x[pod].get(int(self.problem.pod_node[pod]), 0) for pod in running]
        return sum(self.placed[pod] for pod in running) - 2 * sum(stay)

    def _step(self, most: Any, seconds: float) -> bool:
        if seconds <= 0:
            self.proven = False
            return False
        if isinstance(most, int):
            return True
        self.model.minimize(-most)
        limits = SolveOptions(time_limit_s=seconds, seed=self.options.seed, work_limit=self.options.work_limit)
        result, value = solve_cpsat(self.model, PartBudget(self.budget, seconds), limits)
        self.proven &= result.status is Status.OPTIMAL
        if value is None:
            return False
        self.packing = self._packed(value)
        self._hint(self.packing)
        reached = value(most)
        self.model.add(most == reached if result.status is Status.OPTIMAL else most >= reached)
        return True

    def _packed(self, value: IntegerValues) -> Packing:
        found = Packing(self.problem)
        for pod in self.pods:
            found.node[pod] = next((node for node, x in self.x[pod].items() if value(x)), -1)
        return found


def _refuse(problem: PodsProblem) -> None:
    """Name what the published model does not know."""
    unknown = []
    if problem.class_gpus.any():
        unknown.append("GPUs")
    if problem.rules or problem.gang_names:
        unknown.append("rules between pods")
    if set(problem.resources) - {CPU, MEMORY, PODS}:
        unknown.append("amounts besides cores and memory")
    if problem.objective != "priority":
        unknown.append(f"the objective {problem.objective}")
    if problem.leave is not None and (problem.leave.budgets or problem.leave.most < problem.leave.movable.sum()):
        unknown.append("limits of moves")
    if unknown:
        raise OptionError(f"the method priority-matters, as published, does not know {', '.join(unknown)}")
