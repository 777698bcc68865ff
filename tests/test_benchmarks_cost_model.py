"""Every case of the cost-model benchmark prints rows that can be read, and those that are exact are."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import Row
from benchmarks.cost_model import CASES
from benchmarks.cost_model_published import (
    REQUESTS,
    maximum_throughput,
    offline_tokens_per_s,
    published_rows,
    worker_of,
)
from planner import catalog
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.worker import ServingWorker

#: Rows of a case that are looked at: the first ones of cases that take long even in their short form.
FIRST = {"training": 1, "operators": 4, "speed": 4, "queueing": 8, "calibration": 2}


@pytest.fixture(autouse=True)
def _data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPLAN_SHARED_DATA", str(shared_data))


def rows(case: str) -> list[Row]:
    return list(islice(CASES[case](True), FIRST.get(case)))


@pytest.mark.parametrize("case", CASES)
def test_rows_are_well_formed(case: str) -> None:
    found = rows(case)
    assert found
    for row in found:
        assert row.case
        assert row.measure
        assert row.unit
        assert row.better in ("lower", "higher")
        assert math.isfinite(row.ours), row
        assert row.reference is None or (math.isfinite(row.reference) and row.reference_name), row
    names = [(row.case, row.measure) for row in found]
    assert len(set(names)) == len(names)


def test_every_exact_count_is_reached() -> None:
    for row in rows("models"):
        assert row.ours == row.reference, row.measure


def llama() -> ServingModel:
    model = catalog.model("meta-llama/Llama-3.1-8B-Instruct")
    return ServingModel([ServingWorker(model=model, device=catalog.device("h100_sxm"), backend="trtllm")])


def test_an_offline_run_is_whole_waves_and_a_rest() -> None:
    model, plans = llama(), ServingPlans.of([0], 1, 1024, 1024)
    slots = float(model.predict(plans).admitted_sequences[0])
    assert slots > 100

    def rate(sequences: float) -> float:
        return float(model.predict(ServingPlans.of([0], sequences, 1024, 1024)).output_tokens_per_s[0])

    one_wave = offline_tokens_per_s(model, plans, np.array([100.0]))
    assert one_wave == pytest.approx([rate(100)])
    whole = offline_tokens_per_s(model, plans, np.array([3 * slots]))
    assert whole == pytest.approx([rate(slots)])
    rest = offline_tokens_per_s(model, plans, np.array([slots + 100]))
    assert rest == pytest.approx([(slots + 100) / (slots / rate(slots) + 100 / rate(100))])


def test_parallelism_of_the_published_tables() -> None:
    """MoE runs have attention on every GPU and experts spread over all, whichever way the table puts it."""
    split = {}
    for row in published_rows("TensorRT-LLM perf-overview"):
        worker = worker_of(row, "trtllm")
        assert worker.num_gpus == int(row["n_gpus"]), row
        split[row["source"], row["model"], row["parallelism"]] = (
            worker.tensor_parallel_size,
            worker.pipeline_parallel_size,
            worker.data_parallel_size,
            worker.expert_parallel_size,
        )
    old, new = REQUESTS
    assert split[old, "Llama-3.1-405B", "TP8"] == (8, 1, 1, 1)
    assert split[old, "Llama-3.3-70B", "TP1,PP4"] == (1, 4, 1, 1)
    assert split[old, "Qwen3-235B-A22B", "TP8"] == (1, 1, 8, 8)
    assert split[new, "DeepSeek-R1-0528", "DEP4"] == (1, 1, 4, 4)
    assert split[new, "gpt-oss-120b", "TP1"] == (1, 1, 1, 1)


def test_published_figures_are_per_gpu() -> None:
    found = maximum_throughput()
    row = next(at for at, row in enumerate(found.rows) if row["unit"] == "tokens/s" and row["n_gpus"] == "8")
    assert found.published[row] == pytest.approx(float(found.rows[row]["value"]) / 8)
    assert (found.predicted > 0).all()
    assert found.dense.sum() == 141
