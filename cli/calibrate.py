"""`gpuplan calibrate`: what your own measurements change about predictions, as a file that other commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import ExitCode, tell
from cli.options import JsonOption

if TYPE_CHECKING:
    from planner.cost.serving.fit import Runs
    from planner.descriptions.efficiency import Efficiency
    from planner.readers.serving_rows import ServingRows

#: Runs below which a group's levels are mostly the catalogue's.
FEW_RUNS = 3
#: Measured over predicted, or the other way round, from which on a unit must be wrong. Queues make any TTFT.
MOST_TIMES = {"tpot_ms": 30.0, "ttft_ms": 1000.0}


def calibrate(
    measurements: Annotated[
        str,
        typer.Argument(
            metavar="MEASUREMENTS.csv",
            help="serving runs as for `estimate --rows`, with measured ttft_ms or tpot_ms; - is standard input",
        ),
    ],
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
    """Fit a handful of multipliers to your own serving runs, for each model, device and backend among them.

    One run moves the level, several tell overheads, prompts and waiting apart; few runs stay near the catalogue's
    fit. The file is taken by --calibration of other commands. Errors are those on the runs calibrated with.
    """
    from planner.cost.serving.calibrate import calibrate as calibrate_runs
    from planner.cost.serving.coefficients import fitted
    from planner.descriptions.efficiency import Efficiency
    from planner.files import to_json, write_text
    from planner.readers.serving_rows import read_serving_rows
    from planner.version import gpuplan_version

    rows = read_serving_rows(measurements, models)
    runs = _runs(rows)
    coefficients, reports = calibrate_runs(runs, fitted())
    document = Efficiency.of_serving(coefficients, reports, gpuplan_version())
    text = to_json(document)
    if output not in (None, "-"):
        write_text(output, text)
    if as_json or output == "-":
        write_text("-", text)
    else:
        _print(document, output)
    for report in reports:
        if report.num_runs < FEW_RUNS:
            count = "only 1 run" if report.num_runs == 1 else f"only {report.num_runs} runs"
            tell(f"gpuplan: {', '.join(report.key)}: {count}, which cannot tell the multipliers apart")
    return ExitCode.OK


def _runs(rows: ServingRows) -> Runs:
    """The measured runs, compiled. DescriptionError when there are none, or when a unit must be wrong."""
    import numpy as np

    from planner.cost.serving.calibrate import some_runs
    from planner.cost.serving.fit import Runs
    from planner.cost.serving.predict import ServingModel
    from planner.errors import DescriptionError
    from planner.readers.csv_table import Findings

    measured = np.isfinite(rows.tpot_s) | np.isfinite(rows.ttft_s)
    if not measured.any():
        raise DescriptionError.single(rows.table.path, "has no measured ttft_ms or tpot_ms in any row")
    runs = Runs(ServingModel(rows.workers), rows.plans, rows.tpot_s, rows.ttft_s, [()] * len(rows.plans))
    found, findings = runs.model.predict(rows.plans), Findings(rows.table.path)
    for name, seen, predicted in (("ttft_ms", rows.ttft_s, found.ttft_s), ("tpot_ms", rows.tpot_s, found.tpot_s)):
        times = np.exp(np.abs(np.log(seen / predicted)))
        for index in np.flatnonzero(times > MOST_TIMES[name]):
            far = f"{times[index]:,.0f} times {'over' if seen[index] > predicted[index] else 'under'}"
            told = (
                f"{name} of {seen[index] * 1e3:.4g} is {far} the predicted {predicted[index] * 1e3:.4g}: check its unit"
            )
            findings.tell(rows.table.lines[index], told)
    findings.refuse()
    return some_runs(runs, np.flatnonzero(measured))


def _print(document: Efficiency, output: str | None) -> None:
    from cli.render import console, printable, table

    out = console()
    rows = [
        (
            f"{printable(one.model)}, {one.device}, {one.backend}",
            str(one.num_runs),
            _change(one.tpot_mape_before, one.tpot_mape_after),
            _change(one.ttft_mape_before, one.ttft_mape_after),
            ", ".join(f"{name} x {value:.3g}" for name, value in one.multipliers.items()),
        )
        for one in document.serving
    ]
    columns = ("model, device, backend", "runs", "TPOT error", "TTFT error", "multipliers")
    out.print(table(columns, rows))
    if output is not None:
        out.print(f"  written      {output}", soft_wrap=True)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.1%} -> {after:.1%}"
