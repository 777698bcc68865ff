"""`megatron`: a training plan as Megatron-LM arguments, for pretrain_gpt.py.

Argument names: megatron/training/arguments.py of Megatron-LM core 0.13 and newer; the layout's grammar
(E embedding, t layer, L loss, | between chunks) is that of --pipeline-model-parallel-layout.
"""

from __future__ import annotations

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan
from planner.writers.common import comments
from planner.writers.training_launch import chunks, even, nodes, placement, recomputed_of_chunk, sound_plan

SHARDING = {2: "optim_grads", 3: "optim_grads_params"}


def write(document: TrainingDocument, path: str) -> None:
    """Write a shell fragment with the array MEGATRON_ARGS; ExportError for what Megatron-LM does not run."""
    plan = sound_plan(document, "megatron")
    count, each = nodes(plan)
    told = (
        f"torchrun --nnodes {count} --nproc-per-node {each} pretrain_gpt.py ${{MEGATRON_ARGS[@]}} MODEL_AND_DATA_ARGS"
    )
    lines = "\n".join(f"  {line}" for line in arguments(plan))
    order = "".join(f"{line}\n" for line in placement(plan))
    write_text(path, f"{comments(document, 'megatron', path, told)}{order}MEGATRON_ARGS=(\n{lines}\n)\n")


def arguments(plan: TrainingPlan) -> list[str]:
    """The arguments, one option a line; model and data are the user's."""
    if plan.schedule != "1f1b":
        raise ExportError(f"Megatron-LM has no {plan.schedule} schedule; plan with schedules: [1f1b]")
    if plan.gradient_bytes == 6:
        raise ExportError("Megatron-LM keeps gradients in 2 or 4 bytes, the plan counts 6")
    if plan.zero_stage > 1 and plan.pipeline_parallel_size > 1:
        raise ExportError("Megatron-FSDP does not run in a pipeline")
    found = [
        f"--tensor-model-parallel-size {plan.tensor_parallel_size}",
        f"--pipeline-model-parallel-size {plan.pipeline_parallel_size}",
        f"--context-parallel-size {plan.context_parallel_size}",
        f"--micro-batch-size {plan.micro_batch_size}",
        f"--global-batch-size {plan.global_batch_size}",
        f"--seq-length {plan.sequence_length}",
        "--fp16" if plan.precision == "fp16" else "--bf16",
        f"--attention-backend {'flash' if plan.flash_attention else 'unfused'}",
    ]
    if plan.tensor_parallel_size > 1:
        found.append("--sequence-parallel")
    if plan.expert_parallel_size > 1:
        found.append(f"--expert-model-parallel-size {plan.expert_parallel_size}")
    if plan.precision == "fp8":
        found.append("--fp8-format hybrid")
    found.append("--grad-reduce-in-bf16" if plan.gradient_bytes == 2 else "--accumulate-allreduce-grads-in-fp32")
    if plan.zero_stage >= 1:
        found.append("--use-distributed-optimizer")
    if plan.zero_stage >= 2:
        found.append(f"--use-megatron-fsdp --data-parallel-sharding-strategy {SHARDING[plan.zero_stage]}")
    each = recomputed_of_chunk(plan)
    if each is not None:
        found.append(f"--recompute-granularity full --recompute-method block --recompute-num-layers {each}")
    elif plan.recompute == "full":
        found.append("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1")
    elif plan.recompute == "selective":
        found.append("--recompute-granularity selective")
    return found + _pipeline(plan)


def _pipeline(plan: TrainingPlan) -> list[str]:
    """Chunks, where they are not one even run a stage."""
    parts = chunks(plan)
    if not even(plan):
        runs = ["t" if part.num_layers == 1 else f"t*{part.num_layers}" for part in parts]
        return [f"--pipeline-model-parallel-layout 'E{'|'.join(runs)}L'"]
    if plan.virtual_pipeline_size > 1:
        return [f"--num-layers-per-virtual-pipeline-stage {parts[0].num_layers}"]
    return []
