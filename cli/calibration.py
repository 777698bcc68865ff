"""Calibrations of `gpuplan calibrate`, and their report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cli.command import tell
from cli.render import console, printable, table
from planner.cost.serving.calibrate import calibrate, some_runs
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.fit import Runs
from planner.cost.serving.predict import ServingModel
from planner.cost.training.calibration import FITTED, fit_training
from planner.cost.training.coefficients import calibration
from planner.descriptions.efficiency import Efficiency, TrainingEfficiency
from planner.errors import DescriptionError
from planner.readers.csv_table import Findings
from planner.readers.serving_rows import ServingRows, read_serving_rows
from planner.readers.training_rows import read_training_rows
from planner.version import gpuplan_version

#: Runs below which the coefficients cannot be told apart.
FEW_RUNS = 3
#: Measured over predicted, or the other way round, from which on a unit must be wrong. Queues make any TTFT.
MOST_TIMES = {"tpot_ms": 30.0, "ttft_ms": 1000.0, "step_s": 30.0}


def of_serving(measurements: str, models: str | None) -> Efficiency:
    """Multipliers of each model, device and backend among the measured runs of a table.

    DescriptionError for a bad table, one without measurements, and times whose unit must be wrong.
    """
    rows = read_serving_rows(measurements, models)
    coefficients, reports = calibrate(_runs(rows), fitted())
    return Efficiency.of_serving(coefficients, reports, gpuplan_version())


def _runs(rows: ServingRows) -> Runs:
    measured = np.isfinite(rows.tpot_s) | np.isfinite(rows.ttft_s)
    if not measured.any():
        raise DescriptionError.single(rows.table.path, "has no measured ttft_ms or tpot_ms in any row")
    runs = Runs(ServingModel(rows.workers), rows.plans, rows.tpot_s, rows.ttft_s, [()] * len(rows.plans))
    found, findings = runs.model.predict(rows.plans), Findings(rows.table.path)
    for name, seen, predicted in (("ttft_ms", rows.ttft_s, found.ttft_s), ("tpot_ms", rows.tpot_s, found.tpot_s)):
        _doubt(findings, name, rows.table.lines, seen * 1e3, predicted * 1e3)
    findings.refuse()
    return some_runs(runs, np.flatnonzero(measured))


def of_training(measurements: str, models: str | None) -> Efficiency:
    """Coefficients of each device and framework among the training runs of a table; DescriptionError likewise."""
    entries, findings = [], Findings(measurements)
    for runs in read_training_rows(measurements, models):
        prior = calibration().coefficients(runs.device, runs.framework)
        seen = np.concatenate([one.step_s for one in runs.batches])
        before = np.concatenate([one.predicted_s(prior) for one in runs.batches])
        _doubt(findings, "step_s", runs.lines, seen, before)
        if findings.found:
            continue
        coefficients, fit = fit_training(runs.batches, prior)
        entries.append(
            TrainingEfficiency(
                device=runs.device,
                framework=runs.framework,
                num_runs=len(seen),
                coefficients=coefficients,
                mape_before=float(np.abs(before / seen - 1.0).mean()),
                mape_after=fit.mape,
            )
        )
    findings.refuse()
    return Efficiency(gpuplan_version=gpuplan_version(), training=tuple(entries))


def _doubt(
    findings: Findings,
    name: str,
    lines: Sequence[int],
    seen: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.float64],
) -> None:
    """Tell the measurements that are so far from any prediction that their unit must be another."""
    times = np.exp(np.abs(np.log(seen / predicted)))
    for index in np.flatnonzero(times > MOST_TIMES[name]).tolist():
        far = f"{times[index]:,.0f} times {'over' if seen[index] > predicted[index] else 'under'}"
        told = f"{name} of {seen[index]:.4g} is {far} the predicted {predicted[index]:.4g}: check its unit"
        findings.tell(lines[index], told)


def print_report(document: Efficiency, output: str | None) -> None:
    """Errors before and after, and what changed, for people."""
    out = console()
    if document.serving:
        rows = [
            (
                printable(", ".join(one.key)),
                str(one.num_runs),
                _change(one.tpot_mape_before, one.tpot_mape_after),
                _change(one.ttft_mape_before, one.ttft_mape_after),
                ", ".join(f"{name} x {value:.3g}" for name, value in one.multipliers.items()),
            )
            for one in document.serving
        ]
        out.print(table(("model, device, backend", "runs", "TPOT error", "TTFT error", "multipliers"), rows))
    if document.training:
        steps = [
            (
                printable(f"{one.device}, {one.framework}"),
                str(one.num_runs),
                _change(one.mape_before, one.mape_after),
                ", ".join(f"{name} {getattr(one.coefficients, name):.3g}" for name in FITTED),
            )
            for one in document.training
        ]
        out.print(table(("device, framework", "runs", "step time error", "coefficients"), steps))
    if output is not None:
        out.print(f"  written      {printable(output)}", soft_wrap=True)


def warn_of_few(document: Efficiency) -> None:
    """Tell what rests on very few runs."""
    for names, count in _sizes(document):
        if count < FEW_RUNS:
            runs = "only 1 run" if count == 1 else f"only {count} runs"
            tell(f"gpuplan: {printable(names)}: {runs}, which cannot tell the coefficients apart")


def _sizes(document: Efficiency) -> Iterator[tuple[str, int]]:
    yield from ((", ".join(one.key), one.num_runs) for one in document.serving)
    yield from ((f"{one.device}, {one.framework}", one.num_runs) for one in document.training)


def _change(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.1%} -> {after:.1%}"
