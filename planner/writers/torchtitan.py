"""`torchtitan`: a training plan as overrides of torchtitan's job config.

Option names: torchtitan/config/job_config.py (parallelism, training, activation_checkpoint); modules of a chunk are
those of its Llama models: tok_embeddings, layers.N, norm, output.
"""

from __future__ import annotations

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan
from planner.writers.common import comments
from planner.writers.training_launch import chunks, nodes, sound_plan, uniform


def write(document: TrainingDocument, path: str) -> None:
    """Write a shell fragment with the array TITAN_ARGS; ExportError for what torchtitan does not run."""
    plan = sound_plan(document, "torchtitan")
    count, each = nodes(plan)
    told = f"torchrun --nnodes {count} --nproc-per-node {each} -m torchtitan.train CONFIG ${{TITAN_ARGS[@]}}"
    lines = "\n".join(f"  {line}" for line in overrides(plan))
    write_text(path, f"{comments(document, 'torchtitan', path, told)}TITAN_ARGS=(\n{lines}\n)\n")


def overrides(plan: TrainingPlan) -> list[str]:
    """The overrides, one option a line."""
    uniform(plan, "torchtitan")
    if plan.zero_stage < 2 and plan.data_parallel_size * plan.context_parallel_size > 1:
        raise ExportError("torchtitan shards with FSDP: ZeRO 2 or 3; plan with framework: torchtitan")
    if plan.recompute == "selective":
        raise ExportError("torchtitan's selective mode recomputes every other operator, not the attention core")
    local = plan.micro_batch_size * (plan.num_micro_batches if plan.pipeline_parallel_size > 1 else 1)
    found = [
        f"--parallelism.data_parallel_shard_degree {plan.data_parallel_size}",
        f"--parallelism.tensor_parallel_degree {plan.tensor_parallel_size}",
        f"--parallelism.context_parallel_degree {plan.context_parallel_size}",
        f"--parallelism.pipeline_parallel_degree {plan.pipeline_parallel_size}",
        f"--parallelism.fsdp_reshard_after_forward {'always' if plan.zero_stage == 3 else 'never'}",
        f"--training.local_batch_size {local}",
        f"--training.global_batch_size {plan.global_batch_size}",
        f"--training.seq_len {plan.sequence_length}",
        f"--activation_checkpoint.mode {plan.recompute}",
    ]
    if plan.expert_parallel_size > 1:
        found.append(f"--parallelism.expert_parallel_degree {plan.expert_parallel_size}")
        found.append(f"--parallelism.expert_tensor_parallel_degree {plan.tensor_parallel_size}")
    return found + _pipeline(plan)


def _pipeline(plan: TrainingPlan) -> list[str]:
    if plan.pipeline_parallel_size == 1:
        return []
    if plan.schedule not in ("1f1b", "zb-v"):
        raise ExportError(f"torchtitan has no {plan.schedule} schedule; plan with schedules: [1f1b, zb-v]")
    interleaved = "Interleaved1F1B" if plan.virtual_pipeline_size > 1 else "1F1B"
    name = "ZBVZeroBubble" if plan.schedule == "zb-v" else interleaved
    parts = []
    made = chunks(plan)
    for place, chunk in enumerate(made):
        names = [f"layers.{layer}" for layer in range(chunk.first, chunk.first + chunk.num_layers)]
        names = (["tok_embeddings"] if place == 0 else []) + names
        parts.append(",".join(names + (["norm", "output"] if place == len(made) - 1 else [])))
    modules = " ".join(f"'{part}'" for part in parts)
    return [
        f"--parallelism.pipeline_parallel_schedule {name}",
        f"--parallelism.pipeline_parallel_microbatch_size {plan.micro_batch_size}",
        f"--parallelism.module_fqns_per_model_part {modules}",
    ]
