"""A training plan as lines and tables: what a step takes, the sizes, memory by stage, the next best, the frontier."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table

from cli.mixed_training_render import mixed_answer
from cli.render import Part, number, percent, printable, table
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.problem import TrainProblem
from planner.plan import PlanDocument
from planner.training_plan import ParallelSizes, TrainingPlan, TrainingStage
from planner.units import format_bytes, format_seconds

#: Rows of the frontier that are printed; the document has more.
MOST_ROWS = 10
SHORT = {
    "tensor_parallel_size": "TP", "context_parallel_size": "CP", "expert_parallel_size": "EP",
    "pipeline_parallel_size": "PP", "virtual_pipeline_size": "v", "data_parallel_size": "DP",
    "micro_batch_size": "mbs", "zero_stage": "ZeRO",
}  # fmt: skip


def sizes(plan: ParallelSizes) -> str:
    """TP8 PP4 .., without sizes of 1."""
    shown = [
        f"{name}{value}" for key, name in SHORT.items() if (value := getattr(plan, key)) != 1 or name in ("TP", "mbs")
    ]
    told = [] if plan.recompute == "none" else [f"recompute {plan.recompute}{_of_layers(plan)}"]
    return " ".join([*shown, *([] if plan.schedule == "1f1b" else [plan.schedule]), *told])


def _of_layers(plan: ParallelSizes) -> str:
    """How many layers recompute, where not all do."""
    if not isinstance(plan, TrainingPlan) or not any(stage.layer_blocks for stage in plan.stages):
        return ""
    every = sum(stage.num_layers for stage in plan.stages)
    keep = sum(one.num_layers for stage in plan.stages for one in stage.layer_blocks if one.recompute == "none")
    return f" ({every - keep} of {every} layers)"


def training_answer(document: PlanDocument, problem: TrainProblem | MixedProblem) -> Iterable[Part]:
    """Step, throughput, memory, sizes and stages."""
    plan = document.plan
    assert isinstance(plan, TrainingPlan)
    found = {} if document.verdict is None else {one.name: one for one in document.verdict.metrics}
    step = found.get("step_s")
    interval = ""
    if step is not None and step.low is not None and step.high is not None:
        interval = f", 80 % within {format_seconds(step.low)} - {format_seconds(step.high)}"
    yield "step", f"{format_seconds(plan.step_s)}{interval}"
    if isinstance(problem, MixedProblem):
        yield from mixed_answer(plan, problem)
        return
    idle = f", {plan.idle_gpus} idle" if plan.idle_gpus else ""
    yield "throughput", f"{number(plan.tokens_per_s)} tokens/s, MFU {percent(plan.mfu)}, {plan.num_gpus} GPUs{idle}"
    yield "plan", f"{sizes(plan)}; {plan.num_micro_batches} micro-batches of {plan.micro_batch_size}"
    if (one := found.get("usd_per_step")) is not None:
        yield "cost", f"{number(one.value)} USD a step"
    if (one := found.get("joules_per_step")) is not None:
        tokens = plan.global_batch_size * plan.sequence_length
        yield "energy", f"{number(one.value / 1e6)} MJ a step, {number(one.value / tokens)} J a token"
    free = problem.capacity_bytes - plan.peak_memory_bytes
    yield "memory", f"{format_bytes(plan.peak_memory_bytes)} on the fullest GPU, {format_bytes(free)} free"
    yield from _stages(plan)


def training_details(document: PlanDocument, problem: TrainProblem) -> Iterable[Part]:
    """What was refined beyond the sizes, the next best plans and the frontier."""
    plan = document.plan
    assert isinstance(plan, TrainingPlan)
    yield from _refined(plan)
    if plan.runners_up:
        rows = [
            (sizes(one), format_seconds(one.step_s), format_bytes(one.free_bytes), one.why) for one in plan.runners_up
        ]
        yield table(("next best", "step", "free memory", "why not"), rows)
    if len(plan.pareto) > 1:
        rows = [
            (
                sizes(one),
                str(one.num_gpus),
                format_seconds(one.step_s),
                format_bytes(one.free_bytes),
                f"{one.gpu_s / 3600.0:.3g}" if one.usd is None else f"{one.usd:.4g} USD",
                "-" if one.joules is None else f"{one.joules / 1e6:.4g}",
            )
            for one in plan.pareto[:MOST_ROWS]
        ]
        cost = "GPU hours" if plan.pareto[0].usd is None else "cost"
        yield table(("frontier", "GPUs", "step", "free memory", cost, "MJ"), rows)
        if len(plan.pareto) > MOST_ROWS:
            yield "frontier", f"{len(plan.pareto) - MOST_ROWS} more; --json lists them"


def _stages(plan: TrainingPlan) -> Iterator[Table]:
    """Runs of stages with equal layers, each with the memory of its first."""
    rows, first = [], 0
    for place, stage in enumerate(plan.stages):
        after = plan.stages[place + 1] if place + 1 < len(plan.stages) else None
        same = after is not None and (after.num_layers, after.head, after.embedding, after.layer_blocks) == (
            stage.num_layers, stage.head, plan.stages[first].embedding, stage.layer_blocks,
        )  # fmt: skip
        if same:
            continue
        start = plan.stages[first]
        beside = [name for name, held in (("embedding", start.embedding), ("head", start.head)) if held]
        rows.append(
            (
                str(first) if first == place else f"{first}-{place}",
                _layers(plan, start),
                ", ".join(beside),
                f"{start.first_gpu}-{stage.first_gpu + stage.num_gpus - 1}",
                format_seconds(start.micro_batch_s),
                format_bytes(max(one.peak_memory_bytes for one in plan.stages[first : place + 1])),
            )
        )
        first = place + 1
    yield table(("stage", "layers", "and", "GPUs", "a micro-batch", "memory"), rows)


def _layers(plan: TrainingPlan, stage: TrainingStage) -> str:
    """Layers of a stage; where they differ, what the blocks do otherwise than the plan."""
    told = []
    for block in stage.layer_blocks:
        does = [] if block.recompute == "none" else [f"recompute {block.recompute}"]
        if block.tensor_parallel_size != plan.tensor_parallel_size:
            does.append(f"TP{block.tensor_parallel_size}")
        if block.zero_stage != plan.zero_stage:
            does.append(f"ZeRO{block.zero_stage}")
        if does:
            told.append(f"{block.num_layers} {' '.join(does)}")
    return f"{stage.num_layers} ({', '.join(told)})" if told else str(stage.num_layers)


def _refined(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    order, nodes, groups = plan.pipeline_order, plan.rank_map, plan.sequence_groups
    if order is not None:
        gain = 1.0 - order.period_s / order.rule_s
        proof = "proven best" if order.proven else f"bound {format_seconds(order.bound_s)}"
        yield (
            "passes",
            (
                f"{format_seconds(order.rule_s)} in the plan's order; with weight gradients apart"
                f" {format_seconds(order.period_s)} ({gain:.1%} less, {proof})"
            ),
        )
    if nodes is not None:
        gain = 1.0 - nodes.seconds / max(nodes.in_order_s, 1e-30)
        yield (
            "nodes",
            (
                f"sends and rings {format_seconds(nodes.seconds)}, {gain:.1%} less than in order"
                f" (bound {format_seconds(nodes.bound_s)})"
            ),
        )
    if groups is not None:
        count: dict[int, int] = {}
        for group in groups.groups:
            count[group.context_parallel_size] = count.get(group.context_parallel_size, 0) + 1
        told = ", ".join(f"{number} of {size}" for size, number in sorted(count.items(), reverse=True))
        plain = "" if groups.one_degree_s is None else f", one size {format_seconds(groups.one_degree_s)}"
        yield "sequences", f"groups of ranks: {told}; slowest {format_seconds(groups.slowest_s)}{plain}"
    for note in plan.notes:
        yield "note", printable(note)
