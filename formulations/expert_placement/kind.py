"""Expert placement as a kind of instance: reading, and judging a plan by its rules and by the cost model."""

from __future__ import annotations

import numpy as np

from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.reading import read_problem
from formulations.kinds import Kind
from planner.cost.evaluate import evaluate_expert_placement
from planner.cost.verdict import Verdict
from planner.descriptions.experts import ExpertsInstance
from planner.experts_plan import ExpertPlacement
from planner.plan import ExpertsDocument

#: Broken rules after which a plan has no loads to speak of.
UNPRICEABLE = {"shape", "expert_ids", "every_expert_placed", "replicas"}


def judge(problem: ExpertPlacementProblem, placement: ExpertPlacement) -> Verdict:
    """The independent check of the rules and the cost model's judgement, as one verdict."""
    broken = EXPERT_PLACEMENT.check(problem, placement)
    if any(violation.rule in UNPRICEABLE for violation in broken):
        return Verdict(violations=tuple(broken))
    loads = {name: np.asarray(load) for name, load in zip(problem.scenario_names, problem.load, strict=True)}
    verdict = evaluate_expert_placement(
        placement,
        loads,
        speed=problem.speed,
        trace=problem.trace,
        expert_bytes=problem.expert_bytes,
        gpu_memory_bytes=problem.gpu_memory_bytes,
        step=problem.step,
    )
    rules = {violation.rule for violation in verdict.violations}
    merged = [violation for violation in broken if violation.rule not in rules]
    return Verdict(
        metrics=verdict.metrics,
        violations=(*verdict.violations, *merged),
        bottleneck=verdict.bottleneck,
        assumptions=verdict.assumptions,
    )


def judge_alone(placement: ExpertPlacement) -> Verdict:
    """Rules of a placement that no instance is needed for: a uniform load has the same shape."""
    problem = ExpertPlacementProblem.from_arrays(
        np.ones((len(placement.layer_ids), placement.num_experts)),
        num_gpus=placement.num_gpus,
        gpus_per_node=placement.gpus_per_node,
        num_slots=placement.num_slots,
        layer_ids=placement.layer_ids,
        num_decoder_layers=placement.num_decoder_layers,
        split=placement.split,
    )
    broken = EXPERT_PLACEMENT.check(problem, placement.model_copy(update={"moves": None}))
    assumption = "no instance given: loads, memory and moves are not judged"
    return Verdict(violations=tuple(broken), assumptions=(assumption,))


KIND = Kind(
    name="experts",
    instance=ExpertsInstance,
    document=ExpertsDocument,
    formulation=EXPERT_PLACEMENT,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
