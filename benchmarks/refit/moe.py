"""Fits of the fused-MoE law to kernels timed in isolation, and how well they predict what they were not fitted to.

Two splits, both by configuration: a whole model shape (hidden, intermediate, top-k, experts) left out, and a quarter of
the parallel layouts (tensor, expert) left out. The recipe and the weights of the penalties were fixed on these splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.refit.common import mape, read_table, write_records
from planner.catalog import device
from planner.cost.operators.grid import FloatArray, LogGrid
from planner.cost.operators.moe import RATES, MoeFit, rank_load, work
from planner.cost.operators.tables import Residuals

BoolArray = npt.NDArray[np.bool_]

DEVICES = ("a100_sxm", "l40s", "h100_sxm", "h200_sxm", "b200_sxm", "gb200")
ARITHMETICS = {
    "bfloat16": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "w4a16_mxfp4": "w4a16_mxfp4",
    "w4a8_mxfp4_mxfp8": "w4a8_mxfp4_mxfp8",
    "int4_wo": "int4",
}
METHOD = (
    "law of planner/cost/operators/moe.py, soft-L1 on log residuals with priors; grids over log2 of touched weight"
    " bytes, and over log2 of rows per touched expert and of the rank's intermediate size; held out: whole model"
    " shapes, or parallel layouts where one shape was measured. moe/trtllm/1.3.0rc20; a100_sxm: moe/sglang/0.5.10"
)
#: Fits carried over to another device by its rates alone.
TRANSFERS = (("h100_sxm", "h200_sxm"), ("h200_sxm", "h100_sxm"), ("b200_sxm", "gb200"), ("h100_sxm", "b200_sxm"))
SIZES = ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")

COEFFICIENTS = ("launch_s", "expert_s", "memory_efficiency", "compute_efficiency", "row_passes", "token_passes")
#: Prior of each coefficient's logarithm: typical value and standard deviation, against rows that count NUM_CLUSTERS.
PRIOR = np.log([25e-6, 0.15e-6, 0.8, 0.67, 4.0, 2.0])
PRIOR_SD = np.array([1.0, 2.0, 0.7, 0.7, 1.5, 2.0])
NUM_CLUSTERS = 300
#: An efficiency divides; the other coefficients multiply.
SIGN = np.array([1.0, 1.0, -1.0, -1.0, 1.0, 1.0])

#: log2 of the bytes of touched weights; log2 of rows per touched expert and of the rank's intermediate size.
MEMORY_AXES = (np.arange(16.0, 34.0, 2.0),)
COMPUTE_AXES = (np.arange(0.0, 13.0, 2.0), np.log2([48.0, 128.0, 384.0, 1024.0, 3072.0, 12288.0]))
#: Penalties on second differences, first differences and values of the grids.
BEND, SLOPE, RIDGE = 0.03, 0.002, 0.005
#: Residuals beyond this count linearly.
SOFT = 0.15
#: A grid may fall by this much a node in log2 at most; less than log 2, so that rounding keeps the rule.
STEEPEST = 0.69


class Table(NamedTuple):
    """One kernel's rows: the SIZES [rows, 7], how tokens were routed [rows], and seconds [rows]."""

    device: str
    kernel: str
    arithmetic: str
    sizes: FloatArray
    routing: npt.NDArray[np.generic]
    seconds: FloatArray


def read(folder: Path) -> Iterator[Table]:
    """The tables of every device, kernel and format in the folder of inference data."""
    for name in DEVICES:
        columns = read_table(folder / f"moe_{name}.csv.gz")
        for kernel, dtype in dict.fromkeys(zip(columns["kernel_source"], columns["moe_dtype"], strict=True)):
            at = (columns["kernel_source"] == kernel) & (columns["moe_dtype"] == dtype)
            sizes = np.stack([columns[size][at].astype(float) for size in SIZES], axis=1)
            seconds = columns["latency_ms"][at].astype(float) * 1e-3
            yield Table(name, str(kernel), ARITHMETICS[str(dtype)], sizes, columns["distribution"][at], seconds)


class Terms(NamedTuple):
    """Nominal times that the coefficients multiply, [rows, 6], and where the rows lie in the two grids."""

    nominal: FloatArray
    memory: FloatArray
    compute: FloatArray


