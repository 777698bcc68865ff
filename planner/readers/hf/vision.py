"""Vision towers that config.json describes fully: Qwen-VL, SigLIP (Gemma 3), Llama 4, Gemma 4 and Pixtral.

Any other tower is named in the assumptions and not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.model.layers import Component, Tensor
from planner.readers.hf.fields import MAX_LAYERS, Fields

Tower = Callable[[Fields, Fields, int], list[Tensor]]

#: Llama4VisionConfig of transformers 5.23.0: what the class builds when the file has no vision_config.
LLAMA4_VISION: Mapping[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 34,
    "num_channels": 3,
    "intermediate_size": 5_632,
    "vision_output_dim": 7_680,
    "image_size": 448,
    "patch_size": 14,
    "projector_input_dim": 4_096,
    "projector_output_dim": 4_096,
}


def vision_tensors(top: Fields, model_type: str, hidden: int) -> tuple[Tensor, ...]:
    """The weights of the vision tower and its projection to `hidden`, as far as they can be derived."""
    section = top.section("vision_config", "visual", "vision_encoder")
    tower = TOWERS.get(model_type)
    if section is None and model_type == "llama4":
        top.notes.assume("vision_config is missing: the tower of the class's default values is counted")
        section = Fields(top.notes, LLAMA4_VISION)
    for other in ("audio_config", "speech_config"):
        if top.has(other):
            top.notes.assume(f"{other}: the audio tower is not counted")
    if section is None:
        return ()
    if tower is None:
        top.notes.assume(f"vision_config: the vision tower of {model_type or 'this model'} is not counted")
        return ()
    return tuple(tower(top, section, hidden))


def _matrix(name: str, rows: int, columns: int, copies: int = 1, bias: bool = True) -> Tensor:
    return Tensor(
        name=f"vision.{name}",
        component=Component.VISION,
        rows=rows,
        columns=columns,
        copies=copies,
        active=copies,
        bias=bias,
    )


def _vector(name: str, size: int, copies: int = 1) -> Tensor:
    return Tensor(
        name=f"vision.{name}", component=Component.VISION, rows=size, copies=copies, active=copies, role="vector"
    )


def _encoder(depth: int, width: int, inner: int) -> list[Tensor]:
    """Plain ViT blocks: two LayerNorms, attention and a two-matrix MLP, all with biases."""
    return [
        _vector("blocks.norms", 4 * width, depth),
        _matrix("blocks.attn.qkv", 3 * width, width, depth),
        _matrix("blocks.attn.proj", width, width, depth),
        _matrix("blocks.mlp.fc1", inner, width, depth),
        _matrix("blocks.mlp.fc2", width, inner, depth),
    ]


def _qwen(top: Fields, section: Fields, hidden: int) -> list[Tensor]:
    """Qwen3-VL and Qwen3.5: learned positions, a merger of spatial_merge_size^2 patches, deepstack mergers."""
    width, inner = section.integer("hidden_size"), section.integer("intermediate_size")
    depth = section.integer("depth", "num_hidden_layers", maximum=MAX_LAYERS)
    patch, frames = (
        section.integer("patch_size", maximum=4_096),
        section.integer("temporal_patch_size", default=2, maximum=4_096),
    )
    merged = width * section.integer("spatial_merge_size", default=2, maximum=64) ** 2
    out = section.integer("out_hidden_size", default=hidden)
    stacks = len(section.items("deepstack_visual_indexes") or ())
    tensors = [
        _matrix("patch_embed.proj", width, section.integer("in_channels", default=3) * frames * patch * patch),
        _vector("pos_embed", section.integer("num_position_embeddings", default=2_304) * width),
        *_encoder(depth, width, inner),
    ]
    for name, norm, copies in (("merger", width, 1), ("deepstack_merger", merged, stacks)):
        if copies:
            tensors.append(_vector(f"{name}.norm", 2 * norm, copies))
            tensors.append(_matrix(f"{name}.linear_fc1", merged, merged, copies))
            tensors.append(_matrix(f"{name}.linear_fc2", out, merged, copies))
    return tensors


def _siglip(top: Fields, section: Fields, hidden: int) -> list[Tensor]:
    """SigLIP with Gemma 3's projection; the pooling head only where vision_use_head keeps it."""
    width, inner = section.integer("hidden_size"), section.integer("intermediate_size")
    depth = section.integer("num_hidden_layers", maximum=MAX_LAYERS)
    patch = section.integer("patch_size", maximum=4_096)
    positions = (section.integer("image_size", maximum=65_536) // patch) ** 2
    tensors = [
        _matrix("patch_embedding", width, section.integer("num_channels", default=3) * patch * patch),
        _vector("position_embedding", positions * width),
        *_encoder(depth, width, inner),
        _vector("post_layernorm", 2 * width),
        _matrix("multi_modal_projector", hidden, width, bias=False),
        _vector("multi_modal_projector.norm", width),
    ]
    if section.flag("vision_use_head", default=True):
        tensors += [
            _vector("head.probe_and_norm", 3 * width),
            _matrix("head.attention.in_proj", 3 * width, width),
            _matrix("head.attention.out_proj", width, width),
            _matrix("head.mlp.fc1", inner, width),
            _matrix("head.mlp.fc2", width, inner),
        ]
    return tensors


def _llama4(top: Fields, section: Fields, hidden: int) -> list[Tensor]:
    """Llama 4: ViT with a class token, pixel shuffle MLP, projection."""
    width, inner = section.integer("hidden_size"), section.integer("intermediate_size")
    depth = section.integer("num_hidden_layers", maximum=MAX_LAYERS)
    patch = section.integer("patch_size", maximum=4_096)
    positions = (section.integer("image_size", maximum=65_536) // patch) ** 2 + 1
    out = section.integer("projector_output_dim", default=4_096)
    return [
        _matrix("patch_embedding", width, section.integer("num_channels", default=3) * patch * patch, bias=False),
        _vector("class_and_position_embedding", (positions + 1) * width),
        _vector("layernorm_pre_post", 4 * width),
        *_encoder(depth, width, inner),
        _matrix("vision_adapter.fc1", section.integer("projector_input_dim", default=4_096), inner, bias=False),
        _matrix("vision_adapter.fc2", out, out, bias=False),
        _matrix("multi_modal_projector", hidden, section.integer("vision_output_dim", default=7_680), bias=False),
    ]


def _gemma4(top: Fields, section: Fields, hidden: int) -> list[Tensor]:
    """Gemma 4: gated MLP, four norms, norms of queries and keys, factored positions."""
    width, inner = section.integer("hidden_size"), section.integer("intermediate_size")
    depth = section.integer("num_hidden_layers", maximum=MAX_LAYERS)
    heads, head_dim = section.integer("num_attention_heads", maximum=65_536), section.integer("head_dim", default=64)
    keys = section.integer("num_key_value_heads", default=heads, maximum=65_536) * head_dim
    patch = section.integer("patch_size", default=16, maximum=4_096)
    return [
        _matrix("patch_embedder.input_proj", width, 3 * patch * patch, bias=False),
        _vector("position_embedding_table", 2 * section.integer("position_embedding_size", default=10_240) * width),
        _vector("layers.norms", 4 * width + 2 * head_dim, depth),
        _matrix("layers.q_proj", heads * head_dim, width, depth, bias=False),
        _matrix("layers.kv_proj", 2 * keys, width, depth, bias=False),
        _matrix("layers.o_proj", width, heads * head_dim, depth, bias=False),
        _matrix("layers.gate_up_proj", 2 * inner, width, depth, bias=False),
        _matrix("layers.down_proj", width, inner, depth, bias=False),
        _matrix("embed_vision", hidden, width, bias=False),
    ]


def _pixtral(top: Fields, section: Fields, hidden: int) -> list[Tensor]:
    """Pixtral with Mistral 3's patch merger and two-matrix projection."""
    width, inner = section.integer("hidden_size"), section.integer("intermediate_size")
    depth = section.integer("num_hidden_layers", maximum=MAX_LAYERS)
    patch = section.integer("patch_size", maximum=4_096)
    merge = top.integer("spatial_merge_size", default=2, maximum=64) ** 2
    bias = top.flag("multimodal_projector_bias")
    return [
        _matrix("patch_conv", width, section.integer("num_channels", default=3) * patch * patch, bias=False),
        _vector("ln_pre", width),
        _vector("layers.norms", 2 * width, depth),
        _matrix("layers.attention.qkvo", 4 * width, width, depth, bias=False),
        _matrix("layers.gate_up_proj", 2 * inner, width, depth, bias=False),
        _matrix("layers.down_proj", width, inner, depth, bias=False),
        _vector("projector.norm", width),
        _matrix("projector.patch_merger", width, width * merge, bias=False),
        _matrix("projector.linear_1", hidden, width, bias=bias),
        _matrix("projector.linear_2", hidden, hidden, bias=bias),
    ]


#: Towers by the `model_type` of the whole model.
TOWERS: Mapping[str, Tower] = {
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "gemma3": _siglip,
    "llama4": _llama4,
    "gemma4": _gemma4,
    "mistral3": _pixtral,
}
