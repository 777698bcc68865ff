"""Documents of plans over unequal GPUs, and their price from the document's decisions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from formulations.parallelism.training.mixed.pricing import between_s, price_stage, stage_arrays
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import Shared
from formulations.parallelism.training.mixed.shards import after_shards_s, optimizer_bytes, without_optimizer
from formulations.parallelism.training.mixed.stages import Pipelines
from formulations.parallelism.training.search.plans import of_document, passes_of, sizes_at
from formulations.parallelism.training.search.pricing import step_of
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.uneven_stages import Stage
from planner.cost.training.judge import MEMORY_PARTS
from planner.cost.training.memory import TrainingMemory, training_memory_by_stage
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.stages import even_split
from planner.training_plan import TrainingPlan, TrainingStage

#: Sizes that stages have of their own.
OWN = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "data_parallel_size", "micro_batch_size",
    "zero_stage", "recompute",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Price:
    """A step, its parts, and of every stage the seconds of a micro-batch, of its sends, and bytes by part.

    memory_bytes : of each stage's fullest GPU.
    """

    step_s: float
    parts: dict[str, float]
    work_s: tuple[float, ...]
    exchange_s: tuple[float, ...]
    memory_bytes: tuple[float, ...]
    memory: tuple[dict[str, float], ...]


def owner(problem: MixedProblem, stage: TrainingStage) -> int | None:
    """The block that a stage lies in by kind, site and GPUs; None where there is none."""
    for number, block in enumerate(problem.blocks):
        first = problem.first_gpu(number)
        inside = first <= stage.first_gpu and stage.first_gpu + stage.num_gpus <= first + block.num_gpus
        if inside and (stage.device, stage.site) == (block.device.name, problem.sites[number]):
            return number
    return None


def alone(problem: MixedProblem, plan: TrainingPlan) -> tuple[TrainProblem, TrainingPlan]:
    """The problem and plan of the block that a plan of one kind is on, with that block's own numbers."""
    number = owner(problem, plan.stages[0])
    assert number is not None
    block, first = problem.blocks[number], problem.first_gpu(number)
    stages = tuple(one.model_copy(update={"first_gpu": one.first_gpu - first}) for one in plan.stages)
    idle = plan.idle_gpus - (problem.num_gpus - block.num_gpus)
    return block, plan.model_copy(update={"stages": stages, "idle_gpus": idle, "device": block.device.name})


def price(problem: MixedProblem, plan: TrainingPlan) -> Price:
    """What a legal plan takes, by its layout."""
    if plan.layout == "one_kind":
        return _price_alone(*alone(problem, plan))
    owners = [owner(problem, stage) for stage in plan.stages]
    known = [number for number in owners if number is not None]
    assert len(known) == len(owners)
    if plan.layout == "stages":
        return _price_stages(problem, plan, known)
    return _price_replicas(problem, plan, known)


def _price_alone(block: TrainProblem, plan: TrainingPlan) -> Price:
    one = of_document(block, plan)
    times, memory = step_of(block, one), training_memory_by_stage(block.model, one, block.margin)
    places = range(len(plan.stages))
    return Price(
        step_s=float(times.step_s[0]),
        parts={name.removesuffix("_s"): float(seconds[0]) for name, seconds in times.parts.items()},
        work_s=tuple(passes_of(block, one).total_s[0].tolist()),
        exchange_s=(0.0,) * len(plan.stages),
        memory_bytes=tuple(memory.total[0].tolist()),
        memory=tuple(_by_part(memory, place) for place in places),
    )


def _price_stages(problem: MixedProblem, plan: TrainingPlan, owners: list[int]) -> Price:
    priced = [price_stage(problem, plan, place, owners) for place in range(len(plan.stages))]
    paces = [one.work_s + one.exchange_s for one in priced]
    slowest = int(np.argmax(paces))
    parts = {
        "compute": plan.num_micro_batches * priced[slowest].work_s,
        "pipeline": plan.num_micro_batches * priced[slowest].exchange_s,
        "bubble": sum(paces) - paces[slowest],
        "data": max(one.after_s for one in priced),
    }
    return Price(
        step_s=sum(parts.values()),
        parts=parts,
        work_s=tuple(one.work_s for one in priced),
        exchange_s=tuple(one.exchange_s for one in priced),
        memory_bytes=tuple(one.memory_bytes for one in priced),
        memory=tuple(_by_part(one.memory, one.place) for one in priced),
    )


