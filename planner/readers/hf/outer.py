"""The layers put together, and what lies outside of them: embedding, head, per-layer embeddings, MTP layers."""

from __future__ import annotations

from planner.model.layers import AttentionKind, Component, Layer, MlpKind, Tensor
from planner.readers.hf.attention import attention_block, linear, vector
from planner.readers.hf.families import Family
from planner.readers.hf.fields import MAX_LAYERS, Fields
from planner.readers.hf.mlp import mlp_block
from planner.readers.hf.schedule import Slot
from planner.readers.hf.sizes import Sizes

MTP_COUNT = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def build_layer(config: Fields, family: Family, sizes: Sizes, slot: Slot, model_type: str) -> Layer:
    """One decoder layer: attention, MLP, norms, and what some classes add to the residual stream."""
    attention, tensors = attention_block(config, family, sizes, slot)
    mlp, more = mlp_block(config, family, sizes, slot)
    norms = _norms(config, family, slot, model_type) * sizes.hidden
    if norms:
        more.append(vector("norms", Component.NORM, norms, bias=family.norm_bias))
    return Layer(attention=attention, mlp=mlp, tensors=(*tensors, *more, *_residual(config, sizes)))


def _norms(config: Fields, family: Family, slot: Slot, model_type: str) -> int:
    """Norms of a layer; a block that NAS left out has none, and Falcon's parallel blocks share one."""
    if model_type == "falcon":
        new = config.flag("new_decoder_architecture")
        shared = config.flag("parallel_attn", default=True) and not new
        return 1 if shared or config.raw("num_ln_in_parallel_attn") == 1 else 2
    if config.has("block_configs"):
        has_attention = slot.attention is not AttentionKind.NONE or slot.attention_linear
        return int(has_attention) + int(slot.mlp is not MlpKind.NONE or slot.mlp_linear)
    return family.norms


def _residual(config: Fields, sizes: Sizes) -> list[Tensor]:
    """Hyper-connections (DeepSeek-V4: two a layer) and per-layer inputs (Gemma 3n and 4)."""
    tensors = []
    if config.has("hc_mult"):
        streams = config.integer("hc_mult", maximum=1_024)
        weights = (2 + streams) * streams
        for name in ("attn_hc", "ffn_hc"):
            tensors.append(linear(f"{name}.fn", Component.RESIDUAL, weights, streams * sizes.hidden))
            tensors.append(vector(f"{name}.base", Component.RESIDUAL, weights + 3))
    width = config.integer("hidden_size_per_layer_input", default=0, minimum=0)
    if width:
        tensors += [
            linear("per_layer_input_gate", Component.RESIDUAL, width, sizes.hidden),
            linear("per_layer_projection", Component.RESIDUAL, sizes.hidden, width),
            vector("post_per_layer_input_norm", Component.NORM, sizes.hidden),
        ]
    return tensors


def outer_tensors(config: Fields, family: Family, sizes: Sizes, tied: bool, num_layers: int) -> tuple[Tensor, ...]:
    """Embedding, final norm and output head; a tied head is multiplied with, but stored once."""
    embedding, hidden = Component.EMBEDDING, sizes.hidden
    tensors = [
        Tensor(name="model.embed_tokens", component=embedding, rows=sizes.vocab, columns=hidden, role="embedding"),
        vector("model.norm", Component.NORM, hidden, bias=family.norm_bias),
        Tensor(
            name="lm_head",
            component=Component.HEAD,
            rows=sizes.vocab,
            columns=hidden,
            bias=config.flag("lm_head_bias"),
            stored=not tied,
        ),
    ]
    if config.has("hc_mult"):
        streams = config.integer("hc_mult", maximum=1_024)
        tensors.append(linear("model.hc_head.fn", Component.RESIDUAL, streams, streams * hidden))
        tensors.append(vector("model.hc_head.base", Component.RESIDUAL, streams + 1))
    width = config.integer("hidden_size_per_layer_input", default=0, minimum=0)
    if width:
        vocab = config.integer("vocab_size_per_layer_input", default=sizes.vocab)
        tensors += [
            Tensor(
                name="model.embed_tokens_per_layer",
                component=embedding,
                rows=vocab,
                columns=num_layers * width,
                role="embedding",
            ),
            linear("model.per_layer_model_projection", Component.RESIDUAL, num_layers * width, hidden),
            vector("model.per_layer_projection_norm", Component.NORM, width),
        ]
    return tuple(tensors)


def mtp_layers(config: Fields, sizes: Sizes, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Multi-token prediction: each is a decoder layer like the last one, fed by a projection of two hidden states.

    The embedding and the head are the model's own (checkpoints may store them twice).
    """
    count = config.integer(*MTP_COUNT, default=0, minimum=0, maximum=MAX_LAYERS)
    if not count or not layers:
        return ()
    hidden, last = sizes.hidden, layers[-1]
    tensors = [*last.tensors]
    if last.attention.kind is AttentionKind.NONE or last.mlp.kind is MlpKind.NONE:
        config.notes.assume("MTP layers are counted like the last decoder layer, which is one block only")
    tensors += [
        linear("eh_proj", Component.MTP, hidden, 2 * hidden),
        vector("mtp_norms", Component.NORM, 3 * hidden),
    ]
    config.notes.assume(f"{count} MTP layer(s) counted apart, each like the last decoder layer plus its projection")
    return (Layer(attention=last.attention, mlp=last.mlp, tensors=tuple(tensors)),) * count
