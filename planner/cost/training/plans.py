"""Arrays of training plans, and what makes one illegal for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.cost.training.model import TrainingModel
from planner.errors import RefusedError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Recompute(IntEnum):
    """What the backward pass computes again instead of keeping it."""

    NONE = 0
    SELECTIVE = 1  # the attention core: scores, softmax and their product with the values
    FULL = 2  # the whole layer, of which only the input is kept


class Schedule(IntEnum):
    """Order of forward (F), input-gradient (B) and weight-gradient (W) passes in a pipeline.

    ONE_F_ONE_B with a virtual pipeline size above 1 is the interleaved schedule.
    """

    GPIPE = 0
    ONE_F_ONE_B = 1
    ZB_1P = 2  # zero bubble, W delayed within the memory of 1F1B
    ZB_2P = 3  # zero bubble, W delayed within twice that memory
    ZB_V = 4  # two chunks a stage, there and back, within the memory of 1F1B


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerVariant:
    """Layers that do otherwise than their plan: arrays [n], and `layers` of each stage by kind, [kinds, n, stages].

    A plan's stage has the same GPUs and micro-batches for all of its layers: tensor x data and data x micro_batch are
    the plan's. Layers of another tensor-parallel size move activations once a stage and pass.
    """

    tensor_parallel_size: IntArray
    data_parallel_size: IntArray
    micro_batch_size: IntArray
    zero_stage: IntArray
    recompute: IntArray
    layers: npt.NDArray[np.float64]

    def __getitem__(self, chosen: slice | IntArray | BoolArray) -> LayerVariant:
        """Those of some plans."""
        sizes = {name: getattr(self, name)[chosen] for name in VARIED}
        return LayerVariant(**sizes, layers=self.layers[:, chosen])


#: What the layers of one plan may differ in.
VARIED = ("tensor_parallel_size", "data_parallel_size", "micro_batch_size", "zero_stage", "recompute")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPlans:
    """Plans as equally long read-only arrays [n]; make them with `build`, which broadcasts scalars.

    A plan uses tp x cp x dp x pp GPUs; experts are split inside the cp x dp of a stage.

    zero_stage : 0 nothing is sharded over data-parallel ranks, 1 the optimizer, 2 gradients too, 3 weights too (FSDP).
    micro_batch_size : sequences of one forward pass of one data-parallel rank; global_batch_size those of a step.
    sequence_parallel : norms and residuals are split over tensor-parallel ranks too (Megatron's sequence parallelism).
    flash_attention : the attention core never writes its scores to memory, and skips the causal half.
    gradient_bytes : bytes kept for a gradient: 2, 4, or 6 where a framework keeps a 16-bit and an fp32 one (DeepSpeed's
        bf16 optimizer); at most 4 of them are communicated.
    stage_layers : layers of each stage [n, stages], zeros after the last; None splits evenly (see `StageClasses`).
    variants : layers, counted in stage_layers, that do otherwise than the plan.
    """

    tensor_parallel_size: IntArray
    pipeline_parallel_size: IntArray
    virtual_pipeline_size: IntArray
    context_parallel_size: IntArray
    expert_parallel_size: IntArray
    data_parallel_size: IntArray
    zero_stage: IntArray
    micro_batch_size: IntArray
    global_batch_size: IntArray
    sequence_length: IntArray
    sequence_parallel: BoolArray
    flash_attention: BoolArray
    recompute: IntArray
    schedule: IntArray
    gradient_bytes: IntArray
    stage_layers: IntArray | None = None
    variants: tuple[LayerVariant, ...] = ()

    def __post_init__(self) -> None:
        size = self.tensor_parallel_size.shape
        if self.variants and self.stage_layers is None:
            raise ValueError("variants need stage_layers")
        for field in fields(self):
            array = getattr(self, field.name)
            if array is None or field.name == "variants":
                continue
            if array.shape[:1] != size or array.ndim != (2 if field.name == "stage_layers" else 1):
                raise ValueError(f"{field.name} has shape {array.shape}, tensor_parallel_size has {size}")
            array.flags.writeable = False

    @classmethod
    def build(
        cls,
        *,
        micro_batch_size: npt.ArrayLike,
        global_batch_size: npt.ArrayLike,
        sequence_length: npt.ArrayLike,
        tensor_parallel_size: npt.ArrayLike = 1,
        pipeline_parallel_size: npt.ArrayLike = 1,
        virtual_pipeline_size: npt.ArrayLike = 1,
        context_parallel_size: npt.ArrayLike = 1,
        expert_parallel_size: npt.ArrayLike = 1,
        data_parallel_size: npt.ArrayLike = 1,
        zero_stage: npt.ArrayLike = 1,
        sequence_parallel: npt.ArrayLike = True,
        flash_attention: npt.ArrayLike = True,
        recompute: npt.ArrayLike = Recompute.NONE,
        schedule: npt.ArrayLike = Schedule.ONE_F_ONE_B,
        gradient_bytes: npt.ArrayLike = 4,
        stage_layers: npt.ArrayLike | None = None,
    ) -> TrainingPlans:
        """Plans from scalars and lists of one length; stage_layers is one list for all plans or one a plan."""
        integers: dict[str, npt.ArrayLike] = {
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "virtual_pipeline_size": virtual_pipeline_size,
            "context_parallel_size": context_parallel_size,
            "expert_parallel_size": expert_parallel_size,
            "data_parallel_size": data_parallel_size,
            "zero_stage": zero_stage,
            "micro_batch_size": micro_batch_size,
            "global_batch_size": global_batch_size,
            "sequence_length": sequence_length,
            "recompute": recompute,
            "schedule": schedule,
            "gradient_bytes": gradient_bytes,
        }
        arrays: dict[str, npt.NDArray[Any]] = {name: _integers(name, value) for name, value in integers.items()}
        flags: dict[str, npt.NDArray[Any]] = {
            "sequence_parallel": np.asarray(sequence_parallel, dtype=np.bool_),
            "flash_attention": np.asarray(flash_attention, dtype=np.bool_),
        }
        stages = None if stage_layers is None else np.atleast_2d(_integers("stage_layers", stage_layers))
        shape = np.broadcast_shapes(
            (1,),
            *(array.shape for array in (*arrays.values(), *flags.values())),
            () if stages is None else stages.shape[:1],
        )
        if len(shape) != 1:
            raise ValueError("plans are one-dimensional arrays")
        built: dict[str, Any] = {
            name: np.array(np.broadcast_to(array, shape)) for name, array in (arrays | flags).items()
        }
        if stages is not None:
            built["stage_layers"] = np.array(np.broadcast_to(stages, (*shape, stages.shape[1])))
        return cls(**built)

    @classmethod
    def concat(cls, parts: Sequence[TrainingPlans]) -> TrainingPlans:
        """All plans of the parts, one after the other; either all or none give stage_layers, and none has variants."""
        if any(part.variants for part in parts):
            raise ValueError("plans with variants are not joined")
        given = [part.stage_layers for part in parts if part.stage_layers is not None]
        if given and len(given) != len(parts):
            raise ValueError("either all parts give stage_layers or none does")
        joined: dict[str, Any] = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(cls)
            if field.name not in ("stage_layers", "variants")
        }
        if given:
            width = max(layers.shape[1] for layers in given)
            padded = [np.pad(layers, ((0, 0), (0, width - layers.shape[1]))) for layers in given]
            joined["stage_layers"] = np.concatenate(padded)
        return cls(**joined)

    def __len__(self) -> int:
        return int(self.tensor_parallel_size.size)

    def __getitem__(self, chosen: slice | IntArray | BoolArray) -> TrainingPlans:
        """Plans of a slice, a mask or a list of indices."""
        taken: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, array in taken.items():
            if name != "variants":
                taken[name] = None if array is None else array[chosen]
        taken["variants"] = tuple(variant[chosen] for variant in self.variants)
        return type(self)(**taken)

    def as_variant(self, variant: LayerVariant) -> TrainingPlans:
        """The plans, were all of their layers like the variant's."""
        return replace(self, variants=(), **{name: getattr(variant, name) for name in VARIED})

    @property
    def num_gpus(self) -> IntArray:
        """GPUs of each plan, [n]."""
        return (
            self.tensor_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
            * self.pipeline_parallel_size
        )

    @property
    def num_micro_batches(self) -> IntArray:
        """Forward passes of a pipeline in one step, [n]."""
        return self.global_batch_size // (self.data_parallel_size * self.micro_batch_size)


@dataclass(frozen=True, eq=False)
class PlanProblem:
    """Why some plans are illegal: `mask` [n] says which ones."""

    reason: str
    mask: BoolArray


def problems(plans: TrainingPlans, model: TrainingModel) -> list[PlanProblem]:
    """Every rule that at least one plan breaks, with a mask of those plans; an empty list when all are legal.

    Sizes that are not positive are reported alone, because the other rules divide by them.
    """
    found = _not_positive(plans)
    if found:
        return found
    tp, pp, vp = plans.tensor_parallel_size, plans.pipeline_parallel_size, plans.virtual_pipeline_size
    cp, ep, dp = plans.context_parallel_size, plans.expert_parallel_size, plans.data_parallel_size
    schedule, replicas = plans.schedule, dp * plans.micro_batch_size
    micro_batches = plans.global_batch_size // replicas
    rules: list[tuple[str, BoolArray]] = []
    for count, what in _divided_by_tensor_parallelism(model):
        rules.append((f"tensor_parallel_size does not divide the {count} {what}", count % tp != 0))
    plain = (schedule == Schedule.GPIPE) | (schedule == Schedule.ZB_1P) | (schedule == Schedule.ZB_2P)
    interleaved = (schedule == Schedule.ONE_F_ONE_B) & (vp > 1)
    too_deep = f"pipeline_parallel_size x virtual_pipeline_size is beyond the {model.num_layers} layers"
    rules += [
        (too_deep, pp * vp > model.num_layers),
        (
            "global_batch_size is not a multiple of data_parallel_size x micro_batch_size",
            plans.global_batch_size % replicas != 0,
        ),
        (
            "interleaving needs micro-batches that pipeline_parallel_size divides",
            interleaved & (micro_batches % pp != 0),
        ),
        ("interleaving needs pipeline_parallel_size above 1", interleaved & (pp == 1)),
        ("GPIPE, ZB_1P and ZB_2P have no virtual stages: virtual_pipeline_size must be 1", plain & (vp > 1)),
        (
            "ZB_V has two chunks a stage: virtual_pipeline_size must be 2",
            (schedule == Schedule.ZB_V) & (vp != 2),
        ),
        ("context_parallel_size does not divide the sequence_length", plans.sequence_length % cp != 0),
        ("zero_stage must be 0, 1, 2 or 3", plans.zero_stage > 3),
        ("recompute is none of Recompute", plans.recompute > max(Recompute)),
        ("schedule is none of Schedule", schedule > max(Schedule)),
        ("gradient_bytes must be 2, 4 or 6", (plans.gradient_bytes % 2 != 0) | (plans.gradient_bytes > 6)),
    ]
    if model.num_experts:
        spread = "expert_parallel_size does not divide data_parallel_size x context_parallel_size"
        rules.append((spread, (dp * cp) % ep != 0))
        for experts in model.num_experts:
            rules.append((f"expert_parallel_size does not divide the {experts} experts", experts % ep != 0))
    else:
        rules.append(("expert_parallel_size is above 1 for a model without experts", ep > 1))
    if plans.stage_layers is not None:
        rules += _stage_rules(plans, plans.stage_layers, model)
    for variant in plans.variants:
        rules += _variant_rules(plans, variant, model)
    return [PlanProblem(reason, mask) for reason, mask in rules if mask.any()]


def check(plans: TrainingPlans, model: TrainingModel) -> None:
    """Raise RefusedError that names every broken rule, how many plans break it, and the first that does."""
    found = problems(plans, model)
    if found:
        told = (f"{p.reason} ({int(p.mask.sum())} plans, first at {int(np.argmax(p.mask))})" for p in found)
        raise RefusedError("illegal plans: " + "; ".join(told))


def _not_positive(plans: TrainingPlans) -> list[PlanProblem]:
    found = []
    for field in fields(plans):
        array = getattr(plans, field.name)
        if field.name in ("sequence_parallel", "flash_attention", "stage_layers", "variants"):
            continue
        lowest = 0 if field.name in ("zero_stage", "recompute", "schedule") else 1
        mask = array < lowest
        if mask.any():
            found.append(PlanProblem(f"{field.name} must be {'positive' if lowest else 'at least 0'}", mask))
    return found


def _divided_by_tensor_parallelism(model: TrainingModel) -> list[tuple[int, str]]:
    """What each layer must split evenly, with its name; key and value heads of MLA are not kept apart."""
    found = set()
    for kind in model.kinds:
        if kind.attention.num_attention_heads:
            found.add((kind.attention.num_attention_heads, "attention heads"))
        if kind.attention.num_key_value_heads and not kind.attention.kv_lora_rank:
            found.add((kind.attention.num_key_value_heads, "key and value heads"))
        if kind.mlp_width:
            found.add((kind.mlp_width, "columns of the MLP"))
    return sorted(found)


def _stage_rules(plans: TrainingPlans, layers: IntArray, model: TrainingModel) -> list[tuple[str, BoolArray]]:
    used = np.arange(layers.shape[1]) < plans.pipeline_parallel_size[:, None]
    return [
        ("stage_layers has fewer stages than pipeline_parallel_size", plans.pipeline_parallel_size > layers.shape[1]),
        ("stage_layers has an empty stage", (used & (layers < plans.virtual_pipeline_size[:, None])).any(axis=1)),
        ("stage_layers has layers beyond the last stage", (~used & (layers != 0)).any(axis=1)),
        (f"stage_layers does not add up to the {model.num_layers} layers", layers.sum(axis=1) != model.num_layers),
    ]


def _variant_rules(plans: TrainingPlans, variant: LayerVariant, model: TrainingModel) -> list[tuple[str, BoolArray]]:
    """Rules of layers that do otherwise: the same GPUs and micro-batches, and what a plan of their own must keep."""
    tp, dp = variant.tensor_parallel_size, variant.data_parallel_size
    sequences = plans.data_parallel_size * plans.micro_batch_size
    assert plans.stage_layers is not None
    every = sum(one.layers.sum(axis=0) for one in plans.variants)
    rules = [
        (
            "layers of a stage use other GPUs than it has",
            tp * dp != plans.tensor_parallel_size * plans.data_parallel_size,
        ),
        ("layers of a stage have micro-batches of another size", dp * variant.micro_batch_size != sequences),
        ("more layers do otherwise than a stage has", (every > plans.stage_layers + 1e-9).any(axis=1)),
        ("zero_stage of a layer must be 0, 1, 2 or 3", (variant.zero_stage < 0) | (variant.zero_stage > 3)),
        ("recompute of a layer is none of Recompute", variant.recompute > max(Recompute)),
    ]
    for count, what in _divided_by_tensor_parallelism(model):
        rules.append((f"tensor_parallel_size of a layer does not divide the {count} {what}", count % tp != 0))
    if model.num_experts:
        spread = (dp * plans.context_parallel_size) % plans.expert_parallel_size != 0
        rules.append(("expert_parallel_size does not divide the replicas of a layer", spread))
    return rules


def _integers(name: str, value: npt.ArrayLike) -> IntArray:
    array = np.asarray(value)
    if array.dtype.kind not in "iub" and not (array.dtype.kind == "f" and (array == np.floor(array)).all()):
        raise ValueError(f"{name} must be whole numbers")
    return array.astype(np.int64)
