"""The independent check of plans over unequal GPUs, on plans that were broken on purpose; and mistakes in instances."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from formulations.base import solve
from formulations.outcome import Budget, SolveOptions
from formulations.parallelism.training.mixed.check import check
from formulations.parallelism.training.mixed.formulation import ANY_TRAINING
from formulations.parallelism.training.mixed.plans import pipeline_document, shared_document
from formulations.parallelism.training.mixed.reading import read_any
from formulations.parallelism.training.mixed.replicas import best_replicas
from formulations.parallelism.training.mixed.shards import best_shards
from formulations.parallelism.training.mixed.stages import best_pipeline
from formulations.parallelism.training.search.kind import judge, judge_alone
from formulations.parallelism.training.search.problem import TrainProblem
from formulations.planning import check_document
from formulations.planning import plan as plan_instance
from planner.errors import DescriptionError
from planner.files import to_json
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan
from tests.formulations.parallelism.training.mixed_cases import PAIR, mixed, sites
from tests.formulations.parallelism.training.train_cases import SMALL, instance, problem


@functools.cache
def pipeline() -> TrainingPlan:
    asked = mixed(model=SMALL)
    found = best_pipeline(asked, np.inf, SolveOptions(), Budget(30))
    assert found.pipelines is not None
    plan = pipeline_document(asked, found.pipelines, found.stages)
    assert len(plan.stages) > 1
    return plan


@functools.cache
def shared(states: bool) -> TrainingPlan:
    asked = mixed(model=SMALL, global_batch_size=32)
    found, _ = (best_shards if states else best_replicas)(asked, np.inf, Budget(30))
    assert found is not None
    return shared_document(asked, found)


def stage(plan: TrainingPlan, place: int, **changes: Any) -> dict[str, Any]:
    stages = list(plan.stages)
    stages[place] = stages[place].model_copy(update=changes)
    return {"stages": tuple(stages)}


BREAKS: dict[str, Callable[[TrainingPlan], dict[str, Any]]] = {
    "cover": lambda plan: stage(plan, 0, num_layers=plan.stages[0].num_layers + 1),
    "embedding": lambda plan: stage(plan, 0, embedding=False),
    "head": lambda plan: stage(plan, 0, head=True),
    "gpus": lambda plan: {"idle_gpus": plan.idle_gpus + 1},
    "instance": lambda plan: {"gradient_bytes": 2},
    "layout": lambda plan: {"layout": None},
    "batch": lambda plan: stage(plan, 0, micro_batches=(1,) * len(plan.stages[0].micro_batches)),
    "stages": lambda plan: stage(plan, 0, tensor_parallel_size=None),
    "devices": lambda plan: stage(plan, 0, first_gpu=plan.stages[-1].first_gpu),
    "claimed_memory": lambda plan: stage(plan, 0, peak_memory_bytes=1.0),
    "interleaving": lambda plan: {"virtual_pipeline_size": 2},
    "recompute": lambda plan: stage(plan, 0, recompute="selective"),
}


@pytest.mark.parametrize("rule", BREAKS)
def test_each_broken_rule_is_named(rule: str) -> None:
    broken = pipeline().model_copy(update=BREAKS[rule](pipeline()))
    assert rule in {violation.rule for violation in check(mixed(model=SMALL), broken)}


def test_sound_plans_break_nothing() -> None:
    assert not check(mixed(model=SMALL), pipeline())
    for states in (False, True):
        assert not check(mixed(model=SMALL, global_batch_size=32), shared(states))
        assert judge(mixed(model=SMALL, global_batch_size=32), shared(states)).feasible
        assert judge_alone(shared(states)).feasible


def test_shares_of_states_add_up() -> None:
    plan = shared(True)
    broken = plan.model_copy(update=stage(plan, 0, state_shares=(0.9,) * len(plan.stages[0].state_shares)))
    assert "states" in {violation.rule for violation in check(mixed(model=SMALL, global_batch_size=32), broken)}


def test_a_stage_of_another_kind_is_not_there() -> None:
    other = "h100_sxm" if pipeline().stages[0].device == "a100_sxm" else "a100_sxm"
    broken = pipeline().model_copy(update=stage(pipeline(), 0, device=other))
    assert {violation.rule for violation in check(mixed(model=SMALL), broken)} == {"devices"}


def test_memory_of_each_stage_on_its_own_kind() -> None:
    violations = check(mixed(model=SMALL, reserve=0.85), pipeline())
    assert "gpu_memory" in {violation.rule for violation in violations}
    assert any(violation.message.count("h100_sxm") for violation in violations)
    assert any(violation.message.count("a100_sxm") for violation in violations)


def test_links_that_are_missing_are_told() -> None:
    apart = mixed(model=SMALL, sites=sites(None))
    broken = {
        "stages": tuple(
            one.model_copy(update={"site": "oslo" if one.device == "h100_sxm" else "riga"}) for one in pipeline().stages
        )
    }
    violations = check(apart, pipeline().model_copy(update=broken))
    assert {violation.rule for violation in violations} == {"links"}


def test_fixed_sizes_of_another_instance() -> None:
    asked = mixed(model=SMALL, fixed={"pipeline_parallel_size": 4, "micro_batch_size": 8})
    told = {violation.message for violation in check(asked, pipeline()) if violation.rule == "fixed"}
    assert any("fixed at 4" in message for message in told)
    assert any("fixed at 8" in message for message in told)


def test_a_document_comes_back_and_is_judged_the_same() -> None:
    asked = instance(model=SMALL, cluster=PAIR, global_batch_size=8, sequence_length=2048, schedules=("1f1b", "zb-v"))
    document = plan_instance(asked)
    assert isinstance(document, TrainingDocument)
    again = TrainingDocument.model_validate_json(to_json(document))
    assert check_document(again, read_any(asked)).feasible
    assert check_document(again, None).feasible
    assert not check_document(again, problem()).feasible


def test_a_plan_of_one_kind_is_checked_as_such() -> None:
    asked = mixed(sites=sites(None))
    found = solve(ANY_TRAINING, asked)
    assert found.plan is not None
    assert found.plan.layout == "one_kind"
    judged = judge(asked, found.plan)
    assert judged.feasible
    wrong = found.plan.model_copy(update={"tensor_parallel_size": 7})
    assert check(asked, wrong)


def test_equal_nodes_at_one_site_are_an_ordinary_problem() -> None:
    nodes = [{"device": "a100_sxm", "count": 1, "gpus_per_node": 2} for _ in range(2)]
    keys = {"model": SMALL, "cluster": {**PAIR, "nodes": nodes}, "global_batch_size": 8}
    together = {**sites("1Gbit/s"), "nodes": ["oslo", "oslo"]}
    assert isinstance(read_any(instance(**keys)), TrainProblem)
    assert isinstance(read_any(instance(**keys, sites=together)), TrainProblem)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"cluster": {"nodes": PAIR["nodes"]}},
            ["cluster.network", "is required to join unequal nodes (2 x h100_sxm, 2 x a100_sxm)"],
        ),
        (
            {"cluster": {**PAIR, "network": {"link": "ib_hdr", "topology": "rail_only"}}},
            ["cluster.network.topology", "rail_only joins equal nodes"],
        ),
        (
            {
                "objective": "cost", "prices_usd_per_gpu_hour": {"h100_sxm": 2.0, "a100_sxm": 1.0},
                "sequence_lengths": [512], "schedules": ("zb-1p",),
                "node_bandwidth_bytes_per_s": [[None, 1e9], [1e9, None]],
            },
            ["step_time alone", "sequence_lengths", "run 1f1b", "node_bandwidth_bytes_per_s: is not used"],
        ),
        ({"sites": {**sites("1Gbit/s"), "nodes": ["oslo"]}}, ["1 sites for 2 entries"]),
        ({"fixed": {"tensor_parallel_size": 2, "data_parallel_size": 4}}, ["8 GPUs of 4"]),
        ({"fixed": {"tensor_parallel_size": 3}}, ["3 does not divide the 32 attention heads"]),
        ({"precision": "fp8"}, ["a100_sxm has no matrix units"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_its_place(changes: dict[str, Any], words: list[str]) -> None:
    keys: dict[str, Any] = {"model": SMALL, "cluster": PAIR, "global_batch_size": 8, "sequence_length": 2048}
    with pytest.raises(DescriptionError) as error:
        read_any(instance(**(keys | changes)))
    told = "\n".join(str(finding) for finding in error.value.findings)
    assert all(word in told for word in words), told


def test_sites_that_are_not_named() -> None:
    with pytest.raises(ValueError, match="'bergen' is none of the sites"):
        instance(cluster=PAIR, sites={**sites("1Gbit/s"), "nodes": ["oslo", "bergen"]})
