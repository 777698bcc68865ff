"""Arrays of one plan to a plan document and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from formulations.parallelism.training.search.blocks import blocks_of, with_blocks
from formulations.parallelism.training.search.pricing import Priced, joules, step_of, usd
from formulations.parallelism.training.search.problem import RECOMPUTE, SCHEDULES, FloatArray, TrainProblem
from planner.cost.training.judge import MEMORY_PARTS
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.passes import StagePasses, stage_passes
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.stages import even_split
from planner.training_plan import LayerBlock, ParallelSizes, TrainingPlan, TrainingPoint, TrainingStage

#: Sizes that are equal in arrays and documents.
SIZES = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "data_parallel_size",
    "pipeline_parallel_size", "virtual_pipeline_size", "micro_batch_size", "zero_stage",
)  # fmt: skip
_RECOMPUTE = {int(value): name for name, value in RECOMPUTE.items()}
_SCHEDULES = {int(value): name for name, value in SCHEDULES.items()}


def sizes_at(plans: TrainingPlans, place: int) -> dict[str, Any]:
    """The keys of ParallelSizes of one plan."""
    found: dict[str, Any] = {name: int(getattr(plans, name)[place]) for name in SIZES}
    names = {"recompute": _RECOMPUTE, "schedule": _SCHEDULES}
    return found | {name: table[int(getattr(plans, name)[place])] for name, table in names.items()}


def arrays_of(problem: TrainProblem, plan: ParallelSizes, layers: Sequence[int] | None = None) -> TrainingPlans:
    """The arrays of one plan; `layers` of its stages, evenly where None."""
    return TrainingPlans.build(
        **{name: getattr(plan, name) for name in SIZES},
        recompute=RECOMPUTE[plan.recompute],
        schedule=SCHEDULES[plan.schedule],
        global_batch_size=problem.global_batch_size,
        sequence_length=problem.sequence_length,
        flash_attention=problem.flash_attention,
        gradient_bytes=problem.gradient_bytes,
        stage_layers=None if layers is None else list(layers),
    )


def of_document(problem: TrainProblem, plan: TrainingPlan) -> TrainingPlans:
    """The arrays of a document's plan, with its own stages and layers."""
    one = arrays_of(problem, plan, [stage.num_layers for stage in plan.stages])
    return with_blocks(problem.model, one, [stage.layer_blocks for stage in plan.stages])


def passes_of(problem: TrainProblem, one: TrainingPlans) -> StagePasses:
    """Work of its stages by pass."""
    return stage_passes(
        problem.model, problem.device, problem.network, one, problem.coefficients, problem.precision
    )  # fmt: skip


def document_plan(
    problem: TrainProblem, one: TrainingPlans, blocks: Sequence[Sequence[LayerBlock]] | None = None
) -> TrainingPlan:
    """Everything about one plan that its sizes and stages decide.

    blocks : of the layers of each stage; None where variants come after a stage's own layers.
    """
    stages = int(one.pipeline_parallel_size[0])
    layers = (even_split(one, problem.model.num_layers) if one.stage_layers is None else one.stage_layers)[0]
    blocks = blocks_of(one) if blocks is None else blocks
    one = arrays_of(problem, ParallelSizes.model_validate(sizes_at(one, 0)), layers[:stages].tolist())
    one = with_blocks(problem.model, one, blocks)
    times, memory = step_of(problem, one), training_memory_by_stage(problem.model, one, problem.margin)
    worked_s = passes_of(problem, one).total_s[0]
    last = 0 if one.schedule[0] == Schedule.ZB_V else stages - 1
    each = int(one.num_gpus[0]) // stages
    return TrainingPlan(
        **sizes_at(one, 0),
        model=problem.model.name,
        device=problem.device.name,
        idle_gpus=problem.num_gpus - int(one.num_gpus[0]),
        gpus_per_node=problem.gpus_per_node,
        framework=problem.framework,
        precision=problem.precision,
        gradient_bytes=problem.gradient_bytes,
        flash_attention=problem.flash_attention,
        global_batch_size=problem.global_batch_size,
        sequence_length=problem.sequence_length,
        num_micro_batches=int(one.num_micro_batches[0]),
        stages=tuple(
            TrainingStage(
                num_layers=int(layers[stage]),
                embedding=stage == 0,
                head=stage == last,
                first_gpu=stage * each,
                num_gpus=each,
                micro_batch_s=float(worked_s[stage]),
                peak_memory_bytes=float(memory.total[0, stage]),
                memory={name: float(getattr(memory, name)[0, stage]) for name in MEMORY_PARTS},
                layer_blocks=tuple(blocks[stage]),
            )
            for stage in range(stages)
        ),
        step_s=float(times.step_s[0]),
        tokens_per_s=float(times.tokens_per_s[0]),
        mfu=float(times.mfu[0]),
        peak_memory_bytes=float(memory.total[0].max()),
    )


def points(problem: TrainProblem, priced: Priced, whys: Sequence[str] = ()) -> tuple[TrainingPoint, ...]:
    """Priced plans as rows of a document."""
    gpus = priced.plans.num_gpus
    cost, energy = usd(problem, priced.step_s, gpus), joules(problem, priced.step_s, priced.busy_s, gpus)
    return tuple(
        TrainingPoint(
            **sizes_at(priced.plans, place),
            step_s=float(priced.step_s[place]),
            free_bytes=float(problem.capacity_bytes - priced.memory_bytes[place]),
            gpu_s=float(priced.step_s[place] * gpus[place]),
            usd=_known(cost, place),
            joules=_known(energy, place),
            why=whys[place] if whys else "",
        )
        for place in range(len(gpus))
    )


def _known(values: FloatArray, place: int) -> float | None:
    return None if np.isnan(values[place]) else float(values[place])
