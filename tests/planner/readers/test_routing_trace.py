"""The routing-trace readers: arrays and JSONL against each other, real traces, and files that are wrong."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers import routing_trace
from planner.readers.routing_trace import read_routing_trace

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@st.composite
def traces(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Sound traces [tokens, layers, k] in which some experts are missing at the end of a token's k."""
    tokens, layers, top_k = (draw(st.integers(1, 4)) for _ in range(3))
    highest = draw(st.sampled_from([8, 200, 65_535]))
    rows = st.lists(st.integers(0, highest), unique=True, max_size=top_k)
    chosen = [draw(rows) for _ in range(tokens * layers)]
    padded = [row + [-1] * (top_k - len(row)) for row in chosen]
    return np.array(padded).reshape(tokens, layers, top_k)


def as_jsonl(trace: np.ndarray[Any, Any], layer_ids: list[int]) -> str:
    lines = []
    for token, layer in np.ndindex(trace.shape[:2]):
        experts = [int(expert) for expert in trace[token, layer] if expert >= 0]
        if experts or (token, layer) == (len(trace) - 1, 0) or token == 0:
            record = {"layer": layer_ids[layer], "token_idx": token, "experts": experts, "gating_probs": []}
            lines.append(json.dumps(record))
    return "\n".join(reversed(lines)) + "\n\n"


def message(path: Path, documents: Path | None = None) -> str:
    with pytest.raises(DescriptionError) as caught:
        read_routing_trace(path, documents)
    return str(caught.value)


def save(path: Path, array: object) -> Path:
    np.save(path, np.array(array))
    return path


@RELAXED
@given(trace=traces(), dtype=st.sampled_from(["<i4", ">i4", "<i8"]))
def test_npy_and_jsonl_agree(tmp_path: Path, trace: np.ndarray[Any, Any], dtype: str) -> None:
    assume((trace >= 0).any())
    found = read_routing_trace(save(tmp_path / "a.npy", trace.astype(dtype))).experts
    np.testing.assert_array_equal(found, trace)
    assert found.dtype == (np.int16 if trace.max() < 2**15 else np.int32)

    (tmp_path / "a.jsonl").write_text(as_jsonl(trace, list(range(3, 3 + trace.shape[1]))))
    from_lines = read_routing_trace(tmp_path / "a.jsonl").experts
    width = int((trace >= 0).sum(axis=2).max())
    np.testing.assert_array_equal(from_lines, trace[:, :, :width])
    assert from_lines.dtype == found.dtype


@RELAXED
@given(position=st.integers(0, 90), inserted=st.text(max_size=4))
def test_damaged_lines_are_an_error_and_no_traceback(tmp_path: Path, position: int, inserted: str) -> None:
    sound = '{"layer": 0, "token_idx": 0, "experts": [1, 2]}\n{"layer": 1, "token_idx": 0, "experts": [0]}\n'
    path = tmp_path / "a.jsonl"
    path.write_text(sound[:position] + inserted + sound[position + 1 :], encoding="utf-8")
    with contextlib.suppress(DescriptionError):
        assert read_routing_trace(path).experts.max() >= 0


def test_top_1_of_two_dimensions_and_small_dtypes(tmp_path: Path) -> None:
    trace = read_routing_trace(save(tmp_path / "a.npy", np.array([[0, 255], [7, 3]], np.uint8)))
    assert trace.experts.tolist() == [[[0], [255]], [[7], [3]]]
    assert trace.experts.dtype == np.int16
    assert trace.source == str(tmp_path / "a.npy")


