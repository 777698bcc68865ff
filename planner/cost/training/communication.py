"""Collectives of training over up to three tiers: links of a node, its leaf or rails, the spine between leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.hardware import DeviceKind
from planner.topology import members_within

FloatArray = npt.NDArray[np.float64]

#: Start-up of one step of a collective inside a node and between nodes. NCCL's own tuning table has 0.6-6.6 us for
#: NVLink and 5-14 us for a network by algorithm and protocol (NCCL graph/tuning.cc); a round value of that order.
INTRA_NODE_LATENCY_S = 5e-6
INTER_NODE_LATENCY_S = 10e-6
#: More GPUs than any cluster has: groups are not looked at for being all of it.
NO_END = 1 << 40


@dataclass(frozen=True, kw_only=True)
class TrainingNetwork:
    """Links of a cluster of equal nodes; bandwidths are of one GPU in one direction, before efficiency.

    Ranks are laid out as Megatron does: tensor parallel innermost, then context, data (experts inside it), pipeline.

    gpus_per_leaf : GPUs that meet below the spine; None where one switch, or the rails, join all nodes.
    oversubscription : bandwidth below a leaf over that above it. spine_latency_s : added by a way over the spine.
    gpus_per_rail : rail-only networks: GPUs of a node that share a rail. Bytes for another rail are first forwarded
        inside the node to a GPU that sits on it (NCCL's PXN). None where every NIC reaches every other.
    """

    gpus_per_node: int
    intra_node_bytes_per_s: float
    inter_node_bytes_per_s: float
    intra_node_latency_s: float = INTRA_NODE_LATENCY_S
    inter_node_latency_s: float = INTER_NODE_LATENCY_S
    gpus_per_leaf: int | None = None
    oversubscription: float = 1.0
    spine_latency_s: float = 0.0
    gpus_per_rail: int | None = None

    def __post_init__(self) -> None:
        if self.gpus_per_node < 1:
            raise ValueError("gpus_per_node must be positive")
        if self.gpus_per_leaf is not None and (self.gpus_per_leaf < 1 or self.gpus_per_leaf % self.gpus_per_node):
            raise ValueError("gpus_per_leaf must be whole nodes")
        if self.gpus_per_rail is not None and not 1 <= self.gpus_per_rail <= self.gpus_per_node:
            raise ValueError("gpus_per_rail must be 1 .. gpus_per_node")
        if not (self.oversubscription >= 1 and self.spine_latency_s >= 0):
            raise ValueError("oversubscription must be at least 1, and spine_latency_s not negative")
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
    """Communication groups of n plans as they lie on nodes, arrays [n].

    size, in_node, in_leaf : members in all, of one node, below one leaf. nodes : nodes of a group.
    on_rail : members of a node on one rail. off_rail : 1 where places differ between nodes, and all leave their rail.
    """

    size: FloatArray
    in_node: FloatArray
    nodes: FloatArray
    in_leaf: FloatArray
    on_rail: FloatArray
    off_rail: FloatArray


def group(network: TrainingNetwork, size: FloatArray, stride: FloatArray) -> Group:
    """Groups of `size` ranks that are `stride` ranks apart.

    Where groups and leaves do not divide each other, some member is alone below its leaf, and sets the pace.
    """
    room = np.maximum(network.gpus_per_node // stride, 1.0)
    in_node = np.minimum(size, room)
    in_leaf, on_rail, off_rail = size, in_node, np.zeros_like(in_node)
    if network.gpus_per_leaf is not None:
        below = members_within(size.astype(np.int64), stride.astype(np.int64), network.gpus_per_leaf, NO_END)
        in_leaf = np.maximum(below.astype(np.float64), in_node)
    if network.gpus_per_rail is not None:
        node = network.gpus_per_node
        on_rail = np.clip(network.gpus_per_rail // stride, 1.0, in_node)
        same = (stride % node == 0) | ((node % stride == 0) & (size * stride % node == 0))
        off_rail = np.where(same | (size <= in_node), 0.0, 1.0)
    return Group(size, in_node, size / in_node, in_leaf, on_rail, off_rail)


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

    @property
    def above(self) -> float:
        """Bytes a second of a GPU over the spine while all GPUs below the leaf send."""
        return self.between / self.network.oversubscription

    def latency_s(self, ranks: Group) -> FloatArray:
        """Start-up of one collective: a tree inside the node, one over the nodes of a leaf, one over leaves, [n]."""
        inside = np.log2(ranks.in_node) * self.network.intra_node_latency_s
        between = np.log2(ranks.nodes) * self.network.inter_node_latency_s
        return np.asarray(inside + between + np.log2(ranks.size / ranks.in_leaf) * self.network.spine_latency_s)

    def second_per_byte(self, ranks: Group) -> FloatArray:
        """Time of a reduce-scatter or all-gather for one byte of the whole buffer, without start-up, [n].

        Inside each node first, at a GPU's own link; then every GPU takes its share of the buffer to the other nodes of
        its leaf, and what is left of that to the other leaves.
        """
        inside = (1.0 - 1.0 / ranks.in_node) / self.inside
        near = (1.0 / ranks.in_node - 1.0 / ranks.in_leaf) / self.between
        far = (1.0 / ranks.in_leaf - 1.0 / ranks.size) / self.above
        forwarded = ranks.off_rail * (1.0 / ranks.in_node - 1.0 / ranks.size) / self.inside
        return np.asarray(inside + near + far + forwarded)

    def reduce_scatter_s(self, size_bytes: FloatArray, ranks: Group) -> FloatArray:
        """Time to reduce-scatter or all-gather a buffer of `size_bytes` in all, [n]."""
        return np.asarray(size_bytes * self.second_per_byte(ranks) + self.latency_s(ranks))

    def all_to_all_s(self, size_bytes: FloatArray, ranks: Group) -> FloatArray:
        """Time for each rank to send `size_bytes` in equal parts to all ranks, itself included, [n].

        A NIC carries what leaves the node, a leaf's way up what leaves the leaf: the slower of them counts. On rails
        what is for members of other places is forwarded inside the node first.
        """
        part = size_bytes / ranks.size
        outside = ranks.size - ranks.in_node
        near = (ranks.in_node - 1.0) / self.inside
        far = np.maximum(outside / self.between, (ranks.size - ranks.in_leaf) / self.above)
        stays = np.where(ranks.off_rail > 0.0, 0.0, ranks.on_rail / ranks.in_node)
        forwarded = outside * (1.0 - stays) / self.inside
        return np.asarray(part * (near + far + forwarded) + self.latency_s(ranks))

    def point_to_point_s(
        self, size_bytes: FloatArray, stride: FloatArray, stages: npt.ArrayLike = np.inf
    ) -> FloatArray:
        """Time for every rank of a pipeline stage of `stride` ranks to send to the next of `stages`, [n].

        A node boundary is crossed when nodes are not larger than a stage. Some stages meet at a leaf's boundary where
        the pipeline is larger than a leaf; the ranks of a small stage share the whole way up. A place of another rail
        is reached over a GPU of the own node.
        """
        network = self.network
        far = stride >= network.gpus_per_node
        per_byte = np.where(far, 1.0 / self.between, 1.0 / self.inside)
        latency = np.where(far, network.inter_node_latency_s, network.intra_node_latency_s)
        if network.gpus_per_leaf is not None:
            leaf = network.gpus_per_leaf
            crosses = far & (stride * np.asarray(stages) > leaf)
            up = self.above * np.maximum(leaf / stride, 1.0)
            per_byte = np.where(crosses, np.maximum(per_byte, 1.0 / up), per_byte)
            latency = latency + crosses * network.spine_latency_s
        if network.gpus_per_rail is not None:
            forwarded = far & (stride % network.gpus_per_node != 0)
            per_byte = per_byte + forwarded / self.inside
            latency = latency + forwarded * network.intra_node_latency_s
        return np.asarray(size_bytes * per_byte + latency)
