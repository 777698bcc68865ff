"""Whether a plan over unequal GPUs is legal, from the plan and the cluster alone: written again, without the search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from formulations.outcome import TOLERANCE
from formulations.parallelism.training.mixed.plans import OWN, alone, owner, price
from formulations.parallelism.training.mixed.pricing import stage_arrays
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.search.check import check as check_one_kind
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.space import zero_stages
from planner.cost.training.plans import problems
from planner.cost.verdict import Violation
from planner.training_plan import TrainingPlan, TrainingStage
from planner.units import format_bytes

PLAN = "plan"
#: What a plan must have as the instance says it.
SAID = ("global_batch_size", "sequence_length", "gradient_bytes", "flash_attention", "precision", "framework")

Told = tuple[str, str, str]


def check(problem: MixedProblem, plan: TrainingPlan) -> list[Violation]:
    """Every broken rule; sizes before links, links before memory, which is only looked at where those are sound."""
    broken = [_violation(told) for told in (*_instance(problem, plan), *check_shape(plan), *_places(problem, plan))]
    if broken:
        return broken
    if plan.layout == "one_kind":
        return check_one_kind(*alone(problem, plan))
    broken = [_violation(told) for rule in (_sizes, _links, _fixed) for told in rule(problem, plan)]
    return broken or list(_memory(problem, plan))


def _violation(told: Told) -> Violation:
    rule, subject, message = told
    return Violation(rule=rule, subject=subject, message=message)


def pipelines_of(plan: TrainingPlan) -> list[list[int]]:
    """Places of the stages of each pipeline."""
    found: dict[int, list[int]] = {}
    for place, stage in enumerate(plan.stages):
        found.setdefault(stage.pipeline, []).append(place)
    return [found[number] for number in sorted(found)]


def check_shape(plan: TrainingPlan) -> Iterator[Told]:
    """Rules that need no instance: own sizes, batch, layers of all pipelines alike, embedding and head, shares."""
    total = None
    sequences = 0
    for place, stage in enumerate(plan.stages):
        subject = f"stage {place}"
        missing = [name for name in (*OWN, "device") if getattr(stage, name) is None]
        if missing or not stage.micro_batches:
            yield "stages", subject, f"has no {', '.join(missing) or 'micro_batches'} of its own"
            return
        product = _product(stage)
        if product != stage.num_gpus:
            yield "devices", subject, f"{stage.num_gpus} GPUs for tensor x context x data = {product}"
        if len(stage.micro_batches) != stage.data_parallel_size:
            yield (
                "batch",
                subject,
                f"micro-batches of {len(stage.micro_batches)} replicas of {stage.data_parallel_size}",
            )
        if plan.layout == "shards" and len(stage.state_shares) != stage.data_parallel_size:
            yield "states", subject, f"shares of {len(stage.state_shares)} replicas of {stage.data_parallel_size}"
    for number, places in enumerate(pipelines_of(plan)):
        subject, own = f"pipeline {number}", [plan.stages[place] for place in places]
        layers = sum(stage.num_layers for stage in own)
        total = layers if total is None else total
        if layers != total:
            yield "cover", subject, f"{layers} layers, another has {total}"
        if [stage.embedding for stage in own] != [True] + [False] * (len(own) - 1):
            yield "embedding", subject, "the embedding is not on the first stage alone"
        turned = plan.layout == "one_kind" and plan.schedule == "zb-v"
        if [place for place, stage in enumerate(own) if stage.head] != [0 if turned else len(own) - 1]:
            yield "head", subject, "the head is not on the last stage alone"
        worked = {sum(stage.micro_batches) * (stage.micro_batch_size or 1) for stage in own}
        if len(worked) > 1:
            yield "batch", subject, f"stages work on {sorted(worked)} sequences"
        sequences += max(worked)
        if plan.layout == "stages" and {count for stage in own for count in stage.micro_batches} != {
            plan.num_micro_batches
        }:
            yield "batch", subject, f"replicas do not all have {plan.num_micro_batches} micro-batches"
        if plan.layout != "stages" and len({stage.micro_batches for stage in own}) > 1:
            yield "batch", subject, "stages do not have the same micro-batches"
    if sequences != plan.global_batch_size:
        yield "batch", PLAN, f"{sequences} sequences of {plan.global_batch_size}"
    if plan.layout == "shards":
        shares = sum(share for stage in plan.stages for share in stage.state_shares)
        if abs(shares - 1.0) > TOLERANCE:
            yield "states", PLAN, f"shares of the optimizer states add up to {shares:g}"
    if plan.layout != "one_kind" and (plan.virtual_pipeline_size != 1 or plan.schedule != "1f1b"):
        yield "interleaving", PLAN, "unequal stages run 1f1b without interleaving"
    yield from _layout(plan)


def _layout(plan: TrainingPlan) -> Iterator[Told]:
    """What stages must have in common under each layout, which is also what their price rests on."""
    if plan.layout == "one_kind":
        for place, stage in enumerate(plan.stages):
            others = [name for name in OWN if getattr(stage, name) != getattr(plan, name)]
            if others:
                yield "layout", f"stage {place}", f"{', '.join(others)} not as the plan of one kind says"
    if plan.layout in ("replicas", "shards"):
        for number, places in enumerate(pipelines_of(plan)):
            own = [plan.stages[place] for place in places]
            others = [name for name in OWN if len({getattr(stage, name) for stage in own}) > 1]
            if others or len({(stage.device, stage.site) for stage in own}) > 1:
                told = f"stages of one replica differ in {', '.join(others) or 'kind'}"
                yield "layout", f"pipeline {number}", told
    if plan.layout == "shards":
        for place, stage in enumerate(plan.stages):
            one = (stage.context_parallel_size, stage.expert_parallel_size, stage.zero_stage) == (1, 1, 1)
            alike = stage.tensor_parallel_size == plan.stages[0].tensor_parallel_size
            if not (one and alike and stage.embedding and stage.head):
                told = "replicas that share states have no pipeline, context or expert parallelism, and one tensor size"
                yield "layout", f"stage {place}", told


def _product(stage: TrainingStage) -> int:
    return (stage.tensor_parallel_size or 1) * (stage.context_parallel_size or 1) * (stage.data_parallel_size or 1)


def _instance(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Told]:
    for name in SAID:
        if getattr(plan, name) != getattr(problem.any_block, name):
            told = f"{name} is {getattr(plan, name)}, the instance says {getattr(problem.any_block, name)}"
            yield "instance", PLAN, told
    if plan.layout is None:
        yield "layout", PLAN, "the plan does not say how it uses unequal GPUs"
    used = sum(stage.num_gpus for stage in plan.stages)
    if used + plan.idle_gpus != problem.num_gpus:
        yield "gpus", PLAN, f"{used} used and {plan.idle_gpus} idle are not the {problem.num_gpus} GPUs there are"


def _places(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Told]:
    """Every stage on GPUs of one kind at one site, no GPU twice."""
    taken: dict[int, int] = {}
    if plan.layout == "one_kind" and len({owner(problem, stage) for stage in plan.stages}) > 1:
        yield "layout", PLAN, "a plan of one kind has stages on several"
    for place, stage in enumerate(plan.stages):
        if owner(problem, stage) is None:
            told = f"GPUs {stage.first_gpu} + {stage.num_gpus} are not all {stage.device}"
            yield "devices", f"stage {place}", told + ("" if stage.site is None else f" at {stage.site}")
        for gpu in range(stage.first_gpu, stage.first_gpu + stage.num_gpus):
            if gpu in taken:
                yield "devices", f"stage {place}", f"GPU {gpu} is on stage {taken[gpu]} too"
                break
            taken[gpu] = place


def _sizes(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Told]:
    """Heads, layers, experts and recomputation of every stage on its own kind."""
    for number, places in enumerate(pipelines_of(plan)):
        layers = [plan.stages[place].num_layers for place in places]
        if sum(layers) != problem.model.num_layers:
            yield "cover", f"pipeline {number}", f"{sum(layers)} layers of {problem.model.num_layers}"
            return
        for place in places:
            stage = plan.stages[place]
            at = owner(problem, stage)
            assert at is not None
            block = problem.blocks[at]
            one = stage_arrays(block, stage, layers, max(1, *stage.micro_batches))
            yield from (("legal", f"stage {place}", found.reason) for found in problems(one, problem.model))
            yield from _zero(block, plan, place, len(places))
            if stage.recompute not in block.recompute:
                yield "recompute", f"stage {place}", f"{stage.recompute} is none of {', '.join(block.recompute)}"


def _zero(block: TrainProblem, plan: TrainingPlan, place: int, stages: int) -> Iterator[Told]:
    """ZeRO as the framework runs it, or as it is fixed; pipelines over blocks have collectives once a step alone."""
    zero, fixed = plan.stages[place].zero_stage, block.fixed.get("zero_stage")
    legal = zero_stages(block.framework, stages > 1) if fixed is None else (fixed,)
    if zero not in legal or (plan.layout == "stages" and zero is not None and zero > 1):
        yield "zero", f"stage {place}", f"{block.framework} does not run ZeRO {zero} here"


def _links(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Told]:
    """Tensor parallelism inside islands; ways between neighbours, and between all that share gradients."""
    owners = [owner(problem, stage) for stage in plan.stages]
    if plan.layout != "stages":
        lies = {(stage.pipeline, at) for stage, at in zip(plan.stages, owners, strict=True)}
        if len({at for _, at in lies}) < len(lies):
            yield "layout", PLAN, "a kind has two families of replicas"
    for place, (stage, at) in enumerate(zip(plan.stages, owners, strict=True)):
        assert at is not None
        block, tensor = problem.blocks[at], stage.tensor_parallel_size or 1
        first = stage.first_gpu - problem.first_gpu(at)
        if block.domain_gpus % tensor or first % tensor:
            told = f"tensor parallel groups of {tensor} from GPU {first} on leave islands of {block.domain_gpus}"
            yield "links", f"stage {place}", told
    apart = plan.layout == "stages"
    for places in pipelines_of(plan):
        numbers = {owners[place] for place in places}
        if not apart and len(numbers) > 1:
            yield "links", PLAN, "a replica lies on more than one kind"
    chain = [one for one in owners if one is not None]
    if not apart:
        chain = list(dict.fromkeys(chain))
        chain.append(chain[0])
    for one, other in itertools.pairwise(chain):
        if one != other and not problem.joined(one, other):
            yield "links", PLAN, f"no way between {problem.told(one)} and {problem.told(other)}"


def _fixed(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Told]:
    """Sizes that are decided, on every stage."""
    for name, value in problem.any_block.fixed.items():
        if name == "pipeline_parallel_size":
            counts = {len(places) for places in pipelines_of(plan)}
            if counts != {value}:
                yield "fixed", PLAN, f"pipelines of {sorted(counts)} stages, fixed at {value}"
        elif name in OWN:
            for place, stage in enumerate(plan.stages):
                if getattr(stage, name) != value:
                    yield "fixed", f"stage {place}", f"{name} is {getattr(stage, name)}, fixed at {value}"


def _memory(problem: MixedProblem, plan: TrainingPlan) -> Iterator[Violation]:
    """Every stage on its own kind."""
    need = price(problem, plan).memory_bytes
    for place, (stage, used) in enumerate(zip(plan.stages, need, strict=True)):
        at = owner(problem, stage)
        assert at is not None
        room = problem.blocks[at].capacity_bytes
        if used > room * (1 + TOLERANCE):
            message = (
                f"stage {place} needs {format_bytes(used)} on each {stage.device}, {format_bytes(room)} may be used"
            )
            yield Violation(
                rule="gpu_memory", subject=f"stage {place}", message=message, amount=used, limit=room, unit="bytes"
            )
        if abs(stage.peak_memory_bytes - used) > TOLERANCE * used:
            message = f"stage {place} claims {format_bytes(stage.peak_memory_bytes)}, it needs {format_bytes(used)}"
            yield Violation(rule="claimed_memory", subject=f"stage {place}", message=message)
