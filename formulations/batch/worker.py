"""A process that solves jobs one after another: each a line of JSON on its standard input, answered by a line.

It ends when its input closes, so it never outlives the process that started it, and when it is idle for long.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from formulations.batch.files import FilesRead
from formulations.batch.jobs import Settings, swept_source
from formulations.batch.replanning import replan
from formulations.in_force import in_force
from formulations.planning import plan, problem_of
from planner.errors import DescriptionError, RefusedError
from planner.overlay import over
from planner.plan import PlanDocument
from planner.version import gpuplan_version

#: An idle worker gives its memory back after these seconds; the next job starts another.
IDLE_S = 60.0
#: Characters of a traceback that a record keeps: its end.
TRACEBACK_CHARS = 4000


def solve_job(job: Mapping[str, Any], files: FilesRead) -> dict[str, Any]:
    """The record of one job: how it ended, the plan document or the errors, seconds, and the files that it read."""
    started = time.perf_counter()
    files.clear()
    record: dict[str, Any] = {"end": "done", "errors": [], "document": None, "replanning": None}
    try:
        if job["version"] != gpuplan_version():
            raise RefusedError(f"the job is for gpuplan {job['version']}, this worker runs {gpuplan_version()}")
        document, replanning = _solve(job, files)
        record |= {"document": document.model_dump(mode="json"), "replanning": replanning}
    except DescriptionError as error:
        record |= {"end": "invalid", "errors": [str(finding) for finding in error.findings]}
    except RefusedError as error:
        record |= {"end": "refused", "errors": [str(error)]}
    except MemoryError:
        record |= {"end": "memory_limit", "errors": ["out of memory"]}
    except Exception as error:
        where = "".join(traceback.format_exception(error))[-TRACEBACK_CHARS:]
        record |= {"end": "crashed", "errors": [f"{type(error).__name__}: {error}", where]}
    return {**record, "files": files.digests(), "seconds": time.perf_counter() - started}


def _solve(job: Mapping[str, Any], files: FilesRead) -> tuple[PlanDocument, dict[str, Any] | None]:
    options = Settings(**job["settings"]).options
    with files.watched():
        source = swept_source(job)
        if job["current"] is not None:
            source = over(source, in_force(source, job["current"], f"{job['name']}: current"))
    if job["current"] is None:
        with files.watched():
            problem = problem_of(source)
        return plan(problem, options=options), None
    with files.watched():
        asked = replan(source, job["move_price"], job["horizon_hours"])
    return asked(options)


@contextmanager
def _answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Answers go where standard output went; what solvers print there goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)

        def answer(record: dict[str, Any]) -> None:
            stream.write(json.dumps(record, allow_nan=False) + "\n")
            stream.flush()

        yield answer


def _read(jobs: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    # Nobody is left to hear an answer, so a job in progress ends too.
    os._exit(0)


def main() -> None:
    """Answer jobs until the input closes or nothing comes for long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    files = FilesRead()
    with _answers() as answer:
        while True:
            try:
                line = jobs.get(timeout=IDLE_S)
            except queue.Empty:
                os._exit(0)
            answer(solve_job(json.loads(line), files))
