"""Attention and MLA: one roofline and one residual grid per device, operator, formats and engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.refit.common import Columns, fit_roofline, folds, mape, read_table, write_records
from planner.catalog import device
from planner.cost.operators.attention import (
    KV_BYTES,
    AttentionFit,
    Operator,
    attention_law,
    attention_table,
    decode_work,
    mla_decode_work,
    mla_prefill_work,
    prefill_work,
)
from planner.cost.operators.grid import FloatArray, LogGrid, fit_grid
from planner.cost.operators.tables import Residuals
from planner.hardware import DeviceKind

#: Device and engine of each file of attention tables.
FILES = {
    "a100_sxm": ("a100_sxm", "sglang"),
    "l40s": ("l40s", "trtllm"),
    "h100_sxm": ("h100_sxm", "trtllm"),
    "h100_sxm_vllm": ("h100_sxm", "vllm"),
    "h200_sxm": ("h200_sxm", "trtllm"),
    "h200_sxm_vllm": ("h200_sxm", "vllm"),
    "b200_sxm": ("b200_sxm", "trtllm"),
    "gb200": ("gb200", "trtllm"),
}
MLA_DEVICES = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm")
QUANTS = {"bfloat16": "bf16", "fp8": "fp8"}
PHASES = {"context": "prefill", "generation": "decode"}
#: log2 of the nodes, by operator: see AttentionFit for what they are sizes of.
AXES: dict[Operator, tuple[FloatArray, ...]] = {
    "prefill": (
        np.arange(0.0, 15.0, 2.0),
        np.array([0.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]),
        np.array([0.0, 1.5, 3.0, 4.0, 6.0]),
        np.array([6.0, 7.0]),
    ),
    "decode": (
        np.arange(0.0, 15.0, 2.0),
        np.array([1.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0]),
        np.arange(7.0),
        np.array([6.0, 7.0]),
    ),
    "mla_prefill": (np.arange(0.0, 9.0, 2.0), np.array([0.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0]), np.arange(8.0)),
    "mla_decode": (
        np.arange(0.0, 11.0, 2.0),
        np.array([1.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 17.0]),
        np.arange(8.0),
    ),
}
WORK = {
    "prefill": prefill_work,
    "decode": decode_work,
    "mla_prefill": mla_prefill_work,
    "mla_decode": mla_decode_work,
}
#: Chosen once by cross-validation over all tables; 0.003 to 0.03 differ by less than 0.7 points.
SMOOTH, RIDGE = 0.02, 1e-3
METHOD = (
    "(launch + hypot(FLOP, bytes)) x exp(residual over log2 sizes); roofline by soft-L1, residuals by penalised least"
    " squares; held out: the larger error of leaving whole head shapes out and whole (sequences, tokens) pairs, 5 folds"
)
TRANSFERS = (
    ("h100_sxm", "h200_sxm"),
    ("h200_sxm", "h100_sxm"),
    ("b200_sxm", "gb200"),
    ("h100_sxm", "b200_sxm"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Measured kernels of one device, operator, formats and engine. sizes : as AttentionFit has them."""

    device: DeviceKind
    operator: Operator
    quant: str
    kv_quant: str
    kernels: str
    sizes: tuple[FloatArray, ...]
    batch: FloatArray
    seconds: FloatArray

    @property
    def name(self) -> str:
        """Device, operator, formats, engine."""
        return f"{self.device.name} {self.operator} {self.quant}/{self.kv_quant} {self.kernels}"

    def work(self) -> tuple[FloatArray, FloatArray]:
        """Seconds of arithmetic and of traffic at the device's peaks."""
        flop, moved = WORK[self.operator](*self.sizes, KV_BYTES[self.kv_quant])  # type: ignore[operator]
        return flop / self.device.peak_flop_per_s(self.quant), moved / self.device.hbm_bandwidth_bytes_per_s

    def fit(self, learn: npt.NDArray[np.bool_] | slice = slice(None)) -> AttentionFit:
        """The fit of some rows; errors are filled in by `main`."""
        compute_s, memory_s = (part[learn] for part in self.work())
        measured = self.seconds[learn]
        launch_s, compute, memory = fit_roofline(compute_s, memory_s, measured)
        base = launch_s + np.hypot(compute_s / compute, memory_s / memory)
        axes, sizes = list(AXES[self.operator]), [size[learn] for size in self.sizes]
        # With one head size there is nothing to interpolate: both of its nodes get the same residuals.
        single = len(axes) == 4 and len(np.unique(sizes[3])) == 1
        used = slice(0, 3) if single else slice(None)
        grid = fit_grid(axes[used], sizes[used], np.log(measured / base), smooth=SMOOTH, ridge=RIDGE)
        if single:
            grid = LogGrid(tuple(axes), np.stack([grid.values, grid.values], axis=3))
        return AttentionFit(
            device=self.device.name,
            operator=self.operator,
            quant=self.quant,
            kv_quant=self.kv_quant,
            kernels=self.kernels,
            launch_s=float(f"{launch_s:.4g}"),
            compute_efficiency=round(compute, 4),
            memory_efficiency=round(memory, 4),
            peak_flop_per_s=self.device.peak_flop_per_s(self.quant),
            bandwidth_bytes_per_s=self.device.hbm_bandwidth_bytes_per_s,
            residuals=Residuals.of(grid),
            rows=len(measured),
            error_in_sample=0.0,
            error_held_out=0.0,
        )

    def predicted(self, fit: AttentionFit) -> FloatArray:
        """All rows under a fit, by the same code as every user of it."""
        law = attention_law([fit], self.device, self.operator, self.quant, self.kv_quant, None)
        result = np.empty_like(self.seconds)
        widths = self.sizes[3] if len(self.sizes) == 4 else np.zeros_like(self.seconds)
        for width in np.unique(widths):
            rows = widths == width
            table = attention_table(law, self.operator, float(width), KV_BYTES[self.kv_quant], True)
            result[rows] = table(*(size[rows] for size in self.sizes[:3]))
        return result

    def held_out(self, *keys: FloatArray) -> float:
        """Error on configurations that the fit did not see; those with equal keys are left out together."""
        predicted = np.empty_like(self.seconds)
        for part in folds(*keys):
            predicted[part] = self.predicted(self.fit(~part))[part]
        return mape(predicted, self.seconds)

    def shapes_out(self) -> float:
        """Error on head shapes (heads, KV heads, head size) that the fit did not see."""
        if self.operator.startswith("mla"):
            return self.held_out(self.sizes[2])
        return self.held_out(self.sizes[0] / self.batch, *self.sizes[2:])

    def loads_out(self) -> float:
        """Error on (sequences, tokens) that the fit did not see."""
        return self.held_out(self.batch, self.sizes[1])


