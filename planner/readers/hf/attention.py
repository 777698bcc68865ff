"""Weights, cache and state of one layer's attention, by kind.

Sources: the attention modules of transformers 5.23.0; MLA after DeepSeek-V2 (arXiv 2405.04434), gated delta nets after
Qwen3-Next, KDA after Kimi Linear (arXiv 2510.26692), Mamba-2 after Nemotron-H, lightning attention after MiniMax-01.
"""

from __future__ import annotations

from dataclasses import replace

from planner.model.layers import Attention, AttentionKind, Component, Tensor
from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_EXPERTS, MAX_TOKENS, Fields
from planner.readers.hf.linear import linear_attention, mamba, selective_scan
from planner.readers.hf.schedule import Slot
from planner.readers.hf.sizes import Sizes

Block = tuple[Attention, list[Tensor]]


def linear(name: str, component: Component, rows: int, columns: int, bias: bool = False) -> Tensor:
    """One matrix [rows, columns] that every token is multiplied with."""
    return Tensor(name=name, component=component, rows=rows, columns=columns, bias=bias)


def vector(name: str, component: Component, size: int, bias: bool = False) -> Tensor:
    """A norm, a gain or a bias of `size` elements."""
    return Tensor(name=name, component=component, rows=size, bias=bias, role="vector")


def attention_block(config: Fields, family: Family, sizes: Sizes, slot: Slot) -> Block:
    """What the attention of one layer is made of and keeps."""
    if slot.attention is AttentionKind.NONE:
        square = [linear("self_attn.linear", Component.ATTENTION, sizes.hidden, sizes.hidden)]
        return Attention(kind=AttentionKind.NONE), square if slot.attention_linear else []
    if slot.attention is AttentionKind.MAMBA:
        return selective_scan(config, sizes) if family.linear == "mamba1" else mamba(config, sizes)
    if slot.attention is AttentionKind.LINEAR:
        return linear_attention(config, family, sizes)
    if slot.attention is AttentionKind.COMPRESSED:
        return _compressed(config, sizes, slot)
    if slot.attention is AttentionKind.MLA:
        return _latent(config, sizes, slot)
    return _grouped(config, family, sizes, slot)


def _window(config: Fields, kind: AttentionKind) -> int:
    if kind is AttentionKind.CHUNKED:
        return config.integer("attention_chunk_size", maximum=MAX_TOKENS)
    return config.integer("sliding_window", "sliding_window_size", maximum=MAX_TOKENS)


def _grouped(config: Fields, family: Family, sizes: Sizes, slot: Slot) -> Block:
    """Multi-head, grouped-query and multi-query attention, with or without a window."""
    local = slot.attention in (AttentionKind.SLIDING, AttentionKind.CHUNKED)
    heads, kv_heads, head_dim = sizes.heads, slot.num_key_value_heads or sizes.kv_heads, sizes.head_dim
    value_dim = config.integer("v_head_dim", default=head_dim)
    if local:
        heads = config.integer("swa_num_attention_heads", default=heads, maximum=MAX_EXPERTS)
        kv_heads = config.integer("swa_num_key_value_heads", default=kv_heads, maximum=MAX_EXPERTS)
        head_dim = config.integer("swa_head_dim", default=head_dim)
        value_dim = config.integer("swa_v_head_dim", default=value_dim)
    elif config.has("global_head_dim"):
        head_dim = value_dim = config.integer("global_head_dim")
        if config.flag("attention_k_eq_v"):
            kv_heads = config.integer("num_global_key_value_heads", default=kv_heads, maximum=MAX_EXPERTS)
    if heads % kv_heads:
        config.problem("num_attention_heads", f"{kv_heads} key-value heads do not divide {heads} heads")
    window = _window(config, slot.attention) if local else 0
    elements = kv_heads * (head_dim + value_dim)
    attention = Attention(
        kind=slot.attention,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=value_dim,
        window=window,
        kv_elements=elements if slot.stores_kv and not local else 0,
        window_elements=elements if slot.stores_kv and local else 0,
        entry_elements=elements,
    )
    tensors = _projections(config, family, sizes, slot, attention)
    if slot.indexer == "own":
        return _with_block_indexer(config, sizes, attention, tensors)
    return attention, tensors