def terms(table: Table) -> Terms:
    """What the law says of each row before any coefficient."""
    tokens, hidden, inter, top_k, experts, tp, ep = table.sizes.T
    rows, touched = np.empty(len(tokens)), np.empty(len(tokens))
    for routing in np.unique(table.routing):
        at = table.routing == routing
        load = rank_load(tokens[at], experts[at], top_k[at], ep[at], str(routing))
        rows[at], touched[at] = load.rows, load.touched
    if table.kernel.startswith("sglang"):
        # That collector gives the rank every token with one of its experts, and such a token all of its choices there.
        rows = np.where(ep > 1, np.minimum(tokens, rows) * top_k, rows)
    kind, rate = device(table.device), RATES[table.arithmetic]
    bandwidth = kind.hbm_bandwidth_bytes_per_s
    token_bytes, weight_bytes, row_bytes, row_flop = work(rate, hidden, inter / tp)
    nominal = [
        np.ones(len(tokens)),
        touched,
        touched * weight_bytes / bandwidth,
        rows * row_flop / kind.peak_flop_per_s(rate.dtype),
        rows * row_bytes / bandwidth,
        tokens * token_bytes / bandwidth,
    ]
    return Terms(
        np.stack(nominal, axis=1),
        weights_of(MEMORY_AXES, [touched * weight_bytes]),
        weights_of(COMPUTE_AXES, [rows / touched, inter / tp]),
    )


def weights_of(axes: tuple[FloatArray, ...], sizes: list[FloatArray]) -> FloatArray:
    """Share of each node in each row, [rows, nodes]: the grid's own interpolation of unit node values."""
    shape = [len(axis) for axis in axes]
    unit = np.eye(int(np.prod(shape)))
    return np.stack([LogGrid(axes, node.reshape(shape))(*sizes) for node in unit], axis=1)


class Parameters(NamedTuple):
    """Log coefficients [6], memory grid and compute grid [nodes]."""

    logs: FloatArray
    memory: FloatArray
    compute: FloatArray


