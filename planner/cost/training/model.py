"""What training costs depend on in a model: kinds of layers with their widths, and the embedding and output head."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.model.layers import Attention, AttentionKind, Component, Layer, MlpKind
from planner.model.spec import ModelSpec

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """One kind of decoder layer.

    dense_parameters : weights that every token is multiplied with, norms and router included; routed experts excluded.
    mlp_width : width of the dense or shared MLP, 0 when there is none; expert_width of one routed expert.
    expert_parameters : weights of one routed expert.
    gated : the MLP has a gate beside the up projection (SwiGLU).
    """

    attention: Attention
    dense_parameters: int
    mlp_width: int
    gated: bool
    num_experts: int = 0
    experts_per_token: int = 0
    expert_width: int = 0
    expert_parameters: int = 0

    @property
    def routed_parameters(self) -> int:
        """Weights of all routed experts."""
        return self.num_experts * self.expert_parameters

    @property
    def projected_width(self) -> int:
        """Elements a token has in queries, keys and values together, heads expanded."""
        kind = self.attention
        heads = kind.num_attention_heads if kind.kind is AttentionKind.MLA else kind.num_key_value_heads
        return kind.num_attention_heads * kind.head_dim + heads * (kind.head_dim + kind.v_head_dim)

    @property
    def key_value_width(self) -> int:
        """Elements a token has in keys and values, heads expanded."""
        return self.projected_width - self.attention.num_attention_heads * self.attention.head_dim

    @property
    def attended_width(self) -> int:
        """Elements a token has in the attention's output, before the output projection."""
        return self.attention.num_attention_heads * self.attention.v_head_dim

    @property
    def matrices_of_mlp(self) -> int:
        """3 with a gate, else 2."""
        return 3 if self.gated else 2


@dataclass(frozen=True, kw_only=True)
class TrainingModel:
    """A decoder model as training sees it.

    pattern : kind of each layer in order, indices into `kinds`.
    dropout : residual and attention dropout keep their masks (GPT-3 as Megatron trained it; no current model).
    """

    name: str
    hidden_size: int
    vocab_size: int
    tied: bool
    kinds: tuple[LayerKind, ...]
    pattern: tuple[int, ...]
    dropout: bool = False

    @classmethod
    def dense(
        cls,
        *,
        layers: int,
        hidden: int,
        heads: int,
        ffn: int,
        vocab: int,
        kv_heads: int | None = None,
        gated: bool = False,
        tied: bool = False,
        dropout: bool = False,
        name: str = "dense",
    ) -> TrainingModel:
        """A model of equal layers from its dimensions alone; the parameters count matrices, not norms and biases."""
        if min(layers, hidden, heads, ffn, vocab) <= 0 or hidden % heads:
            raise ValueError("layers, hidden, heads, ffn and vocab must be positive, and heads must divide hidden")
        groups = heads if kv_heads is None else kv_heads
        if groups <= 0 or heads % groups:
            raise ValueError(f"kv_heads {groups} must be positive and divide heads {heads}")
        width = hidden // heads
        attention = Attention(
            kind=AttentionKind.FULL,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=width,
            v_head_dim=width,
        )
        parameters = 2 * hidden * (hidden + groups * width) + (3 if gated else 2) * hidden * ffn
        kind = LayerKind(attention=attention, dense_parameters=parameters, mlp_width=ffn, gated=gated)
        return cls(
            name=name,
            hidden_size=hidden,
            vocab_size=vocab,
            tied=tied,
            kinds=(kind,),
            pattern=(0,) * layers,
            dropout=dropout,
        )

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> TrainingModel:
        """The layers of a ModelSpec; vision towers and multi-token-prediction layers are left out."""
        kinds: list[LayerKind] = []
        index: dict[LayerKind, int] = {}
        pattern = []
        by_layer: dict[int, int] = {}
        for layer in spec.layers:
            if id(layer) not in by_layer:
                kind = _kind(layer)
                if kind not in index:
                    index[kind] = len(kinds)
                    kinds.append(kind)
                by_layer[id(layer)] = index[kind]
            pattern.append(by_layer[id(layer)])
        return cls(
            name=spec.name,
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            tied=spec.tie_word_embeddings,
            kinds=tuple(kinds),
            pattern=tuple(pattern),
        )

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.pattern)

    @property
    def num_experts(self) -> tuple[int, ...]:
        """Distinct expert counts of the layers that have experts."""
        return tuple(sorted({kind.num_experts for kind in self.kinds if kind.num_experts}))

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, and as many again of the head."""
        return self.vocab_size * self.hidden_size

    @cached_property
    def layers_before(self) -> IntArray:
        """Layers of each kind among the first n, [kinds, layers + 1]."""
        each = np.zeros((len(self.kinds), self.num_layers + 1), dtype=np.int64)
        for place, kind in enumerate(self.pattern):
            each[kind, place + 1] = 1
        return np.cumsum(each, axis=1)

    @cached_property
    def total_parameters(self) -> int:
        """All weights, a tied head once."""
        layers = sum(self.kinds[k].dense_parameters + self.kinds[k].routed_parameters for k in self.pattern)
        return layers + self.embedding_parameters * (1 if self.tied else 2)

    def model_flops_per_token(self, sequence_length: npt.ArrayLike) -> FloatArray:
        """FLOP of forward and backward of one token without any recomputation; any shape.

        The convention of MFU in the PaLM paper (arXiv 2204.02311, appendix B): 6 a weight and the whole square of
        attention, though kernels skip the causal half of it; the head counts, the embedding does not.
        """
        length = np.asarray(sequence_length, dtype=np.float64)
        total = np.zeros_like(length) + 6.0 * self.embedding_parameters
        for k, kind in enumerate(self.kinds):
            count = self.pattern.count(k)
            active = kind.dense_parameters + kind.experts_per_token * kind.expert_parameters
            total = total + count * (6.0 * active + 6.0 * kind.attention.prompt_flops(length) / length)
        return np.asarray(total)

    def recomputed_flops_per_token(self, sequence_length: FloatArray, any_: BoolArray, full: BoolArray) -> FloatArray:
        """FLOP of a token's recomputation in the same convention: the attention core, or the whole layers; [n]."""
        total = np.zeros_like(sequence_length)
        for k, kind in enumerate(self.kinds):
            active = kind.dense_parameters + kind.experts_per_token * kind.expert_parameters
            core = 2.0 * kind.attention.prompt_flops(sequence_length) / sequence_length
            total += self.pattern.count(k) * (any_ * core + full * (2.0 * active))
        return total


def _kind(layer: Layer) -> LayerKind:
    routed = [tensor for tensor in layer.tensors if tensor.component is Component.ROUTED_EXPERTS]
    mlp = layer.mlp
    experts = mlp.num_experts if mlp.kind is MlpKind.MOE else 0
    return LayerKind(
        attention=layer.attention,
        dense_parameters=layer.parameters - sum(tensor.parameters for tensor in routed),
        mlp_width=mlp.intermediate_size + mlp.shared_intermediate_size,
        gated=mlp.gated,
        num_experts=experts,
        experts_per_token=mlp.num_experts_per_tok if experts else 0,
        expert_width=mlp.moe_intermediate_size if experts else 0,
        expert_parameters=sum(tensor.parameters for tensor in routed) // experts if experts else 0,
    )
