"""How layers fall on pipeline stages, as a few classes of equal stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.sizes import PlanSizes, plan_sizes

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: What layers do: sizes, and the layers of each class of stages by kind, [classes, n].
Shared = Sequence[tuple[PlanSizes, tuple[FloatArray, ...]]]


@dataclass(frozen=True)
class StageClasses:
    """Stages of n plans, equal ones together: every array is [classes, n].

    count : how many stages the class stands for; 0 where a plan has none of it.
    index : place of its first stage, which keeps the most micro-batches in flight.
    layers : layers of one stage by kind, one array a kind; 0 where count is 0.
    first, last : 1 where the stage holds the embedding, the output head.
    """

    count: FloatArray
    index: FloatArray
    layers: tuple[FloatArray, ...]
    first: FloatArray
    last: FloatArray


def stage_classes(plans: TrainingPlans, model: TrainingModel, every_stage: bool = False) -> StageClasses:
    """Classes of stages of legal plans.

    Without `stage_layers` each stage gets layers // stages. Of those left over, no stage gets two, and the last stage,
    which has the output head, and then the first, which has the embedding and the most activations, get theirs last.
    Equal layers make four classes: the first stage, longer and shorter ones between, the last. Layers of several
    kinds, stages given by the plan, and `every_stage` make one class a stage.
    """
    given = plans.stage_layers
    if given is None and len(model.kinds) == 1 and not every_stage:
        return _even(plans, model.num_layers)
    layers = even_split(plans, model.num_layers) if given is None else given
    places = np.arange(layers.shape[1])[:, None]
    stages = plans.pipeline_parallel_size
    last = np.where(plans.schedule == Schedule.ZB_V, 0, stages - 1)
    by_stage, end = layers.T.astype(np.float64), np.cumsum(layers, axis=1)
    return StageClasses(
        count=(places < stages).astype(np.float64),
        index=np.broadcast_to(places.astype(np.float64), by_stage.shape),
        layers=tuple(layers_by_kind(model, plans, end - layers, end)) if len(model.kinds) > 1 else (by_stage,),
        first=np.broadcast_to((places == 0).astype(np.float64), by_stage.shape),
        last=(places == last).astype(np.float64),
    )


def strategies(plans: TrainingPlans, stages: StageClasses) -> Shared:
    """What layers do: the plan's own sizes with its own layers first, then its variants."""
    base = plan_sizes(plans)
    if not plans.variants:
        return [(base, stages.layers)]
    others = [tuple(variant.layers.transpose(0, 2, 1)) for variant in plans.variants]
    own = tuple(layers - sum(held[k] for held in others) for k, layers in enumerate(stages.layers))
    different = (plan_sizes(plans.as_variant(variant)) for variant in plans.variants)
    return [(base, own), *zip(different, others, strict=True)]


def even_split(plans: TrainingPlans, num_layers: int) -> IntArray:
    """Layers of each stage without `stage_layers`, [n, most stages], zeros after the last."""
    stages = plans.pipeline_parallel_size[:, None]
    places = np.arange(int(plans.pipeline_parallel_size.max()))
    left = num_layers % stages
    longer = np.where(left == stages - 1, places < left, (places >= 1) & (places <= left))
    return np.where(places < stages, num_layers // stages + longer, 0)


def _even(plans: TrainingPlans, num_layers: int) -> StageClasses:
    stages = plans.pipeline_parallel_size
    each, left = np.divmod(num_layers, stages)
    there_and_back = plans.schedule == Schedule.ZB_V
    n = len(plans)
    count = np.empty((4, n))
    index = np.zeros((4, n))
    layers = np.empty((4, n))
    between = np.maximum(stages - 2, 0)
    longer = np.minimum(left, between)
    count[0], count[1], count[2], count[3] = 1, longer, between - longer, stages > 1
    index[1], index[2], index[3] = 1, 1 + longer, stages - 1
    layers[0] = each + (left > between)
    layers[1], layers[2], layers[3] = each + 1, each, each
    layers *= count > 0
    first = np.zeros((4, n))
    first[0] = 1
    last = np.zeros((4, n))
    alone = there_and_back | (stages == 1)
    last[0], last[3] = alone, ~alone
    return StageClasses(count, index, (layers,), first, last)


def layers_by_kind(model: TrainingModel, plans: TrainingPlans, first: IntArray, end: IntArray) -> list[FloatArray]:
    """Layers first .. end - 1 of the stages, both [n, stages], by kind: each [stages, n].

    Interleaving scatters a stage's chunks over the depth, so that it holds every kind in proportion.
    """
    scattered = (plans.virtual_pipeline_size > 1)[:, None]
    found = []
    for k, before in enumerate(model.layers_before):
        share = model.pattern.count(k) / model.num_layers
        held = np.where(scattered, share * (end - first), before[end] - before[first])
        found.append(np.ascontiguousarray(held.T, dtype=np.float64))
    return found
