"""Time of a model whose layers lie on unequal devices: pipelines of a pool, and a ring of home devices.

Knows nothing of how a plan was found. Times in seconds, sizes in bytes; arrays are over the stages or devices in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

#: Shares of peak rate and bandwidth that decode steps reach, and what each layer takes beside. Source: least squares
#: on 1,088 measured serving runs (AIConfigurator's silicon database); 11 % median error of the time of a token.
COMPUTE_SHARE, BANDWIDTH_SHARE, LAYER_OVERHEAD_S = 0.776, 0.826, 36e-6


def roofline_s(device: DeviceKind, flops: float, read_bytes: float) -> float:
    """Time of some arithmetic (16 bit) over some bytes on one device, by the slower of both; without overhead."""
    peak = max(device.flop_per_s.get("bf16", 0.0), device.flop_per_s.get("fp16", 0.0)) or max(
        device.flop_per_s.values()
    )
    return max(flops / (COMPUTE_SHARE * peak), read_bytes / (BANDWIDTH_SHARE * device.hbm_bandwidth_bytes_per_s))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hops:
    """What handing a step over takes: [from site, to site], the diagonal within a site; inf where there is no link.

    step_s : latency and transfer of the activations; return_s : latency of the sampled tokens' way back to the first
    stage; steps_per_s : what the link carries.
    """

    step_s: FloatArray
    return_s: FloatArray
    steps_per_s: FloatArray


def pipeline_latency_s(slot_s: float, sites: Sequence[int], hops: Hops) -> float:
    """A step through stages at these sites, paced: a slot at each, and the links between, back to the first included.

    inf where stages that follow one another have no link.
    """
    way = sum(float(hops.step_s[one, two]) for one, two in pairwise(sites))
    back = float(hops.return_s[sites[-1], sites[0]]) if len(sites) > 1 else 0.0
    return len(sites) * slot_s + way + back


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HomeTimes:
    """Parts of one token's time on each device of a ring, [devices], and the bytes behind them."""

    compute_s: FloatArray
    disk_s: FloatArray
    hop_s: FloatArray
    resident_bytes: FloatArray
    reloaded_bytes: FloatArray

    @property
    def token_s(self) -> float:
        """Of all devices, one after the other."""
        return float(self.compute_s.sum() + self.disk_s.sum() + self.hop_s.sum())


def home_times(
    layers: npt.NDArray[np.int64],
    gpu_layers: npt.NDArray[np.int64],
    rounds: int,
    *,
    layer_bytes: float,
    cpu_layer_s: FloatArray,
    gpu_layer_s: FloatArray,
    ram_bytes: FloatArray,
    disk_bytes_per_s: FloatArray,
    hop_s: FloatArray,
    reloads_all: npt.NDArray[np.bool_],
) -> HomeTimes:
    """One token around the ring, `rounds` times; layers and gpu_layers are of one round.

    What the CPU's layers are more than its RAM is read from disk for every token; all of them where `reloads_all`.
    Reading does not overlap with computing. A device without layers is not in the ring; alone, it hands nothing over.
    Source: the cost model of prima.cpp's layer-window assignment, its Linux and macOS cases.
    """
    on_cpu = rounds * (layers - gpu_layers)
    need = layer_bytes * on_cpu
    # Sums of bytes are rounded: a layer that fits exactly is not too much.
    over: FloatArray = np.where(need <= ram_bytes * (1 + 1e-12), 0.0, need - ram_bytes)
    reloaded: FloatArray = np.where(reloads_all & (over > 0), need, over)
    used = layers > 0
    return HomeTimes(
        compute_s=on_cpu * cpu_layer_s + rounds * gpu_layers * np.where(gpu_layers > 0, gpu_layer_s, 0.0),
        disk_s=reloaded / disk_bytes_per_s,
        hop_s=np.where(used & (used.sum() > 1), rounds * hop_s, 0.0),
        resident_bytes=need - reloaded,
        reloaded_bytes=reloaded,
    )
