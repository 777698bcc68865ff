"""Training plans over unequal GPUs: brute force, bounds, events, limits, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from formulations import SolveOptions
from formulations.base import solve
from formulations.outcome import Budget, Status
from formulations.parallelism.training.mixed.baseline import equal_replicas_s, equal_stages_s
from formulations.parallelism.training.mixed.formulation import ANY_TRAINING
from formulations.parallelism.training.mixed.plans import pipeline_document, price
from formulations.parallelism.training.mixed.pricing import between_s, sent_s
from formulations.parallelism.training.mixed.problem import MixedProblem
from formulations.parallelism.training.mixed.replicas import best_replicas, families, with_micro_batches
from formulations.parallelism.training.mixed.search import work_bound_s
from formulations.parallelism.training.mixed.shards import best_shards
from formulations.parallelism.training.mixed.stages import best_pipeline
from formulations.parallelism.training.mixed.timeline import events
from formulations.parallelism.training.schedule.baseline import joined, one_forward_one_backward
from formulations.parallelism.training.schedule.problem import span_s
from formulations.parallelism.training.search.plans import of_document
from formulations.parallelism.training.search.pricing import step_of
from tests.formulations.parallelism.training.mixed_cases import PAIR, THREE, TINY, best_of_all, mixed, sites
from tests.formulations.parallelism.training.train_cases import SMALL

ONE = {"tensor_parallel_size": 1}
LONG = SolveOptions(time_limit_s=60)


def pipeline_s(asked: MixedProblem) -> float:
    found = best_pipeline(asked, np.inf, LONG, Budget(60))
    assert found.pipelines is not None
    assert found.bound_s >= found.step_s * (1 - 1e-9)
    return found.step_s


@pytest.mark.parametrize(
    "changes",
    [
        {"global_batch_size": 2, "recompute": "none"},
        {"cluster": THREE, "global_batch_size": 1, "model": {**TINY, "num_hidden_layers": 2}},
        {"sites": sites("5Gbit/s"), "global_batch_size": 4, "model": {**TINY, "num_hidden_layers": 2}},
        {"reserve": 0.72, "sequence_length": 4096, "global_batch_size": 2, "model": {**TINY, "num_hidden_layers": 2}},
    ],
)
def test_no_pipeline_by_brute_force_is_better(changes: dict[str, Any]) -> None:
    asked = mixed(**changes)
    assert pipeline_s(asked) == pytest.approx(best_of_all(asked), rel=1e-9)


def test_no_replicas_by_brute_force_are_better() -> None:
    asked = mixed(global_batch_size=10)
    found, left_s = best_replicas(asked, np.inf, Budget(60))
    assert found is not None
    assert left_s > 0.0
    assert found.step_s == pytest.approx(best_pair_s(asked), rel=1e-9)


@pytest.mark.parametrize(("sizes", "batch"), [((5, 4), 4), ((3, 2), 4), ((7, 2), 6)])
def test_what_replicas_leave_open_is_in_their_bound(sizes: tuple[int, int], batch: int) -> None:
    """Odd nodes: the fastest families leave GPUs, and their ports between the kinds, idle."""
    nodes = [
        {"device": device, "count": 1, "gpus_per_node": size}
        for device, size in zip(("h100_sxm", "a100_sxm"), sizes, strict=True)
    ]
    asked = mixed(cluster={**PAIR, "nodes": nodes}, global_batch_size=batch, sequence_length=256)
    found, left_s = best_replicas(asked, np.inf, Budget(60))
    best_s = best_pair_s(asked)
    assert min(left_s, np.inf if found is None else found.step_s) <= best_s * (1 + 1e-9)


def best_pair_s(asked: MixedProblem) -> float:
    """Every pair of families and every way to share the micro-batches; the longest replica of a side is its time."""
    best, batch = np.inf, asked.any_block.global_batch_size
    for micro_batch in (one for one in range(1, batch + 1) if batch % one == 0):
        sides = [families(asked, number, micro_batch) for number in (0, 1)]
        units = batch // micro_batch
        if any(side is None for side in sides):
            continue
        for one, other in product(*(range(len(side.plans)) for side in sides if side is not None)):
            left, right = (side[np.array([at])] for side, at in zip(sides, (one, other), strict=True) if side)
            gpus = [int(side.plans.num_gpus[0]) for side in (left, right)]
            for first in range(1, units):
                steps = [
                    float(
                        step_of(
                            asked.blocks[number], with_micro_batches(side.plans, -(-count // int(side.replicas[0])))
                        ).step_s[0]
                    )
                    for number, side, count in ((0, left, first), (1, right, units - first))
                ]
                best = min(best, max(steps) + between_s(asked, [0, 1], gpus, 8.0))
    return best


def test_replicas_of_a_faster_kind_have_more_micro_batches() -> None:
    """By hand: within T each replica does floor((T - fixed) / unit); less than the answer is not enough for all."""
    found, _ = best_replicas(mixed(global_batch_size=64), np.inf, Budget(60))
    assert found is not None
    fast, slow = found.micro_batches
    assert sum(fast) + sum(slow) == 64 // int(found.plans[0].micro_batch_size[0])
    assert min(fast) > max(slow) or len(fast) > len(slow)


def test_states_go_where_there_is_room() -> None:
    """5.0e9 parameters: weights, gradients and buffers leave an L40S 5 GiB; an eighth of 12 B each is 7 GiB."""
    cluster = {
        "nodes": [
            {"device": "h100_sxm", "count": 1, "gpus_per_node": 4},
            {"device": "l40s", "count": 1, "gpus_per_node": 4},
        ],
        "network": {"link": "ib_hdr"},
    }
    asked = mixed(model={**SMALL, "num_hidden_layers": 18}, cluster=cluster, fixed=ONE, global_batch_size=32)
    found, _ = best_shards(asked, np.inf, Budget(60))
    assert found is not None
    large, small = found.states
    assert min(large) > 1.2 * max(small)
    assert sum(large) + sum(small) == pytest.approx(1.0)


def test_equal_stages_are_what_the_cost_model_says_but_for_sends() -> None:
    """Two equal blocks: the model counts two sends a micro-batch for two stages, at one end of which there is none.

    (m - 1) max(T + S) + sum T + 2 S = m max T + other T + 2 m S - (m - 1) S.
    """
    nodes = [{"device": "a100_sxm", "count": 1, "gpus_per_node": 2} for _ in range(2)]
    fixed = {"pipeline_parallel_size": 2, "tensor_parallel_size": 2, "micro_batch_size": 1, "data_parallel_size": 1}
    asked = mixed(cluster={**PAIR, "nodes": nodes}, sites=sites("10Tbit/s", "0s"), fixed=fixed)
    found = solve(ANY_TRAINING, asked)
    plain = replace(asked.blocks[0], num_gpus=4)
    assert found.plan is not None
    assert found.plan.layout == "stages"
    m = found.plan.num_micro_batches
    send_s = float(sent_s(asked, 0, 1, 2, 1))
    whole_s = float(step_of(plain, of_document(plain, found.plan)).step_s[0])
    assert price(asked, found.plan).step_s == pytest.approx(whole_s - (m - 1) * send_s, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sites": sites("2Gbit/s")},
        {"cluster": THREE, "global_batch_size": 6},
        {"model": SMALL, "sites": sites("8Gbit/s")},
    ],
)
def test_a_pipeline_is_never_below_its_events(changes: dict[str, Any]) -> None:
    asked = mixed(**changes)
    found = best_pipeline(asked, np.inf, LONG, Budget(60))
    assert found.pipelines is not None
    plan = pipeline_document(asked, found.pipelines, found.stages)
    if len(plan.stages) > 1:
        run = events(asked, plan)
        after_s = price(asked, plan).parts["data"]
        assert span_s(run, joined(run, one_forward_one_backward(run))) <= (plan.step_s - after_s) * (1 + 1e-3)


def test_an_answer_is_proven_and_tells_the_other_ways() -> None:
    asked = mixed(model=SMALL, global_batch_size=32, sequence_length=4096)
    found = solve(ANY_TRAINING, asked, LONG)
    assert found.status is Status.OPTIMAL
    assert found.plan is not None
    assert found.objective is not None
    assert found.bound is not None
    assert found.bound.value == pytest.approx(found.objective.total)
    assert found.plan.work_bound_s is not None
    assert found.plan.work_bound_s <= found.objective.total
    told = {one.name: one.step_s for one in found.plan.alternatives}
    assert {"2 x h100_sxm alone", "2 x a100_sxm alone", "replicas of one kind each"} <= set(told)
    assert min(step for step in told.values() if step is not None) == pytest.approx(found.objective.total)
    rule = ANY_TRAINING.baseline(asked)[1]
    assert rule is not None
    assert not ANY_TRAINING.check(asked, rule)
    assert found.objective.total <= ANY_TRAINING.objective(asked, rule).total * (1 + 1e-9)
    for plain in (equal_replicas_s(asked), equal_stages_s(asked)):
        assert plain is not None
        assert found.objective.total <= plain * (1 + 1e-9)


def test_listing_the_kinds_the_other_way_round_changes_nothing() -> None:
    turned = {**PAIR, "nodes": PAIR["nodes"][::-1]}
    one, other = (solve(ANY_TRAINING, mixed(cluster=cluster), LONG).objective for cluster in (PAIR, turned))
    assert one is not None
    assert other is not None
    assert one.total == pytest.approx(other.total, rel=1e-9)


def test_a_slow_link_is_crossed_by_activations_not_by_gradients() -> None:
    """Gradients of all weights, twice, take longer over 20 Gbit/s than a few sequences' activations."""
    asked = mixed(model=SMALL, sites=sites("20Gbit/s"), global_batch_size=32, sequence_length=4096)
    found, _ = best_replicas(asked, np.inf, Budget(60))
    assert found is not None
    assert pipeline_s(asked) < found.step_s
    assert work_bound_s(asked) <= pipeline_s(asked)