def predict(parameters: Parameters, at: Terms) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, and the derivative of log seconds by log coefficients [rows, 6] and by the two grid logs [rows, 2]."""
    parts = at.nominal * np.exp(SIGN * parameters.logs)
    parts[:, 1:3] *= np.exp(at.memory @ parameters.memory)[:, None]
    parts[:, 3:5] *= np.exp(at.compute @ parameters.compute)[:, None]
    total = parts.sum(axis=1)
    share = parts / total[:, None]
    return total, share * SIGN, np.stack([share[:, 1:3].sum(axis=1), share[:, 3:5].sum(axis=1)], axis=1)


def penalty(axes: tuple[FloatArray, ...]) -> FloatArray:
    """Quadratic form that keeps a grid small, flat and straight where no row says otherwise, [nodes, nodes]."""
    shape = [len(axis) for axis in axes]
    num_nodes = int(np.prod(shape))
    nodes = np.eye(num_nodes).reshape(*shape, num_nodes)
    form = RIDGE * np.eye(num_nodes)
    for dimension in range(len(shape)):
        for order, weight in ((1, SLOPE), (2, BEND)):
            steps = np.diff(nodes, n=order, axis=dimension).reshape(-1, num_nodes)
            form += weight * steps.T @ steps
    return form / num_nodes


def fit(at: Terms, seconds: FloatArray, *, grids: bool = True) -> Parameters:
    """Damped Gauss-Newton on soft log residuals, first the coefficients alone and then with the grids."""
    split = [6, 6 + at.memory.shape[1]]
    num = split[1] + at.compute.shape[1]
    prior = np.zeros((num, num))
    prior[:6, :6] = np.diag(PRIOR_SD**-2) / NUM_CLUSTERS
    prior[6 : split[1], 6 : split[1]] = penalty(MEMORY_AXES)
    prior[split[1] :, split[1] :] = penalty(COMPUTE_AXES)
    centre = np.concatenate([PRIOR, np.zeros(num - 6)])
    target = np.log(seconds)

    def objective(values: FloatArray) -> float:
        residual = np.log(predict(Parameters(*np.split(values, split)), at)[0]) - target
        soft = 2 * SOFT**2 * (np.sqrt(1 + (residual / SOFT) ** 2) - 1)
        return float(soft.mean() + (values - centre) @ prior @ (values - centre))

    values = centre
    for free in (6, num) if grids else (6,):
        damping, best = 1e-3, objective(values)
        for _ in range(30):
            predicted, by_coefficient, by_grid = predict(Parameters(*np.split(values, split)), at)
            slopes = [by_coefficient, at.memory * by_grid[:, :1], at.compute * by_grid[:, 1:]]
            slope = np.concatenate(slopes, axis=1)[:, :free]
            residual = np.log(predicted) - target
            row = 1 / np.sqrt(1 + (residual / SOFT) ** 2)
            curvature = (slope * row[:, None]).T @ slope / len(row) + prior[:free, :free]
            gradient = slope.T @ (row * residual) / len(row) + (prior @ (values - centre))[:free]
            step = np.zeros(num)
            step[:free] = -np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            trial = values + np.clip(step, -1.5, 1.5)
            reached = objective(trial)
            if reached > best:
                damping *= 10
                if damping > 1e6:
                    break
                continue
            done = best - reached < 1e-7 * best
            values, best, damping = trial, reached, max(damping / 10, 1e-9)
            if done:
                break
    logs, memory, compute = np.split(values, split)
    return Parameters(logs, never_faster(MEMORY_AXES, memory), never_faster(COMPUTE_AXES, compute))


def never_faster(axes: tuple[FloatArray, ...], values: FloatArray) -> FloatArray:
    """Nodes raised where the grid falls so fast along its first axis that more work would take less time."""
    shape = [len(axis) for axis in axes]
    rise = (STEEPEST * axes[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (np.maximum.accumulate(values.reshape(shape) + rise, axis=0) - rise).ravel()


def pick(at: Terms, chosen: BoolArray) -> Terms:
    return Terms(*(part[chosen] for part in at))


def shapes(table: Table) -> npt.NDArray[np.intp]:
    """Which model shape each row is of."""
    return np.unique(table.sizes[:, [1, 2, 3, 4]], axis=0, return_inverse=True)[1].ravel()


def layouts(table: Table) -> npt.NDArray[np.intp]:
    """Which quarter of the parallel layouts each row is of; neighbours in different quarters."""
    tp, ep = np.log2(table.sizes[:, 5]), np.log2(table.sizes[:, 6])
    return ((tp + 2 * ep) % 4).astype(np.intp)


def out_of_sample(at: Terms, seconds: FloatArray, folds: npt.NDArray[np.intp], *, grids: bool = True) -> FloatArray:
    """Prediction of every row by a fit without its fold."""
    predicted = np.full(len(seconds), np.nan)
    for fold in np.unique(folds):
        out = folds == fold
        if not out.all():
            predicted[out] = predict(fit(pick(at, ~out), seconds[~out], grids=grids), pick(at, out))[0]
    return predicted


def record(table: Table) -> tuple[MoeFit, dict[str, float]]:
    """The fit of one table, and its errors by split."""
    at, seconds = terms(table), table.seconds
    found = fit(at, seconds)
    errors = {
        "in_sample": mape(predict(found, at)[0], seconds),
        "layout_out": mape(out_of_sample(at, seconds, layouts(table)), seconds),
    }
    if len(np.unique(shapes(table))) > 1:
        errors["shape_out"] = mape(out_of_sample(at, seconds, shapes(table)), seconds)
        errors["shape_out_law"] = mape(out_of_sample(at, seconds, shapes(table), grids=False), seconds)
    coefficients = {name: float(f"{value:.4g}") for name, value in zip(COEFFICIENTS, np.exp(found.logs), strict=True)}
    kind = device(table.device)
    one = MoeFit(
        device=table.device,
        kernel=table.kernel,
        arithmetic=table.arithmetic,
        peak_flop_per_s=kind.peak_flop_per_s(RATES[table.arithmetic].dtype),
        bandwidth_bytes_per_s=kind.hbm_bandwidth_bytes_per_s,
        rows=len(seconds),
        error_in_sample=round(errors["in_sample"], 4),
        error_held_out=round(errors.get("shape_out", errors["layout_out"]), 4),
        memory=Residuals.of(LogGrid(MEMORY_AXES, found.memory)),
        compute=Residuals.of(LogGrid(COMPUTE_AXES, found.compute.reshape([len(axis) for axis in COMPUTE_AXES]))),
        **coefficients,
    )
    return one, errors


def parameters_of(one: MoeFit) -> Parameters:
    """The parameters that a record was made of."""
    assert one.memory is not None
    assert one.compute is not None
    logs = np.log([getattr(one, name) for name in COEFFICIENTS])
    return Parameters(logs, np.asarray(one.memory.values), np.asarray(one.compute.values))


def held_out(data: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """Errors as fractions by split, by (device, kernel, arithmetic)."""
    return {(table.device, table.kernel, table.arithmetic): record(table)[1] for table in read(data)}


def main(data: Path, *, write: bool) -> None:
    """Fit every table, print the errors by split, and write the catalogue's file if asked."""
    found, seen = [], {}
    columns = ("in_sample", "layout_out", "shape_out", "shape_out_law")
    print(f"{'device':10} {'kernel':27} {'format':17} {'rows':>6}", *(f"{column:>13}" for column in columns))
    for table in read(data):
        one, errors = record(table)
        shown = (f"{errors[column]:13.1%}" if column in errors else f"{'-':>13}" for column in columns)
        print(f"{one.device:10} {one.kernel:27} {one.arithmetic:17} {one.rows:6}", *shown, flush=True)
        found.append(one)
        seen[one.device, one.arithmetic, one.kernel] = (table, one)
    for (name, arithmetic, kernel), (table, _) in seen.items():
        for old, new in TRANSFERS:
            if new == name and (old, arithmetic, kernel) in seen:
                stranger = parameters_of(seen[old, arithmetic, kernel][1])
                print(f"{old} to {new} {arithmetic:17} {mape(predict(stranger, terms(table))[0], table.seconds):6.1%}")
    if write:
        write_records("moe", MoeFit, found, METHOD)
