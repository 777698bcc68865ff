"""The best of all layouts: one kind, pipelines through unequal stages, replicas of one kind each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.mixed.baseline import equal_replicas_s, equal_stages_s
from formulations.parallelism.training.mixed.explain import reasons, ways_out
from formulations.parallelism.training.mixed.options import expert_sizes, tensor_sizes
from formulations.parallelism.training.mixed.plans import alone_document, pipeline_document, shared_document
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import best_replicas
from formulations.parallelism.training.mixed.shards import best_shards
from formulations.parallelism.training.mixed.stages import best_pipeline
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.refine import refined
from formulations.parallelism.training.search.search import search as search_one_kind
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors
from planner.cost.training.plans import TrainingPlans
from planner.training_plan import Alternative, TrainingPlan


@dataclass(slots=True)
class _Best:
    """The best plan so far, what every layout reached, and the least of what was not looked at."""

    plan: TrainingPlan | None = None
    block: int | None = None
    step_s: float = np.inf
    open_s: float = np.inf
    plans_priced: int = 0
    told: list[Alternative] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def take(self, plan: TrainingPlan, block: int | None = None) -> None:
        if plan.step_s < self.step_s:
            self.plan, self.step_s, self.block = plan, plan.step_s, block


def search(problem: MixedProblem, options: SolveOptions, budget: Budget) -> SearchResult[TrainingPlan]:
    """The best plan of the four layouts; the docstring of `problem` says what is proven."""
    best = _Best()
    floor_s = work_bound_s(problem)
    _one_kind(problem, options, budget, best)
    _replicas(problem, budget, best)
    _stages(problem, options, budget, best)
    if best.plan is None:
        return _without(problem, budget, best)
    told = [
        Alternative(name=name, step_s=step_s, why="" if step_s else "does not fit or divide")
        for name, step_s in (
            ("equal replicas on all", equal_replicas_s(problem)),
            ("equal stages on all", equal_stages_s(problem)),
        )
    ]
    plan = best.plan
    if best.block is not None:
        block = problem.blocks[best.block]
        aside = refined(block, _own(problem, best.block, plan), options, budget)
        plan = plan.model_copy(update={"pipeline_order": aside.pipeline_order, "notes": aside.notes})
    plan = plan.model_copy(
        update={
            "work_bound_s": min(floor_s, best.step_s),
            "alternatives": (*best.told, *told),
            "plans_priced": best.plans_priced,
        }
    )
    proven = best.open_s >= best.step_s * (1 - TOLERANCE)
    bound_s = best.step_s if proven else max(best.open_s, floor_s)
    name = "; ".join(best.looked_at) if proven else "all work at each kind's best rate, and pipelines not looked at"
    return SearchResult(
        status=Status.OPTIMAL if proven else Status.FEASIBLE,
        stop=Stop.PROOF if proven else budget.stop() or Stop.TIME_LIMIT,
        plan=plan,
        solver="enumeration, dynamic program",
        solver_version=np.__version__,
        claimed=best.step_s,
        bound=Bound(value=bound_s, name=name),
    )


def _own(problem: MixedProblem, number: int, plan: TrainingPlan) -> TrainingPlan:
    first = problem.first_gpu(number)
    stages = tuple(one.model_copy(update={"first_gpu": one.first_gpu - first}) for one in plan.stages)
    return plan.model_copy(update={"stages": stages})


def _one_kind(problem: MixedProblem, options: SolveOptions, budget: Budget, best: _Best) -> None:
    """Every block alone."""
    count = 0
    for number, block in enumerate(problem.blocks):
        found = search_one_kind(block, options, budget, whole=False)
        if found.plan is None:
            why = "no plan fits" if found.status is Status.INFEASIBLE else "no time was left"
            best.told.append(Alternative(name=f"{problem.told(number)} alone", step_s=None, why=why))
        else:
            best.told.append(Alternative(name=f"{problem.told(number)} alone", step_s=found.plan.step_s))
            best.take(alone_document(problem, number, found.plan), number)
            count += found.plan.plans_priced
        if found.status is not Status.INFEASIBLE:
            open_s = 0.0 if found.bound is None else found.bound.value
            if found.status is not Status.OPTIMAL:
                best.open_s = min(best.open_s, open_s)
    best.plans_priced += count
    best.looked_at.append(f"all plans of each of {len(problem.blocks)} kinds alone")


def _replicas(problem: MixedProblem, budget: Budget, best: _Best) -> None:
    """Replicas of one kind each, with states sharded in each block, then over all."""
    for name, find in (("replicas of one kind each", best_replicas), ("replicas that share states", best_shards)):
        found, whole = find(problem, np.inf, budget)
        why = "" if found is not None else "no plan fits" if whole else "no time was left"
        best.told.append(Alternative(name=name, step_s=None if found is None else found.step_s, why=why))
        if found is not None:
            best.take(shared_document(problem, found))
        if not whole:
            best.open_s = 0.0
        best.looked_at.append(name)


def _stages(problem: MixedProblem, options: SolveOptions, budget: Budget, best: _Best) -> None:
    """Pipelines through all blocks."""
    found = best_pipeline(problem, best.step_s, options, budget)
    name = "stages on several kinds"
    if found.pipelines is not None:
        plan = pipeline_document(problem, found.pipelines, found.stages)
        best.told.append(Alternative(name=name, step_s=plan.step_s))
        best.take(plan)
    else:
        why = "none is faster than the best above" if best.plan is not None else "no plan fits"
        best.told.append(Alternative(name=name, step_s=None, why=why))
    best.open_s = min(best.open_s, found.bound_s)
    told = f"{found.programs} pipelines solved, {found.passed_over} passed over by a bound"
    best.looked_at.append(f"pipelines in {len(found.orders)} orders of kinds ({told})")
    best.plans_priced += found.programs


def _without(problem: MixedProblem, budget: Budget, best: _Best) -> SearchResult[TrainingPlan]:
    stop = budget.stop()
    proven = stop is None and best.open_s == np.inf
    return SearchResult(
        status=Status.INFEASIBLE if proven else Status.UNKNOWN,
        stop=Stop.PROOF if proven else stop or Stop.TIME_LIMIT,
        plan=None,
        solver="enumeration, dynamic program",
        solver_version=np.__version__,
        reasons=reasons(problem) if proven else (),
        relaxations=ways_out(problem) if proven else (),
    )


def work_bound_s(problem: MixedProblem) -> float:
    """All sequences at the rate of all GPUs together, each kind's layers at the best size and micro-batch there is."""
    rate = sum(block.num_gpus / _least_gpu_s(block) for block in problem.blocks)
    return problem.any_block.global_batch_size / rate * (1 - 1e-9)


def _least_gpu_s(block: TrainProblem) -> float:
    """GPU seconds of all layers for one sequence, at least; infinite where no size is legal."""
    least = np.inf
    micro = [one for one in divisors(block.global_batch_size) if one <= MOST_MICRO_BATCH]
    experts = expert_sizes(replace(block, fixed={}), int(np.lcm.reduce(block.model.num_experts or (1,))))
    for tensor in tensor_sizes(block):
        for expert in experts:
            plans = TrainingPlans.build(
                tensor_parallel_size=tensor,
                expert_parallel_size=expert,
                data_parallel_size=expert,
                micro_batch_size=micro,
                recompute=min(int(RECOMPUTE[name]) for name in block.recompute),
                global_batch_size=[expert * one for one in micro],
                sequence_length=block.sequence_length,
                flash_attention=block.flash_attention,
                gradient_bytes=block.gradient_bytes,
            )
            gpu_s = tensor * passes_of(block, plans).total_s.sum(axis=1) / plans.micro_batch_size
            least = min(least, float(gpu_s.min()))
    return least
