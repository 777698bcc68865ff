"""Placements in force: each engine's map gives the same rows, and wrong ones are refused with their place."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.errors import DescriptionError
from planner.experts_plan import ExpertPlacement
from planner.plan import ExpertsDocument, InstanceReference, OutcomeRecord
from planner.readers.expert_placement import read_expert_placement

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
ROWS = hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.integers(0, 65_535))
ASCEND = {
    "moe_layer_count": 2,
    "layer_list": [
        {
            "layer_id": 1,
            "device_count": 2,
            "device_list": [
                {"device_id": 1, "device_expert": [2, 0]},
                {"device_id": 0, "device_expert": [1, 1]},
            ],
        },
        {
            "layer_id": 0,
            "device_count": 2,
            "device_list": [
                {"device_id": 0, "device_expert": [0, 1]},
                {"device_id": 1, "device_expert": [2, 2]},
            ],
        },
    ],
}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def message(path: Path) -> str:
    with pytest.raises(DescriptionError) as caught:
        read_expert_placement(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def plan_document(rows: np.ndarray[Any, Any] | None, layer_ids: tuple[int, ...] = ()) -> ExpertsDocument:
    outcome = OutcomeRecord(
        status="infeasible" if rows is None else "feasible", stop="heuristic", objective=None,
        objective_unit="ratio", bound=None, gap=None, build_s=0, solve_s=0, solver="none", solver_version="0",
        method="none", seed=0, num_threads=1,
    )  # fmt: skip
    plan = None
    if rows is not None:
        num_experts, gpus = int(rows.max()) + 1, rows.shape[1]
        plan = ExpertPlacement.from_array(
            rows, num_experts, num_gpus=gpus, gpus_per_node=gpus, layer_ids=layer_ids,
            num_decoder_layers=max(layer_ids) + 1, split="even",
        )  # fmt: skip
    instance = InstanceReference(name="a", sha256="0")
    return ExpertsDocument(problem="experts", instance=instance, gpuplan_version="0", outcome=outcome, plan=plan)


@RELAXED
@given(rows=ROWS, form=st.sampled_from(["npy", "sglang", "tensorrt", "ascend"]))
def test_every_form_gives_the_same_rows(tmp_path: Path, rows: np.ndarray[Any, Any], form: str) -> None:
    layer_ids = tuple(range(3, 3 + len(rows)))
    path = tmp_path / "map.json"
    match form:
        case "npy":
            path = tmp_path / "map.npy"
            np.save(path, rows.astype(np.uint16))
        case "sglang":
            write(path, {"physical_to_logical_map": rows.tolist()})
        case "tensorrt":
            assignments = "".join(f"  {layer}: {rows[layer - 3].tolist()}\n" for layer in reversed(layer_ids))
            text = f"layer_updates_per_iter: 0\nnum_slots: {rows.shape[1]}\ninitial_global_assignments:\n"
            path = write(tmp_path / "moe_load_balancer.yaml", text + assignments)
        case _:
            layers = [
                {
                    "layer_id": i,
                    "device_list": [{"device_id": d, "device_expert": [e]} for d, e in enumerate(row)],
                }
                for i, row in enumerate(rows.tolist())
            ]
            write(path, {"moe_layer_count": len(layers), "layer_list": layers})
    found = read_expert_placement(path)
    assert found.source == str(path)
    assert found.layer_ids == (layer_ids if form == "tensorrt" else None)
    np.testing.assert_array_equal(found.rows(layer_ids, 9), rows)


def test_plan_document(tmp_path: Path) -> None:
    rows = np.array([[0, 1], [1, 0]])
    path = write(tmp_path / "plan.json", plan_document(rows, (1, 4)).model_dump_json())
    found = read_expert_placement(path)
    assert found.layer_ids == (1, 4)
    np.testing.assert_array_equal(found.rows((4,), 5), [[1, 0]])
    empty = write(tmp_path / "none.json", plan_document(None).model_dump_json())
    assert message(empty) == ": holds no plan (status infeasible)"


def test_ascend_rows_and_slots_follow_their_ids(tmp_path: Path) -> None:
    found = read_expert_placement(write(tmp_path / "map.json", ASCEND))
    np.testing.assert_array_equal(found.rows((5, 9), 10), [[0, 1, 2, 2], [1, 1, 2, 0]])
    with pytest.raises(DescriptionError, match="has 2 rows for 1 MoE layers"):
        found.rows((1,), 10)


def test_rows_of_all_layers_and_missing_layers(tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.arange(6).reshape(3, 2))
    found = read_expert_placement(tmp_path / "map.npy")
    np.testing.assert_array_equal(found.rows((1, 2), 3), [[2, 3], [4, 5]])
    with pytest.raises(DescriptionError, match=r"no row for layers \[7\]"):
        found.rows((1, 7), 3)


def test_layers_may_be_text_in_json(tmp_path: Path) -> None:
    path = write(tmp_path / "map.json", {"initial_global_assignments": {"10": [1, 0], "9": [0, 1]}})
    found = read_expert_placement(path)
    assert found.layer_ids == (9, 10)
    np.testing.assert_array_equal(found.physical_to_logical, [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"physical_to_logical_map": [[0, 1], [0]]}',
            ":1:2: physical_to_logical_map: needs rows of expert ids",
        ),
        ('{"physical_to_logical_map": []}', "needs rows of expert ids"),
        ('{"physical_to_logical_map": [[]]}', "needs rows of expert ids"),
        ('{"physical_to_logical_map": [[0, 1.0]]}', "'1.0' is not an expert id"),
        ('{"physical_to_logical_map": [[0, true]]}', "'True' is not an expert id"),
        ('{"physical_to_logical_map": [[0, -1]]}', "'-1' is not an expert id"),
        ('{"physical_to_logical_map": [[0, 65536]]}', "'65536' is not an expert id"),
        ('{"physical_to_logical_map": [[0, 1]', "not valid JSON"),
        ("initial_global_assignments: []", ":1:1: initial_global_assignments: needs one row"),
        (
            "initial_global_assignments: {x: [0]}",
            ":1:30: initial_global_assignments.x: is not a layer number",
        ),
        ("initial_global_assignments: {-1: [0]}", "is not a layer number"),
        ("initial_global_assignments: {5000: [0]}", "lie below 4096"),
        ("initial_global_assignments: {'3': [0], 3: [0]}", "given once"),
        ("initial_global_assignments: {3: [0], 4: [0, 1]}", "all of the same length"),
        ("initial_global_assignments: {3: 0}", "needs rows of expert ids"),
        (
            "initial_global_assignments: {3: [0, 1]}\nnum_slots: 4",
            ":2:1: num_slots: is 4, but the rows have 2",
        ),
        ("initial_global_assignments: {3: !!python/object:os.system [0]}", "not valid YAML"),
        ('{"layer_list": []}', "layer_list: needs a list of objects"),
        ('{"layer_list": [1]}', "layer_list: needs a list of objects"),
        ('{"layer_list": [{"layer_id": 1}]}', "layer_id needs to run from 0 to 0"),
        ('{"layer_list": [{"layer_id": "0"}]}', "layer_id needs to run from 0 to 0"),
        ('{"layer_list": [{"layer_id": 0}]}', "needs a list of objects"),
        ('{"layer_list": [{"layer_id": 0, "device_list": [{"device_id": 0}]}]}', "needs device_expert"),
        ("{}", "problem: is required"),
        ("[1, 2]", "should be an object"),
    ],
)
def test_wrong_maps(tmp_path: Path, text: str, expected: str) -> None:
    suffix = ".yaml" if text.startswith("initial") else ".json"
    assert expected in message(write(tmp_path / f"map{suffix}", text))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"moe_layer_count": 3}, "moe_layer_count: layer_list has 2 layers"),
        ({"device_count": 3}, "layer_id 1: device_list has 2 devices"),
        (
            {"device_list": ASCEND["layer_list"][0]["device_list"][1:]},
            "layer_id 1: device_list has 1 devices",
        ),  # type: ignore[index]
        (
            {
                "device_list": [
                    {"device_id": 0, "device_expert": [1]},
                    {"device_id": 1, "device_expert": [1, 2, 3]},
                ]
            },
            "every device of every layer needs the same number",
        ),
    ],
)
def test_wrong_ascend_maps(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    value = json.loads(json.dumps(ASCEND))
    (value if "moe_layer_count" in change else value["layer_list"][0]).update(change)
    assert expected in message(write(tmp_path / "map.json", value))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ([[0.0, 1.0]], "needs integers [layers, slots], got float64"),
        ([0, 1], "needs integers [layers, slots], got int64 (2,)"),
        ([[0, -1]], "names experts -1 to 0"),
        ([[0, 65_536]], "names experts 0 to 65536"),
        (np.zeros((4_097, 1), int), "beyond any real model"),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: object, expected: str) -> None:
    np.save(tmp_path / "map.npy", np.array(array))
    assert expected in message(tmp_path / "map.npy")


@RELAXED
@given(data=st.data(), form=st.sampled_from(["json", "yaml"]))
def test_damage_is_an_error_and_no_traceback(tmp_path: Path, data: st.DataObject, form: str) -> None:
    sound = json.dumps(ASCEND) if form == "json" else "initial_global_assignments: {3: [0,1], 4: [1,0]}\nnum_slots: 2\n"
    position = data.draw(st.integers(0, len(sound)))
    path = tmp_path / f"map.{form}"
    path.write_text(sound[:position] + data.draw(st.text(max_size=4)) + sound[position + 1 :], encoding="utf-8")
    with contextlib.suppress(DescriptionError):
        assert read_expert_placement(path).physical_to_logical.ndim == 2