def test_real_traces(shared_data: Path) -> None:
    folder = shared_data / "experts"
    trace = read_routing_trace(folder / "gptoss20b_topk_trace.npy", folder / "gptoss20b_topk_trace_doc.npy")
    assert trace.experts.shape == (19_384, 24, 4)
    assert trace.documents is not None
    assert trace.documents.dtype == np.int64
    assert trace.counts(32).sum() == trace.experts.size
    mixtral = read_routing_trace(folder / "misc" / "mixtral8x7b_humaneval0_topk_trace.npy")
    assert mixtral.experts.shape == (77, 32, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        ([[[0, 1]], [[2, 2]]], "token 1, layer 0: expert 2 is named twice"),
        ([[[0, 1]], [[2, -2]]], "ids run from -2 to 2"),
        ([[[0, 65_536]]], "ids run from 0 to 65536"),
        ([[[0.0, 1.0]]], "needs integers, got float64"),
        ([0, 1], "needs [tokens, layers, k] or [tokens, layers], got (2,)"),
        ([[[[0]]]], "got (1, 1, 1, 1)"),
        (np.zeros((1, 1, 2_000), int), "got (1, 1, 2000)"),
        (np.zeros((1, 5_000), int), "got (1, 5000, 1)"),
        ([[[-1, -1]]], "holds no routed token"),
    ],
)
def test_wrong_arrays(tmp_path: Path, array: object, expected: str) -> None:
    assert expected in message(save(tmp_path / "a.npy", array))


def test_repeats_are_found_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing_trace, "_CHUNK_CELLS", 5)
    trace = np.tile([[0, 1], [-1, -1]], (9, 1, 1))
    assert read_routing_trace(save(tmp_path / "a.npy", trace)).num_layers == 2
    trace[7, 1] = 4
    assert "token 7, layer 1: expert 4 is named twice" in message(save(tmp_path / "a.npy", trace))


def test_documents(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", [[0], [1]])
    trace = read_routing_trace(path, save(tmp_path / "d.npy", np.array([4, 9], np.uint16)))
    assert trace.documents is not None
    assert trace.documents.tolist() == [4, 9]
    assert "has shape (3,) for 2 tokens" in message(path, save(tmp_path / "d.npy", [1, 2, 3]))
    assert "needs integers, got float64" in message(path, save(tmp_path / "d.npy", [1.0, 2.0]))
    assert "beyond 64 bits" in message(path, save(tmp_path / "d.npy", np.array([1, 2**63], np.uint64)))


SOUND = '{"layer": 0, "token_idx": 0, "experts": [1]}'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"layer": 1, "token_idx": 0, "experts": [1', "2:43: not valid JSON"),
        ('{"layer": 1, "layer": 2, "token_idx": 0, "experts": [1]}', "2: duplicate key 'layer'"),
        ("[1]", "2: needs an object with layer, token_idx and experts"),
        ('{"layer": 1, "experts": [1]}', "2: needs an object with layer, token_idx and experts"),
        (SOUND, "2: token_idx 0 in layer 0 was given on line 1 already"),
        ('{"layer": 4096, "token_idx": 0, "experts": [1]}', "2: layer 4096 is not from 0 to 4095"),
        ('{"layer": true, "token_idx": 0, "experts": [1]}', "2: layer True is not"),
        ('{"layer": 1, "token_idx": -1, "experts": [1]}', "2: token_idx -1 is not"),
        ('{"layer": 1, "token_idx": 1000000000000, "experts": [1]}', "2: token_idx 1000000000000 is not"),
        ('{"layer": 1, "token_idx": 100000000, "experts": [1]}', "is too much for JSONL; use .npy"),
        ('{"layer": 1, "token_idx": 0, "experts": 1}', "2: experts needs a list"),
        ('{"layer": 1, "token_idx": 0, "experts": [1.5]}', "2: expert 1.5 is not from -1"),
        ('{"layer": 1, "token_idx": 0, "experts": [-2]}', "2: expert -2 is not from -1"),
        ('{"layer": 1, "token_idx": 0, "experts": [65536]}', "2: expert 65536 is not from -1"),
        ('{"layer": 1, "token_idx": 0, "experts": [3, -1, 3]}', "2: experts names one twice"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{SOUND}\n{line}\n")
    assert expected in message(tmp_path / "a.jsonl")


def test_every_wrong_line_is_listed_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([SOUND, "1", "", "2"]))
    assert message(path).count("needs an object") == 2
    path.write_text("1\n" * 50)
    assert message(path).count("needs an object") == 20
    path.write_text("\n")
    assert "is empty" in message(path)


def test_other_files(tmp_path: Path) -> None:
    assert "suffix '.csv'" in message(tmp_path / "a.csv")
    assert "cannot be read" in message(tmp_path / "absent.jsonl")
    assert "cannot be read" in message(tmp_path / "absent.npy")
