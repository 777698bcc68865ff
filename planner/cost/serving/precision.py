"""Which formats a served model's weights and cache are in, from what a user or a benchmark row asks for.

Rules, and why
    - A checkpoint that already is in the asked width is served as it is (gpt-oss "fp4" is its own MXFP4; DeepSeek "fp8"
      its own block FP8). Weights are never widened: "fp8" and "bf16" runs of a 4-bit checkpoint name its activations.
    - NVFP4 checkpoints of MLA models keep the attention in 16 bits: NVIDIA's conversions of DeepSeek-R1 and Kimi-K2
      list every `self_attn` in `exclude_modules`; those of GQA models quantise it (Qwen3-235B-A22B-NVFP4).
    - A cache is in 8 bits when the checkpoint says so. Where that is not known: for 4-bit and per-tensor FP8 weights,
      because NVIDIA's and Red Hat's conversions carry FP8 cache scales (`kv_cache_quant_algo: FP8`); for every 8-bit
      model on TensorRT-LLM; for MLA on SGLang. Else it is in 16 bits. Source: admitted sequences of closed-loop runs,
      see docs/cost_model.md; calibrated.
"""

from __future__ import annotations

from planner.cost.operators.attention import KV_BYTES
from planner.cost.serving.worker import Backend
from planner.model.formats import BF16, FORMATS, FP8_BLOCK, FP8_TENSOR, MXFP4, NVFP4, WeightFormat
from planner.model.layers import AttentionKind, Component
from planner.model.spec import ModelSpec

#: Names that rows, engines and people use, by what the weights are stored in.
WEIGHT_FORMATS: dict[str, WeightFormat] = {
    **FORMATS,
    "bf16": BF16,
    "fp16": BF16,
    "fp8": FP8_TENSOR,
    "fp8_block": FP8_BLOCK,
    "fp4": NVFP4,
    "nvfp4": NVFP4,
    "mxfp4": MXFP4,
    "w4a16_mxfp4": MXFP4,
    "int4_wo": FORMATS["int4"],
    "int8_wo": FORMATS["int8"],
}


def served(model: ModelSpec, dense: str = "", experts: str = "") -> ModelSpec:
    """The model with its weights in the asked formats; an empty name leaves the checkpoint's own.

    dense, experts : names in WEIGHT_FORMATS; KeyError for another one.
    """
    want_dense = _wanted(dense, _stored(model, routed=False))
    want_experts = _wanted(experts or dense, _stored(model, routed=True))
    attention = None
    if want_dense is NVFP4 and _is_mla(model):
        attention = _stored(model, attention_only=True)
        attention = BF16 if attention is None or attention.bits > 4 else attention
    if want_dense is not None and want_dense.bits <= 4 and model.quant_method == "mxfp4":
        want_dense = None
    if want_dense is None and want_experts is None:
        return model
    return model.with_formats(dense=want_dense, experts=want_experts, attention=attention)


def kv_element_bytes(model: ModelSpec, backend: Backend, kv_dtype: str = "") -> float:
    """Bytes of one cache element: as asked ("fp8", "bf16"), else the checkpoint's own, else the backend's habit.

    kv_dtype : a name in KV_BYTES; KeyError for another one.
    """
    if kv_dtype:
        return KV_BYTES[kv_dtype]
    if model.kv_dtype:
        return 1.0 if "8" in model.kv_dtype else 2.0
    narrowest = min(_formats(model), key=lambda form: form.bits, default=BF16)
    if backend == "sglang" and _is_mla(model):
        return 1.0
    scaled_cache = narrowest.bits <= 4.5 or narrowest.name == FP8_TENSOR.name
    return 1.0 if scaled_cache or (backend == "trtllm" and narrowest.bits <= 8) else 2.0


def _wanted(name: str, have: WeightFormat | None) -> WeightFormat | None:
    """The format to convert to; None when there is nothing to convert, or it is of that width and kind, or narrower."""
    if not name:
        return None
    target = WEIGHT_FORMATS[name]
    if have is None or have.bits < target.bits:
        return None
    same = have.bits == target.bits and _is_integer(have) == _is_integer(target)
    return None if same else target


def _is_integer(form: WeightFormat) -> bool:
    return form.name.startswith("int")


def _formats(model: ModelSpec) -> list[WeightFormat]:
    return [
        t.format
        for layer, _ in model.layer_groups()
        for t in layer.tensors
        if t.role == "linear" and not t.keeps_format
    ]


def _stored(model: ModelSpec, *, routed: bool = False, attention_only: bool = False) -> WeightFormat | None:
    """The narrowest format that the checkpoint stores these matrices in."""
    found = [
        tensor.format
        for layer, _ in model.layer_groups()
        for tensor in layer.tensors
        if tensor.role == "linear"
        and tensor.component is not Component.ROUTER
        and (tensor.component is Component.ROUTED_EXPERTS) == routed
        and (not attention_only or tensor.component is Component.ATTENTION)
    ]
    return min(found, key=lambda form: form.bits, default=None)


def _is_mla(model: ModelSpec) -> bool:
    return any(layer.attention.kind is AttentionKind.MLA for layer, _ in model.layer_groups())
