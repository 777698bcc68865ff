"""The best of all layouts: one kind, pipelines through unequal stages, replicas of one kind each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from formulations.outcome import TOLERANCE, Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.training.mixed.baseline import equal_replicas_s, equal_stages_s
from formulations.parallelism.training.mixed.explain import reasons, ways_out
from formulations.parallelism.training.mixed.options import expert_sizes
from formulations.parallelism.training.mixed.plans import alone, alone_document, pipeline_document, shared_document
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import best_replicas
from formulations.parallelism.training.mixed.shards import best_shards
from formulations.parallelism.training.mixed.stages import best_pipeline
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.refine import refined
from formulations.parallelism.training.search.search import search as search_one_kind
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors, tensor_sizes
from planner.cost.training.plans import TrainingPlans
from planner.training_plan import Alternative, TrainingPlan

FloatArray = npt.NDArray[np.float64]


@dataclass(slots=True)
class _Best:
    """The best plan so far, what every layout reached, and the least of what was not looked at."""

    plan: TrainingPlan | None = None
    step_s: float = np.inf
    open_s: float = np.inf
    plans_priced: int = 0
    told: list[Alternative] = field(default_factory=list)
    looked_at: list[str] = field(default_factory=list)

    def take(self, plan: TrainingPlan) -> None:
        if plan.step_s < self.step_s:
            self.plan, self.step_s = plan, plan.step_s


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
    if plan.layout == "one_kind":
        aside = refined(*alone(problem, plan), options, budget)
        plan = plan.model_copy(update={"pipeline_order": aside.pipeline_order, "notes": aside.notes})
    plan = plan.model_copy(
        update={
            "work_bound_s": floor_s,
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
            best.take(alone_document(problem, number, found.plan))
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
        found, left_s = find(problem, np.inf, budget)
        why = "" if found is not None else "no plan fits" if left_s > 0 else "no time was left"
        best.told.append(Alternative(name=name, step_s=None if found is None else found.step_s, why=why))
        if found is not None:
            best.take(shared_document(problem, found))
        best.open_s = min(best.open_s, left_s)
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
    """All layers of all sequences on all GPUs together, each layer on each kind at the best size and micro-batch.

    With w[b,l] GPU seconds of a layer of one sequence on kind b, W[b] of all its layers and n[b] GPUs: in T seconds
    kind b does x[b,l] of layer l with sum_l w[b,l] x[b,l] <= n[b] T. Divided by W[b], summed over kinds, and with
    sum_b x[b,l] = C: T sum_b n[b] / W[b] >= C sum_l min_b w[b,l] / W[b].
    """
    seconds = [_least_gpu_s(block) for block in problem.blocks]
    legal = [(block, each) for block, each in zip(problem.blocks, seconds, strict=True) if np.isfinite(each).all()]
    if not legal:
        return np.inf
    rate = sum(block.num_gpus / float(each.sum()) for block, each in legal)
    share = float(np.min([each / each.sum() for _, each in legal], axis=0).sum())
    return problem.any_block.global_batch_size * share / rate * (1 - 1e-9)


def _least_gpu_s(block: TrainProblem) -> FloatArray:
    """GPU seconds of each layer for one sequence, at least [L], the last with the head; infinite where none is legal.

    Layers differ in their sizes here, as stages of a pipeline do.
    """
    layers = block.model.num_layers
    least = np.full(layers, np.inf)
    micro = [one for one in divisors(block.global_batch_size) if one <= MOST_MICRO_BATCH]
    experts = expert_sizes(replace(block, fixed={}), int(np.lcm.reduce(block.model.num_experts or (1,))))
    for tensor in tensor_sizes(block):
        for expert in experts:
            plans = TrainingPlans.build(
                tensor_parallel_size=tensor,
                expert_parallel_size=expert,
                data_parallel_size=expert,
                pipeline_parallel_size=layers,
                micro_batch_size=micro,
                recompute=min(int(RECOMPUTE[name]) for name in block.recompute),
                global_batch_size=[expert * one for one in micro],
                sequence_length=block.sequence_length,
                flash_attention=block.flash_attention,
                gradient_bytes=block.gradient_bytes,
                stage_layers=[1] * layers,
            )
            gpu_s = tensor * passes_of(block, plans).total_s / plans.micro_batch_size[:, None]
            least = np.minimum(least, gpu_s.min(axis=0))
    return least
