"""From an instance and its files to arrays: every mistake is located, several at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.planning import load_problem
from planner.descriptions.experts import ExpertsInstance
from planner.errors import DescriptionError

BASE = {"problem": "experts", "name": "x", "num_gpus": 2, "num_slots": 6}
COUNTS = [[1, 2, 3, 4], [4, 3, 2, 1]]


def read(folder: Path, **changes: Any) -> ExpertPlacementProblem:
    path = folder / "instance.json"
    path.write_text(json.dumps({**BASE, "loads": [{"counts": COUNTS}], **changes}, indent=1))
    return load_problem(path)


def wrong(folder: Path, **changes: Any) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        read(folder, **changes)
    assert caught.value.findings
    return [str(finding) for finding in caught.value.findings]


def save(folder: Path, name: str, array: Any) -> str:
    np.save(folder / name, np.asarray(array))
    return name


def test_counts_are_scaled_by_hand(tmp_path: Path) -> None:
    """Both layers have 10 tokens, two GPUs: one evenly loaded GPU is 1, so the loads are counts / 5."""
    problem = read(tmp_path)
    np.testing.assert_allclose(problem.load, np.array([COUNTS]) / 5)
    np.testing.assert_allclose(problem.mean_gpu_load, [[1.0, 1.0]])
    assert (problem.num_layers, problem.num_experts, problem.slots_per_gpu) == (2, 4, 3)
    assert problem.layer_ids == (0, 1)
    assert problem.scenario_names == ("scenario 0",)
    assert not problem.load.flags.writeable


def test_layers_keep_their_relative_size_and_scenarios_lose_theirs(tmp_path: Path) -> None:
    """Scenario b is a recorded ten times as long: the same loads. A layer of 30 beside one of 10: 1.5 and 0.5."""
    loads = [
        {"name": "a", "counts": [[30, 0], [5, 5]], "weight": 3},
        {"name": "b", "counts": [[300, 0], [50, 50]], "weight": 1},
    ]
    problem = read(tmp_path, loads=loads, num_slots=2)
    np.testing.assert_allclose(problem.load[0], problem.load[1])
    np.testing.assert_allclose(problem.mean_gpu_load[0], [1.5, 0.5])
    np.testing.assert_allclose(problem.weight, [0.75, 0.25])


def test_dense_layers_are_left_out_and_numbers_stay_absolute(tmp_path: Path) -> None:
    counts = [[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [4, 3, 2, 1]]
    problem = read(tmp_path, loads=[{"counts": counts}])
    assert problem.layer_ids == (1, 3)
    assert problem.num_decoder_layers == 4
    assert problem.load.shape == (1, 2, 4)


def test_a_layer_that_one_scenario_did_not_reach_stays(tmp_path: Path) -> None:
    loads = [{"name": "a", "counts": [[1, 2], [0, 0]]}, {"name": "b", "counts": [[1, 1], [1, 3]]}]
    problem = read(tmp_path, loads=loads, num_slots=2)
    assert problem.layer_ids == (0, 1)
    assert problem.load[0, 1].tolist() == [0.0, 0.0]


def test_files_are_relative_to_the_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "day.npy", COUNTS)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    problem = read(tmp_path, loads=[{"file": "day.npy"}])
    assert problem.scenario_names == ("day",)
    np.testing.assert_allclose(problem.load, np.array([COUNTS]) / 5)


def test_a_trace_alone_is_a_load(tmp_path: Path) -> None:
    name = save(tmp_path, "trace.npy", np.array([[[0, 1], [1, 2]], [[0, 2], [3, 2]]]))
    problem = read(tmp_path, loads=[], trace={"file": name}, num_slots=4)
    assert problem.scenario_names == ("trace",)
    assert problem.num_experts == 4
    np.testing.assert_allclose(problem.load[0], np.array([[2, 1, 1, 0], [0, 1, 2, 1]]) * 2 / 4)


def test_groups_speeds_and_costs_arrive(tmp_path: Path) -> None:
    name = save(tmp_path, "trace.npy", np.array([[[0], [1]], [[2], [3]]]))
    problem = read(
        tmp_path,
        num_gpus=4,
        num_slots=8,
        gpus_per_node=2,
        num_groups=2,
        group_spread=1,
        gpu_speed=[1, 1, 0.5, 0.5],
        expert_bytes="45MB",
        gpu_memory_bytes="1GiB",
        trace={"file": name},
        communication={"model": "chain", "weight": 0.5, "inter_node_cost": 4},
    )
    assert problem.group_of is not None
    assert problem.group_of.tolist() == [0, 0, 1, 1]
    assert problem.speed.tolist() == [1, 1, 0.5, 0.5]
    assert (problem.expert_bytes, problem.gpu_memory_bytes) == (45e6, 2**30)
    assert problem.communication is not None
    assert problem.communication.cost[0].tolist() == [0, 1, 4, 4]
    np.testing.assert_allclose(problem.mean_gpu_load, 1.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loads": [{"file": "missing.npy"}]}, ["missing.npy"]),
        ({"loads": [{"file": "missing.json"}, {"file": "absent.csv"}]}, ["missing.json", "absent.csv"]),
        ({"loads": [{"file": "x.parquet"}]}, ["suffix"]),
        ({"loads": [{"counts": [[1, 2, 3, 4], [1, 2]]}]}, ["loads.0.counts: ragged"]),
        ({"loads": [{"counts": []}]}, ["loads.0.counts: ragged or empty"]),
        ({"loads": [{"counts": [[]]}]}, ["loads.0"]),
        ({"loads": [{"counts": [[1, -2, 3, 4]]}]}, ["loads.0.counts.0.1"]),
        ({"loads": [{"counts": [[0, 0, 0, 0]]}]}, ["loads.0: all counts are zero"]),
        (
            {"loads": [{"name": "a", "counts": [[1, 1, 1, 1]]}, {"name": "b", "counts": [[0, 0, 0, 0]]}]},
            ["loads.1: all counts are zero"],
        ),
        (
            {"loads": [{"name": "a", "counts": [[1, 1, 1, 1]]}, {"name": "b", "counts": [[1, 1, 1]]}]},
            ["differ in layers x experts: a (1, 4), b (1, 3)"],
        ),
        ({"loads": [{"counts": [[1] * 8]}]}, ["num_slots: 6 slots cannot hold 8 experts"]),
        ({"num_groups": 3, "group_spread": 1}, ["num_groups: 4 experts are not 3 equal groups"]),
        ({"loads": [{}]}, ["loads.0: give exactly one"]),
        ({"loads": [{"file": "a.npy", "counts": COUNTS}]}, ["loads.0: give exactly one"]),
        ({"loads": []}, ["loads: give loads, a trace, or both"]),
        ({"num_slots": 5}, ["num_slots: 5 slots cannot be shared equally by 2 GPUs; use 4 or 6"]),
        ({"gpus_per_node": 3}, ["gpus_per_node: 2 GPUs are not whole nodes of 3"]),
        ({"gpu_speed": [1, 2, 3]}, ["gpu_speed: has 3 entries for 2 GPUs"]),
        ({"gpu_speed": [1, 0]}, ["gpu_speed.1"]),
        ({"gpu_memory_bytes": "1GB"}, ["gpu_memory_bytes: needs expert_bytes"]),
        ({"group_spread": 1}, ["group_spread"]),
        ({"communication": {"model": "chain"}}, ["communication: needs a trace"]),
        ({"max_moves": 0}, ["max_moves: needs a current placement"]),
        ({"max_moves": 3}, ["max_moves: needs a current placement"]),
        ({"move_cost": 0.1}, ["move_cost: needs a current placement"]),
        ({"current": "missing.json"}, ["missing.json"]),
        ({"trace": {"file": "missing.npy"}}, ["missing.npy"]),
        ({"num_gpus": 10**9, "num_slots": 10**9}, ["num_gpus", "num_slots"]),
        ({"sample": {"file": "missing.npy"}}, ["missing.npy"]),
        ({"sample": {"counts": [[1, 2]]}}, ["sample: has (1, 2)"]),
        ({"sample": {"counts": [[1, 2, 3, 4], [1]]}}, ["sample"]),
        ({"sample": {"counts": [[0, 0, 0, 0], [0, 0, 0, 0]]}}, ["sample"]),
        ({"current": "nul\0.json"}, ["current"]),
        ({"trace": {"file": "nul\0.npy"}}, ["trace"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], expected: list[str]) -> None:
    found = wrong(tmp_path, **changes)
    for words in expected:
        assert any(words in message for message in found), found


def test_mistakes_of_data_have_the_line_of_their_key(tmp_path: Path) -> None:
    (message,) = wrong(tmp_path, num_slots=2)
    assert message.startswith(f"{tmp_path / 'instance.json'}:5:")
    assert "num_slots" in message


def test_traces_must_fit_the_loads(tmp_path: Path) -> None:
    long = save(tmp_path, "long.npy", np.zeros((3, 3, 1), dtype=int))
    assert any("covers 3 layers, the loads have 2" in text for text in wrong(tmp_path, trace={"file": long}))
    wide = save(tmp_path, "wide.npy", np.array([[[7], [0]]]))
    assert any("names expert 7, but there are 4" in text for text in wrong(tmp_path, trace={"file": wide}))
    both = save(tmp_path, "both.npy", np.array([[[7], [0], [1]]]))
    assert len(wrong(tmp_path, trace={"file": both})) == 2


def test_current_placements_must_fit(tmp_path: Path) -> None:
    other = save(tmp_path, "other.npy", np.array([[0, 1, 2, 3]] * 2))
    assert any("4 slots" in text for text in wrong(tmp_path, current=other))
    beyond = save(tmp_path, "beyond.npy", np.array([[0, 1, 2, 3, 4, 0]] * 2))
    assert any("0 .. 3" in text for text in wrong(tmp_path, current=beyond))
    layers = save(tmp_path, "layers.npy", np.array([[0, 1, 2, 3, 0, 1]] * 3))
    assert wrong(tmp_path, current=layers)
    good = save(tmp_path, "good.npy", np.array([[0, 1, 2, 3, 0, 1]] * 2))
    assert read(tmp_path, current=good).current is not None


def test_several_files_are_judged_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("1,2,3\n1,x,-3\n")
    found = wrong(
        tmp_path,
        loads=[{"file": "bad.csv"}, {"file": "missing.npy"}, {"name": "third", "counts": [[1], [1, 2]]}],
        trace={"file": "nowhere.npy"},
    )
    text = "\n".join(found)
    assert "bad.csv:2:3" in text
    assert "bad.csv:2:5" in text
    assert "missing.npy" in text
    assert "loads.2.counts" in text
    assert "nowhere.npy" in text


def test_two_scenarios_never_share_a_name(tmp_path: Path) -> None:
    """Metrics and terms are told apart by it; unnamed ones take the name of their file."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder, "day.npy", COUNTS)
    named = [{"name": "day", "counts": COUNTS}, {"name": "day", "counts": COUNTS}]
    assert any("two scenarios are named 'day'" in text for text in wrong(tmp_path, loads=named))
    try:
        problem = read(tmp_path, loads=[{"file": "a/day.npy"}, {"file": "b/day.npy"}])
    except DescriptionError:
        return
    assert len(set(problem.scenario_names)) == 2


