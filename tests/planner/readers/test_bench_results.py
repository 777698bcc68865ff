"""Results of serving benchmarks in the forms that their programs write; and what is none of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import DescriptionError
from planner.readers.bench_results import BenchRun, read_bench_results

#: 100 requests of 1,024 + 128 tokens at 16 at once; keys of vllm/benchmarks/serve.py.
VLLM: dict[str, Any] = {
    "date": "20260101-000000", "backend": "openai", "label": None, "model_id": "Qwen/Qwen3-32B",
    "tokenizer_id": "Qwen/Qwen3-32B", "num_prompts": 100, "tp": "4", "system": "h100_sxm", "request_rate": "inf",
    "burstiness": 1.0, "max_concurrency": 16, "duration": 10.0, "completed": 100, "failed": 0,
    "total_input_tokens": 102400, "total_output_tokens": 12800, "request_throughput": 10.0,
    "output_throughput": 1280.0, "mean_ttft_ms": 150.5, "median_ttft_ms": 140, "mean_tpot_ms": 12.25,
    "mean_itl_ms": 12.3,
}  # fmt: skip
#: Keys of SGLang's bench_serving, which writes a line a run, and Infinity for no rate.
SGLANG = {
    "backend": "sglang", "dataset_name": "random", "request_rate": math.inf, "max_concurrency": 8, "completed": 10,
    "total_input_tokens": 5000, "total_output_tokens": 1000, "mean_ttft_ms": 80.0, "mean_tpot_ms": 9.0,
    "mean_e2e_latency_ms": 971.0, "request_throughput": 8.2,
}  # fmt: skip


def stat(unit: str, average: float) -> dict[str, Any]:
    return {"unit": unit, "avg": average, "p50": average, "p99": 2 * average}


#: Keys of genai-perf's JSON exporter.
GENAI = {
    "request_throughput": stat("requests/sec", 4.0), "request_latency": stat("ms", 2000.0),
    "time_to_first_token": stat("ms", 101.0), "inter_token_latency": stat("ms", 11.0),
    "output_sequence_length": stat("tokens", 200.4), "input_sequence_length": stat("tokens", 550.0),
    "input_config": {"model": ["meta/llama"], "concurrency": 32, "request_rate": None},
}  # fmt: skip


def guide(mean: float) -> dict[str, Any]:
    return {"successful": {"mean": mean, "median": mean}, "errored": {"mean": 0.0}, "total": {"mean": mean}}


#: Keys of guidellm's GenerativeBenchmarksReport.
GUIDE: dict[str, Any] = {
    "args": {"target": "http://localhost", "model": "Qwen/Qwen3-8B"},
    "benchmarks": [
        {
            "config": {"strategy": {"type_": kind, **({"streams": 4} if kind == "concurrent" else {})}},
            "metrics": {
                "request_concurrency": guide(3.7), "prompt_token_count": guide(256.0),
                "output_token_count": guide(128.0), "time_to_first_token_ms": guide(40.0),
                "inter_token_latency_ms": guide(8.5),
            },
        }
        for kind in ("concurrent", "constant")
    ],
}  # fmt: skip


def read(folder: Path, value: Any) -> tuple[BenchRun, ...]:
    path = folder / "result.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return read_bench_results(path)


def test_vllm_with_metadata(tmp_path: Path) -> None:
    (run,) = read(tmp_path, VLLM)
    assert (run.model, run.input_tokens, run.output_tokens, run.concurrency) == ("Qwen/Qwen3-32B", 1024, 128, 16)
    assert (run.ttft_ms, run.tpot_ms) == (150.5, 12.25)
    assert run.said == {"tp": "4", "system": "h100_sxm"}
    assert run.notes == ()


def test_a_rate_becomes_requests_at_once(tmp_path: Path) -> None:
    """Latency 150.5 + 127 x 12.25 = 1,706.25 ms at 10 a second: 17 at once; told latency comes before."""
    (run,) = read(tmp_path, {**VLLM, "max_concurrency": None, "failed": 3})
    assert run.concurrency == 17
    assert run.notes[0].startswith("3 requests failed beside 100")
    assert run.notes[1] == "17 requests at once, from 10 a second that took 1706 ms each"
    (run,) = read(tmp_path, {**VLLM, "max_concurrency": None, "mean_e2el_ms": 2000.0})
    assert run.concurrency == 20


def test_sglang_writes_a_line_a_run(tmp_path: Path) -> None:
    runs = read(tmp_path, "\n".join(json.dumps({**SGLANG, "max_concurrency": size}) for size in (8, 16)) + "\n")
    assert [run.concurrency for run in runs] == [8, 16]
    assert [run.place[-2:] for run in runs] == ["#1", "#2"]
    assert (runs[0].model, runs[0].input_tokens, runs[0].tpot_ms) == ("", 500, 9.0)


def test_genai_perf_units_and_rates(tmp_path: Path) -> None:
    (run,) = read(tmp_path, GENAI)
    assert (run.model, run.input_tokens, run.output_tokens, run.concurrency) == ("meta/llama", 550, 200, 32)
    by_rate = {**GENAI, "input_config": {"model": ["m"], "concurrency": 1, "request_rate": 4.0}}
    (run,) = read(tmp_path, {**by_rate, "time_to_first_token": stat("us", 101_000.0)})
    assert (run.concurrency, run.ttft_ms) == (8, pytest.approx(101.0))
    phases = [{"name": "warmup", "concurrency": 2}, {"name": "profiling", "concurrency": 64}]
    (run,) = read(tmp_path, {**GENAI, "input_config": {"models": {"items": [{"name": "m"}]}, "phases": phases}})
    assert (run.model, run.concurrency) == ("m", 64)


def test_guidellm_has_a_run_for_each_benchmark(tmp_path: Path) -> None:
    told, measured = read(tmp_path, GUIDE)
    assert (told.model, told.input_tokens, told.output_tokens, told.concurrency) == ("Qwen/Qwen3-8B", 256, 128, 4)
    assert (told.ttft_ms, told.tpot_ms, told.notes) == (40.0, 8.5, ())
    assert measured.concurrency == 4
    assert measured.notes == ("4 requests at once, the mean that was measured",)
    assert measured.place.endswith(".benchmarks.1")


def test_one_token_has_no_time_after_it(tmp_path: Path) -> None:
    (run,) = read(tmp_path, {**VLLM, "total_output_tokens": 100, "mean_tpot_ms": 0.0})
    assert math.isnan(run.tpot_ms)
    assert run.ttft_ms == 150.5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "not valid JSON"),
        ("{", ":1:2: not valid JSON"),
        ("[]", "holds no run"),
        ("3", "needs an object"),
        ('{"a": 1}', "is of no format that is known"),
        ("[" * 100_000, "nested too deeply"),
        ('{"completed": 1}\n{"completed": }\n', ":2:15: not valid JSON"),
        ({**VLLM, "completed": 0}, "completed no request"),
        ({**VLLM, "completed": "many"}, "completed must be a number from 0, got 'many'"),
        ({**VLLM, "total_input_tokens": math.nan}, "total_input_tokens must be a number"),
        ({**VLLM, "total_input_tokens": 1e14}, "input tokens a request are none"),
        ({**VLLM, "max_concurrency": 2.5}, "concurrency must be a whole number"),
        ({**VLLM, "max_concurrency": None, "request_throughput": 0}, "how many requests ran at once"),
        ({**VLLM, "mean_ttft_ms": None, "mean_tpot_ms": None}, "was it streamed"),
        ({**VLLM, "model_id": ["x"]}, "the model must be a text"),
        ({**GENAI, "time_to_first_token": {"avg": 3}}, "time_to_first_token.unit is 'None'"),
        ({**GENAI, "input_sequence_length": 5}, "needs an object input_sequence_length"),
        ({"benchmarks": {}}, "benchmarks must be a list"),
        ({"benchmarks": [3]}, "benchmarks.0 must be an object"),
        ({"benchmarks": [{"metrics": {}}]}, r"benchmarks.0.metrics"),
    ],
)
def test_what_is_no_result(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        read(tmp_path, value)


def test_every_wrong_run_is_told_at_its_line(tmp_path: Path) -> None:
    lines = [json.dumps({**SGLANG, "completed": count}) for count in (0, 10, -1)]
    with pytest.raises(DescriptionError) as error:
        read(tmp_path, "\n".join(lines))
    assert [finding.line for finding in error.value.findings] == [1, 3]


KEYS = sorted({*VLLM, *GENAI, "benchmarks", "args", "metrics", "config", "successful", "mean", "avg", "unit"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(change=JSON, key=st.sampled_from(KEYS), base=st.sampled_from([{}, VLLM, GENAI, GUIDE]))
def test_any_json_is_read_or_refused(
    change: Any, key: str, base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    for value in (change, {**base, key: change}):
        try:
            runs = read(folder, value)
        except DescriptionError:
            continue
        for run in runs:
            assert min(run.input_tokens, run.output_tokens, run.concurrency) >= 1
            assert not (math.isnan(run.ttft_ms) and math.isnan(run.tpot_ms))
