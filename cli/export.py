"""`gpuplan export`: a plan as the file that an engine reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from cli.command import Command, ExitCode, tell
from cli.options import PlanArgument


def formats() -> Mapping[str, str]:
    """Export formats by name."""
    from planner.writers import WRITERS

    return {
        name: "; ".join(f"{problem}: {writer.summary}" for problem, writer in by_problem.items())
        for name, by_problem in WRITERS.items()
    }


def _complete_format(incomplete: str) -> list[tuple[str, str]]:
    return [(name, text) for name, text in formats().items() if name.startswith(incomplete)]


class ExportCommand(Command):
    """Lists the formats in its help."""

    listing = ("Formats", formats)


def export(
    plan: PlanArgument,
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="see below", autocompletion=_complete_format)],
    output: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="file to write; - is standard output")],
) -> int:
    """Export a plan to the format of an engine or tool. Exit 2 if the format cannot express the plan."""
    from planner.plan import read_document
    from planner.writers import export as write

    write(read_document(plan), to, output)
    if output != "-":
        tell(f"written {output}")
    return ExitCode.OK
