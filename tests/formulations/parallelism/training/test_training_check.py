"""The independent check of training plans, on plans that were broken on purpose; and mistakes in instances."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from formulations.base import solve
from formulations.kinds import kind, kind_name
from formulations.parallelism.training.search.check import check
from formulations.parallelism.training.search.formulation import TRAINING
from formulations.parallelism.training.search.kind import judge, judge_alone
from formulations.parallelism.training.search.reading import read_problem
from formulations.planning import check_document, plan
from planner.errors import DescriptionError
from planner.files import parse_source, to_json, validate
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan
from tests.formulations.parallelism.training.train_cases import CLUSTER, SMALL, instance, problem

FIXED = {"pipeline_parallel_size": 2, "tensor_parallel_size": 2, "virtual_pipeline_size": 1}


@functools.cache
def sound() -> TrainingPlan:
    """Two stages of two tensor-parallel ranks each."""
    found = solve(TRAINING, problem(fixed=FIXED))
    assert found.plan is not None
    return found.plan


def _layers(plan: TrainingPlan, *layers: int) -> dict[str, Any]:
    stages = [stage.model_copy(update={"num_layers": count}) for stage, count in zip(plan.stages, layers, strict=True)]
    return {"stages": tuple(stages)}


BREAKS: dict[str, Callable[[TrainingPlan], dict[str, Any]]] = {
    "cover": lambda plan: _layers(plan, 3, 4),
    "empty": lambda plan: _layers(plan, 6, 0),
    "stages": lambda plan: {"stages": plan.stages[:1]},
    "batch": lambda plan: {"num_micro_batches": plan.num_micro_batches + 1},
    "devices": lambda plan: {"stages": (plan.stages[0], plan.stages[1].model_copy(update={"first_gpu": 1}))},
    "head": lambda plan: {"stages": (plan.stages[0], plan.stages[1].model_copy(update={"head": False}))},
    "embedding": lambda plan: {"stages": tuple(one.model_copy(update={"embedding": True}) for one in plan.stages)},
    "gpus": lambda plan: {"idle_gpus": 3},
    "fixed": lambda plan: {"tensor_parallel_size": 4, "data_parallel_size": 1},
    "interleaving": lambda plan: {
        "virtual_pipeline_size": 2, "num_micro_batches": 1, "micro_batch_size": 16 // plan.data_parallel_size,
    },
    "instance": lambda plan: {"gradient_bytes": 2},
    "recompute": lambda plan: {"recompute": "selective"},
    "schedule": lambda plan: {"schedule": "zb-1p"},
    "claimed_memory": lambda plan: {
        "stages": (plan.stages[0].model_copy(update={"peak_memory_bytes": 1e9}), plan.stages[1])
    },
}  # fmt: skip


@pytest.mark.parametrize("rule", BREAKS)
def test_each_broken_rule_is_named(rule: str) -> None:
    plan = sound()
    broken = plan.model_copy(update=BREAKS[rule](plan))
    assert rule in {violation.rule for violation in check(problem(fixed=FIXED), broken)}


def test_a_sound_plan_breaks_nothing() -> None:
    assert not check(problem(fixed=FIXED), sound())
    assert judge(problem(fixed=FIXED), sound()).feasible
    assert judge_alone(sound()).feasible


def test_tensor_groups_lie_inside_fast_links_and_divide_heads() -> None:
    plan = sound()
    wide = plan.model_copy(update={"tensor_parallel_size": 8, "data_parallel_size": 1})
    assert "links" in {violation.rule for violation in check(problem(), wide)}
    odd = problem(model={**SMALL, "num_key_value_heads": 1}, fixed=FIXED | {"tensor_parallel_size": 1})
    assert "fixed" in {violation.rule for violation in check(odd, plan)}
    free = problem(model={**SMALL, "num_key_value_heads": 1})
    assert any("key and value heads" in violation.message for violation in check(free, plan))


def test_too_little_memory_is_a_violation_of_the_stage() -> None:
    violations = check(problem(fixed=FIXED, reserve=0.9), sound())
    assert {violation.rule for violation in violations} == {"gpu_memory"}
    assert violations[0].subject == "stage 0"


def test_a_document_comes_back_and_is_judged_the_same() -> None:
    document = plan(instance())
    assert isinstance(document, TrainingDocument)
    again = TrainingDocument.model_validate_json(to_json(document))
    assert check_document(again, problem()).feasible
    assert again.kind_name == "training" == kind(kind_name(instance())).name
    step = next(metric for metric in document.verdict.metrics if metric.name == "step_s")  # type: ignore[union-attr]
    assert step.low is not None
    assert step.high is not None
    assert step.low < step.value < step.high
    dearer = again.outcome.model_copy(update={"objective": 2.0 * (again.outcome.objective or 1.0)})
    claimed = check_document(again.model_copy(update={"outcome": dearer}), problem())
    assert [violation.rule for violation in claimed.violations] == ["claimed_objective"]


WRONG = """\
problem: parallel
task: train
name: wrong
model: {num_hidden_layers: 6, hidden_size: 4096, num_attention_heads: 32, intermediate_size: 14336, vocab_size: 1000}
cluster:
  nodes: [{device: a100_sxm, count: 2, gpus_per_node: 4}]
global_batch_size: 15
sequence_length: 4097
sequence_lengths: [5000]
objective: cost
recompute: selective
fixed: {data_parallel_size: 4, context_parallel_size: 2}
node_bandwidth_bytes_per_s: [[null, null], [1e9]]
"""


def test_all_mistakes_of_an_instance_at_once_with_their_places() -> None:
    with pytest.raises(DescriptionError) as error:
        validate(parse_source(WRONG, "wrong.yaml", Path()), type(instance()))
    told = "\n".join(str(finding) for finding in error.value.findings)
    for words in (
        "15 is not a multiple",
        "does not divide 4097",
        "5000 tokens are more than sequence_length",
        "cost needs prices",
        "selective recomputes scores",
        "no bandwidth from node 0 to node 1",
        "must be square",
    ):
        assert words in told, told
    assert "wrong.yaml:8" in told


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"fixed": {"tensor_parallel_size": 3, "pipeline_parallel_size": 9, "expert_parallel_size": 2}},
            ["3 does not divide the 32 attention heads", "9 stages of 6 layers", "no experts", "fast links join"],
        ),
        ({"fixed": {"pipeline_parallel_size": 4, "virtual_pipeline_size": 4}}, ["4 x 4 chunks of 6 layers"]),
        ({"fixed": {"tensor_parallel_size": 4, "data_parallel_size": 4}}, ["16 GPUs of 8"]),
        ({"precision": "fp8"}, ["no matrix units"]),
        ({"model": "nobody/nothing"}, ["nobody/nothing"]),
        ({"node_bandwidth_bytes_per_s": [[None]]}, ["is of 1 nodes; the cluster has 2"]),
        ({"objective": "cost", "prices_usd_per_gpu_hour": {"l4": 1.0}}, ["no price of a100_sxm"]),
        (
            {"cluster": {"nodes": [CLUSTER["nodes"][0], {"device": "h100_sxm"}]}},  # type: ignore[index]
            ["unequal nodes are a problem of their own"],
        ),
    ],
)
def test_what_cannot_be_read_is_told_with_its_reason(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DescriptionError) as error:
        read_problem(instance(**changes))
    told = "\n".join(str(finding) for finding in error.value.findings)
    assert all(word in told for word in words), told
