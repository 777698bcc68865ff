"""Local search for the chain model, where layers are coupled: alternating transportation, then annealing of all layers.

The objective is sum_l hottest load + weight * sum_l cost of the transition from l to l + 1 (planner.cost.chain_cost).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from formulations.expert_placement.local_search import TIME_SHARE
from formulations.expert_placement.transport import transport_start
from formulations.expert_placement.workspace import DEFAULT_PROPOSALS, Workspace, valid_layers
from formulations.outcome import Stop
from planner.cost.expert_parallel import chain_cost
from planner.workload import IntArray

#: First temperature per layer and unit of communication weight, and how far it falls; from held-out gpt-oss traces.
HEAT, COOLING = 3e-3, 2_000.0
#: Least weight times hop that sets the temperature: with hardly any communication, the load decides.
LEAST_WEIGHT = 0.1
#: Slots of the whole model below which the first temperature rises.
SMALL_MODEL = 2_048
#: The annealing runs in this many slices, so that the clock and Ctrl-C are heard.
SLICES = 24
TRIAL_PROPOSALS = 20_000


def chain_price(work: Workspace, rows: IntArray) -> float:
    """Whole objective of a placement; moves at the workspace's price."""
    problem = work.problem
    assert problem.communication is not None
    travel = chain_cost(rows, problem.transitions, problem.communication.cost).sum()
    return float(work.price(rows).sum() + problem.chain_weight * travel)


def search_chain(work: Workspace, candidates: list[IntArray]) -> tuple[IntArray, Stop | None]:
    """Anneal from the best candidate and from the transportation start; returns the best rows."""
    problem, options, budget = work.problem, work.options, work.budget
    assert problem.communication is not None
    mean = np.tensordot(problem.weight, problem.load, axes=1)
    start = transport_start(
        problem.transitions, problem.communication.cost, mean, problem.num_slots, budget, work.allowed
    )
    pool = [*candidates, start]
    pool = [rows for rows in pool if valid_layers(problem, rows).all()]
    if not pool:
        return candidates[0], budget.stop()
    pool.sort(key=lambda rows: chain_price(work, rows))
    budget.report(chain_price(work, pool[0]), message="transportation")
    _anneal(work, pool[0], 10, 0, 1)
    before = budget.elapsed_s
    _anneal(work, pool[0], TRIAL_PROPOSALS, 0, 1)
    each_s = (budget.elapsed_s - before) / TRIAL_PROPOSALS
    asked = int(options.work_limit or DEFAULT_PROPOSALS) * problem.num_layers
    runs = max(2, options.num_threads)
    fitting = int(budget.remaining_s * TIME_SHARE * options.num_threads / runs / max(each_s, 1e-9))
    proposals = max(1, min(asked, fitting))
    tasks = [(pool[run % min(2, len(pool))], options.seed * runs + run + 1) for run in range(runs)]
    with ThreadPoolExecutor(options.num_threads) as workers:
        found = list(workers.map(lambda task: _anneal(work, task[0], proposals, task[1], SLICES), tasks))
    best = min([*pool, *found], key=lambda rows: chain_price(work, rows))
    budget.report(chain_price(work, best), message="annealed chain")
    return best, budget.stop() or (Stop.TIME_LIMIT if proposals < asked else None)


def _anneal(work: Workspace, start: IntArray, proposals: int, seed: int, slices: int) -> IntArray:
    """One annealing run over all layers, in slices of falling temperature."""
    from formulations.expert_placement.anneal_chain import anneal_chain

    problem = work.problem
    assert problem.communication is not None
    apart = ~np.eye(problem.num_gpus, dtype=bool)
    hop = float(problem.communication.cost[apart].mean()) if apart.any() else 0.0
    # Moves in a small model change the objective by more.
    warmth = max(1.0, SMALL_MODEL / (problem.num_layers * problem.num_slots)) ** 1.3
    hot = HEAT * problem.num_layers * max(problem.chain_weight * hop, LEAST_WEIGHT) * warmth
    allowed = work.allowed_around(start)
    rows = best_rows = start
    offset = best = 0.0
    for part in range(slices):
        if work.budget.stop():
            break
        first, last = hot * COOLING ** (-part / slices), hot * COOLING ** (-(part + 1) / slices)
        rows, candidate, value, lowest = anneal_chain(
            work.load,
            problem.weight,
            problem.speed,
            allowed,
            work.old,
            work.move_price,
            problem.transitions,
            problem.communication.cost,
            problem.chain_weight,
            rows,
            work.max_replicas,
            max(1, proposals // slices),
            first,
            last,
            seed * slices + part,
        )
        if offset + lowest < best - 1e-12:
            best, best_rows = offset + lowest, candidate
        offset += value
    return np.asarray(best_rows)
