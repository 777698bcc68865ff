"""Time of one fused mixture-of-experts layer on the busiest rank: a law in what the rank must move and multiply.

    t = launch + token_passes · token traffic
      + touched · (expert + weight traffic / memory_efficiency) · exp(memory grid)
      + rows · (arithmetic / compute_efficiency + row_passes · row traffic) · exp(compute grid)

Two expected counts carry the routing: `touched`, the experts of the rank that get any token, whose weights are read;
and `rows`, the token-expert pairs that the rank multiplies. Traffic is over nominal bandwidth and arithmetic over
nominal peak, so the coefficients are pure numbers and carry over to other devices. The memory grid has one coordinate
(bytes of touched weights: caches, small reads), the compute grid two (rows per touched expert and the rank's
intermediate size: how full the tiles are). Neither knows a model, so a model that was never timed is predicted.

Never faster with more tokens: rows, touched and their ratio grow with tokens, and no grid falls faster than
1 / coordinate, which `MoeFit` enforces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.cost.operators.grid import FloatArray
from planner.cost.operators.roofline import Efficiency, not_negative, positive
from planner.cost.operators.tables import REPRESENTATIVES, Record, Residuals, Source, records
from planner.descriptions.base import Problem
from planner.errors import OptionError
from planner.hardware import DeviceKind
from planner.units import BytesPerSecond, FlopPerSecond, Seconds

#: Matrices of one gated expert: gate, up and down.
EXPERT_MATRICES = 3
#: Expected maximum of 1, 2, 4, ... 256 standard normal numbers (order statistics; by numeric integration).
_MAXIMA = np.array([0.0, 0.5642, 1.0294, 1.4236, 1.7660, 2.0697, 2.3437, 2.5943, 2.8262])
#: Spread of expert popularity that a batch of few tokens shows, hottest over coldest. Measured tables draw from
#: [0.01, 2] there and from [1, 0.8 tokens] for large batches; 64 joins the two without a step.
_SMALL_BATCH_SPREAD = 64.0
_LARGE_BATCH_SPREAD = 0.8  # times tokens; ai-dynamo/aiconfigurator collector/helper.py


class Rate(NamedTuple):
    """What an arithmetic format moves and multiplies with: bytes of a weight with scales, of an activation; peak."""

    weight_bytes: float
    activation_bytes: float
    dtype: str


#: Kernels by the arithmetic that they do. Scales: NVFP4 one byte for 16, MXFP4 one byte for 32, int4 two for 128.
RATES = {
    "bf16": Rate(2.0, 2.0, "bf16"),
    "w8a16": Rate(1.0, 2.0, "bf16"),
    "fp8": Rate(1.0, 1.0, "fp8"),
    "fp8_block": Rate(1.0, 1.0, "fp8"),
    "int8": Rate(1.0, 1.0, "int8"),
    "nvfp4": Rate(0.5625, 0.5625, "fp4"),
    "w4a16_mxfp4": Rate(0.53125, 2.0, "bf16"),
    "w4a8_mxfp4_mxfp8": Rate(0.53125, 1.0, "fp8"),
    "int4": Rate(0.515625, 2.0, "bf16"),
}
#: Whose efficiencies stand for those of a kernel that was not timed on a device, best first.
_LIKE = {
    "w8a16": ("bf16",),
    "int8": ("fp8",),
    "fp8": ("fp8_block",),
    "fp8_block": ("fp8",),
    "w4a16_mxfp4": ("int4",),
    "int4": ("w4a16_mxfp4",),
}
QUANTS = ("bf16", "fp8", "fp8_block", "nvfp4", "mxfp4", "int8", "int4")


class MoeFit(Record):
    """Coefficients of one kernel on one device; see the law above."""

    kernel: Annotated[str, Field(description="the source's name of the implementation")]
    arithmetic: Annotated[str, Field(description="one of RATES")]
    launch_s: Seconds
    expert_s: Annotated[Seconds, Field(description="for each touched expert")]
    memory_efficiency: Efficiency
    compute_efficiency: Efficiency
    row_passes: Annotated[float, Field(ge=0, description="over the inputs and outputs of both products")]
    token_passes: Annotated[float, Field(ge=0, description="over the layer's input and output")]
    peak_flop_per_s: Annotated[FlopPerSecond, Field(description="that compute_efficiency is a fraction of")]
    bandwidth_bytes_per_s: Annotated[BytesPerSecond, Field(description="that memory_efficiency is a fraction of")]
    memory: Residuals | None = None
    compute: Residuals | None = None

    def problems(self) -> Iterator[Problem]:
        """A grid that falls faster than its coordinate grows would make more work faster."""
        for name, grid in (("memory", self.memory), ("compute", self.compute)):
            if grid is not None:
                rise = np.diff(grid.grid.values, axis=0).T + np.log(2) * np.diff(grid.axes[0])
                if rise.min() < 0:
                    yield (name,), "falls faster than 1 / its first coordinate: more work would take less time"


#: Coefficients that are averaged for a device without a fit of its own, geometrically.
_COEFFICIENTS = ("launch_s", "expert_s", "memory_efficiency", "compute_efficiency", "row_passes", "token_passes")


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What the busiest expert-parallel rank gets: token-expert pairs, and experts that get any; both at least 1."""

    rows: FloatArray
    touched: FloatArray


