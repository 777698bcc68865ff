"""Step time of training plans, split into parts that add up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import TrainingCoefficients
from planner.cost.training.communication import Group, Links, TrainingNetwork, group
from planner.cost.training.compute import HALF, OPTIMIZER_TRAFFIC_BYTES, Rates, head_compute_s, layer_compute
from planner.cost.training.memory import CHUNK_PLANS, WEIGHT_BYTES
from planner.cost.training.model import LayerKind, TrainingModel
from planner.cost.training.pipeline import idle
from planner.cost.training.plans import TrainingPlans, check
from planner.cost.training.sizes import PlanSizes, plan_sizes
from planner.cost.training.stages import StageClasses, stage_classes
from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TrainingTimes:
    """Seconds of one training step by part, arrays [n]; the parts add up to `step_s`.

    compute_s, tensor_s, context_s, expert_s : what the slowest stage does for all micro-batches: kernels, and the
        collectives of tensor, context and expert parallelism.
    bubble_s : what it waits for other stages; pipeline_s for sends between stages.
    data_s : data-parallel collectives that nothing hides; optimizer_s the update.
    tokens_per_s : of the whole cluster. mfu, hfu : model FLOP, and those with recomputation, over the peak's.
    """

    compute_s: FloatArray
    tensor_s: FloatArray
    context_s: FloatArray
    expert_s: FloatArray
    pipeline_s: FloatArray
    bubble_s: FloatArray
    data_s: FloatArray
    optimizer_s: FloatArray
    tokens_per_s: FloatArray
    mfu: FloatArray
    hfu: FloatArray

    @property
    def parts(self) -> dict[str, FloatArray]:
        """Every part of the step by name, in the order in which they are explained."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def step_s(self) -> FloatArray:
        """Seconds of a step, [n]."""
        return np.asarray(sum(self.parts.values()))


PARTS = ("compute_s", "tensor_s", "context_s", "expert_s", "pipeline_s", "bubble_s", "data_s", "optimizer_s")


