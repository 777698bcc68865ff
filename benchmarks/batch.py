"""What a batch costs beside the solving, and whether it survives being killed.

    python -m benchmarks.batch [--short] [--json] [--case NAME]

The jobs are fleets of two offers at as many rates, some milliseconds each, so that what is around them shows. `solving`
is the same plans one after another in this process, divided by the cores; `plain processes` solve them side by side, as
the workers do, each its part and nothing else. Both are measured in the same run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import Row, main
from formulations.batch.jobs import Job, Settings, read_jobs, swept_source
from formulations.batch.results import read_rows
from formulations.batch.run import run_batch
from formulations.planning import plan, problem_of

ROOT = Path(__file__).resolve().parents[1]
INSTANCE = ROOT / "instances" / "fleet" / "two_offers.yaml"
SETTINGS = Settings(time_limit_s=20, work_limit=1000)


def sweep(num_jobs: int) -> list[Job]:
    """The instance at so many rates."""
    rates = [1 + 9 * number / num_jobs for number in range(num_jobs)]
    return read_jobs(str(INSTANCE), {"demand.0.rate_per_s": rates})


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def overhead(short: bool) -> Iterator[Row]:
    """Wall clock beside the pure solving on as many cores, and what the first and each job cost."""
    jobs = sweep(200 if short else 2000)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        first: list[float] = []

        def see(progress: Any) -> None:
            if progress.record is not None and not first:
                first.append(time.perf_counter() - started - progress.record["document"]["outcome"]["solve_s"])

        run_batch(jobs, str(Path(folder, "r.jsonl")), SETTINGS, on_progress=see)
        wall_s = time.perf_counter() - started
    payloads = [job.payload(SETTINGS) for job in jobs]
    plan(problem_of(swept_source(payloads[0])), options=SETTINGS.options)
    started = time.perf_counter()
    for payload in payloads:
        plan(problem_of(swept_source(payload)), options=SETTINGS.options)
    pure_s = (time.perf_counter() - started) / cores()
    case = f"{len(jobs)} plans"
    yield Row(case, "wall clock", wall_s, pure_s, f"solving on {cores()} cores", "s", "lower")
    yield Row(case, "wall clock over solving", wall_s / pure_s, 1.3, "asked", "ratio", "lower")
    plain_s = side_by_side(len(jobs))
    yield Row(case, "wall clock over plain processes", wall_s / plain_s, 1.3, "asked", "ratio", "lower")
    own_ms = (wall_s - first[0] - pure_s) * cores() / len(jobs) * 1e3
    yield Row(case, "of a core beside each job's solving", own_ms, 20.0, "asked", "ms", "lower")
    yield Row(case, "before the first answer", first[0], 2.0, "asked", "s", "lower")


PLAIN = """
import sys, time
from benchmarks.batch import SETTINGS, sweep
from formulations.batch.jobs import swept_source
from formulations.planning import plan, problem_of
num_jobs, first, step = map(int, sys.argv[1:])
payloads = [job.payload(SETTINGS) for job in sweep(num_jobs)[first::step]]
plan(problem_of(swept_source(payloads[0])), options=SETTINGS.options)
sys.stdin.readline()
started = time.perf_counter()
for payload in payloads:
    plan(problem_of(swept_source(payload)), options=SETTINGS.options)
