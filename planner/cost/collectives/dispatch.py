"""Expert dispatch and combine: tokens to the GPUs of their experts, and the results back.

    t = alpha + tokens · copies · bytes · byte_s, per number of nodes

A token goes once to each GPU (or node) that holds any of its experts, so `copies` is the expected number of distinct
ones under uniform routing, g (1 - (1 - 1/g)^k); the low-latency kernels send it once for each expert instead.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.cost.collectives.links import collective_seconds, link_bandwidth, link_for
from planner.cost.operators.grid import FloatArray
from planner.cost.operators.roofline import positive
from planner.cost.operators.tables import Record, records
from planner.errors import OptionError
from planner.hardware import DeviceKind
from planner.units import BytesPerSecond, Seconds

Kind = Literal["deepep_normal", "deepep_low_latency", "nvlink_alltoall"]
KINDS = ("deepep_normal", "deepep_low_latency", "nvlink_alltoall", "nccl")


class DispatchFit(Record):
    """One direction over one number of groups: nodes for DeepEP, GPUs for the NVLink all-to-all."""

    kind: Kind
    phase: Literal["dispatch", "combine"]
    groups: Annotated[int, Field(ge=1)]
    alpha_s: Seconds
    byte_s: Annotated[Seconds, Field(description="for one byte of one copy of a token")]
    bandwidth_bytes_per_s: Annotated[BytesPerSecond, Field(description="of the scale-up link it was timed on")]


def copies(top_k: npt.ArrayLike, num_gpus: npt.ArrayLike) -> FloatArray:
    """Expected number of distinct GPUs among the k uniform choices of a token."""
    gpus = np.asarray(num_gpus, dtype=np.float64)
    return np.asarray(gpus * (1 - (1 - 1 / gpus) ** np.asarray(top_k, dtype=np.float64)))


def dispatch_seconds(
    device: DeviceKind,
    kind: str,
    *,
    tokens_per_gpu: npt.ArrayLike,
    token_bytes: npt.ArrayLike,
    top_k: npt.ArrayLike,
    num_gpus: npt.ArrayLike,
    gpus_per_node: npt.ArrayLike = 8,
) -> FloatArray:
    """Seconds to send tokens to their experts' GPUs; sizes broadcast; 0 for one GPU.

    kind : deepep_normal or deepep_low_latency (H100, InfiniBand between nodes), nvlink_alltoall (one scale-up
    domain; without its preparation, 12 to 20 us more), nccl (an all-to-all in one domain).
    token_bytes : of one token on the wire; hidden_size for FP8.
    Measured on 1 to 8 nodes of 8, and 2 to 64 GPUs of NVL72; log-linear between, held beyond by what a copy costs.
    Raises OptionError for an unknown kind and for sizes that are not positive.
    """
    return _seconds(device, kind, "dispatch", tokens_per_gpu, token_bytes, top_k, num_gpus, gpus_per_node)


def combine_seconds(
    device: DeviceKind,
    kind: str,
    *,
    tokens_per_gpu: npt.ArrayLike,
    token_bytes: npt.ArrayLike,
    top_k: npt.ArrayLike,
    num_gpus: npt.ArrayLike,
    gpus_per_node: npt.ArrayLike = 8,
) -> FloatArray:
    """Seconds to bring the results back and sum them; as dispatch_seconds, token_bytes mostly 2 x hidden_size."""
    return _seconds(device, kind, "combine", tokens_per_gpu, token_bytes, top_k, num_gpus, gpus_per_node)


def exchange_seconds(
    device: DeviceKind,
    *,
    tokens_per_gpu: npt.ArrayLike,
    hidden_size: float,
    top_k: int,
    num_gpus: int,
    gpus_per_node: int = 8,
) -> FloatArray:
    """Seconds of one layer's dispatch in 8 bits and combine in 16, the faster way at each size; 0 for one GPU.

    Inside a scale-up domain the NVLink all-to-all, else DeepEP in its low-latency or normal mode.
    """
    inside = num_gpus <= max(device.scale_up_domain_gpus, 1)
    kinds = ("nvlink_alltoall",) if inside else ("deepep_low_latency", "deepep_normal")
    size = {"tokens_per_gpu": tokens_per_gpu, "top_k": top_k, "num_gpus": num_gpus, "gpus_per_node": gpus_per_node}
    ways = [
        dispatch_seconds(device, kind, token_bytes=hidden_size, **size)
        + combine_seconds(device, kind, token_bytes=2.0 * hidden_size, **size)
        for kind in kinds
    ]
    return np.asarray(np.minimum.reduce(ways))


def _seconds(
    device: DeviceKind,
    kind: str,
    phase: str,
    tokens_per_gpu: npt.ArrayLike,
    token_bytes: npt.ArrayLike,
    top_k: npt.ArrayLike,
    num_gpus: npt.ArrayLike,
    gpus_per_node: npt.ArrayLike,
) -> FloatArray:
    if kind not in KINDS:
        raise OptionError(f"unknown kind {kind!r} of expert dispatch; known: {', '.join(KINDS)}")
    tokens, size, k = positive(tokens_per_gpu=tokens_per_gpu, token_bytes=token_bytes, top_k=top_k)
    gpus, per_node = positive(num_gpus=num_gpus, gpus_per_node=gpus_per_node)
    if kind == "nccl":
        return collective_seconds("all_to_all", tokens * size * copies(k, gpus), gpus, link_for(device))
    groups = gpus if kind == "nvlink_alltoall" else np.ceil(gpus / per_node)
    sent = k if kind == "deepep_low_latency" else copies(k, gpus)
    fits = sorted(
        (fit for fit in records("dispatch", DispatchFit) if (fit.kind, fit.phase) == (kind, phase)),
        key=lambda fit: fit.groups,
    )
    at = np.log2([fit.groups for fit in fits])
    slower = fits[0].bandwidth_bytes_per_s / link_bandwidth(device)
    alpha = np.exp(np.interp(np.log2(groups), at, np.log([fit.alpha_s for fit in fits])))
    byte_s = np.exp(np.interp(np.log2(groups), at, np.log([fit.byte_s for fit in fits])))
    # Between nodes the network is the narrow link, and the scale-up bandwidth of the device does not matter.
    scale = slower if kind == "nvlink_alltoall" else np.where(groups > 1, 1.0, slower)
    return np.where(gpus > 1, alpha + tokens * size * sent * byte_s * scale, 0.0)
