"""Live progress of a search on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.text import Text

from cli.render import console, number, percent
from formulations.outcome import OnProgress, Progress


class _Display:
    """The latest moment of the search; the clock runs on between reports."""

    def __init__(self) -> None:
        self.latest: Progress | None = None
        self.seen_s = 0.0

    def __call__(self, progress: Progress) -> None:
        self.latest, self.seen_s = progress, time.monotonic()

    def __rich__(self) -> Text:
        progress = self.latest
        if progress is None:
            return Text("searching")
        left_s = progress.time_limit_s - progress.elapsed_s - (time.monotonic() - self.seen_s)
        fields = [f"{max(0.0, left_s):.0f} s left"]
        if progress.incumbent is not None:
            fields.append(f"incumbent {number(progress.incumbent)}")
        if progress.bound is not None:
            fields.append(f"bound {number(progress.bound)}")
        if progress.incumbent and progress.bound is not None:
            gap = (progress.incumbent - progress.bound) / abs(progress.incumbent)
            fields.append(f"gap {percent(max(0.0, gap))}")
        if progress.message:
            fields.append(progress.message)
        return Text("   ".join(fields), no_wrap=True, overflow="ellipsis")


@contextmanager
def watched(quiet: bool) -> Iterator[OnProgress | None]:
    """What to hand to a search as `on_progress`: shown on stderr if that is a terminal, else None."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    display = _Display()
    with Live(get_renderable=display.__rich__, console=console(stderr=True), refresh_per_second=5, transient=True):
        yield display