def _price_replicas(problem: MixedProblem, plan: TrainingPlan, owners: list[int]) -> Price:
    """Replicas: pipelines of one block each; the slowest, and the gradients between blocks."""
    numbers = list(dict.fromkeys(owners))
    work: list[float] = []
    memory: list[TrainingMemory] = []
    slowest_s, plans, windows_s = 0.0, [], []
    for number in numbers:
        block = problem.blocks[number]
        own = [stage for stage, at in zip(plan.stages, owners, strict=True) if at == number]
        layers, most = [stage.num_layers for stage in own], max(own[0].micro_batches)
        one = stage_arrays(block, own[0], layers, most)
        if plan.layout == "shards":
            one = stage_arrays(block, own[0], layers, 1)
        worked_s = passes_of(block, one).total_s[0].tolist()
        work += worked_s
        memory.append(training_memory_by_stage(problem.model, one, block.margin))
        plans.append(one)
        windows_s.append(worked_s[0])
        step_s = most * worked_s[0] if plan.layout == "shards" else float(step_of(block, one).step_s[0])
        slowest_s = max(slowest_s, step_s)
    gpus = [sum(s.num_gpus for s, at in zip(plan.stages, owners, strict=True) if at == number) for number in numbers]
    told = [_by_part(one, place) for one in memory for place in range(one.total.shape[1])]
    if plan.layout == "shards":
        largest = max(max(stage.state_shares) for stage in plan.stages)
        after_s = after_shards_s(problem, tuple(numbers), tuple(plans), windows_s, largest)
        for number, one, stage, parts in zip(numbers, plans, plan.stages, told, strict=True):
            _with_share(problem, number, one, max(stage.state_shares), parts)
    else:
        after_s = between_s(problem, numbers, gpus, 2.0 * min(problem.any_block.gradient_bytes, 4))
    return Price(
        step_s=slowest_s + after_s,
        parts={"replicas": slowest_s, "data": after_s},
        work_s=tuple(work),
        exchange_s=(0.0,) * len(plan.stages),
        memory_bytes=tuple(sum(parts.values()) for parts in told),
        memory=tuple(told),
    )


def _with_share(problem: MixedProblem, number: int, one: TrainingPlans, share: float, parts: dict[str, float]) -> None:
    """Put a share of the optimizer's bytes in place of an even one; the margin grows with the states."""
    block = problem.blocks[number]
    with_margin = share * optimizer_bytes(block, int(one.tensor_parallel_size[0]))
    states = with_margin / block.margin.states_factor
    rest = without_optimizer(block, one)[1]
    parts["optimizer"] = states
    parts["margin"] = 0.0
    parts["margin"] = rest + with_margin - sum(parts.values())


def _by_part(memory: TrainingMemory, place: int) -> dict[str, float]:
    return {name: float(getattr(memory, name)[0, place]) for name in MEMORY_PARTS}


def alone_document(problem: MixedProblem, number: int, plan: TrainingPlan) -> TrainingPlan:
    """A block's own plan as one of the whole cluster."""
    block, first = problem.blocks[number], problem.first_gpu(number)
    own = {name: getattr(plan, name) for name in OWN}
    stages = tuple(
        one.model_copy(
            update={
                "first_gpu": one.first_gpu + first,
                "device": block.device.name,
                "site": problem.sites[number],
                "num_nodes": _nodes(block, one.first_gpu, one.num_gpus),
                "micro_batches": (plan.num_micro_batches,) * plan.data_parallel_size,
                **own,
            }
        )
        for one in plan.stages
    )
    idle = plan.idle_gpus + problem.num_gpus - block.num_gpus
    return plan.model_copy(update={"stages": stages, "idle_gpus": idle, "layout": "one_kind"})


def pipeline_document(problem: MixedProblem, pipelines: Pipelines, stages: Sequence[Stage]) -> TrainingPlan:
    """The plan of a pipeline through blocks."""
    micro = pipelines.problem.micro_batches
    rows = []
    for place, stage in enumerate(stages):
        number = int(pipelines.block[stage.option])
        options, at = pipelines.options[number], int(pipelines.option[stage.option])
        unit = problem.unit(number)
        sizes = sizes_at(options.plans, at)
        rows.append(
            _stage(
                problem,
                number,
                first=int(pipelines.first_unit[stage.option]) * unit,
                gpus=int(options.units[at]) * unit,
                layers=stage.last - stage.first,
                ends=(place == 0, place == len(stages) - 1),
                sizes=sizes,
                more={"micro_batches": (micro,) * sizes["data_parallel_size"]},
            )
        )
    return _document(problem, "stages", rows, micro, len(stages))


