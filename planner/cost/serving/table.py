"""Predictions of a whole table of plans as text columns, in the units of spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from planner.cost.serving.intervals import factors, source
from planner.cost.serving.notes import memory_note
from planner.cost.serving.predict import ServingModel, ServingPlans

FloatArray = npt.NDArray[np.float64]

#: Significant digits of a time or rate: more than any prediction is good for.
DIGITS = 6
COLUMNS = (
    "ttft_ms", "ttft_low_ms", "ttft_high_ms", "tpot_ms", "tpot_low_ms", "tpot_high_ms",
    "output_tok_s_gpu", "memory_bytes", "admitted_concurrency", "source", "note",
)  # fmt: skip


def predicted_columns(model: ServingModel, plans: ServingPlans, notes: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """COLUMNS as text, [plans] each; nothing is ever empty but a note.

    Of each time the mean, and the ends of the interval that holds 80 % of measurements; memory_bytes is on the
    fullest GPU. notes : what was assumed of each plan, [plans]; what its memory means for it is added.
    """
    found, w = model.predict(plans), plans.worker
    columns: dict[str, list[str]] = {}
    for name, seconds in (("ttft", found.ttft_s), ("tpot", found.tpot_s)):
        factor = factors(model.coefficients, model.workers, name)[w]
        for end, value in (("", seconds), ("_low", seconds / factor), ("_high", seconds * factor)):
            columns[f"{name}{end}_ms"] = _numbers(value * 1e3)
    columns["output_tok_s_gpu"] = _numbers(found.output_tokens_per_s_per_gpu)
    columns["memory_bytes"] = [f"{value:.0f}" for value in found.memory_bytes]
    columns["admitted_concurrency"] = [f"{value:.0f}" for value in found.admitted_sequences]
    sources = [source(worker, model.coefficients) for worker in model.workers]
    columns["source"] = [sources[index] for index in w]
    each = zip(notes, plans.concurrency, found.running_sequences, found.admitted_sequences, strict=True)
    columns["note"] = ["; ".join(filter(None, (memory_note(*sizes), *told))) for told, *sizes in each]
    return columns


def _numbers(values: FloatArray) -> list[str]:
    """Decimal notation, as every spreadsheet reads it."""
    return [
        np.format_float_positional(value, precision=DIGITS, unique=False, fractional=False, trim="-")
        for value in values
    ]
