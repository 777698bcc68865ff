"""Layers of a stage that differ, as blocks of a document and as arrays of the cost model, there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from formulations.parallelism.training.search.problem import RECOMPUTE, FloatArray
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import VARIED, LayerVariant, TrainingPlans
from planner.cost.training.stages import layers_by_kind
from planner.training_plan import LayerBlock

_NAMES = {int(value): name for name, value in RECOMPUTE.items()}

#: What a block may differ in: tensor-parallel size, ZeRO stage, recomputation.
Strategy = tuple[int, int, int]


def strategy_of(block: LayerBlock) -> Strategy:
    """What the layers of a block do."""
    return block.tensor_parallel_size, block.zero_stage, int(RECOMPUTE[block.recompute])


def block_of(strategy: Strategy, layers: int) -> LayerBlock:
    """A block of so many layers."""
    tensor, zero, recompute = strategy
    return LayerBlock(
        num_layers=layers, tensor_parallel_size=tensor, zero_stage=zero, recompute=_NAMES[recompute]
    )  # fmt: skip


def own_strategy(one: TrainingPlans) -> Strategy:
    """What layers of the single plan do unless a variant says otherwise."""
    return int(one.tensor_parallel_size[0]), int(one.zero_stage[0]), int(one.recompute[0])


def with_blocks(model: TrainingModel, one: TrainingPlans, blocks: Sequence[Sequence[LayerBlock]]) -> TrainingPlans:
    """The single plan, whose stages have these blocks; an empty list is a stage that does as the plan says.

    Sizes that do not divide become 0, which the cost model refuses.
    """
    layers = one.stage_layers
    assert layers is not None
    own = own_strategy(one)
    first = np.cumsum(layers, axis=1) - layers
    held: dict[Strategy, FloatArray] = {}
    for stage, parts in enumerate(blocks):
        start = int(first[0, stage])
        for block in parts:
            end = start + block.num_layers
            strategy = strategy_of(block)
            if strategy != own:
                empty = np.zeros((len(model.kinds), *layers.shape))
                bounds = np.array([[start]]), np.array([[min(end, model.num_layers)]])
                counts = np.array(layers_by_kind(model, one, *bounds))
                held.setdefault(strategy, empty)[:, 0, stage] += counts[:, 0, 0]
            start = end
    return replace(one, variants=tuple(variant_of(one, strategy, counts) for strategy, counts in held.items()))


def variant_of(one: TrainingPlans, strategy: Strategy, layers: FloatArray) -> LayerVariant:
    """Layers [kinds, 1, stages] of the single plan that follow a strategy, on the same GPUs and micro-batches."""
    tensor, zero, recompute = strategy
    gpus = int(one.tensor_parallel_size[0] * one.data_parallel_size[0])
    sequences = int(one.data_parallel_size[0] * one.micro_batch_size[0])
    data = gpus // tensor
    values = (tensor, data, sequences // data if data else 0, zero, recompute)
    sizes = {name: np.array([value]) for name, value in zip(VARIED, values, strict=True)}
    return LayerVariant(**sizes, layers=layers)


def blocks_of(one: TrainingPlans) -> list[tuple[LayerBlock, ...]]:
    """Blocks of each stage of a single plan whose variants come after its own layers in every stage."""
    stages = int(one.pipeline_parallel_size[0])
    if one.stage_layers is None or not one.variants:
        return [()] * stages
    found = []
    for stage in range(stages):
        counts = [round(float(variant.layers[:, 0, stage].sum())) for variant in one.variants]
        parts = [(own_strategy(one), int(one.stage_layers[0, stage]) - sum(counts))]
        parts += [
            (own_strategy(one.as_variant(variant)), count) for variant, count in zip(one.variants, counts, strict=True)
        ]
        found.append(tuple(block_of(strategy, count) for strategy, count in parts if count))
    return found
