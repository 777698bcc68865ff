"""Tables of training runs: what a row means, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from planner.cost.training.plans import Recompute, Schedule
from planner.errors import DescriptionError
from planner.readers.training_rows import TrainingRuns, read_training_rows

DENSE = {"layers": 24, "hidden": 2304, "heads": 24, "ffn": 9216, "vocab": 51200}
ROW = {"gpu": "a100_sxm", "gbs": 512, "seq": 2048, "tp": 2, "n_gpus": 8, "mbs": 4, "step_s": 3.5}


def read(folder: Path, *rows: dict[str, Any]) -> tuple[TrainingRuns, ...]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path = folder / "runs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return read_training_rows(path)


def test_a_model_by_its_dimensions(tmp_path: Path) -> None:
    ((batch,),) = [runs.batches for runs in read(tmp_path, DENSE | ROW | {"recompute": "full", "schedule": "1f1b"})]
    # 24 layers of 12 h^2, and a vocabulary in and out of 51,200 h each.
    assert batch.model.total_parameters == 24 * 12 * 2304**2 + 2 * 51200 * 2304
    plan = batch.plans
    assert (plan.data_parallel_size[0], plan.num_gpus[0], plan.zero_stage[0]) == (4, 8, 1)
    assert (plan.recompute[0], plan.schedule[0]) == (Recompute.FULL, Schedule.ONE_F_ONE_B)
    assert (batch.step_s[0], batch.dtype, batch.device.name) == (3.5, "bf16", "a100_sxm")


def test_a_model_by_its_name_and_groups(tmp_path: Path) -> None:
    named = ROW | {"model": "Qwen/Qwen3-8B", "zero": "fsdp"}
    found = read(
        tmp_path, named, named | {"framework": "torchtitan"}, named | {"gpu": "h100", "precision": "FP8"}, named
    )
    assert [(runs.device, runs.framework, len(runs.batches), runs.lines) for runs in found] == [
        ("a100_sxm", "mine", 2, (2, 5)),
        ("a100_sxm", "torchtitan", 1, (3,)),
        ("h100_sxm", "mine", 1, (4,)),
    ]
    assert found[0].batches[0].plans.zero_stage[0] == 3
    assert found[2].batches[0].dtype == "fp8"


@pytest.mark.parametrize(
    ("metric", "value", "step_s"),
    [
        ("iter_time", 2.5, 2.5),
        # 512 sequences of 2,048 tokens on 8 GPUs.
        ("tokens_per_gpu_s", 65536, 512 * 2048 / (8 * 65536)),
        ("samples_per_gpu_s", 16, 512 / (8 * 16)),
    ],
)
def test_published_metrics(tmp_path: Path, metric: str, value: float, step_s: float) -> None:
    row = DENSE | ROW | {"step_s": "", "metric": metric, "value": value}
    skipped = DENSE | ROW | {"step_s": "", "metric": "mfu", "value": 40}
    (runs,) = read(tmp_path, skipped, row)
    assert len(runs.batches) == 1
    assert runs.batches[0].step_s[0] == pytest.approx(step_s)


def test_the_network_between_nodes(tmp_path: Path) -> None:
    row = DENSE | ROW | {"n_gpus": 32, "inter_node_bandwidth": "200Gbit/s"}
    (runs,) = read(tmp_path, row)
    assert runs.batches[0].network.inter_node_bytes_per_s == 25e9
    assert runs.batches[0].network.gpus_per_node == 8


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gbs": 0}, "2: gbs is '0'"),
        ({"tp": 5, "n_gpus": 10}, "2: tensor_parallel_size does not divide"),
        ({"n_gpus": 7}, "2: n_gpus 7 is not a multiple of tp x pp x cp, 2"),
        ({"n_gpus": 64}, "2: inter_node_bandwidth must be given: 64 GPUs in nodes of 8"),
        ({"n_gpus": 64, "inter_node_bandwidth": "fast"}, "2: inter_node_bandwidth: cannot read 'fast'"),
        ({"n_gpus": 64, "inter_node_bandwidth": "0"}, "2: inter_node_bandwidth"),
        ({"step_s": "-1"}, "2: step_s is '-1'"),
        ({"step_s": "nan"}, "2: step_s is 'nan'"),
        ({"step_s": "", "metric": "iter_time"}, "has no measured step_s"),
        ({"step_s": "", "metric": "iter_time", "value": "x"}, "2: value is 'x'"),
        ({"zero": "4"}, "2: unknown zero '4'"),
        ({"recompute": "some"}, "2: unknown recompute 'some'"),
        ({"precision": "int1"}, "2: unknown precision 'int1'"),
        ({"sp": "x"}, "2: unknown sp 'x'"),
        ({"heads": 23}, "2: .*heads must divide hidden"),
        ({"heads": ""}, "2: model: the catalogue has no model ''"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(DescriptionError, match=told):
        read(tmp_path, DENSE | ROW | change)
