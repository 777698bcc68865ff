"""Every kind of quantisation_config, and hf_quant_config.json beside the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import DescriptionError
from planner.model import Component, ModelSpec
from planner.readers.hf_config import from_mapping, read_model

BASE = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
ALL = {"attention", "routed_experts", "head", "embedding", "router", "norm"}


def quantised(config: dict[str, Any]) -> ModelSpec:
    return from_mapping({**BASE, "quantization_config": config}, "q")


def formats(spec: ModelSpec, layer: int = 0) -> dict[str, str]:
    """Format by component of one layer and of what lies outside."""
    tensors = (*spec.layers[layer].tensors, *spec.outer)
    found: dict[str, set[str]] = {}
    for tensor in tensors:
        if tensor.role != "vector":
            found.setdefault(tensor.component.value, set()).add(tensor.format.name)
    assert all(len(names) == 1 for names in found.values()), found
    return {component: next(iter(names)) for component, names in found.items()}


def packed(bits: int, kind: str, strategy: str, group: int | None = None, **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": True, **more}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("config", "name", "bits"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block", 8),
        ({"quant_method": "fp8"}, "fp8", 8),
        ({"quant_method": "fbgemm_fp8"}, "fp8_channel", 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4", 4),
        ({"quant_method": "gptq", "bits": 3, "group_size": -1}, "int3", 3),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "int4", 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4", 4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4", 4),
        (packed(8, "float", "tensor"), "fp8", 8),
        (packed(8, "float", "channel"), "fp8_channel", 8),
        (packed(8, "float", "block", block_structure=[128, 128]), "fp8_block", 8),
        (packed(4, "int", "group", 32), "int4", 4),
        (packed(4, "float", "group", 32, scale_dtype="torch.uint8"), "mxfp4", 4),
        (packed(4, "float", "tensor_group", 16), "nvfp4", 4),
    ],
)
def test_kinds(config: dict[str, Any], name: str, bits: int) -> None:
    spec = quantised(config)
    found = formats(spec)
    assert found["attention"] == found["routed_experts"] == name
    assert {found[part] for part in ("embedding", "router")} == {"bfloat16"}
    assert spec.total_params == from_mapping(BASE, "plain").total_params
    experts = spec.weight_bytes_by_component["routed_experts"]
    least = 2 * 4 * 3 * 64 * 32 * bits / 8
    assert least < experts < 1.3 * least


def test_mxfp4_takes_four_and_a_quarter_bits_of_the_experts_only() -> None:
    """2 layers x 4 experts x 3 matrices of 2,048 elements: 1,024 bytes and 64 scales each."""
    spec = quantised({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]})
    assert spec.weight_bytes_by_component["routed_experts"] == 24 * 1_088
    assert formats(spec)["attention"] == "bfloat16"


def test_block_scales() -> None:
    """q 64x64: 4,096 bytes and one scale of 4; k and v 16x64 alike."""
    spec = quantised({"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert spec.weight_bytes_by_component["attention"] == 2 * (2 * 4_096 + 2 * 1_024 + 4 * 4)


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("model.layers.0.self_attn", {"attention"}),
        ("model.layers.0.self_attn*", {"attention"}),
        ("model.layers.*.self_attn", {"attention"}),
        ("self_attn", {"attention"}),
        ("model.layers.0.m*", {"routed_experts"}),
        ("*.experts", {"routed_experts"}),
        ("re:.*self_attn.*", {"attention"}),
        ("re:model\\.layers\\.\\d+\\.mlp\\.experts\\..*", {"routed_experts"}),
        ("re:.*mlp\\.(gate|up|gate_up|down)_proj.*", set()),
        ("language_model.model.layers.0.mlp.experts", {"routed_experts"}),
        ("model.layers.1.self_attn", set()),
        ("gate", set()),
    ],
)
def test_modules_that_are_left_out(pattern: str, left_out: set[str]) -> None:
    config = packed(8, "float", "tensor")
    found = formats(quantised({**config, "ignore": ["lm_head", pattern]}))
    own = {component for component, name in found.items() if name == "bfloat16"}
    assert own == left_out | {"embedding", "router", "head"}


def test_head_is_quantised_by_some_methods_unless_left_out() -> None:
    assert formats(quantised({**packed(8, "float", "tensor"), "ignore": []}))["head"] == "fp8"
    assert formats(quantised({"quant_method": "fp8"}))["head"] == "bfloat16"


def test_layers_may_differ_and_equal_ones_stay_one_object() -> None:
    spec = quantised({**packed(8, "float", "tensor"), "ignore": ["model.layers.0.self_attn"]})
    assert formats(spec, 0)["attention"] == "bfloat16"
    assert formats(spec, 1)["attention"] == "fp8"
    assert len(spec.layer_groups()) == 2
    assert len(quantised(packed(8, "float", "tensor")).layer_groups()) == 1


def test_several_groups_and_mixed_precision() -> None:
    config = packed(8, "float", "channel")
    experts = {
        "targets": ["re:.*experts.*"],
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
    }
    config["config_groups"] = {"a": experts, **config["config_groups"]}
    found = formats(quantised(config))
    assert (found["attention"], found["routed_experts"]) == ("fp8_channel", "int4")
    layers = {f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(2)}
    mixed = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    found = formats(quantised(mixed))
    assert (found["attention"], found["routed_experts"]) == ("bfloat16", "nvfp4")


def test_experts_in_four_bits_beside_fp8() -> None:
    spec = from_mapping({**BASE, "expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8"}}, "v4")
    assert formats(spec)["routed_experts"] == "mxfp4"
    assert formats(spec)["attention"] == "fp8"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**packed(8, "float", "tensor"), "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": None}, None),
        ({"quant_method": "fp8"}, None),
    ],
)
def test_type_of_the_cache(config: dict[str, Any], expected: str | None) -> None:
    spec = quantised(config)
    assert spec.kv_dtype == expected
    assert spec.kv_bytes_per_token() == 2 * 2 * 2 * 8 * 2
    assert spec.kv_bytes_per_token(element_bytes=1) == spec.kv_bytes_per_token() / 2


@pytest.mark.parametrize("name", ["config.json", "org--model.json"])
def test_the_file_beside(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(BASE))
    beside = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    other = "hf_quant_config.json" if name == "config.json" else "org--model.hf_quant_config.json"
    (tmp_path / other).write_text(json.dumps(beside))
    spec = read_model(tmp_path / name)
    assert formats(spec)["attention"] == "fp8"
    assert formats(spec)["head"] == "bfloat16"
    assert (spec.quant_method, spec.kv_dtype) == ("modelopt fp8", "fp8")


def test_problems_of_the_file_beside_are_placed_in_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text('{"quantization": {\n  "quant_algo": "FP8",\n  "exclude_modules": "lm_head"}}')
    with pytest.raises(DescriptionError) as caught:
        read_model(tmp_path)
    (finding,) = caught.value.findings
    assert (finding.path, finding.line) == (str(beside), 3)


def test_unknown_methods_are_told() -> None:
    spec = quantised({"quant_method": "tomorrow"})
    assert any("'tomorrow' is not known" in line for line in spec.assumptions)
    spec = quantised({"quant_method": "tomorrow", "bits": 3})
    assert formats(spec)["attention"] == "int3"
    spec = quantised({"quant_method": "modelopt", "quant_algo": "X9"})
    assert any("'X9' is not known" in line for line in spec.assumptions)


@pytest.mark.parametrize(
    "pattern",
    ["re:(a+)+$", "re:(.*a){30}", "re:.*.*.*.*.*x", "re:(?=a)b", "re:[", "re:" + "a" * 500, "re:(a)\\1", "[*"],
)
def test_expressions_that_could_run_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(DescriptionError, match="too complex"):
        quantised({**packed(8, "float", "tensor"), "ignore": [pattern]})


def test_real_quantised_configurations(shared_data: Path) -> None:
    """Published checkpoint sizes, GB: DeepSeek-V3 688 with its MTP module, gpt-oss-120b 65, Kimi-K2.5 595."""
    folder = shared_data / "models"
    v3 = read_model(folder / "deepseek-ai--DeepSeek-V3.json")
    # The checkpoint stores embedding and head of the MTP module again.
    again = 2 * v3.weight_bytes_by_component[Component.EMBEDDING.value]
    assert (v3.weight_bytes + v3.mtp_weight_bytes + again) / 1e9 == pytest.approx(688.6, rel=0.003)
    assert read_model(folder / "openai--gpt-oss-120b.json").weight_bytes / 1e9 == pytest.approx(65.2, rel=0.005)
    assert read_model(folder / "moonshotai--Kimi-K2.5.json").weight_bytes / 1e9 == pytest.approx(594.5, rel=0.005)
    nvfp4 = read_model(folder / "nvidia--Qwen3-235B-A22B-NVFP4.json")
    assert nvfp4.quant_method == "modelopt nvfp4"
    assert nvfp4.kv_dtype == "fp8"
    assert nvfp4.weight_bytes / 1e9 == pytest.approx(134, rel=0.01)
