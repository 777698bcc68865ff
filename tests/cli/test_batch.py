"""`gpuplan batch` and `gpuplan results`: what they print, their exit codes, and bad input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

Invoke = Callable[..., Result]


def write_fleet(folder: Path, name: str, rate: float = 2, **offer: Any) -> None:
    """One offer of 3 USD/h that serves 4 requests a second."""
    size = {"model": "chat", "input_tokens": 100, "output_tokens": 100}
    fleet = {
        "problem": "fleet",
        "name": name,
        "models": [{"name": "chat"}],
        "offers": [{"name": "one", "device": "l4", "price_usd_per_hour": 3, **offer}],
        "demand": [{**size, "rate_per_s": rate}],
        "profiles": [{**size, "offer": "one", "max_rate_per_s": 4}],
    }
    (folder / f"{name}.json").write_text(json.dumps(fleet))


def test_a_sweep_prints_what_is_proven_and_writes_a_table(gpuplan: Invoke, folder: Path) -> None:
    write_fleet(folder, "f")
    sweep = ("--sweep", "demand.0.rate_per_s=2..10:3", "--sweep", "headroom=0,0.5")
    result = gpuplan("batch", "f.json", "-o", "r.jsonl", *sweep, "--table", "t.csv", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "6 jobs" in result.stdout
    assert "optimal" in result.stdout
    rows = list(csv.DictReader((folder / "t.csv").read_text().splitlines()))
    cost = {(float(row["demand.0.rate_per_s"]), float(row["headroom"])): float(row["objective"]) for row in rows}
    # 4 requests/s an instance of 3 USD/h.
    assert cost == {(2, 0): 3, (6, 0): 6, (10, 0): 9, (2, 0.5): 3, (6, 0.5): 9, (10, 0.5): 12}
    shown = gpuplan("results", "r.jsonl", "r.jsonl", "--json")
    assert json.loads(shown.stdout)["ends"] == {"optimal": 12}


def test_exit_code_is_that_of_the_worst_job(gpuplan: Invoke, folder: Path) -> None:
    (folder / "night").mkdir()
    write_fleet(folder / "night", "good")
    write_fleet(folder / "night", "full", max_count=0)
    result = gpuplan("batch", "night", "-o", "r.jsonl", "--workers", "1")
    assert result.exit_code == 3, result.output
    assert "full.json infeasible: " in result.stdout
    write_fleet(folder / "night", "bad", rate=-1)
    result = gpuplan("batch", "night", "-o", "r.jsonl", "--workers", "1", "--resume", "--accept-changes")
    assert result.exit_code == 7
    assert "2 of 3 jobs are finished already" in result.stderr
    assert "bad.json: invalid: " in result.stderr
    assert gpuplan("results", "r.jsonl", "--quiet").exit_code == 7


def test_mistakes_of_the_list_are_told_before_anything_runs(gpuplan: Invoke, folder: Path) -> None:
    write_fleet(folder, "f")
    (folder / "empty").mkdir()
    for arguments, code, told in (
        (("f.json", "--sweep", "headrom=1,2"), 7, "f.json: sweep headrom: unknown key"),
        (("f.json", "--sweep", "offers.two.gpus=1"), 7, "no entries are named 'two'"),
        (("f.json", "--sweep", "headroom"), 2, "--sweep is KEY=VALUES"),
        (("f.json", "--sweep", "headroom=0..1"), 2, "a range is first..last:points"),
        (("f.json", "--sweep", "headroom=0..1:3:log"), 2, "a range is first..last:points"),
        (("empty",), 7, "empty: holds no instance"),
        (("gone.yaml",), 7, "gone.yaml: cannot be read"),
        (("f.json", "--engine", "ray"), 2, "--engine is local or dask"),
        (("f.json", "--shard", "3/2"), 2, "a shard is k/n"),
        (("f.json", "--memory-limit", "4GB of it"), 2, "--memory-limit"),
        (("f.json", "--hard-limit", "1"), 2, "must not be below the time limit"),
        (("f.json", "--table", "t.xls"), 2, "a .csv, .parquet or .xlsx file"),
        (("f.json", "--time-limit", "nan"), 2, "time limit must be positive and finite"),
    ):
        result = gpuplan("batch", *arguments, "-o", "r.jsonl")
        assert result.exit_code == code, result.output
        assert told in result.stderr
        assert not (folder / "r.jsonl").exists()


def test_results_of_no_results_file(gpuplan: Invoke, folder: Path) -> None:
    (folder / "r.jsonl").write_text("no\n")
    result = gpuplan("results", "r.jsonl")
    assert result.exit_code == 7
    assert "r.jsonl:1: is no results file" in result.stderr
