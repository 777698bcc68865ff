"""Training coefficients and memory margin from the published runs, with errors where each configuration is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.training_rows import Fields, measured_peaks, measured_steps, published
from planner.cost.training.calibration import (
    FITTED,
    MeasuredPeaks,
    MeasuredSteps,
    fit_memory,
    fit_training,
)
from planner.cost.training.coefficients import (
    FILE,
    CalibratedMemory,
    CalibratedTimes,
    TrainingCalibration,
    TrainingCoefficients,
)

#: What fits start from: a large product reaches three quarters of the peak, flash attention about half of that, links
#: three quarters (nccl-tests: some 230 of 300 GB/s in an A100 node). narrow_gemm is half a tile of 128, the size of
#: matrix-unit kernels; no published row identifies it.
PRIOR = TrainingCoefficients(
    gemm_efficiency=0.75,
    narrow_gemm=64.0,
    attention_efficiency=0.35,
    traffic=1.3,
    link_efficiency=0.75,
    overlap=0.0,
)
#: FSDP fetches the next layer while one computes; Megatron-LM of 2021 and 2022 reduced gradients after the last one.
FSDP_OVERLAP = 0.8


@dataclass(frozen=True)
class Fitted:
    """One GPU and framework: which rows, and what is left out together."""

    gpu: str
    framework: str
    overlap: float
    keep: Callable[[Fields], bool]
    left_out: Callable[[Fields], str]
    split: str
    source: str


def _is_megatron(row: Fields) -> bool:
    return row["source"] in ("megatron_sc21", "korthikanti22") and row["metric"] in ("iter_time", "iter_time_derived")


def _is_fsdp(gpu: str) -> Callable[[Fields], bool]:
    def keep(row: Fields) -> bool:
        printed = row["source"] == "llm_foundry" and row["metric"] == "tokens_per_gpu_s"
        return printed and row["gpu"] == gpu and row["precision"] == "bf16"

    return keep


def _fsdp(gpu: str, printed: str) -> Fitted:
    return Fitted(
        gpu=gpu,
        framework="llm_foundry",
        overlap=FSDP_OVERLAP,
        keep=_is_fsdp(printed),
        left_out=lambda row: row["model"],
        split="each model size left out",
        source="mosaicml/llm-foundry scripts/train/benchmarking README: PyTorch FSDP, flash attention",
    )


FITS = (
    Fitted(
        gpu="a100_sxm",
        framework="megatron",
        overlap=0.0,
        keep=_is_megatron,
        left_out=lambda row: row["id"],
        split="each configuration left out; every row is one",
        source="arXiv 2104.04473 Table 1 and arXiv 2205.05198 Table 5: Megatron-LM",
    ),
    _fsdp("a100_sxm", "A100-80G-SXM"),
    _fsdp("a100_sxm_40gb", "A100-40G-SXM"),
    _fsdp("h100_sxm", "H100-80G-SXM"),
)
DEFAULT_SOURCE = "geometric mean of the calibrated rows; overlap of FSDP"
MEMORY_SOURCE = "BLOOM prequel chronicles: nvidia-smi peaks of Megatron-DeepSpeed on A100 80 GB"


def held_out(keys: Sequence[str], residuals: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Relative errors of every row, predicted by a fit without the rows of its key.

    residuals : from the weights of all rows to their log residuals.
    """
    names = np.array(keys)
    errors = np.empty(names.size)
    for name in np.unique(names):
        left = names == name
        errors[left] = np.expm1(residuals((~left).astype(np.float64))[left])
    return errors


def step_rows(fitted: Fitted, data: Path) -> tuple[list[Fields], list[MeasuredSteps]]:
    """Measured rows of one fit and the batches that they come in."""
    batches = list(measured_steps(published(fitted.keep, data)))
    return [row for rows, _ in batches for row in rows], [batch for _, batch in batches]


