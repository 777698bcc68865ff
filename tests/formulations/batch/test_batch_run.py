"""Batches that meet mishaps: bad instances, workers that hang, die or eat memory, and runs that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_cases import MISCHIEF, with_rate, write_fleet

from formulations.batch.jobs import Settings, read_jobs
from formulations.batch.results import read_rows
from formulations.batch.run import Shard, run_batch
from planner.errors import OptionError

ROOT = Path(__file__).resolve().parents[3]
WORK = Settings(time_limit_s=20, work_limit=1000)


@pytest.fixture
def night(tmp_path: Path) -> Path:
    folder = tmp_path / "night"
    folder.mkdir()
    return folder


def run(where: Path, output: Path, settings: Settings = WORK, **options: Any) -> dict[str, dict[str, Any]]:
    """Run a batch; its records by job."""
    run_batch(read_jobs(str(where)), str(output), settings, **options)
    return records(output)


def records(output: Path) -> dict[str, dict[str, Any]]:
    """Records by job; each is there once."""
    rows = [row for row in read_rows(str(output)) if "gpuplan_batch" not in row]
    found = {row["job"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def answers(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {
        name: (row["key"], row["end"], row["document"]["plan"], row["document"]["outcome"]["objective"])
        for name, row in found.items()
    }


def test_a_bad_instance_is_recorded_and_the_others_run(night: Path, tmp_path: Path) -> None:
    write_fleet(night, "good")
    write_fleet(night, "bad", headroom=-1)
    (night / "torn.json").write_text('{"problem": "fleet",')
    (night / "none.json").symlink_to(tmp_path / "gone.json")
    (night / "list.txt").write_text("good.json\nbad.json\ntorn.json\nnone.json\n")
    found = run(night / "list.txt", tmp_path / "r.jsonl", workers=1)
    assert {name: row["end"] for name, row in found.items()} == {
        "good.json": "done", "bad.json": "invalid", "torn.json": "invalid", "none.json": "invalid",
    }  # fmt: skip
    assert "bad.json:1" in found["bad.json"]["errors"][0]
    assert "headroom" in found["bad.json"]["errors"][0]
    assert "No such file" in found["none.json"]["errors"][0]
    assert found["good.json"]["document"]["outcome"]["objective"] == 3.0


def test_resume_repeats_only_what_changed_or_is_missing(night: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_fleet(night, name)
    output = tmp_path / "r.jsonl"
    run(night, output, workers=1)
    before = output.read_bytes()
    run(night, output, workers=1, resume=True)
    assert output.read_bytes() == before
    write_fleet(night, "b", demand=with_rate(5))
    seen: list[str] = []

    def see(progress: Any) -> None:
        if progress.record is not None:
            seen.append(progress.record["job"])

    run_batch(read_jobs(str(night)), str(output), WORK, workers=1, resume=True, on_progress=see)
    assert seen == ["b.json"]
    last = [row for row in read_rows(str(output)) if row.get("job") == "b.json"][-1]
    assert last["document"]["outcome"]["objective"] == 6.0


def test_a_job_depends_on_the_files_that_its_instance_names(night: Path, tmp_path: Path) -> None:
    (night / "loads.csv").write_text("layer,expert,count\n0,0,1\n0,1,3\n")
    instance = {
        "problem": "experts", "name": "e", "num_gpus": 2, "gpus_per_node": 2, "num_slots": 2,
        "loads": [{"file": "loads.csv", "name": "day", "weight": 1}],
    }  # fmt: skip
    (night / "e.json").write_text(json.dumps(instance))
    found = run(night, tmp_path / "r.jsonl", Settings(method="eplb"), workers=1)["e.json"]
    assert found["end"] == "done", found["errors"]
    assert list(found["files"]) == [str((night / "loads.csv").resolve())]
    (night / "loads.csv").write_text("layer,expert,count\n0,0,2\n0,1,3\n")
    run_batch(read_jobs(str(night)), str(tmp_path / "r.jsonl"), Settings(method="eplb"), workers=1, resume=True)
    assert len(list(read_rows(str(tmp_path / "r.jsonl")))) == 3


def test_workers_that_hang_eat_or_die_take_only_their_own_job(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker after the other in one slot; the last job runs on the one that started after all."""
    for name in ("dies", "eats", "raises", "sleeps", "tame"):
        write_fleet(night, name)
    monkeypatch.setattr("formulations.batch.slot.PROGRAM", MISCHIEF)
    settings = Settings(time_limit_s=5, hard_time_limit_s=10, memory_limit_bytes=2**30)
    found = run(night, tmp_path / "r.jsonl", settings, workers=1)
    assert {name: row["end"] for name, row in found.items()} == {
        "dies.json": "died", "eats.json": "memory_limit", "raises.json": "crashed", "sleeps.json": "hard_time_limit",
        "tame.json": "done",
    }  # fmt: skip
    assert found["dies.json"]["errors"] == ["the worker died (signal SIGABRT): last words"]
    assert "1.074e+09 bytes" in found["eats.json"]["errors"][0]
    assert "did not keep its limit of 5 s" in found["sleeps.json"]["errors"][0]
    assert found["raises.json"]["errors"][0] == "ZeroDivisionError: on purpose"
    assert "mischief" in found["raises.json"]["errors"][1]


