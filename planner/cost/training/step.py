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
from planner.cost.training.stages import Shared, StageClasses, stage_classes, strategies
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
    shared = strategies(plans, stages)
    works = [[layer_work(kind, model, own, rates, links) for kind in model.kinds] for own, _ in shared]
    head_s = head_compute_s(model, sizes, rates)
    moved_s = switch_s(model, shared, links)
    by_stage = stages.last * head_s + moved_s
    for (_, held), kinds in zip(shared, works, strict=True):
        for layers, work in zip(held, kinds, strict=True):
            by_stage = by_stage + layers * (work.compute_s + work.tensor_s + work.context_s + work.expert_s)
    slowest = by_stage.argmax(axis=0)[None]

    def at_slowest(array: FloatArray) -> FloatArray:
        return np.asarray(np.take_along_axis(array, slowest, axis=0)[0])

    slowest_s = at_slowest(by_stage)
    compute, tensor = at_slowest(stages.last) * head_s, at_slowest(moved_s)
    context, expert, weight, depth = np.zeros((4, slowest_s.size))
    for (_, held), kinds in zip(shared, works, strict=True):
        for layers, work in zip(held, kinds, strict=True):
            count = at_slowest(layers)
            compute = compute + count * work.compute_s
            tensor = tensor + count * work.tensor_s
            context = context + count * work.context_s
            expert = expert + count * work.expert_s
            weight = weight + count * work.weight_gradient_s
            depth = depth + count
    send_bytes = HALF * model.hidden_size * sizes.tokens / sizes.tensor
    send_s = links.point_to_point_s(send_bytes, sizes.tensor * sizes.replicas, sizes.pipeline)
    waits = idle(sizes, slowest_s, (by_stage * stages.count).sum(axis=0), weight, send_s)
    data_s, updated = _data_parallel(model, shared, stages, links, depth, slowest_s, overlap)
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
    share = tokens_per_s / (plans.num_gpus * peak_flop_per_s)
    again = _repeated(model, shared, stages)
    return replace(made, tokens_per_s=tokens_per_s, mfu=useful * share, hfu=(useful + again) * share)


def _repeated(model: TrainingModel, shared: Shared, stages: StageClasses) -> FloatArray:
    """FLOP of a token's recomputation, [n]; of plans with several strategies in proportion to their layers."""
    sizes = shared[0][0]
    if len(shared) == 1:
        return model.recomputed_flops_per_token(sizes.sequence, sizes.any_recompute, sizes.full_recompute)
    total = np.zeros_like(sizes.sequence)
    for own, held in shared:
        layers = sum((kind * stages.count).sum(axis=0) for kind in held)
        whole = model.recomputed_flops_per_token(sizes.sequence, own.any_recompute, own.full_recompute)
        total = total + layers / model.num_layers * whole
    return total


def switch_s(model: TrainingModel, shared: Shared, links: Links) -> FloatArray:
    """Seconds of each stage and micro-batch for layers of another tensor-parallel size, [classes, n].

    Their ranks gather the hidden states of the larger micro-batch before the first of them, and reduce-scatter the
    gradients on the way back: once a stage for each such size, because layers of one size lie together.
    """
    base, held = shared[0]
    total = np.zeros_like(held[0])
    for own, layers in shared[1:]:
        tensor = np.maximum(own.tensor, base.tensor)
        moved_bytes = HALF * model.hidden_size * np.maximum(own.tokens, base.tokens)
        one_s = 2.0 * links.reduce_scatter_s(moved_bytes, group(links.network, tensor, np.ones_like(tensor)))
        there = np.any(np.asarray(layers) > 0.0, axis=0)
        total = total + there * np.where(own.tensor == base.tensor, 0.0, one_s)
    return total


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
    shared: Shared,
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
    base = shared[0][0]
    one_copy = stages.first * stages.last if model.tied else 0.0
    once = np.zeros_like(depth)
    each = np.zeros_like(depth)
    updated = np.zeros_like(depth)
    for place, (sizes, held) in enumerate(shared_alike(shared)):
        dense: FloatArray = np.zeros_like(held[0])
        if place == 0:
            dense = (stages.first + stages.last - one_copy) * float(model.embedding_parameters)
        routed = np.zeros_like(depth)
        for kind, layers in zip(model.kinds, held, strict=True):
            dense = dense + layers * float(kind.dense_parameters)
            if kind.num_experts:
                routed = routed + layers * float(kind.routed_parameters)
        kinds_of_weights = [(dense.max(axis=0) / sizes.tensor, sizes.replicas, sizes.tensor)]
        if routed.any():
            parameters = routed.max(axis=0) / (sizes.tensor * sizes.expert)
            kinds_of_weights.append((parameters, sizes.replicas / sizes.expert, sizes.tensor * sizes.expert))
        zero = sizes.zero
        for parameters, replicas, stride in kinds_of_weights:
            ranks: Group = group(links.network, replicas, stride)
            per_byte = links.second_per_byte(ranks) * parameters
            start = links.latency_s(ranks) * (parameters > 0.0)
            gradients = np.minimum(sizes.gradient_bytes, 4.0) * per_byte + start
            weights = WEIGHT_BYTES * per_byte + start
            once = once + np.where(zero == 0, 2.0 * gradients, np.where(zero < 3, weights, 0.0))
            once = once + np.where(zero == 1, gradients, 0.0)
            by_layer = 2.0 * weights + gradients + 3.0 * (depth - 1.0) * start
            each = each + np.where(zero == 3, by_layer, np.where(zero == 2, gradients, 0.0))
            updated = updated + np.where(zero >= 1, parameters / replicas, parameters)
    exposed = _exposed(once, micro_batch_s, overlap) + base.micro_batches * _exposed(each, micro_batch_s, overlap)
    return exposed, updated


def sharing_s(kind: LayerKind, sizes: PlanSizes, links: Links) -> FloatArray:
    """Seconds a micro-batch of one layer's data-parallel collectives, [n], were none of them hidden."""
    total = np.zeros_like(sizes.tensor)
    for count, experts in ((kind.dense_parameters, 1.0), (kind.routed_parameters, sizes.expert)):
        stride = sizes.tensor * experts
        ranks = group(links.network, np.maximum(sizes.replicas / experts, 1.0), stride)
        per_byte = links.second_per_byte(ranks) * (float(count) / stride)
        gradients, weights = np.minimum(sizes.gradient_bytes, 4.0) * per_byte, WEIGHT_BYTES * per_byte
        once = np.where(sizes.zero == 0, 2.0 * gradients, np.where(sizes.zero < 3, weights, 0.0))
        once = (once + np.where(sizes.zero == 1, gradients, 0.0)) / sizes.micro_batches
        total = total + once + np.where(sizes.zero == 3, 2.0 * weights + gradients, (sizes.zero == 2) * gradients)
    return np.asarray(total)


def shared_alike(shared: Shared) -> Shared:
    """Strategies with layers that are sharded alike, and so communicate as one, counted with the plan's own."""
    base, own = shared[0]
    found = []
    for sizes, held in shared[1:]:
        alike = (sizes.tensor == base.tensor) & (sizes.zero == base.zero)
        own = tuple(mine + alike * layers for mine, layers in zip(own, held, strict=True))
        found.append((sizes, tuple(~alike * layers for layers in held)))
    return [(base, own), *found]


def _exposed(busy_s: FloatArray, window_s: FloatArray, overlap: float) -> FloatArray:
    """What is left to wait for of a collective beside `window_s` of computation."""
    return np.asarray(busy_s - overlap * np.minimum(busy_s, window_s))
