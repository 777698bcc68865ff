"""What a model class fixes without a key in config.json: biases, norms, gates, and its values for missing keys.

Read from the modules of transformers 5.23.0 (Apache-2.0), one entry a `model_type`. These are rules of an architecture,
never counts of one model; a type that is not here is read by the generic rule, which is `Family()`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Traits of a model class; None follows the key of the same meaning in config.json.

    qkv_bias, output_bias : biases of the attention projections (else attention_bias, qkv_bias, use_bias).
    qk_norm : norm of queries and keys over one head, over all heads, or either if `use_qk_norm` says so.
    norms : norms as wide as the hidden state in a layer; norm_bias for LayerNorm.
    gated : gate and up projection, else a single up projection.
    output_gate : the query projection also makes a gate for the attention output.
    sinks : one learned sink a head, in all layers or in the sliding ones.
    window_pattern : every n-th layer attends fully, the rest through the window; 0 is no such pattern.
    window_needs : key that has to be true before `sliding_window` counts.
    last_is_full : the last layer attends fully, whatever the file says.
    shared_expert : a shared expert as wide as a routed one, without a key (Llama 4).
    router_dtype : type that checkpoints keep the router in, where it is not that of the other weights.
    linear : which linear attention `linear_attention` layers are.
    defaults : the class's values for missing keys.
    note : what to tell about a rule that is not obvious.
    """

    qkv_bias: bool | None = None
    output_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: Literal["field", "field_full", "none", "head", "full"] = "field"
    norms: int = 2
    norm_bias: bool = False
    gated: bool = True
    output_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    sinks: Literal["none", "all", "sliding"] = "none"
    window_pattern: int = 0
    window_needs: str = ""
    last_is_full: bool = False
    shared_expert: bool = False
    router_dtype: str = ""
    linear: Literal["delta", "lightning", "kimi", "mamba", "mamba1"] = "delta"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


GENERIC = Family()

_NO_BIAS = Family(qkv_bias=False, output_bias=False, mlp_bias=False)
_DEEPSEEK = Family(qk_norm="none", mlp_bias=False)
_QWEN2 = Family(qkv_bias=True, output_bias=False, mlp_bias=False, qk_norm="none", window_needs="use_sliding_window")
_QWEN3 = Family(mlp_bias=False, qk_norm="head", window_needs="use_sliding_window")
_QWEN3_5 = replace(_QWEN3, output_gate=True, defaults={"head_dim": 256, "full_attention_interval": 4})
_GEMMA2 = Family(
    qk_norm="none",
    norms=4,
    window_pattern=2,
    defaults={"vocab_size": 256_000, "head_dim": 256, "sliding_window": 4_096, "tie_word_embeddings": True},
)
_GEMMA3 = replace(
    _GEMMA2,
    qk_norm="head",
    window_pattern=6,
    defaults={"vocab_size": 262_208, "head_dim": 256, "sliding_window": 4_096, "tie_word_embeddings": True},
)
_GEMMA4 = replace(
    _GEMMA3,
    last_is_full=True,
    defaults={
        "vocab_size": 262_144,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262_144,
    },
)
_LLAMA4 = {"attention_chunk_size": 8_192, "num_local_experts": 16, "num_experts_per_tok": 1, "head_dim": 128}
_GRANITE = Family(qk_norm="none", linear="mamba")
_OLMO = Family(mlp_bias=False, qk_norm="full")
_COHERE = Family(mlp_bias=False, qk_norm="field_full", norms=1, defaults={"tie_word_embeddings": True})
_MINIMAX = Family(
    qkv_bias=False, output_bias=False, mlp_bias=False, qk_norm="none", linear="lightning", router_dtype="float32"
)

