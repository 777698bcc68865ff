"""Seconds of each stage of a pipeline for one micro-batch, whole and by pass: what schedules are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import TrainingCoefficients
from planner.cost.training.communication import Links, TrainingNetwork
from planner.cost.training.compute import HALF, Rates, head_compute_s
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import TrainingPlans, check
from planner.cost.training.sizes import plan_sizes
from planner.cost.training.stages import stage_classes, strategies
from planner.cost.training.step import layer_work, switch_s
from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

#: Share of the forward pass in what is no matrix product: attention takes 1 : 2.5, element-wise kernels 1 : 1.5 and
#: collectives 1 : 1 (planner.cost.training.compute); and where the backward pass repeats the forward. modelled.
FORWARD_SHARE, FORWARD_SHARE_REPEATED = 0.4, 0.29


@dataclass(frozen=True, eq=False)
class StagePasses:
    """Seconds of stages for one micro-batch, [n, most stages], 0 beyond the last; a stage is all of its chunks.

    forward_s + backward_s + weight_s is the work of a micro-batch; send_s [n] one send to the next stage.
    """

    forward_s: FloatArray
    backward_s: FloatArray
    weight_s: FloatArray
    send_s: FloatArray

    @property
    def total_s(self) -> FloatArray:
        """Forward and backward together."""
        return self.forward_s + self.backward_s + self.weight_s


def stage_passes(
    model: TrainingModel,
    device: DeviceKind,
    network: TrainingNetwork,
    plans: TrainingPlans,
    coefficients: TrainingCoefficients,
    dtype: str = "bf16",
) -> StagePasses:
    """Passes of every stage as `training_step` counts them; RefusedError for illegal plans."""
    check(plans, model)
    sizes, stages = plan_sizes(plans), stage_classes(plans, model, every_stage=True)
    links = Links(network, coefficients.link_efficiency)
    rates = Rates.of(device, coefficients, dtype)
    head_s = stages.last * head_compute_s(model, sizes, rates)
    shared = strategies(plans, stages)
    moved_s = switch_s(model, shared, links)
    forward, backward, weight = 0.5 * moved_s, 0.5 * moved_s, np.zeros_like(head_s)
    for place, (own, held) in enumerate(shared):
        total, gradient = (head_s, head_s / 3.0) if place == 0 else (np.zeros_like(head_s), np.zeros_like(head_s))
        for kind, layers in zip(model.kinds, held, strict=True):
            work = layer_work(kind, model, own, rates, links)
            total = total + layers * (work.compute_s + work.tensor_s + work.context_s + work.expert_s)
            gradient = gradient + layers * work.weight_gradient_s
        again = own.full_recompute
        rest = np.maximum(total - (3.0 + again) * gradient, 0.0)
        ahead = gradient + np.where(again, FORWARD_SHARE_REPEATED, FORWARD_SHARE) * rest
        forward, weight = forward + ahead, weight + gradient
        backward = backward + total - ahead - gradient
    send_bytes = HALF * model.hidden_size * sizes.tokens / sizes.tensor
    send_s = links.point_to_point_s(send_bytes, sizes.tensor * sizes.replicas, sizes.pipeline)
    used = stages.count > 0
    return StagePasses(
        forward_s=np.where(used, forward, 0.0).T,
        backward_s=np.where(used, backward, 0.0).T,
        weight_s=np.where(used, weight, 0.0).T,
        send_s=np.where(sizes.pipeline > 1.0, send_s, 0.0),
    )