def _projections(config: Fields, family: Family, sizes: Sizes, slot: Slot, made: Attention) -> list[Tensor]:
    part, heads, kv_heads = Component.ATTENTION, made.num_attention_heads, made.num_key_value_heads
    gate = 2 if family.output_gate or config.flag("attn_output_gate", "attention_output_gate") else 1
    tensors = [linear("self_attn.q_proj", part, heads * made.head_dim * gate, sizes.hidden, sizes.qkv_bias)]
    if slot.stores_kv:
        tensors.append(linear("self_attn.k_proj", part, kv_heads * made.head_dim, sizes.hidden, sizes.qkv_bias))
    if slot.stores_kv and not (config.flag("attention_k_eq_v") and slot.attention is AttentionKind.FULL):
        tensors.append(linear("self_attn.v_proj", part, kv_heads * made.v_head_dim, sizes.hidden, sizes.qkv_bias))
    tensors.append(linear("self_attn.o_proj", part, sizes.hidden, heads * made.v_head_dim, sizes.output_bias))
    norm = _qk_norm(config, family)
    if norm != "none":
        each = norm == "full"
        tensors.append(vector("self_attn.q_norm", Component.NORM, made.head_dim * (heads if each else 1)))
        if slot.stores_kv:
            tensors.append(vector("self_attn.k_norm", Component.NORM, made.head_dim * (kv_heads if each else 1)))
    if _has_sinks(config, family, slot):
        tensors.append(vector("self_attn.sinks", part, heads))
    return tensors


def _qk_norm(config: Fields, family: Family) -> str:
    if not family.qk_norm.startswith("field"):
        return family.qk_norm
    if not config.flag("use_qk_norm", "qk_norm", "qk_layernorm"):
        return "none"
    over_all = family.qk_norm == "field_full" or config.text("qk_norm_type") in ("per_layer", "full")
    return "full" if over_all else "head"


def _has_sinks(config: Fields, family: Family, slot: Slot) -> bool:
    if slot.attention is AttentionKind.SLIDING:
        return config.flag("add_swa_attention_sink_bias", default=family.sinks != "none")
    return config.flag("add_full_attention_sink_bias", default=family.sinks == "all")


def _with_block_indexer(config: Fields, sizes: Sizes, attention: Attention, tensors: list[Tensor]) -> Block:
    """MiniMax-M3: small heads score blocks of keys; the attention proper reads the best blocks."""
    sparse = config.section("sparse_attention_config") or config
    heads = sparse.integer("sparse_num_index_heads", "index_n_heads", maximum=MAX_EXPERTS)
    width = sparse.integer("sparse_index_dim", "index_head_dim")
    block = sparse.integer("sparse_block_size", "index_block_size", default=128, maximum=MAX_TOKENS)
    kept = sparse.integer("sparse_topk_blocks", "index_topk_blocks", maximum=MAX_TOKENS)
    kept += sparse.integer("sparse_local_block", "index_local_blocks", default=0, minimum=0, maximum=MAX_TOKENS)
    made = [
        linear("self_attn.indexer.q_proj", Component.INDEXER, heads * width, sizes.hidden),
        linear("self_attn.indexer.k_proj", Component.INDEXER, width, sizes.hidden),
        vector("self_attn.indexer.q_norm", Component.NORM, width),
        vector("self_attn.indexer.k_norm", Component.NORM, width),
    ]
    indexed = replace(
        attention, index_n_heads=heads, index_head_dim=width, index_topk=kept * block, index_elements=width
    )
    return indexed, tensors + made


