"""`gpuplan estimate --rows`: a table of serving runs with predictions as more columns."""

from __future__ import annotations

from cli.command import ExitCode
from planner.cost.serving.coefficients import fitted
from planner.cost.serving.predict import ServingModel
from planner.cost.serving.table import predicted_columns
from planner.descriptions.efficiency import read_efficiency
from planner.files import write_text
from planner.readers.serving_rows import read_serving_rows


def estimate_table(rows: str, models: str | None, output: str | None, calibration: str | None) -> ExitCode:
    """Read all, predict all, write all or nothing; errors are told by the caller."""
    coefficients = fitted() if calibration is None else read_efficiency(calibration).over(fitted())
    table = read_serving_rows(rows, models, measured=False)
    model = ServingModel(table.workers, coefficients)
    write_text(output or "-", table.with_columns(predicted_columns(model, table.plans, table.notes)))
    return ExitCode.OK
