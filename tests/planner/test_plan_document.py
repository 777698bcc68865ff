"""The plan document: round trips, unknown keys, shapes, and a verdict that cannot be talked up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import SolveOptions
from formulations.planning import check_document, judge, plan
from planner.errors import DescriptionError
from planner.experts_plan import ExpertPlacement
from planner.files import read_as, to_json, write_text
from planner.plan import ExpertsDocument
from planner.workload import RoutingTrace

LIMITS = SolveOptions(work_limit=50)


def problem(**keywords: Any) -> ExpertPlacementProblem:
    load = np.random.default_rng(0).random((2, 4)) + 0.1
    return ExpertPlacementProblem.from_arrays(load, **{"num_gpus": 2, "num_slots": 6, "name": "small", **keywords})


@pytest.fixture(scope="module")
def document() -> ExpertsDocument:
    current = np.array([[0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 1, 3]])
    return plan(problem(current=current, expert_bytes=1e6, layer_ids=(3, 5), num_decoder_layers=6), options=LIMITS)


def changed(document: ExpertsDocument, path: str, value: Any) -> dict[str, Any]:
    """The document as plain values with one of them replaced (or removed: `...`)."""
    result = json.loads(to_json(document))
    *parents, last = path.split(".")
    inner = result
    for step in parents:
        inner = inner[int(step) if isinstance(inner, list) else step]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return result


def read_back(folder: Path, value: Any) -> ExpertsDocument:
    path = folder / "plan.json"
    path.write_text(json.dumps(value))
    return read_as(path, ExpertsDocument)


def test_a_document_survives_a_file(document: ExpertsDocument, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, to_json(document))
    again = read_as(path, ExpertsDocument)
    assert again == document
    assert to_json(again) == path.read_text()
    assert again.plan is not None
    assert again.plan.moves


def test_the_contract_of_the_document(document: ExpertsDocument) -> None:
    value = json.loads(to_json(document))
    assert {
        "schema_version",
        "problem",
        "instance",
        "gpuplan_version",
        "outcome",
        "baseline",
        "plan",
        "verdict",
    } <= set(value)
    assert {"name", "sha256"} <= set(value["instance"])
    assert {
        "status", "stop", "objective", "objective_unit", "terms", "bound", "gap", "build_s", "solve_s", "aside_s",
        "solver", "solver_version", "method", "seed", "num_threads",
    } <= set(value["outcome"])  # fmt: skip
    assert {"balancedness_mean", "balancedness_worst"} <= set(value["outcome"]["terms"])
    assert {"name", "objective", "terms"} <= set(value["baseline"])
    assert {
        "num_gpus", "gpus_per_node", "num_slots", "layer_ids", "physical_to_logical", "replicas",
    } <= set(value["plan"])  # fmt: skip
    assert {"feasible", "metrics", "violations", "bottleneck", "assumptions"} <= set(value["verdict"])
    assert {"name", "value", "unit", "source"} <= set(value["verdict"]["metrics"][0])
    assert value["plan"]["layer_ids"] == [3, 5]


def test_documents_of_a_trace_tell_the_crossings() -> None:
    trace = RoutingTrace(experts=np.random.default_rng(0).integers(4, size=(30, 2, 1)))
    found = plan(problem(trace=trace), options=LIMITS)
    assert {"cross_gpu_fraction", "cross_node_fraction"} <= set(found.outcome.terms)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("extra", 1, "extra: unknown key"),
        ("outcome.colour", "red", "outcome.colour: unknown key"),
        ("problem", "fleet", "problem"),
        ("schema_version", 2, "schema_version"),
        ("outcome", ..., "outcome: is required"),
        ("outcome.status", "best", "outcome.status"),
        ("plan.num_slots", 4, "plan"),
        ("plan.num_slots", 7, "plan"),
        ("plan.layer_ids", [3], "plan.layer_ids"),
        ("plan.layer_ids", [5, 3], "plan.layer_ids"),
        ("plan.layer_ids", [3, 6], "plan.layer_ids"),
        ("plan.replicas", [[1, 1, 2, 2]], "plan.layer_ids"),
        ("plan.replicas.0", [1, 1], "plan.replicas"),
        ("plan.replicas", [[], []], "plan.replicas"),
        ("plan.physical_to_logical.0", [0, 1], "plan.physical_to_logical"),
        ("plan.physical_to_logical.0.0", -1, "plan.physical_to_logical.0.0"),
        ("plan.physical_to_logical.0.0", 10**30, "plan.physical_to_logical.0.0"),
        ("plan.physical_to_logical.0.0", 1.5, "plan.physical_to_logical.0.0"),
        ("plan.moves.0.expert", "2", "plan.moves.0.expert"),
        ("plan.split", "odd", "plan.split"),
    ],
)
def test_a_spoilt_document_is_refused_at_its_key(
    document: ExpertsDocument, tmp_path: Path, path: str, value: Any, message: str
) -> None:
    with pytest.raises(DescriptionError) as caught:
        read_back(tmp_path, changed(document, path, value))
    assert any(finding.message.startswith(message) for finding in caught.value.findings), str(caught.value)


def test_feasible_follows_from_the_violations_whatever_the_file_says(document: ExpertsDocument, tmp_path: Path) -> None:
    violation = {"rule": "r", "subject": "s", "message": "m"}
    claimed = changed(document, "verdict.violations", [violation])
    assert claimed["verdict"]["feasible"] is True
    found = read_back(tmp_path, claimed)
    assert found.verdict is not None
    assert not found.verdict.feasible


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("plan.physical_to_logical.0", [0, 0, 1, 1, 2, 3], "distinct_gpus"),
        ("plan.physical_to_logical.0", [0, 1, 2, 0, 1, 2], "every_expert_placed"),
        ("plan.physical_to_logical.0", [0, 1, 2, 3, 0, 9], "expert_ids"),
        ("plan.replicas.0", [3, 1, 1, 1], "replicas"),
        ("plan.replicas", [[2, 2, 2], [2, 2, 2]], "replicas"),
        ("plan.split", "lp", None),
        ("plan.gpus_per_node", 1, None),
        ("plan.layer_ids", [3, 4], "shape"),
        ("plan.moves.0.expert", 999, "move_order"),
        ("outcome.objective", 0.5, "claimed_objective"),
    ],
)
def test_a_forged_plan_is_found_out(
    document: ExpertsDocument, tmp_path: Path, path: str, value: Any, rule: str | None
) -> None:
    current = np.array([[0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 1, 3]])
    trace = RoutingTrace(experts=np.random.default_rng(0).integers(4, size=(30, 2, 1)))
    asked = problem(current=current, expert_bytes=1e6, layer_ids=(3, 5), num_decoder_layers=6, trace=trace)
    assert check_document(document, asked).feasible
    forged = read_back(tmp_path, changed(document, path, value))
    verdict = check_document(forged, asked)
    assert not verdict.feasible
    assert rule is None or rule in {violation.rule for violation in verdict.violations}
    assert to_json(verdict)


def test_a_plan_without_its_instance_is_checked_as_far_as_it_goes(document: ExpertsDocument, tmp_path: Path) -> None:
    assert check_document(document, None).feasible
    doubled = read_back(tmp_path, changed(document, "plan.physical_to_logical.0", [0, 0, 1, 1, 2, 3]))
    assert not check_document(doubled, None).feasible


def test_a_document_without_a_plan_is_no_feasible_plan() -> None:
    empty = plan(problem(num_slots=10))
    assert empty.outcome.status == "infeasible"
    assert not check_document(empty, None).feasible


def test_the_verdict_on_a_plan_that_lacks_an_expert_holds_numbers_only() -> None:
    trace = RoutingTrace(experts=np.random.default_rng(0).integers(4, size=(30, 2, 1)))
    asked = problem(trace=trace)
    verdict = judge(asked, asked.placement(np.array([[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 3]])))
    assert not verdict.feasible
    assert np.isfinite([metric.value for metric in verdict.metrics]).all()


def test_from_array_counts_replicas() -> None:
    found = ExpertPlacement.from_array(
        np.array([[0, 1, 0, 2]]), 4, num_gpus=2, gpus_per_node=2, layer_ids=(0,), num_decoder_layers=1, split="even"
    )
    assert found.replicas == ((2, 1, 1, 0),)
    assert found.array.tolist() == [[0, 1, 0, 2]]
    assert found.num_experts == 4
