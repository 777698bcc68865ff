"""Which plan trains a model on a cluster of unequal GPUs, at one place or several.

Sets
    b   blocks: GPUs of one kind, with equal nodes, at one site; `units` of u GPUs (a node, or a share or several of it)
    q   plans of one block alone: all of `search.space`
    w   orders of the blocks (all; of more than MOST_ORDERED blocks by speed alone), m micro-batches that divide the
        batch C, o options of a stage: n neighbouring units of a block in that order, with tensor t, context c, expert
        e, data d = n u / (t c e) parallel sizes, recomputation r; d sequences of each micro-batch's C / m
    g   families of replicas of a block: as many as it has room for, of one t, e, p, r and micro-batch
Data
    T, w, a, M     seconds, states, activations and memory of layers under an option: the cost model of its block
    S[b,b']        seconds to send between stages: by the ports of each, and by the whole way between two sites
Variables, one of
    one_kind   b, q                        a plan of one kind; all others are idle
    stages     w, m, o(i), cuts            a pipeline through the blocks; see `uneven_stages` (F2)
    replicas   g(b), micro-batches m(i)    each replica on one kind, with its own share of the batch; see `shares` (F4)
    shards     r(b), m(i), s(i)            the same without pipelines; optimizer states are shared out by free memory
Objective, seconds of a step
    one_kind   the cost model's
    stages     (m - 1) max_i P_i + sum_i P_i + max_i G_i       P_i: work, and sends at its own ports, there and back;
                                                               G_i: what is exposed of its reduction, and its update
    replicas   max_i (f + m(i) P) + X                          f: fill and drain, reduction inside the block, update;
    shards     max_i (f + m(i) P) + G n max_i s(i) + X         X: gradients between blocks; the largest shard is waited
                                                               for in the n replicas' gather
Constraints
    layers     each on one stage, no stage empty; the embedding on the first, the head on the last
    tensor     t | heads, key-value heads, MLP width; t | domain and the place of a stage: inside one kind and island
    batch      d | C / m; sum m(i) x micro-batch = C
    memory     of every stage on its own kind, with p - i + 1 micro-batches in flight
    links      neighbours in a pipeline, and all blocks of replicas, are joined
Method
    Each of the four exactly, bounds first: pipelines in the order of a bound by work over aggregate speed, until it is
    no better than the best plan. The optimum is that of these spaces and says nothing of others.

A pipeline's objective is never below the time of the events of 1F1B with these passes and sends, and equal without
slow links between equal stages.

Ignored: interleaving over unequal stages, stages of several kinds, gradients between blocks beside the backward pass,
congestion of ways that cross.
Reference: Metis (ATC 2024), Holmes (data-parallel rings inside one kind), Cephalo (shares of batch and states).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from formulations.parallelism.training.search.problem import TrainProblem
from planner.cost.training.model import TrainingModel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Blocks of which all orders are tried.
MOST_ORDERED = 4
#: Units of a block: GPUs one by one where these are enough, else shares of a node, nodes, or several.
MOST_UNITS = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MixedProblem:
    """Blocks of equal GPUs, and what joins them.

    blocks : each as a problem of its own. sites : of each, None where there is one place.
    way_bytes_per_s : [blocks, blocks] the whole way between two, infinite where ports alone limit, 0 where none is.
    way_latency_s : [blocks, blocks].
    """

    kind: ClassVar[str] = "training"

    name: str
    sha256: str
    blocks: tuple[TrainProblem, ...]
    sites: tuple[str | None, ...]
    way_bytes_per_s: FloatArray
    way_latency_s: FloatArray
    assumptions: tuple[str, ...] = field(default=())

    @property
    def any_block(self) -> TrainProblem:
        """For what all blocks have: model, batch, sequence, framework, precision."""
        return self.blocks[0]

    @property
    def model(self) -> TrainingModel:
        """What is trained."""
        return self.blocks[0].model

    @property
    def num_gpus(self) -> int:
        """GPUs of all blocks."""
        return sum(block.num_gpus for block in self.blocks)

    @property
    def time_mape(self) -> float | None:
        """Mean error of held-out predictions, the largest of all kinds; None where one was never measured."""
        known = [block.time_mape for block in self.blocks if block.time_mape is not None]
        return max(known) if len(known) == len(self.blocks) else None

    def first_gpu(self, block: int) -> int:
        """Number of a block's first GPU."""
        return sum(one.num_gpus for one in self.blocks[:block])

    def told(self, block: int) -> str:
        """A block in words."""
        site = self.sites[block]
        one = self.blocks[block]
        return f"{one.num_gpus} x {one.device.name}{'' if site is None else f' at {site}'}"

    def joined(self, one: int, other: int) -> bool:
        """Whether there is a way between two blocks."""
        return bool(self.way_bytes_per_s[one, other] > 0 and self.way_bytes_per_s[other, one] > 0)

    def way(self, one: int, other: int) -> tuple[float, float]:
        """Bytes/s and seconds of the way between two blocks, the slower direction: gradients go back."""
        bandwidth = min(self.way_bytes_per_s[one, other], self.way_bytes_per_s[other, one])
        return float(bandwidth), float(max(self.way_latency_s[one, other], self.way_latency_s[other, one]))

    def unit(self, block: int) -> int:
        """GPUs of a unit: the fewest, by doubling up to the node and beyond, of which a block has few enough."""
        one = self.blocks[block]
        node = one.gpus_per_node
        below = [size for size in range(1, node) if node % size == 0]
        size = next((size for size in below if one.num_gpus // size <= MOST_UNITS), node)
        while one.num_gpus // size > MOST_UNITS:
            size *= 2
        return size
