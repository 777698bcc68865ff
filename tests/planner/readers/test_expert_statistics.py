"""Expert statistics of TensorRT-LLM and vLLM, and the safetensors files that hold the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers.expert_statistics import read_trtllm_statistics, read_vllm_statistics
from planner.readers.safetensors import DTYPES, read_safetensors

NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def safetensors(arrays: dict[str, np.ndarray], **changed: Any) -> bytes:
    """A file as the format's description has it; `changed` goes over the first entry."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, array in arrays.items():
        end = len(body) + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [len(body), end]}
        body += array.tobytes()
    if changed:
        header[next(iter(arrays))] |= changed
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two ranks, two iterations; layers 1 and 2 of experts 0 .. 2, and raw ids that are not to be read."""
    (tmp_path / "meta_info.json").write_text('{"num_experts": 3, "num_experts_per_token": 1}')
    one = {"0_1": counts(1, 2, 3), "1_1": counts(1, 0, 0), "0_2": counts(0, 5, 0)}
    two = {"0_1": counts(10, 0, 0), "0_2": counts(0, 0, 7)}
    (tmp_path / "rank0.safetensors").write_bytes(safetensors(one))
    (tmp_path / "rank1.safetensors").write_bytes(safetensors(two))
    (tmp_path / "rank0_raw.safetensors").write_bytes(safetensors({"0_1": counts(9, 9, 9, 9)}))
    return tmp_path


def test_ranks_and_iterations_are_added_up(folder: Path) -> None:
    """Layer 1: 1+1+10, 2, 3; layer 2: 0, 5, 7; layer 0 is dense."""
    load = read_trtllm_statistics(folder, name="day")
    assert load.counts.tolist() == [[0, 0, 0], [12, 2, 3], [0, 5, 7]]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("meta_info.json", "{}", "num_experts must be a whole number"),
        ("meta_info.json", '{"num_experts": true}', "num_experts must be a whole number"),
        ("meta_info.json", '{"num_experts": 4}', r"shape \(3,\), but meta_info.json says 4 experts"),
        ("rank1.safetensors", safetensors({"x": counts(1, 1, 1)}), "is not named <iteration>_<layer>"),
        ("rank1.safetensors", safetensors({"0_9999": counts(1, 1, 1)}), "is not named <iteration>_<layer>"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, -1, 1)}), "negative or not finite"),
        ("rank1.safetensors", b"", "no safetensors file, or cut off"),
        ("rank1.safetensors", b"\xff" * 8 + b"{}", "no safetensors file, or cut off"),
        ("rank1.safetensors", b"\x02" + bytes(7) + b"[]", "no mapping of tensors"),
        ("rank1.safetensors", b"\x01" + bytes(7) + b"\xff", "not UTF-8"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, 1, 1)}, dtype="BF16"), "dtype 'BF16'"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, 1, 1)}, shape=[4]), "does not fit into the file"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, 1, 1)}, data_offsets=[0, 99]), "does not fit"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, 1, 1)}, shape=[-3]), "no whole numbers"),
        ("rank1.safetensors", safetensors({"0_1": counts(1, 1, 1)}, more=1), "needs dtype, shape and data_offsets"),
    ],
)
def test_damaged_statistics(folder: Path, file: str, content: str | bytes, message: str) -> None:
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DescriptionError, match=message):
        read_trtllm_statistics(folder, name="day")


def test_a_folder_without_ranks(folder: Path) -> None:
    for path in folder.glob("rank?.safetensors"):
        path.unlink()
    with pytest.raises(DescriptionError, match="has 0 files rank"):
        read_trtllm_statistics(folder, name="day")


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=3),
    dtype=st.sampled_from(sorted(DTYPES)),
    cut=st.integers(0, 40),
)
def test_safetensors_are_read_whole_or_refused(
    shapes: list[list[int]], dtype: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    arrays = {f"t{index}": np.ones(shape, DTYPES[dtype]) * index for index, shape in enumerate(shapes)}
    data = safetensors(arrays)
    path = tmp_path_factory.getbasetemp() / "x.safetensors"
    path.write_bytes(data)
    found = read_safetensors(path)
    assert found.keys() == arrays.keys()
    assert all((found[name] == array).all() and found[name].dtype == array.dtype for name, array in arrays.items())
    if 0 < cut <= sum(array.nbytes for array in arrays.values()):
        path.write_bytes(data[:-cut])
        with pytest.raises(DescriptionError):
            read_safetensors(path)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    for text in (data, len(data).to_bytes(8, "little") + data):
        path.write_bytes(text)
        try:
            read_safetensors(path)
        except DescriptionError:
            continue


def record(**changed: Any) -> dict[str, Any]:
    """The record of vLLM's pull request: 1 layer, 4 slots of 4 experts."""
    return {
        "record_type": "eplb_load_stats", "version": 1, "step": 7, "num_ranks": 2,
        "expert_load": [[10, 1, 5, 2]], "p2l_map": [[0, 1, 2, 3]],
    } | changed  # fmt: skip