def prior_of(fitted: Fitted) -> TrainingCoefficients:
    """The common prior with the framework's own overlap."""
    return PRIOR.model_copy(update={"overlap": fitted.overlap})


def held_out_steps(fitted: Fitted, data: Path, left_out: Callable[[Fields], str] | None = None) -> np.ndarray:
    """Held-out relative errors of one fit's step times."""
    rows, batches = step_rows(fitted, data)
    key = left_out or fitted.left_out
    prior = prior_of(fitted)
    return held_out([key(row) for row in rows], lambda weights: fit_training(batches, prior, weights)[1].residuals)


def peak_rows(data: Path) -> tuple[list[Fields], list[MeasuredPeaks]]:
    """Measured peaks of BLOOM, in GB as the chronicles print them."""
    keep = published(lambda row: row["source"] == "bloom_prequel" and row["metric"] == "peak_mem", data)
    batches = list(measured_peaks(keep, 1e9))
    return [row for rows, _ in batches for row in rows], [batch for _, batch in batches]


def held_out_peaks(data: Path, left_out: Callable[[Fields], str] = lambda row: row["id"]) -> np.ndarray:
    """Held-out relative errors of the memory margin."""
    rows, batches = peak_rows(data)
    return held_out([left_out(row) for row in rows], lambda weights: fit_memory(batches, weights=weights)[1].residuals)


def fit_times(fitted: Fitted, data: Path) -> CalibratedTimes:
    """One row of the catalogue."""
    rows, batches = step_rows(fitted, data)
    coefficients, result = fit_training(batches, prior_of(fitted))
    return CalibratedTimes(
        gpu=fitted.gpu,
        framework=fitted.framework,
        coefficients=_rounded(coefficients),
        rows=len(rows),
        mape=round(result.mape, 4),
        held_out_mape=round(float(np.abs(held_out_steps(fitted, data)).mean()), 4),
        split=fitted.split,
        source=fitted.source,
        date=date.today().isoformat(),
    )


def fit_margin(data: Path) -> CalibratedMemory:
    """The memory row of the catalogue."""
    rows, batches = peak_rows(data)
    margin, result = fit_memory(batches)
    return CalibratedMemory(
        margin=margin.model_copy(
            update={
                "fixed_bytes": round(margin.fixed_bytes / 1e6) * 1e6,
                "states_factor": round(margin.states_factor, 4),
                "activations_factor": round(margin.activations_factor, 4),
            }
        ),
        rows=len(rows),
        mape=round(result.mape, 4),
        held_out_mape=round(float(np.abs(held_out_peaks(data)).mean()), 4),
        source=MEMORY_SOURCE,
        date=date.today().isoformat(),
    )


def pooled(times: Sequence[CalibratedTimes]) -> TrainingCoefficients:
    """Coefficients for what was never measured: what an unknown framework on an unknown GPU most likely has."""
    means = {
        name: float(np.exp(np.mean([np.log(getattr(row.coefficients, name)) for row in times]))) for name in FITTED
    }
    return _rounded(PRIOR.model_copy(update={**means, "overlap": FSDP_OVERLAP}))


def _rounded(coefficients: TrainingCoefficients) -> TrainingCoefficients:
    return coefficients.model_copy(update={name: round(getattr(coefficients, name), 4) for name in FITTED})


def main(data: Path, write: bool) -> None:
    """Fit everything, print it, and write the catalogue's file if asked."""
    folder = data.parent / "training"
    times = tuple(fit_times(fitted, folder) for fitted in FITS)
    made = TrainingCalibration(
        default=pooled(times), default_source=DEFAULT_SOURCE, times=times, memory=fit_margin(folder)
    )
    for row in (*made.times, made.memory):
        name = f"{row.gpu} {row.framework}" if isinstance(row, CalibratedTimes) else "memory margin"
        print(f"{name:28} {row.rows:4} rows  in sample {row.mape:.1%}  held out {row.held_out_mape:.1%}")
    if write:
        FILE.write_text(json.dumps(made.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
