"""What is decided after the sizes: order of passes, nodes of stages, groups of sequences. None of it changes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.outcome import Budget, SolveOptions, Status
from formulations.parallelism.training import rank_mapping
from formulations.parallelism.training.schedule import cpsat
from formulations.parallelism.training.schedule.baseline import joined, one_forward_one_backward
from formulations.parallelism.training.schedule.problem import SchedulePlan, ScheduleProblem, span_s
from formulations.parallelism.training.schedule.zero_bubble import zero_bubble
from formulations.parallelism.training.search.plans import arrays_of, of_document, passes_of
from formulations.parallelism.training.search.problem import FloatArray, TrainProblem
from formulations.parallelism.training.search.space import powers_of_two
from formulations.parallelism.training.sequences import groups as sequence_groups
from formulations.parallelism.training.sequences.packing import one_degree
from formulations.parallelism.training.sequences.problem import SequenceProblem, makespan
from planner.cost.training.memory import WEIGHT_BYTES, training_memory_by_stage
from planner.cost.training.passes import stage_passes
from planner.cost.training.pipeline import in_flight
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.sizes import plan_sizes
from planner.training_plan import NodeMap, PipelineOrder, SequenceGroup, SequenceGroups, TrainingPlan

#: Passes of a pipeline whose order is searched, and seconds for that.
MOST_PASSES, ORDER_S = 1500, 4.0
#: Share of a micro-batch's activations that weight gradients still need: 32 of 34 s b h (arXiv 2401.10241, section 2).
UNTIL_WEIGHT = 32.0 / 34.0
#: Nodes that are mapped at most, and seconds for that.
MOST_NODES, MAP_S = 256, 4.0


def refined(problem: TrainProblem, plan: TrainingPlan, options: SolveOptions, budget: Budget) -> TrainingPlan:
    """The plan with its order of passes, map of nodes and groups of sequences, where they are asked for."""
    order = pipeline_order(problem, plan, options, budget)
    mapped, why_not = node_map(problem, plan, options, budget)
    groups, no_groups = groups_of(problem, plan, options, budget)
    return plan.model_copy(
        update={
            "pipeline_order": order,
            "rank_map": mapped,
            "sequence_groups": groups,
            "notes": (*why_not, *no_groups),
        }
    )


def schedule_problem(problem: TrainProblem, plan: TrainingPlan) -> ScheduleProblem:
    """The pipeline of a plan, chunks dealt out in turn; the room is what stages have left beside activations."""
    one = of_document(problem, plan)
    passes = passes_of(problem, one)
    memory = training_memory_by_stage(problem.model, one, problem.margin)
    stages, chunks = plan.pipeline_parallel_size, plan.virtual_pipeline_size
    kept = memory.activations[0] / in_flight(plan_sizes(one), np.arange(stages, dtype=np.float64)[:, None])[:, 0]
    kept = kept * problem.margin.activations_factor
    room = problem.capacity_bytes - (memory.total[0] - memory.activations[0] * problem.margin.activations_factor)
    each = np.stack([passes.forward_s[0], passes.backward_s[0], passes.weight_s[0]]) / chunks
    return ScheduleProblem(
        device=np.tile(np.arange(stages), chunks),
        pass_s=np.tile(each, chunks),
        send_s=np.full(stages * chunks - 1, float(passes.send_s[0])),
        until_backward_bytes=np.tile(kept * (1.0 - UNTIL_WEIGHT), chunks) / chunks,
        until_weight_bytes=np.tile(kept * UNTIL_WEIGHT, chunks) / chunks,
        capacity_bytes=room,
        micro_batches=plan.num_micro_batches,
    )


def pipeline_order(
    problem: TrainProblem, plan: TrainingPlan, options: SolveOptions, budget: Budget
) -> PipelineOrder | None:
    """The best order of passes that is found; None without a pipeline, or with too many passes."""
    passes = 3 * plan.pipeline_parallel_size * plan.virtual_pipeline_size * plan.num_micro_batches
    if plan.pipeline_parallel_size == 1 or plan.schedule != "1f1b" or passes > MOST_PASSES:
        return None
    asked = schedule_problem(problem, plan)
    rule_s = span_s(asked, joined(asked, one_forward_one_backward(asked)))
    greedy = zero_bubble(asked) if plan.virtual_pipeline_size == 1 else None
    found = cpsat.choose(asked, SolveOptions(time_limit_s=ORDER_S, seed=options.seed), _share(budget, ORDER_S))
    if found.plan is None or found.bound is None:
        return None
    return PipelineOrder(
        period_s=min(rule_s, span_s(asked, found.plan)),
        rule_s=rule_s,
        zero_bubble_s=None if greedy is None else span_s(asked, greedy),
        bound_s=found.bound.value,
        proven=found.status is Status.OPTIMAL,
    )


def timeline_of(problem: TrainProblem, plan: TrainingPlan) -> tuple[ScheduleProblem, SchedulePlan] | None:
    """Passes of the plan's schedule for as many micro-batches as can be drawn; None without a pipeline, or too deep."""
    stages, virtual = plan.pipeline_parallel_size, plan.virtual_pipeline_size
    rounds = min(plan.num_micro_batches // stages or 1, 3, MOST_PASSES // (3 * stages * stages * virtual))
    if stages == 1 or rounds < 1 or plan.schedule == "zb-v":
        return None
    micro = min(plan.num_micro_batches, rounds * stages)
    asked = replace(schedule_problem(problem, plan), micro_batches=micro)
    if plan.schedule == "1f1b":
        return asked, joined(asked, one_forward_one_backward(asked))
    found = zero_bubble(asked)
    return None if found is None else (asked, found)


def node_map(
    problem: TrainProblem, plan: TrainingPlan, options: SolveOptions, budget: Budget
) -> tuple[NodeMap | None, tuple[str, ...]]:
    """Nodes of stages on the measured bandwidth; or why there is no such map."""
    matrix = problem.node_bandwidth_bytes_per_s
    if matrix is None:
        return None, ()
    node, stages = problem.gpus_per_node, plan.pipeline_parallel_size
    split = plan.tensor_parallel_size * plan.context_parallel_size
    if node % split or (plan.data_parallel_size * split) % node:
        return None, (f"nodes are not mapped: replicas of {split} GPUs do not fill nodes of {node}",)
    pipelines = plan.data_parallel_size * split // node
    if pipelines * stages > MOST_NODES:
        return None, (f"nodes are not mapped: more than {MOST_NODES} of them",)
    model, share = problem.model, node // split
    tokens = plan.micro_batch_size * plan.sequence_length / plan.context_parallel_size
    ends = np.zeros(stages)
    ends[[0, -1]] += 2.0 * model.embedding_parameters
    layers = sum(model.kinds[k].dense_parameters + model.kinds[k].routed_parameters for k in model.pattern)
    held = np.array([stage.num_layers for stage in plan.stages]) / model.num_layers * layers + ends
    asked = rank_mapping.MappingProblem(
        bandwidth_bytes_per_s=matrix[: pipelines * stages, : pipelines * stages],
        pipelines=pipelines,
        stages=stages,
        activation_bytes=WEIGHT_BYTES * model.hidden_size * tokens * share * plan.context_parallel_size,
        gradient_bytes=held * min(plan.gradient_bytes, 4) * (1.0 if pipelines > 1 else 0.0),
    )
    found = rank_mapping.choose(asked, SolveOptions(time_limit_s=MAP_S, seed=options.seed), _share(budget, MAP_S))
    if found.plan is None or found.bound is None:
        return None, ("nodes are not mapped: no time was left",)
    return (
        NodeMap(
            nodes=found.plan.nodes,
            seconds=rank_mapping.seconds(asked, found.plan),
            in_order_s=rank_mapping.seconds(asked, rank_mapping.in_order(asked)),
            bound_s=found.bound.value,
        ),
        (),
    )


def groups_of(
    problem: TrainProblem, plan: TrainingPlan, options: SolveOptions, budget: Budget
) -> tuple[SequenceGroups | None, tuple[str, ...]]:
    """Context-parallel groups for the true lengths among the ranks of a stage; or why they do not fit."""
    if not problem.sequence_lengths:
        return None, ()
    ranks = plan.context_parallel_size * plan.data_parallel_size
    degrees = np.array([one for one in powers_of_two(ranks) if one <= ranks], dtype=np.int64)
    lengths = np.array(problem.sequence_lengths, dtype=np.int64)
    asked = SequenceProblem(
        tokens=lengths,
        degrees=degrees,
        sequence_s=_sequence_s(problem, plan, lengths, degrees),
        group_s=np.zeros(degrees.size),
        num_devices=ranks,
        tokens_per_device=_tokens_per_rank(problem, plan),
    )
    found = sequence_groups.choose(asked, SolveOptions(seed=options.seed), _share(budget, options.time_limit_s))
    if found.plan is None or found.bound is None:
        return None, tuple(f"sequences are not grouped: {why}" for why in found.reasons)
    plain = one_degree(asked).packing
    return (
        SequenceGroups(
            groups=tuple(
                SequenceGroup(context_parallel_size=group.degree, sequences=group.sequences)
                for group in found.plan.groups
            ),
            slowest_s=makespan(asked, found.plan),
            one_degree_s=None if plain is None else plain.makespan,
            bound_s=found.bound.value,
        ),
        (),
    )


def _sequence_s(problem: TrainProblem, plan: TrainingPlan, lengths: np.ndarray, degrees: np.ndarray) -> FloatArray:
    """Seconds of the slowest stage for each sequence alone in a group of each degree, [n, D]."""
    unique, place = np.unique(lengths, return_inverse=True)
    layers = [stage.num_layers for stage in plan.stages]
    columns = []
    for degree in degrees.tolist():
        alone = TrainingPlans.build(
            tensor_parallel_size=plan.tensor_parallel_size,
            pipeline_parallel_size=plan.pipeline_parallel_size,
            context_parallel_size=degree,
            recompute=arrays_of(problem, plan).recompute[0],
            micro_batch_size=1,
            global_batch_size=1,
            # Padded to equal shares, as context parallelism needs.
            sequence_length=-(-unique // degree) * degree,
            flash_attention=problem.flash_attention,
            stage_layers=layers,
        )
        passes = stage_passes(
            problem.model, problem.device, problem.network, alone, problem.coefficients, problem.precision
        )
        columns.append(passes.total_s.max(axis=1)[place])
    return np.stack(columns, axis=1)


def _tokens_per_rank(problem: TrainProblem, plan: TrainingPlan) -> float:
    """Tokens of a micro-batch for which the fullest stage has room, on each rank."""
    memory = training_memory_by_stage(problem.model, of_document(problem, plan), problem.margin)
    factor = problem.margin.activations_factor
    with_tokens = factor * (memory.activations + memory.logits + memory.working)[0]
    tokens = plan.micro_batch_size * plan.sequence_length / plan.context_parallel_size
    room = problem.capacity_bytes - (memory.total[0] - with_tokens)
    return float((room / (with_tokens / tokens)).min())


def _share(budget: Budget, most_s: float) -> Budget:
    """A budget of its own, of what is left."""
    return Budget(max(0.1, min(most_s, budget.remaining_s)))
