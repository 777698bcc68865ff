"""Deployments as a formulation.

Sets, data, variables, objective and constraints are those of `gpu_fleet.milp`, all at once: which worker a service has
(a configuration), which nodes it pays for (offers; standing nodes at the price of using one), which workers share one
(packing rows), how much each serves (routing), what survives a loss, what stays in force (moves). What follows of a
solution without loss is made from it: the workers' places (`placing`), the fewest of them (`trim`), expert maps
(`experts`: how even they lie is an attribute of a worker, so nothing has to be decided twice), the order of a change
(`steps`).

Ignored: CPU and memory of pods beside `requests_per_gpu`, start-up time of nodes.

Reference: it joins Mélange (arXiv 2404.14527) for routing, Splitwise (arXiv 2311.18677) for roles,
EPLB for experts, and bin packing by divisible sizes (Coffman, Garey and Johnson 1987) for nodes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from formulations.deployment.baseline import stage_by_stage
from formulations.deployment.check import check
from formulations.deployment.problem import DeployProblem
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Budget, Objective, SearchResult, SolveOptions, Status
from planner.cost.verdict import Violation
from planner.deploy_plan import DeployPlan
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan


class Deployment:
    """One plan from demand to placed pods."""

    name = "deploy"
    summary = "nodes, workers, pods and experts for a demand, in one optimisation"
    objective_unit = "USD/hour"
    methods: Mapping[str, str] = {
        "highs": "MILP of nodes, workers and routing, HiGHS (default)",
        "scip": "the same model, SCIP",
        "cbc": "the same model, CBC",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset({"highs"})

    def search(
        self, problem: DeployProblem, options: SolveOptions, budget: Budget, hint: DeployPlan | None
    ) -> SearchResult[DeployPlan]:
        """Solve the fleet of services, then place its workers. A hint is refused: `current` prices moves from one."""
        from formulations.deployment.placing import near_running
        from formulations.deployment.plans import whole_plan
        from formulations.deployment.trim import trimmed

        if hint is not None:
            raise OptionError("deploy takes no start plan; `current` prices moves from one")
        work = replace(options, method=options.method or next(iter(self.methods)))
        found = GPU_FLEET.search(problem.fleet, work, budget, None)
        if found.plan is None and found.status is Status.UNKNOWN:
            found = _by_stages(problem.fleet, found)
        started = time.perf_counter()
        plan, claimed = None, found.claimed
        if found.plan is not None:
            # What is told beside the plan has its own time: the search may use all of its.
            beside = Budget(max(BESIDE_S, budget.remaining_s))
            fleet = trimmed(problem.fleet, found.plan, options, beside, near_running(problem))
            if claimed is not None:
                # Trimming may save moves that the search had no time to leave.
                prices = [GPU_FLEET.objective(problem.fleet, one).total for one in (found.plan, fleet)]
                claimed -= prices[0] - prices[1]
            plan = whole_plan(problem, fleet, options, beside)
        return SearchResult(
            status=found.status,
            stop=found.stop,
            plan=plan,
            solver=found.solver,
            solver_version=found.solver_version,
            claimed=claimed,
            bound=found.bound,
            build_s=found.build_s,
            aside_s=found.aside_s + time.perf_counter() - started,
            reasons=(*problem.unfit, *found.reasons) if found.reasons else (),
            relaxations=found.relaxations,
        )

    def check(self, problem: DeployProblem, plan: DeployPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: DeployProblem, plan: DeployPlan) -> Objective:
        """The fleet's: mean cost an hour, and the price of moves."""
        return GPU_FLEET.objective(problem.fleet, plan.fleet)

    def baseline(self, problem: DeployProblem) -> tuple[str, DeployPlan | None]:
        """Worker, GPUs and nodes one after the other."""
        from formulations.deployment.plans import bare_plan

        fleet = stage_by_stage(problem.fleet)
        return "stage by stage", None if fleet is None else bare_plan(problem, fleet)


def _by_stages(fleet: FleetProblem, found: SearchResult[FleetPlan]) -> SearchResult[FleetPlan]:
    """The stage-by-stage plan where time was too short for another and it keeps all rules; what was found otherwise."""
    plan = stage_by_stage(fleet)
    if plan is None or GPU_FLEET.check(fleet, plan):
        return found
    return replace(found, status=Status.FEASIBLE, plan=plan, solver="stage by stage", claimed=None)


#: Seconds that what follows of a plan may take at least: trimming, expert maps, prices, steps.
BESIDE_S = 20.0
DEPLOYMENT = Deployment()
