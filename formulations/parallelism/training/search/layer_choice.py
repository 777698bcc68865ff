"""Tensor parallelism, ZeRO stage and recomputation of every layer: an integer program for each stage of the top plans.

Sets
    f   families: plans of the same context, expert, pipeline and virtual sizes, schedule, GPUs and sequences of a
        micro-batch, so that one layer may do as one of them and the next as another
    s   strategies of a family: tensor-parallel size, ZeRO stage, recomputation
Data, for each stage i of a plan
    t[k,s]   seconds of a layer of kind k for one micro-batch, with its part of what no computation hides of its
             data-parallel collectives
    m[k,s]   bytes of such a layer: states, and activations of the micro-batches in flight
    H[i]     memory less embedding, head, logits, and the largest buffers of any strategy
Variables, objective, constraints
    layers x[k,s] of each stage by `training.layer_strategies`, switches between tensor-parallel sizes paid once. Stages
    are independent: a step falls with the time of every one.
Bound
    a step is no faster than all layers doing what is fastest in the family, without any data-parallel collective, on
    stages of equal work, and with the fastest head. It holds for all families of which a plan nearly fits.

The answer is priced by the cost model and kept where it is better; so plans are never worse, and seldom proven best.
Reference: Galvatron's dynamic program over layers (PKU-DAIR/Hetu-Galvatron).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from formulations.outcome import Budget, SolveOptions
from formulations.parallelism.training import layer_strategies
from formulations.parallelism.training.search.blocks import Strategy, block_of, own_strategy, variant_of, with_blocks
from formulations.parallelism.training.search.pricing import (
    FloatArray,
    IntArray,
    Priced,
    goal,
    pieces,
    price,
)
from formulations.parallelism.training.search.problem import RECOMPUTE, TrainProblem
from formulations.parallelism.training.search.space import MOST_MICRO_BATCH, tensor_sizes, zero_stages
from planner.cost.training.communication import Links
from planner.cost.training.compute import Rates, head_compute_s
from planner.cost.training.memory import training_memory_by_stage
from planner.cost.training.plans import Schedule, TrainingPlans
from planner.cost.training.sizes import plan_sizes
from planner.cost.training.stages import even_split, layers_by_kind
from planner.cost.training.step import layer_work, sharing_s, switch_s
from planner.training_plan import LayerBlock

#: Plans whose layers are chosen, one of a family, and seconds for that.
MOST_PLANS, CHOICE_S = 12, 8.0
#: A bound is a sum of floats.
_ROUNDING = 1 - 1e-9
#: Blocks of every stage.
Blocks = tuple[tuple[LayerBlock, ...], ...]


def chosen_layers(
    problem: TrainProblem, fits: Priced, best: Priced, options: SolveOptions, budget: Budget
) -> tuple[Priced, Blocks | None]:
    """The best plan with layers of their own, and its blocks; `best` and None where that gains nothing."""
    blocks = None
    share = Budget(min(CHOICE_S, budget.remaining_s))
    for one in _starts(problem, fits, best):
        if share.stop() is not None or budget.stop() is not None:
            break
        made = _blocks(problem, one, options, share)
        if made is None:
            continue
        priced = price(problem, with_blocks(problem.model, one, made))
        if priced.memory_bytes[0] <= problem.capacity_bytes and priced.goal[0] < best.goal[0]:
            best, blocks = priced, made
    return best, blocks


def _starts(problem: TrainProblem, fits: Priced, best: Priced) -> Iterator[TrainingPlans]:
    """The best plan, and the best even plans of other families, as single plans without variants."""
    yield _with_stages(problem, replace(best.plans, variants=()))
    order = np.argsort(fits.goal, kind="stable")
    _, first = np.unique(_families(fits.plans[order]), axis=0, return_index=True)
    for place in np.sort(first)[:MOST_PLANS].tolist():
        yield _with_stages(problem, fits.plans[order[place : place + 1]])


def _with_stages(problem: TrainProblem, one: TrainingPlans) -> TrainingPlans:
    layers = even_split(one, problem.model.num_layers) if one.stage_layers is None else one.stage_layers
    stages = int(one.pipeline_parallel_size[0])
    return replace(one, stage_layers=np.ascontiguousarray(layers[:, :stages]))


def _families(plans: TrainingPlans) -> IntArray:
    """What plans whose layers may be mixed have in common, [n, 7]."""
    return np.stack(
        [
            plans.context_parallel_size, plans.expert_parallel_size, plans.pipeline_parallel_size,
            plans.virtual_pipeline_size, plans.schedule, plans.tensor_parallel_size * plans.data_parallel_size,
            plans.data_parallel_size * plans.micro_batch_size,
        ],
        axis=1,
    )  # fmt: skip


def strategies_of(problem: TrainProblem, one: TrainingPlans) -> list[Strategy]:
    """What layers of the single plan may do; its own strategy first."""
    own, fixed = own_strategy(one), problem.fixed
    tensors, zeros = [own[0]], [own[1]]
    gpus = int(one.tensor_parallel_size[0] * one.data_parallel_size[0])
    sequences = int(one.data_parallel_size[0] * one.micro_batch_size[0])
    context, expert = int(one.context_parallel_size[0]), int(one.expert_parallel_size[0])
    if not {"tensor_parallel_size", "data_parallel_size", "micro_batch_size", "zero_stage"} & set(fixed):
        tensors = [
            tensor
            for tensor in tensor_sizes(problem)
            if gpus % tensor == 0
            and sequences % (gpus // tensor) == 0
            and sequences // (gpus // tensor) <= MOST_MICRO_BATCH
            and (gpus // tensor * context) % expert == 0
        ]
        zeros = sorted({own[1], *zero_stages(problem.framework, bool(one.pipeline_parallel_size[0] > 1))})
    kinds = [int(RECOMPUTE[name]) for name in problem.recompute]
    others = [found for found in product(tensors, zeros, kinds) if found != own]
    return [own, *others]


def _blocks(problem: TrainProblem, one: TrainingPlans, options: SolveOptions, share: Budget) -> Blocks | None:
    """Blocks of every stage by the integer program; None where kinds are scattered, or a stage does not fit."""
    model, stages = problem.model, int(one.pipeline_parallel_size[0])
    if len(model.kinds) > 1 and one.virtual_pipeline_size[0] > 1:
        return None
    strategies = strategies_of(problem, one)
    layers = one.stage_layers
    assert layers is not None
    end = np.cumsum(layers, axis=1)
    counts = np.array(layers_by_kind(model, one, end - layers, end))[:, :, 0]
    time_s, switches = _seconds(problem, one, strategies)
    memory, room = _bytes(problem, one, strategies, counts)
    found: list[tuple[LayerBlock, ...]] = []
    for stage in range(stages):
        runs = _runs(model.pattern[int(end[0, stage] - layers[0, stage]) : int(end[0, stage])])
        kinds = [kind for kind, _ in runs]
        asked = layer_strategies.LayerProblem(
            layers=np.array([count for _, count in runs]),
            time_s=time_s[kinds],
            memory_bytes=memory[kinds, :, stage],
            family=np.unique([tensor for tensor, _, _ in strategies], return_inverse=True)[1],
            switch_s=switches,
            capacity_bytes=float(room[stage]),
        )
        if asked.capacity_bytes <= 0.0 or share.stop() is not None:
            return None
        plan = layer_strategies.choose(asked, SolveOptions(seed=options.seed), Budget(max(0.1, share.remaining_s))).plan
        if plan is None:
            return None
        found.append(tuple(block_of(strategies[one.strategy], one.layers) for one in plan.blocks))
    return tuple(found)


def _runs(pattern: tuple[int, ...]) -> list[tuple[int, int]]:
    """Neighbouring layers of one kind: (kind, layers)."""
    found: list[tuple[int, int]] = []
    for kind in pattern:
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + 1)
        else:
            found.append((kind, 1))
    return found


def _seconds(problem: TrainProblem, one: TrainingPlans, strategies: list[Strategy]) -> tuple[FloatArray, FloatArray]:
    """Seconds of one layer of each kind under each strategy, [K, S], and of switches between tensor sizes, [F, F]."""
    model, base = problem.model, plan_sizes(one)
    rates = Rates.of(problem.device, problem.coefficients, problem.precision)
    links = Links(problem.network, problem.coefficients.link_efficiency)
    time_s = np.zeros((len(model.kinds), len(strategies)))
    into: dict[int, float] = {}
    for place, strategy in enumerate(strategies):
        sizes = plan_sizes(one.as_variant(variant_of(one, strategy, np.zeros((len(model.kinds), 1, 1)))))
        for k, kind in enumerate(model.kinds):
            work = layer_work(kind, model, sizes, rates, links)
            worked_s = work.compute_s + work.tensor_s + work.context_s + work.expert_s
            shown_s = (1.0 - problem.coefficients.overlap) * sharing_s(kind, sizes, links)
            time_s[k, place] = float((worked_s + shown_s)[0])
        there = [(base, (np.zeros((1, 1)),)), (sizes, (np.ones((1, 1)),))]
        into[strategy[0]] = float(switch_s(model, there, links)[0, 0])
    tensors = sorted(into)
    switches = np.array([[0.0 if a == b else max(into[a], into[b]) for b in tensors] for a in tensors])
    return time_s, switches


def _bytes(
    problem: TrainProblem, one: TrainingPlans, strategies: list[Strategy], counts: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Bytes of a layer of each kind under each strategy, [K, S, stages], and room for layers, [stages].

    counts : layers of each stage by kind, [K, stages]. Bytes are told apart from the plan's own; what that leaves open,
    the same for every layer, is the plan's own bytes shared out evenly over a stage's layers.
    """
    model, margin = problem.model, problem.margin

    def parts(plans: TrainingPlans) -> tuple[FloatArray, FloatArray]:
        memory = training_memory_by_stage(model, plans, margin)
        factor = margin.activations_factor
        return margin.states_factor * memory.states[0] + factor * memory.activations[0], factor * memory.working[0]

    own, working = parts(one)
    each = own / counts.sum(axis=0)
    found = np.zeros((len(model.kinds), len(strategies), own.size))
    for place, strategy in enumerate(strategies):
        for k in range(len(model.kinds)):
            layer = np.zeros((len(model.kinds), 1, own.size))
            layer[k, 0] = np.minimum(counts[k], 1.0)
            changed, more = parts(replace(one, variants=(variant_of(one, strategy, layer),) if place else ()))
            found[k, place] = each + changed - own
            working = np.maximum(working, more)
    total = training_memory_by_stage(model, one, margin)
    beside = total.total[0] - own - margin.activations_factor * total.working[0]
    return np.maximum(found, 0.0), problem.capacity_bytes - beside - working


