"""The spellings and traps of config.json, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.model import ModelSpec
from planner.readers.hf_config import from_mapping, read_model

BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
    "torch_dtype": "bfloat16",
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def model(**more: Any) -> ModelSpec:
    return from_mapping({**BASE, **more}, "trap")


def kinds(spec: ModelSpec) -> str:
    """One letter a layer: f full, s sliding, c chunked, l linear, m Mamba or MLA by its first letter."""
    return "".join(layer.attention.kind.value[0] for layer in spec.layers)


def sparse(spec: ModelSpec) -> str:
    return "".join("x" if layer.mlp.num_experts else "." for layer in spec.layers)


@pytest.mark.parametrize("count", ["num_experts", "num_local_experts", "n_routed_experts"])
@pytest.mark.parametrize("top", ["num_experts_per_tok", "top_k_experts", "experts_per_token", "num_experts_per_token"])
def test_spellings_of_experts(count: str, top: str) -> None:
    plain = model(model_type="qwen3_moe", **EXPERTS)
    other = model(model_type="qwen3_moe", moe_intermediate_size=24, **{count: 4, top: 2})
    assert (other.total_params, other.active_params) == (plain.total_params, plain.active_params)


def test_expert_width_falls_back_to_the_dense_width() -> None:
    assert model(num_experts=4, num_experts_per_tok=2).layers[0].mlp.moe_intermediate_size == 96


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "xxxxxx"),
        ({"first_k_dense_replace": 2}, "..xxxx"),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, "..x.x."),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 0]}, ".xx.x."),
        ({"moe_layer_freq": [False, True, True, True, True, True]}, ".xxxxx"),
        ({"decoder_sparse_step": 2}, ".x.x.x"),
        ({"mlp_only_layers": [0, 5]}, ".xxxx."),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, "...x.x"),
        ({"interleave_moe_layer_step": 3}, "..x..x"),
        ({"moe_layers": [1, 4]}, ".x..x."),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "dense", "sparse", "sparse"]}, ".xx.xx"),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": 4, "moe_layer_interval": 1}, ".xxxx."),
        ({"moe_layer_start_index": 0, "moe_layer_end_index": -1, "moe_layer_interval": 2}, ".x.x.x"),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, ".x.x.x"),
    ],
)
def test_which_layers_have_experts(keys: dict[str, Any], expected: str) -> None:
    assert sparse(model(model_type="", **EXPERTS, **keys)) == expected


@pytest.mark.parametrize(
    ("model_type", "keys", "expected"),
    [
        ("llama", {}, "ffffff"),
        ("mistral", {"sliding_window": None}, "ffffff"),
        ("mistral", {"sliding_window": 4}, "ssssss"),
        ("mistral", {}, "ssssss"),
        ("qwen2", {"sliding_window": 4, "use_sliding_window": False, "max_window_layers": 3}, "ffffff"),
        ("qwen2", {"sliding_window": 4, "max_window_layers": 3}, "ffffff"),
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 4}, "ffffss"),
        ("gemma2", {}, "sfsfsf"),
        ("gemma3_text", {}, "sssssf"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "ssfssf"),
        ("exaone4", {"sliding_window_pattern": "LLG"}, "ssfssf"),
        ("gpt_oss", {}, "sfsfsf"),
        ("gpt_oss", {"layer_types": ["full_attention", "sliding_attention"] * 3}, "fsfsfs"),
        ("llama4", EXPERTS, "cccfcc"),
        ("llama4", {**EXPERTS, "no_rope_layers": [1, 0, 1, 0, 1, 0]}, "cfcfcf"),
        ("mimo_v2_flash", {"hybrid_layer_pattern": [0, 1, 1, 0, 1, 1], "attention_chunk_size": 128}, "fssfss"),
        ("minimax_m1", {"attn_type_list": [0, 0, 1, 0, 0, 1]}, "llfllf"),
        ("qwen3_next", {"full_attention_interval": 3}, "llfllf"),
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"] * 3}, "lflflf"),
        ("jamba", {"attn_layer_period": 3, "attn_layer_offset": 1}, "mfmmfm"),
        (
            "granitemoehybrid",
            {"layer_types": ["mamba", "attention"] * 3, "mamba_n_heads": 4, "mamba_d_state": 8},
            "mfmfmf",
        ),
        ("", {"layer_types": ["full_attention", "conv"] * 3}, "ffffff"),
    ],
)
def test_which_layers_attend_how(model_type: str, keys: dict[str, Any], expected: str) -> None:
    assert kinds(model(model_type=model_type, **keys)) == expected


def test_kimi_counts_layers_from_one() -> None:
    linear = {"full_attn_layers": [3, 6], "kda_layers": [1, 2, 4, 5], "head_dim": 8, "num_heads": 4}
    assert kinds(model(model_type="kimi_linear", linear_attn_config=linear)) == "llfllf"


def test_extra_entries_for_mtp_layers_are_cut() -> None:
    assert kinds(model(layer_types=["full_attention"] * 7)) == "ffffff"


def test_head_dim_need_not_be_hidden_over_heads() -> None:
    spec = model(head_dim=16)
    assert spec.layers[0].attention.head_dim == 16
    assert spec.kv_bytes_per_token() == 6 * 2 * 2 * 16 * 2


def test_missing_key_value_heads_are_the_heads() -> None:
    config = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
    assert from_mapping(config, "mha").layers[0].attention.num_key_value_heads == 8


def test_query_key_value_bias_is_implicit_in_qwen2_and_the_output_has_none() -> None:
    """Three biases of 64 + 16 + 16 in each of six layers."""
    assert model(model_type="qwen2").total_params - model().total_params == 6 * 96
    assert model(model_type="qwen2", attention_bias=True).total_params == model(model_type="qwen2").total_params


def test_qwen1_halves_the_feed_forward_width() -> None:
    spec = model(model_type="qwen", no_bias=True, kv_channels=8)
    assert spec.layers[0].mlp.intermediate_size == 48


def test_head_is_tied_by_the_class_unless_the_file_says_otherwise() -> None:
    assert model(model_type="gemma2").tie_word_embeddings
    assert not model(model_type="gemma2", tie_word_embeddings=False).tie_word_embeddings
    assert not model().tie_word_embeddings


def test_text_config_is_read_and_the_top_decides_on_tying() -> None:
    text = {**BASE, "model_type": "qwen3_vl_text"}
    spec = from_mapping({"model_type": "qwen3_vl", "text_config": text, "tie_word_embeddings": True}, "nested")
    assert spec.tie_word_embeddings
    assert spec.num_hidden_layers == 6
    assert spec.model_type == "qwen3_vl_text"


def test_a_tower_that_cannot_be_derived_is_named() -> None:
    spec = from_mapping({"model_type": "someone_vl", "text_config": BASE, "vision_config": {"depth": 3}}, "vision")
    assert "vision" not in spec.parameters_by_component
    assert any("vision tower" in line for line in spec.assumptions)


def test_shared_experts_by_count_and_by_width() -> None:
    by_count = model(model_type="deepseek_v3", **EXPERTS, n_shared_experts=2)
    by_width = model(model_type="minimax_m3", **EXPERTS, shared_intermediate_size=48)
    assert by_count.layers[0].mlp.shared_intermediate_size == by_width.layers[0].mlp.shared_intermediate_size == 48
    gated = model(model_type="qwen2_moe", **EXPERTS, shared_expert_intermediate_size=48)
    gate = [tensor for tensor in gated.layers[0].tensors if tensor.name.endswith("shared_expert_gate")]
    assert [tensor.parameters for tensor in gate] == [64]


def test_layers_searched_by_nas() -> None:
    """First layer: 4 KV heads and width 2/3 x 6 x 64 = 256; second: no attention; third: one 64 x 64 matrix, no FFN."""
    blocks = [
        {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 6.0}},
        {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"ffn_mult": 1.3}},
        {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
    ]
    spec = model(model_type="nemotron-nas", num_hidden_layers=3, num_key_value_heads=None, block_configs=blocks)
    first, second, third = spec.layers
    assert (first.attention.num_key_value_heads, first.mlp.intermediate_size) == (4, 256)
    assert second.parameters == 3 * 64 * 256 + 64
    assert third.parameters == 64 * 64 + 64
    assert spec.kv_bytes_per_token() == 4 * 16 * 2


def test_shared_caches_are_counted_once() -> None:
    """Gemma 4: the last two layers read what earlier ones stored."""
    types = ["sliding_attention", "full_attention"] * 3
    keys = {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "global_head_dim": 16, "layer_types": types}
    own, shared = model(**keys, head_dim=8), model(**keys, head_dim=8, num_kv_shared_layers=2)
    assert shared.kv_bytes_per_token() == own.kv_bytes_per_token() * 2 / 3
    assert shared.kv_read_bytes(100) == own.kv_read_bytes(100)


def test_an_unknown_type_says_which_rule_and_which_keys() -> None:
    config = {
        "model_type": "brand_new",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "vocab_size": 50,
    }
    spec = from_mapping(config, "new")
    told = "; ".join(spec.assumptions)
    assert "model_type 'brand_new' is not known: generic rule" in told
    for key in ("head_dim", "num_key_value_heads", "intermediate_size", "tie_word_embeddings", "torch_dtype"):
        assert key in told
    assert from_mapping({**BASE, "model_type": "brand_new"}, "new").total_params == model().total_params


def test_an_unknown_type_still_uses_the_keys_that_speak() -> None:
    keys = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "use_qk_norm": True}
    spec = model(model_type="brand_new", **keys, **EXPERTS, first_k_dense_replace=1)
    assert kinds(spec) == "mmmmmm"
    assert sparse(spec) == ".xxxxx"
    assert spec.kv_bytes_per_token() == 6 * (16 + 4) * 2


def test_ungated_activations_are_recognised() -> None:
    assert model(model_type="brand_new", hidden_act="relu2").total_params == model().total_params - 6 * 64 * 96


def test_infinity_is_no_syntax_error(tmp_path: Path) -> None:
    text = json.dumps({**BASE, "time_step_limit": [0.0, float("inf")]})
    (tmp_path / "config.json").write_text(text)
    spec = read_model(tmp_path)
    assert spec.total_params == model().total_params
    assert spec.name == tmp_path.name


def test_names_come_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "org--model-7b.json"
    path.write_text(json.dumps(BASE))
    assert read_model(path).name == "org/model-7b"
