"""GPU fleet: the formulation that `solve()` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from formulations.gpu_fleet import melange
from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import cost_parts, instance_counts
from formulations.gpu_fleet.search import search
from formulations.gpu_fleet.tiers import search_by_tiers
from formulations.gpu_fleet.unserved import served_per_s, unserved_per_s
from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan


class GpuFleet:
    """The cheapest instances and routing shares; see `milp` for the mathematics."""

    name = "fleet"
    summary = "the cheapest mix of GPUs that serves a demand within its SLO"
    objective_unit = "USD/hour"
    methods: Mapping[str, str] = {
        "highs": "MILP with continuous routing shares, HiGHS (default)",
        "scip": "the same model, SCIP",
        "cbc": "the same model, CBC",
        "melange-1": "Mélange's model, one slice a bucket, SCIP",
        "melange-4": "Mélange's model, 4 slices a bucket, SCIP",
        "melange-8": "Mélange's model, 8 slices a bucket, SCIP",
        "cp-sat": "16 slices a bucket, CP-SAT: a cross-check",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset({"highs"})

    def search(
        self, problem: FleetProblem, options: SolveOptions, budget: Budget, hint: FleetPlan | None
    ) -> SearchResult[FleetPlan]:
        """Solve with the asked backend. A hint is refused: no backend here takes one."""
        if hint is not None:
            raise OptionError("fleet methods take no start plan; `current` prices changes from one")
        method = options.method or next(iter(self.methods))
        if method in melange.SLICES:
            return melange.search(problem, options, budget, method)
        if problem.leave_unserved:
            return search_by_tiers(problem, options, budget, method)
        return search(problem, options, budget, method)

    def check(self, problem: FleetProblem, plan: FleetPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: FleetProblem, plan: FleetPlan) -> Objective:
        """Mean cost an hour, and the price of changes."""
        share = {hours: float(s) for hours, s in zip(problem.hours, problem.share, strict=True)}
        counts = instance_counts(problem, plan)
        weights = np.array([share[period.hours] for period in plan.periods])
        parts = cost_parts(problem, plan)
        rent = parts["rent_usd_per_hour"]
        served = served_per_s(problem, plan)
        requests = float(weights @ served.sum(axis=1))
        tokens = float(weights @ (served @ problem.output_tokens))
        measures = {
            "instances_mean": float(weights @ counts.sum(axis=1)),
            "gpus_mean": float(weights @ (counts @ problem.gpus)),
            "gpus_peak": float((counts @ problem.gpus).max()),
        }
        if requests:
            measures["usd_per_million_requests"] = rent / 3600 / requests * 1e6
            measures["usd_per_million_output_tokens"] = rent / 3600 / tokens * 1e6
        if problem.leave_unserved:
            for priority, left in unserved_per_s(problem, plan).items():
                measures[f"unserved_per_s[priority {priority}]"] = left
        return Objective(total=sum(parts.values()), parts=parts, measures=measures)

    def baseline(self, problem: FleetProblem) -> tuple[str, FleetPlan | None]:
        """The best single offer for each model."""
        return "best single offer", best_single_offer(problem)


GPU_FLEET = GpuFleet()
