"""The search over whole training plans: brute force, bounds, limits, and what it does where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations import SolveOptions
from formulations.base import solve
from formulations.outcome import Status
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.pareto import frontier
from formulations.parallelism.training.search.plans import of_document
from formulations.parallelism.training.search.pricing import price, splits, step_of, with_splits
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.parallelism.training.search.space import space
from planner.cost.training.memory import training_memory
from planner.cost.training.plans import Recompute, TrainingPlans, problems
from planner.descriptions.training import DenseModel
from planner.errors import OptionError
from tests.formulations.parallelism.training.train_cases import SMALL, problem


def brute_force(asked: TrainProblem) -> float:
    """Every plan one by one, by the cost model's own rules of what is legal; even stages, and splits of those near."""
    best, layers = np.inf, asked.model.num_layers
    batch = asked.global_batch_size
    sizes = product((1, 2, 4), (1, 2, 4), range(1, layers + 1), range(1, 4), (1, 2, 4, 8), (1, 2, 4, 8, 16), (1, 2, 3))
    for tensor, context, stages, virtual, data, micro, zero in sizes:
        if tensor * context * stages * data > asked.num_gpus or batch % (data * micro):
            continue
        if zero > 1 and stages > 1:
            continue
        for kind in (Recompute.NONE, Recompute.FULL):
            one = TrainingPlans.build(
                tensor_parallel_size=tensor,
                context_parallel_size=context,
                pipeline_parallel_size=stages,
                virtual_pipeline_size=virtual,
                data_parallel_size=data,
                micro_batch_size=micro,
                zero_stage=zero,
                recompute=kind,
                global_batch_size=batch,
                sequence_length=asked.sequence_length,
                gradient_bytes=asked.gradient_bytes,
            )
            chunks = any(total % (stages * virtual) == 0 for total in (layers, layers + 1, layers + 2))
            if problems(one, asked.model) or (virtual > 1 and not chunks):
                continue
            tried = [one]
            if stages > 1 and training_memory(asked.model, one, asked.margin).total[0] <= 1.15 * asked.capacity_bytes:
                split = with_splits(asked, one)
                tried += [] if split is None else [split]
            for plans in tried:
                fits = training_memory(asked.model, plans, asked.margin).total <= asked.capacity_bytes
                if fits.any():
                    best = min(best, float(step_of(asked, plans).step_s[fits].min()))
    return best


@pytest.mark.parametrize("changes", [{}, {"sequence_length": 8192, "global_batch_size": 8}, {"reserve": 0.6}])
def test_no_plan_by_brute_force_is_better(changes: dict[str, object]) -> None:
    asked = problem(**changes, layer_strategies="uniform")
    found = solve(TRAINING, asked)
    assert found.status is Status.OPTIMAL
    assert found.objective is not None
    assert found.bound is not None
    assert found.objective.total == pytest.approx(brute_force(asked), rel=1e-9)
    assert found.bound.value == pytest.approx(found.objective.total, rel=1e-9)


def test_the_head_makes_the_last_stage_shorter() -> None:
    """The head of 128,256 words costs as much as V / (2 h + 2 h_kv + 3 f) x h = 2.4 layers; even stages wait for it."""
    asked = problem(fixed={"pipeline_parallel_size": 2, "virtual_pipeline_size": 1, "tensor_parallel_size": 1})
    found = solve(TRAINING, asked)
    assert found.plan is not None
    assert [stage.num_layers for stage in found.plan.stages] in ([4, 2], [5, 1])


@settings(max_examples=15, deadline=None)
@given(
    layers=st.integers(2, 8),
    batch=st.sampled_from([7, 12, 16, 30]),
    nodes=st.integers(1, 3),
    goal=st.sampled_from(["step_time", "cost", "joules"]),
    schedules=st.sampled_from([("1f1b",), ("1f1b", "zb-v"), ("zb-1p", "zb-2p")]),
)
def test_any_answer_is_legal_and_between_bound_and_rule(
    layers: int, batch: int, nodes: int, goal: str, schedules: tuple[str, ...]
) -> None:
    asked = problem(
        model={**SMALL, "num_hidden_layers": layers},
        cluster={"nodes": [{"device": "a100_sxm", "count": nodes, "gpus_per_node": 4}]},
        global_batch_size=batch,
        objective=goal,
        schedules=schedules,
        prices_usd_per_gpu_hour={"a100_sxm": 2.0},
    )
    found = solve(TRAINING, asked)
    assert found.plan is not None, found.reasons
    assert found.objective is not None
    assert found.bound is not None
    assert not TRAINING.check(asked, found.plan)
    rule = TRAINING.baseline(asked)[1]
    if rule is not None:
        assert not TRAINING.check(asked, rule)
        assert found.objective.total <= TRAINING.objective(asked, rule).total * (1 + 1e-9)


