"""Time that one micro-batch spends computing in one layer, in the output head, and in the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import TrainingCoefficients
from planner.cost.training.model import LayerKind, TrainingModel
from planner.cost.training.sizes import PlanSizes
from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

#: Bytes of one 16-bit element.
HALF = 2.0
#: 16-bit passes of element-wise kernels over the hidden state in a layer's forward, counted by kernel: a norm reads and
#: writes (2), bias + dropout + residual reads two, writes one and a one-byte mask (3.5), each twice.
HIDDEN_PASSES = 11.0
#: Bytes of one unfused score: forward the product's result (2), softmax (4), dropout and its mask (5), read by the
#: next product (2); backward the same chain with the saved softmax and mask, and read by three products.
SCORE_BYTES_FORWARD = 13.0
SCORE_BYTES_BACKWARD = 21.0
#: Bytes for one logit over forward and backward: 2 written, read as fp32 twice and written once, gradient in 16 bits.
LOGIT_TRAFFIC_BYTES = 14.0
#: Backward over forward: a matrix product has two in its backward pass, flash attention has five for two, and an
#: element-wise kernel reads what it saved besides the gradient: three passes for two.
BACKWARD = 2.0
FLASH_BACKWARD = 2.5
TRAFFIC_BACKWARD = 1.5
#: Optimizer bytes a parameter: reads gradient, master weight and two moments in fp32, writes three of them and the
#: 16-bit weight.
OPTIMIZER_TRAFFIC_BYTES = 30.0


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches: FLOP/s of large products in the layers and in the head, of attention, and bytes/s."""

    layer_flop_per_s: float
    head_flop_per_s: float
    attention_flop_per_s: float
    bytes_per_s: float
    narrow_gemm: float

    @classmethod
    def of(cls, device: DeviceKind, coefficients: TrainingCoefficients, dtype: str) -> Rates:
        """Rates with the layers' matrices in `dtype`; attention and head stay in 16 bits."""
        wide = dtype if dtype in ("bf16", "fp16") else "bf16"
        peak = device.peak_flop_per_s(wide)
        return cls(
            layer_flop_per_s=device.peak_flop_per_s(dtype) * coefficients.gemm_efficiency,
            head_flop_per_s=peak * coefficients.gemm_efficiency,
            attention_flop_per_s=peak * coefficients.attention_efficiency,
            bytes_per_s=device.hbm_bandwidth_bytes_per_s / coefficients.traffic,
            narrow_gemm=coefficients.narrow_gemm,
        )


@dataclass(frozen=True)
class LayerCompute:
    """Seconds of one layer and micro-batch on one GPU, [n]: forward and backward with what is recomputed."""

    total_s: FloatArray
    weight_gradient_s: FloatArray


def layer_compute(kind: LayerKind, model: TrainingModel, sizes: PlanSizes, rates: Rates) -> LayerCompute:
    """Matrix products, the attention core and element-wise traffic of one layer."""
    hidden, t, tokens = float(model.hidden_size), sizes.tensor, sizes.tokens
    narrow = 1.0 + rates.narrow_gemm / np.minimum(tokens, hidden / t)
    linear = tokens * (2.0 * kind.dense_parameters / rates.layer_flop_per_s) / t * narrow
    width = kind.projected_width + kind.attended_width + kind.matrices_of_mlp * kind.mlp_width
    if kind.num_experts:
        routed = tokens * kind.experts_per_token
        per_expert = routed * sizes.expert / kind.num_experts
        narrow = 1.0 + rates.narrow_gemm / np.minimum(per_expert, kind.expert_width / t)
        linear = linear + routed * (2.0 * kind.expert_parameters / rates.layer_flop_per_s) / t * narrow
        width += kind.experts_per_token * (kind.matrices_of_mlp * kind.expert_width + 4 * model.hidden_size)
    traffic = tokens * (HALF / rates.bytes_per_s) * (HIDDEN_PASSES * hidden / sizes.split_hidden + width / t)
    core, core_backward = _attention_core(kind, sizes, rates)
    passes = 1.0 + sizes.full_recompute
    total = (passes + BACKWARD) * linear + (passes + TRAFFIC_BACKWARD) * traffic
    total = total + core * (1.0 + sizes.any_recompute) + core_backward
    return LayerCompute(total_s=total, weight_gradient_s=linear)


def head_compute_s(model: TrainingModel, sizes: PlanSizes, rates: Rates) -> FloatArray:
    """Seconds of the output head, softmax and loss of one micro-batch, forward and backward, [n]."""
    narrow = 1.0 + rates.narrow_gemm / np.minimum(sizes.tokens, float(model.hidden_size))
    product = 2.0 * (1.0 + BACKWARD) * model.hidden_size / rates.head_flop_per_s * narrow
    vocab = model.vocab_size / sizes.tensor
    return np.asarray(sizes.tokens * vocab * (product + LOGIT_TRAFFIC_BYTES / rates.bytes_per_s))


def _attention_core(kind: LayerKind, sizes: PlanSizes, rates: Rates) -> tuple[FloatArray, FloatArray]:
    """Forward and backward seconds of scores, softmax and values, [n]."""
    causal = kind.attention.prompt_flops(sizes.sequence) * sizes.micro_batch / (sizes.context * sizes.tensor)
    flash = causal / rates.attention_flop_per_s
    if sizes.flash.all():
        return flash, FLASH_BACKWARD * flash
    heads = kind.attention.num_attention_heads / sizes.tensor
    scores = heads * sizes.tokens * sizes.sequence / rates.bytes_per_s
    products = 2.0 * causal / rates.head_flop_per_s
    unfused_forward = products + SCORE_BYTES_FORWARD * scores
    unfused_backward = BACKWARD * products + SCORE_BYTES_BACKWARD * scores
    return (
        np.where(sizes.flash, flash, unfused_forward),
        np.where(sizes.flash, FLASH_BACKWARD * flash, unfused_backward),
    )
