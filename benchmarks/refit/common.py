"""What the fits share: tables in, folds by configuration, a roofline, and the catalogue's file out."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from planner.cost.operators.grid import FloatArray
from planner.cost.operators.tables import FOLDER, CalibrationFile, Record
from planner.files import to_json

IntArray = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[np.generic]]

SOURCE = (
    "ai-dynamo/aiconfigurator @ 095f58a51c4ca8e61b66ec108d86f223f8d559ce, aic-core/src/aiconfigurator_core/systems/data"
)
LICENCE = "Apache-2.0 (NVIDIA)"
DATE = "2026-11-21"
FOLDS = 5
#: Log residuals beyond this count linearly in the fit of the roofline.
SOFT = 0.1
#: Where the search for (launch s, compute efficiency, memory efficiency) starts, and its limits: what large kernels
#: reach. Without the lower ones, poor use of a GPU by small kernels is booked on a peak that does not bind there, and
#: carries over badly (H200 to H100, prefill: 12 % off against 8 %); it belongs to the residuals. Efficiencies above 1
#: are caches: small operands of a repeated kernel stay in the L2 cache.
START = (1e-5, 0.5, 0.7)
LOW, HIGH = (1e-7, 0.3, 0.4), (1e-4, 1.0, 1.25)


def read_table(path: Path) -> Columns:
    """Columns of a gzipped CSV file by name; numbers as floats."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns: Columns = {}
    for name, cells in zip(header, zip(*rows, strict=True), strict=True):
        try:
            columns[name] = np.array(cells, dtype=np.float64)
        except ValueError:
            columns[name] = np.array(cells)
    return columns


def folds(*keys: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.bool_]]:
    """Rows of each fold: those with the same keys are always in one fold."""
    _, configuration = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    fold = np.random.default_rng(0).permutation(configuration.max() + 1) % FOLDS
    for one in range(FOLDS):
        yield fold[configuration.ravel()] == one


def mape(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean absolute percentage error, as a fraction."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def fit_roofline(compute_s: FloatArray, memory_s: FloatArray, measured: FloatArray) -> FloatArray:
    """Launch and the two efficiencies, robustly on log residuals. compute_s, memory_s : times at the peaks."""

    def residuals(logs: FloatArray) -> FloatArray:
        launch_s, compute, memory = np.exp(logs)
        return np.log((launch_s + np.hypot(compute_s / compute, memory_s / memory)) / measured)

    found = least_squares(residuals, np.log(START), bounds=(np.log(LOW), np.log(HIGH)), loss="soft_l1", f_scale=SOFT)
    return np.exp(found.x)


def write_records(topic: str, kind: type[Record], found: Sequence[Record], method: str) -> None:
    """Rewrite a topic's file of the catalogue."""
    FOLDER.mkdir(exist_ok=True)
    document = CalibrationFile[kind](  # type: ignore[valid-type]
        topic=topic, date=DATE, source=SOURCE, licence=LICENCE, method=method, records=tuple(found)
    )
    (FOLDER / f"{topic}.json").write_text(to_json(document), encoding="utf-8")
