"""Which decoder layer is what: the many ways config.json says which layers slide, are linear, dense or sparse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from planner.model.layers import AttentionKind, MlpKind
from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_EXPERTS, MAX_LAYERS, MAX_TOKENS, Fields

EXPERT_COUNT = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token", "moe_k", "moe_topk")

#: `layer_types` and `layers_block_type` of the classes, by what they mean here.
ATTENTION_TYPES = {
    "full_attention": AttentionKind.FULL,
    "attention": AttentionKind.FULL,
    "sliding_attention": AttentionKind.SLIDING,
    "chunked_attention": AttentionKind.CHUNKED,
    "linear_attention": AttentionKind.LINEAR,
    "mamba": AttentionKind.MAMBA,
    "minimax_m3_sparse": AttentionKind.FULL,
    "compressed_sparse_attention": AttentionKind.COMPRESSED,
    "heavily_compressed_attention": AttentionKind.COMPRESSED,
}
#: Blocks of Nemotron-H, by letter of `hybrid_override_pattern` and by name: each layer is one of them.
BLOCKS = {
    **dict.fromkeys(("M", "mamba", "linear_attention"), (AttentionKind.MAMBA, MlpKind.NONE)),
    **dict.fromkeys(("*", "attention", "full_attention"), (AttentionKind.FULL, MlpKind.NONE)),
    **dict.fromkeys(("-", "mlp"), (AttentionKind.NONE, MlpKind.DENSE)),
    **dict.fromkeys(("E", "moe"), (AttentionKind.NONE, MlpKind.MOE)),
}
#: Compressed entries of this many tokens are few enough to be read without an indexer (DeepSeek-V4).
HEAVY_RATIO = 128
#: Compression of DeepSeek-V4's layer types where `compress_rates` says nothing.
COMPRESS_RATES = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": HEAVY_RATIO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The kind of one layer, before its sizes; equal slots make equal layers.

    num_key_value_heads, intermediate_size : overrides of a layer searched by NAS; 0 is the model's.
    *_linear : the block is replaced by one square matrix (NAS).
    """

    attention: AttentionKind = AttentionKind.FULL
    mlp: MlpKind = MlpKind.DENSE
    indexer: Literal["none", "own", "shared"] = "none"
    compress_ratio: int = 0
    stores_kv: bool = True
    num_key_value_heads: int = 0
    intermediate_size: int = 0
    attention_linear: bool = False
    mlp_linear: bool = False


def slots(config: Fields, family: Family, model_type: str) -> tuple[Slot, ...]:
    """The kind of each decoder layer."""
    blocks = _blocks(config, family)
    if blocks is not None:
        return blocks
    count = config.integer("num_hidden_layers", "n_layer", "num_layers", maximum=MAX_LAYERS)
    if config.has("block_configs"):
        return _searched(config, count)
    kinds = _attention_kinds(config, family, count)
    if family.last_is_full:
        kinds[-1] = AttentionKind.FULL
    made = [Slot(attention=kind, mlp=mlp) for kind, mlp in zip(kinds, _mlp_kinds(config, count), strict=True)]
    if config.has("kv_lora_rank"):
        made = [replace(s, attention=AttentionKind.MLA) if s.attention is AttentionKind.FULL else s for s in made]
    made = _with_compression(config, model_type, made)
    made = _with_indexers(config, made)
    shared = config.integer("num_kv_shared_layers", default=0, minimum=0, maximum=MAX_LAYERS)
    return tuple(replace(s, stores_kv=i < count - shared) for i, s in enumerate(made))


def _blocks(config: Fields, family: Family) -> tuple[Slot, ...] | None:
    """Nemotron-H: each layer is one block, attention, Mamba, MLP or experts."""
    name = config.found("hybrid_override_pattern", "layers_block_type") or "layer_types"
    if name == "layer_types" and not (family.linear == "mamba" and family.norms == 1):
        return None
    names = config.values.get(name)
    if isinstance(names, str):
        names = [letter for letter in names if letter != "|"]
    if not isinstance(names, list) or not 0 < len(names) <= MAX_LAYERS:
        config.problem(name, f"needs one block a layer, at most {MAX_LAYERS}")
        return (Slot(),)
    made = []
    for index, block in enumerate(names):
        if not isinstance(block, str) or block not in BLOCKS:
            config.problem(name, f"block {index} is {str(block)[:20]!r}; known are {', '.join(BLOCKS)}")
            return (Slot(),)
        attention, mlp = BLOCKS[block]
        made.append(Slot(attention=attention, mlp=mlp))
    count = config.raw("num_hidden_layers")
    if count is not None and count != len(made):
        config.notes.assume(f"num_hidden_layers is {str(count)[:20]}, but {name} has {len(made)} layers, which counts")
    return tuple(made)


