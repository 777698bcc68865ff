"""Jobs over slots: on this machine, or on a Dask cluster by the same code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from joblib import Parallel, delayed, parallel_config

from formulations.batch.jobs import Job, Settings
from formulations.batch.results import Header, ResultsFile, list_hash
from formulations.batch.slot import close_slots, run_in_slot
from planner.errors import DescriptionError, MissingExtraError, OptionError
from planner.version import gpuplan_version

Engine = Literal["local", "dask"]
#: Seconds that a Dask scheduler has to answer.
SCHEDULER_S = 10.0


@dataclass(frozen=True, slots=True)
class Shard:
    """Every `count`-th job, from the `index`-th of 1 .. count on. 0 is the same as `count`."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if not (self.count >= 1 and 0 <= self.index <= self.count):
            raise OptionError(f"a shard is k/n with k in 1 .. n, got {self.index}/{self.count}")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`k/n`. Raises OptionError."""
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise OptionError(f"a shard is k/n such as 1/4, got {text!r}")
        return cls(int(index), int(count))

    @classmethod
    def from_environment(cls, environment: dict[str, str]) -> Shard | None:
        """The shard of a Slurm array task, or of a pod of an Indexed Job whose manifest also sets JOB_COMPLETIONS.

        Tasks of an array may be numbered from anything in any step; pods are numbered from 0. Raises OptionError.
        """
        names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS")
        more = ("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
        try:
            found = {name: int(environment[name]) for name in (*names, *more) if environment.get(name)}
        except ValueError as error:
            raise OptionError(f"the shard in the environment is no number: {error}") from None
        if "SLURM_ARRAY_TASK_ID" in found and "SLURM_ARRAY_TASK_COUNT" in found:
            first, step = found.get("SLURM_ARRAY_TASK_MIN", 0), max(1, found.get("SLURM_ARRAY_TASK_STEP", 1))
            count = max(1, found["SLURM_ARRAY_TASK_COUNT"])
            return cls((found["SLURM_ARRAY_TASK_ID"] - first) // step % count + 1, count)
        if "JOB_COMPLETION_INDEX" in found:
            if "JOB_COMPLETIONS" not in found:
                raise OptionError(
                    "JOB_COMPLETION_INDEX is set, but not how many there are: give --shard k/n, or set"
                    " JOB_COMPLETIONS to the Job's completions"
                )
            count = max(1, found["JOB_COMPLETIONS"])
            return cls(found["JOB_COMPLETION_INDEX"] % count + 1, count)
        return None

    def of(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of this shard; those of all shards are all jobs, each once."""
        return [job for place, job in enumerate(jobs, start=1) if place % self.count == self.index % self.count]

    def __str__(self) -> str:
        return f"{self.index % self.count or self.count}/{self.count}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Jobs of this run: all, those that earlier runs finished, and the record that just came (None at first)."""

    num_jobs: int
    num_before: int
    record: dict[str, Any] | None


def run_batch(
    jobs: Sequence[Job],
    output: str,
    settings: Settings | None = None,
    *,
    workers: int | None = None,
    engine: Engine = "local",
    scheduler: str | None = None,
    shard: Shard | None = None,
    resume: bool = False,
    accept_changes: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Solve jobs into a results file; what it holds already is not solved again with `resume`.

    workers : at once; None is every core, or every thread of the cluster. Raises DescriptionError and OptionError
    before the first job; jobs that fail are records, not errors.
    """
    settings = settings or Settings()
    with _engine(engine, scheduler) as (config, threads):
        mine = list(jobs) if shard is None else shard.of(jobs)
        header = Header(
            gpuplan_version=gpuplan_version(),
            jobs_sha256=list_hash((job.name, job.values) for job in jobs),
            num_jobs=len(jobs),
            shard=None if shard is None else str(shard),
            settings=asdict(settings),
        )
        with ResultsFile(output, header, resume=resume, accept_changes=accept_changes) as results:
            _run(mine, settings, results, config, workers or threads, on_progress)


def _run(
    jobs: list[Job],
    settings: Settings,
    results: ResultsFile,
    config: AbstractContextManager[Any],
    workers: int,
    on_progress: Callable[[Progress], None],
) -> None:
    todo: list[Job] = []
    for job in jobs:
        try:
            if results.finished and results.has(job.payload(settings)["key"]):
                continue
        except DescriptionError:
            pass
        todo.append(job)
    before = len(jobs) - len(todo)
    on_progress(Progress(len(jobs), before, None))

    def record(job: Job, found: dict[str, Any]) -> None:
        row = {"key": found["key"], "job": job.name, "instance": job.path, "values": dict(job.values), **found}
        results.append(row)
        on_progress(Progress(len(jobs), before, row))

    def payloads() -> Iterator[Any]:
        for place, job in enumerate(todo):
            try:
                yield delayed(_one)(place, job.payload(settings))
            except DescriptionError as error:
                yield delayed(_unreadable)(place, job.name, [str(finding) for finding in error.findings])

    try:
        with config:
            # One job a task, and few tasks ahead: memory stays flat however long the list is.
            found = Parallel(n_jobs=workers, batch_size=1, pre_dispatch="2*n_jobs", return_as="generator_unordered")(
                payloads()
            )
            for place, row in found:
                record(todo[place], row)
    finally:
        close_slots()


def _one(place: int, payload: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    return place, {"key": payload["key"], **run_in_slot(payload)}


def _unreadable(place: int, name: str, errors: list[str]) -> tuple[int, dict[str, Any]]:
    """A job whose instance cannot be read has no key: it is tried again whenever it is asked for."""
    empty: dict[str, Any] = {"errors": errors, "document": None, "replanning": None, "files": {}, "seconds": 0.0}
    return place, {"key": f"unreadable {name}", "end": "invalid", **empty}


@contextmanager
def _engine(engine: Engine, scheduler: str | None) -> Iterator[tuple[AbstractContextManager[Any], int]]:
    """joblib's backend for it, and how many jobs it takes at once. Threads here: each waits for its worker process."""
    if engine == "local":
        if scheduler is not None:
            raise OptionError("--scheduler is for --engine dask")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        yield parallel_config(backend="threading"), cores
        return
    try:
        from distributed import Client
    except ImportError:
        raise MissingExtraError("--engine dask needs the extra gpuplan[dask]") from None
    if scheduler is None:
        raise OptionError("--engine dask needs --scheduler, the address of a running scheduler such as tcp://host:8786")
    try:
        client: Any = Client(scheduler, timeout=SCHEDULER_S, set_as_default=True)
    except (OSError, ValueError) as error:
        raise OptionError(f"no Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise OptionError(f"the Dask scheduler at {scheduler} has no workers")
        yield parallel_config(backend="dask"), threads
