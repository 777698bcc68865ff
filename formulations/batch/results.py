"""The file of results: a line of JSON for the batch, then one for each job, written as jobs end and never rewritten.

A run that was killed leaves at most a torn last line, which the next run cuts off. One process at a time may hold the
file. A job counts as finished when a record has its key (see `jobs.Job.payload`) and the files that it read are as they
were; of several records of one name the last one counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from formulations.batch.files import unchanged
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import canonical_json

FORMAT = 1
#: How jobs end, in the order of a summary, and what it means.
ENDS = {
    "done": "the search ended: see the document",
    "invalid": "bad description",
    "refused": "an option that the instance's kind cannot honour",
    "crashed": "an error of ours",
    "died": "the worker process died",
    "hard_time_limit": "ended: it did not keep its time limit",
    "memory_limit": "ended: over the memory limit",
}
#: Largest record that is read: a plan document of a whole cluster is some tens of MB.
MAX_LINE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Header:
    """What a results file is of. Changed inputs are found job by job; a changed list or setting changes the header."""

    gpuplan_version: str
    jobs_sha256: str
    num_jobs: int
    shard: str | None
    settings: dict[str, Any] = field(default_factory=dict)

    def differences(self, other: dict[str, Any]) -> list[str]:
        """What another header, as it was read, has that is not so here, in words."""
        found = []
        if other.get("gpuplan_version") != self.gpuplan_version:
            found.append(f"it is of gpuplan {other.get('gpuplan_version')}, this is {self.gpuplan_version}")
        if other.get("jobs_sha256") != self.jobs_sha256:
            found.append(f"it is of another job list ({other.get('num_jobs')} jobs, now {self.num_jobs})")
        if other.get("shard") != self.shard:
            found.append(f"it is of shard {other.get('shard')}, this is {self.shard}")
        settings = other.get("settings")
        settings = settings if isinstance(settings, dict) else {}
        for name, value in self.settings.items():
            if settings.get(name) != value:
                found.append(f"it was solved with {name} {settings.get(name)}, now {value}")
        return found


class ResultsFile:
    """An open results file, locked. Use it as a context manager."""

    def __init__(self, path: str, header: Header, *, resume: bool, accept_changes: bool = False) -> None:
        """Raises DescriptionError (cannot be written, is no results file) and OptionError (exists, locked, differs)."""
        self.path = path
        self.finished: dict[str, dict[str, str | None]] = {}
        existed = Path(path).exists()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise DescriptionError.single(path, f"cannot be written: {error.strerror or error}") from None
        try:
            self._lock()
            size = os.fstat(self._fd).st_size
            if existed and size and not resume:
                raise OptionError(f"{path} exists: --resume goes on with it; otherwise remove it or name another")
            if size:
                self._take_up(header, accept_changes)
            else:
                self._write_header(header)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(f"{self.path} is held by another run; give each its own results file") from None

    def _take_up(self, header: Header, accept_changes: bool) -> None:
        found: dict[str, Any] | None = None
        for row in read_rows(self.path):
            if "gpuplan_batch" in row:
                found = row
            else:
                self.finished[str(row["key"])] = row["files"]
        os.ftruncate(self._fd, whole_bytes(self.path))
        if found is None:
            self._write_header(header)
            return
        differences = header.differences(found)
        if differences and not accept_changes:
            raise OptionError(
                f"{self.path} cannot be resumed: {'; '.join(differences)}. --accept-changes goes on all the same: what"
                " has changed is solved again"
            )
        if differences:
            self._write_header(header)

    def _write_header(self, header: Header) -> None:
        self.append({"gpuplan_batch": FORMAT, **asdict(header)})

    def has(self, key: str) -> bool:
        """A job of this key is finished, and what it read has not changed since."""
        files = self.finished.get(key)
        return files is not None and unchanged(files)

    def append(self, row: dict[str, Any]) -> None:
        """Write one whole line, or nothing. Raises DescriptionError when it cannot be written, as on a full disk."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._fd).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, before)
            message = f"cannot be written: {error.strerror or error}; what it holds is whole, --resume goes on"
            raise DescriptionError.single(self.path, message) from None

    def close(self) -> None:
        """Give the file and its lock back."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: str) -> Iterator[dict[str, Any]]:
    """The whole lines of a results file, headers included; a torn last line is left out.

    Raises DescriptionError, with the line, for a file that is none or that is damaged before its end.
    """
    headed = False
    with _opened(path) as file:
        for number in count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
                # The end, or a line that was not finished.
                return
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            headed = headed or (isinstance(row, dict) and row.get("gpuplan_batch") == FORMAT)
            if not headed:
                raise DescriptionError([Finding(path, "is no results file of `gpuplan batch`", number)])
            if not isinstance(row, dict) or not ("gpuplan_batch" in row or _is_record(row)):
                raise DescriptionError([Finding(path, "is damaged: this line is no record of a job", number)])
            yield row


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DescriptionError.single(path, f"cannot be read: {error.strerror or error}") from None


def _is_record(row: dict[str, Any]) -> bool:
    kinds: dict[str, type | tuple[type, ...]] = {
        "key": str,
        "job": str,
        "end": str,
        "files": dict,
        "errors": list,
        "seconds": (int, float),
    }
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


def whole_bytes(path: str) -> int:
    """Bytes up to the end of the last whole line."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def list_hash(names: Iterator[tuple[str, Any]]) -> str:
    """Hash of a job list: names and swept values, in order."""
    digest = hashlib.sha256()
    for name, values in names:
        digest.update(canonical_json([name, values]).encode())
    return digest.hexdigest()