def _searched(config: Fields, count: int) -> tuple[Slot, ...]:
    """Nemotron-NAS: `block_configs`, one searched attention and FFN a layer.

    FFN width = 2/3 x ffn_mult x hidden size, rounded up to 256 (DeciLM's rule).
    """
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    made = []
    for index, block in enumerate(config.items("block_configs", length=count) or ()):
        here = (*config.loc, "block_configs", index)
        if not isinstance(block, dict):
            config.notes.problem(here, "needs an object with attention and ffn")
            continue
        parts = Fields(config.notes, block, here)
        attention, ffn = parts.section("attention"), parts.section("ffn")
        slot = Slot()
        if attention is not None and attention.flag("no_op"):
            slot = replace(slot, attention=AttentionKind.NONE)
        elif attention is not None and attention.flag("replace_with_linear"):
            slot = replace(slot, attention=AttentionKind.NONE, attention_linear=True)
        elif attention is not None:
            group = attention.integer("n_heads_in_group", maximum=MAX_EXPERTS)
            if heads % group:
                attention.problem("n_heads_in_group", f"{group} does not divide {heads} heads")
            slot = replace(slot, num_key_value_heads=max(1, heads // group))
        if ffn is not None and ffn.flag("no_op"):
            slot = replace(slot, mlp=MlpKind.NONE)
        elif ffn is not None and ffn.flag("replace_with_linear"):
            slot = replace(slot, mlp=MlpKind.NONE, mlp_linear=True)
        elif ffn is not None:
            width = int(2 * ffn.number("ffn_mult", maximum=1e3) * hidden / 3)
            slot = replace(slot, intermediate_size=max(256, -(-width // 256) * 256))
        made.append(slot)
    return tuple(made) or (Slot(),)


def _attention_kinds(config: Fields, family: Family, count: int) -> list[AttentionKind]:
    """First rule that has its keys; the explicit lists come before the intervals, these before the windows."""
    linear = AttentionKind.MAMBA if family.linear in ("mamba", "mamba1") else AttentionKind.LINEAR
    types = config.strings("layer_types", length=count)
    if types is not None:
        return [_named(config, name, linear) for name in types]
    flags = config.integers("attn_type_list", length=count, maximum=1)
    if flags is not None:
        return [AttentionKind.FULL if flag else linear for flag in flags]
    flags = config.integers("hybrid_layer_pattern", length=count, maximum=1)
    if flags is not None:
        return [AttentionKind.SLIDING if flag else AttentionKind.FULL for flag in flags]
    section = config.section("linear_attn_config")
    if section is not None:
        full = set(section.integers("full_attn_layers") or ())
        return [AttentionKind.FULL if index + 1 in full else linear for index in range(count)]
    full_layers = config.integers("attn_layer_indices")
    if full_layers is not None:
        return [AttentionKind.FULL if index in full_layers else AttentionKind.MAMBA for index in range(count)]
    if config.has("attn_layer_period"):
        period, offset = config.integer("attn_layer_period"), config.integer("attn_layer_offset", default=0, minimum=0)
        return [AttentionKind.FULL if i % period == offset else AttentionKind.MAMBA for i in range(count)]
    if config.has("full_attention_interval"):
        interval = config.integer("full_attention_interval")
        return [AttentionKind.LINEAR if (i + 1) % interval else AttentionKind.FULL for i in range(count)]
    if family.linear == "lightning":
        config.notes.assume("attn_type_list is missing: full and linear attention in turn (the class's rule)")
        return [linear if index % 2 else AttentionKind.FULL for index in range(count)]
    return _windows(config, family, count)


def _named(config: Fields, name: str, linear: AttentionKind) -> AttentionKind:
    kind = ATTENTION_TYPES.get(name)
    if kind is None:
        config.notes.assume(f"layer type {name[:40]!r} is not known: counted as full attention")
        return AttentionKind.FULL
    return linear if kind is AttentionKind.LINEAR else kind


def _windows(config: Fields, family: Family, count: int) -> list[AttentionKind]:
    """Chunks (Llama 4: every n-th layer is global), window patterns, or a window in every layer."""
    if config.has("attention_chunk_size") and not config.has("sliding_window"):
        rotary = config.integers("no_rope_layers", length=count, maximum=1)
        interval = config.integer("no_rope_layer_interval", default=4)
        local = rotary or [int((index + 1) % interval != 0) for index in range(count)]
        return [AttentionKind.CHUNKED if flag else AttentionKind.FULL for flag in local]
    null = "sliding_window" in config.values and config.values["sliding_window"] is None
    gate = family.window_needs or "use_sliding_window"
    gated = bool(family.window_needs) or config.has(gate)
    if null or not config.has("sliding_window") or (gated and not config.flag(gate)):
        return [AttentionKind.FULL] * count
    pattern = config.raw("sliding_window_pattern")
    if isinstance(pattern, str):
        if not 0 < len(pattern) <= MAX_LAYERS or set(pattern) - {"L", "G"}:
            config.problem("sliding_window_pattern", "needs a number or a string of L (local) and G (global)")
            return [AttentionKind.FULL] * count
        return [AttentionKind.SLIDING if pattern[i % len(pattern)] == "L" else AttentionKind.FULL for i in range(count)]
    every = config.integer("sliding_window_pattern", default=family.window_pattern, minimum=0)
    if every:
        return [AttentionKind.SLIDING if (i + 1) % every else AttentionKind.FULL for i in range(count)]
    first = config.integer("max_window_layers", default=0, minimum=0) if gated else 0
    return [AttentionKind.SLIDING if index >= first else AttentionKind.FULL for index in range(count)]


def _with_compression(config: Fields, model_type: str, made: Sequence[Slot]) -> list[Slot]:
    """DeepSeek-V4: a compressed branch in each layer beside its window; ratio 0 is the window alone."""
    ratios = config.integers("compress_ratios", length=len(made), maximum=MAX_TOKENS)
    if ratios is None:
        if model_type.removesuffix("_text") != "deepseek_v4":
            return list(made)
        types = config.strings("layer_types", length=len(made))
        if types is None:
            light, heavy = "compressed_sparse_attention", "heavily_compressed_attention"
            types = tuple(light if index > 1 and index % 2 else heavy for index in range(len(made)))
            config.notes.assume(
                "compress_ratios is missing: two layers of 128, then 128 and 4 in turn (the class's rule)"
            )
        rates = config.section("compress_rates") or Fields(config.notes, {})
        ratios = tuple(
            rates.integer(name, default=COMPRESS_RATES.get(name, HEAVY_RATIO), minimum=0, maximum=MAX_TOKENS)
            for name in types
        )
    return [
        replace(
            slot,
            attention=AttentionKind.COMPRESSED,
            compress_ratio=ratio,
            indexer="own" if 0 < ratio < HEAVY_RATIO else "none",
        )
        for slot, ratio in zip(made, ratios, strict=True)
    ]


def _with_indexers(config: Fields, made: list[Slot]) -> list[Slot]:
    """Sparse attention: which layers have an indexer, and which reuse the selection of an earlier one."""
    sparse = config.section("sparse_attention_config")
    if sparse is not None and sparse.flag("use_sparse_attention", default=True):
        flags = sparse.integers("sparse_attention_freq", length=len(made), maximum=1) or (0,) * len(made)
        return [replace(slot, indexer="own" if flag else "none") for slot, flag in zip(made, flags, strict=True)]
    if not config.has("index_head_dim") or any(slot.attention is AttentionKind.COMPRESSED for slot in made):
        return made
    types = config.strings("indexer_types", length=len(made)) or ("full",) * len(made)
    return [
        replace(slot, indexer="shared" if name == "shared" else "own") if slot.attention is AttentionKind.MLA else slot
        for slot, name in zip(made, types, strict=True)
    ]


def _mlp_kinds(config: Fields, count: int) -> list[MlpKind]:
    """Which layers have experts."""
    if not num_experts(config):
        return [MlpKind.DENSE] * count
    sparse = _sparse_rule(config, count)
    return [MlpKind.MOE if sparse(index) else MlpKind.DENSE for index in range(count)]


def num_experts(config: Fields) -> int:
    """Routed experts of a layer; 0 for a dense model."""
    if config.values.get("enable_moe_block") is False:
        return 0
    return config.integer(*EXPERT_COUNT, default=0, minimum=0, maximum=MAX_EXPERTS)


def _sparse_rule(config: Fields, count: int) -> Callable[[int], bool]:
    """The rule that says whether layer i has experts."""
    types = config.strings("mlp_layer_types", length=count)
    if types is not None:
        return lambda index: types[index] != "dense"
    chosen = config.integers("moe_layers")
    if chosen is not None:
        return set(chosen).__contains__
    if isinstance(config.raw("moe_layer_freq"), list):
        flags = config.integers("moe_layer_freq", length=count, maximum=1) or (1,) * count
        return lambda index: bool(flags[index])
    if config.has("interleave_moe_layer_step"):
        step = config.integer("interleave_moe_layer_step", default=1)
        return lambda index: (index + 1) % step == 0
    if config.has("expert_layer_period"):
        period, offset = (
            config.integer("expert_layer_period"),
            config.integer("expert_layer_offset", default=0, minimum=0),
        )
        return lambda index: index % period == offset
    if config.has("moe_layer_start_index"):
        first = config.integer("moe_layer_start_index", default=0, minimum=0)
        last = config.integer("moe_layer_end_index", default=count - 1, minimum=-1) % count
        interval = config.integer("moe_layer_interval", default=1)
        return lambda index: first <= index <= last and (index + 1) % interval == 0
    first = config.integer("first_k_dense_replace", default=0, minimum=0)
    frequency = config.integer("moe_layer_freq", "decoder_sparse_step", default=1)
    dense = set(config.integers("mlp_only_layers") or ())
    offset = 1 if config.has("decoder_sparse_step") else 0
    return lambda index: index >= first and (index + offset) % frequency == 0 and index not in dense
