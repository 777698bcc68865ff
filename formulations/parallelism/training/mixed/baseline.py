"""The plain rules: the best single kind, and all GPUs as if they were equal."""

from __future__ import annotations

import numpy as np

from formulations.parallelism.training.mixed.plans import alone_document
from formulations.parallelism.training.mixed.pricing import between_s
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import families
from formulations.parallelism.training.search.baseline import plain_rule
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors
from planner.training_plan import TrainingPlan

NAME = "the best single kind by the plain rule: tensor parallel over the node, fewest stages that fit"


def plain_plan(problem: MixedProblem) -> TrainingPlan | None:
    """The plain rule on each kind alone, and the fastest of those; None where it fits on none."""
    found = []
    for number, block in enumerate(problem.blocks):
        plan = plain_rule(block)
        if plan is not None:
            found.append(alone_document(problem, number, plan))
    return min(found, key=lambda plan: plan.step_s, default=None)


def even_split_step(problem: MixedProblem) -> float | None:
    """Seconds of the best step where all kinds have the same sizes and every replica the same micro-batches.

    What a user gets who gives all GPUs to a framework that knows one kind. None where no such sizes fit.
    """
    batch, best = problem.any_block.global_batch_size, np.inf
    numbers = list(range(len(problem.blocks)))
    if not all(problem.joined(one, other) for one in numbers for other in numbers if one != other):
        return None
    for micro_batch in (one for one in divisors(batch) if one <= MOST_MICRO_BATCH):
        made = [families(problem, number, micro_batch) for number in numbers]
        known = [one for one in made if one is not None]
        if len(known) < len(made):
            continue
        by_sizes = [
            {
                key: (place, int(one.replicas[place]))
                for place, key in enumerate(
                    zip(
                        *(
                            getattr(one.plans, name).tolist()
                            for name in (
                                "tensor_parallel_size", "context_parallel_size", "expert_parallel_size",
                                "pipeline_parallel_size", "zero_stage", "recompute",
                            )
                        ),
                        strict=True,
                    )
                )
            }
            for one in known
        ]  # fmt: skip
        for key in set.intersection(*(set(one) for one in by_sizes)):
            places = [one[key] for one in by_sizes]
            replicas = sum(count for _, count in places)
            if (batch // micro_batch) % replicas:
                continue
            each = batch // micro_batch // replicas
            slowest_s = max(
                float(one.fixed_s[place] + each * one.unit_s[place])
                for one, (place, _) in zip(known, places, strict=True)
            )
            gpus = [int(one.plans.num_gpus[place]) for one, (place, _) in zip(known, places, strict=True)]
            factor = 2.0 * min(problem.any_block.gradient_bytes, 4)
            best = min(best, slowest_s + between_s(problem, numbers, gpus, factor))
    return best if np.isfinite(best) else None
