"""Training plans: the formulation that `solve()` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.training.search.baseline import NAME, plain_rule
from formulations.parallelism.training.search.check import check
from formulations.parallelism.training.search.plans import of_document
from formulations.parallelism.training.search.pricing import price, step_of, usd
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.search import search
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.training_plan import TrainingPlan


class TrainingPlanSearch:
    """Which parallel sizes train a model; see `problem` for the mathematics."""

    name = "training"
    summary = "parallel sizes, micro-batch, sharding, recomputation and stages of a training step"
    objective_unit = "of one step: s, USD or J, as `objective` says"
    methods: Mapping[str, str] = {"enumeration": "every legal plan priced, splits by branch and bound (default)"}
    one_thread: ClassVar[frozenset[str]] = frozenset({"enumeration"})

    def search(
        self, problem: TrainProblem, options: SolveOptions, budget: Budget, hint: TrainingPlan | None
    ) -> SearchResult[TrainingPlan]:
        """Enumerate. A hint is refused: every plan is looked at anyway."""
        if hint is not None:
            raise OptionError("training methods take no start plan")
        return search(problem, options, budget)

    def check(self, problem: TrainProblem, plan: TrainingPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: TrainProblem, plan: TrainingPlan) -> Objective:
        """The goal from sizes and stages alone; parts of the step as measures."""
        one = of_document(problem, plan)
        priced, times = price(problem, one), step_of(problem, one)
        measures = {"step_s": float(priced.step_s[0]), "tokens_per_s": float(times.tokens_per_s[0])}
        measures |= {"mfu": float(times.mfu[0]), "memory_bytes": float(priced.memory_bytes[0])}
        measures |= {"num_gpus": float(plan.num_gpus)}
        if problem.usd_per_gpu_hour is not None:
            measures["usd_per_step"] = float(usd(problem, priced.step_s, one.num_gpus)[0])
        total = float(priced.goal[0])
        return Objective(total=total, parts={problem.goal: total}, measures=measures)

    def baseline(self, problem: TrainProblem) -> tuple[str, TrainingPlan | None]:
        """What people do without a search."""
        return NAME, plain_rule(problem)


TRAINING = TrainingPlanSearch()