#: Traits by `model_type`, without the suffix `_text` of the language part of a multimodal model.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(qk_norm="none"),
    "smollm3": Family(qk_norm="none", window_needs="use_sliding_window", defaults={"tie_word_embeddings": True}),
    "mistral": replace(_NO_BIAS, qk_norm="none", defaults={"sliding_window": 4_096}),
    "ministral3": replace(_NO_BIAS, qk_norm="none"),
    "mixtral": replace(_NO_BIAS, qk_norm="none", defaults={"num_local_experts": 8, "num_experts_per_tok": 2}),
    "phi3": replace(_NO_BIAS, qk_norm="none"),
    "qwen": replace(_QWEN2, window_needs="", output_bias=None),
    "qwen2": _QWEN2,
    "qwen2_moe": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_next": _QWEN3_5,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v32": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe_lite": _DEEPSEEK,
    "glm_moe_dsa": _DEEPSEEK,
    "deepseek_v4": replace(_DEEPSEEK, defaults={"hc_mult": 4, "n_shared_experts": 1, "sliding_window": 128}),
    "kimi_linear": replace(_DEEPSEEK, linear="kimi"),
    "glm4": Family(output_bias=False, mlp_bias=False, qk_norm="none", norms=4, defaults={"attention_bias": True}),
    "glm4_moe": Family(output_bias=False, mlp_bias=False, qk_norm="field"),
    "gpt_oss": Family(
        mlp_bias=False,
        qk_norm="none",
        router_bias=True,
        expert_bias=True,
        sinks="all",
        window_pattern=2,
        defaults={"attention_bias": True, "head_dim": 64, "sliding_window": 128},
    ),
    "llama4": Family(qk_norm="none", mlp_bias=False, shared_expert=True, defaults=_LLAMA4),
    "falcon": Family(
        qk_norm="none",
        gated=False,
        norm_bias=True,
        note="the head is counted apart from the embedding, as the published Falcon checkpoints store it",
    ),
    "gemma": Family(mlp_bias=False, qk_norm="none", defaults={"head_dim": 256, "tie_word_embeddings": True}),
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "gemma4": _GEMMA4,
    "minimax": _MINIMAX,
    "minimax_m1": _MINIMAX,
    "minimax_m2": replace(_NO_BIAS, qk_norm="full", defaults={"head_dim": 128}),
    "minimax_m3": replace(_NO_BIAS, qk_norm="head", defaults={"head_dim": 128}),
    "minimax_m3_vl": replace(_NO_BIAS, qk_norm="head", defaults={"head_dim": 128}),
    "mimo_v2_flash": Family(
        output_bias=False, mlp_bias=False, qk_norm="none", sinks="sliding", defaults={"sliding_window": 128}
    ),
    "nemotron_h": Family(
        qkv_bias=False,
        output_bias=False,
        qk_norm="none",
        norms=1,
        gated=False,
        linear="mamba",
        defaults={"head_dim": 128},
    ),
    "nemotron": Family(qk_norm="none", gated=False, norm_bias=True),
    "nemotron-nas": Family(qk_norm="none"),
    "granite": _GRANITE,
    "granitemoe": replace(_GRANITE, mlp_bias=False),
    "granitemoeshared": replace(_GRANITE, mlp_bias=False),
    "granitemoehybrid": replace(_GRANITE, mlp_bias=False),
    "olmo2": _OLMO,
    "olmo3": replace(_OLMO, window_pattern=4, defaults={"sliding_window": 4_096}),
    "olmoe": _OLMO,
    "cohere": _COHERE,
    "cohere2": replace(
        _COHERE, qk_norm="none", window_pattern=4, defaults={**_COHERE.defaults, "sliding_window": 4_096}
    ),
    "ernie4_5": Family(qk_norm="none", defaults={"tie_word_embeddings": True, "head_dim": 128}),
    "ernie4_5_moe": Family(qk_norm="none", router_bias=True, defaults={"tie_word_embeddings": True}),
    "hunyuan_v1_dense": Family(qk_norm="head", mlp_bias=False),
    "hunyuan_v1_moe": Family(qk_norm="head", mlp_bias=False, defaults={"num_shared_expert": 1}),
    "dots1": Family(qk_norm="head", mlp_bias=False),
    "seed_oss": Family(qk_norm="none", defaults={"attention_bias": True, "head_dim": 128, "attention_out_bias": False}),
    "exaone4": replace(_NO_BIAS, qk_norm="head", window_pattern=4, defaults={"sliding_window": 4_096}),
    "arcee": Family(qk_norm="none", gated=False),
    "stablelm": Family(output_bias=False, mlp_bias=False, qk_norm="none", norm_bias=True),
    "gpt_neox": Family(mlp_bias=True, qk_norm="none", gated=False, norm_bias=True, defaults={"attention_bias": True}),
    "jamba": replace(
        _NO_BIAS,
        qk_norm="none",
        linear="mamba1",
        defaults={
            "num_experts": 16,
            "num_experts_per_tok": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 8,
            "attn_layer_offset": 4,
        },
    ),
    "starcoder2": Family(
        qk_norm="none", gated=False, norm_bias=True, defaults={"use_bias": True, "tie_word_embeddings": True}
    ),
}


def family_of(model_type: str) -> Family | None:
    """Traits of a model type, or None when it is unknown and the generic rule applies."""
    return FAMILIES.get(model_type.removesuffix("_text"))
