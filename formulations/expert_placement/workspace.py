"""What every local search shares: the problem in the kernels' shapes, prices, valid starts, and the best so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from formulations.expert_placement.greedy import (
    BoolArray,
    pack,
    repair,
    replicas_in_falling_size,
    replicate,
)
from formulations.expert_placement.groups import allowed_gpus, group_nodes, nodes_around
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.transport import any_valid
from formulations.outcome import Budget, SolveOptions
from planner.cost.expert_parallel import fanout, fanout_cost, gpu_load, hottest, membership, moved_replicas
from planner.workload import FloatArray, IntArray

#: Proposals per layer when no work limit is given; held-out balance stops improving about here.
DEFAULT_PROPOSALS = 400_000


@dataclass(eq=False)
class Workspace:
    """A problem in the shapes the kernels want, and the price of placements."""

    problem: ExpertPlacementProblem
    options: SolveOptions
    budget: Budget
    move_price: float

    @cached_property
    def load(self) -> FloatArray:
        """[L, E, K], contiguous."""
        return np.ascontiguousarray(self.problem.load.transpose(1, 2, 0))

    @cached_property
    def allowed(self) -> BoolArray | None:
        """GPUs that a fresh start may use, bool [L, E, G]; None when every GPU is allowed."""
        return allowed_gpus(self.problem)

    def allowed_around(self, rows: IntArray) -> npt.NDArray[np.uint8]:
        """uint8 [L, E, G] for the kernels: the nodes each group uses in `rows`, and more up to group_spread."""
        problem = self.problem
        if self.allowed is None:
            return np.ones((problem.num_layers, problem.num_experts, problem.num_gpus), np.uint8)
        return nodes_around(problem, rows, self.allowed).astype(np.uint8)

    @cached_property
    def old(self) -> npt.NDArray[np.uint8]:
        """uint8 [L, E, G]: where experts lie now; all ones (no move costs) without a current placement."""
        problem = self.problem
        if problem.current is None:
            return np.ones((problem.num_layers, problem.num_experts, problem.num_gpus), np.uint8)
        held = membership(problem.current, problem.num_experts, problem.num_gpus)
        return np.asarray(held > 0, dtype=np.uint8)

    @property
    def max_replicas(self) -> int:
        """Most replicas any expert can have."""
        problem = self.problem
        return min(problem.max_replicas, problem.num_slots - problem.num_experts + 1)

    @property
    def proposals(self) -> int:
        """Proposals per layer that were asked for."""
        return int(self.options.work_limit or DEFAULT_PROPOSALS)

    def price(self, rows: IntArray) -> FloatArray:
        """Objective of each layer without chain communication, [L]; moves at `move_price`."""
        problem = self.problem
        load = gpu_load(problem.load, rows, problem.speed, problem.split)
        result = problem.weight @ hottest(load, problem.speed)
        if problem.fanout_weight:
            assert problem.trace is not None
            assert problem.communication is not None
            comm = problem.communication
            remote = fanout(rows, problem.trace, problem.num_experts, problem.num_gpus, problem.gpus_per_node)
            result = result + comm.weight * fanout_cost(*remote, comm.intra_node_cost, comm.inter_node_cost)
        if problem.current is not None and self.move_price:
            moved = moved_replicas(rows, problem.current, problem.num_experts, problem.num_gpus)
            result = result + self.move_price * moved
        return np.asarray(result)


def greedy_start(work: Workspace) -> tuple[IntArray, BoolArray]:
    """Replication and LPT under the problem's limits: rows [L, S] and which layers are valid."""
    problem = work.problem
    mean = np.tensordot(problem.weight, problem.load, axes=1)
    robust = 0.5 * mean + 0.5 * problem.load.max(axis=0)
    allowed = work.allowed
    if allowed is not None and problem.group_spread == 1:
        return _hierarchical_start(work, mean, robust, allowed)
    count = replicate(robust, problem.num_slots, work.max_replicas)
    rows = pack(
        *replicas_in_falling_size(mean, count),
        problem.num_gpus,
        speed=problem.speed,
        num_experts=problem.num_experts,
        allowed=allowed,
    )
    valid = repair(rows, problem.num_gpus, mean / count, allowed)
    if not valid.all():
        rows[~valid] = any_valid(
            mean[~valid], problem.num_gpus, problem.num_slots, None if allowed is None else allowed[~valid]
        )
        valid = valid_layers(problem, rows)
    return rows, valid


def _hierarchical_start(
    work: Workspace, mean: FloatArray, robust: FloatArray, allowed: BoolArray
) -> tuple[IntArray, BoolArray]:
    """Each node is filled by the experts of its own groups alone."""
    problem = work.problem
    per_node, nodes = problem.gpus_per_node, problem.num_nodes
    rows = np.empty((problem.num_layers, problem.num_slots), dtype=np.int64)
    valid = np.ones(problem.num_layers, dtype=bool)
    slots = problem.num_slots // nodes
    for node in range(nodes):
        members = allowed[:, :, node * per_node]
        for size in np.unique(members.sum(axis=1)):
            layers = np.flatnonzero(members.sum(axis=1) == size)
            experts = np.nonzero(members[layers])[1].reshape(layers.size, -1)
            node_mean = np.take_along_axis(mean[layers], experts, axis=1)
            node_robust = np.take_along_axis(robust[layers], experts, axis=1)
            count = replicate(node_robust, slots, min(per_node, slots - int(size) + 1))
            local = pack(
                *replicas_in_falling_size(node_mean, count),
                per_node,
                speed=problem.speed[node * per_node : (node + 1) * per_node],
                num_experts=int(size),
            )
            valid[layers] &= repair(local, per_node, node_mean / count)
            rows[layers, node * slots : (node + 1) * slots] = np.take_along_axis(experts, local, axis=1)
    return rows, valid


def valid_layers(problem: ExpertPlacementProblem, rows: IntArray) -> BoolArray:
    """Which layers of a placement obey every rule within a layer, [L]."""
    held = membership(rows, problem.num_experts, problem.num_gpus)
    good = (held.sum(axis=2) > 0).all(axis=1) & (held <= 1).all(axis=(1, 2))
    if problem.group_of is not None and problem.group_spread is not None:
        good &= (group_nodes(problem, rows).sum(axis=2) <= problem.group_spread).all(axis=1)
    return np.asarray(good)


class Best:
    """Best placement of each layer so far."""

    def __init__(self, work: Workspace) -> None:
        problem = work.problem
        self.work = work
        self.rows = np.zeros((problem.num_layers, problem.num_slots), dtype=np.int64)
        self.price = np.full(problem.num_layers, np.inf)

    def offer(self, rows: IntArray, layers: IntArray | None = None) -> None:
        """Take the layers (all, or those named) whose placement is valid and better."""
        valid = valid_layers(self.work.problem, rows)
        price = np.where(valid, self.work.price(rows), np.inf)
        better = price < self.price
        if layers is not None:
            better &= np.isin(np.arange(len(rows)), layers)
        self.rows[better] = rows[better]
        self.price[better] = price[better]

    @property
    def total(self) -> float | None:
        """Sum over layers; None while a layer has no placement."""
        return float(self.price.sum()) if np.isfinite(self.price).all() else None
