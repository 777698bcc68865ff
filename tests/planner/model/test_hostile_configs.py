"""Configurations that lie, break or attack: always a DescriptionError with places, never anything else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.model import ModelSpec
from planner.readers.hf_config import from_mapping, read_model

COUNTED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("counted_by_transformers.json").read_text())
CONFIGS = [one["config"] for one in COUNTED]
BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_size": -64}, "hidden_size: is -64, outside 1"),
        ({"hidden_size": 0}, "hidden_size: is 0"),
        ({"hidden_size": "64"}, "hidden_size: needs a whole number, got '64'"),
        ({"hidden_size": 64.5}, "needs a whole number"),
        ({"hidden_size": True}, "needs a whole number"),
        ({"hidden_size": [64]}, "needs a whole number, got a list"),
        ({"hidden_size": float("nan")}, "needs a whole number"),
        ({"hidden_size": float("inf")}, "needs a whole number"),
        ({"hidden_size": 10**4000}, "needs|a number of 13288 bits"),
        ({"hidden_size": None}, "hidden_size or n_embd or d_model is required"),
        ({"num_hidden_layers": 10**9}, "outside 1 to 1024"),
        ({"num_hidden_layers": None}, "num_hidden_layers or n_layer or num_layers is required"),
        ({"num_attention_heads": 7}, "7 heads do not divide hidden_size 64"),
        ({"num_key_value_heads": 3}, "3 key-value heads do not divide 8"),
        ({"num_experts": 4}, "num_experts_per_tok .* is required"),
        ({"num_experts": 4, "num_experts_per_tok": 5}, "is 5 of 4 experts"),
        ({"layer_types": ["full_attention"]}, "has 1 entries where 2 are needed"),
        ({"layer_types": "full_attention"}, "needs a list"),
        ({"layer_types": [1, 2]}, "needs a string, got 1"),
        (
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_layer_freq": [0, 2]},
            "moe_layer_freq.1: is 2, outside 0 to 1",
        ),
        ({"tie_word_embeddings": "yes"}, "needs true or false, got 'yes'"),
        ({"text_config": []}, "text_config: needs an object"),
        ({"is_encoder_decoder": True}, "only decoder models"),
        ({"quantization_config": 8}, "quantization_config: needs an object"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 2, 3]}}, "needs two numbers"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 0}}, "bits: is 0"),
        ({"quantization_config": {"config_groups": {"a": {"weights": {}, "targets": [["x"]]}}}}, "needs a string"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MX"}, "block 1 is 'X'"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": ""}, "one block a layer"),
        ({"model_type": "nemotron-nas", "block_configs": [1, 2]}, "needs an object with attention and ffn"),
        (
            {"block_configs": [{"attention": {"n_heads_in_group": 3}, "ffn": {"ffn_mult": 1e9}}] * 2},
            "3 does not divide 8 heads",
        ),
        ({"sliding_window": 4, "sliding_window_pattern": "LX"}, "needs a number or a string of L"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        from_mapping({**BASE, **keys}, "bad")


def test_all_problems_at_once_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(
        '{\n  "model_type": "llama",\n  "hidden_size": -1,\n  "num_hidden_layers": "four",\n'
        '  "num_attention_heads": 8,\n  "intermediate_size": 1e30,\n  "vocab_size": 2\n}\n'
    )
    with pytest.raises(DescriptionError) as caught:
        read_model(path)
    assert [(one.line, one.column) for one in caught.value.findings] == [(4, 3), (3, 3), (6, 3)]
    assert all(one.path == str(path) for one in caught.value.findings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "needs an object"),
        ("3", "needs an object"),
        ('{"hidden_size": 1, "hidden_size": 2}', "duplicate key 'hidden_size'"),
        ("[" * 100_000, "not usable JSON|not valid JSON"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "not usable JSON|required"),
        ('{"hidden_size": ' + "9" * 5_000 + "}", "not usable JSON"),
        ("\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DescriptionError, match=message):
        read_model(path)


def test_a_missing_file_and_a_huge_one(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="cannot be read"):
        read_model(tmp_path)
    path = tmp_path / "big.json"
    path.write_text(" " * (5 * 2**20))
    with pytest.raises(DescriptionError, match="larger than"):
        read_model(path)


def test_a_configuration_that_contains_itself() -> None:
    config: dict[str, Any] = dict(BASE)
    config["text_config"] = config
    config["quantization_config"] = config
    assert isinstance(from_mapping(config, "cycle"), ModelSpec)


def test_the_largest_sizes_are_counted_exactly() -> None:
    """Every number at its bound: counts are exact integers, and equal layers are one object."""
    config = {
        **BASE,
        "hidden_size": 2**24,
        "num_hidden_layers": 1_024,
        "num_attention_heads": 65_536,
        "num_key_value_heads": 65_536,
        "head_dim": 2**24,
        "vocab_size": 2**24,
        "num_experts": 65_536,
        "num_experts_per_tok": 65_536,
        "num_nextn_predict_layers": 1_024,
    }
    spec = from_mapping(config, "huge")
    assert spec.total_params > 2**75
    assert sum(spec.parameters_by_component.values()) == spec.total_params
    assert len(spec.layer_groups()) == 1


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["MEM*-", "LLG", "auto", "full_attention", "float32", "re:(a+)+", "torch.uint8", "fp8", "gptq"]),
    st.lists(st.one_of(st.integers(-1, 5), st.text(max_size=4), st.none()), max_size=8),
    st.dictionaries(st.text(max_size=6), st.integers(0, 5), max_size=3),
)
KEYS = sorted(
    {key for config in CONFIGS for key in config}
    | {key for config in CONFIGS for key in config.get("vision_config", {})}
    | {
        *("block_configs", "sparse_attention_config", "linear_attn_config", "quantization_config", "compress_ratios"),
        *("attn_type_list", "moe_layers", "no_rope_layers", "num_nextn_predict_layers", "expert_dtype", "dtype"),
        *(
            "attn_layer_indices",
            "index_topk",
            "index_head_dim",
            "indexer_types",
            "sliding_window_pattern",
            "text_config",
        ),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    base=st.sampled_from(CONFIGS),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=4),
    inside=st.booleans(),
    dropped=st.sets(st.sampled_from(KEYS), max_size=2),
)
def test_damaged_configurations_are_read_or_refused(
    base: dict[str, Any], changes: dict[str, Any], inside: bool, dropped: set[str]
) -> None:
    config = copy.deepcopy(base)
    place = config["text_config"] if inside and "text_config" in config else config
    place.update(changes)
    for key in dropped:
        place.pop(key, None)
    read_or_refuse(config)


@settings(max_examples=150, deadline=None)
@given(config=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=12))
def test_junk_is_read_or_refused(config: dict[str, Any]) -> None:
    read_or_refuse(config)


QUANT_KEYS = [
    *("quant_method", "bits", "group_size", "weight_block_size", "modules_to_not_convert", "config_groups", "ignore"),
    *("quant_algo", "kv_cache_scheme", "kv_cache_quant_algo", "exclude_modules", "quantized_layers", "load_in_8bit"),
]


@settings(max_examples=200, deadline=None)
@given(
    config=st.dictionaries(st.sampled_from(QUANT_KEYS), JUNK | st.dictionaries(st.text(max_size=3), JUNK, max_size=2))
)
def test_damaged_quantisation_is_read_or_refused(config: dict[str, Any]) -> None:
    read_or_refuse({**BASE, "quantization_config": config})


def read_or_refuse(config: dict[str, Any]) -> None:
    try:
        spec = from_mapping(config, "fuzz")
    except DescriptionError:
        return
    assert spec.total_params >= spec.active_params > 0
    assert sum(spec.parameters_by_component.values()) == spec.total_params
    assert sum(spec.weight_bytes_by_component.values()) == spec.weight_bytes > 0
    assert spec.kv_bytes(1_000) >= spec.state_bytes_per_sequence >= 0
    assert spec.attention_flops_per_token(10) >= 0
    assert spec.linear_flops_per_token > 0
