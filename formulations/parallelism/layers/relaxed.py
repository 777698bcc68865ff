"""Column generation: the linear relaxation over all pipelines, its prices, and the pipelines near them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from formulations.backends.relaxation import relax
from formulations.outcome import Budget
from formulations.parallelism.layers.milp import build, link_list, path_price
from formulations.parallelism.layers.pricing import (
    Column,
    OutOfTimeError,
    Pricing,
    Table,
    TooManyColumnsError,
    Visit,
    pricings,
    useful_slots,
)
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


def generate(problem: LayersProblem, pool: Pool, budget: Budget) -> bool:
    """Fill the pool until its relaxation is that over all pipelines; False when time is up before."""
    # No layer runs faster than its device: at the price of their speed no pipeline gains, so this is a bound already.
    speed = 1.0 / problem.layer_s
    prices = Prices(speed / problem.num_layers, np.zeros(len(link_list(problem))), 0.0)
    pool.bound, pool.prices = float(prices.devices @ problem.count), prices
    try:
        if not _begin(problem, pool, prices, budget):
            return True
        while budget.stop() is None:
            master = build(problem, pool.columns)
            solved = relax(master.model, budget.remaining_s)
            if not solved:
                return False
            duals = np.maximum(-solved.duals, 0.0)
            of_pipeline = float(duals[master.link_rows.stop])
            prices = Prices(duals[master.class_rows] * master.unit, duals[master.link_rows], of_pipeline * master.unit)
            bound, new = _price(problem, pool, prices, budget)
            if bound < pool.bound:
                pool.bound, pool.prices = bound, prices
            if not new:
                return True
            budget.report(None, -problem.batch * pool.bound, f"{len(pool.known)} pipelines")
    except OutOfTimeError:
        return False
    return False


def _begin(problem: LayersProblem, pool: Pool, prices: Prices, budget: Budget) -> bool:
    """Put some pipelines into the pool; False when there are none at all."""

    def visit(part: Pricing, path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
        _add(pool, part, path, tables, cost, 1.0 / part.slots - cost)

    for part in pricings(problem, useful_slots(problem), limited=True):
        part.each_path(prices.devices, visit, budget)
        if pool.known:
            return True
    return False


def _price(problem: LayersProblem, pool: Pool, prices: Prices, budget: Budget) -> tuple[float, bool]:
    """The bound at some prices, and whether a column was added. Raises OutOfTimeError."""
    worth = value(problem, prices)
    least = CONVERGED * worth
    most = least
    new = False

    def visit(part: Pricing, path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
        nonlocal most, new
        gain = income(problem, part, path, prices) - cost
        most = max(most, float(gain.max(initial=0.0)))
        new |= _add(pool, part, path, tables, cost, np.where(gain > least, gain, -np.inf))

    sweep(problem, prices, -least, visit, budget)
    # No plan has more pipelines than that, and each gains at most so much over its price.
    return worth + problem.most_pipelines * most, new


def _add(
    pool: Pool, part: Pricing, path: tuple[int, ...], tables: list[Table], cost: FloatArray, gain: FloatArray
) -> bool:
    """Read back the columns of the slots that gain most; whether one of them is new."""
    new = False
    for slot in np.argsort(-gain, kind="stable")[:PER_PATH].tolist():
        if gain[slot] == -np.inf:
            break
        with suppress(TooManyColumnsError):
            new |= pool.add(next(part.columns(path, tables, slot, float(cost[slot]), READ_STEPS)))
    return new


def sweep(problem: LayersProblem, prices: Prices, within: float, visit: Visit, budget: Budget) -> None:
    """Visit all slots on all paths whose least cost may be up to `within` above what they bring. OutOfTimeError.

    Counting stages is slow, so where it is needed the slots that do not even pay without limits are left out first.
    """
    slots = useful_slots(problem)
    if problem.is_limited:
        kept: list[FloatArray] = [np.zeros(0)]

        def keep(part: Pricing, path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
            kept.append(part.slots[cost <= income(problem, part, path, prices) + within])

        for part in pricings(problem, slots, limited=False):
            part.each_path(prices.devices, keep, budget)
        slots = np.unique(np.concatenate(kept))
    for part in pricings(problem, slots, limited=True):
        part.each_path(prices.devices, visit, budget)


def value(problem: LayersProblem, prices: Prices) -> float:
    """What all devices, links and pipelines are worth at these prices."""
    carried = np.array([problem.hops.steps_per_s[link] for link in link_list(problem)])
    of_links = float(prices.links @ carried) if carried.size else 0.0
    return float(prices.devices @ problem.count) + of_links + prices.pipeline * problem.most_pipelines


def income(problem: LayersProblem, part: Pricing, path: tuple[int, ...], prices: Prices) -> FloatArray:
    """Steps/s of a pipeline of each slot, less its links and its own price."""
    share = max(0.0, 1.0 - path_price(link_list(problem), prices.links, path))
    return share / part.slots - prices.pipeline


def near(problem: LayersProblem, pool: Pool, within: float, most: int, budget: Budget) -> bool:
    """Add all pipelines whose reduced cost is within so many steps/s; False, and the pool as it was, when too many."""
    prices = pool.prices
    assert prices is not None
    before = dict(pool.known)
    left = most

    def visit(part: Pricing, path: tuple[int, ...], tables: list[Table], cost: FloatArray) -> None:
        nonlocal left
        limit = income(problem, part, path, prices) + within
        for slot in np.flatnonzero(limit >= cost).tolist():
            for column in part.columns(path, tables, slot, float(limit[slot]), left):
                pool.add(column)
                left -= 1
                if left <= 0 or budget.stop() is not None:
                    raise TooManyColumnsError

    try:
        sweep(problem, prices, within, visit, budget)
    except (TooManyColumnsError, OutOfTimeError):
        pool.known = before
        return False
    return True