def test_the_hash_covers_every_file(tmp_path: Path) -> None:
    save(tmp_path, "day.npy", COUNTS)
    save(tmp_path, "now.npy", np.array([[0, 1, 2, 3, 0, 1]] * 2))
    changes = {"loads": [{"file": "day.npy"}], "current": "now.npy"}
    first = read(tmp_path, **changes).sha256
    assert read(tmp_path, **changes).sha256 == first
    assert read(tmp_path, **changes, move_cost=0.5).sha256 != first
    save(tmp_path, "now.npy", np.array([[0, 1, 2, 3, 1, 0]] * 2))
    second = read(tmp_path, **changes).sha256
    assert second != first
    save(tmp_path, "day.npy", [[1, 2, 3, 4], [4, 3, 2, 2]])
    assert read(tmp_path, **changes).sha256 not in (first, second)


def test_an_instance_built_in_python(tmp_path: Path) -> None:
    instance = ExpertsInstance.model_validate({**BASE, "loads": [{"counts": COUNTS}]})
    assert load_problem(instance).num_layers == 2
    save(tmp_path, "day.npy", COUNTS)
    by_file = ExpertsInstance.model_validate({**BASE, "loads": [{"file": "day.npy"}]})
    assert load_problem(by_file, tmp_path).num_layers == 2
    with pytest.raises(DescriptionError, match="No such file"):
        load_problem(by_file, tmp_path / "elsewhere")


def test_a_cost_matrix_from_a_file(tmp_path: Path) -> None:
    trace = save(tmp_path, "trace.npy", np.zeros((3, 2, 1), dtype=np.int64))
    matrix = np.array([[0.0, 3.0], [2.0, 0.0]])
    chain = {"model": "chain", "cost_file": save(tmp_path, "cost.npy", matrix)}
    problem = read(tmp_path, trace={"file": trace}, communication=chain)
    assert problem.communication is not None
    np.testing.assert_array_equal(problem.communication.cost, matrix)
    for name, bad in (("shape", np.zeros((3, 3))), ("sign", -matrix), ("own", matrix + 1), ("nan", matrix * np.nan)):
        spoilt = {**chain, "cost_file": save(tmp_path, f"{name}.npy", bad)}
        assert any(
            "communication.cost_file" in text for text in wrong(tmp_path, trace={"file": trace}, communication=spoilt)
        )
    assert any(
        "missing.npy" in t
        for t in wrong(tmp_path, trace={"file": trace}, communication={**chain, "cost_file": "missing.npy"})
    )
    fanout = {**chain, "model": "fanout"}
    assert any("chain model" in text for text in wrong(tmp_path, trace={"file": trace}, communication=fanout))
