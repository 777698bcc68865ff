"""`deepspeed`: a training plan as DeepSpeed's JSON.

Keys: deepspeed.ai/docs/config-json. Pipelines, experts and context parallelism are set in a program's code, not here.
"""

from __future__ import annotations

import json
from typing import Any

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan
from planner.writers.training_launch import nodes, sound_plan, uniform


def write(document: TrainingDocument, path: str) -> None:
    """Write the JSON; ExportError for what it cannot say."""
    plan = sound_plan(document, "deepspeed")
    nodes(plan)
    write_text(path, json.dumps(config(plan), indent=2) + "\n")


def config(plan: TrainingPlan) -> dict[str, Any]:
    """The JSON's keys. train_batch_size = micro-batch x accumulation x data-parallel ranks, which DeepSpeed checks."""
    uniform(plan, "DeepSpeed's JSON")
    for name, what in (
        ("pipeline_parallel_size", "a pipeline is a PipelineModule of the program"),
        ("expert_parallel_size", "experts are MoE layers of the program"),
        ("context_parallel_size", "context parallelism has no key"),
    ):
        if getattr(plan, name) > 1:
            raise ExportError(f"DeepSpeed's JSON does not hold {name} {getattr(plan, name)}: {what}")
    found: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.num_micro_batches,
        "zero_optimization": {"stage": plan.zero_stage, "overlap_comm": True, "contiguous_gradients": True},
        "fp16" if plan.precision == "fp16" else "bf16": {"enabled": True},
    }
    if plan.precision == "fp8":
        raise ExportError("DeepSpeed's JSON has no FP8 matrix products")
    if plan.gradient_bytes == 4:
        found["data_types"] = {"grad_accum_dtype": "fp32"}
    if plan.tensor_parallel_size > 1:
        found["tensor_parallel"] = {"autotp_size": plan.tensor_parallel_size}
    return found