def test_shards_together_are_the_whole(night: Path, tmp_path: Path) -> None:
    for rate in range(1, 6):
        write_fleet(night, f"f{rate}", demand=with_rate(rate))
    parts = [run(night, tmp_path / f"r{k}.jsonl", shard=Shard(k, 2), workers=1) for k in (1, 2)]
    assert [len(part) for part in parts] == [3, 2]
    assert answers({**parts[0], **parts[1]}) == answers(run(night, tmp_path / "whole.jsonl", workers=1))


SCRIPT = """
import sys
from formulations.batch.jobs import Settings, read_jobs
from formulations.batch.run import run_batch
run_batch(read_jobs(sys.argv[1]), sys.argv[2], Settings(time_limit_s=20, work_limit=1000), workers=2, resume=True)
"""


def test_killed_again_and_again_then_resumed_equals_an_uninterrupted_run(night: Path, tmp_path: Path) -> None:
    """The process is killed at random moments, its workers with it; each result is there once."""
    for number in range(30):
        write_fleet(night, f"f{number}", demand=with_rate(1 + number))
    output = tmp_path / "killed.jsonl"
    chance = random.Random(5)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kills = 0
    for _ in range(8):
        size = output.stat().st_size if output.exists() else 0
        process = subprocess.Popen([sys.executable, "-P", "-c", SCRIPT, str(night), str(output)], env=environment)
        # From its next record on, so that it gets somewhere however slow the machine is.
        while process.poll() is None and not (output.exists() and output.stat().st_size > size):
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 1
    found = run(night, output, resume=True, workers=2)
    assert answers(found) == answers(run(night, tmp_path / "whole.jsonl", workers=2))
    assert len(found) == 30


@pytest.fixture
def dask_cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers as processes of their own, on loopback."""
    pytest.importorskip("distributed")
    address = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "distributed.cli.dask_" + arguments[0], *arguments[1:]],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
        )  # fmt: skip

    quiet = ("--no-dashboard", "--host", "127.0.0.1")
    processes = [start("scheduler", *quiet, "--port", "0", "--scheduler-file", str(address))]
    for _ in range(2):
        options = ("--nthreads", "1", "--no-nanny", "--scheduler-file", str(address))
        processes.append(start("worker", *quiet, *options, "--local-directory", str(tmp_path)))
    try:
        while not address.exists():
            assert processes[0].poll() is None
            time.sleep(0.05)
        yield json.loads(address.read_text())["address"], processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_results_also_when_it_loses_a_worker(
    night: Path, tmp_path: Path, dask_cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, processes = dask_cluster
    for number in range(12):
        write_fleet(night, f"f{number}", demand=with_rate(1 + number))
    # Both workers must have come before there is work for two.
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    seen = 0

    def lose_one(progress: Any) -> None:
        nonlocal seen
        seen += progress.record is not None
        if seen == 3:
            processes[1].kill()

    jobs = read_jobs(str(night))
    output = tmp_path / "dask.jsonl"
    run_batch(jobs, str(output), WORK, engine="dask", scheduler=address, on_progress=lose_one)
    assert answers(records(output)) == answers(run(night, tmp_path / "local.jsonl"))


def test_a_scheduler_that_does_not_answer_is_an_error(
    night: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    write_fleet(night, "a")
    monkeypatch.setattr("formulations.batch.run.SCHEDULER_S", 0.5)
    with pytest.raises(OptionError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        run(night, tmp_path / "r.jsonl", engine="dask", scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "r.jsonl").exists()
    with pytest.raises(OptionError, match="needs --scheduler"):
        run(night, tmp_path / "r.jsonl", engine="dask")
    with pytest.raises(OptionError, match="is for --engine dask"):
        run(night, tmp_path / "r.jsonl", scheduler="tcp://127.0.0.1:1")
