"""Which files a job depends on: those that were opened while its instance was read."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

#: Files of the installation are known by its version.
_ROOT = Path(__file__).resolve().parents[2]
OURS = (
    *(sysconfig.get_paths()[key] for key in ("stdlib", "purelib", "platlib")),
    str(_ROOT / "planner"),
    str(_ROOT / "formulations"),
)


class FilesRead:
    """Collects the files that this process opens for reading while it is watched. One in a process: hooks stay."""

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}
        self._watching = False
        sys.addaudithook(self._hook)

    def clear(self) -> None:
        """Forget all."""
        self._paths.clear()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Collect inside the block."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def digests(self) -> dict[str, str | None]:
        """SHA-256 by path."""
        return {path: digest(path) for path in self._paths}

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if self._watching and event == "open" and isinstance(args[0], str) and args[1] in ("r", "rb", None):
            path = os.path.realpath(args[0])
            if not path.startswith(OURS) and not path.endswith((".py", ".pyc", ".zip")):
                self._paths[path] = None


def digest(path: str) -> str | None:
    """SHA-256 of a file as it is now; None where it cannot be read."""
    try:
        status = os.stat(path)
        return _digest(path, status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _digest(path: str, mtime_ns: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged(files: Mapping[str, str | None]) -> bool:
    """All files are as they were."""
    return all(digest(path) == before for path, before in files.items())
