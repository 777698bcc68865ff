"""`gpuplan import bench`, `hf` and the expert statistics: what they write is what other commands read."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from planner.readers.hf_config import read_model

Invoke = Callable[..., Result]

RUN: dict[str, Any] = {
    "model_id": "Qwen/Qwen3-32B", "tp": "4", "system": "h100_sxm", "max_concurrency": 16, "completed": 100,
    "total_input_tokens": 102400, "total_output_tokens": 25600, "request_throughput": 10.0, "mean_ttft_ms": 200.0,
    "mean_tpot_ms": 14.0,
}  # fmt: skip
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "max_position_embeddings": 128,
}  # fmt: skip


def test_runs_that_calibrate(gpuplan: Invoke, folder: Path) -> None:
    for size in (16, 32):
        (folder / f"c{size}.json").write_text(json.dumps({**RUN, "max_concurrency": size}))
    result = gpuplan("import", "bench", "c16.json", "c32.json", "--backend", "vllm", "-o", "runs.csv")
    assert result.exit_code == 0, result.output
    assert "2 runs written; next: gpuplan calibrate runs.csv" in result.stderr
    rows = list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
    assert [row["concurrency"] for row in rows] == ["16", "32"]
    first = {key: rows[0][key] for key in ("model", "system", "backend", "tp", "isl", "osl", "ttft_ms", "tpot_ms")}
    assert first == {
        "model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "vllm", "tp": "4", "isl": "1024", "osl": "256",
        "ttft_ms": "200", "tpot_ms": "14",
    }  # fmt: skip
    result = gpuplan("calibrate", "runs.csv", "-o", "efficiency.yaml")
    assert result.exit_code == 0, result.output


def test_flags_come_before_what_the_result_says(gpuplan: Invoke, folder: Path) -> None:
    flags = ("--backend", "SGLang", "--system", "h200_sxm", "--tp", "8", "--model", "m", "--precision", "fp8")
    result = gpuplan("import", "bench", "-", *flags, stdin=json.dumps(RUN))
    assert result.exit_code == 0, result.output
    (row,) = csv.DictReader(result.stdout.splitlines())
    told = [row[key] for key in ("backend", "system", "tp", "model", "precision")]
    assert told == ["sglang", "h200_sxm", "8", "m", "fp8"]


def test_all_that_is_missing_is_told(gpuplan: Invoke, folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({**RUN, "model_id": "", "system": "abacus", "tp": "0"}))
    (folder / "b.json").write_text("{}")
    result = gpuplan("import", "bench", "a.json", "b.json", "-o", "runs.csv")
    assert result.exit_code == 7
    for message in ("a.json: does not say model", "does not say backend", "no device 'abacus'", "tp is '0'", "b.json"):
        assert message in result.stderr
    assert not (folder / "runs.csv").exists()


def test_a_config_and_the_file_beside_it(gpuplan: Invoke, folder: Path) -> None:
    model = folder / "tiny"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    result = gpuplan("import", "hf", "tiny", "-o", "org--tiny.json")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("tiny: llama, ")
    assert read_model(folder / "org--tiny.json").name == "org/tiny"
    quantization = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    (model / "hf_quant_config.json").write_text(json.dumps(quantization))
    result = gpuplan("import", "hf", "tiny/config.json", "-o", "org--tiny.json")
    assert result.exit_code == 0, result.output
    assert read_model(folder / "org--tiny.json").weight_bytes == read_model(model).weight_bytes
    assert (folder / "org--tiny.hf_quant_config.json").exists()
    result = gpuplan("import", "hf", "tiny")
    assert result.exit_code == 2
    assert "two files need -o FILE.json" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.json",), 7, "is no config.json, nor a folder"),
        (("org/name",), 7, "--hub asks Hugging Face"),
        (("bad.json",), 7, "bad.json:"),
        (("config.json", "-o", "model.yaml"), 2, "must end in .json"),
        (("config.json", "--revision", "main"), 2, "is for --hub"),
        (("org/name", "--hub"), 2, "pip install 'gpuplan[hf]'"),
    ],
)
def test_what_is_no_model(
    gpuplan: Invoke,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (folder / "bad.json").write_text(json.dumps({**CONFIG, "hidden_size": "wide"}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    result = gpuplan("import", "hf", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_the_hub_is_asked_for_two_small_files(gpuplan: Invoke, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for huggingface_hub with its two names that are used: no network in tests."""

    class EntryNotFoundError(Exception):
        pass

    asked: list[tuple[str, str, str | None]] = []

    def download(model_id: str, file: str, revision: str | None = None) -> str:
        asked.append((model_id, file, revision))
        if model_id == "no/model":
            raise OSError("Repository Not Found\nmore")
        if file != "config.json":
            raise EntryNotFoundError
        path = folder / "cache" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(CONFIG))
        return str(path)

    errors = types.ModuleType("huggingface_hub.errors")
    errors.EntryNotFoundError = EntryNotFoundError  # type: ignore[attr-defined]
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    result = gpuplan("import", "hf", "org/tiny", "--hub", "--revision", "v1", "-o", "org--tiny.json")
    assert result.exit_code == 0, result.output
    assert asked == [("org/tiny", "config.json", "v1"), ("org/tiny", "hf_quant_config.json", "v1")]
    assert result.stderr.startswith("org/tiny: llama")
    result = gpuplan("import", "hf", "no/model", "--hub")
    assert result.exit_code == 2
    assert "the hub gives no config of no/model: Repository Not Found" in result.stderr


def test_expert_loads_become_logical_counts(gpuplan: Invoke, folder: Path) -> None:
    stats = {"record_type": "eplb_load_stats", "version": 1, "expert_load": [[4, 1, 1, 2]], "p2l_map": [[0, 1, 2, 0]]}
    result = gpuplan("import", "vllm-eplb", "-", "--first-layer", "1", "-o", "load.json", stdin=json.dumps(stats))
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "load.json").read_text()) == {"logical_count": [[0, 0, 0], [6, 1, 1]]}
    assert "2 layers x 3 experts, 8 tokens routed" in result.stderr
    assert "up to 2.25 times the layer's mean" in result.stderr
    again = gpuplan("import", "sglang-recorder", "load.json")
    assert json.loads(again.stdout) == json.loads((folder / "load.json").read_text())
    plan = gpuplan("experts", "--loads", "load.json", "--num-gpus", "2", "--num-slots", "4", "--json")
    assert plan.exit_code == 0, plan.output


def test_physical_counts_and_statistics(gpuplan: Invoke, folder: Path) -> None:
    record = {"global_physical_count": [[5, 1, 2]]}
    dump = {"records": [record, record], "last_physical_to_logical_map": [[0, 1, 0]]}
    (folder / "dump.json").write_text(json.dumps(dump))
    result = gpuplan("import", "sglang-recorder", "dump.json")
    assert json.loads(result.stdout) == {"logical_count": [[14, 2]]}
    stats = folder / "stats"
    stats.mkdir()
    (stats / "meta_info.json").write_text('{"num_experts": 2}')
    header = json.dumps({"0_1": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    body = np.array([3, 4], dtype=np.int32).tobytes()
    (stats / "rank0.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    result = gpuplan("import", "trtllm-statistics", "stats")
    assert json.loads(result.stdout) == {"logical_count": [[0, 0], [3, 4]]}
    result = gpuplan("import", "trtllm-statistics", "dump.json")
    assert result.exit_code == 7
    assert "is no folder" in result.stderr
    result = gpuplan("import", "vllm-eplb", "dump.json", "--first-layer", "-1")
    assert result.exit_code == 2
