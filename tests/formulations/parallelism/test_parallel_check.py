"""`check` finds every change of a plan that changes what it is or says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from parallel_cases import problem, run, solved, worker

from formulations.parallelism.check import check
from formulations.parallelism.kind import judge, judge_alone
from planner.parallel_plan import ParallelPlan

WORKERS = [
    worker("p", "prefill", 3, 4.0),
    worker("d", "decode", 5, 6.0),
    worker("mixed", "both", 5, 1.0),
    worker("late", "both", 1, 9.0, ttft_s=3.0),
]
#: Two nodes of 8: 3 + 5 GPUs on each.
INSTANCE = problem(WORKERS, (2, 8), ttft_s=1.0)


@pytest.fixture(scope="module")
def plan() -> ParallelPlan:
    return solved(INSTANCE)


def changed(plan: ParallelPlan, place: int, **fields: Any) -> ParallelPlan:
    """One of its workers changed."""
    workers = list(plan.workers)
    workers[place] = workers[place].model_copy(update=fields)
    return plan.model_copy(update={"workers": tuple(workers)})


def rules(plan: ParallelPlan) -> set[str]:
    return {one.rule for one in check(INSTANCE, plan)}


def here(plan: ParallelPlan) -> ParallelPlan:
    """A plan of another cluster as if it were one of this."""
    return plan.model_copy(update={"gpus_per_node": {"h100_sxm": 8}})


def test_the_plan_itself_is_valid(plan: ParallelPlan) -> None:
    """2 x 4 = 8 prefill, 2 x 6 = 12 decode: 8 requests/s; a mixed worker for a decode one: min(8, 6) + 1 = 7."""
    assert plan.requests_per_s == pytest.approx(8.0)
    assert check(INSTANCE, plan) == []
    assert judge(INSTANCE, plan).feasible
    assert judge_alone(plan).feasible


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests_per_s", 8.001),
        ("requests_per_s", 0.0),
        ("num_gpus", 15),
        ("ttft_s", 0.4),
        ("ttft_s", None),
        ("tpot_s", 0.019),
        ("tpot_s", None),
        ("output_tokens_per_s", 801.0),
        ("output_tokens_per_s_per_gpu", 51.0),
        ("input_tokens", 999),
        ("output_tokens", 101),
        ("model", "another"),
        ("gpus_per_node", {"h100_sxm": 4}),
    ],
)
def test_a_changed_claim_is_found(plan: ParallelPlan, field: str, value: object) -> None:
    assert rules(plan.model_copy(update={field: value})) == {field}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "unknown"),
        ("role", "both"),
        ("device", "l40s"),
        ("num_gpus", 2),
        ("tensor_parallel_size", 2),
        ("pipeline_parallel_size", 2),
        ("data_parallel_size", 2),
        ("expert_parallel_size", 2),
        ("max_batch_size", 7),
        ("requests_per_s", 40.0),
        ("ttft_s", 0.1),
        ("tpot_s", 0.001),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_changed_worker_is_found(plan: ParallelPlan, place: int, field: str, value: object) -> None:
    assert "worker" in rules(changed(plan, place, **{field: value}))


@pytest.mark.parametrize("place", [0, 1])
def test_a_changed_count_is_found(plan: ParallelPlan, place: int) -> None:
    assert "num_gpus" in rules(changed(plan, place, count=plan.workers[place].count + 1))
    assert "num_gpus" in rules(changed(plan, place, count=1))


def test_packing_is_judged_and_not_volume(plan: ParallelPlan) -> None:
    """Three workers of 5 GPUs are 15 of 16 GPUs and do not fit on two nodes of 8."""
    mixed = here(solved(problem([WORKERS[2]], (3, 8))))
    assert mixed.num_gpus == 15
    assert rules(mixed) == {"packing"}


def test_a_worker_that_misses_the_limits_is_found() -> None:
    late = here(solved(problem([WORKERS[3]], (1, 1))))
    assert rules(late) == {"slo"}
    told = {one.rule for one in judge(INSTANCE, late).violations}
    assert told == {"slo", "slo_ttft_s"}


def test_a_missed_rate_and_too_many_workers_are_found(plan: ParallelPlan) -> None:
    asked = replace(INSTANCE, target_per_s=9.0, goal="gpus")
    assert {one.rule for one in check(asked, plan)} == {"rate"}
    few = replace(INSTANCE, max_workers=3)
    (found,) = check(few, plan)
    assert (found.rule, found.amount, found.limit) == ("max_workers", 4.0, 3.0)


def test_an_unknown_worker_ends_the_judgement(plan: ParallelPlan) -> None:
    verdict = judge(INSTANCE, changed(plan, 0, name="unknown"))
    assert not verdict.feasible
    assert verdict.metrics == ()


def test_without_an_instance_only_the_sum_is_judged(plan: ParallelPlan) -> None:
    (found,) = judge_alone(plan.model_copy(update={"num_gpus": 15})).violations
    assert found.rule == "num_gpus"


def test_the_verdict_says_which_side_is_scarce(plan: ParallelPlan) -> None:
    assert judge(INSTANCE, plan).bottleneck == "prefill workers: 8 prefill against 12 decode requests/s"
    assert run(INSTANCE).status == "optimal"
