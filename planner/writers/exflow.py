"""`exflow-csv`: ExFlow's solution file `Expert,Node`.

Experts are numbered layer * E + e, with layers counted among the MoE layers; a node is a GPU.
"""

from __future__ import annotations

from planner.errors import ExportError
from planner.files import write_text
from planner.plan import ExpertsDocument
from planner.writers.common import checked_plan


def write(document: ExpertsDocument, path: str) -> None:
    """Write the CSV file; ExportError for a plan with replicas."""
    plan = checked_plan(document)
    if plan.num_slots > plan.num_experts:
        raise ExportError(
            f"ExFlow knows no replicas, and this plan has {plan.num_slots} slots for {plan.num_experts} "
            f"experts; plan again with num_slots: {plan.num_experts}"
        )
    per_gpu = plan.num_slots // plan.num_gpus
    lines = ["Expert,Node"]
    for index, row in enumerate(plan.physical_to_logical):
        gpu_of = {expert: slot // per_gpu for slot, expert in enumerate(row)}
        lines += [f"{index * plan.num_experts + expert},{gpu_of[expert]}" for expert in sorted(gpu_of)]
    write_text(path, "\n".join(lines) + "\n")