def test_without_a_way_each_site_is_alone() -> None:
    found = solve(ANY_TRAINING, mixed(sites=sites(None)), LONG)
    assert found.plan is not None
    assert found.plan.layout == "one_kind"
    assert found.plan.idle_gpus == 2
    assert len({stage.site for stage in found.plan.stages}) == 1


def test_fixed_sizes_are_kept_on_every_stage() -> None:
    asked = mixed(model=SMALL, fixed={"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, reserve=0.5)
    found = solve(ANY_TRAINING, asked, LONG)
    assert found.plan is not None
    assert {stage.tensor_parallel_size for stage in found.plan.stages} == {2}
    assert not ANY_TRAINING.check(asked, found.plan)


def test_what_fits_on_no_kind_alone_fits_on_both() -> None:
    """18 B of 12 x 218 M + 2 x 525 M parameters are 66 GB; each side has 2 x 80 x 0.4 = 64 GB, less 8 for buffers."""
    large = {**SMALL, "num_hidden_layers": 12}
    asked = mixed(model=large, reserve=0.6, sequence_length=1024)
    found = solve(ANY_TRAINING, asked, LONG)
    assert found.plan is not None, found.reasons
    assert found.plan.layout == "stages"
    assert {stage.device for stage in found.plan.stages} == {"h100_sxm", "a100_sxm"}


def test_nothing_fits_says_why_and_what_would_do() -> None:
    asked = mixed(model={**SMALL, "num_hidden_layers": 90})
    found = solve(ANY_TRAINING, asked, LONG)
    assert found.status is Status.INFEASIBLE
    assert "all 4 GPUs have" in found.reasons[0]
    assert any("least memory of all" in reason for reason in found.reasons)
    way = next(way for way in found.relaxations if "nodes of a100_sxm instead of 1" in way)
    nodes = int(way.split()[1])
    grown = replace(asked.blocks[1], num_gpus=2 * nodes)
    assert solve(ANY_TRAINING, replace(asked, blocks=(asked.blocks[0], grown)), LONG).plan is not None


def test_without_time_the_status_says_no_more_than_is_known() -> None:
    found = solve(ANY_TRAINING, mixed(model=TINY), SolveOptions(time_limit_s=1e-9))
    assert found.status in (Status.FEASIBLE, Status.UNKNOWN)
    if found.bound is not None and found.objective is not None:
        assert found.bound.value <= found.objective.total