def rank_load(
    tokens: npt.ArrayLike,
    num_experts: npt.ArrayLike,
    top_k: npt.ArrayLike,
    moe_ep: npt.ArrayLike,
    routing: str | float = "power_law_1.01",
) -> RankLoad:
    """Expected load of the busiest rank, sizes broadcast together.

    tokens : of the whole expert-parallel group, before top-k. routing : "balanced", "power_law_A", or the exponent A
    of a bounded power law of expert popularity, with density x^-A, experts in random order over the ranks.

    The busiest of N ranks lies z(N) standard deviations above the mean, z being the expected maximum of N normal
    numbers with the Cornish-Fisher correction for the law's skewness; never more than the rank's experts can get.
    Experts whose expected count is below one half are reached by their share of tokens alone. Against simulated
    draws: rows within 6 %, touched within 5 % in the mean.
    """
    t, e, k, ep = (np.asarray(size, dtype=np.float64) for size in (tokens, num_experts, top_k, moe_ep))
    per_rank, mean = e / ep, t * k / ep
    exponent = _exponent(routing)
    if exponent is None:
        rows = np.maximum(mean, 1.0)
        return RankLoad(rows, np.minimum(rows, per_rank))
    spread = np.maximum(_LARGE_BATCH_SPREAD * t, _SMALL_BATCH_SPREAD)
    total = _power_integral(spread, 1 - exponent)
    first, second, third = (_power_integral(spread, order - exponent) / total for order in (2, 3, 4))
    deviation = np.sqrt(second - first**2)
    skewness = (third - 3 * first * second + 2 * first**3) / deviation**3
    z = np.interp(np.log2(ep), np.arange(_MAXIMA.size), _MAXIMA)
    corrected = np.maximum(z + skewness / np.sqrt(per_rank) * (z**2 - 1) / 6, z / 2) * (ep > 1)
    hottest = 1 + corrected * deviation / first / np.sqrt(per_rank) * np.sqrt(1 - 1 / ep)
    most = np.minimum(np.minimum(np.minimum(per_rank, k) * t / mean, ep), spread / first)
    rows = np.maximum(mean * np.minimum(hottest, most), 1.0)
    share = rows / per_rank / first  # mean count of the least popular expert
    half = np.clip(0.5 / share, 1.0, spread)  # popularity at which the mean count is one half
    below = _power_integral(half, 1 - exponent) / total
    reached_below = share * _power_integral(half, 2 - exponent) / total
    return RankLoad(rows, np.minimum(np.clip(per_rank * (1 - below + reached_below), 1.0, per_rank), rows))


def _exponent(routing: str | float) -> float | None:
    """Exponent of the power law, None for balanced. OptionError for anything else."""
    if routing == "balanced":
        return None
    try:
        exponent = float(routing.removeprefix("power_law_") if isinstance(routing, str) else routing)
    except ValueError:
        exponent = -1.0
    if not 0 < exponent < 10:
        raise OptionError(f"routing must be balanced, power_law_A or a number A in (0, 10), not {routing!r}")
    return exponent


def _power_integral(upper: FloatArray, power: float) -> FloatArray:
    """Integral of x^(power-1) from 1 to upper."""
    return np.log(upper) if abs(power) < 1e-6 else np.asarray((upper**power - 1) / power)