def test_no_split_is_below_the_bound_of_its_plan() -> None:
    asked = problem(schedules=("1f1b", "zb-1p", "zb-2p", "zb-v"))
    plans = space(asked)
    assert plans is not None
    plans = plans[plans.pipeline_parallel_size > 1]
    even = price(asked, plans)
    for place in range(0, len(plans), 7):
        split = with_splits(asked, plans[np.array([place])])
        if split is not None:
            assert price(asked, split).step_s.min() >= even.balanced[place]


def test_splits_are_of_all_layers_and_leave_no_stage_empty() -> None:
    for layers, stages, least in ((6, 2, 1), (6, 6, 1), (61, 16, 2), (5, 5, 2)):
        table = splits(layers, stages, least)
        assert (table.sum(axis=1) == layers).all()
        assert (table >= least).all()
    assert len(splits(5, 5, 2)) == 0


def test_every_enumerated_plan_is_legal() -> None:
    for changes in ({}, {"schedules": ("1f1b", "zb-1p", "zb-2p", "zb-v")}, {"framework": "torchtitan"}):
        asked = problem(**changes)
        plans = space(asked)
        assert plans is not None
        assert not problems(plans, asked.model)


def test_a_frontier_has_no_plan_that_another_beats() -> None:
    asked = problem()
    plans = space(asked)
    assert plans is not None
    every = price(asked, plans)
    fits = every[every.memory_bytes <= asked.capacity_bytes]
    front = fits[frontier(asked, fits)]
    gpu_s = front.step_s * front.plans.num_gpus
    for place in range(len(front.step_s)):
        beaten = (front.step_s < 0.98 * front.step_s[place]) & (gpu_s < 0.98 * gpu_s[place])
        beaten &= front.memory_bytes < front.memory_bytes[place] - 0.02 * asked.capacity_bytes
        beaten &= front.busy_s * front.plans.num_gpus < 0.98 * (front.busy_s * front.plans.num_gpus)[place]
        assert not beaten.any()
    assert front.step_s[0] <= fits.step_s.min() * 1.01


def test_cost_takes_fewer_gpus_than_speed() -> None:
    """Eight GPUs are the fastest; communication between them makes one step dearer than on fewer."""
    prices = {"prices_usd_per_gpu_hour": {"a100_sxm": 1.5}}
    cheap, fast = (solve(TRAINING, problem(objective=goal, **prices)) for goal in ("cost", "step_time"))
    assert cheap.plan is not None
    assert fast.plan is not None
    assert cheap.objective is not None
    assert cheap.plan.num_gpus <= fast.plan.num_gpus
    assert cheap.objective.total == pytest.approx(cheap.plan.step_s * cheap.plan.num_gpus * 1.5 / 3600)


def test_a_prime_number_of_gpus_leaves_some_idle() -> None:
    nodes = {"nodes": [{"device": "a100_sxm", "count": 1, "gpus_per_node": 7}]}
    found = solve(TRAINING, problem(cluster=nodes))
    assert found.plan is not None
    assert found.plan.num_gpus + found.plan.idle_gpus == 7
    assert found.plan.idle_gpus > 0


def test_a_prime_batch_is_told_a_better_one() -> None:
    """31 sequences on 8 GPUs without a pipeline: data parallelism of 1 only. 32 keep all GPUs busy."""
    fixed = {"context_parallel_size": 1, "pipeline_parallel_size": 1}
    found = solve(TRAINING, problem(global_batch_size=31, fixed=fixed))
    better = solve(TRAINING, problem(global_batch_size=32, fixed=fixed))
    assert found.plan is not None
    assert better.plan is not None
    gain = better.plan.tokens_per_s / found.plan.tokens_per_s - 1.0
    assert [note for note in found.plan.notes if note.startswith(f"a batch of 32 trains {gain:.0%} more")]
    assert not [note for note in better.plan.notes if note.startswith("a batch of")]


def test_sequences_that_nothing_divides_may_be_padded() -> None:
    """500,009 tokens are a prime number; 489 x 1,024 = 500,736 are split over ranks, and then fit."""
    asked = problem(sequence_length=500009, global_batch_size=8)
    found = solve(TRAINING, asked)
    assert found.status is Status.INFEASIBLE
    assert "pad sequences to 500736 tokens: context parallelism must divide them" in found.relaxations
    assert solve(TRAINING, replace(asked, sequence_length=500736)).plan is not None