def lines(folder: Path, *records: Any) -> Path:
    path = folder / "stats.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in records) + "\n")
    return path


def test_slots_of_an_expert_are_added_up(tmp_path: Path) -> None:
    """10+2 for expert 0 of the second record, in two slots; first layer dense."""
    other = {"record_type": "eplb_initial_mapping", "version": 1, "num_slots": 4}
    path = lines(tmp_path, other, record(), record(p2l_map=[[0, 1, 2, 0]], expert_load=[[10, 1, 5, 2]]))
    with pytest.raises(DescriptionError, match=r":3: has 1 layers x 3 experts, records before have others"):
        read_vllm_statistics(path, name="x")
    path = lines(tmp_path, other, record(p2l_map=[[0, 1, 2, 0]]), record(p2l_map=[[2, 1, 0, 0]]))
    load = read_vllm_statistics(path, name="x", first_layer=1)
    assert load.counts.tolist() == [[0, 0, 0], [10 + 2 + 5 + 2, 1 + 1, 5 + 10]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{", "not valid JSON"),
        ("3", "is no record"),
        (record(version=2), "version 2 of eplb_load_stats is not known"),
        (record(expert_load=[[1, 2]]), r"expert_load has shape \(1, 2\), p2l_map \(1, 4\)"),
        (record(expert_load=[]), "expert_load needs rows of numbers"),
        (record(expert_load=[[1, 2, 3, True]]), "an entry that is no number"),
        (record(expert_load=[[1, 2, 3, -1]]), "an entry that is no number"),
        (record(expert_load=[[1], [1, 2]]), "expert_load is ragged"),
        (record(p2l_map=[[0, 1, 2, 0.5]]), "needs expert ids"),
        (record(p2l_map=[[0, 1, 2, 70000]]), "needs expert ids"),
        (record(p2l_map=[[0, 1, 2, 9]]), "no slot for expert 3"),
        (record(expert_load=[[0, 0, 0, 0]]), "all counts are zero"),
        ('{"record_type": "other"}', "holds no record of type eplb_load_stats"),
    ],
)
def test_bad_records(tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        read_vllm_statistics(lines(tmp_path, wrong), name="x")


def test_every_bad_record_is_told_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError) as error:
        read_vllm_statistics(lines(tmp_path, record(version=3), record(), "{"), name="x")
    assert [finding.line for finding in error.value.findings] == [1, 3]


def test_layers_have_an_end(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="1 layers after 4096 are more than 4096"):
        read_vllm_statistics(lines(tmp_path, record()), name="x", first_layer=4096)
    many = {"expert_load": [[1, 1]] * 4000, "p2l_map": [[0, 60_000]] * 4000}
    with pytest.raises(DescriptionError, match="beyond any real model"):
        read_vllm_statistics(lines(tmp_path, record(**many)), name="x")
