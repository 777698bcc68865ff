"""What every command shares: exit codes, errors told on stderr, and help in plain sections."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

#: Longer than any first sentence.
WHOLE = 500


class ExitCode(IntEnum):
    """What the caller learns without reading anything."""

    OK = 0
    CRASH = 1
    USAGE = 2
    INFEASIBLE = 3
    SHORT_OF_GAP = 4
    NO_PLAN = 5
    BROKEN = 6
    BAD_DESCRIPTION = 7
    #: As a shell reports a program whose reader went away.
    CLOSED_PIPE = 141


def tell(message: str) -> None:
    """One message on stderr, where everything goes that is not data."""
    typer.echo(message, err=True)


def report(error: Exception) -> ExitCode:
    """Tell an error and say which exit code it means."""
    from planner.errors import DescriptionError, PlannerError, RefusedError

    if isinstance(error, DescriptionError):
        files = list(dict.fromkeys(finding.path for finding in error.findings))
        for finding in sorted(error.findings, key=lambda one: (files.index(one.path), one.line or 0)):
            tell(str(finding))
        return ExitCode.BAD_DESCRIPTION
    if isinstance(error, RefusedError):
        tell(f"gpuplan: {error}")
        return ExitCode.USAGE
    if os.environ.get("GPUPLAN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    else:
        kind = "" if isinstance(error, PlannerError) else f"{type(error).__name__}: "
        tell(f"gpuplan: internal error: {kind}{error} (GPUPLAN_DEBUG=1 shows where)")
    return ExitCode.CRASH


def keep_stdout() -> None:
    """Keep stdout for what Python writes, and silence the file descriptor 1: only solvers print there.

    HiGHS (OR-Tools 9.15) prints a line of its debugging for some models whatever its options say.
    """
    if sys.stdout is None:
        return
    sys.stdout.flush()
    try:
        own = os.dup(sys.stdout.fileno())
    except OSError:
        return
    _mute_stdout()
    sys.stdout = open(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115


def _mute_stdout() -> None:
    """Have the descriptor of stdout lead nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


class Group(TyperGroup):
    """A group whose help tells the whole first sentence of every command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The commands in their order, wrapped instead of cut off."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [
            (name, one.get_short_help_str(limit=WHOLE)) for name, one in found if one is not None and not one.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Command(TyperCommand):
    """A command whose function returns its exit code; errors become messages and exit codes.

    listing : a section of the help that costs imports, as its title and a function that gives its lines.
    """

    listing: ClassVar[tuple[str, Callable[[], Mapping[str, str]]] | None] = None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; always leaves by typer.Exit."""
        code: int
        try:
            code = super().invoke(ctx) or ExitCode.OK
            sys.stdout.flush()
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:
            _mute_stdout()  # or the interpreter complains about unwritten output when it ends
            code = ExitCode.CLOSED_PIPE
        except KeyboardInterrupt:
            tell("gpuplan: stopped; there is no plan")
            code = ExitCode.NO_PLAN
        except Exception as error:
            code = report(error)
        raise typer.Exit(int(code))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments and options under the title of their panel, then the listing."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(param, "rich_help_panel", None) or kind, []).append(record)
        if self.listing is not None:
            title, lines = self.listing
            panels[title] = list(lines().items())
        # Options of no panel, --help among them, come after those that the command is about.
        panels |= {"Options": panels.pop("Options", [])}
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)
