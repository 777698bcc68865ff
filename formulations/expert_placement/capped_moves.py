"""Replanning under a cap on moves.

Layers share nothing but the cap. For each layer, searches at falling prices per move give a set of columns (placement,
moves, objective); choosing one column per layer within the cap is a multiple-choice knapsack, solved exactly by dynamic
programming. With a chain the layers do not separate, and the price itself is bisected.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.expert_placement.chain_search import chain_price, search_chain
from formulations.expert_placement.greedy import BoolArray
from formulations.expert_placement.local_search import separable, starts
from formulations.expert_placement.workspace import Best, Workspace, valid_layers
from formulations.outcome import PartBudget, Stop
from planner.cost.expert_parallel import moved_replicas
from planner.workload import FloatArray, IntArray

#: Prices of a move at which columns are made, from "only what pays a third of a layer" down to "nearly free".
PRICES = tuple(0.3 * 0.5**i for i in range(11))
#: Bisection steps of the price with a chain.
PRICE_STEPS = 7


def mended_current(work: Workspace) -> IntArray | None:
    """The current placement with missing and repeated experts mended by the fewest moves; None when that fails."""
    problem = work.problem
    assert problem.current is not None
    rows = problem.current.copy()
    mean = np.tensordot(problem.weight, problem.load, axes=1)
    for layer in np.flatnonzero(~valid_layers(problem, rows)):
        allowed = None if work.allowed is None else work.allowed[layer]
        _mend(rows[layer], mean[layer], problem.num_gpus, allowed)
    return rows if valid_layers(problem, rows).all() else None


def _mend(row: IntArray, load: FloatArray, num_gpus: int, allowed: BoolArray | None) -> None:
    """Overwrite repeated replicas first, by missing experts and then by the largest; then the smallest replicas."""
    gpu = np.arange(row.size) // (row.size // num_gpus)
    count = np.bincount(row, minlength=load.size)
    held = np.zeros((load.size, num_gpus), dtype=np.int64)
    np.add.at(held, (row, gpu), 1)

    def put(expert: int, slot: int) -> None:
        for changed, step in ((int(row[slot]), -1), (expert, 1)):
            count[changed] += step
            held[changed, gpu[slot]] += step
        row[slot] = expert

    def may_go(slot: int) -> BoolArray:
        free = held[:, gpu[slot]] == 0
        return np.asarray(free if allowed is None else free & allowed[:, gpu[slot]])

    for slot in range(row.size):
        if held[row[slot], gpu[slot]] > 1:
            free = may_go(slot)
            missing = free & (count == 0)
            choice = missing if missing.any() else free
            if choice.any():
                put(int(np.where(choice, load / np.maximum(count, 1), -1.0).argmax()), slot)
    for expert in np.flatnonzero(count == 0).tolist():
        fits = np.array([count[row[slot]] > 1 and may_go(slot)[expert] for slot in range(row.size)])
        if fits.any():
            put(expert, int(np.where(fits, load[row] / count[row], np.inf).argmin()))


def search_capped(work: Workspace, rng: np.random.Generator) -> tuple[IntArray | None, Stop | None]:
    """Best placement found within max_moves; None when not even a mended current placement keeps within it."""
    problem = work.problem
    assert problem.max_moves is not None
    assert problem.current is not None
    base = mended_current(work)
    if base is None or _moves(problem_rows := base, work).sum() > problem.max_moves:
        return None, work.budget.stop()
    if problem.chain_weight:
        return _bisect_price(work, problem_rows)
    columns = [base]
    stop: Stop | None = None
    for index, price in enumerate((*PRICES, 0.0)):
        share = work.budget.remaining_s / (len(PRICES) + 1 - index)
        part = PartBudget(work.budget, max(share, 1e-3))
        priced = replace(work, move_price=max(price, problem.move_cost), budget=part)
        best = starts(priced, columns[-1], rng) if price == 0.0 else _from(priced, columns)
        stop = separable(priced, best)
        if best.total is not None:
            columns.append(best.rows)
        work.budget.report(message=f"columns at move price {price:.3g}")
        if work.budget.stop():
            break
    chosen = _knapsack(work, columns)
    return chosen, work.budget.stop() or stop


def _from(work: Workspace, columns: list[IntArray]) -> Best:
    """Start where the dearer prices ended; EPLB or a fresh start would only move everything."""
    best = Best(work)
    for rows in columns:
        best.offer(rows)
    return best


def _moves(rows: IntArray, work: Workspace) -> IntArray:
    problem = work.problem
    assert problem.current is not None
    return moved_replicas(rows, problem.current, problem.num_experts, problem.num_gpus)


def _knapsack(work: Workspace, columns: list[IntArray]) -> IntArray:
    """One column per layer, least objective within max_moves: dynamic programming over the cap."""
    problem = work.problem
    assert problem.max_moves is not None
    priced = replace(work, move_price=problem.move_cost)
    value = np.stack([priced.price(rows) for rows in columns])
    moves = np.stack([_moves(rows, work) for rows in columns])
    # A column that another one beats on both counts never helps; the cap need not exceed what all would use.
    cap = min(problem.max_moves, int(moves.max(axis=0).sum()))
    best = np.full(cap + 1, 0.0)
    chosen = np.zeros((problem.num_layers, cap + 1), dtype=np.int64)
    for layer in range(problem.num_layers):
        table = np.full((len(columns), cap + 1), np.inf)
        for index, count in enumerate(moves[:, layer]):
            if count <= cap:
                table[index, count:] = best[: cap + 1 - count] + value[index, layer]
        chosen[layer] = table.argmin(axis=0)
        best = table.min(axis=0)
    left = cap
    rows = np.empty_like(columns[0])
    for layer in reversed(range(problem.num_layers)):
        index = chosen[layer, left]
        rows[layer] = columns[index][layer]
        left -= int(moves[index, layer])
    return rows


def _bisect_price(work: Workspace, base: IntArray) -> tuple[IntArray, Stop | None]:
    problem = work.problem
    assert problem.max_moves is not None
    priced_at_cost = replace(work, move_price=problem.move_cost)
    best, low, high = base, 0.0, 2.0 * (1.0 + problem.chain_weight)
    price = 0.0
    for step in range(PRICE_STEPS):
        part = PartBudget(work.budget, max(work.budget.remaining_s / (PRICE_STEPS - step), 1e-3))
        rows, _ = search_chain(replace(work, move_price=max(price, problem.move_cost), budget=part), [base])
        within = int(_moves(rows, work).sum()) <= problem.max_moves
        if within and chain_price(priced_at_cost, rows) < chain_price(priced_at_cost, best):
            best = rows
        if within and price == 0.0:
            break
        low, high = (low, price) if within else (price, high)
        price = high / 4 if low == 0.0 else (low * high) ** 0.5
        if work.budget.stop():
            break
    return best, work.budget.stop()
