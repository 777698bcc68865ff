"""Expert placement as a formulation: which methods there are, and how they are checked and priced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ClassVar

import numpy as np

from formulations.expert_placement import check as checking
from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.bounds import lower_bound
from formulations.expert_placement.limits import conflicts
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Budget, Objective, SearchResult, SolveOptions, Status, Stop
from planner.cost.verdict import Violation
from planner.errors import OptionError
from planner.experts_plan import ExpertPlacement

Search = Callable[[ExpertPlacementProblem, SolveOptions, Budget, ExpertPlacement | None], SearchResult[ExpertPlacement]]


class ExpertPlacementFormulation:
    """See local_search.py for the mathematics."""

    name = "experts"
    summary = "MoE experts and their replicas onto GPUs"
    objective_unit = "evenly loaded layers (hottest GPU, summed over layers)"
    methods: Mapping[str, str] = {
        "local-search": "greedy, descent and annealing; robust over scenarios; the default",
        "eplb": "the rule in use today (deepseek-ai/EPLB), hierarchical or global",
        "moetuner": "two-stage ILP: balance each layer, then clusters onto GPUs (arXiv 2502.06643)",
        "exflow": "affinity integer program on layer-to-layer transitions, by bisection (arXiv 2401.08383)",
        "exflow-direct": "the same over all GPUs at once",
        "cp-sat": "exact, CP-SAT; small instances",
        "milp": "exact, HiGHS through MathOpt; small instances",
        "milp-cbc": "the same model on CBC through PuLP",
    }
    #: Methods whose solver takes one thread and refuses more.
    one_thread: ClassVar[frozenset[str]] = frozenset({"milp", "exflow", "exflow-direct"})
    _homes: ClassVar[dict[str, str]] = {
        "local-search": "formulations.expert_placement.local_method",
        "moetuner": "formulations.expert_placement.moetuner",
        "exflow": "formulations.expert_placement.exflow",
        "exflow-direct": "formulations.expert_placement.exflow",
        "cp-sat": "formulations.expert_placement.cpsat",
        "milp": "formulations.expert_placement.milp",
        "milp-cbc": "formulations.expert_placement.milp",
    }

    def search(
        self,
        problem: ExpertPlacementProblem,
        options: SolveOptions,
        budget: Budget,
        hint: ExpertPlacement | None,
    ) -> SearchResult[ExpertPlacement]:
        """Run one method, unless no placement can exist."""
        method = options.method or next(iter(self.methods))
        proofs = conflicts(problem)
        if proofs:
            return SearchResult(
                status=Status.INFEASIBLE,
                stop=Stop.PROOF,
                plan=None,
                solver="presolve",
                solver_version=np.__version__,
                reasons=tuple(proof.reason for proof in proofs),
                relaxations=tuple(way for proof in proofs for way in proof.relaxations),
            )
        if hint is not None:
            same_shape = hint.array.shape == (problem.num_layers, problem.num_slots)
            if not same_shape or hint.array.max() >= problem.num_experts:
                raise OptionError("the hint is a plan for other layers, slots or experts")
        if method == "eplb":
            return self._eplb(problem, options)
        search: Search = import_module(self._homes[method]).search
        return search(problem, options, budget, hint)

    def _eplb(self, problem: ExpertPlacementProblem, options: SolveOptions) -> SearchResult[ExpertPlacement]:
        if options.work_limit is not None:
            raise OptionError("method eplb has no work to limit")
        plan = problem.placement(eplb(problem)[1])
        broken = self.check(problem, plan)
        if broken:
            raise OptionError(
                f"the EPLB rule does not keep the instance's limits ({broken[0].message}); use local-search"
            )
        bound = lower_bound(problem)
        value = self.objective(problem, plan).total
        proven = value - bound.value <= 1e-9 * max(1.0, value)
        return SearchResult(
            status=Status.OPTIMAL if proven else Status.FEASIBLE,
            stop=Stop.PROOF if proven else Stop.HEURISTIC,
            plan=plan,
            solver="numpy",
            solver_version=np.__version__,
            bound=bound,
        )

    def check(self, problem: ExpertPlacementProblem, plan: ExpertPlacement) -> list[Violation]:
        """Every broken rule."""
        return checking.check(problem, plan)

    def objective(self, problem: ExpertPlacementProblem, plan: ExpertPlacement) -> Objective:
        """Re-priced from the decisions."""
        return checking.objective(problem, plan)

    def baseline(self, problem: ExpertPlacementProblem) -> tuple[str, ExpertPlacement]:
        """EPLB on the weighted sum of the scenarios."""
        name, rows = eplb(problem)
        return name, problem.placement(rows)


EXPERT_PLACEMENT = ExpertPlacementFormulation()
