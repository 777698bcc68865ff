"""Groups of like hours in one linear relaxation: what all hours' relaxations average to, and rows that tighten it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from formulations.backends.linear import LinearModel
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.columns import FleetModel
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray

#: Groups of similar hours, whose mean demands stand for them in the relaxation.
LEVELS = 16

Box = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, slots=True, eq=False)
class PricedRow:
    """price @ R + share of the group x mean rent of the group's own instances >= least."""

    group: int
    price: FloatArray
    least: float


class HourGroups:
    """Mean demands of groups of hours as periods of one model; `columns` are its reserved counts."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        self.periods = levels(problem)
        self.share = np.array([problem.share[group].sum() for group in self.periods])
        # As many instances as at the peak: an hour of a group may have more than its mean asks for.
        most = FleetBuilder(problem, tuple(range(problem.num_periods))).most
        self.built = FleetBuilder(_means(problem, self.periods), tuple(range(len(self.periods))), most=most).build()
        self.columns = self.built.columns[0].y[np.flatnonzero(problem.reserved)]

    def relaxed(self, box: Box, rows: tuple[PricedRow, ...], limit_s: float) -> Relaxation | Literal[False] | None:
        """With reserved counts within a box: not above the optimum, as costs of a relaxation are convex in demand."""
        model = self._model(rows)
        lower, upper = model.lower.copy(), model.upper.copy()
        lower[self.columns], upper[self.columns] = box
        return relax(replace(model, lower=lower, upper=upper), limit_s)

    def _model(self, rows: tuple[PricedRow, ...]) -> LinearModel:
        """The model with further rows."""
        model = self.built.model
        on_demand = np.flatnonzero(~self.problem.reserved)
        columns, values = [model.column], [model.value]
        for row in rows:
            rent = self.share[row.group] * self.problem.price[on_demand]
            columns += [self.columns, self.built.columns[row.group].y[on_demand]]
            values += [row.price, rent]
        width, first = self.problem.num_offers, model.row_lower.size
        added = np.repeat(np.arange(first, first + len(rows)), width)
        return replace(
            model,
            row=np.concatenate([model.row, added]),
            column=np.concatenate(columns),
            value=np.concatenate(values),
            row_lower=np.concatenate([model.row_lower, [row.least for row in rows]]),
            row_upper=np.concatenate([model.row_upper, np.full(len(rows), np.inf)]),
        )

    def prices(self, relaxed: Relaxation) -> FloatArray:
        """What one reserved instance is worth to each group, [groups, R]: duals of the group's rows that it is in.

        The relaxation is one without further rows.
        """
        return reserved_prices(self.problem, self.built, relaxed)


def reserved_prices(problem: FleetProblem, built: FleetModel, relaxed: Relaxation) -> FloatArray:
    """What a reserved instance is worth to each period of the model, [periods, R]: duals of the rows that it is in."""
    model = built.model
    period_of_column = np.full(model.num_variables, -1)
    for period, columns in enumerate(built.columns):
        for own in (columns.y[~problem.reserved], columns.z, columns.routing.x):
            period_of_column[own] = period
    period_of_row = np.full(model.row_lower.size, -1)
    known = period_of_column[model.column] >= 0
    period_of_row[model.row[known]] = period_of_column[model.column[known]]
    shared = built.columns[0].y[problem.reserved]
    prices = np.zeros((len(built.columns), shared.size))
    for place, column in enumerate(shared):
        entry = (model.column == column) & (period_of_row[model.row] >= 0)
        row = model.row[entry]
        np.add.at(prices[:, place], period_of_row[row], model.value[entry] * relaxed.duals[row])
    return np.maximum(prices, 0.0)


def loads(problem: FleetProblem) -> FloatArray:
    """Replicas that each period takes of the configuration that each bucket fits best, [T]."""
    fits = problem.throughput.max(axis=1)
    return np.asarray((problem.rate / np.where(fits > 0, fits, 1.0)).sum(axis=1))


def levels(problem: FleetProblem) -> list[IntArray]:
    """Periods in groups of like demand: equal steps of `loads`."""
    load = loads(problem)
    steps = np.linspace(load.min(), load.max(), LEVELS + 1)[1:-1]
    label = np.searchsorted(steps, load)
    return [np.flatnonzero(label == value) for value in np.unique(label)]


def _means(problem: FleetProblem, groups: list[IntArray]) -> FleetProblem:
    """Groups as periods, with their mean demands."""
    share = np.array([problem.share[group].sum() for group in groups])
    rate = np.stack([problem.share[group] @ problem.rate[group] for group in groups]) / share[:, None]
    needed = np.stack([problem.needed(period) for period in range(problem.num_periods)])
    mean = np.stack([problem.share[group] @ needed[group] for group in groups]) / share[:, None]
    burst = np.where(rate > 0, mean / np.where(rate > 0, rate, 1.0), np.nan)
    return replace(problem, rate=rate, burst=burst, share=share, hours=tuple((place,) for place in range(len(groups))))
