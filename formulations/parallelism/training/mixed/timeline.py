"""When passes of a pipeline through unequal stages run under 1F1B, event by event."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from formulations.parallelism.training.mixed.plans import owner
from formulations.parallelism.training.mixed.pricing import sent_s, stage_arrays
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.schedule.baseline import joined, one_forward_one_backward
from formulations.parallelism.training.schedule.problem import SchedulePlan, ScheduleProblem
from formulations.parallelism.training.search.plans import passes_of
from planner.training_plan import TrainingPlan

#: Rounds of a pipeline that are drawn.
MOST_ROUNDS = 3


def events(problem: MixedProblem, plan: TrainingPlan) -> ScheduleProblem:
    """The pipeline of a plan through several kinds. A send takes as long as at the slower of its two ends."""
    layers = [stage.num_layers for stage in plan.stages]
    owners = [owner(problem, stage) for stage in plan.stages]
    passes = []
    for place, (stage, number) in enumerate(zip(plan.stages, owners, strict=True)):
        assert number is not None
        block = problem.blocks[number]
        found = passes_of(block, stage_arrays(block, stage, layers, plan.num_micro_batches))
        passes.append([found.forward_s[0, place], found.backward_s[0, place], found.weight_s[0, place]])
    sequences = plan.global_batch_size // plan.num_micro_batches
    sends = []
    for place, (one, other) in enumerate(itertools.pairwise(owners)):
        assert one is not None
        assert other is not None
        ends = (one, other, plan.stages[place].num_gpus), (other, one, plan.stages[place + 1].num_gpus)
        sends.append(max(float(sent_s(problem, at, to, gpus, sequences)) for at, to, gpus in ends))
    stages = len(layers)
    return ScheduleProblem(
        device=np.arange(stages),
        pass_s=np.array(passes).T,
        send_s=np.array(sends),
        until_backward_bytes=np.zeros(stages),
        until_weight_bytes=np.zeros(stages),
        capacity_bytes=np.zeros(stages),
        micro_batches=plan.num_micro_batches,
    )


def timeline_of(problem: MixedProblem, plan: TrainingPlan) -> tuple[ScheduleProblem, SchedulePlan] | None:
    """Passes of as many micro-batches as can be drawn; None for replicas, and for plans of one kind."""
    if plan.layout != "stages":
        return None
    micro = min(plan.num_micro_batches, MOST_ROUNDS * len(plan.stages))
    asked = replace(events(problem, plan), micro_batches=micro)
    return asked, joined(asked, one_forward_one_backward(asked))