def _latent(config: Fields, sizes: Sizes, slot: Slot) -> Block:
    """Multi-head latent attention: one latent and one rotary key a token, shared by all heads."""
    rank = config.integer("kv_lora_rank")
    rope = config.integer("qk_rope_head_dim", default=64)
    nope = config.integer("qk_nope_head_dim", default=128)
    value_dim = config.integer("v_head_dim", default=128)
    query_rank = config.integer("q_lora_rank", default=0)
    part, heads, bias = Component.ATTENTION, sizes.heads, sizes.qkv_bias
    queries = heads * (nope + rope)
    if query_rank:
        tensors = [
            linear("self_attn.q_a_proj", part, query_rank, sizes.hidden, bias),
            vector("self_attn.q_a_layernorm", Component.NORM, query_rank),
            linear("self_attn.q_b_proj", part, queries, query_rank),
        ]
    else:
        tensors = [linear("self_attn.q_proj", part, queries, sizes.hidden)]
    tensors += [
        linear("self_attn.kv_a_proj_with_mqa", part, rank + rope, sizes.hidden, bias),
        vector("self_attn.kv_a_layernorm", Component.NORM, rank),
        linear("self_attn.kv_b_proj", part, heads * (nope + value_dim), rank),
        linear("self_attn.o_proj", part, sizes.hidden, heads * value_dim, sizes.output_bias),
    ]
    if config.flag("mla_use_output_gate"):
        tensors.append(linear("self_attn.g_proj", part, heads * value_dim, sizes.hidden))
    attention = Attention(
        kind=AttentionKind.MLA,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=nope + rope,
        v_head_dim=value_dim,
        kv_lora_rank=rank,
        q_lora_rank=query_rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        kv_elements=rank + rope,
        entry_elements=rank + rope,
    )
    if slot.indexer == "none":
        return attention, tensors
    topk = config.integer("index_topk", maximum=MAX_TOKENS)
    if slot.indexer == "shared":
        return replace(attention, index_topk=topk), tensors
    index_heads, width = config.integer("index_n_heads", maximum=MAX_EXPERTS), config.integer("index_head_dim")
    tensors += [
        linear("self_attn.indexer.wq_b", Component.INDEXER, index_heads * width, query_rank or sizes.hidden),
        linear("self_attn.indexer.wk", Component.INDEXER, width, sizes.hidden),
        vector("self_attn.indexer.k_norm", Component.NORM, width, bias=True),
        linear("self_attn.indexer.weights_proj", Component.INDEXER, index_heads, sizes.hidden),
    ]
    indexed = replace(attention, index_topk=topk, index_n_heads=index_heads, index_head_dim=width, index_elements=width)
    return indexed, tensors


def _compressed(config: Fields, sizes: Sizes, slot: Slot) -> Block:
    """DeepSeek-V4: one key that is also the value, a window, and a compressed branch with or without an indexer."""
    hidden, heads, width = sizes.hidden, sizes.heads, sizes.head_dim
    query_rank, groups = config.integer("q_lora_rank"), config.integer("o_groups", maximum=MAX_EXPERTS)
    out_rank = config.integer("o_lora_rank")
    if heads * width % groups:
        config.problem("o_groups", f"{groups} groups do not divide {heads} heads of {width}")
    part = Component.ATTENTION
    tensors = [
        linear("self_attn.q_a_proj", part, query_rank, hidden),
        vector("self_attn.q_a_norm", Component.NORM, query_rank),
        linear("self_attn.q_b_proj", part, heads * width, query_rank),
        linear("self_attn.kv_proj", part, width, hidden),
        vector("self_attn.kv_norm", Component.NORM, width),
        linear("self_attn.o_a_proj", part, groups * out_rank, heads * width // groups),
        linear("self_attn.o_b_proj", part, hidden, groups * out_rank),
        vector("self_attn.sinks", part, heads),
    ]
    attention = Attention(
        kind=AttentionKind.COMPRESSED,
        num_attention_heads=heads,
        num_key_value_heads=1,
        head_dim=width,
        v_head_dim=width,
        q_lora_rank=query_rank,
        window=_window(config, AttentionKind.SLIDING),
        window_elements=width,
        entry_elements=width,
    )
    ratio = slot.compress_ratio
    if not ratio:
        return attention, tensors
    series = 2 if slot.indexer == "own" else 1
    tensors += _compressor("self_attn.compressor", part, series, width, hidden, ratio)
    attention = replace(attention, kv_elements=width / ratio, compress_ratio=ratio)
    if slot.indexer != "own":
        return attention, tensors
    index_heads, index_width = config.integer("index_n_heads", maximum=MAX_EXPERTS), config.integer("index_head_dim")
    name = "self_attn.compressor.indexer"
    tensors += _compressor(name, Component.INDEXER, series, index_width, hidden, ratio)
    tensors += [
        linear(f"{name}.q_b_proj", Component.INDEXER, index_heads * index_width, query_rank),
        linear(f"{name}.weights_proj", Component.INDEXER, index_heads, hidden),
    ]
    indexed = replace(
        attention,
        index_topk=config.integer("index_topk", maximum=MAX_TOKENS),
        index_n_heads=index_heads,
        index_head_dim=index_width,
        index_elements=index_width / ratio,
    )
    return indexed, tensors


def _compressor(name: str, part: Component, series: int, width: int, hidden: int, ratio: int) -> list[Tensor]:
    return [
        linear(f"{name}.kv_proj", part, series * width, hidden),
        linear(f"{name}.gate_proj", part, series * width, hidden),
        vector(f"{name}.position_bias", part, ratio * series * width),
        vector(f"{name}.kv_norm", Component.NORM, width),
    ]
