"""The sizes that several parts of a model share, read once and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_EXPERTS, Fields
from planner.readers.hf.schedule import num_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Widths in elements; biases as the class and the file say."""

    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool


def read_sizes(config: Fields, family: Family, model_type: str, blocks_only: bool) -> Sizes:
    """Read and check the shared sizes.

    blocks_only : no layer has grouped-query attention (all MLA or linear), so head widths need not divide.
    """
    broken = len(config.notes.findings)
    hidden = config.integer("hidden_size", "n_embd", "d_model")
    heads = config.integer("num_attention_heads", "n_head", "n_heads", maximum=MAX_EXPERTS)
    kv_heads = _kv_heads(config, model_type, heads)
    sound = len(config.notes.findings) == broken
    head_dim = _head_dim(config, hidden, heads, must_divide=sound and not blocks_only)
    if heads % kv_heads and sound and not blocks_only:
        config.problem(
            config.found("num_key_value_heads", "num_kv_heads") or "num_attention_heads",
            f"{kv_heads} key-value heads do not divide {heads} attention heads",
        )
    any_bias = config.flag("attention_bias", "use_bias", "bias", "qkv_bias", "use_qkv_bias")
    output_bias = config.flag("attention_out_bias", "attention_bias", "use_bias", "bias")
    if "no_bias" in config.values:
        output_bias = not config.flag("no_bias")
    return Sizes(
        hidden=hidden,
        vocab=config.integer("vocab_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_intermediate(config, model_type, hidden),
        qkv_bias=any_bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=output_bias if family.output_bias is None else family.output_bias,
        mlp_bias=config.flag("mlp_bias", "use_bias", "bias") if family.mlp_bias is None else family.mlp_bias,
    )


def _kv_heads(config: Fields, model_type: str, heads: int) -> int:
    """Key-value heads; Falcon's legacy keys say one (multi_query) unless the new architecture counts them."""
    if (
        model_type == "falcon"
        and not config.flag("new_decoder_architecture")
        and config.flag("multi_query", default=True)
    ):
        return 1
    return config.integer(
        "num_key_value_heads",
        "num_kv_heads",
        "n_kv_heads",
        "num_key_value_groups",
        default=heads,
        maximum=MAX_EXPERTS,
        rule="" if config.has("block_configs") else "num_attention_heads",
    )


def _head_dim(config: Fields, hidden: int, heads: int, must_divide: bool) -> int:
    names = ("head_dim", "attention_head_dim", "kv_channels")
    if config.has(*names):
        return config.integer(*names)
    if hidden % heads and must_divide:
        config.problem(
            config.found("num_attention_heads", "n_head", "n_heads") or "num_attention_heads",
            f"{heads} heads do not divide hidden_size {hidden}, and head_dim is missing",
        )
    return max(1, hidden // heads)


def _intermediate(config: Fields, model_type: str, hidden: int) -> int:
    """Width of a dense MLP: the key for dense layers where experts have their own, Qwen-1's half, Falcon's 4 x."""
    dense = config.found("dense_intermediate_size", "intermediate_size_mlp")
    if config.found("shared_intermediate_size") and not num_experts(config):
        return config.integer("shared_intermediate_size")
    names = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
    if dense is not None:
        return config.integer(dense)
    if config.has("block_configs"):
        return hidden
    if not config.has(*names) and config.has("moe_intermediate_size"):
        return config.integer("moe_intermediate_size")
    width = config.integer(*names, default=4 * hidden, maximum=2**26, rule="4 x hidden_size")
    return width // 2 if model_type == "qwen" else width
