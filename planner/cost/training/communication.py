"""Collectives of training over two tiers: links inside a node, the network between nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

#: Start-up of one step of a collective inside a node and between nodes. NCCL's own tuning table has 0.6-6.6 us for
#: NVLink and 5-14 us for a network by algorithm and protocol (NCCL graph/tuning.cc); a round value of that order.
INTRA_NODE_LATENCY_S = 5e-6
INTER_NODE_LATENCY_S = 10e-6


@dataclass(frozen=True, kw_only=True)
class TrainingNetwork:
    """Links of a cluster of equal nodes; bandwidths are of one GPU in one direction, before efficiency.

    Ranks are laid out as Megatron does: tensor parallel innermost, then context, data (experts inside it), pipeline.
    """

    gpus_per_node: int
    intra_node_bytes_per_s: float
    inter_node_bytes_per_s: float
    intra_node_latency_s: float = INTRA_NODE_LATENCY_S
    inter_node_latency_s: float = INTER_NODE_LATENCY_S

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise ValueError("gpus_per_node must be positive")
        if not (self.intra_node_bytes_per_s > 0 and self.inter_node_bytes_per_s > 0):
            raise ValueError("bandwidths must be positive")
        if self.intra_node_latency_s < 0 or self.inter_node_latency_s < 0:
            raise ValueError("latencies must not be negative")

    @classmethod
    def of(
        cls, device: DeviceKind, *, inter_node_bytes_per_s: float, gpus_per_node: int | None = None
    ) -> TrainingNetwork:
        """Nodes of a device's whole scale-up domain, or of fewer GPUs; PCIe inside them where it has no such links."""
        inside = device.scale_up_bandwidth_bytes_per_s or device.pcie_bandwidth_bytes_per_s
        if inside is None:
            raise ValueError(f"{device.name} has neither a scale-up nor a PCIe bandwidth; give a TrainingNetwork")
        return cls(
            gpus_per_node=device.scale_up_domain_gpus if gpus_per_node is None else gpus_per_node,
            intra_node_bytes_per_s=inside,
            inter_node_bytes_per_s=inter_node_bytes_per_s,
        )


@dataclass(frozen=True)
class Group:
    """Communication groups of n plans as they lie on nodes, arrays [n]: members, those of one node, and nodes."""

    size: FloatArray
    in_node: FloatArray
    nodes: FloatArray


def group(network: TrainingNetwork, size: FloatArray, stride: FloatArray) -> Group:
    """Groups of `size` ranks that are `stride` ranks apart."""
    room = np.maximum(network.gpus_per_node // stride, 1.0)
    in_node = np.minimum(size, room)
    return Group(size, in_node, size / in_node)


@dataclass(frozen=True)
class Links:
    """A network as collectives find it: bandwidth times efficiency."""

    network: TrainingNetwork
    efficiency: float

    @property
    def inside(self) -> float:
        """Bytes a second of a GPU inside its node."""
        return self.network.intra_node_bytes_per_s * self.efficiency

    @property
    def between(self) -> float:
        """Bytes a second of a GPU to other nodes."""
        return self.network.inter_node_bytes_per_s * self.efficiency

    def latency_s(self, ranks: Group) -> FloatArray:
        """Start-up of one collective: a tree inside the node, then one over nodes, [n]."""
        inside = np.log2(ranks.in_node) * self.network.intra_node_latency_s
        return np.asarray(inside + np.log2(ranks.nodes) * self.network.inter_node_latency_s)

    def second_per_byte(self, ranks: Group) -> FloatArray:
        """Time of a reduce-scatter or all-gather for one byte of the whole buffer, without start-up, [n].

        Inside each node first, at a GPU's own link; then every GPU takes its share of the buffer to the other nodes.
        """
        inside = (1.0 - 1.0 / ranks.in_node) / self.inside
        return np.asarray(inside + (1.0 - 1.0 / ranks.nodes) / ranks.in_node / self.between)

    def reduce_scatter_s(self, size_bytes: FloatArray, ranks: Group) -> FloatArray:
        """Time to reduce-scatter or all-gather a buffer of `size_bytes` in all, [n]."""
        return np.asarray(size_bytes * self.second_per_byte(ranks) + self.latency_s(ranks))

    def all_to_all_s(self, size_bytes: FloatArray, ranks: Group) -> FloatArray:
        """Time for each rank to send `size_bytes` in equal parts to all ranks, itself included, [n]."""
        part = size_bytes / ranks.size
        near = (ranks.in_node - 1.0) / self.inside
        far = (ranks.size - ranks.in_node) / self.between
        return np.asarray(part * (near + far) + self.latency_s(ranks))

    def point_to_point_s(self, size_bytes: FloatArray, stride: FloatArray) -> FloatArray:
        """Time to send to the rank `stride` places on, [n]; a node boundary is crossed when nodes are not larger."""
        network = self.network
        far = stride >= network.gpus_per_node
        per_byte = np.where(far, 1.0 / self.between, 1.0 / self.inside)
        return np.asarray(
            size_bytes * per_byte + np.where(far, network.inter_node_latency_s, network.intra_node_latency_s)
        )
