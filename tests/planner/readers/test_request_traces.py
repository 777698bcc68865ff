"""Request traces: every format means the same requests, mixed-up columns and hostile files are refused with a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers import request_traces
from planner.readers.request_traces import read_request_trace

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "trace.any"
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


#: The same three requests, at 0, 1.5 and 2 s, as each format has them.
FORMATS = {
    "Azure LLM inference": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n"
    "2023-11-16 18:17:05.4799600,396,109\n2023-11-16 18:17:05.9799600,879,55\n",
    "BurstGPT": "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,,1.2,ChatGPT,374,44,418,Conversation log\n6.5,,1.0,GPT-4,396,109,505,API log\n7,,2,GPT-4,879,55,934,API log\n",
    "Mooncake": "timestamp,input_length,output_length\n0,374,44\n1500,396,109\n2000,879,55\n",
    "Mooncake JSONL": "\n".join(
        json.dumps({"timestamp": time, "input_length": inputs, "output_length": outputs, "hash_ids": [0, 1]})
        for time, inputs, outputs in ((27482, 374, 44), (28982, 396, 109), (29482, 879, 55))
    ),
    "plain table": "output_tokens,arrival_ms,isl,note\n44,1000,374,a\n109,2500.0,396,\n55,3000,879,\n",
}
ZONES = (
    "timestamp,prompt_tokens,completion_tokens\n2024-05-10 00:00:00+00:00,374,44\n2024-05-10T02:00:01.5+02:00,396,109"
)
FORMATS["plain table "] = ZONES + "\n2024-05-09T19:30:02-0430,879,55\n"


@pytest.mark.parametrize("known", FORMATS)
def test_formats_by_header(write: Write, known: str) -> None:
    trace = read_request_trace(write(FORMATS[known]))
    assert trace.arrival_s == pytest.approx([0, 1.5, 2], abs=1e-6)
    assert trace.input_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.source.endswith(f"({known.strip()})")
    assert trace.num_failed == 0


def test_prefixes_of_blocks_seen_before(write: Write) -> None:
    """Leading blocks only: 1, 2 were seen by the third line, 4 not; and never more than the prompt itself."""
    rows = [([1, 2, 3], 1500), ([9, 2], 1000), ([1, 2, 4, 3], 2000), ([1, 2, 4], 1400)]
    text = "\n".join(
        json.dumps({"timestamp": 1000 * i, "input_length": tokens, "output_length": 1, "hash_ids": ids})
        for i, (ids, tokens) in enumerate(rows)
    )
    prefix = read_request_trace(write(text)).prefix_tokens
    assert prefix is not None
    assert prefix.tolist() == [0, 0, 1024, 1400]


def test_requests_without_output_failed(write: Write) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    text += "1,GPT-4,0,0,0,API log\n2,GPT-4,5,3,8,API log\n3,GPT-4,9,0,9,API log\n4,GPT-4,6,2,8,API log\n"
    trace = read_request_trace(write(text))
    assert (len(trace), trace.num_failed, trace.span_s) == (2, 2, 2.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.data())
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    number = data.draw(st.integers(2, 30))
    arrival = np.cumsum([0.0, *data.draw(st.lists(st.integers(1, 10**6), min_size=number - 1, max_size=number - 1))])
    sizes = st.lists(st.integers(1, 1 << 24), min_size=number, max_size=number)
    inputs, outputs = data.draw(sizes), data.draw(sizes)
    start = data.draw(st.integers(0, 10**9))
    path = tmp_path / "t"
    newline = data.draw(st.sampled_from(["\n", "\r\n"]))
    rows = [f"{time},{a}.0, {b}" for time, a, b in zip(start + arrival, inputs, outputs, strict=True)]
    path.write_bytes(newline.join(["\ufeffarrival_s,input_tokens,output_tokens", "", *rows]).encode())
    trace = read_request_trace(path)
    assert trace.arrival_s.tolist() == arrival.tolist()
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == (inputs, outputs)
    lines = [
        json.dumps({"timestamp": 1000 * time, "input_length": a, "output_length": b})
        for time, a, b in zip(arrival.tolist(), inputs, outputs, strict=True)
    ]
    path.write_text("\n".join(lines))
    again = read_request_trace(path)
    assert again.arrival_s == pytest.approx(trace.arrival_s)
    assert again.prefix_tokens is None
    assert again.input_tokens.tolist() == inputs


def test_chunks_join(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_traces, "CHUNK_ROWS", 3)
    text = "t,input,output\n" + "".join(f"{i},{i + 1},2\n" for i in range(10))
    assert read_request_trace(write(text)).input_tokens.tolist() == list(range(1, 11))
    with pytest.raises(DescriptionError, match=r"trace\.any:8: arrival goes back from 5 to 0 s"):
        read_request_trace(write(text.replace("\n6,", "\n0,")))


HEAD = "t_s,input_tokens,output_tokens\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ": is empty"),
        ("\n\n", ": is empty"),
        ("\n" * 5000, "blank lines"),
        (HEAD, ": has no rows"),
        ("374,44\n1,2\n", ":1: has no column for the arrival"),
        ("t_s,0,1.5\ninput_tokens,100,200\noutput_tokens,10,20\n", ":1: looks transposed: only its first column"),
        ("t_s;input_tokens;output_tokens\n1;2;3\n", "separated by commas"),
        ("t_s,timestamp,input,output\n0,0,1,1\n", ":1: has several columns for the arrival: 't_s', 'timestamp'"),
        ("t_s,input,output,osl\n0,0,1,1\n", "several columns for output tokens"),
        (HEAD + "0,1,1\n1,2\n", ":3: has 2 fields, but the header has 3"),
        (HEAD + "0,1,1\n5,1,1\n4,1,1\n", ":4: arrival goes back from 5 to 4 s"),
        ("input_tokens,t_s,output_tokens\n0.5,374,44\n", ":2: input_tokens is '0.5', not a whole number"),
        (HEAD + "0,1,1\n1,0,1\n", ":3: has 0 input tokens and some output"),
        (HEAD + "0,1,0\n1,4,0\n2,1,1\n", "2 of 3 requests have 0 output tokens"),
        (HEAD + "0,-1,1\n1,1,1\n", ":2: input_tokens is '-1'"),
        (HEAD + "0,1,99999999999\n1,1,1\n", ":2: output_tokens is '99999999999'"),
        (HEAD + "0,nan,1\n1,1,1\n", ":2: input_tokens is 'nan'"),
        (HEAD + "0,1,1\ninf,1,1\n", ":3: t_s is 'inf'"),
        (HEAD + "0,1,1\nsoon,1,1\n", ":3: t_s is 'soon', not a time"),
        (HEAD + "1700000000000,1,1\n1700000000001,1,1\n", "call the column timestamp_ms"),
        (HEAD + "7,1,1\n7,1,1\n", "arrive at the same time"),
        (HEAD + '0,1,"1\n', "not valid CSV"),
        ("time,input,output\n2024-01-01 00:00:00,1,1\n2024-13-01 00:00:00,1,1\n", ":3: time is '2024-13-01"),
        ("time,input,output\n2024-01-01 00:00:00,1,1\n17,1,1\n", ":3: time is '17', not a date"),
        ("t,input,output,total_tokens\n0,3,4,7\n1,3,4,8\n", ":3: total_tokens is 8, not the sum 7"),
        ("t,input,output,prefix_tokens\n0,3,4,0\n1,3,4,9\n", ":3: has a prefix of 9 tokens in an input of 3"),
        ('{"timestamp": 1}\n', ":1: needs an object with timestamp, input_length"),
        ('{"timestamp": 1, "input_length": 2.5, "output_length": true}\n', ":1: input_length is '2.5'"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3, "hash_ids": "x"}', "hash_ids must be a list"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3}\n[1]\n', ":2: needs an object"),
        ('{"timestamp": 1, "input_length": 2, "output_length": 3\n', ":1"),
        (
            '{"timestamp": 1, "input_length": 2, "output_length": 3}\n'
            '{"timestamp": 2, "input_length": 2, "output_length": 3, "hash_ids": [1]}\n',
            ":2: hash_ids must be in all lines or in none",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(write: Write, text: str, told: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        read_request_trace(write(text))
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(write(text)))


def test_all_problems_at_once_but_not_without_end(write: Write) -> None:
    with pytest.raises(DescriptionError) as caught:
        read_request_trace(write(HEAD + "0,1,1\n3,x,1\n2,1,y\n"))
    assert {finding.line for finding in caught.value.findings} == {3, 4}
    with pytest.raises(DescriptionError) as caught:
        read_request_trace(write(HEAD + "x,y,z\n" * 200_000))
    assert len(caught.value.findings) == 101
    assert "more problems" in caught.value.findings[-1].message


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("MAX_TRACE_BYTES", 60, "larger than 60 bytes"),
        ("MAX_LINE_BYTES", 20, ":1: has a line of more than 20 bytes"),
        ("MAX_REQUESTS", 3, "more than 3 requests"),
    ],
)
def test_sizes_are_bounded(write: Write, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, told: str) -> None:
    monkeypatch.setattr(request_traces, limit, value)
    with pytest.raises(DescriptionError, match=told):
        read_request_trace(write(HEAD + "".join(f"{i},1,1\n" for i in range(50))))


def test_blocks_are_bounded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_traces, "MAX_BLOCKS", 2)
    with pytest.raises(DescriptionError, match=":1: names more than 2 different blocks"):
        read_request_trace(write(FORMATS["Mooncake JSONL"].replace("[0, 1]", "[0, 1, 2]")))


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"t_s,input,output\n0,1,\xff\n", bytes(range(256)) * 8, b"\x1f\x8b"])
def test_binary_files(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "raw.csv").write_bytes(raw)
    with pytest.raises(DescriptionError):
        read_request_trace(tmp_path / "raw.csv")


def test_files_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv", "a\0b"):
        with pytest.raises(DescriptionError, match="cannot be read"):
            read_request_trace(path)


def test_recorded_traces(shared_data: Path) -> None:
    """Requests, span and the largest sizes as the data's own page gives them."""
    conv = read_request_trace(shared_data / "fleet" / "azure2023_conv.csv")
    assert (len(conv), conv.span_s) == (19_366, 3501.722)
    mooncake = read_request_trace(shared_data / "fleet" / "mooncake_conversation.csv")
    assert (len(mooncake), int(mooncake.input_tokens.max())) == (12_031, 126_195)
    assert mooncake.prefix_tokens is not None
    assert mooncake.prefix_tokens.sum() > 0
