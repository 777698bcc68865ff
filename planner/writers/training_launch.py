"""What the exports of training plans share: sizes that multiply, nodes, and the layers of each pipeline chunk."""

from __future__ import annotations

from dataclasses import dataclass

from planner.errors import ExportError
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan

#: What launchers have one value of.
STAGE_SIZES = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "data_parallel_size", "micro_batch_size",
    "zero_stage", "recompute",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Layers first .. first + num_layers - 1 of one virtual stage."""

    first: int
    num_layers: int


def sound_plan(document: TrainingDocument, to: str) -> TrainingPlan:
    """The plan, whose sizes multiply to its GPUs and batch; ExportError otherwise."""
    plan = document.plan
    if plan is None:
        raise ExportError(f"the document holds no plan (status {document.outcome.status})")
    if plan.framework != to:
        raise ExportError(f"the plan was made for {plan.framework}; plan again with framework: {to}")
    if plan.layout not in (None, "one_kind"):
        _equal_sizes(plan, to)
    gpus = sum(stage.num_gpus for stage in plan.stages)
    if gpus != plan.num_gpus:
        raise ExportError(f"stages have {gpus} GPUs, tensor x context x data x pipeline are {plan.num_gpus}")
    batch = plan.num_micro_batches * plan.micro_batch_size * plan.data_parallel_size
    if batch != plan.global_batch_size:
        raise ExportError(f"micro-batches x micro-batch x data are {batch} sequences, not {plan.global_batch_size}")
    if (plan.data_parallel_size * plan.context_parallel_size) % plan.expert_parallel_size:
        raise ExportError("expert_parallel_size does not divide data x context parallel ranks")
    return plan


def _equal_sizes(plan: TrainingPlan, to: str) -> None:
    """ExportError where stages on unequal GPUs differ in more than their layers, which is all that launchers know."""
    if plan.layout != "stages":
        raise ExportError(f"{to} gives every replica the same micro-batches; this plan has {plan.layout} of their own")
    for name in STAGE_SIZES:
        values = sorted({str(getattr(stage, name)) for stage in plan.stages})
        if len(values) > 1:
            raise ExportError(f"{to} has one {name} for all stages, these have {', '.join(values)}; give `fixed` sizes")
    for place, stage in enumerate(plan.stages):
        if stage.num_gpus > plan.gpus_per_node and stage.num_nodes != stage.num_gpus // plan.gpus_per_node:
            raise ExportError(f"stage {place} lies on {stage.num_nodes} nodes; nodes of different sizes start apart")
    _whole_nodes(plan)


def _whole_nodes(plan: TrainingPlan) -> None:
    """ExportError where the ranks of a node, as launchers count them, do not lie on one."""
    size = plan.gpus_per_node
    gpus = [gpu for stage in plan.stages for gpu in range(stage.first_gpu, stage.first_gpu + stage.num_gpus)]
    for rank in range(0, len(gpus), size):
        held = gpus[rank : rank + size]
        if held != list(range(held[0], held[0] + len(held))) or held[0] // size != held[-1] // size:
            raise ExportError(
                f"ranks {rank}-{rank + len(held) - 1} do not lie on one node of {size}; give `fixed` sizes that do"
            )


def placement(plan: TrainingPlan) -> list[str]:
    """Comments that say which GPUs the ranks of each stage must be, where those are unequal."""
    if plan.layout != "stages":
        return []
    rows = ["# Ranks follow the stages; start the nodes in this order:"]
    first = 0
    for place, stage in enumerate(plan.stages):
        site = "" if stage.site is None else f" at {stage.site}"
        own = f"GPUs {stage.first_gpu}-{stage.first_gpu + stage.num_gpus - 1} of the cluster"
        rows.append(f"#   stage {place}, ranks {first}-{first + stage.num_gpus - 1}: {stage.device}{site}, {own}")
        first += stage.num_gpus
    return rows


def nodes(plan: TrainingPlan) -> tuple[int, int]:
    """Nodes and GPUs on each; ExportError for GPUs that fill no whole nodes."""
    if plan.num_gpus <= plan.gpus_per_node:
        return 1, plan.num_gpus
    count, left = divmod(plan.num_gpus, plan.gpus_per_node)
    if left:
        raise ExportError(f"{plan.num_gpus} GPUs do not fill nodes of {plan.gpus_per_node}; give fixed sizes that do")
    return count, plan.gpus_per_node


def chunks(plan: TrainingPlan) -> list[Chunk]:
    """Chunks in the order of depth, virtual_pipeline_size x pipeline_parallel_size of them.

    A stage shares its layers out evenly to its chunks; the first stage's first chunk, beside the embedding, and every
    other stage's last ones get what is fewer.
    """
    counts: list[int] = []
    for turn in range(plan.virtual_pipeline_size):
        back = plan.schedule == "zb-v" and turn == 1
        order = reversed(range(len(plan.stages))) if back else range(len(plan.stages))
        for place in order:
            each, left = divmod(plan.stages[place].num_layers, plan.virtual_pipeline_size)
            longer = turn >= plan.virtual_pipeline_size - left if place == 0 else turn < left
            counts.append(each + longer)
    found, first = [], 0
    for count in counts:
        found.append(Chunk(first, count))
        first += count
    return found


def uniform(plan: TrainingPlan, to: str) -> None:
    """ExportError for layers that differ, where a framework's options have no words for them."""
    if any(stage.layer_blocks for stage in plan.stages):
        raise ExportError(f"{to} has no option for layers that differ; plan with layer_strategies: uniform")


def recomputed_of_chunk(plan: TrainingPlan) -> int | None:
    """How many layers of every chunk recompute, the first ones; None where all layers do as the plan says.

    ExportError for layers that differ in more, or where it is no one number.
    """
    if not any(stage.layer_blocks for stage in plan.stages):
        return None
    counts = []
    for stage in plan.stages:
        blocks = stage.layer_blocks
        sizes = {(one.tensor_parallel_size, one.zero_stage) for one in blocks}
        if not sizes <= {(plan.tensor_parallel_size, plan.zero_stage)}:
            raise ExportError(
                "one layer's tensor parallelism or ZeRO stage differs from another's: no option says that"
            )
        if [one.recompute for one in blocks] not in ([], ["full", "none"], ["full"], ["none"]):
            raise ExportError(
                "only whole layers recompute, the first ones of a chunk; plan with layer_strategies: framework"
            )
        whole = stage.num_layers if plan.recompute == "full" else 0
        counts.append(sum(one.num_layers for one in blocks if one.recompute == "full") if blocks else whole)
    made = chunks(plan)
    for each in range(1, max(chunk.num_layers for chunk in made) + 1):
        found = [0] * len(plan.stages)
        for place, chunk in enumerate(made):
            found[place % len(plan.stages)] += min(each, chunk.num_layers)
        if found == counts:
            return each
    told = f"{counts} layers of the stages recompute, which is no one number of each chunk"
    raise ExportError(f"{told}; plan with layer_strategies: framework")


def even(plan: TrainingPlan) -> bool:
    """Whether all chunks have the same layers."""
    return len({chunk.num_layers for chunk in chunks(plan)}) == 1
