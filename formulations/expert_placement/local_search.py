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

import numpy as np

from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.descent import descend
from formulations.expert_placement.workspace import Best, Workspace, greedy_start
from formulations.outcome import Stop
from planner.workload import IntArray

#: One proposal under LP split costs about as much as this many under even split, under fan-out as this many.
EVEN_PER_LP, EVEN_PER_FANOUT = 130, 40
#: First and last temperature, in units of an evenly loaded layer.
HEAT_EVEN, HEAT_LP, HEAT_FANOUT = (4e-3, 2e-5), (1e-3, 1e-5), (1e-2, 2e-5)
#: Slots of a layer below which the first temperature rises.
SMALL_LAYER = 256
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
    run = _Kernel(work, mode, best.rows)
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


class _Kernel:
    """One annealing kernel bound to a workspace: call with a layer, its slots and a number of proposals."""

    def __init__(self, work: Workspace, mode: str, rows: IntArray) -> None:
        self.work, self.mode = work, mode
        self.allowed = work.allowed_around(rows)
        # A move in a layer of few slots changes the objective by more.
        self.warmth = max(1.0, SMALL_LAYER / work.problem.num_slots) ** 1.3

    def __call__(self, layer: int, slots: IntArray, proposals: int) -> IntArray:
        work, problem = self.work, self.work.problem
        seed = work.options.seed * problem.num_layers + layer + 1
        common = (
            work.load[layer],
            problem.weight,
            problem.speed,
            self.allowed[layer],
            work.old[layer],
            work.move_price,
        )
        tail = (slots, work.max_replicas, proposals)
        if self.mode == "lp":
            from formulations.expert_placement.anneal_lp import anneal_lp

            hot, cold = HEAT_LP
            return np.asarray(anneal_lp(*common, *tail, hot * self.warmth, cold, seed)[0])
        if self.mode == "fanout":
            return self._fanout(layer, common, tail, seed)
        from formulations.expert_placement.anneal_even import anneal_even

        hot, cold = HEAT_EVEN
        return np.asarray(anneal_even(*common, *tail, hot * self.warmth, cold, seed)[0])

    def _fanout(self, layer: int, common: tuple[object, ...], tail: tuple[object, ...], seed: int) -> IntArray:
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
        heat = np.array(HEAT_FANOUT) * (1 + comm.weight * comm.inter_node_cost) * (self.warmth, 1.0)
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