def shared_document(problem: MixedProblem, found: Shared) -> TrainingPlan:
    """The plan of replicas of one kind each."""
    rows, most, deepest = [], 0, 1
    for pipeline, (number, one) in enumerate(zip(found.blocks, found.plans, strict=True)):
        sizes, stages = sizes_at(one, 0), int(one.pipeline_parallel_size[0])
        layers = even_split(one, problem.model.num_layers)[0]
        each = int(one.num_gpus[0]) // stages
        most, deepest = max(most, *found.micro_batches[pipeline]), max(deepest, stages)
        more: dict[str, Any] = {"micro_batches": found.micro_batches[pipeline], "pipeline": pipeline}
        if found.states:
            more["state_shares"] = found.states[pipeline]
        rows += [
            _stage(
                problem, number, first=place * each, gpus=each, layers=int(layers[place]),
                ends=(place == 0, place == stages - 1), sizes=sizes, more=more,
            )
            for place in range(stages)
        ]  # fmt: skip
    return _document(problem, "shards" if found.states else "replicas", rows, most, deepest)


def _stage(
    problem: MixedProblem,
    number: int,
    *,
    first: int,
    gpus: int,
    layers: int,
    ends: tuple[bool, bool],
    sizes: dict[str, Any],
    more: dict[str, Any],
) -> TrainingStage:
    block = problem.blocks[number]
    return TrainingStage(
        num_layers=layers,
        embedding=ends[0],
        head=ends[1],
        first_gpu=problem.first_gpu(number) + first,
        num_gpus=gpus,
        micro_batch_s=0.0,
        peak_memory_bytes=0.0,
        device=block.device.name,
        site=problem.sites[number],
        num_nodes=_nodes(block, first, gpus),
        **{name: sizes[name] for name in OWN},
        **more,
    )


def _nodes(block: TrainProblem, first: int, gpus: int) -> int:
    """Nodes that a run of GPUs touches."""
    return (first + gpus - 1) // block.gpus_per_node - first // block.gpus_per_node + 1


def _document(
    problem: MixedProblem, layout: str, rows: list[TrainingStage], micro_batches: int, deepest: int
) -> TrainingPlan:
    one = problem.any_block

    def largest(name: str) -> int:
        return max(int(getattr(row, name)) for row in rows)

    kinds = dict.fromkeys(row.device for row in rows if row.device is not None)
    recompute = {row.recompute for row in rows}
    plan = TrainingPlan(
        **{name: largest(name) for name in OWN if name != "recompute"},
        pipeline_parallel_size=deepest,
        virtual_pipeline_size=1,
        recompute=next((name for name in ("full", "selective") if name in recompute), "none"),
        schedule="1f1b",
        model=problem.model.name,
        device=" + ".join(kinds),
        idle_gpus=problem.num_gpus - sum(row.num_gpus for row in rows),
        gpus_per_node=min(block.gpus_per_node for block in problem.blocks),
        framework=one.framework,
        precision=one.precision,
        gradient_bytes=one.gradient_bytes,
        flash_attention=one.flash_attention,
        global_batch_size=one.global_batch_size,
        sequence_length=one.sequence_length,
        num_micro_batches=micro_batches,
        stages=tuple(rows),
        step_s=0.0,
        tokens_per_s=0.0,
        mfu=0.0,
        peak_memory_bytes=0.0,
        layout=layout,
    )
    return priced(problem, plan)


def priced(problem: MixedProblem, plan: TrainingPlan) -> TrainingPlan:
    """The plan with what it takes filled in."""
    found = price(problem, plan)
    stages = tuple(
        stage.model_copy(
            update={
                "micro_batch_s": found.work_s[place],
                "exchange_s": found.exchange_s[place],
                "peak_memory_bytes": found.memory_bytes[place],
                "memory": found.memory[place],
            }
        )
        for place, stage in enumerate(plan.stages)
    )
    rate = plan.global_batch_size * plan.sequence_length / found.step_s
    return plan.model_copy(
        update={
            "stages": stages,
            "step_s": found.step_s,
            "tokens_per_s": rate,
            "mfu": rate
            * float(problem.model.model_flops_per_token(plan.sequence_length))
            / peak_flop_per_s(problem, plan),
            "peak_memory_bytes": max(found.memory_bytes),
        }
    )


def peak_flop_per_s(problem: MixedProblem, plan: TrainingPlan) -> float:
    """Of all GPUs that a plan uses."""
    peaks = {block.device.name: block.device.peak_flop_per_s(block.precision) for block in problem.blocks}
    return sum(stage.num_gpus * peaks[stage.device] for stage in plan.stages if stage.device is not None)
