"""Collectives of groups that span nodes: inside the node, between nodes, inside again.

Between nodes t = steps · latency + traffic of a node / reached bandwidth of a node. Nodes talk in trees: an all-reduce
takes 2 log2(nodes) steps, the other operations log2(nodes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from planner.cost.collectives.links import CollectiveLink, collective_seconds
from planner.cost.operators.grid import FloatArray
from planner.cost.operators.tables import Record, records
from planner.errors import OptionError
from planner.units import BytesPerSecond, Seconds


class InterNodeFit(Record):
    """One measured fabric: latency of a step and bandwidth that a node reached; nominal where that is known."""

    fabric: str
    op: str
    latency_s: Seconds
    reached_bytes_per_s: Annotated[BytesPerSecond, Field(description="of a node; of a GPU for p2p")]
    nominal_bytes_per_s: BytesPerSecond | None = None


@dataclass(frozen=True, slots=True)
class InterNodeLink:
    """The network of a node: nominal bandwidth of all its ports in one direction, latency of a step, share reached."""

    bandwidth_bytes_per_s: float
    latency_s: float
    efficiency: float

    @property
    def reached_bytes_per_s(self) -> float:
        return self.bandwidth_bytes_per_s * self.efficiency

    @classmethod
    def rdma(cls, bandwidth_bytes_per_s: float) -> InterNodeLink:
        """InfiniBand or RoCE of a nominal node bandwidth, with latency and efficiency as measured on NDR InfiniBand."""
        fit = next(fit for fit in records("inter_node", InterNodeFit) if fit.nominal_bytes_per_s is not None)
        assert fit.nominal_bytes_per_s is not None
        return cls(bandwidth_bytes_per_s, fit.latency_s, fit.reached_bytes_per_s / fit.nominal_bytes_per_s)


def hierarchical_seconds(
    op: str,
    message_bytes: npt.ArrayLike,
    num_nodes: npt.ArrayLike,
    gpus_per_node: npt.ArrayLike,
    intra: CollectiveLink,
    inter: InterNodeLink,
) -> FloatArray:
    """Seconds of a collective over `num_nodes` nodes with `gpus_per_node` members each; sizes broadcast.

    message_bytes : as collective_seconds counts it. All-reduce is a reduce-scatter in each node, an all-reduce of the
    shards between nodes through all ports of a node, and an all-gather; the others likewise. p2p is between two nodes
    through one GPU's share of the ports. One node: collective_seconds. OptionError as there.
    """
    message, nodes, group = (np.asarray(x, dtype=np.float64) for x in (message_bytes, num_nodes, gpus_per_node))
    if not (nodes >= 1).all():
        raise OptionError("num_nodes must be at least 1")
    local = collective_seconds(op, message, group, intra)
    share = (nodes - 1) / nodes
    steps = np.ceil(np.log2(nodes))
    if op == "all_reduce":
        inside = collective_seconds("reduce_scatter", message, group, intra)
        inside = inside + collective_seconds("all_gather", message, group, intra)
        steps, traffic = 2 * steps, 2 * share * message
    elif op == "all_to_all":
        inside = collective_seconds(op, message / nodes, group, intra)
        traffic = share * message * group
    elif op == "p2p":
        inside, steps, traffic = np.zeros_like(local), np.minimum(steps, 1.0), message * group
    else:
        inside, traffic = local, share * message
    between = steps * inter.latency_s + traffic / inter.reached_bytes_per_s
    return np.where(nodes > 1, inside + between, local)
