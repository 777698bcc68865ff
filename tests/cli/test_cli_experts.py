"""`gpuplan experts`: flags instead of a file, flags over a file, and the studies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
FAST = ("--method", "eplb")
SHORT = ("--work-limit", "100", "--threads", "1")


def test_flags_alone(gpuplan: Invoke) -> None:
    flags = ("--loads", "day.npy:2", "--loads", "night.npy", "--num-gpus", "4", "--gpus-per-node", "2")
    result = gpuplan("experts", *flags, "--num-slots", "20", "--json", *FAST)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["instance"]["name"] == "day"
    named = {metric["name"] for metric in document["verdict"]["metrics"]}
    assert {"balancedness_mean[day]", "balancedness_mean[night]"} <= named


def test_flags_give_the_same_plan_as_the_file(gpuplan: Invoke) -> None:
    flags = ("--loads", "day.npy:2", "--loads", "night.npy", "--num-gpus", "4", "--redundant", "4")
    ours = json.loads(gpuplan("experts", *flags, "--gpus-per-node", "2", "--json", *FAST).stdout)
    theirs = json.loads(gpuplan("plan", "small.json", "--json", *FAST).stdout)
    assert ours["plan"] == theirs["plan"]
    assert ours["outcome"]["objective"] == pytest.approx(theirs["outcome"]["objective"])


def test_flags_override_the_file(gpuplan: Invoke) -> None:
    document = json.loads(gpuplan("experts", "small.json", "--num-slots", "24", "--json", *FAST).stdout)
    assert document["plan"]["num_slots"] == 24
    assert document["instance"]["name"] == "small"


def test_paths_are_relative_to_where_they_are_written(gpuplan: Invoke, folder: Path, instance: dict[str, Any]) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "mixed.json").write_text(json.dumps({**instance, "loads": [{"file": "../night.npy"}]}))
    from_file = gpuplan("experts", "inner/mixed.json", "--json", *FAST)
    from_flag = gpuplan("experts", "inner/mixed.json", "--loads", "night.npy", "--json", *FAST)
    assert from_file.exit_code == from_flag.exit_code == 0
    assert json.loads(from_file.stdout)["plan"] == json.loads(from_flag.stdout)["plan"]


def test_a_file_name_may_hold_a_colon(gpuplan: Invoke, folder: Path) -> None:
    (folder / "day.npy").rename(folder / "day:2.npy")
    result = gpuplan("experts", "--loads", "day:2.npy:3", "--num-gpus", "4", "--num-slots", "16", *FAST)
    assert result.exit_code == 0


def test_missing_flags_are_named(gpuplan: Invoke) -> None:
    result = gpuplan("experts")
    assert result.exit_code == 7
    assert result.stderr.splitlines() == ["--num-gpus: is required", "--num-slots: is required"]


def test_mistakes_are_located_at_the_flag_or_in_the_file(
    gpuplan: Invoke, folder: Path, instance: dict[str, Any]
) -> None:
    (folder / "bad.yaml").write_text(json.dumps({**instance, "num_gpus": 0}) + "\n")
    result = gpuplan("experts", "bad.yaml", "--gpu-memory", "80 bananas", "--loads", "day.npy:-1")
    assert result.exit_code == 7
    first, second, third = sorted(result.stderr.splitlines())
    assert first.startswith("--gpu-memory: unknown unit 'bananas'")
    assert second.startswith("--loads: 0.weight: Input should be greater than 0")
    assert third.startswith("bad.yaml:1:")


def test_slots_that_do_not_divide_are_refused_at_the_flag(gpuplan: Invoke) -> None:
    result = gpuplan("experts", "small.json", "--redundant", "3")
    assert result.exit_code == 7
    assert result.stderr.startswith("--redundant: 19 slots cannot be shared equally by 4 GPUs; use 16 or 20")


@pytest.mark.parametrize(
    "flags",
    [
        ("--num-slots", "20", "--redundant", "4"),
        ("--pareto", "--find-slots", "0.9"),
        ("--validate", "leave-one-out", "-o", "plan.json"),
        ("--validate", "leave-two-out"),
        ("--split", "uneven"),
        ("--pareto",),
    ],
)
def test_flags_that_contradict_exit_2(gpuplan: Invoke, flags: tuple[str, ...]) -> None:
    result = gpuplan("experts", "small.json", *flags)
    assert result.exit_code == 2
    assert result.stderr


def test_trace_brings_crossings(gpuplan: Invoke) -> None:
    flags = ("--trace", "trace.npy", "--comm", "chain", "--comm-weight", "0.5")
    result = gpuplan("experts", "small.json", *flags, *SHORT)
    assert result.exit_code == 0
    assert "of a token's steps change GPU" in result.stdout
    assert "communication" in result.stdout


def test_sample_adapts_the_loads(gpuplan: Invoke) -> None:
    result = gpuplan("experts", "small.json", "--sample", "night.npy", "--json", *FAST)
    assert result.exit_code == 0, result.stderr
    plain = json.loads(gpuplan("experts", "small.json", "--json", *FAST).stdout)
    assert json.loads(result.stdout)["instance"]["sha256"] != plain["instance"]["sha256"]


def test_leave_one_out(gpuplan: Invoke) -> None:
    result = gpuplan("experts", "small.json", "--validate", "leave-one-out", "--json", *SHORT)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert [row["name"] for row in answer["rows"]] == ["day", "night"]
    assert answer["rows"][0]["fitted_on"] == ["night"]
    assert answer["mean"]["plan"] == pytest.approx(sum(row["plan"] for row in answer["rows"]) / 2)
    table = gpuplan("experts", "small.json", "--validate", "leave-cluster-out", *SHORT)
    assert table.exit_code == 0
    assert f"{answer['mean']['baseline']:.4f}" in table.stdout


def test_find_slots(gpuplan: Invoke) -> None:
    result = gpuplan("experts", "small.json", "--find-slots", "0.8", "--json", *SHORT)
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["num_slots"] in [trial["num_slots"] for trial in answer["trials"] if trial["reached"]]
    flags = ("--loads", "day.npy", "--num-gpus", "4", "--find-slots", "0.6")
    without_slots = gpuplan("experts", *flags, *SHORT)
    assert without_slots.exit_code == 0
    assert "slots reach 0.6 mean balancedness" in without_slots.stdout


def test_find_slots_exits_3_when_none_can(gpuplan: Invoke, folder: Path) -> None:
    """Two experts with loads 9 and 1 on two GPUs of one slot each: balancedness is 5/9 whatever the plan."""
    skewed = {
        "problem": "experts",
        "name": "skewed",
        "num_gpus": 2,
        "num_slots": 2,
        "loads": [{"counts": [[9, 1]]}],
        "expert_bytes": 1,
        "gpu_memory_bytes": 1,
    }
    (folder / "skewed.json").write_text(json.dumps(skewed))
    result = gpuplan("experts", "skewed.json", "--find-slots", "0.9", *SHORT)
    assert result.exit_code == 3
    assert "no slot count can reach 0.9" in result.stdout


def test_pareto_alone_and_with_a_plan(gpuplan: Invoke, folder: Path) -> None:
    flags = ("experts", "small.json", "--trace", "trace.npy", "--comm", "chain", "--pareto", *SHORT)
    points = json.loads(gpuplan(*flags, "--json").stdout)["pareto"]
    assert len(points) > 1
    result = gpuplan(*flags, "-o", "plan.json")
    assert result.exit_code == 0
    assert "balance against communication" in result.stdout
    assert json.loads((folder / "plan.json").read_text())["plan"]["pareto"] == points
