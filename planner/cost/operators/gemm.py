"""Time of a dense matrix product: [m, k] activations times [k, n] weights, one GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy.typing as npt

from planner.cost.operators.grid import FloatArray
from planner.cost.operators.roofline import (
    Law,
    RooflineFit,
    TimeTable,
    half_octaves,
    law_of,
    nodes,
    positive,
    time_table,
)
from planner.cost.operators.tables import NonEmpty, Source, records
from planner.errors import OptionError
from planner.hardware import DeviceKind
from planner.model.formats import FORMATS

#: Activations come in and go out in 16 bits; kernels of narrower formats quantise them inside.
ACTIVATION_BYTES = 2.0
#: Sizes of m, n and k that a TimeTable covers: 1 to 4 M tokens, 16 to 1 M features.
AXES = (half_octaves(22), half_octaves(20, 4), half_octaves(20, 4))


class GemmFit(RooflineFit):
    """One device and format; residuals over (m, n, k)."""

    quant: NonEmpty


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a quantisation runs on a device: bytes of one weight, the unit that computes, whose fits apply best first."""

    weight_bytes: float
    dtype: str
    fits: tuple[str, ...]


def _weight_bytes(name: str) -> float:
    """Bytes of one weight with its share of the scales, in a large matrix."""
    side = 4096
    return FORMATS[name].matrix_bytes(side, side) / side**2


#: Weight format, native unit, and whose fits apply, best first, by quantisation. int8 kernels were not measured: they
#: are taken as the fp8 ones on their own units, or the bf16 ones where there is no fp8. mxfp4 was measured for experts
#: only: where FP4 units exist it is taken as nvfp4 with its own scales. No unit takes int4: it is widened (w4a16).
QUANTS: Mapping[str, tuple[str, str | None, tuple[str, ...]]] = {
    "bf16": ("bfloat16", "bf16", ("bf16",)),
    "fp8": ("fp8", "fp8", ("fp8",)),
    "fp8_block": ("fp8_block", "fp8", ("fp8_block",)),
    "nvfp4": ("nvfp4", "fp4", ("nvfp4",)),
    "mxfp4": ("mxfp4", "fp4", ("nvfp4",)),
    "int8": ("int8", "int8", ("fp8", "bf16")),
    "int4": ("int4", None, ()),
}


def arithmetic(device: DeviceKind, quant: str) -> Arithmetic:
    """How `quant` runs on a device. OptionError for an unknown name.

    A device without the unit widens the weights to 16 bits and computes there (w8a16, w4a16), as the Marlin kernels
    do for FP8 on Ampere and for MXFP4 on Hopper. Devices before Ampere have fp16 in place of bf16.
    """
    if quant not in QUANTS:
        raise OptionError(f"no quantisation {quant!r}; known: {', '.join(QUANTS)}")
    weights, unit, fits = QUANTS[quant]
    if unit in device.flop_per_s:
        return Arithmetic(_weight_bytes(weights), unit, fits)
    wide = "bf16" if "bf16" in device.flop_per_s else "fp16"
    return Arithmetic(_weight_bytes(weights), wide, ("bf16",))


def gemm_work(m: FloatArray, n: FloatArray, k: FloatArray, weight_bytes: float) -> tuple[FloatArray, FloatArray]:
    """FLOP and bytes that a product takes: weights once, activations in, result out."""
    return 2 * m * n * k, n * k * weight_bytes + (m * k + m * n) * ACTIVATION_BYTES


def gemm_law(device: DeviceKind, quant: str, fits: Sequence[GemmFit]) -> tuple[Law, float]:
    """The law of a product among `fits`, and the bytes of one weight."""
    runs = arithmetic(device, quant)

    def rank(fit: GemmFit) -> int | None:
        return runs.fits.index(fit.quant) + (fit.quant != quant) if fit.quant in runs.fits else None

    return law_of(fits, device, device.peak_flop_per_s(runs.dtype), rank), runs.weight_bytes


@lru_cache(maxsize=256)
def gemm_table(law: Law, weight_bytes: float, launch: bool) -> TimeTable:
    """Times over (m, n, k), rising with all three."""
    m, n, k = nodes(AXES)
    seconds = law.seconds(*gemm_work(m, n, k, weight_bytes), (m, n, k), launch)
    return time_table(AXES, seconds, rises=(0, 1, 2))


def gemm_seconds(
    device: DeviceKind, quant: str, m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike, *, launch: bool = True
) -> FloatArray:
    """Seconds of [m, k] x [k, n] on one device, broadcast; never less for a larger m, n or k.

    quant : a key of QUANTS. launch : an isolated kernel; False is what it costs in a CUDA graph, see `Law.seconds`.
    Raises OptionError for sizes that are not positive and unknown formats.
    """
    law, weight_bytes = gemm_law(device, quant, records("gemm", GemmFit))
    return gemm_table(law, weight_bytes, launch)(*positive(m=m, n=n, k=k))


def gemm_source(device: DeviceKind, quant: str) -> Source:
    """Whether `gemm_seconds` rests on measurements of this device and format, of a related one, or on peaks alone."""
    return gemm_law(device, quant, records("gemm", GemmFit))[0].source
