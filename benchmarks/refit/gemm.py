"""Dense products: one roofline and one residual grid per device and format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.refit.common import fit_roofline, folds, mape, read_table, write_records
from planner.catalog import device
from planner.cost.operators.gemm import GemmFit, arithmetic, gemm_law, gemm_table, gemm_work
from planner.cost.operators.grid import FloatArray, fit_grid
from planner.cost.operators.tables import Residuals
from planner.hardware import DeviceKind

DEVICES = ("a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "gb200")
QUANTS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
#: log2 of the nodes in m, n and k: every octave that was measured, m up to 32,768.
AXES = (np.array([*range(14), 15.0]), np.arange(8.0, 15.0), np.arange(8.0, 15.0))
#: Chosen once by cross-validation over all tables; 0.003 to 0.03 differ by less than 0.2 points.
SMOOTH, RIDGE = 0.02, 1e-3
METHOD = (
    "(launch + hypot(FLOP, bytes)) x exp(residual over log2 m, n, k); roofline by soft-L1, residuals by penalised least"
    " squares; held out: whole (n, k) pairs, 5 folds"
)
#: Fits carried over to another device: Hopper to Hopper, and older generations to Blackwell.
TRANSFERS = (
    ("h100_sxm", "h200_sxm", ("bf16", "fp8", "fp8_block")),
    ("h200_sxm", "h100_sxm", ("bf16", "fp8", "fp8_block")),
    ("b200_sxm", "gb200", ("bf16", "fp8", "fp8_block", "nvfp4")),
    ("h100_sxm", "b200_sxm", ("bf16", "fp8", "fp8_block")),
    ("a100_sxm", "b200_sxm", ("bf16",)),
    ("a100_sxm", "h100_sxm", ("bf16",)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Measured products of one device and format."""

    device: DeviceKind
    quant: str
    m: FloatArray
    n: FloatArray
    k: FloatArray
    seconds: FloatArray

    def fit(self, learn: npt.NDArray[np.bool_] | slice = slice(None)) -> GemmFit:
        """The fit of some rows; errors are filled in by `reported`."""
        runs = arithmetic(self.device, self.quant)
        peak, bandwidth = self.device.peak_flop_per_s(runs.dtype), self.device.hbm_bandwidth_bytes_per_s
        sizes = (self.m[learn], self.n[learn], self.k[learn])
        flop, moved = gemm_work(*sizes, runs.weight_bytes)
        measured = self.seconds[learn]
        launch_s, compute, memory = fit_roofline(flop / peak, moved / bandwidth, measured)
        base = launch_s + np.hypot(flop / (compute * peak), moved / (memory * bandwidth))
        grid = fit_grid(AXES, sizes, np.log(measured / base), smooth=SMOOTH, ridge=RIDGE)
        return GemmFit(
            device=self.device.name,
            quant=self.quant,
            launch_s=float(f"{launch_s:.4g}"),
            compute_efficiency=round(compute, 4),
            memory_efficiency=round(memory, 4),
            peak_flop_per_s=peak,
            bandwidth_bytes_per_s=bandwidth,
            residuals=Residuals.of(grid),
            rows=len(measured),
            error_in_sample=0.0,
            error_held_out=0.0,
        )

    def predicted(self, fit: GemmFit) -> FloatArray:
        """All rows under a fit, by the same code as every user of it."""
        law, weight_bytes = gemm_law(self.device, self.quant, [fit])
        return gemm_table(law, weight_bytes, True)(self.m, self.n, self.k)

    def held_out(self, *keys: FloatArray) -> float:
        """Error on configurations that the fit did not see; those with equal keys are left out together."""
        predicted = np.empty_like(self.seconds)
        for part in folds(*keys):
            predicted[part] = self.predicted(self.fit(~part))[part]
        return mape(predicted, self.seconds)


def tables(data: Path) -> Iterator[Table]:
    """Every device and format that was measured."""
    for name in DEVICES:
        columns = read_table(data / f"gemm_{name}.csv.gz")
        for dtype, quant in QUANTS.items():
            rows = columns["dtype"] == dtype
            if rows.any():
                m, n, k, milliseconds = (columns[key][rows].astype(float) for key in ("m", "n", "k", "latency_ms"))
                yield Table(device(name), quant, m, n, k, milliseconds * 1e-3)


def held_out(data: Path) -> list[tuple[str, float]]:
    """Error on whole (n, k) pairs that the fit did not see, by table."""
    return [(f"{one.device.name} {one.quant}", one.held_out(one.n, one.k)) for one in tables(data)]


def transfers(data: Path) -> list[tuple[str, float]]:
    """Error on one device of the fit of another, moved by the peaks alone."""
    found = {(one.device.name, one.quant): one for one in tables(data)}
    result = []
    for old, new, quants in TRANSFERS:
        for quant in quants:
            stranger = found[old, quant].fit().model_copy(update={"device": new})
            target = found[new, quant]
            result.append((f"{old} to {new} {quant}", mape(target.predicted(stranger), target.seconds)))
    return result


def main(data: Path, *, write: bool) -> None:
    """Fit every table, print the errors, and write the catalogue's file if asked."""
    fits = []
    print("device     quant      launch us  compute  memory    seen  n,k out   m out")
    for table in tables(data):
        fit = table.fit()
        errors = {
            "error_in_sample": round(mape(table.predicted(fit), table.seconds), 4),
            "error_held_out": round(table.held_out(table.n, table.k), 4),
        }
        fits.append(fit.model_copy(update=errors))
        print(
            f"{fit.device:10} {fit.quant:10} {fit.launch_s * 1e6:9.2f} {fit.compute_efficiency:8.3f}"
            f" {fit.memory_efficiency:7.3f} {errors['error_in_sample']:7.1%} {errors['error_held_out']:8.1%}"
            f" {table.held_out(table.m):7.1%}",
            flush=True,
        )
    for case, error in transfers(data):
        print(f"{case:34} {error:6.1%}")
    if write:
        write_records("gemm", GemmFit, fits, METHOD)