def test_nothing_fits_says_what_takes_the_memory_and_what_would_do() -> None:
    large = DenseModel.model_validate({**SMALL, "num_hidden_layers": 80, "hidden_size": 8192}).model_dump()
    asked = problem(model=large)
    found = solve(TRAINING, asked)
    assert found.status is Status.INFEASIBLE
    assert "the least memory of all" in found.reasons[0]
    assert "of it" in found.reasons[0]
    nodes = next(way for way in found.relaxations if way.startswith("use ") and "nodes" in way)
    count = int(nodes.split()[1])
    for nodes_now, status in ((count, Status.OPTIMAL), (count - 1, Status.INFEASIBLE)):
        again = solve(TRAINING, replace(asked, num_gpus=4 * nodes_now))
        assert again.status is status


def test_only_an_uneven_split_fits() -> None:
    """Two even stages do not fit by a few percent, a shorter first one does: an answer, with nothing beside it."""
    fixed = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "context_parallel_size": 1, "micro_batch_size": 1}
    found = solve(TRAINING, problem(
        fixed=fixed, reserve=0.74, sequence_length=16384, global_batch_size=32, layer_strategies="uniform"
    ))  # fmt: skip
    assert found.plan is not None
    assert len({stage.num_layers for stage in found.plan.stages}) == 2
    assert not found.plan.pareto
    assert not found.plan.runners_up


def test_sizes_that_no_plan_can_have_together() -> None:
    asked = problem(fixed={"data_parallel_size": 8, "micro_batch_size": 2, "virtual_pipeline_size": 3})
    found = solve(TRAINING, asked)
    assert found.status is Status.INFEASIBLE
    assert "no sizes divide" in found.reasons[0]
    assert any(way.startswith("let ") for way in found.relaxations)


def test_without_time_the_status_says_no_more_than_is_known() -> None:
    found = solve(TRAINING, problem(), SolveOptions(time_limit_s=1e-9))
    assert found.status in (Status.FEASIBLE, Status.OPTIMAL, Status.UNKNOWN)
    if found.bound is not None and found.objective is not None:
        assert found.bound.value <= found.objective.total * (1 + 1e-9)


def test_a_start_plan_is_refused() -> None:
    asked = problem()
    found = solve(TRAINING, asked)
    with pytest.raises(OptionError, match="no start plan"):
        solve(TRAINING, asked, hint=found.plan)


def test_nodes_are_mapped_by_measured_bandwidth() -> None:
    """Node 3 hears node 0 badly, so that no map in which one sends to the other is as good."""
    bandwidth = [[None if i == j else 50e9 for j in range(4)] for i in range(4)]
    bandwidth[0][1] = bandwidth[1][0] = 5e9
    asked = problem(
        cluster={"nodes": [{"device": "a100_sxm", "count": 4, "gpus_per_node": 4}]},
        node_bandwidth_bytes_per_s=bandwidth,
        fixed={"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "data_parallel_size": 2},
    )
    found = solve(TRAINING, asked)
    assert found.plan is not None
    assert found.plan.rank_map is not None
    assert found.plan.rank_map.bound_s <= found.plan.rank_map.seconds <= found.plan.rank_map.in_order_s
    assert found.plan.rank_map.seconds < found.plan.rank_map.in_order_s


def test_sequences_of_true_lengths_are_grouped() -> None:
    """Eight ranks, one long sequence and many short ones."""
    asked = problem(
        sequence_lengths=[4096, *[512] * 12], fixed={"tensor_parallel_size": 1, "pipeline_parallel_size": 1}
    )
    found = solve(TRAINING, asked)
    assert found.plan is not None
    groups = found.plan.sequence_groups
    assert groups is not None
    assert groups.bound_s <= groups.slowest_s
    assert groups.one_degree_s is None or groups.slowest_s <= groups.one_degree_s
    assert sorted(place for group in groups.groups for place in group.sequences) == list(range(13))


def test_passes_of_a_short_pipeline_are_ordered() -> None:
    asked = problem(fixed={"pipeline_parallel_size": 2, "virtual_pipeline_size": 1, "micro_batch_size": 1})
    found = solve(TRAINING, asked)
    assert found.plan is not None
    order = found.plan.pipeline_order
    assert order is not None
    assert order.bound_s * (1 - 1e-9) <= order.period_s <= order.rule_s * (1 + 1e-9)
    # 1F1B by its events and by the cost model's formula: the work and the bubble of the same stages.
    times = step_of(asked, of_document(asked, found.plan))
    work_s = float((times.compute_s + times.tensor_s + times.context_s + times.bubble_s)[0])
    assert order.rule_s == pytest.approx(work_s, rel=0.05)
