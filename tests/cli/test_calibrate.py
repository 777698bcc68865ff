"""`gpuplan calibrate`: a user's own runs make predictions better, few of them a little, and the file says how much."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

ROW = {"model": "Qwen/Qwen3-32B", "system": "h100_sxm", "backend": "vllm", "isl": 1000, "osl": 200, "tp": 2}
LOADS = [(c, isl) for isl in (500, 4000) for c in (1, 4, 16, 64)]


def write(path: Path, *rows: dict[str, Any]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path.name


def predicted(
    gpuplan: Invoke, folder: Path, *rows: dict[str, Any], calibration: str | None = None
) -> list[dict[str, str]]:
    name = write(folder / "ask.csv", *rows)
    flags = [] if calibration is None else ["--calibration", calibration]
    result = gpuplan("estimate", "--rows", name, *flags)
    assert result.exit_code == 0, result.stderr
    return list(csv.DictReader(io.StringIO(result.stdout)))


def shifted(
    gpuplan: Invoke, folder: Path, rows: list[dict[str, Any]], tpot: float, ttft: float
) -> list[dict[str, Any]]:
    """The rows with measurements that are the predictions times a factor."""
    found = predicted(gpuplan, folder, *rows)
    return [
        row | {"tpot_ms": tpot * float(one["tpot_ms"]), "ttft_ms": ttft * float(one["ttft_ms"])}
        for row, one in zip(rows, found, strict=True)
    ]


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [ROW | {"concurrency": c, "isl": isl} for c, isl in LOADS]


def test_a_shift_is_learnt_and_carries_over(gpuplan: Invoke, folder: Path, runs: list[dict[str, Any]]) -> None:
    measured = shifted(gpuplan, folder, runs, 1.25, 1.6)
    result = gpuplan("calibrate", write(folder / "mine.csv", *measured), "-o", "efficiency.yaml")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "Qwen/Qwen3-32B, h100_sxm, vllm" in result.stdout
    (entry,) = json.loads((folder / "efficiency.yaml").read_text())["serving"]
    assert entry["num_runs"] == len(runs)
    assert entry["tpot_mape_before"] == pytest.approx(0.2, abs=0.001), "1 - 1/1.25"
    assert entry["tpot_mape_after"] < 0.03
    assert entry["ttft_mape_after"] < 0.5 * entry["ttft_mape_before"]
    other = ROW | {"concurrency": 32, "isl": 2000}
    (before,) = predicted(gpuplan, folder, other)
    (after,) = predicted(gpuplan, folder, other, calibration="efficiency.yaml")
    assert float(after["tpot_ms"]) == pytest.approx(1.25 * float(before["tpot_ms"]), rel=0.04)
    assert (before["source"], after["source"]) == ("calibrated", "measured")
    flags = ["--model", "Qwen/Qwen3-32B", "--device", "h100", "--tp", "2", "--concurrency", "32"]
    flags += ["--input-tokens", "2000", "--output-tokens", "200", "--calibration", "efficiency.yaml", "--json"]
    verdict = json.loads(gpuplan("estimate", *flags).stdout)["verdict"]
    (tpot,) = [one for one in verdict["metrics"] if one["name"] == "tpot_s"]
    assert 1e3 * tpot["value"] == pytest.approx(float(after["tpot_ms"]), rel=1e-5)


def test_it_holds_for_that_model_device_and_engine_alone(
    gpuplan: Invoke, folder: Path, runs: list[dict[str, Any]]
) -> None:
    measured = shifted(gpuplan, folder, runs, 1.25, 1.0)
    gpuplan("calibrate", write(folder / "mine.csv", *measured), "-o", "efficiency.yaml")
    for change in ({"backend": "sglang"}, {"system": "h200_sxm"}, {"model": "Qwen/Qwen3-8B"}):
        other = ROW | {"concurrency": 8} | change
        assert predicted(gpuplan, folder, other) == predicted(gpuplan, folder, other, calibration="efficiency.yaml")
    flags = ["--model", "Qwen/Qwen3-8B", "--device", "h100", "--concurrency", "32"]
    flags += ["--input-tokens", "2000", "--output-tokens", "200", "--calibration", "efficiency.yaml"]
    text = gpuplan("estimate", *flags).stdout
    assert "efficiency.yaml has no runs of Qwen/Qwen3-8B, h100_sxm, vllm: predicted without it" in text


def test_one_run_moves_it_part_of_the_way(gpuplan: Invoke, folder: Path, runs: list[dict[str, Any]]) -> None:
    measured = shifted(gpuplan, folder, runs, 1.5, 1.0)
    result = gpuplan("calibrate", write(folder / "one.csv", measured[3]), "--json")
    assert result.exit_code == 0
    assert "Qwen/Qwen3-32B, h100_sxm, vllm: only 1 run, which" in result.stderr
    (entry,) = json.loads(result.stdout)["serving"]
    assert 0.05 < entry["tpot_mape_after"] < entry["tpot_mape_before"]
    assert 1.0 < entry["multipliers"]["overall"] < 1.5
    (all_runs,) = json.loads(gpuplan("calibrate", write(folder / "all.csv", *measured), "-o", "-").stdout)["serving"]
    assert all_runs["tpot_mape_after"] < entry["tpot_mape_after"]


def test_runs_that_agree_change_nothing(gpuplan: Invoke, folder: Path, runs: list[dict[str, Any]]) -> None:
    measured = shifted(gpuplan, folder, runs, 1.0, 1.0)
    (entry,) = json.loads(gpuplan("calibrate", write(folder / "same.csv", *measured), "--json").stdout)["serving"]
    assert all(value == pytest.approx(1.0, abs=1e-3) for value in entry["multipliers"].values())


def test_only_what_was_measured_is_calibrated(gpuplan: Invoke, folder: Path, runs: list[dict[str, Any]]) -> None:
    measured = shifted(gpuplan, folder, runs, 1.2, 1.5)
    for row in measured:
        row["ttft_ms"] = ""
    unmeasured = ROW | {"concurrency": 2, "backend": "sglang"}
    document = json.loads(gpuplan("calibrate", write(folder / "tpot.csv", *measured, unmeasured), "--json").stdout)
    (entry,) = document["serving"]
    assert entry["ttft_mape_before"] is None
    assert set(entry["multipliers"]) == {"overall", "overhead", "prefill"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "mine.csv: has no measured ttft_ms or tpot_ms in any row"),
        ({"tpot_ms": "slow"}, "mine.csv:2: tpot_ms is 'slow'"),
        ({"tpot_ms": 0.02}, "under the predicted"),
        ({"tpot_ms": 20_000}, "check its unit"),
        ({"tpot_ms": 20, "model": "no/such"}, "mine.csv:2: model: the catalogue has no model"),
    ],
)
def test_bad_measurements_are_7(gpuplan: Invoke, folder: Path, change: dict[str, Any], told: str) -> None:
    result = gpuplan("calibrate", write(folder / "mine.csv", ROW | {"concurrency": 8} | change), "-o", "out.yaml")
    assert result.exit_code == 7, result.output
    assert told in result.stderr
    assert not (folder / "out.yaml").exists()


def test_usage(gpuplan: Invoke) -> None:
    assert gpuplan("calibrate").exit_code == 2
    assert gpuplan("calibrate", "none.csv").exit_code == 7
    assert gpuplan("calibrate", "--help").exit_code == 0


STEP = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h100_sxm", "gbs": 64, "seq": 4096, "framework": "llm_foundry"}
STEP |= {"zero": "fsdp"}
STEPS = [STEP | {"dp": 8, "mbs": mbs, "recompute": mode} for mbs in (1, 2, 4) for mode in ("none", "full")]


def steps(gpuplan: Invoke, times: float) -> list[dict[str, Any]]:
    """Step times that are the predictions times a factor."""
    made = []
    for row in STEPS:
        flags = ["--task", "train", "--model", row["model"], "--device", row["gpu"], "--dp", "8", "--zero", "3"]
        flags += ["--global-batch-size", "64", "--sequence-length", "4096", "--framework", "llm_foundry"]
        flags += ["--micro-batch-size", str(row["mbs"]), "--recompute", row["recompute"], "--json"]
        metrics = json.loads(gpuplan("estimate", *flags).stdout)["verdict"]["metrics"]
        step_s = next(one["value"] for one in metrics if one["name"] == "step_s")
        made.append(row | {"step_s": times * step_s})
    return made


def test_training_runs(gpuplan: Invoke, folder: Path) -> None:
    name = write(folder / "steps.csv", *steps(gpuplan, 1.3))
    result = gpuplan("calibrate", name, "--task", "train", "-o", "efficiency.yaml")
    assert result.exit_code == 0, result.stderr
    (entry,) = json.loads((folder / "efficiency.yaml").read_text())["training"]
    assert (entry["device"], entry["framework"], entry["num_runs"]) == ("h100_sxm", "llm_foundry", 6)
    assert entry["mape_before"] == pytest.approx(1 - 1 / 1.3, abs=1e-3)
    assert entry["mape_after"] < 0.03
    again = [row["step_s"] for row in steps(gpuplan, 1.0)]
    flags = ["--task", "train", "--model", STEP["model"], "--device", "h100", "--dp", "8", "--zero", "3", "--json"]
    flags += ["--global-batch-size", "64", "--sequence-length", "4096", "--framework", "llm_foundry"]
    metrics = json.loads(gpuplan("estimate", *flags, "--calibration", "efficiency.yaml").stdout)["verdict"]["metrics"]
    assert metrics[0]["value"] == pytest.approx(1.3 * again[0], rel=0.05)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"step_s": ""}, "steps.csv: has no measured step_s in any row"),
        ({"step_s": 40_000}, "check its unit"),
        ({"step_s": 10, "tp": 3}, "steps.csv:2: tensor_parallel_size does not divide"),
        ({"step_s": 10, "gpu": "h101"}, "steps.csv:2: gpu: the catalogue has no device"),
        ({"step_s": 10, "dp": 16}, "steps.csv:2: inter_node_bandwidth must be given: 16 GPUs in nodes of 8"),
    ],
)
def test_bad_training_runs_are_7(gpuplan: Invoke, folder: Path, change: dict[str, Any], told: str) -> None:
    name = write(folder / "steps.csv", STEP | {"dp": 8, "mbs": 1} | change)
    result = gpuplan("calibrate", name, "--task", "train")
    assert result.exit_code == 7, result.output
    assert told in result.stderr
