"""A training plan over unequal GPUs as lines and tables: layout, stages by kind, and the other ways to use them."""

from __future__ import annotations

from collections.abc import Iterable

from cli.render import Part, number, percent, table
from formulations.parallelism.training.mixed.plans import owner
from formulations.parallelism.training.mixed.problem import MixedProblem
from planner.training_plan import TrainingPlan, TrainingStage
from planner.units import format_bytes, format_seconds

LAYOUT_WORDS = {
    "one_kind": "one kind alone",
    "stages": "one pipeline through several kinds",
    "replicas": "replicas of one kind each, with their own shares of the batch",
    "shards": "replicas of one kind each, with their own shares of batch and optimizer states",
}


def mixed_answer(plan: TrainingPlan, problem: MixedProblem) -> Iterable[Part]:
    """Throughput, memory, every stage on its kind, and what else there is."""
    idle = f", {plan.idle_gpus} idle" if plan.idle_gpus else ""
    yield "throughput", f"{number(plan.tokens_per_s)} tokens/s, MFU {percent(plan.mfu)}, {plan.num_gpus} GPUs{idle}"
    assert plan.layout is not None
    yield "layout", LAYOUT_WORDS[plan.layout]
    tightest = min(plan.stages, key=lambda stage: _free(problem, stage))
    yield (
        "memory",
        (
            f"{format_bytes(tightest.peak_memory_bytes)} on the fullest {tightest.device},"
            f" {format_bytes(_free(problem, tightest))} free"
        ),
    )
    several = len({stage.pipeline for stage in plan.stages}) > 1
    where = any(stage.site is not None for stage in plan.stages)
    rows = []
    for place, stage in enumerate(plan.stages):
        cells = [str(place)]
        cells += [str(stage.pipeline)] if several else []
        cells += [f"{stage.num_gpus} x {stage.device}"]
        cells += [stage.site or ""] if where else []
        cells += [f"{stage.first_gpu}-{stage.first_gpu + stage.num_gpus - 1}", _layers(stage), _sizes(stage)]
        cells += [_micro_batches(stage), format_seconds(stage.micro_batch_s), format_seconds(stage.exchange_s)]
        rows.append((*cells, f"{format_bytes(stage.peak_memory_bytes)} of {format_bytes(_room(problem, stage))}"))
    head = ["stage", *(["pipeline"] if several else []), "kind", *(["site"] if where else []), "GPUs", "layers"]
    yield table((*head, "sizes", "micro-batches", "a micro-batch", "sends", "memory"), rows)
    if plan.work_bound_s is not None:
        yield "no faster", f"{format_seconds(plan.work_bound_s)}: all work at each kind's best rate"
    others = [
        (one.name, "-" if one.step_s is None else format_seconds(one.step_s), _beside(plan, one.step_s) or one.why)
        for one in plan.alternatives
    ]
    yield table(("another way", "step", "beside this plan"), others)


def _room(problem: MixedProblem, stage: TrainingStage) -> float:
    number = owner(problem, stage)
    assert number is not None
    return problem.blocks[number].capacity_bytes


def _free(problem: MixedProblem, stage: TrainingStage) -> float:
    return _room(problem, stage) - stage.peak_memory_bytes


def _layers(stage: TrainingStage) -> str:
    beside = [name for name, held in (("embedding", stage.embedding), ("head", stage.head)) if held]
    return " + ".join([str(stage.num_layers), *beside])


def _sizes(stage: TrainingStage) -> str:
    sizes = (
        ("TP", stage.tensor_parallel_size), ("CP", stage.context_parallel_size), ("EP", stage.expert_parallel_size),
        ("DP", stage.data_parallel_size), ("mbs", stage.micro_batch_size),
    )  # fmt: skip
    told = [f"{name}{size}" for name, size in sizes if size != 1 or name in ("TP", "mbs")]
    return " ".join([*told, *([] if stage.recompute == "none" else [f"recompute {stage.recompute}"])])


def _micro_batches(stage: TrainingStage) -> str:
    """13 x 4 + 12 x 4: replicas with as many, the most first."""
    counts = {count: stage.micro_batches.count(count) for count in sorted(stage.micro_batches, reverse=True)}
    return " + ".join(f"{count}" if times == 1 else f"{count} x {times}" for count, times in counts.items())


def _beside(plan: TrainingPlan, step_s: float | None) -> str:
    return "" if step_s is None else f"{step_s / plan.step_s:.2f}x"
