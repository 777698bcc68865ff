"""Training plans over unequal GPUs: the formulation, and the one that takes either problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.training.mixed.baseline import NAME, best_alone
from formulations.parallelism.training.mixed.check import check
from formulations.parallelism.training.mixed.plans import price
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.search import search
from formulations.parallelism.training.search.formulation import TRAINING, TrainingPlanSearch
from formulations.parallelism.training.search.problem import TrainProblem
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.training_plan import TrainingPlan

AnyProblem = TrainProblem | MixedProblem


class AnyTrainingPlan:
    """Which plan trains a model on equal or unequal GPUs; see `search.problem` and `mixed.problem`."""

    name = TrainingPlanSearch.name
    summary = TrainingPlanSearch.summary
    objective_unit = TrainingPlanSearch.objective_unit
    methods: Mapping[str, str] = TrainingPlanSearch.methods
    one_thread: ClassVar[frozenset[str]] = TrainingPlanSearch.one_thread

    def search(
        self, problem: AnyProblem, options: SolveOptions, budget: Budget, hint: TrainingPlan | None
    ) -> SearchResult[TrainingPlan]:
        """Enumerate. A hint is refused: every plan is looked at anyway."""
        if isinstance(problem, TrainProblem):
            return TRAINING.search(problem, options, budget, hint)
        if hint is not None:
            raise OptionError("training methods take no start plan")
        return search(problem, options, budget)

    def check(self, problem: AnyProblem, plan: TrainingPlan) -> list[Violation]:
        """Every broken rule."""
        return TRAINING.check(problem, plan) if isinstance(problem, TrainProblem) else check(problem, plan)

    def objective(self, problem: AnyProblem, plan: TrainingPlan) -> Objective:
        """The goal from sizes and stages alone; parts of the step as measures."""
        if isinstance(problem, TrainProblem):
            return TRAINING.objective(problem, plan)
        found = price(problem, plan)
        rate = plan.global_batch_size * plan.sequence_length / found.step_s
        measures = {"step_s": found.step_s, "tokens_per_s": rate, "memory_bytes": max(found.memory_bytes)}
        measures |= {"num_gpus": float(plan.num_gpus)}
        return Objective(total=found.step_s, parts={"step_time": found.step_s}, measures=measures)

    def baseline(self, problem: AnyProblem) -> tuple[str, TrainingPlan | None]:
        """What people do without a search."""
        if isinstance(problem, TrainProblem):
            return TRAINING.baseline(problem)
        return NAME, best_alone(problem)


ANY_TRAINING = AnyTrainingPlan()