def bound_of_families(problem: TrainProblem, plans: TrainingPlans, near: Priced) -> float:
    """No plan whose layers do as any of their family is better; see the module. plans : the whole space."""
    model, least = problem.model, min(int(RECOMPUTE[name]) for name in problem.recompute)
    rates = Rates.of(problem.device, problem.coefficients, problem.precision)
    links = Links(problem.network, problem.coefficients.link_efficiency)
    parts: list[tuple[IntArray, FloatArray, FloatArray]] = []
    for piece in pieces(plans[plans.recompute == least]):
        sizes = plan_sizes(piece)
        works = [layer_work(kind, model, sizes, rates, links) for kind in model.kinds]
        layers_s = np.stack([one.compute_s + one.tensor_s + one.context_s + one.expert_s for one in works])
        seconds = np.concatenate([layers_s, head_compute_s(model, sizes, rates)[None]])
        parts.append((_families(piece), seconds, sizes.micro_batches))
    kinds, which = np.unique(np.concatenate([part[0] for part in parts]), axis=0, return_inverse=True)
    # The fastest layer of each kind, and the fastest head, whatever plan of the family they are from.
    fastest = np.full((len(model.kinds) + 1, len(kinds)), np.inf)
    for row, seconds in zip(fastest, np.concatenate([part[1] for part in parts], axis=1), strict=True):
        np.minimum.at(row, which, seconds)
    micro = np.zeros(len(kinds))
    micro[which] = np.concatenate([part[2] for part in parts])
    counts = [*(model.pattern.count(k) for k in range(len(model.kinds))), 1]
    stages, virtual = kinds[:, 2], kinds[:, 3]
    each_s = np.array(counts) @ fastest / stages * _ROUNDING
    filled = np.where(kinds[:, 4] == Schedule.ONE_F_ONE_B, (stages - 1) / virtual, 0.0)
    gpus = kinds[:, 0] * kinds[:, 2] * kinds[:, 5]
    bounds = goal(problem, each_s * (micro + filled), each_s * micro, gpus)
    known = {tuple(row) for row in np.unique(_families(near.plans), axis=0).tolist()}
    return float(min(bounds[place] for place, row in enumerate(kinds.tolist()) if tuple(row) in known))
