"""Operator tables on configurations that their fits did not see, by device and format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.common import Row, data_folder
from benchmarks.refit import attention, collectives, gemm, moe
from planner.catalog import device
from planner.cost.collectives.links import link_bandwidth

#: The device of the short form.
SHORT_DEVICE = "h100_sxm"
#: Device, group (format or operation) and held-out error of one table.
Held = tuple[str, str, float]


def _gemm(data: Path, wanted: str | None) -> Iterator[Held]:
    for one in gemm.tables(data):
        if wanted in (None, one.device.name):
            yield one.device.name, one.quant, one.held_out(one.n, one.k)


def _attention(data: Path, wanted: str | None) -> Iterator[Held]:
    for one in attention.tables(data):
        if wanted in (None, one.device.name):
            yield one.device.name, one.operator, max(one.shapes_out(), one.loads_out())


def _moe(data: Path, wanted: str | None) -> Iterator[Held]:
    for one in moe.read(data):
        if wanted in (None, one.device):
            errors = moe.record(one)[1]
            yield one.device, one.arithmetic, errors.get("shape_out", errors["layout_out"])


def _collectives(data: Path, wanted: str | None) -> Iterator[Held]:
    for key, points in collectives.curves(data).items():
        name, _, operation, _ = key
        if wanted in (None, name):
            bandwidth = link_bandwidth(device(name))
            yield name, operation, collectives.with_errors(key, points, bandwidth).error_held_out


#: What is left out of each topic's fits, its tables, and the error aimed at in %.
TOPICS: dict[str, tuple[str, Callable[[Path, str | None], Iterator[Held]], float]] = {
    "GEMM": ("(n, k) left out", _gemm, 8.0),
    "attention": ("shapes, loads left out", _attention, 15.0),
    "collectives": ("sizes left out", _collectives, 8.0),
    "MoE": ("model shape left out", _moe, 25.0),
}


def operators(short: bool) -> Iterator[Row]:
    """Mean error of each device and group, and over all tables of a topic; every table counts the same."""
    data, wanted = data_folder("inference"), SHORT_DEVICE if short else None
    for topic, (split, tables, target) in TOPICS.items():
        groups: dict[str, list[float]] = defaultdict(list)
        for name, group, error in tables(data, wanted):
            groups[f"{name} {group}"].append(error)
        case = f"{topic}, {split}"
        for name, errors in groups.items():
            yield Row(case, name, 100.0 * float(np.mean(errors)), None, "", "%", "lower")
        every = [error for errors in groups.values() for error in errors]
        measure = f"MAPE, all {len(every)} tables"
        yield Row(case, measure, 100.0 * float(np.mean(every)), target, "target", "%", "lower")
