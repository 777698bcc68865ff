"""`trtllm`: TensorRT-LLM's moe_load_balancer.yaml, static. Keys are absolute layer numbers."""

from __future__ import annotations

from pathlib import Path

from planner.files import write_text
from planner.plan import ExpertsDocument
from planner.writers.common import checked_plan, comments, refuse_lp


def write(document: ExpertsDocument, path: str) -> None:
    """Write the YAML file, one line a layer."""
    plan = checked_plan(document)
    refuse_lp(plan, "TensorRT-LLM")
    name = "moe_load_balancer.yaml" if path == "-" else Path(path).name
    lines = [
        f"num_slots: {plan.num_slots}",
        "layer_updates_per_iter: 0",
        "initial_global_assignments:",
        *(f"  {layer}: {list(row)}" for layer, row in zip(plan.layer_ids, plan.physical_to_logical, strict=True)),
    ]
    header = comments(
        document,
        "trtllm",
        path,
        f"start trtllm-serve with --ep_size {plan.num_gpus} and, in the file of --config:",
        f"moe_config: {{load_balancer: ./{name}}}",
    )
    write_text(path, header + "\n".join(lines) + "\n")
