"""What a decoder layer is made of: weights as matrices, an attention kind with its cache, and an MLP kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from planner.model.formats import BF16, WeightFormat

FloatArray = npt.NDArray[np.float64]


class Component(StrEnum):
    """What a weight belongs to; parameters and bytes are reported by these."""

    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    ATTENTION = "attention"
    INDEXER = "indexer"
    LINEAR_ATTENTION = "linear_attention"
    DENSE_MLP = "dense_mlp"
    ROUTER = "router"
    ROUTED_EXPERTS = "routed_experts"
    SHARED_EXPERTS = "shared_experts"
    RESIDUAL = "residual"
    VISION = "vision"
    MTP = "mtp"


class AttentionKind(StrEnum):
    """How a layer mixes tokens, and so what it keeps of them."""

    FULL = "full"
    SLIDING = "sliding_window"
    CHUNKED = "chunked"
    MLA = "mla"
    LINEAR = "linear"
    MAMBA = "mamba"
    COMPRESSED = "compressed"
    NONE = "none"


class MlpKind(StrEnum):
    """What follows the attention."""

    DENSE = "dense"
    MOE = "moe"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """`copies` equal weights [rows, columns] = [output features, input features], with or without a bias [rows].

    active : how many of the copies one token runs through (the top-k of the experts).
    role : linear is multiplied and can be quantised; conv is multiplied; embedding is looked up; vector is neither.
    keeps_format : the checkpoint stores it in a type of its own, whatever the others are converted to.
    stored : False for a weight that another one already holds (a tied head): it costs time, but no memory.
    """

    name: str
    component: Component
    rows: int
    columns: int = 1
    copies: int = 1
    active: int = 1
    bias: bool = False
    role: Literal["linear", "conv", "embedding", "vector"] = "linear"
    stored: bool = True
    format: WeightFormat = BF16
    bias_format: WeightFormat = BF16
    keeps_format: bool = False

    @property
    def parameters(self) -> int:
        """Number of stored parameters."""
        return self.copies * self._one if self.stored else 0

    @property
    def active_parameters(self) -> int:
        """Stored parameters that one token uses."""
        return self.active * self._one if self.stored else 0

    @property
    def _one(self) -> int:
        return self.rows * (self.columns + self.bias)

    @property
    def bytes(self) -> int:
        """Stored bytes, scales included."""
        if not self.stored:
            return 0
        bias = self.bias_format.matrix_bytes(self.rows, 1) if self.bias else 0
        return self.copies * (self.format.matrix_bytes(self.rows, self.columns) + bias)

    @property
    def flops_per_token(self) -> int:
        """2 x rows x columns for each copy that a token runs through."""
        return 2 * self.rows * self.columns * self.active if self.role in ("linear", "conv") else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One layer's attention, and what it keeps for each token and each sequence.

    head_dim : width of a query and key head; v_head_dim of a value head.
    kv_elements : cache elements that every token adds for good (per layer, not divided by any parallelism).
    window_elements, window : cache elements of a token while it is among the last `window` tokens.
    entry_elements : elements of one cache entry that attention reads, also of an entry that another layer stores.
    index_elements : further elements a token adds to the cache of a sparse-attention indexer.
    state_bytes : bytes of recurrent and convolution state of a sequence, whatever its length.
    index_topk : tokens that the indexer lets through to the attention proper; 0 when there is no indexer.
    index_n_heads, index_head_dim : the indexer's own; 0 in a layer that reuses the selection of another one.
    compress_ratio : tokens that one cache entry stands for (DeepSeek-V4); 1 everywhere else.
    """

    kind: AttentionKind
    num_attention_heads: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    v_head_dim: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    window: int = 0
    kv_elements: float = 0.0
    window_elements: float = 0.0
    entry_elements: int = 0
    index_elements: float = 0.0
    state_bytes: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    compress_ratio: int = 1

    def cached_elements(self, context: FloatArray) -> FloatArray:
        """Elements in the cache of a sequence of `context` tokens, indexer included."""
        kept = np.minimum(context, self.window) if self.window else context
        return (self.kv_elements + self.index_elements) * context + self.window_elements * kept

    def seen_tokens(self, context: FloatArray) -> FloatArray:
        """Cache entries that the attention of one token after `context` others reads."""
        entries = context / self.compress_ratio
        if self.index_topk:
            entries = np.minimum(entries, self.index_topk)
        if self.kind is AttentionKind.COMPRESSED:
            return entries * (self.kv_elements > 0) + np.minimum(context, self.window)
        return np.minimum(entries, self.window) if self.window else entries

    def read_elements(self, context: FloatArray) -> FloatArray:
        """Cache elements that decoding one token reads: the entries seen, and all of the indexer's."""
        return self.seen_tokens(context) * self.entry_elements + self.index_elements * context

    def flops(self, context: FloatArray, absorbed: bool = True) -> FloatArray:
        """FLOP of one token after `context` others, projections excluded.

        QK and AV cost 2 FLOP an element of each head. `absorbed` is decoding MLA in its latent space: heads as wide as
        rank + rope and rank; else (prefill) as wide as the heads. Linear attention and Mamba decay, update and read
        their state: 6 FLOP an element.
        """
        if self.kind in (AttentionKind.LINEAR, AttentionKind.MAMBA):
            state = self.num_attention_heads * self.head_dim * self.v_head_dim
            return np.zeros_like(context) + 6.0 * state
        widths = self.head_dim + self.v_head_dim
        if self.kind is AttentionKind.MLA and absorbed:
            widths = 2 * self.kv_lora_rank + self.qk_rope_head_dim
        main = 2.0 * self.num_attention_heads * widths * self.seen_tokens(context)
        indexer = 2.0 * self.index_n_heads * self.index_head_dim * context / self.compress_ratio
        return main + indexer

    def prompt_flops(self, tokens: FloatArray) -> FloatArray:
        """FLOP of a whole causal prompt: what each token reads, summed; MLA with its heads expanded."""
        if self.kind in (AttentionKind.LINEAR, AttentionKind.MAMBA):
            return self.flops(tokens) * tokens
        widths = self.head_dim + self.v_head_dim
        main = 2.0 * self.num_attention_heads * widths * self._pairs(tokens)
        indexer = self.index_n_heads * self.index_head_dim * tokens**2 / self.compress_ratio
        return main + indexer

    def _pairs(self, tokens: FloatArray) -> FloatArray:
        """Sum of `seen_tokens` over the positions of a prompt; a chunk starts anew every `window` tokens."""
        ratio = self.compress_ratio
        if self.kind is AttentionKind.CHUNKED:
            rest = tokens % self.window
            return (tokens // self.window) * (self.window**2 / 2) + rest**2 / 2
        if self.kind is AttentionKind.COMPRESSED:
            branch = _limited(tokens / ratio, self.index_topk) * ratio * (self.kv_elements > 0)
            return branch + _limited(tokens, self.window)
        return _limited(tokens, self.index_topk or self.window)


def _limited(tokens: FloatArray, limit: int) -> FloatArray:
    """Integral of min(x, limit) from 0 to `tokens`; a limit of 0 is none."""
    if not limit:
        return tokens**2 / 2
    return np.where(tokens <= limit, tokens**2 / 2, tokens * limit - limit**2 / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """One layer's MLP. A layer with both a dense MLP and experts (Gemma 4) is `moe` with an intermediate_size."""

    kind: MlpKind
    intermediate_size: int = 0
    gated: bool = True
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_intermediate_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer; equal layers may be one object."""

    attention: Attention
    mlp: Mlp
    tensors: tuple[Tensor, ...]

    @cached_property
    def parameters(self) -> int:
        """All parameters of the layer."""
        return sum(tensor.parameters for tensor in self.tensors)

    @cached_property
    def active_parameters(self) -> int:
        """Parameters that one token uses."""
        return sum(tensor.active_parameters for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights, scales included."""
        return sum(tensor.bytes for tensor in self.tensors)

    @cached_property
    def linear_flops_per_token(self) -> int:
        """FLOP of the matrix products of one token, attention scores excluded."""
        return sum(tensor.flops_per_token for tensor in self.tensors)
