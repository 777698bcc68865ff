"""Runs a solver in a thread, so that the calling thread sees Ctrl-C and can show progress meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from formulations.outcome import Budget

ResultT = TypeVar("ResultT")

#: Seconds between two looks at the budget.
POLL_S = 0.05


@dataclass(slots=True)
class Seen:
    """The best numbers so far. The solver's thread writes, the calling thread reports."""

    incumbent: float | None = None
    bound: float | None = None


def run_watched(
    work: Callable[[], ResultT], budget: Budget, seen: Seen, stop: Callable[[], None] | None
) -> ResultT | None:
    """The result of `work`, or its exception. `stop` is called until it ends once the budget is interrupted.

    With `stop` None an interrupt leaves the work running and returns None. Its thread is not a daemon: a
    process that exits under a running HiGHS aborts, so the exit waits for it.
    """
    results: list[ResultT] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, name="solver")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            if budget.interrupted and stop is None:
                break
            if budget.interrupted and stop is not None:
                stop()
            budget.report(seen.incumbent, seen.bound)
    except BaseException:
        # A second Ctrl-C, or a failing progress display: do not leave a search behind.
        while stop is not None and thread.is_alive():
            stop()
            thread.join(POLL_S)
        raise
    if failures:
        raise failures[0]
    return results[0] if results else None
