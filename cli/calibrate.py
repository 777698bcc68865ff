"""`gpuplan calibrate`: what your own measurements change about predictions, as a file that other commands take."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cli.command import ExitCode
from cli.options import JsonOption


class Task(StrEnum):
    """What was measured."""

    SERVE = "serve"
    TRAIN = "train"


def calibrate(
    measurements: Annotated[
        str,
        typer.Argument(
            metavar="MEASUREMENTS.csv",
            help="serving runs as for `estimate --rows`, with measured ttft_ms or tpot_ms; "
            "or training runs with step_s; - is standard input",
        ),
    ],
    task: Annotated[Task, typer.Option(help="what was measured")] = Task.SERVE,
    models: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="folder of <org>--<name>.json configs, asked before the catalogue"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="efficiency.yaml", help="write what was found here; - is --json"),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Fit a handful of coefficients to your own runs: of each model, device and backend, or device and framework.

    One run moves the level, several tell overheads, prompts and waiting apart; few runs stay near the catalogue's
    fit. The file is taken by --calibration of other commands. Errors are those on the runs calibrated with.
    """
    from cli.calibration import of_serving, of_training, print_report, warn_of_few
    from planner.files import to_json, write_text

    document = (of_training if task is Task.TRAIN else of_serving)(measurements, models)
    text = to_json(document)
    if output is not None and output != "-":
        write_text(output, text)
    if as_json or output == "-":
        write_text("-", text)
    else:
        print_report(document, output)
    warn_of_few(document)
    return ExitCode.OK
