"""Counts of hand-made models, with the arithmetic in the docstrings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner.model import FORMATS, Component, ModelSpec
from planner.readers.hf_config import from_mapping

DENSE = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
    "torch_dtype": "bfloat16",
}
LATENT = {
    "model_type": "deepseek_v3",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 4,
    "q_lora_rank": 6,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 2,
    "v_head_dim": 5,
    "intermediate_size": 16,
    "moe_intermediate_size": 7,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
    "vocab_size": 10,
    "torch_dtype": "bfloat16",
}


def model(config: dict[str, Any], **more: Any) -> ModelSpec:
    return from_mapping({**config, **more}, "small")


def test_dense() -> None:
    """head_dim 2. A layer: q 8x8, k and v 4x8, o 8x8 = 192; MLP 3 x 8x16 = 384; norms 16: 592.

    Two layers 1,184, embedding and head 80 each, final norm 8: 1,352 parameters, 2,704 bytes.
    KV a layer: 2 heads x (2 + 2) = 8 elements, two layers, 2 bytes: 32. FLOP: 2 x (2 x 576 + 80) = 2,464.
    """
    spec = model(DENSE)
    assert spec.total_params == spec.active_params == 1_352
    assert spec.active_params_without_embedding == 1_272
    assert spec.weight_bytes == 2_704
    assert spec.kv_bytes_per_token() == 32
    assert spec.linear_flops_per_token == 2_464
    assert spec.state_bytes_per_sequence == 0


def test_a_tied_head_costs_time_and_no_memory() -> None:
    """The 80 parameters of the head are the embedding's; its 160 FLOP stay."""
    spec = model(DENSE, tie_word_embeddings=True)
    assert spec.total_params == 1_272
    assert spec.linear_flops_per_token == 2_464
    assert "head" not in spec.parameters_by_component


def test_dense_attention_flops_and_cache() -> None:
    """Each layer: 2 x 4 heads x (2 + 2) = 32 FLOP a cached token; at 10 tokens and two layers 640.

    A prompt of 10: the sum over its tokens of half the square, 2 x 32 x 50 = 3,200. Cache of 10 tokens: 320 bytes.
    """
    spec = model(DENSE)
    assert spec.attention_flops_per_token(10) == 640
    assert spec.prompt_attention_flops(10) == 3_200
    np.testing.assert_allclose(spec.kv_bytes([[0, 10], [20, 1]]), [[0, 320], [640, 32]])
    assert spec.kv_read_bytes(10) == 320


def test_windows_bound_cache_and_flops() -> None:
    """Two sliding layers of 4 tokens: at 10 tokens 4 are kept: 2 x 8 x 4 x 2 = 128 bytes, 2 x 32 x 4 = 256 FLOP.

    A prompt of 10: 4^2/2 + 6 x 4 = 32 pairs a layer, 2 x 32 x 32 = 2,048 FLOP.
    """
    spec = model(DENSE, model_type="mistral", sliding_window=4)
    assert spec.kv_elements_per_token == (0, 16, 0)
    assert spec.kv_bytes_per_token() == 32
    assert spec.kv_bytes(10) == spec.kv_read_bytes(10) == 128
    assert spec.attention_flops_per_token(10) == 256
    assert spec.prompt_attention_flops(10) == 2_048


def test_latent_attention_and_experts() -> None:
    """MLA: q_a 6x8, norm 6, q_b 10x6, kv_a 6x8, norm 4, kv_b 16x4, o 8x10 = 48+6+60+48+4+64+80 = 310.

    Dense layer: 310 + 3x8x16 + 16 = 710. MoE layer: 310 + router 32 + 4 x 168 + 168 + 16 = 1,198 (active 862).
    Total: 710 + 2 x 1,198 + 160 + 8 = 3,274; active 710 + 2 x 862 + 168 = 2,602.
    KV: 3 layers x (4 + 2) x 2 bytes = 36, not doubled. MTP: 1,198 + 8x16 + 24 = 1,350 apart.
    """
    spec = model(LATENT)
    assert spec.total_params == 3_274
    assert spec.active_params == 2_602
    assert spec.kv_bytes_per_token() == 36
    assert spec.mtp_params == 1_350
    assert spec.num_moe_layers == 2
    assert spec.parameters_by_component["routed_experts"] == 2 * 4 * 168
    assert sum(spec.parameters_by_component.values()) == spec.total_params
    assert sum(spec.weight_bytes_by_component.values()) == spec.weight_bytes


def test_latent_attention_is_wider_when_absorbed() -> None:
    """Decoding: 2 x 2 heads x (2 x 4 + 2) = 40 FLOP a token and layer; prefill: 2 x 2 x (5 + 5) = 40; ranks differ."""
    spec = model(LATENT, kv_lora_rank=16)
    assert spec.attention_flops_per_token(1) == 3 * 2 * 2 * (2 * 16 + 2)
    assert spec.attention_flops_per_token(1, absorbed=False) == 3 * 2 * 2 * (5 + 5)


def test_sparse_indexer() -> None:
    """index_topk 4 of 10 tokens are read; the indexer itself scores all 10 with 2 heads of 3: 2 x 2 x 3 x 10 = 120.

    Attention proper 2 x 2 x (2 x 4 + 2) x 4 = 160. Cache: 3 layers x (6 + 3) x 2 bytes = 54 a token.
    """
    spec = model(LATENT, model_type="deepseek_v32", index_n_heads=2, index_head_dim=3, index_topk=4)
    assert spec.attention_flops_per_token(10) == 3 * (160 + 120)
    assert spec.kv_elements_per_token == (18, 0, 9)
    assert spec.kv_bytes(10) == 540


