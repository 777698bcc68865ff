"""Seconds that the experts of one forward pass take under a placement: hottest GPU of every layer, and exchange.

For a layer in which tokens choose k experts each, a GPU computes the rows that its replicas get and reads the weights
of those that get any; the layer waits for the slowest. Attention is data parallel: tokens / GPUs start on each GPU, go
out to the GPUs of their experts and come back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.collectives import exchange_seconds
from planner.cost.expert_parallel import gpu_load
from planner.cost.operators.moe import moe_rank_seconds, moe_source
from planner.cost.serving.sharding import quant_of
from planner.cost.verdict import Source
from planner.experts_plan import ExpertPlacement
from planner.hardware import DeviceKind
from planner.model.layers import Component, MlpKind
from planner.model.spec import ModelSpec
from planner.workload import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertStep:
    """What one forward pass asks of the experts: whose they are, on what, and how many tokens it carries in all.

    quant : arithmetic of the experts (`planner.cost.operators.moe.QUANTS`); expert_bytes : weights of one expert of
    one layer; tokens : of the pass, over all GPUs, before top-k.
    """

    device: DeviceKind
    quant: str
    hidden_size: int
    moe_intermediate_size: int
    top_k: int
    num_experts: int
    expert_bytes: float
    tokens: float

    @classmethod
    def of(cls, model: ModelSpec, device: DeviceKind, tokens: float) -> ExpertStep:
        """Sizes and format of a model's experts; ValueError for a model without any."""
        for layer in model.layers:
            if layer.mlp.kind is MlpKind.MOE:
                routed = [one for one in layer.tensors if one.component is Component.ROUTED_EXPERTS]
                return cls(
                    device=device,
                    quant=quant_of(routed[0].format),
                    hidden_size=model.hidden_size,
                    moe_intermediate_size=layer.mlp.moe_intermediate_size,
                    top_k=layer.mlp.num_experts_per_tok,
                    num_experts=layer.mlp.num_experts,
                    expert_bytes=sum(one.bytes / one.copies for one in routed),
                    tokens=tokens,
                )
        raise ValueError(f"{model.name} has no routed experts")

    @property
    def source(self) -> Source:
        """How far the times are to be trusted."""
        return moe_source(self.device, self.quant)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertTimes:
    """Seconds of one pass: each layer's slowest GPU and an even spread, [layers]; the exchange of all layers."""

    layer_s: FloatArray
    even_layer_s: FloatArray
    slowest_gpu: np.ndarray[tuple[int], np.dtype[np.intp]]
    exchange_s: float

    @property
    def total_s(self) -> float:
        """Experts and exchange of all layers."""
        return float(self.layer_s.sum()) + self.exchange_s


def expert_times(plan: ExpertPlacement, counts: FloatArray, speed: FloatArray, step: ExpertStep) -> ExpertTimes:
    """Times of one pass whose tokens choose experts as `counts` [layers, experts] do; speed [GPUs] is relative.

    Which replicas are touched follows from even shares; with split `lp` the rows are the LP's.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    pairs = shares * step.tokens * step.top_k
    rows = gpu_load(pairs[None], plan.array, speed, plan.split)[0]
    touched = _touched(pairs, plan)

    def seconds(of_rows: FloatArray, of_touched: FloatArray) -> FloatArray:
        return moe_rank_seconds(
            step.device,
            step.quant,
            rows=of_rows,
            touched=of_touched,
            tokens=np.maximum(np.minimum(of_rows, step.tokens), 1.0),
            hidden_size=step.hidden_size,
            moe_intermediate_size=step.moe_intermediate_size,
            launch=False,
        )

    time = seconds(rows, touched) / speed
    even_rows = pairs.sum(axis=1) / plan.num_gpus
    experts_each = min(plan.num_slots, step.num_experts) / plan.num_gpus
    even = seconds(even_rows, np.minimum(even_rows, experts_each)) / speed.mean()
    exchange = exchange_seconds(
        step.device,
        tokens_per_gpu=max(step.tokens / plan.num_gpus, 1.0),
        hidden_size=step.hidden_size,
        top_k=step.top_k,
        num_gpus=plan.num_gpus,
        gpus_per_node=plan.gpus_per_node,
    )
    return ExpertTimes(time.max(axis=1), even, time.argmax(axis=1), float(exchange) * len(plan.array))


def _touched(pairs: FloatArray, plan: ExpertPlacement) -> FloatArray:
    """Expected replicas of a GPU that get any of their Poisson share, [layers, GPUs]."""
    at_replica = _slot_pairs(pairs, plan)
    return np.asarray((1.0 - np.exp(-at_replica)).reshape(len(pairs), plan.num_gpus, -1).sum(axis=2))


def _slot_pairs(pairs: FloatArray, plan: ExpertPlacement) -> FloatArray:
    """Even share of every slot, [layers, slots]."""
    layers = np.arange(len(pairs))[:, None]
    replicas = np.zeros_like(pairs)
    np.add.at(replicas, (layers, plan.array), 1.0)
    return np.asarray((pairs / np.maximum(replicas, 1.0))[layers, plan.array])
