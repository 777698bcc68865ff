"""Plans as floating-point arrays with what is derived from them, computed once for all parts of the cost model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.training.plans import Recompute, Schedule, TrainingPlans

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PlanSizes:
    """Arrays [n] of the plans' parallel sizes, batch and options.

    tokens : tokens of one micro-batch on one GPU; split_hidden : ways in which norms and residuals are split.
    replicas : ranks that hold the same weights before ZeRO, data x context.
    """

    tensor: FloatArray
    pipeline: FloatArray
    virtual: FloatArray
    context: FloatArray
    expert: FloatArray
    data: FloatArray
    zero: IntArray
    micro_batch: FloatArray
    sequence: FloatArray
    micro_batches: FloatArray
    tokens: FloatArray
    replicas: FloatArray
    split_hidden: FloatArray
    gradient_bytes: FloatArray
    flash: BoolArray
    any_recompute: BoolArray
    full_recompute: BoolArray
    schedule: IntArray
    zero_bubble: BoolArray


def plan_sizes(plans: TrainingPlans) -> PlanSizes:
    """Floating-point arrays of legal plans."""
    tensor, context, data, micro_batch, sequence = (
        array.astype(np.float64)
        for array in (
            plans.tensor_parallel_size,
            plans.context_parallel_size,
            plans.data_parallel_size,
            plans.micro_batch_size,
            plans.sequence_length,
        )
    )
    return PlanSizes(
        tensor=tensor,
        pipeline=plans.pipeline_parallel_size.astype(np.float64),
        virtual=plans.virtual_pipeline_size.astype(np.float64),
        context=context,
        expert=plans.expert_parallel_size.astype(np.float64),
        data=data,
        zero=plans.zero_stage,
        micro_batch=micro_batch,
        sequence=sequence,
        micro_batches=plans.global_batch_size / (data * micro_batch),
        tokens=micro_batch * sequence / context,
        replicas=data * context,
        split_hidden=np.where(plans.sequence_parallel, tensor, 1.0),
        gradient_bytes=plans.gradient_bytes.astype(np.float64),
        flash=plans.flash_attention,
        any_recompute=plans.recompute != Recompute.NONE,
        full_recompute=plans.recompute == Recompute.FULL,
        schedule=plans.schedule,
        zero_bubble=plans.schedule >= Schedule.ZB_1P,
    )
