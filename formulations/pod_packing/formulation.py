"""Pod packing: the formulation that `solve()` runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from formulations.outcome import Budget, Objective, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.pod_packing.baseline import fgd, kube_default
from formulations.pod_packing.check import check
from formulations.pod_packing.numa.baseline import single_moves
from formulations.pod_packing.objective import UNIT, price
from formulations.pod_packing.problem import PodsProblem
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.pods_plan import PodsPlan
from planner.version import gpuplan_version

#: Rules that are there to be compared with: they tell no more than where pods go.
PUBLISHED_RULES = ("priority-matters", "kube-default", "fgd")
#: Methods of the objective `fragments`, and of no other.
FRAGMENT_METHODS = ("numa", "single-moves")


class PodPacking:
    """Pods onto nodes; see `patterns` for the mathematics."""

    name = "pods"
    summary = "pods onto nodes, to the device: most by priority, most GPU allocated, or fewest nodes"
    objective_unit = UNIT
    methods: Mapping[str, str] = {
        "auto": "cp-sat, patterns or repair, by size and by what may move; numa for fragments (default)",
        "patterns": "column generation over node patterns, with a bound; work limit: rounds of patterns",
        "repair": "columns of pods removed from and added to a node, within `moves`, with a bound; work limit: rounds",
        "cp-sat": "an exact model, whole where it is small, then part by part; work limit: parts",
        "priority-matters": "the published model of that name, pod by pod, cores and memory alone; no bound",
        "kube-default": "the default scheduler's scoring, pod by pod; no bound",
        "fgd": "fragmentation gradient descent, pod by pod; no bound",
        "numa": "for fragments: columns of what leaves and comes to a machine, with a bound; work limit: rounds",
        "single-moves": "for fragments: one VM after the other, the best move first; no bound",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset(methods)

    def search(
        self, problem: PodsProblem, options: SolveOptions, budget: Budget, hint: PodsPlan | None
    ) -> SearchResult[PodsPlan]:
        """Run the asked method. A hint is refused: running pods are part of the instance."""
        if hint is not None:
            raise OptionError("pods methods take no start plan; running pods are part of the instance")
        if options.num_threads > 1:
            raise OptionError(f"pods methods run on one thread, got {options.num_threads}")
        method = options.method or next(iter(self.methods))
        if (method in FRAGMENT_METHODS) > (problem.numa is not None):
            raise OptionError(f"the method {method} is for the objective fragments, this is {problem.objective}")
        if problem.numa is not None and method not in ("auto", *FRAGMENT_METHODS):
            raise OptionError(f"the objective fragments has the methods auto, {', '.join(FRAGMENT_METHODS)}")
        if problem.bound.any() and method in ("patterns", "repair"):
            raise OptionError(
                f"{method} does not know islands of GPUs, which pods of this instance ask for; cp-sat does"
            )
        if method in PUBLISHED_RULES or problem.numa is not None:
            return self._searched(method, problem, options, budget)
        from formulations.pod_packing.remedies import kept_s, relaxations, remedies

        kept = kept_s(options)
        found = self._searched(method, problem, options, PartBudget(budget, max(1e-3, budget.remaining_s - kept)))
        started = time.perf_counter()
        # Work is limited by itself: then the clock only cuts off.
        limited = options.work_limit is not None
        aside = PartBudget(budget, budget.remaining_s if limited else min(kept, budget.remaining_s))
        if found.status is Status.INFEASIBLE:
            return replace(found, relaxations=relaxations(problem, options, aside), aside_s=_since(started))
        if found.plan is None or not found.plan.unplaced or kept == 0.0:
            return found
        plan = found.plan.model_copy(update={"remedies": remedies(problem, found.plan, options, aside)})
        return replace(found, plan=plan, aside_s=_since(started))

    def _searched(
        self, method: str, problem: PodsProblem, options: SolveOptions, budget: Budget
    ) -> SearchResult[PodsPlan]:
        if problem.numa is not None and method != "single-moves":
            from formulations.pod_packing.numa.search import search as reschedule

            return reschedule(problem, options, budget)
        if method in ("auto", "cp-sat", "priority-matters"):
            from formulations.pod_packing import cp_sat

            exact = {"auto": cp_sat.auto, "cp-sat": cp_sat.search, "priority-matters": cp_sat.published}
            return exact[method](problem, options, budget)
        if method == "repair":
            from formulations.pod_packing.repair.search import search as repair

            return repair(problem, options, budget)
        if method == "patterns":
            if problem.leave is not None and problem.leave.most:
                raise OptionError("patterns moves no running pod, and this instance allows moves; repair does")
            from formulations.pod_packing.patterns import search

            return search(problem, options, budget)
        rules = {"kube-default": kube_default, "fgd": fgd, "single-moves": _single_moves}
        plan = rules[method](problem)
        left = self.check(problem, plan)
        return SearchResult(
            status=Status.UNKNOWN if left else Status.FEASIBLE,
            stop=Stop.HEURISTIC,
            plan=None if left else plan,
            solver=method,
            solver_version=gpuplan_version(),
        )

    def check(self, problem: PodsProblem, plan: PodsPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: PodsProblem, plan: PodsPlan) -> Objective:
        """From the placements alone."""
        return price(problem, plan)

    def baseline(self, problem: PodsProblem) -> tuple[str, PodsPlan | None]:
        """What kube-scheduler would do with the pending pods; for fragments, single moves."""
        if problem.numa is not None:
            return "single-moves", _single_moves(problem)
        return "kube-default", kube_default(problem)


def _single_moves(problem: PodsProblem) -> PodsPlan:
    assert problem.numa is not None
    assert problem.leave is not None
    return single_moves(problem, problem.numa, problem.leave)


def _since(started: float) -> float:
    return time.perf_counter() - started


POD_PACKING = PodPacking()
