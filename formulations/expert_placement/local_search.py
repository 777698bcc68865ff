"""Local search: the default method.

Sets, data      as in problem.py
Variables       n[l, e, g] in {0, 1}: GPU g holds a replica of e;  r[l, e] = sum_g n[l, e, g] >= 1
Objective       minimise  sum_l sum_s weight_s max_g load_{l,s,g} / speed_g  +  communication  +  move_cost * moves
                load under `even` split: sum_e n[l, e, g] load[s, l, e] / r[l, e];  under `lp`: the best split
Constraints     sum_e n[l, e, g] = slots of a GPU;  n allowed by the group's nodes;  moves <= max_moves
Ignores         finite batches (a step of few tokens is noisier than its mean load), and how loads move together

Greedy replication and LPT -> swap and replica-move descent (numpy, all layers at once) -> annealing (compiled, a layer
at a time): on even split, on LP split, on fan-out, or on all layers together for the chain. Two slots a GPU and one
scenario is a case of its own (fold.py). Each layer keeps the best of everything tried, EPLB's placement included.

References: EPLB (deepseek-ai/EPLB); ExFlow arXiv 2401.08383 and MoETuner arXiv 2502.06643 for the chain model;
Kirkpatrick et al. 1983 for annealing; the temperatures are those that did best on held-out DeepSeek-V3 workloads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.descent import descend
from formulations.expert_placement.greedy import (
    BoolArray,
    pack,
    repair,
    replicas_in_falling_size,
    replicate,
)
from formulations.expert_placement.groups import allowed_gpus
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Budget, SolveOptions, Stop
from planner.cost.expert_parallel import fanout, fanout_cost, gpu_load, hottest, membership, moved_replicas
from planner.workload import FloatArray, IntArray

#: Proposals per layer when no work limit is given; held-out balance stops improving about here.
DEFAULT_PROPOSALS = 400_000
#: One proposal under LP split costs about as much as this many under even split, under fan-out as this many.
EVEN_PER_LP, EVEN_PER_FANOUT = 130, 40
#: First and last temperature, in units of an evenly loaded layer.
HEAT_EVEN, HEAT_LP, HEAT_FANOUT = (4e-3, 2e-5), (1e-3, 1e-5), (1e-2, 2e-5)
#: A layer this close to its bound is not annealed.
GOOD_ENOUGH = 1e-4
#: Iterations of the numpy descent; one scenario converges sooner than it needs them.
DESCENT_ITERATIONS = 200
#: Share of the remaining time that annealing plans to use, so that it ends before the limit.
TIME_SHARE = 0.8
#: Proposals of the timed trial run that sets how many proposals fit into the time.
TRIAL_PROPOSALS = 400
#: Tokens of the trace that price fan-out proposals; the plan itself is priced on all of them.
FANOUT_TOKENS = 2_000


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
        """bool [L, E, G] or None."""
        return allowed_gpus(self.problem)

    @cached_property
    def allowed_bytes(self) -> npt.NDArray[np.uint8]:
        """uint8 [L, E, G] for the kernels."""
        problem = self.problem
        shape = (problem.num_layers, problem.num_experts, problem.num_gpus)
        return np.ones(shape, np.uint8) if self.allowed is None else self.allowed.astype(np.uint8)

    @cached_property
    def old_bytes(self) -> npt.NDArray[np.uint8]:
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
    return rows, repair(rows, problem.num_gpus, mean / count, allowed)


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


def valid_layers(problem: ExpertPlacementProblem, rows: IntArray, allowed: BoolArray | None) -> BoolArray:
    """Which layers of a placement obey every rule within a layer, [L]."""
    held = membership(rows, problem.num_experts, problem.num_gpus)
    good = (held.sum(axis=2) > 0).all(axis=1) & (held <= 1).all(axis=(1, 2))
    if allowed is not None:
        good &= ~((held > 0) & ~allowed).any(axis=(1, 2))
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
        valid = valid_layers(self.work.problem, rows, self.work.allowed)
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


def starts(work: Workspace, hint: IntArray | None, rng: np.random.Generator) -> Best:
    """The best of: current, hint, EPLB, and greedy plus descent."""
    problem = work.problem
    best = Best(work)
    for rows in (problem.current, hint):
        if rows is not None:
            best.offer(rows)
    best.offer(eplb(problem)[1])
    rows, valid = greedy_start(work)
    if valid.all() and not work.move_price:
        target = (problem.weight @ load_bound(problem)[0]) * (1 + GOOD_ENOUGH / 10)
        rows, _ = descend(
            problem.load,
            problem.weight,
            problem.speed,
            rows,
            work.max_replicas,
            rng,
            work.budget,
            DESCENT_ITERATIONS,
            allowed=work.allowed,
            target=target,
        )
    best.offer(rows)
    work.budget.report(best.total, message="descent")
    return best


def anneal_layers(best: Best, mode: str, layers: IntArray, proposals: int) -> Stop | None:
    """Anneal the given layers on threads; returns why it was cut short, or None."""
    work = best.work
    if not layers.size or proposals < 1:
        return None
    run = _kernel(work, mode)
    budget, threads = work.budget, work.options.num_threads
    # A first call compiles; the second is timed.
    run(int(layers[0]), best.rows[layers[0]], 10)
    before = budget.elapsed_s
    run(int(layers[0]), best.rows[layers[0]], TRIAL_PROPOSALS)
    each_s = max(1e-9, (budget.elapsed_s - before) / TRIAL_PROPOSALS)
    fitting = int(budget.remaining_s * TIME_SHARE * min(threads, layers.size) / (each_s * layers.size))
    chosen = min(proposals, max(fitting, TRIAL_PROPOSALS))
    rows = best.rows.copy()
    done = []
    with ThreadPoolExecutor(threads) as pool:

        def task(layer: int) -> IntArray | None:
            return None if budget.stop() else run(layer, best.rows[layer], chosen)

        futures = {pool.submit(task, int(layer)): int(layer) for layer in layers}
        for future in as_completed(futures):
            found = future.result()
            if found is not None:
                rows[futures[future]] = found
                done.append(futures[future])
            budget.report(best.total, message=f"annealing {mode}: layer {len(done)} of {layers.size}")
    best.offer(rows, np.array(done, dtype=np.int64))
    budget.report(best.total, message=f"annealed {mode}")
    return budget.stop() or (Stop.TIME_LIMIT if chosen < proposals else None)


class _kernel:
    """One annealing kernel bound to a workspace: call with a layer, its slots and a number of proposals."""

    def __init__(self, work: Workspace, mode: str) -> None:
        self.work, self.mode = work, mode

    def __call__(self, layer: int, slots: IntArray, proposals: int) -> IntArray:
        work, problem = self.work, self.work.problem
        seed = work.options.seed * problem.num_layers + layer + 1
        common = (
            work.load[layer],
            problem.weight,
            problem.speed,
            work.allowed_bytes[layer],
            work.old_bytes[layer],
            work.move_price,
        )
        tail = (slots, work.max_replicas, proposals)
        if self.mode == "lp":
            from formulations.expert_placement.anneal_lp import anneal_lp

            return np.asarray(anneal_lp(*common, *tail, *HEAT_LP, seed)[0])
        if self.mode == "fanout":
            return self._fanout(layer, common, tail, seed)
        from formulations.expert_placement.anneal_even import anneal_even

        return np.asarray(anneal_even(*common, *tail, *HEAT_EVEN, seed)[0])

    def _fanout(
        self, layer: int, common: tuple[object, ...], tail: tuple[object, ...], seed: int
    ) -> IntArray:
        from formulations.expert_placement.anneal_fanout import anneal_fanout

        problem = self.work.problem
        assert problem.trace is not None
        assert problem.communication is not None
        comm = problem.communication
        ids = problem.trace.experts[:, layer].astype(np.int64)
        ids = ids[(ids >= 0).all(axis=1)]
        if len(ids) > FANOUT_TOKENS:
            ids = ids[np.linspace(0, len(ids) - 1, FANOUT_TOKENS).astype(np.int64)]
        users = np.argsort(ids, axis=None, kind="stable") // ids.shape[1]
        start = np.concatenate(([0], np.cumsum(np.bincount(ids.ravel(), minlength=problem.num_experts))))
        heat = np.array(HEAT_FANOUT) * (1 + comm.weight * comm.inter_node_cost)
        traffic = (ids, users, start, problem.gpus_per_node, comm.intra_node_cost, comm.inter_node_cost)
        return np.asarray(anneal_fanout(*common, *traffic, comm.weight, *tail, *heat, seed))


def separable(work: Workspace, best: Best) -> Stop | None:
    """Improve every layer by itself: the method when nothing but max_moves couples the layers."""
    problem = work.problem
    floor = problem.weight @ load_bound(problem)[0]
    goal = max(GOOD_ENOUGH, work.options.relative_gap or 0.0)

    def open_layers() -> IntArray:
        excess = best.price - floor * (1 + goal)
        return np.flatnonzero(excess > 0)[np.argsort(-excess[excess > 0], kind="stable")]

    if problem.fanout_weight:
        every = np.arange(problem.num_layers)
        return anneal_layers(best, "fanout", every, max(1, work.proposals // EVEN_PER_FANOUT))
    if _foldable(work):
        stop = _fold(best, open_layers())
        if stop is not None:
            return stop
    stop = anneal_layers(best, "even", open_layers(), work.proposals)
    if problem.split == "lp" and not (stop and work.budget.stop()):
        stop = anneal_layers(best, "lp", open_layers(), max(1, work.proposals // EVEN_PER_LP)) or stop
    return stop


def _foldable(work: Workspace) -> bool:
    problem = work.problem
    equal = bool((problem.speed == problem.speed[0]).all())
    plain = problem.split == "even" and work.allowed is None and not work.move_price
    return plain and equal and problem.num_scenarios == 1 and problem.slots_per_gpu == 2


def _fold(best: Best, layers: IntArray) -> Stop | None:
    """Replica counts annealed under the fold pairing, layer by layer."""
    from formulations.expert_placement.fold import anneal_counts, fold

    work, problem = best.work, best.work.problem
    rows = best.rows.copy()
    for layer in layers:
        load = problem.load[0, layer]
        count = np.bincount(best.rows[layer], minlength=problem.num_experts)
        seed = work.options.seed * problem.num_layers + int(layer) + 1
        proposals = max(1, work.proposals // 10)
        count = anneal_counts(load, count, problem.num_slots, work.max_replicas, proposals, seed)
        found = fold(load, count)
        if found is not None:
            rows[layer] = found
        if work.budget.stop():
            break
    best.offer(rows)
    work.budget.report(best.total, message="fold")
    return work.budget.stop()
