"""Keeps what a solver's C++ prints away from standard output, where data goes.

HiGHS 1.12 (OR-Tools 9.15) prints "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();" past its
own log settings (ERGO-Code/HiGHS issue 2783). C's `stdout` is a stream of its own, which Python's `sys.stdout` does not
use: while a solver runs it is one that leads nowhere. The file descriptor stays as it is, so that other threads may
print, and so that a run that is left behind after an interrupt does not take the answer with it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_lock = threading.Lock()
_running = 0
_kept: int | None = None


@contextmanager
def silent_c_stdout() -> Iterator[None]:
    """C's printf leads nowhere until the last of the runs inside has ended.

    Only where `stdout` is a variable of the C library that may be set: glibc and macOS. Elsewhere nothing happens.
    """
    global _running, _kept
    found = _streams()
    if found is None:
        yield
        return
    stream, nowhere = found
    with _lock:
        if _running == 0:
            _kept, stream.value = stream.value, nowhere
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                stream.value, _kept = _kept, None


@cache
def _streams() -> tuple[ctypes.c_void_p, int] | None:
    """The variable that holds C's standard output, and a stream that leads nowhere."""
    if sys.platform == "darwin":
        name = "__stdoutp"
    elif platform.libc_ver()[0] == "glibc":
        name = "stdout"
    else:
        return None
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    nowhere = library.fopen(os.devnull.encode(), b"w")
    return None if nowhere is None else (ctypes.c_void_p.in_dll(library, name), nowhere)
