"""Models as the cost model sees them: weights by component and format, cache, state and FLOP."""

from planner.model.formats import FORMATS, WeightFormat
from planner.model.layers import Attention, AttentionKind, Component, Layer, Mlp, MlpKind, Tensor
from planner.model.spec import ACTIVE_RULE, KV_ELEMENT_BYTES, ModelSpec

__all__ = [
    "ACTIVE_RULE",
    "FORMATS",
    "KV_ELEMENT_BYTES",
    "Attention",
    "AttentionKind",
    "Component",
    "Layer",
    "Mlp",
    "MlpKind",
    "ModelSpec",
    "Tensor",
    "WeightFormat",
]
