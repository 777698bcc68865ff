"""ModelSpec: a decoder model as layers of weights, and the counts that memory and time are made of.

Counting rules
    total     every parameter that the model loads, a tied head once, vision included; MTP layers apart
    active    total - vision - routed experts x (1 - top_k / experts); embeddings included
    KV        16-bit cache elements unless another width is asked for; sliding windows apart from full attention
    FLOP      2 a multiply-add; `linear` is every matrix a token is multiplied with, the output head included
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planner.model.formats import WeightFormat
from planner.model.layers import Component, FloatArray, Layer, MlpKind, Tensor

ACTIVE_RULE = "total - vision - routed experts x (1 - top_k / experts); embeddings included, MTP excluded"
#: Bytes of a cache element where nothing else is asked for: engines keep the cache in the model's 16-bit type.
KV_ELEMENT_BYTES = 2.0


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A decoder model in Hugging Face's names.

    layers : the decoder layers in order; equal layers are one object.
    outer : embedding, final norm and output head.
    mtp : multi-token-prediction layers of the checkpoint, counted apart.
    vision : towers for other modalities.
    kv_dtype : what the checkpoint asks the cache to be kept in (hf_quant_config.json, kv_cache_scheme), or None.
    assumptions : which rule was used where config.json leaves a choice.
    """

    name: str
    model_type: str
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int | None
    tie_word_embeddings: bool
    weight_dtype: str
    quant_method: str | None = None
    kv_dtype: str | None = None
    layers: tuple[Layer, ...]
    outer: tuple[Tensor, ...]
    mtp: tuple[Layer, ...] = ()
    vision: tuple[Tensor, ...] = ()
    assumptions: tuple[str, ...] = ()
    source: str = ""

    @property
    def num_hidden_layers(self) -> int:
        """Number of decoder layers, MTP excluded."""
        return len(self.layers)

    def layer_groups(self) -> tuple[tuple[Layer, int], ...]:
        """Each distinct layer with how often it occurs: what a cost model loops over."""
        counts = Counter(id(layer) for layer in self.layers)
        distinct = {id(layer): layer for layer in self.layers}
        return tuple((layer, counts[key]) for key, layer in distinct.items())

    def tensors(self) -> Iterator[tuple[Tensor, int]]:
        """Each weight of the model proper (MTP excluded) with how many layers have it."""
        for layer, count in self.layer_groups():
            yield from ((tensor, count) for tensor in layer.tensors)
        yield from ((tensor, 1) for tensor in (*self.outer, *self.vision))

    @cached_property
    def parameters_by_component(self) -> Mapping[str, int]:
        """Parameters by component, which add up to `total_params`."""
        return self._by_component(lambda tensor: tensor.parameters)

    @cached_property
    def weight_bytes_by_component(self) -> Mapping[str, int]:
        """Stored bytes by component, scales included, which add up to `weight_bytes`."""
        return self._by_component(lambda tensor: tensor.bytes)

    @cached_property
    def weight_bytes_by_format(self) -> Mapping[str, int]:
        """Stored bytes by weight format, MTP excluded; biases count with their matrix."""
        found: Counter[str] = Counter()
        for tensor, count in self.tensors():
            found[tensor.format.name] += tensor.bytes * count
        return {name: size for name, size in found.items() if size}

    def _by_component(self, size: Callable[[Tensor], int]) -> Mapping[str, int]:
        found: Counter[str] = Counter()
        for tensor, count in self.tensors():
            found[tensor.component.value] += size(tensor) * count
        return {component.value: found[component.value] for component in Component if found[component.value]}

    @cached_property
    def total_params(self) -> int:
        """Parameters that the model loads, a tied head once; MTP layers are `mtp_params`."""
        return sum(tensor.parameters * count for tensor, count in self.tensors())

    @cached_property
    def active_params(self) -> int:
        """Parameters that one text token uses, by ACTIVE_RULE."""
        active = sum(layer.active_parameters * count for layer, count in self.layer_groups())
        return active + sum(tensor.parameters for tensor in self.outer)

    @property
    def active_params_without_embedding(self) -> int:
        """Active parameters without the input embedding, which is looked up and not multiplied (as gpt-oss counts)."""
        return self.active_params - self.parameters_by_component.get(Component.EMBEDDING.value, 0)

    @property
    def mtp_params(self) -> int:
        """Parameters of the multi-token-prediction layers, without the embedding and head that they share."""
        return sum(layer.parameters for layer in self.mtp)

    @cached_property
    def weight_bytes(self) -> int:
        """Stored bytes of the model proper, scales included, MTP excluded."""
        return sum(tensor.bytes * count for tensor, count in self.tensors())

    @property
    def mtp_weight_bytes(self) -> int:
        """Stored bytes of the multi-token-prediction layers."""
        return sum(layer.weight_bytes for layer in self.mtp)

    @cached_property
    def kv_elements_per_token(self) -> tuple[float, float, float]:
        """Cache elements a token over all layers: for good, inside sliding windows, in indexers."""
        kept = [(layer.attention, count) for layer, count in self.layer_groups()]
        return (
            sum(one.kv_elements * count for one, count in kept),
            sum(one.window_elements * count for one, count in kept),
            sum(one.index_elements * count for one, count in kept),
        )

    def kv_bytes_per_token(self, element_bytes: float = KV_ELEMENT_BYTES) -> float:
        """Cache bytes of one token over all layers that still hold it, sliding windows included, indexers excluded."""
        full, window, _ = self.kv_elements_per_token
        return (full + window) * element_bytes

    @cached_property
    def state_bytes_per_sequence(self) -> int:
        """Recurrent and convolution state of one sequence, whatever its length; 0 for plain transformers."""
        return sum(layer.attention.state_bytes for layer in self.layers)

    def kv_bytes(self, context: npt.ArrayLike, element_bytes: float = KV_ELEMENT_BYTES) -> FloatArray:
        """Cache and state bytes of a sequence of `context` tokens, windows cut and indexers included; any shape."""
        tokens = np.asarray(context, dtype=np.float64)
        elements = sum(layer.attention.cached_elements(tokens) * n for layer, n in self.layer_groups())
        return np.asarray(elements * element_bytes + self.state_bytes_per_sequence)

    def kv_read_bytes(self, context: npt.ArrayLike, element_bytes: float = KV_ELEMENT_BYTES) -> FloatArray:
        """Cache and state bytes that decoding one token after `context` others reads; any shape."""
        tokens = np.asarray(context, dtype=np.float64)
        elements = sum(layer.attention.read_elements(tokens) * n for layer, n in self.layer_groups())
        return np.asarray(elements * element_bytes + self.state_bytes_per_sequence)

    @cached_property
    def linear_flops_per_token(self) -> int:
        """FLOP of all matrix products of one text token, the output head included, attention scores excluded."""
        layers = sum(layer.linear_flops_per_token * count for layer, count in self.layer_groups())
        return layers + sum(tensor.flops_per_token for tensor in self.outer)

    def attention_flops_per_token(self, context: npt.ArrayLike, absorbed: bool = True) -> FloatArray:
        """FLOP of attention scores, values, indexers and states of one token after `context` others; any shape."""
        tokens = np.asarray(context, dtype=np.float64)
        return np.asarray(sum(layer.attention.flops(tokens, absorbed) * n for layer, n in self.layer_groups()))

    def prompt_attention_flops(self, tokens: npt.ArrayLike) -> FloatArray:
        """FLOP of attention, indexers and states of a whole causal prompt of `tokens` tokens; any shape."""
        length = np.asarray(tokens, dtype=np.float64)
        return np.asarray(sum(layer.attention.prompt_flops(length) * n for layer, n in self.layer_groups()))

    @property
    def num_moe_layers(self) -> int:
        """Number of decoder layers with routed experts."""
        return sum(layer.mlp.kind is MlpKind.MOE for layer in self.layers)

    def with_formats(
        self,
        dense: WeightFormat | None = None,
        experts: WeightFormat | None = None,
        attention: WeightFormat | None = None,
    ) -> ModelSpec:
        """The model with its layers' matrices converted: routed experts to `experts`, the rest to `dense`.

        `attention` is for the projections of all kinds of attention, where they differ from the rest.
        Routers, embeddings, head, norms and vision keep the format they have.
        """
        mixers = (Component.ATTENTION, Component.LINEAR_ATTENTION, Component.INDEXER)

        def convert(tensor: Tensor) -> Tensor:
            routed = tensor.component is Component.ROUTED_EXPERTS
            target = experts if routed else dense
            if attention is not None and tensor.component in mixers:
                target = attention
            fixed = tensor.keeps_format or tensor.role != "linear" or tensor.component is Component.ROUTER
            if target is None or fixed:
                return tensor
            return replace(tensor, format=target)

        made = {
            id(layer): replace(layer, tensors=tuple(map(convert, layer.tensors))) for layer in (*self.layers, *self.mtp)
        }
        return replace(
            self,
            layers=tuple(made[id(layer)] for layer in self.layers),
            mtp=tuple(made[id(layer)] for layer in self.mtp),
        )
