"""Layers that keep a state instead of a cache: gated delta nets, Kimi delta attention, lightning attention,
Mamba-2 and Mamba-1.

The recurrent state is counted in `mamba_ssm_dtype` / `mamba_ssm_cache_dtype` where the file has it, else in float32
as the kernels keep it; the convolution keeps kernel - 1 inputs of each channel in 16 bits.
"""

from __future__ import annotations

from planner.model.formats import PLAIN_BITS
from planner.model.layers import Attention, AttentionKind, Component, Tensor
from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_EXPERTS, Fields
from planner.readers.hf.sizes import Sizes

PART = Component.LINEAR_ATTENTION
CONV_BYTES = 2


def linear_attention(config: Fields, family: Family, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """The linear attention that the file's keys describe, else the one of the class."""
    if config.has("linear_attn_config") or family.linear == "kimi":
        return _kimi(config, sizes)
    if config.has("linear_num_value_heads") or family.linear == "delta":
        return _delta_net(config, sizes)
    return _lightning(config, sizes)


def _state_bytes(config: Fields) -> int:
    name = config.text("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    if not name:
        config.notes.assume("recurrent state counted in float32: the file names no type for it")
        name = "float32"
    bits = PLAIN_BITS.get(name.removeprefix("torch."))
    if bits is None:
        config.notes.assume(f"recurrent state counted in float32: its type {name[:40]!r} is not known")
        bits = 32
    return bits // 8


def _state(
    config: Fields, kind: AttentionKind, heads: int, key_dim: int, value_dim: int, channels: int, kernel: int
) -> Attention:
    """A state [heads, key_dim, value_dim] and the inputs that a causal convolution of `channels` still needs."""
    conv = channels * (kernel - 1) * CONV_BYTES
    return Attention(
        kind=kind,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=key_dim,
        v_head_dim=value_dim,
        state_bytes=heads * key_dim * value_dim * _state_bytes(config) + conv,
    )


def _matrix(name: str, rows: int, columns: int, bias: bool = False) -> Tensor:
    return Tensor(name=name, component=PART, rows=rows, columns=columns, bias=bias)


def _vector(name: str, size: int) -> Tensor:
    return Tensor(name=name, component=PART, rows=size, role="vector")


def _conv(name: str, channels: int, kernel: int, bias: bool = False) -> Tensor:
    return Tensor(name=name, component=PART, rows=channels, columns=kernel, bias=bias, role="conv")


def _delta_net(config: Fields, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """Gated delta net: grouped keys, one state a value head (Qwen3-Next, Qwen3.5)."""
    key_heads = config.integer("linear_num_key_heads", default=16, maximum=MAX_EXPERTS)
    value_heads = config.integer("linear_num_value_heads", default=32, maximum=MAX_EXPERTS)
    key_dim, value_dim = (config.integer(f"linear_{name}_head_dim", default=128) for name in ("key", "value"))
    kernel = config.integer("linear_conv_kernel_dim", default=4)
    if value_heads % key_heads:
        config.problem("linear_num_value_heads", f"{key_heads} key heads do not divide {value_heads} value heads")
    keys, values = key_heads * key_dim, value_heads * value_dim
    tensors = [
        _matrix("linear_attn.in_proj_qkvz", 2 * keys + 2 * values, sizes.hidden),
        _matrix("linear_attn.in_proj_ba", 2 * value_heads, sizes.hidden),
        _conv("linear_attn.conv1d", 2 * keys + values, kernel),
        _vector("linear_attn.dt_bias", value_heads),
        _vector("linear_attn.A_log", value_heads),
        _vector("linear_attn.norm", value_dim),
        _matrix("linear_attn.out_proj", sizes.hidden, values),
    ]
    return _state(config, AttentionKind.LINEAR, value_heads, key_dim, value_dim, 2 * keys + values, kernel), tensors


def _kimi(config: Fields, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """Kimi delta attention: decay by channel, low-rank gates or a full-rank one."""
    section = config.section("linear_attn_config") or config
    heads = section.integer("num_heads", "linear_num_heads", default=32, maximum=MAX_EXPERTS)
    width = section.integer("head_dim", "linear_head_dim", default=128)
    kernel = section.integer("short_conv_kernel_size", "linear_conv_kernel_dim", default=4)
    inner, hidden = heads * width, sizes.hidden
    tensors = [_matrix(f"self_attn.{name}_proj", inner, hidden) for name in ("q", "k", "v")]
    tensors += [
        _conv("self_attn.conv1d", 3 * inner, kernel),
        _matrix("self_attn.f_a_proj", width, hidden),
        _matrix("self_attn.f_b_proj", inner, width),
        _vector("self_attn.dt_bias", inner),
        _vector("self_attn.A_log", heads),
        _matrix("self_attn.b_proj", heads, hidden),
    ]
    if section.flag("use_full_rank_gate"):
        tensors.append(_matrix("self_attn.g_proj", inner, hidden))
    else:
        tensors += [_matrix("self_attn.g_a_proj", width, hidden), _matrix("self_attn.g_b_proj", inner, width)]
    tensors += [_vector("self_attn.o_norm", width), _matrix("self_attn.o_proj", hidden, inner)]
    return _state(config, AttentionKind.LINEAR, heads, width, width, 3 * inner, kernel), tensors


def _lightning(config: Fields, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """Lightning attention: a fixed decay a head, no convolution (MiniMax-01, M1)."""
    inner = sizes.heads * sizes.head_dim
    tensors = [
        _matrix("self_attn.qkv_proj", 3 * inner, sizes.hidden),
        _matrix("self_attn.output_gate", inner, sizes.hidden),
        _vector("self_attn.norm", inner),
        _matrix("self_attn.out_proj", sizes.hidden, inner),
    ]
    return _state(config, AttentionKind.LINEAR, sizes.heads, sizes.head_dim, sizes.head_dim, 0, 1), tensors


def mamba(config: Fields, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """Mamba-2: heads share one state matrix a group."""
    heads = config.integer("mamba_num_heads", "mamba_n_heads", maximum=MAX_EXPERTS)
    expand = config.integer("expand", "mamba_expand", default=2, maximum=1_024)
    default = max(1, expand * sizes.hidden // heads)
    width = default
    if config.found("mamba_head_dim", "mamba_d_head") and config.values.get("mamba_d_head") != "auto":
        width = config.integer("mamba_head_dim", "mamba_d_head")
    groups = config.integer("n_groups", "mamba_n_groups", default=1, maximum=MAX_EXPERTS)
    state = config.integer("ssm_state_size", "mamba_d_state", "state_size")
    kernel = config.integer("conv_kernel", "mamba_d_conv", default=4)
    inner = heads * width
    channels = inner + 2 * groups * state
    bias = config.flag("use_bias", "mamba_proj_bias")
    tensors = [
        _matrix("mixer.in_proj", inner + channels + heads, sizes.hidden, bias),
        _conv("mixer.conv1d", channels, kernel, config.flag("use_conv_bias", "mamba_conv_bias", default=True)),
        _vector("mixer.dt_bias", heads),
        _vector("mixer.A_log", heads),
        _vector("mixer.D", heads),
        _vector("mixer.norm", inner),
        _matrix("mixer.out_proj", sizes.hidden, inner, bias),
    ]
    return _state(config, AttentionKind.MAMBA, heads, width, state, channels, kernel), tensors


def selective_scan(config: Fields, sizes: Sizes) -> tuple[Attention, list[Tensor]]:
    """Mamba-1 as in Jamba: every channel has its own state, with norms of the step, input and output vectors."""
    inner = config.integer("mamba_expand", default=2, maximum=1_024) * sizes.hidden
    state = config.integer("mamba_d_state", default=16)
    kernel = config.integer("mamba_d_conv", default=4)
    rank = -(-sizes.hidden // 16)
    if config.values.get("mamba_dt_rank") != "auto":
        rank = config.integer("mamba_dt_rank", default=rank)
    bias = config.flag("mamba_proj_bias")
    tensors = [
        _matrix("mamba.in_proj", 2 * inner, sizes.hidden, bias),
        _conv("mamba.conv1d", inner, kernel, config.flag("mamba_conv_bias", default=True)),
        _matrix("mamba.x_proj", rank + 2 * state, inner),
        _matrix("mamba.dt_proj", inner, rank, True),
        _vector("mamba.A_log", inner * state),
        _vector("mamba.D", inner),
        _vector("mamba.norms", rank + 2 * state),
        _matrix("mamba.out_proj", sizes.hidden, inner, bias),
    ]
    return _state(config, AttentionKind.MAMBA, inner, 1, state, inner, kernel), tensors
