"""Keeps what solvers' C++ prints on its own away from the standard streams.

HiGHS 1.12 (OR-Tools 9.15) prints "HighsMipSolverData::transformNewIntegerFeasibleSolution tmpSolver.run();" to standard
output, past its own log settings (ERGO-Code/HiGHS issue 2783); SCIP prints two lines about SCIPcatchEvent to standard
error whenever it may be interrupted. C's `stdout` and `stderr` are streams of its own, which Python's do not use: while
a solver runs they lead nowhere. File descriptors stay as they are, so that other threads may print, and so that a run
that is left behind after an interrupt does not take the answer with it.
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
from typing import Literal

Stream = Literal["stdout", "stderr"]

_lock = threading.Lock()
#: By stream: runs inside, and what it was before the first of them.
_running: dict[Stream, int] = {"stdout": 0, "stderr": 0}
_kept: dict[Stream, int | None] = {}


@contextmanager
def silent(stream: Stream) -> Iterator[None]:
    """What C prints to a standard stream leads nowhere until the last of the runs inside has ended.

    Only where the C library has a variable for it that may be set: glibc and macOS. Elsewhere nothing happens.
    """
    found = _streams(stream)
    if found is None:
        yield
        return
    variable, nowhere = found
    with _lock:
        if _running[stream] == 0:
            _kept[stream], variable.value = variable.value, nowhere
        _running[stream] += 1
    try:
        yield
    finally:
        with _lock:
            _running[stream] -= 1
            if _running[stream] == 0:
                variable.value = _kept.pop(stream)


@cache
def _streams(stream: Stream) -> tuple[ctypes.c_void_p, int] | None:
    """The variable that holds a standard stream of C, and a stream that leads nowhere."""
    if sys.platform == "darwin":
        name = f"__{stream}p"
    elif platform.libc_ver()[0] == "glibc":
        name = stream
    else:
        return None
    library = ctypes.CDLL(None)
    library.fopen.restype = ctypes.c_void_p
    nowhere = library.fopen(os.devnull.encode(), b"w")
    return None if nowhere is None else (ctypes.c_void_p.in_dll(library, name), nowhere)