def tables(data: Path) -> Iterator[Table]:
    """Every device, operator, format and engine that was measured."""
    for file, (name, kernels) in FILES.items():
        columns = read_table(data / f"attention_{file}.csv.gz")
        for phase, operator, quant, kv_quant, rows in _parts(columns, "attn_dtype", PHASES):
            batch, tokens, heads, kv_heads, width, milliseconds = (
                columns[key][rows].astype(float)
                for key in ("batch_size", "seq", "num_heads", "num_kv_heads", "head_dim", "latency_ms")
            )
            across = heads if phase == "context" else kv_heads
            sizes = (batch * across, tokens, heads / kv_heads, width)
            yield Table(device(name), operator, quant, kv_quant, kernels, sizes, batch, milliseconds * 1e-3)
    columns = read_table(data / "mla.csv.gz")
    for name in MLA_DEVICES:
        mine = {key: column[columns["gpu"] == name] for key, column in columns.items()}
        for _, operator, quant, kv_quant, rows in _parts(mine, "mla_dtype", {p: f"mla_{o}" for p, o in PHASES.items()}):
            batch, tokens, heads, milliseconds = (
                mine[key][rows].astype(float) for key in ("batch_size", "seq", "num_heads", "latency_ms")
            )
            seconds = milliseconds * 1e-3
            yield Table(device(name), operator, quant, kv_quant, "trtllm", (batch, tokens, heads), batch, seconds)


def _parts(
    columns: Columns, dtype: str, phases: dict[str, str]
) -> Iterator[tuple[str, Operator, str, str, npt.NDArray[np.bool_]]]:
    """Rows of each phase and pair of formats that a file has."""
    for phase, operator in phases.items():
        for quant in QUANTS:
            for kv_quant in QUANTS:
                rows = (columns["phase"] == phase) & (columns[dtype] == quant) & (columns["kv_cache_dtype"] == kv_quant)
                if rows.any():
                    yield phase, operator, QUANTS[quant], QUANTS[kv_quant], rows  # type: ignore[misc]


def held_out(data: Path) -> list[tuple[str, float]]:
    """The larger of the two held-out errors of every table."""
    return [(one.name, max(one.shapes_out(), one.loads_out())) for one in tables(data)]


def transfers(data: Path) -> list[tuple[str, float]]:
    """Error on one device of the fits of another, moved by the peaks alone; mean over the tables of an operator."""
    found = {(one.device.name, (one.operator, one.quant, one.kv_quant, one.kernels)): one for one in tables(data)}
    errors: dict[str, list[float]] = {}
    for old, new in TRANSFERS:
        for (name, kind), source in found.items():
            target = found.get((new, kind))
            if name == old and target is not None:
                stranger = source.fit().model_copy(update={"device": new})
                case = f"{old} to {new} {source.operator}"
                errors.setdefault(case, []).append(mape(target.predicted(stranger), target.seconds))
    return [(case, float(np.mean(each))) for case, each in errors.items()]


def main(data: Path, *, write: bool) -> None:
    """Fit every table, print the errors, and write the catalogue's file if asked."""
    fits = []
    print(f"{'table':46} launch us  compute  memory    seen  shapes   loads (held out)")
    for table in tables(data):
        fit = table.fit()
        seen, shapes, loads = mape(table.predicted(fit), table.seconds), table.shapes_out(), table.loads_out()
        errors = {"error_in_sample": round(seen, 4), "error_held_out": round(max(shapes, loads), 4)}
        fits.append(fit.model_copy(update=errors))
        print(
            f"{table.name:46} {fit.launch_s * 1e6:9.2f} {fit.compute_efficiency:8.3f} {fit.memory_efficiency:7.3f}"
            f" {seen:7.1%} {shapes:7.1%} {loads:7.1%}",
            flush=True,
        )
    for case, error in transfers(data):
        print(f"{case:34} {error:6.1%}")
    if write:
        write_records("attention", AttentionFit, fits, METHOD)
