"""The expert-load readers: every format against known counts, real recordings, and files that are wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_files
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from planner.errors import DescriptionError
from planner.readers import expert_loads
from planner.readers.expert_loads import read_expert_load

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
COUNTS = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.integers(0, 10**9))
MAP_KEY = "last_physical_to_logical_map"
COLUMN_NUMBERS = "are these column numbers, or counts? Remove them, or put a header of words before them"
BEYOND = "is beyond any real model"


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def counts_of(path: Path) -> np.ndarray[Any, Any]:
    return read_expert_load(path, name="x").counts


def messages(path: Path) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        read_expert_load(path, name="x")
    assert {finding.path for finding in caught.value.findings} == {str(path)}
    return [str(finding).removeprefix(str(path)) for finding in caught.value.findings]


def summed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.sum(axis=0) if array.ndim == 3 else array


def as_matrix_csv(array: np.ndarray[Any, Any]) -> str:
    return "\n".join(",".join(map(repr, row)) for row in array.tolist())


@RELAXED
@given(counts=COUNTS, kind=st.sampled_from(["dump", "rows", "npy", "npy int32", "pt", "csv", "columns"]))
def test_every_format_gives_the_same_counts(tmp_path: Path, counts: np.ndarray[Any, Any], kind: str) -> None:
    assume(counts.any())
    expected = summed(counts)
    match kind:
        case "dump":
            dump = {"rank": 0, "logical_count": counts.tolist(), "average_utilization_rate_over_window": None}
            path = write(tmp_path / "a.json", dump)
        case "rows":
            path = write(tmp_path / "a.json", counts.tolist())
        case "npy" | "npy int32":
            path = tmp_path / "a.npy"
            np.save(path, counts.astype(kind.partition(" ")[2] or float))
        case "pt":
            path = torch_files.save(tmp_path / "a.pt", {"rank": 0, "logical_count": counts})
        case "csv":
            header = ",".join(f"e{index}" for index in range(expected.shape[1]))
            path = write(tmp_path / "a.csv", f"{header}\n{as_matrix_csv(expected)}\n")
        case _:
            cells = [(e, value, row) for row, line in enumerate(expected.tolist()) for e, value in enumerate(line)]
            body = "".join(f"{e},{value},{row}\n" for e, value, row in reversed(cells))
            path = write(tmp_path / "a.csv", f"Expert,count,layer\n{body}")
    load = read_expert_load(path, name="mine", weight=2.5)
    np.testing.assert_array_equal(load.counts, expected)
    assert (load.name, load.weight, load.source) == ("mine", 2.5, str(path))


@RELAXED
@given(data=st.data(), suffix=st.sampled_from([".json", ".csv"]))
def test_damaged_text_is_an_error_and_no_traceback(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    sound = '{"logical_count": [[1, 2.5], [0, 3]]}' if suffix == ".json" else "layer,expert,count\n0,0,1\n1,1,2.5\n"
    position = data.draw(st.integers(0, len(sound)))
    path = tmp_path / f"a{suffix}"
    path.write_text(sound[:position] + data.draw(st.text(max_size=4)) + sound[position + 1 :], encoding="utf-8")
    with contextlib.suppress(DescriptionError):
        assert np.isfinite(counts_of(path)).all()


def test_reads_recordings_of_torch(tmp_path: Path) -> None:
    counts = np.arange(24).reshape(2, 3, 4)
    counts[:, 0] = 0
    np.testing.assert_array_equal(counts_of(torch_files.unpack_real("sglang_stat", tmp_path)), counts.sum(axis=0))
    per_pass = counts_of(torch_files.unpack_real("sglang_per_pass", tmp_path))
    np.testing.assert_array_equal(per_pass, [[15, 6, 9], [21, 42, 15]])


def test_reads_real_recordings(shared_data: Path) -> None:
    files = sorted((shared_data / "experts" / "deepseek_v3_sglang").glob("*.json"))
    assert files
    for path in files:
        counts = counts_of(path)
        assert counts.shape == (61, 256)
        assert not counts[:3].any()
        per_layer = counts[3:].sum(axis=1)
        assert per_layer.min() > 0.99 * per_layer.max()


PHYSICAL = [[1, 2, 3, 4], [5, 6, 7, 8]]
MAP = [[0, 1, 2, 0], [2, 1, 0, 1]]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
@pytest.mark.parametrize("form", ["records", "one"])
def test_physical_counts_become_logical(tmp_path: Path, suffix: str, form: str) -> None:
    def wrap(rows: list[list[int]]) -> Any:
        return np.array(rows) if suffix == ".pt" else rows

    value: dict[str, Any] = {MAP_KEY: wrap(MAP)}
    if form == "records":
        value["records"] = [{"forward_pass_id": i, "global_physical_count": wrap(PHYSICAL)} for i in range(3)]
    else:
        value["global_physical_count"] = wrap(PHYSICAL)
    path = tmp_path / f"a{suffix}"
    write(path, value) if suffix == ".json" else torch_files.save(path, value)
    expected = np.array([[5, 2, 3], [7, 14, 5]]) * (3 if form == "records" else 1)
    np.testing.assert_array_equal(counts_of(path), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"records": [{"global_physical_count": PHYSICAL}]}, "which is missing"),
        ({"records": [], MAP_KEY: MAP}, "at least one record"),
        ({"records": [{}], MAP_KEY: MAP}, "records.0: has no global_physical_count"),
        ({"records": [7], MAP_KEY: MAP}, "records.0: has no global_physical_count"),
        ({"records": [{"global_physical_count": [[1, 2]]}], MAP_KEY: MAP}, "has shape (1, 2)"),
        ({"global_physical_count": PHYSICAL, MAP_KEY: [MAP]}, "needs [layers, slots]"),
        ({"global_physical_count": PHYSICAL, MAP_KEY: [[0, 1, -1, 0]] * 2}, "expert ids from 0"),
        ({"global_physical_count": PHYSICAL, MAP_KEY: [[0, 1, 1.5, 0]] * 2}, "expert ids from 0"),
        (
            {"global_physical_count": PHYSICAL, MAP_KEY: [[0, 1, 3, 0]] * 2},
            "layer 0 has no slot for expert 2",
        ),
        ({"global_physical_count": [[1, 2, 3, -4], PHYSICAL[1]], MAP_KEY: MAP}, "negative count -4.0"),
    ],
)
def test_wrong_physical_counts(tmp_path: Path, value: object, message: str) -> None:
    found = messages(write(tmp_path / "a.json", value))
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"logical_count": [\n[1, 2],\n[3, -4]]}', [":3:5: logical_count.1.1: negative count -4.0"]),
        ("[[1, 2], [3]]", [":1:10: 1: is ragged: 1 entries, but the first row has 2"]),
        ("[[[1]], [[1], [2]]]", [":1:1: is ragged: its steps have [1, 2] layers"]),
        ("[[[1]], 5]", [":1:9: 1: needs rows of numbers, as the first step has"]),
        (
            '[[1, true], ["2", 1]]',
            [":1:2: 0: entry 1 is 'True', not a number", ":1:13: 1: entry 0 is '2', not a number"],
        ),
        ("[[1, null]]", [":1:2: 0: entry 1 is 'None', not a number"]),
        ("[[1, 1e999]]", [":1:6: 0.1: count is inf, not finite"]),
        ("[[1, NaN]]", [": NaN is not a number that can be used"]),
        ("[[1" + "0" * 400 + "]]", [":1:2: 0: has a number beyond what a float can hold"]),
        ("[[1e308, 1], [2, 1]]", None),
        ("[[[1e308]], [[1e308]]]", [": the counts add up to more than a float can hold"]),
        ("[[0, 0], [0, 0]]", [": all counts are zero"]),
        ("[[], []]", [":1:2: 0: needs a row of numbers", ":1:6: 1: needs a row of numbers"]),
        ("[]", [":1:1: needs rows of numbers"]),
        ("[1, 2]", [":1:1: needs rows of numbers"]),
        ("[[[[1]]]]", [":1:3: 0.0: entry 0 is '[1]', not a number"]),
        ("3", [":1:1: needs rows of numbers"]),
        ('{"counts": [[1]]}', [":1:1: needs logical_count, or records with last_physical_to_logical_map"]),
        ('{"logical_count": [[1]], "logical_count": [[2]]}', [": duplicate key 'logical_count'"]),
        ('{"logical_count": [[1, 2', [":1:25: not valid JSON: Expecting ',' delimiter"]),
        ("[" * 100_000, [": is nested too deeply"]),
    ],
)
def test_wrong_json(tmp_path: Path, text: str, expected: list[str] | None) -> None:
    path = write(tmp_path / "a.json", text)
    if expected is None:
        assert counts_of(path).any()
    else:
        assert messages(path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2\n3,-4\n5\nx,nan\n", [
            ":2:3: negative count -4",
            ":3: is ragged: 1 fields, but the first row has 2",
            ":4:1: 'x' is not a number",
            ":4:3: count is nan, not finite",
        ]),
        ("a,b\n\n1, inf\n", [":3:3: count is inf, not finite"]),
        ("1,2\n3,1e999\n", [":2:3: count is 1e999, not finite"]),
        ("1,1_000\n", [":1:3: '1_000' is not a number"]),
        ('1,2\n"3",y\n', [":2: 'y' is not a number"]),
        (",0,1\n0,5,6\n", [":1:1: '' is not a number"]),
        ("0,1,2,3\n5,6,7,8\n", [f":1: {COLUMN_NUMBERS}"]),
        ("a,b\n", [": has a header and no rows"]),
        ("layer,expert,count\n", [": has a header and no rows"]),
        ("\n \n", [": is empty"]),
        ('1,"2\n', [":1: not valid CSV: unexpected end of data"]),
        ("0,0\n0,0\n", [": all counts are zero"]),
        ("layer,expert,count\n0,0,1\n0,0,2\n-1,0,-3\n0,65536,x\n0,1\n", [
            ":3: layer 0, expert 0 was given on line 2 already",
            ":4:1: layer '-1' is not a whole number from 0 to 4095",
            ":4:6: negative count -3",
            ":5:3: expert '65536' is not a whole number from 0 to 65535",
            ":5:9: 'x' is not a number",
            ":6: has 2 fields, but the header has 3",
        ]),
        ("layer,expert,count\n4095,0,1\n0,65535,1\n", [f": 4096 layers x 65536 experts {BEYOND}"]),
    ],
)  # fmt: skip
def test_wrong_csv(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert messages(write(tmp_path / "a.csv", text)) == expected


def test_columns_take_what_is_missing_as_zero_and_ignore_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '"layer", "expert","model, version","count"\n2,1,"a, b",7\n0,2,c,1e1\n')
    np.testing.assert_array_equal(counts_of(path), [[0, 0, 10], [0, 0, 0], [0, 7, 0]])


def test_lists_twenty_problems_and_counts_the_rest(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((5, 6), -1))
    found = messages(tmp_path / "a.npy")
    assert found[:2] == [": [0][0]: negative count -1", ": [0][1]: negative count -1"]
    assert (len(found), found[-1]) == (21, ": and 10 more problems")
    assert messages(write(tmp_path / "a.csv", "-1,-1\n" * 15))[-1] == ": and 10 more problems"
    assert messages(write(tmp_path / "a.json", [["x"]] * 30))[-1] == ": and 10 more problems"


@pytest.mark.parametrize("shape", [(3,), (1, 2, 2, 2)])
def test_other_dimensions(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape))
    assert "needs [layers, experts] or [steps, layers, experts]" in messages(tmp_path / "a.npy")[0]


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.ones((4_097, 1), np.uint8))
    assert messages(tmp_path / "a.npy") == [f": 4097 layers x 1 experts {BEYOND}"]
    np.save(tmp_path / "a.npy", np.ones((1, 65_537), np.uint8))
    assert messages(tmp_path / "a.npy") == [f": 1 layers x 65537 experts {BEYOND}"]
    monkeypatch.setattr(expert_loads, "MAX_COUNTS", 7)
    assert "more than can be added up" in messages(torch_files.save(tmp_path / "a.pt", np.ones((2, 4))))[0]
    assert "more than 7 counts" in messages(write(tmp_path / "a.json", [[1] * 4] * 2))[0]
    physical = {"records": [{"global_physical_count": [[1]]}] * 8, MAP_KEY: [[0]]}
    assert "8 passes" in messages(write(tmp_path / "a.json", physical))[0]
    monkeypatch.setattr(expert_loads, "MAX_ROWS", 3)
    assert "more than 3 rows" in messages(write(tmp_path / "a.json", [[[1], [1]]] * 2))[0]


def test_torch_values_that_are_no_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert messages(torch_files.save(path, {"logical_count": "many"})) == [": logical_count: needs rows of numbers"]
    infinite = np.array([[1.0, np.nan], [np.inf, 1.0]])
    assert messages(torch_files.save(path, {"logical_count": infinite})) == [
        ": logical_count[0][1]: count is nan, not finite",
        ": logical_count[1][0]: count is inf, not finite",
    ]
    boolean = torch_files.tensor("0", "BoolStorage", 2, (1, 2), (2, 1))
    path.write_bytes(torch_files.archive(boolean, {"0": b"\1\0"}))
    assert messages(path) == [": holds bool, not integers or floats"]


def test_large_text_is_not_composed_to_find_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_loads, "MAX_LOCATED_CHARS", 5)
    assert messages(write(tmp_path / "a.json", [[1, -2]])) == [": [0][1]: negative count -2.0"]


def test_other_files(tmp_path: Path) -> None:
    assert "suffix '.txt'" in messages(write(tmp_path / "a.txt", "1,2"))[0]
    assert "cannot be read" in messages(tmp_path / "absent.csv")[0]
