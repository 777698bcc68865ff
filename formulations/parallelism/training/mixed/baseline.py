"""The plain rules: the best single kind, and all GPUs as if they were equal."""

from __future__ import annotations

from itertools import product
from math import gcd

import numpy as np
import numpy.typing as npt

from formulations.outcome import Budget, SolveOptions
from formulations.parallelism.training.mixed.plans import alone_document
from formulations.parallelism.training.mixed.pricing import between_s, exposed, reduction, sent_s, stage_parameters
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import Families, families
from formulations.parallelism.training.search.plans import passes_of
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.search import search as search_one_kind
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, divisors, tensor_sizes
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.sizes import plan_sizes
from planner.cost.training.stages import even_split
from planner.training_plan import TrainingPlan

FloatArray = npt.NDArray[np.float64]

NAME = "the best plan of one kind alone"
#: Seconds for each kind alone.
ALONE_S = 10.0
#: Sizes by which families of replicas are the same.
SAME = (
    "tensor_parallel_size", "context_parallel_size", "expert_parallel_size", "pipeline_parallel_size", "zero_stage",
    "recompute",
)  # fmt: skip


def best_alone(problem: MixedProblem) -> TrainingPlan | None:
    """The fastest plan of any kind alone, found as for a cluster of that kind; None where none fits."""
    found = []
    for number, block in enumerate(problem.blocks):
        plan = search_one_kind(block, SolveOptions(time_limit_s=ALONE_S), Budget(ALONE_S), whole=False).plan
        if plan is not None:
            found.append(alone_document(problem, number, plan))
    return min(found, key=lambda plan: plan.step_s, default=None)


def equal_replicas_s(problem: MixedProblem) -> float | None:
    """Seconds of the best step where all kinds have the same sizes and every replica the same micro-batches.

    None where no such sizes fit, or a way is missing.
    """
    batch, best = problem.any_block.global_batch_size, np.inf
    numbers = list(range(len(problem.blocks)))
    if not all(problem.joined(one, other) for one in numbers for other in numbers if one != other):
        return None
    factor = 2.0 * min(problem.any_block.gradient_bytes, 4)
    for micro_batch in (one for one in divisors(batch) if one <= MOST_MICRO_BATCH):
        known = [one for number in numbers if (one := families(problem, number, micro_batch)) is not None]
        if len(known) < len(numbers):
            continue
        for places in _same_sizes(known):
            replicas = sum(int(one.replicas[place]) for one, place in zip(known, places, strict=True))
            each, left = divmod(batch // micro_batch, replicas)
            if left or not each:
                continue
            slowest_s = max(
                float(one.fixed_s[place] + each * one.unit_s[place]) for one, place in zip(known, places, strict=True)
            )
            gpus = [int(one.plans.num_gpus[place]) for one, place in zip(known, places, strict=True)]
            best = min(best, slowest_s + between_s(problem, numbers, gpus, factor))
    return best if np.isfinite(best) else None


def _same_sizes(known: list[Families]) -> list[list[int]]:
    """Places of the families that have the same sizes in all blocks."""
    by_sizes = []
    for one in known:
        sizes = zip(*(getattr(one.plans, name).tolist() for name in SAME), strict=True)
        by_sizes.append({key: place for place, key in enumerate(sizes)})
    return [[one[key] for one in by_sizes] for key in set.intersection(*(set(one) for one in by_sizes))]


def equal_stages_s(problem: MixedProblem) -> float | None:
    """Seconds of the best pipeline of equal stages and even layers through the blocks, as they are listed.

    None where GPUs do not divide so, or nothing fits.
    """
    batch = problem.any_block.global_batch_size
    count = len(problem.blocks)
    if not all(problem.joined(place, place + 1) for place in range(count - 1)):
        return None
    common = gcd(*(block.num_gpus for block in problem.blocks))
    rows = []
    tensors = set.intersection(*(set(tensor_sizes(block)) for block in problem.blocks))
    for each, tensor, name in product(divisors(common), sorted(tensors), problem.any_block.recompute):
        stages, data = problem.num_gpus // each, each // tensor
        if each % tensor or stages > problem.model.num_layers or problem.model.num_experts:
            continue
        for micro in (one for one in divisors(batch) if one <= MOST_MICRO_BATCH and batch % (one * data) == 0):
            rows.append((tensor, data, stages, micro, int(RECOMPUTE[name])))
    if not rows:
        return None
    tensor_, data_, stages_, micro_, recompute_ = np.array(rows, dtype=np.int64).T
    one = problem.any_block
    plans = TrainingPlans.build(
        tensor_parallel_size=tensor_,
        data_parallel_size=data_,
        pipeline_parallel_size=stages_,
        micro_batch_size=micro_,
        recompute=recompute_,
        global_batch_size=batch,
        sequence_length=one.sequence_length,
        flash_attention=one.flash_attention,
        gradient_bytes=one.gradient_bytes,
    )
    by_block = [_columns(block, plans) for block in problem.blocks]
    steps = (_equal_step_s(problem, plans, by_block, place) for place in range(len(plans)))
    return min((step_s for step_s in steps if step_s is not None), default=None)


def _columns(block: TrainProblem, plans: TrainingPlans) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Seconds of every stage if it lay in this block, and whether it fits, [n, stages]."""
    fits = training_memory_by_stage(block.model, plans, block.margin).total <= block.capacity_bytes
    return passes_of(block, plans).total_s, fits


def _equal_step_s(
    problem: MixedProblem,
    plans: TrainingPlans,
    by_block: list[tuple[FloatArray, npt.NDArray[np.bool_]]],
    place: int,
) -> float | None:
    stages = int(plans.pipeline_parallel_size[place])
    each = problem.num_gpus // stages
    owners = [number for number, block in enumerate(problem.blocks) for _ in range(block.num_gpus // each)]
    if not all(by_block[number][1][place, stage] for stage, number in enumerate(owners)):
        return None
    one = plans[np.array([place])]
    layers, sizes = even_split(one, problem.model.num_layers)[0].tolist(), plan_sizes(one)
    micro_batches = int(one.num_micro_batches[0])
    sequences = problem.any_block.global_batch_size // micro_batches
    paces, after = [], []
    for stage, number in enumerate(owners):
        block = problem.blocks[number]
        work_s = by_block[number][0][place, stage]
        sides = [owners[side] for side in (stage - 1, stage + 1) if 0 <= side < stages]
        paces.append(work_s + sum(float(sent_s(problem, number, side, each, sequences)) for side in sides))
        dense, routed = (np.array([number]) for number in stage_parameters(problem, layers, stage))
        busy_s, update_s = reduction(block, sizes, dense, routed)
        after.append(float((exposed(busy_s, np.array([work_s]), block.coefficients.overlap) + update_s)[0]))
    return float((micro_batches - 1) * max(paces) + sum(paces) + max(after))
