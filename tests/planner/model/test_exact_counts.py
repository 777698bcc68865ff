"""Counts against what others counted: real configurations, and small ones of every class that is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from planner.model import ModelSpec
from planner.readers.hf.families import FAMILIES
from planner.readers.hf_config import from_mapping, read_model

#: Small configurations and the parameters that transformers 5.23.0 counts for them on torch's meta device.
COUNTED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("counted_by_transformers.json").read_text())
MODEL_TYPES = {one["config"]["model_type"].removesuffix("_text") for one in COUNTED}


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "models" / "params.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counted(spec: ModelSpec) -> dict[str, float]:
    full, window, _ = spec.kv_elements_per_token
    parts = spec.parameters_by_component
    return {
        "total_params": spec.total_params,
        "active_params": spec.active_params,
        "routed_expert_params": parts.get("routed_experts", 0),
        "vision_params": parts.get("vision", 0),
        "kv_bytes_per_token_full_bf16": 2 * full,
        "kv_bytes_per_token_window_bf16": 2 * window,
        "full_attention_layers": sum(layer.attention.kv_elements > 0 for layer in spec.layers),
        "mtp_layers": len(spec.mtp),
    }


def test_every_exact_figure_of_the_real_configurations(shared_data: Path) -> None:
    """No exception list: wherever params.csv has a figure, ours is that figure."""
    wrong, checked = [], 0
    for row in rows(shared_data):
        ours = counted(read_model(shared_data / "models" / f"{row['model']}.json"))
        for column, value in ours.items():
            if row[column]:
                checked += 1
                if int(row[column]) != value:
                    wrong.append((row["model"], column, value, row[column]))
    assert not wrong
    assert checked > 300


def test_kv_bytes_per_token_is_full_and_window_together(shared_data: Path) -> None:
    for row in rows(shared_data):
        if row["kv_bytes_per_token_full_bf16"]:
            spec = read_model(shared_data / "models" / f"{row['model']}.json")
            window = int(row["kv_bytes_per_token_window_bf16"] or 0)
            assert spec.kv_bytes_per_token() == int(row["kv_bytes_per_token_full_bf16"]) + window, row["model"]


def test_weight_bytes_equal_the_checkpoints_index(shared_data: Path) -> None:
    """total_size of the safetensors index: bf16 everywhere, and MiniMax-M1 with its routers in float32."""
    checked = 0
    for row in rows(shared_data):
        spec = read_model(shared_data / "models" / f"{row['model']}.json")
        if row["safetensors_total_size"] and spec.quant_method is None:
            assert spec.weight_bytes == int(row["safetensors_total_size"]), row["model"]
            checked += 1
    assert checked >= 6


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("meta-llama--Meta-Llama-3.1-8B", 0.005),
        ("Qwen--Qwen3-0.6B", 0.01),
        ("Qwen--Qwen3-32B", 0.005),
        ("openai--gpt-oss-20b", 0.06),
        ("openai--gpt-oss-120b", 0.06),
    ],
)
def test_weight_bytes_against_what_vllm_measured(shared_data: Path, name: str, tolerance: float) -> None:
    """vLLM pads the MXFP4 experts of gpt-oss, which no count of a checkpoint can know."""
    with open(shared_data / "models" / "memory_measured.csv", encoding="utf-8") as file:
        measured = next(row for row in csv.DictReader(file) if row["model"] == name and row["tp"] == "1")
    gib = read_model(shared_data / "models" / f"{name}.json").weight_bytes / 2**30
    assert gib == pytest.approx(float(measured["weights_gib"]), rel=tolerance)


@pytest.mark.parametrize("case", COUNTED, ids=[one["config"]["model_type"] for one in COUNTED])
def test_small_models_as_transformers_counts_them(case: dict[str, Any]) -> None:
    assert from_mapping(case["config"], "small").total_params == case["parameters"]


def test_every_known_class_is_compared_or_named() -> None:
    """A new family needs a small model counted by transformers, or a reason here why there is none."""
    elsewhere = {
        "qwen": "Qwen-72B in params.csv; the class is not part of transformers",
        "nemotron-nas": "the class is not part of transformers",
        "minimax_m1": "the class is not part of transformers; weight bytes equal its index",
        "minimax_m3": "a name of minimax_m3_vl's language model",
        "minimax_m3_vl": "language model of a multimodal class",
        "kimi_k2": "in params.csv as deepseek_v3",
        "qwen2_vl": "the language model is qwen2",
        "qwen2_5_vl": "the language model is qwen2",
        "qwen3_vl_moe": "Qwen3-VL-30B-A3B in params.csv",
        "qwen3_5": "a text class of the same name is compared",
        "mimo_v2_flash": "MiMo-V2-Flash in params.csv",
    }
    assert set(FAMILIES) - MODEL_TYPES - set(elsewhere) == set()
