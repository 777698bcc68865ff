"""The plain rule: tensor parallelism over the node, as few stages as fit, data parallelism with the rest.

Source: what Megatron-LM's and NeMo's guides tell: tensor parallelism up to the node, then a pipeline until the model
fits; micro-batches of one, the distributed optimizer. With and without recomputation, whichever is faster.
"""

from __future__ import annotations

import numpy as np

from formulations.parallelism.training.search.plans import document_plan
from formulations.parallelism.training.search.pricing import price
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.space import space
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import Schedule
from planner.training_plan import TrainingPlan

NAME = "tensor parallel over the node, fewest stages that fit"


def plain_rule(problem: TrainProblem) -> TrainingPlan | None:
    """The rule's plan among the legal ones; None where none of them fits."""
    plans = space(problem)
    if plans is None:
        return None
    free = np.ones(len(plans), dtype=bool)
    for name, size in (("context_parallel_size", 1), ("virtual_pipeline_size", 1), ("micro_batch_size", 1)):
        if name not in problem.fixed:
            free &= getattr(plans, name) == size
    if Schedule.ONE_F_ONE_B in plans.schedule:
        free &= plans.schedule == Schedule.ONE_F_ONE_B
    rule = plans[free]
    if not len(rule):
        return None
    rule = rule[rule.tensor_parallel_size == rule.tensor_parallel_size.max()]
    rule = rule[training_memory(problem.model, rule, problem.margin).total <= problem.capacity_bytes]
    if not len(rule):
        return None
    # Without sharding beyond the optimizer where the framework has that.
    rule = rule[rule.zero_stage == rule.zero_stage.min()]
    rule = rule[rule.num_gpus == rule.num_gpus.max()]
    order = np.lexsort((rule.expert_parallel_size, rule.pipeline_parallel_size))
    # The fewest stages with and without recomputation, and the faster of them.
    fewest = [order[rule.recompute[order] == kind][0] for kind in np.unique(rule.recompute)]
    found = price(problem, rule[np.array(fewest)])
    return document_plan(problem, found.plans[np.array([found.goal.argmin()])])
