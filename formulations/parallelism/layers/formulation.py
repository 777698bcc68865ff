"""Pipelines over unequal devices: the formulation that `solve()` runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from formulations.outcome import Budget, Objective, SearchResult, SolveOptions
from formulations.parallelism.layers.baseline import parallax_greedy
from formulations.parallelism.layers.check import check
from formulations.parallelism.layers.pipelines import tokens_per_s
from formulations.parallelism.layers.problem import LayersProblem
from formulations.parallelism.layers.search import search
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.layers_plan import LayersPlan


class LayerPipelines:
    """Which pipelines a pool of unequal devices is cut into; see `milp` for the mathematics."""

    name = "layers"
    summary = "which pipelines, and which layers on each device, a pool of unequal devices is cut into"
    objective_unit = "tokens/s with a minus sign"
    methods: Mapping[str, str] = {
        "highs": "exact MILP over whole pipelines, bound by column generation, HiGHS (default)",
        "scip": "the same model, SCIP",
        "cbc": "the same model, CBC",
    }
    one_thread: ClassVar[frozenset[str]] = frozenset({"highs"})

    def search(
        self, problem: LayersProblem, options: SolveOptions, budget: Budget, hint: LayersPlan | None
    ) -> SearchResult[LayersPlan]:
        """Solve with the asked backend. A hint is refused: the pipelines of the relaxation are the start."""
        if hint is not None:
            raise OptionError("layers methods take no start plan")
        return search(problem, options, budget, options.method or next(iter(self.methods)))

    def check(self, problem: LayersProblem, plan: LayersPlan) -> list[Violation]:
        """Every broken rule."""
        return check(problem, plan)

    def objective(self, problem: LayersProblem, plan: LayersPlan) -> Objective:
        """Tokens/s with a minus sign, from the pipelines alone."""
        total = -tokens_per_s(problem, plan.pipelines)
        measures = {
            "tokens_per_s": -total,
            "num_pipelines": float(sum(one.count for one in plan.pipelines)),
            "num_devices": float(sum(one.count * len(one.stages) for one in plan.pipelines)),
            "worst_latency_s": max(one.latency_s for one in plan.pipelines),
        }
        return Objective(total=total, parts={"throughput": total}, measures=measures)

    def baseline(self, problem: LayersProblem) -> tuple[str, LayersPlan | None]:
        """Parallax's first phase."""
        return "Parallax greedy", parallax_greedy(problem)


LAYERS = LayerPipelines()
