"""Collectives among GPUs that NVLink, Infinity Fabric or one host's PCIe joins.

    t = (alpha + root · sqrt(s) + s / rate) · exp(residual over log2 s)

s, in bytes, is the buffer that the measurements count: all-reduce, the buffer of one rank; all-gather, what every rank
has afterwards; reduce-scatter, what it has before; all-to-all, all that one rank sends, its own part included;
p2p, the message. On another device root goes with 1 / sqrt(bandwidth) and 1 / rate with 1 / bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.catalog import device as catalogued
from planner.cost.operators.grid import FloatArray
from planner.cost.operators.roofline import TimeTable, time_table
from planner.cost.operators.tables import Record, Residuals, Source, records
from planner.errors import OptionError
from planner.hardware import DeviceKind
from planner.units import BytesPerSecond, Seconds

Op = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p"]
OPS: tuple[Op, ...] = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "p2p")
#: Kernels that do a library's work from CUDA graphs, and launched one by one; those timed come before the others.
#: TensorRT-LLM was timed in one way only. SGLang's all-reduce descends from vLLM's and stands for it.
KERNELS = {
    "nccl": (("nccl",), ("nccl",)),
    "trtllm": (("trtllm", "nccl"), ("trtllm", "nccl")),
    "vllm": (("vllm_graph", "sglang_graph", "nccl"), ("vllm_eager", "sglang_eager", "nccl")),
    "sglang": (("sglang_graph", "nccl"), ("sglang_eager", "nccl")),
}
#: log2 of the message sizes that a link's table holds, 256 B to 1 GiB, as measured.
BYTES_AXIS = np.arange(8.0, 31.0)
#: A device of an architecture that was never timed takes the fit of the links nearest to this, whatever its own: one
#: fit for all of them, so that a faster link is never slower for being like another device. Source: NVLink 4 of H100
#: and H200; modelled.
STANDARD_BANDWIDTH = 450e9
#: GPUs of one host that PCIe joins at most; measured up to 8.
HOST_GPUS = 8
#: Growth of alpha a doubling beyond the measured groups lies in this range, whatever the last two groups show.
_ALPHA_GROWTH = (1.0, 1.5)


class CollectiveFit(Record):
    """One operation of one kernel among `num_gpus`, and the link bandwidth that it was timed on."""

    kernel: Annotated[str, Field(description="nccl, trtllm, vllm_graph, vllm_eager, sglang_graph, sglang_eager")]
    op: Op
    num_gpus: Annotated[int, Field(ge=2)]
    alpha_s: Seconds
    root_s: Annotated[Seconds, Field(description="for the square root of one byte")]
    byte_s: Annotated[Seconds, Field(description="for one byte")]
    bandwidth_bytes_per_s: BytesPerSecond
    residuals: Residuals

    def parts(self, message_bytes: FloatArray, bandwidth_bytes_per_s: float) -> tuple[float, FloatArray]:
        """alpha, and what the message adds, on a link of another bandwidth; residuals left out."""
        slower = self.bandwidth_bytes_per_s / bandwidth_bytes_per_s
        grows = self.root_s * np.sqrt(message_bytes * slower) + self.byte_s * message_bytes * slower
        return self.alpha_s, np.asarray(grows)


@dataclass(frozen=True, slots=True, eq=False)
class CollectiveLink:
    """Times of every operation over (log2 GPUs, log2 bytes), for one device, library and way of launching."""

    device: str
    library: str
    most_gpus: int
    tables: Mapping[str, TimeTable]
    sources: Mapping[str, Source]


def link_bandwidth(device: DeviceKind) -> float:
    """What one GPU sends to its peers, bytes/s in one direction: scale-up links, else PCIe. OptionError for neither."""
    bandwidth = device.scale_up_bandwidth_bytes_per_s or device.pcie_bandwidth_bytes_per_s
    if bandwidth is None:
        raise OptionError(f"{device.name} has neither scale_up_bandwidth_bytes_per_s nor pcie_bandwidth_bytes_per_s")
    return bandwidth


def over_pcie(device: DeviceKind) -> bool:
    """Whether peers are reached through the host."""
    return device.scale_up_domain_gpus < 2


def link_for(device: DeviceKind, library: str = "nccl", *, graph: bool = True) -> CollectiveLink:
    """How the GPUs of one scale-up domain (or PCIe host) of a device talk under a library.

    library : nccl, trtllm, vllm or sglang; the latter three bring an all-reduce of their own, whose table holds their
    own switch to NCCL for large messages; NCCL does the rest, and everything where theirs was not timed.
    Source of an operation: measured, on this device; calibrated, by a related kernel or by link bandwidth from another
    device of its architecture; datasheet, by bandwidth from H100's links, or the nearest to them.
    Beyond the largest group timed (8, or 4 in NVL72) alpha grows as before and transfers with (n-1)/n: modelled.
    Raises OptionError for an unknown library.
    """
    if library not in KERNELS:
        raise OptionError(f"unknown library {library!r}; known: {', '.join(KERNELS)}")
    bandwidth, pcie = link_bandwidth(device), over_pcie(device)
    domain = max(HOST_GPUS, device.scale_up_domain_gpus)
    return _link(
        device.name, device.architecture, bandwidth, pcie, domain, library, KERNELS[library][0 if graph else 1]
    )


@lru_cache(maxsize=256)
def _link(
    name: str, architecture: str, bandwidth: float, pcie: bool, domain: int, library: str, kernels: tuple[str, ...]
) -> CollectiveLink:
    known = [fit for fit in records("collectives", CollectiveFit) if over_pcie(catalogued(fit.device)) == pcie]
    tables: dict[str, TimeTable] = {}
    sources: dict[str, Source] = {}
    for op in OPS:
        fits = [fit for fit in known if fit.op == op]
        own = [fit for fit in fits if fit.device == name]
        related = [fit for fit in fits if catalogued(fit.device).architecture == architecture]
        kinds: tuple[tuple[Source, list[CollectiveFit]], ...] = (
            ("measured", own),
            ("calibrated", related),
            ("datasheet", fits),
        )
        for source, kind in kinds:
            chosen = _nearest(kind, kernels, STANDARD_BANDWIDTH if source == "datasheet" else bandwidth)
            if chosen:
                timed = chosen[0].bandwidth_bytes_per_s == bandwidth and chosen[0].kernel in (kernels[0], "nccl")
                tables[op] = _table(chosen, bandwidth, domain)
                sources[op] = "calibrated" if source == "measured" and not timed else source
                break
    return CollectiveLink(device=name, library=library, most_gpus=domain, tables=tables, sources=sources)


def _nearest(fits: Sequence[CollectiveFit], kernels: Sequence[str], bandwidth: float) -> list[CollectiveFit]:
    """The group sizes of the first of the kernels that is there, on the device of nearest bandwidth."""
    for kernel in kernels:
        timed = [fit for fit in fits if fit.kernel == kernel]
        if timed:
            best = min(timed, key=lambda fit: abs(float(np.log(fit.bandwidth_bytes_per_s / bandwidth))))
            return [fit for fit in timed if fit.device == best.device]
    return []


def _table(fits: Sequence[CollectiveFit], bandwidth: float, domain: int) -> TimeTable:
    """Times over group size and bytes, rising with bytes."""
    by_size = {fit.num_gpus: fit for fit in fits}
    sizes, message = sorted(by_size), 2.0**BYTES_AXIS
    rows = []
    for num_gpus in sizes:
        fit = by_size[num_gpus]
        alpha, grows = fit.parts(message, bandwidth)
        rows.append((alpha + grows) * np.exp(fit.residuals.grid(message)))
    nodes = [float(np.log2(num_gpus)) for num_gpus in sizes]
    last, alphas = sizes[-1], [by_size[num_gpus].alpha_s for num_gpus in sizes]
    growth = float(np.clip(alphas[-1] / alphas[-2], *_ALPHA_GROWTH)) if len(alphas) > 1 else 1.0
    largest, alpha = rows[-1], min(alphas[-1], float(rows[-1].min()))
    while 2.0 ** nodes[-1] < domain:
        nodes.append(nodes[-1] + 1)
        num_gpus = 2.0 ** nodes[-1]
        ring = (1 - 1 / num_gpus) / (1 - 1 / last)
        rows.append(alpha * growth ** (nodes[-1] - np.log2(last)) + (largest - alpha) * ring)
    if len(rows) == 1:  # p2p: one pair, whatever the group
        nodes, rows = [nodes[0], nodes[0] + 1], [rows[0], rows[0]]
    return time_table((np.asarray(nodes), BYTES_AXIS), np.stack(rows), rises=(1,))


def collective_seconds(
    op: str, message_bytes: npt.ArrayLike, num_gpus: npt.ArrayLike, link: CollectiveLink
) -> FloatArray:
    """Seconds of one collective, sizes broadcast; 0 for a group of one. What counts as the message: see above.

    Between measured groups of 2, 4 and 8, log-linear in the number of GPUs. Messages below 256 bytes take as long as
    those. Raises OptionError for an unknown operation, negative sizes and groups larger than the link joins.
    """
    if op not in OPS:
        raise OptionError(f"unknown collective {op!r}; known: {', '.join(OPS)}")
    message, group = np.asarray(message_bytes, dtype=np.float64), np.asarray(num_gpus, dtype=np.float64)
    if not ((message >= 0) & np.isfinite(message)).all() or not (group >= 1).all():
        raise OptionError("message_bytes must not be negative, and num_gpus must be at least 1")
    if (group > link.most_gpus).any():
        raise OptionError(f"{link.device} joins {link.most_gpus} GPUs; a larger group spans nodes")
    if op == "p2p":
        group = np.minimum(group, 2.0)
        if op not in link.tables:  # half of a pair's all-to-all goes to the peer
            op, message = "all_to_all", 2 * message
    seconds = link.tables[op](np.maximum(group, 2.0), np.maximum(message, 1.0))
    return np.where(group > 1, seconds, 0.0)
