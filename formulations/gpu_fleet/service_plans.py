"""A fleet's model by its services: each model's whole plan in one period is a block, instances are what they share.

The rows that couple blocks are those of packing and of limits (`milp`); all cost is that of instances. So a fleet is
one plan for each service and instances that hold them together, and `decomposition` bounds it over whole plans and
whole instances: far above the linear relaxation, where a service takes half a replica.

What is lost and what changes is left out of the blocks: without it a fleet is only cheaper, so all rows stay true.

First           the cheapest combination of the plans that pricing found; often it meets the bound.
Then            a few services at a time and all instances anew, the others choose among their known plans (large
                neighbourhood search): near to the optimum where the combination is far from it.
Few services    the rows tighten the model, which is then solved as a whole; not where time is that of a day (`day`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.decomposition import Decomposition
from formulations.backends.linear import LinearModel
from formulations.backends.relaxation import Relaxation, relax
from formulations.backends.result import SolverResult, conclude
from formulations.gpu_fleet.columns import FleetModel
from formulations.gpu_fleet.dominance import needless_configs
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.solution import Solver
from formulations.outcome import Budget, PartBudget, SolveOptions, Status, Stop

#: Services above which the model is no longer solved as a whole.
MANY_SERVICES = 16
#: Share of the time that bounds may take: few services, many.
FEW_SHARE, MANY_SHARE = 0.5, 0.6
#: Share of the time for one combination of plans.
COMBINED_SHARE = 0.1
#: Gap of one service's program, at least and at most, and as a share of the gap that is asked.
FINE, COARSE, PART_GAP = 1e-4, 1e-3, 0.1
#: Rounds at whole instances before plans are combined anew.
ROUNDS = 4
#: Share of the asked gap to which prices and plans are brought together.
MEET_GAP = 0.25
#: The same for one of many periods; whole instances raise the bound by more than what is left out.
ROUGH_GAP = 0.75
#: Gap that counts as none.
LEAST_GAP = 1e-6
#: Services that are planned anew together, at least and at most of many and of few, and seconds for them.
LEAST_FREE, MOST_FREE, FEW_FREE, FREE_S = 2, 6, 3, 5.0
#: Services that are planned anew without finding anything before the search ends, as a multiple of all: many, few.
PATIENCE, FEW_PATIENCE = 2.0, 1.0


class ServicePlans:
    """Bounds and plans of one period of a fleet of several models."""

    def __init__(self, problem: FleetProblem, period: int, built: FleetModel, gap: float | None) -> None:
        """built : the model of the period alone; gap : that is asked."""
        self.whole = built
        alone = replace(
            problem, spare_instances=0, zone_names=(), zone_of_pool=None, current=None, max_changes=None,
            change_cost=0.0, running=None, move_cost=None, max_moves=None,
        )  # fmt: skip
        most = built.model.upper[built.columns[0].y]
        builder = FleetBuilder(alone, (period,), most=most, tight=True)
        # The columns are those of the whole problem, with whatever it needs.
        builder.needless = needless_configs(problem)
        model = builder.build()
        fine = float(np.clip(PART_GAP * (gap or 0.0), FINE, COARSE))
        self.parts = Decomposition(model.model, _services(alone, builder, model), fine)
        #: Whether the blocks and what they share are all of the problem: then their columns are those of `built`.
        changes = problem.current is not None or problem.running is not None
        self.complete = not (problem.spare_instances or problem.zone_names or changes)
        self.many = self.complete and len(self.parts.blocks) > MANY_SERVICES

    def solve(
        self,
        solver: Solver,
        options: SolveOptions,
        budget: Budget,
        first: FloatArray | None = None,
        found: FloatArray | None = None,
        rough: bool = False,
    ) -> tuple[SolverResult, FloatArray | None]:
        """The period's cheapest fleet; values are those of the model of the period.

        first : prices of coupling rows to begin with, as those of another period. found : a known fleet.
        rough : whether a fleet that is not near enough is left at that, and not sought in the whole model.
        """
        limit = PartBudget(budget, (MANY_SHARE if self.many else FEW_SHARE) * budget.remaining_s)
        gap = max(options.relative_gap or 0.0, LEAST_GAP)
        if not self.parts.priced:
            self._meet(max(self.parts.gap, (ROUGH_GAP if rough else MEET_GAP) * gap), limit, first)
        found = self._combined(found, options, budget)
        ended = not self.parts.priced
        while not ended and not self._enough(found, gap):
            ended = self.parts.whole(np.inf if found is None else self._cost(found) * (1 - gap), ROUNDS, limit)
            found = self._combined(found, options, budget)
        if found is not None and (self.many or (self.complete and len(self.parts.blocks) > FEW_FREE)):
            found = self._improved(found, gap, options, budget if self.many or rough else limit)
        settled = found is not None and (self.many or rough)
        if not settled and not self._enough(found, gap):
            model = self.parts.onto(self.whole.model)
            result, values = solver(model, budget, options, start=found)
            bound = max([self.parts.bound, *([] if result.bound is None else [result.bound])])
            if values is not None and (found is None or self._cost(values) < self._cost(found)):
                found = values
            if found is None:
                return replace(result, bound=bound if np.isfinite(bound) else None), None
            told = self._result(found, bound, result.stop, options, budget)
            return replace(told, solver=result.solver, solver_version=result.solver_version), found
        assert found is not None
        return self._result(found, self.parts.bound, budget.stop() or Stop.HEURISTIC, options, budget), found

    def change(self, model: LinearModel, bound: float = -np.inf) -> None:
        """Other costs, bounds of instances and offset of the model of the period, where nothing can be lost.

        bound : one that is known.
        """
        self.whole = replace(self.whole, model=model)
        own, y = self.parts.model, self.parts.y
        cost, lower, upper = own.cost.copy(), own.lower.copy(), own.upper.copy()
        cost[y], lower[y], upper[y] = model.cost[y], model.lower[y], model.upper[y]
        self.parts.change(replace(own, cost=cost, lower=lower, upper=upper, offset=model.offset), bound)

    def _meet(self, gap: float, budget: Budget, first: FloatArray | None) -> None:
        if first is None or first.size != self.parts.coupling.size:
            relaxed = relax(self.parts.model, budget.remaining_s)
            if not isinstance(relaxed, Relaxation):
                return
            first = relaxed.duals[self.parts.coupling]
        self.parts.meet(first, gap, budget)

    def _combined(self, found: FloatArray | None, options: SolveOptions, budget: Budget) -> FloatArray | None:
        """The better of what was found and the known plans' best combination, where they are all that counts."""
        if not self.complete or not self.parts.priced or budget.stop() is not None:
            return found
        limit_s = max(0.05, COMBINED_SHARE * budget.remaining_s)
        fine = SolveOptions(time_limit_s=limit_s, relative_gap=self.parts.gap, seed=options.seed)
        better = self.parts.combined(fine, PartBudget(budget, limit_s))
        return better if better is not None and (found is None or self._cost(better) < self._cost(found)) else found

    def _improved(self, found: FloatArray, gap: float, options: SolveOptions, budget: Budget) -> FloatArray:
        """A few services anew at a time, with all instances; the others choose among their known plans."""
        rng, num = np.random.default_rng(options.seed), len(self.parts.blocks)
        most_free, patience = (MOST_FREE, PATIENCE) if self.many else (FEW_FREE, FEW_PATIENCE)
        self.parts.know(found)
        failed = 0
        while not self._enough(found, gap) and failed < patience * num and budget.stop() is None:
            budget.report(self._cost(found), self.parts.bound)
            free = np.sort(rng.choice(num, int(rng.integers(LEAST_FREE, most_free + 1)), replace=False))
            each_s = max(0.05, min(FREE_S, budget.remaining_s))
            fine = SolveOptions(time_limit_s=each_s, relative_gap=max(MEET_GAP * gap, LEAST_GAP), seed=options.seed)
            better = self.parts.combined(fine, PartBudget(budget, each_s), free, found)
            failed += free.size
            if better is not None and self._cost(better) < self._cost(found) * (1 - LEAST_GAP):
                found, failed = better, 0
        return found

    def _cost(self, values: FloatArray) -> float:
        return float(self.whole.model.cost @ values) + self.whole.model.offset

    def _enough(self, values: FloatArray | None, gap: float) -> bool:
        return values is not None and self._cost(values) - self.parts.bound <= gap * self._cost(values)

    def _result(
        self, values: FloatArray, bound: float, stop: Stop, options: SolveOptions, budget: Budget
    ) -> SolverResult:
        cost = self._cost(values)
        status, met = conclude(cost, min(bound, cost), options.relative_gap)
        asked = options.relative_gap is not None and cost - bound <= options.relative_gap * cost
        return SolverResult(
            status=status,
            stop=met if asked or status is Status.OPTIMAL else stop,
            objective=cost,
            bound=min(bound, cost),
            solver="highs",
            solver_version=f"ortools {load_ortools_first()}",
            solve_s=budget.elapsed_s,
        )


def _services(problem: FleetProblem, builder: FleetBuilder, built: FleetModel) -> IntArray:
    """The service that each column of a single period without losses belongs to, [n]; -1: to none."""
    owner = np.full(built.model.num_variables, -1, dtype=np.int64)
    (columns,) = built.columns
    owner[columns.z] = problem.config_model
    owner[columns.routing.x] = problem.bucket_model[columns.routing.bucket]
    owner[columns.routing.flows.f] = problem.bucket_model[columns.routing.flows.bucket]
    for config, parts in builder.room_columns:
        owner[parts] = problem.config_model[config]
    return owner
