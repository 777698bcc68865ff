"""`gpuplan estimate --rows`: the contract's columns, and what a table may hold."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from planner import catalog
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker

Invoke = Callable[..., Result]

#: The contract, and the column of notes.
ADDED = [
    "ttft_ms", "ttft_low_ms", "ttft_high_ms", "tpot_ms", "tpot_low_ms", "tpot_high_ms",
    "output_tok_s_gpu", "memory_bytes", "admitted_concurrency", "source", "note",
]  # fmt: skip
ROW = {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "vllm", "isl": 1000, "osl": 200}
ROW |= {"tp": 2, "concurrency": 8}
NUMBERS = ADDED[:9]


def write(path: Path, *rows: dict[str, Any]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path.name


def answered(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_contract(gpuplan: Invoke, folder: Path) -> None:
    name = write(folder / "rows.csv", ROW | {"id": "a,b", "extra": "=1+1"}, ROW | {"concurrency": 64})
    result = gpuplan("estimate", "--rows", name, "-o", "out.csv")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    text = (folder / "out.csv").read_text()
    assert text.splitlines()[0].split(",") == [*ROW, "id", "extra", *ADDED]
    first, second = answered(text)
    assert (first["id"], first["extra"], second["id"]) == ("a,b", "=1+1", "")
    for row in (first, second):
        for time in ("ttft", "tpot"):
            low, mean, high = (float(row[f"{time}{end}_ms"]) for end in ("_low", "", "_high"))
            assert 0 < low < mean < high
        assert row["source"] == "calibrated"
        assert int(row["memory_bytes"]) > 32e9
        assert int(row["admitted_concurrency"]) > 64
        assert not any(row[name].startswith(("=", "+", "-", "@")) for name in ADDED)
    assert gpuplan("estimate", "--rows", name).stdout == text
    assert gpuplan("estimate", "--rows", "-", "-o", "-", stdin=(folder / name).read_text()).stdout == text


def test_predictions_are_those_of_the_model(gpuplan: Invoke, folder: Path) -> None:
    (row,) = answered(gpuplan("estimate", "--rows", write(folder / "rows.csv", ROW)).stdout)
    spec, device = catalog.model(ROW["model"]), catalog.device(ROW["system"])
    model = ServingModel([ServingWorker(model=spec, device=device, backend="vllm", tensor_parallel_size=2)])
    found = model.predict(ServingPlans.of([0], 8, 1000, 200))
    assert float(row["tpot_ms"]) == pytest.approx(1e3 * found.tpot_s[0], rel=1e-5)
    assert float(row["ttft_ms"]) == pytest.approx(1e3 * found.ttft_s[0], rel=1e-5)
    assert float(row["tpot_high_ms"]) == pytest.approx(1e3 * found.tpot_s[0] * fitted().spread["tpot.dense"], rel=1e-5)
    assert float(row["output_tok_s_gpu"]) == pytest.approx(found.output_tokens_per_s_per_gpu[0], rel=1e-5)
    assert float(row["memory_bytes"]) == pytest.approx(found.memory_bytes[0])
    assert float(row["admitted_concurrency"]) == found.admitted_sequences[0]


def test_flags_and_rows_agree(gpuplan: Invoke, folder: Path) -> None:
    moe = {"model": "deepseek-ai/DeepSeek-R1", "system": "b200_sxm", "backend": "sglang", "tp": 2, "attention_dp": 4}
    row = ROW | moe | {"moe_ep": 8, "precision": "nvfp4", "concurrency": 256}
    (found,) = answered(gpuplan("estimate", "--rows", write(folder / "rows.csv", row)).stdout)
    flags = ["--model", moe["model"], "--device", "b200", "--backend", "sglang", "--tp", "2", "--dp", "4", "--ep", "8"]
    flags += ["--precision", "nvfp4", "--input-tokens", "1000", "--output-tokens", "200", "--concurrency", "256"]
    verdict = json.loads(gpuplan("estimate", *flags, "--json").stdout)["verdict"]
    metrics = {one["name"]: one["value"] for one in verdict["metrics"]}
    assert float(found["tpot_ms"]) == pytest.approx(1e3 * metrics["tpot_s"], rel=1e-5)
    assert float(found["ttft_ms"]) == pytest.approx(1e3 * metrics["ttft_s"], rel=1e-5)
    assert float(found["memory_bytes"]) == pytest.approx(metrics["memory_bytes"])


def test_what_was_measured_changes_nothing(gpuplan: Invoke, folder: Path) -> None:
    name = write(folder / "rows.csv", ROW)
    (plain,) = answered(gpuplan("estimate", "--rows", name).stdout)
    measured = {"ttft_ms": "garbage", "tpot_ms": 1e9, "tpot_low_ms": "-"}
    (row,) = answered(gpuplan("estimate", "--rows", write(folder / "more.csv", ROW | measured)).stdout)
    assert {name: row[name] for name in ADDED} == {name: plain[name] for name in ADDED}
    assert (row["measured_ttft_ms"], row["measured_tpot_ms"], row["input_tpot_low_ms"]) == (
        "garbage",
        "1000000000.0",
        "-",
    )


def test_reasonable_rows_are_answered_with_a_note(gpuplan: Invoke, folder: Path) -> None:
    moe = {"model": "Qwen/Qwen3-30B-A3B", "tp": 4}
    rows = [
        (ROW | {"tp": 3}, "does not divide"),
        (ROW | moe | {"moe_tp": 4, "moe_ep": 4}, "experts taken as moe_tp 1 x moe_ep 4"),
        (ROW | {"system": "a100_sxm", "precision": "fp8"}, "has no fp8 units"),
        (ROW | {"tp": 1, "concurrency": 4096}, "sequences run at once"),
        (ROW | {"tp": 1, "isl": 300_000}, "not even one sequence fits"),
        (ROW | {"model": "deepseek-ai/DeepSeek-V3", "tp": 1}, "not even one sequence fits"),
        (ROW, "cache taken as 16 bit"),
    ]
    found = answered(gpuplan("estimate", "--rows", write(folder / "rows.csv", *(row for row, _ in rows))).stdout)
    for row, (_, told) in zip(found, rows, strict=True):
        assert told in row["note"]
        assert all(float(row[name]) >= 0 for name in NUMBERS)
    assert found[4]["admitted_concurrency"] == "0"


SYSTEMS = (
    "h100_sxm", "h200_sxm", "h20", "b200_sxm", "b300_sxm", "gb200", "gb300", "a100_sxm", "l40s", "mi300x",
)  # fmt: skip
QUANTS = (
    "float16", "fp8", "fp8_block", "fp8_static", "nvfp4", "int4_wo", "int8_wo", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8",
    "w4afp8",
)  # fmt: skip


def test_every_system_engine_and_quantisation_is_answered(gpuplan: Invoke, folder: Path) -> None:
    rows = [
        ROW | {"model": model, "system": system, "backend": backend, "gemm_quant": quant, "moe_quant": quant, "tp": 8}
        for model in ("Qwen/Qwen3-32B", "openai/gpt-oss-120b", "deepseek-ai/DeepSeek-R1")
        for backend, quants in (("vllm", QUANTS[:4]), ("sglang", QUANTS[4:7]), ("trtllm", QUANTS[7:]))
        for quant in quants
        for system in SYSTEMS
    ]
    result = gpuplan("estimate", "--rows", write(folder / "rows.csv", *rows))
    assert result.exit_code == 0, result.stderr
    found = answered(result.stdout)
    assert len(found) == len(rows)
    assert all(float(row[name]) >= 0 for row in found for name in NUMBERS)


def test_bad_rows_are_7_and_nothing_is_written(gpuplan: Invoke, folder: Path) -> None:
    (folder / "out.csv").write_text("as it was")
    name = write(folder / "rows.csv", ROW, ROW | {"model": "../../etc/passwd", "isl": 0}, ROW | {"system": "h101"})
    result = gpuplan("estimate", "--rows", name, "-o", "out.csv")
    assert result.exit_code == 7
    assert "rows.csv:3: isl is '0'" in result.stderr
    assert "rows.csv:3: model: the catalogue has no model" in result.stderr
    assert "rows.csv:4: system: the catalogue has no device 'h101'" in result.stderr
    assert (folder / "out.csv").read_text() == "as it was"
    assert sorted(path.name for path in folder.glob("*.csv*")) == ["out.csv", "rows.csv"]


def test_a_folder_that_cannot_be_written_to(gpuplan: Invoke, folder: Path) -> None:
    result = gpuplan("estimate", "--rows", write(folder / "rows.csv", ROW), "-o", "nowhere/out.csv")
    assert result.exit_code == 7
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize("flags", [["--json"], ["--task", "train"], ["--model", "x"], ["--tp", "2"], ["--zero", "1"]])
def test_flags_that_the_table_says_are_2(gpuplan: Invoke, folder: Path, flags: list[str]) -> None:
    result = gpuplan("estimate", "--rows", write(folder / "rows.csv", ROW), *flags)
    assert result.exit_code == 2
    assert f"{flags[0]} cannot be used with --rows" in result.stderr


def test_the_measured_table_is_answered_whole(gpuplan: Invoke, shared_data: Path) -> None:
    table = shared_data / "inference" / "silicon_e2e_agg_clean.csv"
    result = gpuplan("estimate", "--rows", str(table), "--models", str(shared_data / "models"))
    assert result.exit_code == 0, result.stderr
    found = answered(result.stdout)
    assert len(found) == 1966
    assert all(float(row[name]) > 0 for row in found for name in NUMBERS)
    errors = sorted(abs(float(row["tpot_ms"]) / float(row["measured_tpot_ms"]) - 1) for row in found)
    assert errors[len(errors) // 2] < 0.15, "the fit has seen these runs; this is about columns that are mixed up"
