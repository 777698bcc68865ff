"""Solve, write, print, and say by the exit code how it ended: shared by every command that plans."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.answers import answer, details
from cli.command import ExitCode
from cli.progress import watched
from cli.render import console, print_document, print_reasons
from formulations.kinds import Problem
from formulations.outcome import SolveOptions
from formulations.planning import plan
from planner.errors import DescriptionError
from planner.files import to_json, write_text
from planner.plan import PlanDocument


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where an answer goes. `output` '-' is the same as `as_json`."""

    output: str | None
    as_json: bool
    quiet: bool

    def __post_init__(self) -> None:
        """Refuse an output that cannot be written before anything is solved. Raises DescriptionError."""
        if self.path is None:
            return
        if Path(self.path).is_dir():
            raise DescriptionError.single(self.path, "cannot be written: is a folder")
        try:
            tempfile.TemporaryFile(dir=Path(self.path).parent).close()
        except OSError as error:
            raise DescriptionError.single(self.path, f"cannot be written: {error.strerror or error}") from None

    @property
    def path(self) -> str | None:
        """The file to write, if any."""
        return None if self.output == "-" else self.output

    def deliver(self, document: PlanDocument, problem: Any) -> None:
        """Write the document and print it, or its summary."""
        text = to_json(document)
        if self.path is not None:
            write_text(self.path, text)
        if self.as_json or self.output == "-":
            sys.stdout.write(text)
        elif self.path is None or not self.quiet:
            print_document(console(), document, answer(document, problem), details(document, problem), self.path)
            return
        if document.plan is None:
            print_reasons(console(stderr=True), document.outcome)


def run_plan(
    problem: Problem,
    options: SolveOptions,
    delivery: Delivery,
    finish: Callable[[Any], PlanDocument] = lambda document: document,
) -> ExitCode:
    """Solve and deliver; `finish` may add to the document."""
    with watched(delivery.quiet) as on_progress:
        document = finish(plan(problem, options=options, on_progress=on_progress))
    delivery.deliver(document, problem)
    return exit_code(document, options.relative_gap)


def exit_code(document: PlanDocument, asked_gap: float | None) -> ExitCode:
    """What the outcome means to a caller who asked for this gap."""
    outcome = document.outcome
    if outcome.status == "infeasible":
        return ExitCode.INFEASIBLE
    if document.plan is None:
        return ExitCode.NO_PLAN
    if document.verdict is not None and not document.verdict.feasible:
        return ExitCode.BROKEN
    if asked_gap is None or outcome.status == "optimal":
        return ExitCode.OK
    return ExitCode.SHORT_OF_GAP if outcome.gap is None or outcome.gap > asked_gap else ExitCode.OK


def print_json(value: Any) -> None:
    """A value that is no document, as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
