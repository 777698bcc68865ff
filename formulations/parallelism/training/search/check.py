"""Whether a plan is legal, from the plan and the model alone: written again, without the enumeration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.outcome import TOLERANCE
from formulations.parallelism.training.search.plans import of_document
from formulations.parallelism.training.search.problem import RECOMPUTE, SCHEDULES, TrainProblem
from formulations.parallelism.training.search.space import zero_stages
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.plans import problems
from planner.cost.verdict import Violation
from planner.training_plan import LayerBlock, TrainingPlan
from planner.units import format_bytes

PLAN = "plan"
#: Sizes that layers of their own would change.
_FIXED_IN_BLOCKS = ("tensor_parallel_size", "data_parallel_size", "micro_batch_size", "zero_stage")


def check(problem: TrainProblem, plan: TrainingPlan) -> list[Violation]:
    """Every broken rule; memory is only looked at where the sizes are sound."""
    broken = [Violation(rule=rule, subject=PLAN, message=message) for rule, message in _sizes(problem, plan)]
    broken += check_alone(plan)
    return broken or [
        *_blocks(problem, plan),
        *_model_rules(problem, plan),
        *_memory(problem, plan),
        *_maps(problem, plan),
    ]


def check_alone(plan: TrainingPlan) -> list[Violation]:
    """Rules that need no instance: GPUs of the stages, batch, interleaving."""
    broken = []
    replicas = plan.data_parallel_size * plan.micro_batch_size
    if plan.num_micro_batches * replicas != plan.global_batch_size:
        message = f"{plan.num_micro_batches} micro-batches x {replicas} sequences are not {plan.global_batch_size}"
        broken.append(Violation(rule="batch", subject=PLAN, message=message))
    if len(plan.stages) != plan.pipeline_parallel_size:
        message = f"{len(plan.stages)} stages are told, pipeline_parallel_size is {plan.pipeline_parallel_size}"
        broken.append(Violation(rule="stages", subject=PLAN, message=message))
    each = plan.tensor_parallel_size * plan.context_parallel_size * plan.data_parallel_size
    for place, stage in enumerate(plan.stages):
        if (stage.first_gpu, stage.num_gpus) != (place * each, each):
            message = f"GPUs {stage.first_gpu} + {stage.num_gpus}; its place has {place * each} + {each}"
            broken.append(Violation(rule="devices", subject=f"stage {place}", message=message))
        held = sum(block.num_layers for block in stage.layer_blocks)
        if stage.layer_blocks and held != stage.num_layers:
            message = f"blocks of {held} layers, the stage has {stage.num_layers}"
            broken.append(Violation(rule="blocks", subject=f"stage {place}", message=message))
        if stage.num_layers < plan.virtual_pipeline_size:
            message = f"{stage.num_layers} layers for {plan.virtual_pipeline_size} chunks: one would be empty"
            broken.append(Violation(rule="empty", subject=f"stage {place}", message=message))
    if not plan.stages[0].embedding or sum(stage.embedding for stage in plan.stages) != 1:
        broken.append(Violation(rule="embedding", subject=PLAN, message="the embedding is not on the first stage"))
    head = [place for place, stage in enumerate(plan.stages) if stage.head]
    if head != [0 if plan.schedule == "zb-v" else len(plan.stages) - 1]:
        broken.append(Violation(rule="head", subject=PLAN, message=f"the head is on stages {head}"))
    one_f_one_b = plan.schedule == "1f1b" and plan.virtual_pipeline_size > 1
    if one_f_one_b and plan.num_micro_batches % plan.pipeline_parallel_size:
        message = f"{plan.num_micro_batches} micro-batches are not a multiple of {plan.pipeline_parallel_size} stages"
        broken.append(Violation(rule="interleaving", subject=PLAN, message=message))
    return broken


def _sizes(problem: TrainProblem, plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    """What the instance asks for, and GPUs and links."""
    for name in ("global_batch_size", "sequence_length", "gradient_bytes", "flash_attention", "precision", "framework"):
        if getattr(plan, name) != getattr(problem, name):
            yield "instance", f"{name} is {getattr(plan, name)}, the instance says {getattr(problem, name)}"
    if plan.device != problem.device.name:
        yield "instance", f"device {plan.device}, the cluster has {problem.device.name}"
    if plan.recompute not in problem.recompute or plan.recompute not in RECOMPUTE:
        yield "recompute", f"{plan.recompute} is none of {', '.join(problem.recompute)}"
    if plan.schedule not in problem.schedules or plan.schedule not in SCHEDULES:
        yield "schedule", f"{plan.schedule} is none of {', '.join(problem.schedules)}"
    for name, value in problem.fixed.items():
        if getattr(plan, name) != value:
            yield "fixed", f"{name} is {getattr(plan, name)}, fixed at {value}"
    if plan.num_gpus + plan.idle_gpus != problem.num_gpus:
        yield "gpus", f"{plan.num_gpus} used and {plan.idle_gpus} idle are not the {problem.num_gpus} GPUs there are"
    tensor, domain = plan.tensor_parallel_size, problem.domain_gpus
    if domain % tensor:
        yield "links", f"tensor parallel groups of {tensor} do not lie in the {domain} GPUs that fast links join"


def _blocks(problem: TrainProblem, plan: TrainingPlan) -> Iterator[Violation]:
    """Layers that differ in what the instance lets them differ in."""
    counts = []
    for place, stage in enumerate(plan.stages):
        for block in stage.layer_blocks:
            told = _wrong_block(problem, plan, block)
            if told:
                yield Violation(rule="layers", subject=f"stage {place}", message=told)
        held = stage.layer_blocks
        whole = 0 if plan.recompute == "none" else stage.num_layers
        counts.append(sum(one.num_layers for one in held if one.recompute != "none") if held else whole)
    if problem.layer_scope == "chunk" and any(stage.layer_blocks for stage in plan.stages):
        chunks = plan.virtual_pipeline_size
        layers = [stage.num_layers for stage in plan.stages]
        every = (
            [sum(min(each, (count + turn) // chunks) for turn in range(chunks)) for count in layers]
            for each in range(max(layers) + 1)
        )
        if counts not in every:
            told = f"{counts} layers of the stages recompute, which is no one number of each chunk"
            yield Violation(rule="layers", subject=PLAN, message=told)


def _wrong_block(problem: TrainProblem, plan: TrainingPlan, block: LayerBlock) -> str:
    """What is wrong with a block of layers; empty for nothing."""
    tensor, zero = block.tensor_parallel_size, block.zero_stage
    alike = (tensor, zero) == (plan.tensor_parallel_size, plan.zero_stage)
    if problem.layer_scope == "uniform":
        return "layers differ, the instance wants them uniform"
    if block.recompute not in problem.recompute:
        return f"{block.recompute} is none of {', '.join(problem.recompute)}"
    if problem.layer_scope != "any" and not alike:
        return "layers differ in more than recomputation"
    if problem.layer_scope == "chunk" and block.recompute == "selective":
        return "chunks recompute whole layers or none"
    if not alike and (problem.domain_gpus % tensor or any(name in problem.fixed for name in _FIXED_IN_BLOCKS)):
        return f"tensor parallel groups of {tensor} leave fast links, or sizes are fixed"
    legal = zero_stages(problem.framework, plan.pipeline_parallel_size > 1)
    return "" if alike or zero in legal else f"{problem.framework} does not run ZeRO {zero} here"


def _model_rules(problem: TrainProblem, plan: TrainingPlan) -> Iterator[Violation]:
    """Heads, layers, experts, batch: what the cost model refuses too, and layers once."""
    layers = sum(stage.num_layers for stage in plan.stages)
    if layers != problem.model.num_layers:
        message = f"stages hold {layers} layers of {problem.model.num_layers}"
        yield Violation(rule="cover", subject=PLAN, message=message)
        return
    for found in problems(of_document(problem, plan), problem.model):
        yield Violation(rule="legal", subject=PLAN, message=found.reason)


def _memory(problem: TrainProblem, plan: TrainingPlan) -> Iterator[Violation]:
    if next(_model_rules(problem, plan), None) is not None:
        return
    memory = training_memory_by_stage(problem.model, of_document(problem, plan), problem.margin).total[0]
    for place, need in enumerate(memory.tolist()):
        if need > problem.capacity_bytes * (1 + TOLERANCE):
            told = f"needs {format_bytes(need)} on each GPU, {format_bytes(problem.capacity_bytes)} may be used"
            yield Violation(
                rule="gpu_memory",
                subject=f"stage {place}",
                message=f"stage {place} {told}",
                amount=need,
                limit=problem.capacity_bytes,
                unit="bytes",
            )
        claimed = plan.stages[place].peak_memory_bytes
        if abs(claimed - need) > TOLERANCE * need:
            message = f"stage {place} claims {format_bytes(claimed)}, it needs {format_bytes(need)}"
            yield Violation(rule="claimed_memory", subject=f"stage {place}", message=message)


def _maps(problem: TrainProblem, plan: TrainingPlan) -> Iterator[Violation]:
    """Each node once in a rank map, each sequence once in groups that lie in context x data ranks."""
    if plan.rank_map is not None:
        held = np.array(plan.rank_map.nodes).ravel()
        nodes = problem.num_gpus // problem.gpus_per_node
        if np.unique(held).size != held.size or (held >= nodes).any():
            yield Violation(rule="rank_map", subject=PLAN, message="a node is there twice, or there is no such node")
    if plan.sequence_groups is not None:
        groups = plan.sequence_groups.groups
        held = np.sort(np.concatenate([group.sequences for group in groups]))
        if held.tolist() != list(range(len(problem.sequence_lengths))):
            yield Violation(rule="sequences", subject=PLAN, message="a sequence is in no group, or in two")
        ranks = sum(group.context_parallel_size for group in groups)
        if ranks > plan.context_parallel_size * plan.data_parallel_size:
            message = f"groups of {ranks} ranks; a stage has {plan.context_parallel_size * plan.data_parallel_size}"
            yield Violation(rule="sequences", subject=PLAN, message=message)