print(time.perf_counter() - started)
"""


def side_by_side(num_jobs: int) -> float:
    """Seconds that as many processes as cores take for the plans, from when all are ready."""
    command = [sys.executable, "-c", PLAIN, str(num_jobs)]
    processes = [
        subprocess.Popen(
            [*command, str(first), str(cores())], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for first in range(cores())
    ]
    # Long enough for every one to have read its jobs.
    time.sleep(10.0)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0].split()[-1]) for process in processes)


def memory(short: bool) -> Iterator[Row]:
    """Resident memory of the parent, at a tenth of the jobs and at the end."""
    jobs = sweep(1000 if short else 10_000)
    own = psutil.Process()
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        run_batch(
            jobs,
            str(Path(folder, "r.jsonl")),
            SETTINGS,
            on_progress=lambda progress: seen.append(own.memory_info().rss),
        )
    early = max(seen[: len(seen) // 10]) / 2**20
    case = f"{len(jobs)} plans"
    yield Row(case, "parent's memory", max(seen) / 2**20, 300.0, "asked", "MiB", "lower")
    yield Row(case, "parent's growth after a tenth", max(seen) / 2**20 - early, None, "", "MiB", "lower")


SCRIPT = """
import sys
from benchmarks.batch import SETTINGS, sweep
from formulations.batch.run import run_batch
run_batch(sweep(int(sys.argv[1])), sys.argv[2], SETTINGS, resume=True)
"""


def killed(short: bool) -> Iterator[Row]:
    """Ended ten times by SIGKILL at random moments, then resumed: beside a run without interruption."""
    num_jobs, kills = (200, 3) if short else (2000, 10)
    chance = random.Random(11)
    with tempfile.TemporaryDirectory() as folder:
        output, whole = Path(folder, "killed.jsonl"), Path(folder, "whole.jsonl")
        done = 0
        while done < kills:
            size = output.stat().st_size if output.exists() else 0
            process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(num_jobs), str(output)], cwd=ROOT)
            while process.poll() is None and not (output.exists() and output.stat().st_size > size):
                time.sleep(0.02)
            time.sleep(chance.random())
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        run_batch(sweep(num_jobs), str(output), SETTINGS, resume=True)
        run_batch(sweep(num_jobs), str(whole), SETTINGS)
        rows, reference = list(_answers(output)), dict(_answers(whole))
    case = f"killed {done} times"
    yield Row(case, "results", len(rows), num_jobs, "jobs", "count", "lower")
    equal = sum(reference[name] == answer for name, answer in dict(rows).items())
    yield Row(case, "results equal to an uninterrupted run", equal, num_jobs, "jobs", "count", "higher")


def cluster(short: bool) -> Iterator[Row]:
    """Two Dask workers on loopback, one of them killed in the middle: beside the same jobs here."""
    jobs = sweep(60 if short else 500)
    with tempfile.TemporaryDirectory() as folder, dask_cluster(Path(folder)) as (address, workers):
        output, whole = Path(folder, "dask.jsonl"), Path(folder, "whole.jsonl")
        seen = 0

        def lose_one(progress: Any) -> None:
            nonlocal seen
            seen += progress.record is not None
            if seen == len(jobs) // 2:
                workers[0].kill()

        run_batch(jobs, str(output), SETTINGS, engine="dask", scheduler=address, on_progress=lose_one)
        run_batch(jobs, str(whole), SETTINGS)
        reference, rows = dict(_answers(whole)), list(_answers(output))
    equal = sum(reference[name] == answer for name, answer in rows)
    yield Row(
        "a cluster that loses a worker", "results equal to local ones", equal, len(jobs), "jobs", "count", "higher"
    )


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers of one thread as processes of their own: the address, and the workers."""
    from distributed import Client

    file = folder / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(
            [*command, "--scheduler-file", str(file), *arguments], env=environment, cwd=folder, **quiet
        )

    scheduler = start("scheduler", "--port", "0")
    workers = [start("worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]
    try:
        while not file.exists():
            time.sleep(0.05)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            address = client.scheduler.address
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def _answers(output: Path) -> Iterator[tuple[str, Any]]:
    """What does not depend on the clock, by job."""
    for row in read_rows(str(output)):
        if "gpuplan_batch" not in row:
            document = row["document"]
            yield row["job"], (row["key"], row["end"], document["plan"], document["outcome"]["objective"])


CASES = {"overhead": overhead, "memory": memory, "killed": killed, "cluster": cluster}

if __name__ == "__main__":
    main("batch", CASES)
