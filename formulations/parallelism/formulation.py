"""Parallelism plan search for serving: the formulation that `solve()` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.check import check
from formulations.parallelism.plans import by_hour, started_gpus
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
        if problem.goal == "throughput":
            parts = {"throughput": -plan.requests_per_s}
        else:
            weight = {one.name: each for one, each in zip(problem.workers, problem.weight().tolist(), strict=True)}
            sums = [sum(weight[one.name] * one.count for one in workers) for _, workers in by_hour(plan)]
            parts = {problem.goal: sum(sums) / len(sums)}
        if problem.change_cost:
            # The rule beside a plan keeps its workers through all hours.
            hours = 1 if problem.hourly is None else len(problem.hourly)
            parts["changes"] = problem.change_cost * started_gpus(problem, plan) / hours
        measures = {
            "requests_per_s": plan.requests_per_s,
            "requests_per_s_per_gpu": plan.requests_per_s / plan.num_gpus,
            "output_tokens_per_s": plan.output_tokens_per_s,
            "output_tokens_per_s_per_gpu": plan.output_tokens_per_s_per_gpu,
            "num_gpus": float(plan.num_gpus),
        }
        index = {one.name: place for place, one in enumerate(problem.workers)}
        for name, each in (("usd_per_hour", problem.price), ("watts", problem.watts)):
            if value := float(sum(each[index[one.name]] * one.count for one in plan.workers)):
                measures[name] = value
        if "watts" in measures:
            measures["joules_per_output_token"] = measures["watts"] / plan.output_tokens_per_s
        return Objective(total=sum(parts.values()), parts=parts, measures=measures)

    def baseline(self, problem: ParallelProblem) -> tuple[str, ParallelPlan | None]:
        """The peers' rule: equal replicas of one mixed worker, or of one prefill and one decode type."""
        return "best uniform replicas", best_uniform(problem)


PARALLELISM = ServingParallelism()
