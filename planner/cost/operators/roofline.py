"""The calibrated roofline: a kernel's launch, arithmetic and memory traffic, times what measurements say beyond that.

    seconds = (launch + sqrt((FLOP / reached FLOP/s)² + (bytes / reached bytes/s)²)) · exp(residual)

On nodes half an octave apart this is made to rise with every size that it must rise with, and in between it is
linear in the logarithms. So more work is never faster, whatever the residuals say; and on the same fit a device with
more bandwidth or a higher peak is never slower, because every step from peaks to times keeps their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.cost.operators.grid import FloatArray, LogGrid
from planner.cost.operators.tables import Record, Residuals, Source, best_fit
from planner.errors import OptionError
from planner.hardware import DeviceKind
from planner.units import BytesPerSecond, FlopPerSecond, Seconds

Efficiency = Annotated[float, Field(gt=0, description="reached, as a fraction of the peak")]


class RooflineFit(Record):
    """One table of kernels as a roofline and its residuals, and the peaks that the efficiencies are fractions of."""

    launch_s: Annotated[Seconds, Field(description="of an isolated kernel: launch, quantisation, synchronisation")]
    compute_efficiency: Efficiency
    memory_efficiency: Efficiency
    peak_flop_per_s: FlopPerSecond
    bandwidth_bytes_per_s: BytesPerSecond
    residuals: Residuals


FitT = TypeVar("FitT", bound=RooflineFit)


@dataclass(frozen=True, slots=True)
class Law:
    """A fit on one device's peaks: rates that are reached, and the peak bandwidth. Equal laws give equal times."""

    launch_s: float
    flop_per_s: float
    bytes_per_s: float
    peak_bytes_per_s: float
    residuals: Residuals | None
    source: Source

    def seconds(
        self, flop: FloatArray, moved_bytes: FloatArray, sizes: Sequence[npt.ArrayLike], launch: bool
    ) -> FloatArray:
        """Time of work at the sizes the residuals know: of an isolated kernel, or without `launch` in a CUDA graph.

        In a graph other kernels run in between, so operands come from memory and not from the L2 cache in which a
        kernel that is timed alone, over and over, finds them (up to four times faster on an L40S).
        """
        work = np.hypot(flop / self.flop_per_s, moved_bytes / self.bytes_per_s)
        residual = np.exp(0.0 if self.residuals is None else self.residuals.grid(*sizes))
        if launch:
            return np.asarray((self.launch_s + work) * residual)
        return np.asarray(np.maximum(work * residual, moved_bytes / self.peak_bytes_per_s))


def law_of(fits: Sequence[FitT], device: DeviceKind, peak_flop_per_s: float, rank: Callable[[FitT], int | None]) -> Law:
    """The law of a device: its own fit, that of its architecture's representative, or the mean of all fits.

    rank : see `best_fit`; 0 is a fit of exactly the wanted formats. The mean (geometric, over the devices that have
    the best rank at all) has no residuals: they belong to the kernels of one architecture.
    """
    fit = best_fit(fits, device, rank)
    peak, bandwidth = peak_flop_per_s, device.hbm_bandwidth_bytes_per_s
    if fit is not None:
        known = (fit.device, fit.peak_flop_per_s, fit.bandwidth_bytes_per_s) == (device.name, peak, bandwidth)
        launch_s, compute, memory = fit.launch_s, fit.compute_efficiency, fit.memory_efficiency
        source: Source = "measured" if known and rank(fit) == 0 else "calibrated"
        return Law(launch_s, compute * peak, memory * bandwidth, bandwidth, fit.residuals, source)
    ranks = {place for one in fits if (place := rank(one)) is not None}
    chosen = [one for one in fits if rank(one) == min(ranks)]
    logs = np.log([[one.launch_s, one.compute_efficiency, one.memory_efficiency] for one in chosen])
    launch_s, compute, memory = np.exp(logs.mean(axis=0)).tolist()
    return Law(launch_s, compute * peak, memory * bandwidth, bandwidth, None, "datasheet")


@dataclass(frozen=True, slots=True, eq=False)
class TimeTable:
    """log(seconds) on nodes of sizes. Below the first node the time is held, beyond the last it grows in proportion."""

    log_seconds: LogGrid

    def __call__(self, *sizes: npt.ArrayLike) -> FloatArray:
        """Seconds at positive sizes, broadcast."""
        beyond: FloatArray = np.asarray(1.0)
        for axis, size in zip(self.log_seconds.axes, sizes, strict=True):
            beyond = beyond * np.maximum(1.0, np.asarray(size) / 2.0 ** axis[-1])
        return np.asarray(np.exp(self.log_seconds(*sizes)) * beyond)


def half_octaves(last: int, first: int = 0) -> FloatArray:
    """Nodes of a TimeTable from 2**first to 2**last."""
    return np.linspace(first, last, 2 * (last - first) + 1)


def nodes(axes: Sequence[FloatArray]) -> list[FloatArray]:
    """Sizes at the nodes of axes, one broadcastable array a dimension."""
    return list(np.meshgrid(*(2.0**axis for axis in axes), indexing="ij", sparse=True))


def rising(values: FloatArray, dimensions: Sequence[int]) -> FloatArray:
    """Values that rise along each of `dimensions`: one after the other, the middle of the least above and most below.

    Running maxima and minima along one dimension keep the order along the others, so the last pass undoes no earlier.
    """
    for dimension in dimensions:
        upper = np.maximum.accumulate(values, axis=dimension)
        lower = np.flip(np.minimum.accumulate(np.flip(values, dimension), axis=dimension), dimension)
        values = np.asarray((upper + lower) / 2)
    return values


def time_table(axes: Sequence[FloatArray], seconds: FloatArray, rises: Sequence[int]) -> TimeTable:
    """A table of times at `nodes(axes)` that rises along the dimensions `rises`."""
    shape = tuple(len(axis) for axis in axes)
    return TimeTable(LogGrid(tuple(axes), rising(np.log(np.broadcast_to(seconds, shape)), rises)))


def positive(**sizes: npt.ArrayLike) -> list[FloatArray]:
    """The sizes as arrays of floats; OptionError for one that is not positive and finite."""
    return _checked(sizes, np.greater, "positive")


def not_negative(**sizes: npt.ArrayLike) -> list[FloatArray]:
    """The sizes as arrays of floats; OptionError for one that is negative or not finite."""
    return _checked(sizes, np.greater_equal, "0 or more")


def _checked(sizes: Mapping[str, npt.ArrayLike], above: np.ufunc, must_be: str) -> list[FloatArray]:
    arrays = [np.asarray(size, dtype=np.float64) for size in sizes.values()]
    for name, array in zip(sizes, arrays, strict=True):
        if not (np.isfinite(array) & above(array, 0)).all():
            raise OptionError(f"{name} must be {must_be}")
    return arrays
