"""Memory of one GPU of each pipeline stage: states under ZeRO, activations in flight, logits, working buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import MemoryMargin
from planner.cost.training.model import LayerKind, TrainingModel
from planner.cost.training.pipeline import in_flight
from planner.cost.training.plans import Schedule, TrainingPlans, check
from planner.cost.training.sizes import PlanSizes
from planner.cost.training.stages import StageClasses, stage_classes, strategies

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Plans computed at once: temporary arrays stay in the second-level cache.
CHUNK_PLANS = 8192
WEIGHT_BYTES = 2.0
#: fp32 master weight and two Adam moments.
OPTIMIZER_BYTES = 12.0
#: Bytes a hidden element keeps, in 16 bits: inputs of both norms, of QKV and of the MLP; and two dropout masks of one
#: byte (Korthikanti et al., arXiv 2205.05198, section 4).
HIDDEN_KEPT_BYTES = 8.0
DROPOUT_MASK_BYTES = 2.0
#: Bytes a score keeps when it is written out: softmax, dropout mask and dropout's result (the same section).
SCORE_KEPT_BYTES = 5.0
#: Layers whose weights FSDP holds whole at once: the one that computes and the one that is fetched ahead.
GATHERED_LAYERS = 2.0


@dataclass(frozen=True, eq=False)
class TrainingMemory:
    """Bytes of one GPU by part; [n] at each plan's fullest stage, or [n, stages] by stage (0 beyond the last).

    weights, gradients, optimizer : model states after ZeRO; the layers kept for good.
    activations : what forward passes in flight keep for their backward passes.
    logits : output of the head and its gradient, on the stage that has it.
    working : layers gathered by FSDP, and the layer that is being recomputed.
    margin : what a driver reports above these (`MemoryMargin`).
    stage : the fullest stage [n], or the stage's number [n, stages].
    """

    weights: FloatArray
    gradients: FloatArray
    optimizer: FloatArray
    activations: FloatArray
    logits: FloatArray
    working: FloatArray
    margin: FloatArray
    stage: IntArray

    @property
    def total(self) -> FloatArray:
        """All parts together."""
        return self.states + self.activations + self.logits + self.working + self.margin

    @property
    def states(self) -> FloatArray:
        """Weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer


def training_memory(model: TrainingModel, plans: TrainingPlans, margin: MemoryMargin) -> TrainingMemory:
    """Memory of each plan's fullest stage, arrays [n]; RefusedError for illegal plans."""
    check(plans, model)
    parts = []
    for start in range(0, len(plans), CHUNK_PLANS):
        chunk = plans[start : start + CHUNK_PLANS]
        stages = stage_classes(chunk, model)
        every = _memory(model, chunk, stages, margin)
        total = np.where(stages.count > 0, every.total, -1.0)
        fullest = total.argmax(axis=0)
        parts.append(_map(every, lambda array, at=fullest: array[at, np.arange(at.size)]))  # type: ignore[misc]
    return _concatenated(parts)


def training_memory_by_stage(model: TrainingModel, plans: TrainingPlans, margin: MemoryMargin) -> TrainingMemory:
    """Memory of every stage, arrays [n, most stages of a plan]; RefusedError for illegal plans."""
    check(plans, model)
    stages = stage_classes(plans, model, every_stage=True)
    every = _memory(model, plans, stages, margin)
    return _map(every, lambda array: np.where(stages.count > 0, array, 0).T.astype(array.dtype))


def _memory(model: TrainingModel, plans: TrainingPlans, stages: StageClasses, margin: MemoryMargin) -> TrainingMemory:
    """All parts for every class of stages, [classes, n]."""
    one_copy = stages.first * stages.last if model.tied else 0.0
    ends = stages.first + stages.last - one_copy
    shared = strategies(plans, stages)
    base = shared[0][0]
    parts = np.zeros((5, *ends.shape))
    weights, gradients, optimizer, kept, working = parts
    for place, (sizes, layers) in enumerate(shared):
        held = ends * (model.embedding_parameters / sizes.tensor) if place == 0 else np.zeros_like(ends)
        here = (
            np.any(np.asarray(layers) > 0.0, axis=0) | (held > 0.0) if len(shared) > 1 else np.ones((1, 1), dtype=bool)
        )
        for part, more in zip((weights, gradients, optimizer), _held(model, sizes, layers, held), strict=True):
            part += more
        kept += sum(count * _kept(kind, model, sizes) for kind, count in zip(model.kinds, layers, strict=True))
        np.maximum(working, here * _working(model, sizes, held), out=working)
    activations = kept * in_flight(base, stages.index)
    whole = np.where(base.schedule == Schedule.GPIPE, base.micro_batches, 1.0)
    logits = stages.last * (margin.logits_bytes * model.vocab_size * base.tokens / base.tensor * whole)
    above = (
        margin.fixed_bytes
        + (margin.states_factor - 1.0) * (weights + gradients + optimizer)
        + (margin.activations_factor - 1.0) * (activations + logits + working)
    )
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        working=working,
        margin=above,
        stage=stages.index.astype(np.int64),
    )