def training_step(
    model: TrainingModel,
    device: DeviceKind,
    network: TrainingNetwork,
    plans: TrainingPlans,
    coefficients: TrainingCoefficients,
    dtype: str = "bf16",
) -> TrainingTimes:
    """Step time of every plan, arrays [n].

    dtype : format of the layers' matrix products; attention and the output head stay in 16 bits.
    Raises RefusedError for illegal plans, DescriptionError when the device does not compute in `dtype`.
    """
    check(plans, model)
    rates = Rates.of(device, coefficients, dtype)
    links = Links(network, coefficients.link_efficiency)
    peak = device.peak_flop_per_s(dtype)
    parts = []
    for start in range(0, len(plans), CHUNK_PLANS):
        chunk = plans[start : start + CHUNK_PLANS]
        parts.append(_step(model, chunk, rates, links, coefficients.overlap, peak))
    names = [field.name for field in fields(TrainingTimes)]
    return TrainingTimes(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _step(
    model: TrainingModel, plans: TrainingPlans, rates: Rates, links: Links, overlap: float, peak_flop_per_s: float
) -> TrainingTimes:
    sizes = plan_sizes(plans)
    stages = stage_classes(plans, model)
    kinds = [layer_work(kind, model, sizes, rates, links) for kind in model.kinds]
    head_s = head_compute_s(model, sizes, rates)
    by_stage = stages.last * head_s
    for layers, work in zip(stages.layers, kinds, strict=True):
        by_stage = by_stage + layers * (work.compute_s + work.tensor_s + work.context_s + work.expert_s)
    slowest = by_stage.argmax(axis=0)[None]
    slowest_s = np.take_along_axis(by_stage, slowest, axis=0)[0]
    compute = np.take_along_axis(stages.last, slowest, axis=0)[0] * head_s
    tensor, context, expert, weight, depth = np.zeros((5, slowest_s.size))
    for layers, work in zip(stages.layers, kinds, strict=True):
        held = np.take_along_axis(layers, slowest, axis=0)[0]
        compute = compute + held * work.compute_s
        tensor = tensor + held * work.tensor_s
        context = context + held * work.context_s
        expert = expert + held * work.expert_s
        weight = weight + held * work.weight_gradient_s
        depth = depth + held
    send_bytes = HALF * model.hidden_size * sizes.tokens / sizes.tensor
    send_s = links.point_to_point_s(send_bytes, sizes.tensor * sizes.replicas)
    waits = idle(sizes, slowest_s, (by_stage * stages.count).sum(axis=0), weight, send_s)
    data_s, updated = _data_parallel(model, sizes, stages, links, depth, slowest_s, overlap)
    m = sizes.micro_batches
    made = TrainingTimes(
        compute_s=m * compute,
        tensor_s=m * tensor,
        context_s=m * context,
        expert_s=m * expert,
        pipeline_s=waits.send_s,
        bubble_s=waits.bubble_s,
        data_s=data_s,
        optimizer_s=updated * (OPTIMIZER_TRAFFIC_BYTES / rates.bytes_per_s),
        tokens_per_s=np.empty(0),
        mfu=np.empty(0),
        hfu=np.empty(0),
    )
    tokens_per_s = plans.global_batch_size * sizes.sequence / made.step_s
    useful = model.model_flops_per_token(sizes.sequence)
    again = model.recomputed_flops_per_token(sizes.sequence, sizes.any_recompute, sizes.full_recompute)
    share = tokens_per_s / (plans.num_gpus * peak_flop_per_s)
    return replace(made, tokens_per_s=tokens_per_s, mfu=useful * share, hfu=(useful + again) * share)


@dataclass(frozen=True)
class LayerWork:
    """Seconds of one layer for one micro-batch, forward and backward, [n]."""

    compute_s: FloatArray
    weight_gradient_s: FloatArray
    tensor_s: FloatArray
    context_s: FloatArray
    expert_s: FloatArray


def layer_work(kind: LayerKind, model: TrainingModel, sizes: PlanSizes, rates: Rates, links: Links) -> LayerWork:
    """Compute and collectives. Full recomputation repeats the collectives of the forward pass.

    Tensor parallel: two all-reduces (or reduce-scatter and all-gather) of the hidden state forward, two backward.
    Context parallel: all-gather of keys and values forward and backward, reduce-scatter of their gradients.
    Expert parallel: dispatch and combine forward, and their mirror backward.
    """
    compute = layer_compute(kind, model, sizes, rates)
    network, t, again = links.network, sizes.tensor, sizes.full_recompute
    hidden_bytes = HALF * model.hidden_size * sizes.tokens
    none = np.zeros_like(t)
    tensor = context = expert = none
    if (t > 1.0).any():
        ranks = group(network, t, np.ones_like(t))
        tensor = (8.0 + 4.0 * again) * links.reduce_scatter_s(hidden_bytes, ranks)
    if (sizes.context > 1.0).any():
        ranks = group(network, sizes.context, t)
        kept_bytes = HALF * kind.key_value_width * sizes.tokens * sizes.context / t
        context = (3.0 + again) * links.reduce_scatter_s(kept_bytes, ranks)
    if kind.num_experts and (sizes.expert > 1.0).any():
        ranks = group(network, sizes.expert, t)
        sent_bytes = kind.experts_per_token * hidden_bytes / sizes.split_hidden
        expert = (4.0 + 2.0 * again) * links.all_to_all_s(sent_bytes, ranks)
    return LayerWork(compute.total_s, compute.weight_gradient_s, tensor, context, expert)


def _data_parallel(
    model: TrainingModel,
    sizes: PlanSizes,
    stages: StageClasses,
    links: Links,
    depth: FloatArray,
    micro_batch_s: FloatArray,
    overlap: float,
) -> tuple[FloatArray, FloatArray]:
    """Exposed seconds of a step's data-parallel collectives, and the parameters that one GPU updates, each [n].

    ZeRO 0 all-reduces gradients once a step; 1 reduce-scatters them and all-gathers weights once; 2 reduce-scatters
    after every micro-batch, because its shards cannot accumulate whole gradients; 3 also gathers the weights of every
    layer twice a micro-batch. A collective hides behind one micro-batch's work, as far as `overlap` says.
    """
    one_copy = stages.first * stages.last if model.tied else 0.0
    dense: FloatArray = (stages.first + stages.last - one_copy) * float(model.embedding_parameters)
    routed = np.zeros_like(depth)
    for kind, layers in zip(model.kinds, stages.layers, strict=True):
        dense = dense + layers * float(kind.dense_parameters)
        if kind.num_experts:
            routed = routed + layers * float(kind.routed_parameters)
    kinds_of_weights = [(dense.max(axis=0) / sizes.tensor, sizes.replicas, sizes.tensor)]
    if routed.any():
        parameters = routed.max(axis=0) / (sizes.tensor * sizes.expert)
        kinds_of_weights.append((parameters, sizes.replicas / sizes.expert, sizes.tensor * sizes.expert))
    zero = sizes.zero
    once = np.zeros_like(depth)
    each = np.zeros_like(depth)
    updated = np.zeros_like(depth)
    for parameters, replicas, stride in kinds_of_weights:
        ranks: Group = group(links.network, replicas, stride)
        per_byte = links.second_per_byte(ranks) * parameters
        start = links.latency_s(ranks)
        gradients = np.minimum(sizes.gradient_bytes, 4.0) * per_byte + start
        weights = WEIGHT_BYTES * per_byte + start
        once = once + np.where(zero == 0, 2.0 * gradients, np.where(zero < 3, weights, 0.0))
        once = once + np.where(zero == 1, gradients, 0.0)
        by_layer = 2.0 * weights + gradients + 3.0 * (depth - 1.0) * start
        each = each + np.where(zero == 3, by_layer, np.where(zero == 2, gradients, 0.0))
        updated = updated + np.where(zero >= 1, parameters / replicas, parameters)
    exposed = _exposed(once, micro_batch_s, overlap) + sizes.micro_batches * _exposed(each, micro_batch_s, overlap)
    return exposed, updated


def _exposed(busy_s: FloatArray, window_s: FloatArray, overlap: float) -> FloatArray:
    """What is left to wait for of a collective beside `window_s` of computation."""
    return np.asarray(busy_s - overlap * np.minimum(busy_s, window_s))
