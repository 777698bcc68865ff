"""Column generation: the linear relaxation over all pipelines, its prices, and the pipelines near them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from formulations.gpu_fleet.relaxation import relax
from formulations.outcome import Budget
from formulations.parallelism.layers.milp import build, link_list, path_price
from formulations.parallelism.layers.pricing import Column, Pricing, Table, TooManyColumnsError
from formulations.parallelism.layers.problem import FloatArray, LayersProblem

#: Columns that one path gives in a round of pricing.
PER_PATH = 24
#: Reduced cost, as a share of the bound, below which no column is looked for.
CONVERGED = 1e-9
#: Steps to read back one column from the tables: a few a class; more means that none was found.
READ_STEPS = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Of one device of each class, of a step/s over each link, and of a pipeline; all in steps/s."""

    devices: FloatArray
    links: FloatArray
    pipeline: float


@dataclass(slots=True, eq=False)
class Pool:
    """The pipelines that are known, the fastest of those with equal devices and path; the best bound, steps/s, and its
    prices."""

    problem: LayersProblem
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Column] = field(default_factory=dict)
    bound: float = np.inf
    prices: Prices | None = None

    def add(self, column: Column) -> bool:
        """Whether it is new, or faster than the one known."""
        if sum(column.counts) > self.problem.num_layers:
            return False
        key = (column.counts, column.path)
        if key in self.known and self.known[key].slot_s <= column.slot_s:
            return False
        self.known[key] = column
        return True

    @property
    def columns(self) -> list[Column]:
        """In the order in which they were found."""
        return list(self.known.values())


def generate(problem: LayersProblem, pricing: Pricing, pool: Pool, budget: Budget) -> bool:
    """Fill the pool until its relaxation is that over all pipelines; False when time is up before."""
    links = link_list(problem)
    # No layer runs faster than its device: at the price of their speed no pipeline gains, so this is a bound already.
    speed = 1.0 / problem.layer_s
    prices = Prices(speed / problem.num_layers, np.zeros(len(links)), 0.0)
    while budget.stop() is None:
        bound, new = _price(problem, pricing, pool, prices, links)
        if bound < pool.bound:
            pool.bound, pool.prices = bound, prices
        if not new:
            return True
        master = build(problem, pool.columns)
        solved = relax(master.model, budget.remaining_s)
        if not solved:
            return False
        duals = np.maximum(-solved.duals, 0.0)
        of_pipeline = float(duals[master.link_rows.stop])
        prices = Prices(duals[master.class_rows] * master.unit, duals[master.link_rows], of_pipeline * master.unit)
        budget.report(None, -problem.batch * pool.bound, f"{len(pool.known)} pipelines")
    return False


def _price(
    problem: LayersProblem, pricing: Pricing, pool: Pool, prices: Prices, links: Sequence[tuple[int, int]]
) -> tuple[float, bool]:
    """The bound at some prices, and whether a column was added."""
    worth = value(problem, prices, links)
    # At first any pipeline will do.
    least = CONVERGED * worth if pool.known else -np.inf
    most = 0.0
    new = False

    def visit(path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
        nonlocal most, new
        gain = income(pricing, path, prices, links) - cost
        most = max(most, float(gain.max(initial=0.0)))
        for slot in np.argsort(-gain, kind="stable")[:PER_PATH].tolist():
            if gain[slot] <= least:
                break
            with suppress(TooManyColumnsError):
                new |= pool.add(next(pricing.columns(path, tables, slot, float(cost[slot]), READ_STEPS)))

    pricing.each_path(prices.devices, visit)
    # No plan has more pipelines than that, and each gains at most so much over its price.
    return worth + problem.most_pipelines * most, new


def value(problem: LayersProblem, prices: Prices, links: Sequence[tuple[int, int]]) -> float:
    """What all devices, links and pipelines are worth at these prices."""
    carried = np.array([problem.hops.steps_per_s[link] for link in links])
    return float(
        prices.devices @ problem.count
        + (prices.links @ carried if links else 0.0)
        + prices.pipeline * problem.most_pipelines
    )


def income(pricing: Pricing, path: tuple[int, ...], prices: Prices, links: Sequence[tuple[int, int]]) -> FloatArray:
    """Steps/s of a pipeline of each slot, less its links and its own price."""
    share = max(0.0, 1.0 - path_price(links, prices.links, path))
    return share / pricing.slots - prices.pipeline


def near(problem: LayersProblem, pricing: Pricing, pool: Pool, within: float, most: int, budget: Budget) -> bool:
    """Add all pipelines whose reduced cost is within so many steps/s; False, and the pool as it was, when too many."""
    assert pool.prices is not None
    prices, links = pool.prices, link_list(problem)
    before = dict(pool.known)
    left = most

    def visit(path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
        nonlocal left
        limit = income(pricing, path, prices, links) + within
        for slot in np.flatnonzero(limit >= cost).tolist():
            for column in pricing.columns(path, tables, slot, float(limit[slot]), left):
                pool.add(column)
                left -= 1
                if left <= 0 or budget.stop() is not None:
                    raise TooManyColumnsError

    try:
        pricing.each_path(prices.devices, visit)
    except TooManyColumnsError:
        pool.known = before
        return False
    return True