def _held(
    model: TrainingModel, sizes: PlanSizes, layers: Sequence[FloatArray], embeddings: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bytes of weights, gradients and optimizer of these layers and embeddings, [classes, n]."""
    dense: FloatArray = embeddings
    routed: FloatArray | None = None
    for kind, count in zip(model.kinds, layers, strict=True):
        dense = dense + count * (kind.dense_parameters / sizes.tensor)
        if kind.num_experts:
            more = count * (kind.routed_parameters / (sizes.tensor * sizes.expert))
            routed = more if routed is None else routed + more
    found = _states(sizes, dense, sizes.replicas)
    if routed is None:
        return found
    weights, gradients, optimizer = _states(sizes, routed, sizes.replicas / sizes.expert)
    return found[0] + weights, found[1] + gradients, found[2] + optimizer


def _kept(kind: LayerKind, model: TrainingModel, sizes: PlanSizes) -> FloatArray:
    """Bytes that one layer keeps of one micro-batch, [n]."""
    core, rest = _kept_per_layer(kind, model, sizes)
    chosen = np.where(sizes.any_recompute, rest, core + rest)
    return np.asarray(np.where(sizes.full_recompute, _layer_input(model, sizes), chosen))


def _working(model: TrainingModel, sizes: PlanSizes, embeddings: FloatArray) -> FloatArray:
    """Bytes of what is recomputed, and gathered by FSDP, at once: [classes, n] or [n]."""
    widest, busiest, score = np.zeros((3, sizes.tensor.size))
    for kind in model.kinds:
        core, rest = _kept_per_layer(kind, model, sizes)
        experts = kind.routed_parameters / sizes.expert
        widest = np.maximum(widest, (kind.dense_parameters + experts) / sizes.tensor)
        busiest, score = np.maximum(busiest, core + rest), np.maximum(score, core)
    again = np.where(sizes.full_recompute, busiest, np.where(sizes.any_recompute, score, 0.0))
    gathered = GATHERED_LAYERS * WEIGHT_BYTES * widest + sizes.gradient_bytes * widest
    return np.asarray(again + (sizes.zero == 3) * (gathered + WEIGHT_BYTES * embeddings))


def _states(
    sizes: PlanSizes, parameters: FloatArray, replicas: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Bytes of weights, gradients and optimizer of `parameters` [classes, n] that `replicas` ranks hold together."""
    share = 1.0 / replicas
    weights = parameters * np.where(sizes.zero >= 3, WEIGHT_BYTES * share, WEIGHT_BYTES)
    gradients = parameters * (sizes.gradient_bytes * np.where(sizes.zero >= 2, share, 1.0))
    optimizer = parameters * np.where(sizes.zero >= 1, OPTIMIZER_BYTES * share, OPTIMIZER_BYTES)
    return weights, gradients, optimizer


def _kept_per_layer(kind: LayerKind, model: TrainingModel, sizes: PlanSizes) -> tuple[FloatArray, FloatArray]:
    """Bytes one micro-batch keeps in one layer without recomputation, [n]: the attention core, and the rest."""
    hidden = (HIDDEN_KEPT_BYTES + DROPOUT_MASK_BYTES * model.dropout) * model.hidden_size
    split = 2.0 * (kind.projected_width + kind.attended_width + kind.matrices_of_mlp * kind.mlp_width)
    of_expert = 2.0 * (kind.matrices_of_mlp * kind.expert_width + 2 * model.hidden_size)
    split += kind.experts_per_token * of_expert
    rest = sizes.tokens * (hidden / sizes.split_hidden + split / sizes.tensor)
    heads = kind.attention.num_attention_heads
    scores = np.where(sizes.flash, 0.0, SCORE_KEPT_BYTES * heads * sizes.sequence / sizes.tensor)
    return sizes.tokens * scores, rest


def _layer_input(model: TrainingModel, sizes: PlanSizes) -> FloatArray:
    """Bytes of the input of one layer, which is all that full recomputation keeps, [n]."""
    return WEIGHT_BYTES * model.hidden_size * sizes.tokens / sizes.split_hidden


def _map(memory: TrainingMemory, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> TrainingMemory:
    return TrainingMemory(**{field.name: change(getattr(memory, field.name)) for field in fields(memory)})


def _concatenated(parts: Sequence[TrainingMemory]) -> TrainingMemory:
    names = [field.name for field in fields(TrainingMemory)]
    return TrainingMemory(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
