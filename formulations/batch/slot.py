"""One place where jobs run: a worker process of its own, ended when a job passes a limit, started anew when needed.

A process for each place, not a shared pool: a job that ignores its time limit, eats the memory or crashes the
interpreter takes nothing with it but itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from formulations.batch.jobs import Settings

#: How often the memory of a limited job is looked at.
MEMORY_EVERY_S = 0.05
#: Bytes of a dead worker's standard error that its job's record keeps: the end of it.
STDERR_BYTES = 2000
#: Seconds that a worker whose output has closed gets to exit.
EXIT_S = 5.0
#: Threads of the libraries below us: one solver thread a job.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PROGRAM = "from formulations.batch.worker import main; main()"


class Slot:
    """A worker process and its pipes. One thread runs jobs in it; `end` may come from another."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None
        self._running = threading.Lock()
        self.ended = False

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job's record; of a worker that died or was ended, one that says so."""
        with self._running:
            return self._run(job)

    def _run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        settings = Settings(**job["settings"])
        process = self._started()
        record: dict[str, Any] = {"errors": [], "document": None, "replanning": None, "files": {}}
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            # It was idle for long, or somebody ended it; a job that was never begun starts on a new one.
            self._close()
            return self._run(job)
        ended, line = self._answer(process, started + settings.ended_after_s, settings.memory_limit_bytes)
        if line is not None:
            record = json.loads(line)
        else:
            self._close(wait_s=EXIT_S if ended == "died" else 0.0)
            record |= {"end": ended, "errors": [self._why(ended, settings, process)]}
        return {**record, "seconds": time.perf_counter() - started}

    def _started(self) -> subprocess.Popen[bytes]:
        if self.ended:
            raise RuntimeError("the batch was stopped")
        if self._process is None or self._process.poll() is not None:
            self._close()
            if self._stderr is not None:
                self._stderr.close()
            # Kept open as long as the worker: what it says last is read when it has died.
            self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = subprocess.Popen(
                # -P: a folder named `planner` where the user happens to be is not ours.
                [sys.executable, "-P", "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
            )
        return self._process

    def _answer(
        self, process: subprocess.Popen[bytes], until: float, memory_limit_bytes: float | None
    ) -> tuple[str, bytes | None]:
        """How it ended, and the answer if there is one."""
        assert process.stdout is not None
        parts: list[bytes] = []
        while (left := until - time.perf_counter()) > 0:
            wait = left if memory_limit_bytes is None else min(left, MEMORY_EVERY_S)
            if select.select([process.stdout], [], [], wait)[0]:
                part = os.read(process.stdout.fileno(), 1 << 20)
                if not part:
                    return "died", None
                parts.append(part)
                if part.endswith(b"\n"):
                    return "done", b"".join(parts)
            elif memory_limit_bytes is not None and _resident_bytes(process.pid) > memory_limit_bytes:
                return "memory_limit", None
        return "hard_time_limit", None

    def _why(self, ended: str, settings: Settings, process: subprocess.Popen[bytes]) -> str:
        if ended == "hard_time_limit":
            return f"ended after {settings.ended_after_s:g} s: it did not keep its limit of {settings.time_limit_s:g} s"
        if ended == "memory_limit":
            return f"ended: it took more than {settings.memory_limit_bytes:.4g} bytes of memory"
        code = process.returncode
        how = f"exit code {code}" if code is None or code >= 0 else f"signal {signal.Signals(-code).name}"
        return f"the worker died ({how}){self._last_words()}"

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - STDERR_BYTES))
        text = self._stderr.read().decode(errors="replace").strip()
        return f": {text}" if text else ""

    def end(self) -> None:
        """End the worker, if any, and start no other; a thread that waits for it sees it die."""
        self.ended = True
        process = self._process
        if process is not None:
            process.kill()
        with self._running:
            self._close()
            if self._stderr is not None:
                self._stderr.close()

    def _close(self, wait_s: float = 0.0) -> None:
        """End the worker, if any. wait_s : for one that is dying by itself, so that its exit code is its own."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


_own = threading.local()
_all: list[Slot] = []


def run_in_slot(job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job in the slot of this thread, which is made on first use and kept."""
    slot: Slot | None = getattr(_own, "slot", None)
    if slot is None or slot.ended:
        slot = _own.slot = Slot()
        _all.append(slot)
    return slot.run(job)


def close_slots() -> None:
    """End every worker that this process started; a job in one of them is recorded as died, if anybody still asks."""
    for slot in _all:
        slot.end()
    _all.clear()