def moe_seconds(
    device: DeviceKind,
    quant: str,
    *,
    tokens: npt.ArrayLike,
    hidden_size: npt.ArrayLike,
    moe_intermediate_size: npt.ArrayLike,
    top_k: npt.ArrayLike,
    num_experts: npt.ArrayLike,
    moe_tp: npt.ArrayLike,
    moe_ep: npt.ArrayLike,
    routing: str | float = "power_law_1.01",
    launch: bool = True,
) -> FloatArray:
    """Seconds of one fused-MoE layer (routing, gate-up, activation, down, weighted sum) on the busiest rank.

    Sizes are positive and broadcast together; `tokens` counts the tokens of the whole group before top-k, and
    `moe_intermediate_size` is the model's, cut by moe_tp. launch : with the fixed time of kernels launched alone.
    Where several kernels do the same arithmetic, the fastest at each point counts, as engines choose.

    Raises OptionError for an unknown format or routing, and for sizes that are not positive.
    """
    t, hidden, inter = positive(tokens=tokens, hidden_size=hidden_size, moe_intermediate_size=moe_intermediate_size)
    k, e, tp, ep = positive(top_k=top_k, num_experts=num_experts, moe_tp=moe_tp, moe_ep=moe_ep)
    if (k > e).any() or (ep > e).any():
        raise OptionError("top_k and moe_ep must not exceed num_experts")
    load = rank_load(t, e, k, ep, routing)
    fits, _ = _fits(device, quant)
    times = [_seconds(fit, arithmetic, device, t, hidden, inter / tp, load, launch) for arithmetic, fit in fits]
    return np.asarray(np.minimum.reduce(times))


def moe_rank_seconds(
    device: DeviceKind,
    quant: str,
    *,
    rows: npt.ArrayLike,
    touched: npt.ArrayLike,
    tokens: npt.ArrayLike,
    hidden_size: npt.ArrayLike,
    moe_intermediate_size: npt.ArrayLike,
    launch: bool = True,
) -> FloatArray:
    """Seconds of one fused-MoE layer on a rank whose load is known, sizes broadcast together.

    rows : token-expert pairs that the rank computes; touched : experts that get any (both may be below 1, and 0 is no
    work beyond the fixed time); tokens : that reach the rank; moe_intermediate_size : of the rank.
    """
    t, hidden, inter = positive(tokens=tokens, hidden_size=hidden_size, moe_intermediate_size=moe_intermediate_size)
    pairs, experts = not_negative(rows=rows, touched=touched)
    tiny = np.finfo(np.float64).tiny
    load = RankLoad(np.maximum(pairs, tiny), np.maximum(experts, tiny))
    fits, _ = _fits(device, quant)
    times = [_seconds(fit, arithmetic, device, t, hidden, inter, load, launch) for arithmetic, fit in fits]
    return np.asarray(np.minimum.reduce(times))


def moe_source(device: DeviceKind, quant: str) -> Source:
    """measured: this layer was timed on this device. calibrated: fit of its architecture or of a like kernel, on its
    own rates. datasheet: its rates with the mean coefficients of all devices. OptionError for an unknown format.
    """
    return _fits(device, quant)[1]


def _seconds(
    fit: MoeFit,
    arithmetic: str,
    device: DeviceKind,
    tokens: FloatArray,
    hidden: FloatArray,
    inter: FloatArray,
    load: RankLoad,
    launch: bool,
) -> FloatArray:
    """The law for one kernel; `inter` is the rank's share of the intermediate size."""
    rate, bandwidth = RATES[arithmetic], device.hbm_bandwidth_bytes_per_s
    token_bytes, weight_bytes, row_bytes, row_flop = work(rate, hidden, inter)
    memory = load.touched * (fit.expert_s + weight_bytes / (fit.memory_efficiency * bandwidth))
    arithmetic_s = row_flop / (fit.compute_efficiency * _peak(device, rate.dtype))
    compute = load.rows * (arithmetic_s + fit.row_passes * row_bytes / bandwidth)
    if fit.memory is not None:
        memory = memory * np.exp(fit.memory.grid(load.touched * weight_bytes))
    if fit.compute is not None:
        compute = compute * np.exp(fit.compute.grid(load.rows / load.touched, inter))
    fixed = fit.launch_s if launch else 0.0
    return np.asarray(fixed + fit.token_passes * tokens * token_bytes / bandwidth + memory + compute)


