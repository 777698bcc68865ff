"""The `gpuplan` program: its commands and nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.batch import batch, results
from cli.calibrate import calibrate
from cli.catalog import catalog, schema
from cli.check import check
from cli.command import Command, Group, keep_stdout
from cli.compare import compare
from cli.deploy import deploy
from cli.estimate import estimate
from cli.experts import experts
from cli.export import ExportCommand, export
from cli.fleet import fleet
from cli.imports import imports
from cli.options import DeployCommand, ExpertsCommand, FleetCommand, ParallelCommand, PodsCommand, SolveCommand
from cli.parallel import parallel
from cli.plan import plan
from cli.pods import pods
from cli.report import report
from cli.workbook import workbook

# Help is plain text: it starts faster than rich's panels and reads the same in a pipe.
app = typer.Typer(
    name="gpuplan",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=SolveCommand)(plan)
app.command(cls=ExpertsCommand)(experts)
app.command(cls=FleetCommand)(fleet)
app.command(cls=ParallelCommand)(parallel)
app.command(cls=SolveCommand)(batch)
app.command(cls=Command)(results)
app.command(cls=PodsCommand)(pods)
app.command(cls=DeployCommand)(deploy)
app.command(cls=Command)(check)
app.command(cls=Command)(compare)
app.command(cls=Command)(report)
app.command(cls=Command)(estimate)
app.command(cls=Command)(calibrate)
app.command(cls=ExportCommand)(export)
app.command(cls=SolveCommand)(workbook)
app.add_typer(imports, name="import")
app.add_typer(catalog, name="catalog")
app.command(cls=Command)(schema)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"gpuplan {version('gpuplan')}")
        except PackageNotFoundError:
            typer.echo("gpuplan 0+unknown")
        raise typer.Exit


@app.callback()
def gpuplan(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Plan LLM workloads on GPU clusters: each plan with an independent check, a bound and a gap."""


def main() -> None:
    """Run the program; leaves by SystemExit with the exit code of the command."""
    keep_stdout()
    app(prog_name="gpuplan")
