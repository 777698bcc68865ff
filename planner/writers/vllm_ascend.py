"""`vllm-ascend`: the expert map of vLLM Ascend's `eplb_config`, and the launch flags beside it.

Layers are numbered among the MoE layers. The loader keeps one slot for an expert on a device, so that two
replicas of an expert on one device cannot be expressed.
"""

from __future__ import annotations

import json

from planner.errors import ExportError
from planner.plan import ExpertsDocument
from planner.writers.common import (
    checked_plan,
    comments,
    device_slots,
    json_text,
    refuse_lp,
    write_with_flags,
)


def write(document: ExpertsDocument, path: str) -> None:
    """Write `path` and `<stem>.flags.txt`."""
    plan = checked_plan(document)
    refuse_lp(plan, "vLLM Ascend")
    layers = []
    for index, (layer, row) in enumerate(zip(plan.layer_ids, plan.physical_to_logical, strict=True)):
        devices = device_slots(plan, row)
        for device, experts in enumerate(devices):
            if len(set(experts)) < len(experts):
                raise ExportError(f"layer {layer}, GPU {device}: vLLM Ascend cannot hold an expert twice on one device")
        layers.append(
            {
                "layer_id": index,
                "device_count": plan.num_gpus,
                "device_list": [
                    {"device_id": device, "device_expert": experts} for device, experts in enumerate(devices)
                ],
            }
        )
    note = f"{plan.num_gpus} devices: tensor-parallel size x data-parallel size"
    config = json.dumps({"eplb_config": {"expert_map_path": path}})
    write_with_flags(
        path,
        json_text({"moe_layer_count": len(layers)}, "layer_list", layers),
        comments(document, "vllm-ascend", path, note),
        ["--enable-expert-parallel", "--additional-config", config],
    )
