"""`vllm`: refused, since vLLM 0.33 reads no expert map; the refusal says what is possible."""

from __future__ import annotations

import json

from planner.errors import ExportError
from planner.plan import ExpertsDocument
from planner.writers.common import checked_plan


def write(document: ExpertsDocument, path: str) -> None:
    """Always raises ExportError."""
    plan = checked_plan(document)
    config = json.dumps({"num_redundant_experts": plan.num_slots - plan.num_experts})
    raise ExportError(
        "vLLM 0.33 reads no expert map from a file, so it cannot load this plan. It can place as many "
        f"replicas by itself while it runs: --enable-expert-parallel --enable-eplb --eplb-config '{config}'. "
        "Formats that engines load: sglang, trtllm, vllm-ascend"
    )
