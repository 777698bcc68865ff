"""Parallelism plan search for serving: the formulation that `solve()` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.check import check
from formulations.parallelism.plans import plan_of
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.search import search
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.parallel_plan import ParallelPlan


class ServingParallelism:
    """Which workers serve a model, and how many; see `milp` for the mathematics."""

    name = "parallel"
    summary = "which workers (role, GPU, TP, PP, DP, EP, batch) serve a model, and how many of each"
    objective_unit = "GPUs, USD/hour or watts at the rate; without a rate, requests/s with a minus sign"
    methods: Mapping[str, str] = {
        "highs": "exact MILP over worker counts, HiGHS (default)",
        "scip": "the same model, SCIP",
        "cbc": "the same model, CBC",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset({"highs"})

    def search(
        self, problem: ParallelProblem, options: SolveOptions, budget: Budget, hint: ParallelPlan | None
    ) -> SearchResult[ParallelPlan]:
        """Solve with the asked backend. A hint is refused: the model needs no start."""
        if hint is not None:
            raise OptionError("parallel methods take no start plan")
        return search(problem, options, budget, options.method or next(iter(self.methods)))

    def check(self, problem: ParallelProblem, plan: ParallelPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: ParallelProblem, plan: ParallelPlan) -> Objective:
        """Requests/s with a minus sign, or GPUs, or USD/hour, from the counts alone."""
        names = {worker.name: index for index, worker in enumerate(problem.workers)}
        counts = np.zeros(len(problem.workers), dtype=np.int64)
        for worker in plan.workers:
            counts[names[worker.name]] += worker.count
        again = plan_of(problem, counts)
        usd = float(counts @ problem.price)
        total = -again.requests_per_s if problem.goal == "throughput" else float(counts @ problem.weight())
        measures = {
            "requests_per_s": again.requests_per_s,
            "requests_per_s_per_gpu": again.requests_per_s / again.num_gpus,
            "output_tokens_per_s": again.output_tokens_per_s,
            "output_tokens_per_s_per_gpu": again.output_tokens_per_s_per_gpu,
            "num_gpus": float(again.num_gpus),
        }
        if usd:
            measures["usd_per_hour"] = usd
        watts = float(counts @ problem.watts)
        if watts:
            measures["watts"] = watts
            measures["joules_per_output_token"] = watts / again.output_tokens_per_s
        return Objective(total=total, parts={problem.goal: total}, measures=measures)

    def baseline(self, problem: ParallelProblem) -> tuple[str, ParallelPlan | None]:
        """The peers' rule: equal replicas of one mixed worker, or of one prefill and one decode type."""
        return "best uniform replicas", best_uniform(problem)


PARALLELISM = ServingParallelism()
