"""Fitted tables of the catalogue: what measured kernels came down to, and which of them stands for a device.

One JSON file a topic in `planner/catalog/calibration`; `python -m benchmarks.refit TOPIC` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

import numpy as np
from pydantic import Field

from planner.cost.operators.grid import LogGrid
from planner.descriptions.base import Description, Problem
from planner.files import read_as
from planner.hardware import DeviceKind

FOLDER = Path(__file__).parents[2] / "catalog" / "calibration"

#: measured: this operator was timed on this device. calibrated: the fit of a related device or format, on this
#: device's own peaks. datasheet: this device's peaks with the efficiencies that the measured devices reach.
Source = Literal["measured", "calibrated", "datasheet"]

#: Whose fit stands for the devices of an architecture that were not measured.
REPRESENTATIVES = {
    "Ampere": "a100_sxm",
    "Ada": "l40s",
    "Hopper": "h100_sxm",
    "Blackwell": "b200_sxm",
    "Blackwell Ultra": "b200_sxm",
}

NonEmpty = Annotated[str, Field(min_length=1)]
Error = Annotated[float, Field(ge=0, description="mean absolute percentage error, as a fraction")]


class Residuals(Description):
    """A LogGrid as it is written: log2 coordinates of the nodes by dimension, and values with the last axis fastest."""

    axes: tuple[tuple[float, ...], ...]
    values: tuple[float, ...]

    def problems(self) -> Iterator[Problem]:
        """Nodes ascend, and each has a value."""
        if any(len(axis) < 2 or not (np.diff(axis) > 0).all() for axis in self.axes):
            yield ("axes",), "each needs two or more ascending nodes"
        if len(self.values) != int(np.prod([len(axis) for axis in self.axes])):
            yield ("values",), "there must be one for each node"

    @cached_property
    def grid(self) -> LogGrid:
        """The same as arrays."""
        axes = tuple(np.asarray(axis) for axis in self.axes)
        return LogGrid(axes, np.asarray(self.values).reshape([len(axis) for axis in axes]))

    @classmethod
    def of(cls, grid: LogGrid) -> Self:
        """Rounded to three decimals, a tenth of a percent of the time."""
        values = (grid.values.round(3) + 0.0).ravel()
        return cls(axes=tuple(tuple(axis.tolist()) for axis in grid.axes), values=tuple(values.tolist()))


class Record(Description):
    """One fit: whose measurements, how many, and how far the fit is from them."""

    device: Annotated[NonEmpty, Field(description="name in the catalogue")]
    rows: Annotated[int, Field(gt=0)]
    error_in_sample: Error
    error_held_out: Annotated[Error, Field(description="configurations that the fit did not see")]


RecordT = TypeVar("RecordT", bound=Record)


class CalibrationFile(Description, Generic[RecordT]):
    """All fits of one topic."""

    topic: NonEmpty
    date: NonEmpty
    source: NonEmpty
    licence: NonEmpty
    method: NonEmpty
    records: tuple[RecordT, ...]


@cache
def _records(topic: str, kind: type[Record]) -> tuple[Any, ...]:
    # Which record a topic holds is only known at run time.
    return read_as(FOLDER / f"{topic}.json", CalibrationFile[kind]).records  # type: ignore[valid-type]


def records(topic: str, kind: type[RecordT]) -> tuple[RecordT, ...]:
    """The fits of a topic, read once. DescriptionError for a file that is missing or holds something else."""
    return _records(topic, kind)


def best_fit(fits: Sequence[RecordT], device: DeviceKind, rank: Callable[[RecordT], int | None]) -> RecordT | None:
    """The lowest-ranked fit of this device, else of the one that stands for its architecture, else None.

    rank : how far a fit's formats are from the wanted ones, 0 for the same; None for a fit that says nothing here.
    """
    for name in (device.name, REPRESENTATIVES.get(device.architecture)):
        ranked = [(place, fit) for fit in fits if fit.device == name and (place := rank(fit)) is not None]
        if ranked:
            return min(ranked, key=lambda pair: pair[0])[1]
    return None