def work(rate: Rate, hidden: FloatArray, inter: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Bytes of a token's input and output, bytes of an expert's weights, bytes and FLOP of a row (one pass each).

    Outputs and the gate-up result are 16 bit; inputs of both matrix products are in the activation format.
    """
    token_bytes = hidden * (rate.activation_bytes + 2)
    weight_bytes = EXPERT_MATRICES * hidden * inter * rate.weight_bytes
    row_bytes = hidden * (rate.activation_bytes + 2) + inter * (3 * rate.activation_bytes + 2)
    return token_bytes, weight_bytes, row_bytes, 2 * EXPERT_MATRICES * hidden * inter


def _has(device: DeviceKind, dtype: str) -> bool:
    return dtype in device.flop_per_s


def _peak(device: DeviceKind, dtype: str) -> float:
    """Peak of a format; 16 bit is 16 bit on devices that have only one of the two."""
    return device.peak_flop_per_s("fp16" if dtype == "bf16" and not _has(device, "bf16") else dtype)


def _arithmetics(device: DeviceKind, quant: str) -> tuple[str, ...]:
    """Kernels that an engine can run for weights of a format on a device; 16-bit arithmetic where it has no better."""
    if quant not in QUANTS:
        raise OptionError(f"unknown format {quant!r} of an MoE layer; known: {', '.join(QUANTS)}")
    if quant in ("fp8", "fp8_block", "int8") and not _has(device, RATES[quant].dtype):
        return ("w8a16",)
    if quant == "mxfp4":
        return ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8") if _has(device, "fp4") else ("w4a16_mxfp4",)
    if quant == "nvfp4" and not _has(device, "fp4"):
        return ("w4a16_mxfp4",)
    return (quant,)


def _fits(device: DeviceKind, quant: str) -> tuple[list[tuple[str, MoeFit]], Source]:
    """Arithmetic and fit of every kernel that may run, and how far they are measured."""
    found: list[tuple[str, MoeFit]] = []
    sources: list[Source] = []
    for arithmetic in _arithmetics(device, quant):
        chosen = _nearest(device, arithmetic)
        exact = quant in arithmetic  # nvfp4 that runs as mxfp4 was not measured as nvfp4
        rates = _peak(device, RATES[arithmetic].dtype), device.hbm_bandwidth_bytes_per_s
        known = (device.name, arithmetic, *rates)
        if not chosen:
            chosen = [_mean_fit(arithmetic)]
            sources.append("datasheet")
        elif exact and all(_setting(fit) == known for fit in chosen):
            sources.append("measured")
        else:
            sources.append("calibrated")
        found += [(arithmetic, fit) for fit in chosen]
    return found, max(sources, key=("measured", "calibrated", "datasheet").index)


def _nearest(device: DeviceKind, arithmetic: str) -> list[MoeFit]:
    """Fits of the device, else of its architecture's representative; of the arithmetic itself, else of one like it."""
    for name in (device.name, REPRESENTATIVES.get(device.architecture)):
        for timed in (arithmetic, *_LIKE.get(arithmetic, ())):
            chosen = [fit for fit in records("moe", MoeFit) if (fit.device, fit.arithmetic) == (name, timed)]
            if chosen:
                return chosen
    return []


def _setting(fit: MoeFit) -> tuple[str, str, float, float]:
    return fit.device, fit.arithmetic, fit.peak_flop_per_s, fit.bandwidth_bytes_per_s


@cache
def _mean_fit(arithmetic: str) -> MoeFit:
    """The geometric mean of the coefficients over all devices and kernels of an arithmetic, without grids."""
    known = {fit.arithmetic for fit in records("moe", MoeFit)}
    timed = next(one for one in (arithmetic, *_LIKE.get(arithmetic, ())) if one in known)
    fits = [fit for fit in records("moe", MoeFit) if fit.arithmetic == timed]
    mean = {name: float(np.exp(np.mean([np.log(getattr(fit, name)) for fit in fits]))) for name in _COEFFICIENTS}
    return fits[0].model_copy(update={**mean, "kernel": "mean", "memory": None, "compute": None})