def test_shared_indexers_have_no_weights_and_no_cache() -> None:
    types = ["full", "shared", "shared"]
    config = {**LATENT, "model_type": "glm_moe_dsa", "index_n_heads": 2, "index_head_dim": 3, "index_topk": 4}
    every, one = model(config), model(config, indexer_types=types)
    assert one.kv_elements_per_token[2] == every.kv_elements_per_token[2] / 3
    assert one.parameters_by_component["indexer"] * 3 == every.parameters_by_component["indexer"]
    assert [layer.attention.index_topk for layer in one.layers] == [4, 4, 4]


def test_delta_net_state() -> None:
    """Linear layers: 4 value heads x 3 x 5 x 4 bytes = 240, and 3 past inputs of 2 x 2x3 + 4x5 = 32 channels x 2 = 192.

    Three of four layers are linear: 3 x 432 = 1,296 bytes a sequence; one full layer keeps 8 elements a token.
    """
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 3,
        "linear_value_head_dim": 5,
    }
    spec = model(DENSE, model_type="qwen3_next", num_hidden_layers=4, head_dim=2, linear_conv_kernel_dim=4, **linear)
    assert spec.state_bytes_per_sequence == 1_296
    assert spec.kv_elements_per_token == (8, 0, 0)
    assert spec.kv_bytes(0) == 1_296
    half = model(
        DENSE,
        model_type="qwen3_next",
        num_hidden_layers=4,
        head_dim=2,
        linear_conv_kernel_dim=4,
        mamba_ssm_dtype="bfloat16",
        **linear,
    )
    assert half.state_bytes_per_sequence == 1_296 - 3 * 120


def test_mamba_layers_have_state_and_no_mlp() -> None:
    """State: 2 heads x 4 x 3 x 4 bytes = 96; convolution: 3 x (8 + 2 x 1 x 3) channels x 2 bytes = 84."""
    config = {
        **DENSE,
        "model_type": "nemotron_h",
        "hybrid_override_pattern": "M-*",
        "mamba_num_heads": 2,
        "mamba_head_dim": 4,
        "ssm_state_size": 3,
        "n_groups": 1,
        "head_dim": 2,
    }
    spec = model({key: value for key, value in config.items() if key != "num_hidden_layers"})
    assert [layer.attention.kind for layer in spec.layers] == ["mamba", "none", "full"]
    assert [layer.mlp.kind for layer in spec.layers] == ["none", "dense", "none"]
    assert spec.state_bytes_per_sequence == 180


def test_compressed_cache() -> None:
    """DeepSeek-V4, width 4, window 4: ratio 0 keeps the window alone; 2 adds 4/2 + index 2/2; 128 adds 4/128.

    At 1,280 tokens: windows 3 x 4 x 4 = 48, compressed 2,560 + 40, indexer 1,280: 3,928 elements, 7,856 bytes.
    """
    spec = model(
        LATENT,
        model_type="deepseek_v4",
        head_dim=4,
        num_key_value_heads=1,
        o_groups=2,
        o_lora_rank=2,
        sliding_window=4,
        compress_ratios=[0, 2, 128],
        index_n_heads=2,
        index_head_dim=2,
        index_topk=8,
        num_nextn_predict_layers=0,
    )
    assert spec.kv_bytes(1_280) == 7_856
    assert spec.kv_elements_per_token == (4 / 2 + 4 / 128, 12, 1)


def test_quantised_bytes() -> None:
    """mxfp4: 32 elements of a row share a byte, so 7x64 takes 7 x (32 + 2) = 238 bytes; nvfp4 7 x 36 + 4 = 256."""
    assert FORMATS["mxfp4"].matrix_bytes(7, 64) == 238
    assert FORMATS["nvfp4"].matrix_bytes(7, 64) == 256
    assert FORMATS["fp8_block"].matrix_bytes(129, 256) == 129 * 256 + 2 * 2 * 4
    assert FORMATS["fp8"].matrix_bytes(3, 3) == 9 + 4
    assert FORMATS["int4"].matrix_bytes(1, 129) == 65 + 4
    assert FORMATS["bfloat16"].matrix_bytes(3, 3) == 18


def test_with_formats_converts_layers_only() -> None:
    spec = model(LATENT)
    fp8 = spec.with_formats(dense=FORMATS["fp8"], experts=FORMATS["mxfp4"])
    assert {tensor.format.name for tensor, _ in fp8.tensors() if tensor.component is Component.ROUTED_EXPERTS} == {
        "mxfp4"
    }
    kept = (Component.ROUTER, Component.EMBEDDING, Component.HEAD, Component.NORM)
    assert all(tensor.format.name == "bfloat16" for tensor, _ in fp8.tensors() if tensor.component in kept)
    assert fp8.total_params == spec.total_params
    assert fp8.weight_bytes < spec.weight_bytes
    assert len(fp8.layer_groups()) == 2


@pytest.mark.parametrize("context", [0, 1, 5, 1_000_000])
def test_more_context_never_costs_less(context: int) -> None:
    for config in (DENSE, LATENT, {**DENSE, "model_type": "mistral", "sliding_window": 4}):
        spec = model(config)
        for measure in (spec.kv_bytes, spec.kv_read_bytes, spec.attention_flops_per_token, spec.prompt_attention_flops):
            less, more = measure([context, context + 1])
            assert less <= more
