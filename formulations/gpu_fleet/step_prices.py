"""Prices of what ties the hours of `switching`, and the master problem that they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import LinearBuilder
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.columns import Entries
from formulations.gpu_fleet.problem import BoolArray, FleetProblem, FloatArray
from formulations.outcome import Budget


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """Of what ties the hours.

    start, stop : of what an offer gains and loses at each step, [steps, K]; starts, stops : of their limits, [steps].
    use : of reserved instances in each hour, [H, K], 0 for other offers.
    """

    start: FloatArray
    stop: FloatArray
    starts: FloatArray
    stops: FloatArray
    use: FloatArray

    def towards(self, other: Prices, share: float) -> Prices:
        """A point between: prices of a convex set."""
        names = ("start", "stop", "starts", "stops", "use")
        return Prices(*((1 - share) * getattr(self, name) + share * getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """The best mean of given fleets: its prices, its counts [H, K], its reserved counts [K] and what it costs."""

    prices: Prices
    counts: FloatArray
    reserved: FloatArray
    objective: float


def start_price(problem: FleetProblem) -> FloatArray:
    """USD an hour, on average over all hours, of one start in them, [K]."""
    none = np.zeros(problem.num_offers)
    return none if problem.start_cost is None else np.asarray(problem.start_cost / problem.num_periods)


def allowed(
    problem: FleetProblem, start: FloatArray, stop: FloatArray, starts: FloatArray, stops: FloatArray, use: FloatArray
) -> Prices:
    """The nearest prices that no start, stop or reserved instance undercuts: only those give a bound."""
    starts, stops = np.maximum(starts, 0.0), np.maximum(stops, 0.0)
    use = np.maximum(use, 0.0)
    total = use.sum(axis=0)
    use = use * np.minimum(1.0, problem.price / np.where(total > 0, total, 1.0))
    return Prices(
        start=np.clip(start, 0.0, start_price(problem) + starts[:, None]),
        stop=np.clip(stop, 0.0, stops[:, None]),
        starts=starts,
        stops=stops,
        use=use,
    )


def mean_of_fleets(
    problem: FleetProblem, most_of: FloatArray, fleets: FloatArray, served: BoolArray, budget: Budget
) -> Mean | None:
    """For each hour shares of the fleets that serve it, the cheapest; None when time is up or there are none.

    most_of : instances of an offer at most, [K]; fleets : [F, K]; served : which serve an hour, [H, F].
    """
    hour, fleet = np.nonzero(served)
    price_of = start_price(problem)
    rent = np.where(problem.reserved, 0.0, problem.price) / problem.num_periods
    builder = LinearBuilder()
    share = builder.variables((hour.size,), cost=fleets[fleet] @ rent)
    kept = builder.variables(
        (problem.num_offers,), lower=problem.least * problem.reserved, upper=most_of * problem.reserved,
        cost=problem.price * problem.reserved,
    )  # fmt: skip
    builder.sparse_rows(np.ones(problem.num_periods), 1.0, (hour, share, 1.0))
    use_row: dict[tuple[int, int], int] = {}
    for offer in np.flatnonzero(problem.reserved).tolist():
        every = np.arange(problem.num_periods)
        use_row |= {(period, offer): builder.num_rows + period for period in every.tolist()}
        builder.sparse_rows(
            np.zeros(every.size), np.inf, (hour, share, -fleets[fleet, offer]), (every, kept[offer], 1.0)
        )
    step_row: dict[tuple[str, int], tuple[int, int | None]] = {}
    own = [np.flatnonzero(hour == period) for period in range(problem.num_periods)]
    moving = np.flatnonzero(~problem.reserved)
    for step, (before, after) in enumerate(problem.steps):
        for name, most, price, old, new in (
            ("starts", problem.max_starts, price_of, own[before], own[after]),
            ("stops", problem.max_stops, 0 * price_of, own[after], own[before]),
        ):
            if most is None and not price.any():
                continue
            moved = builder.variables((moving.size,), upper=most_of[moving], cost=price[moving])
            first = builder.num_rows
            entries: list[Entries] = [(np.arange(moving.size), moved, 1.0)]
            for columns, sign in ((new, -1.0), (old, 1.0)):
                rows = np.tile(np.arange(moving.size), columns.size)
                value = sign * fleets[fleet[columns]][:, moving].ravel()
                entries.append((rows, np.repeat(share[columns], moving.size), value))
            builder.sparse_rows(np.zeros(moving.size), np.inf, *entries)
            limit = None
            if most is not None:
                limit = builder.num_rows
                builder.sparse_rows([-np.inf], float(most), (0, moved, 1.0))
            step_row[name, step] = first, limit
    relaxed = relax(builder.build(), budget.remaining_s)
    if not isinstance(relaxed, Relaxation):
        return None
    gain = {name: np.zeros((len(problem.steps), problem.num_offers)) for name in ("starts", "stops")}
    limits = {name: np.zeros(len(problem.steps)) for name in gain}
    for (name, step), (first, limit) in step_row.items():
        gain[name][step, moving] = relaxed.duals[first : first + moving.size]
        if limit is not None:
            limits[name][step] = -relaxed.duals[limit]
    use = np.zeros((problem.num_periods, problem.num_offers))
    for (period, offer), row in use_row.items():
        use[period, offer] = relaxed.duals[row]
    prices = allowed(problem, gain["starts"], gain["stops"], limits["starts"], limits["stops"], use)
    counts = np.zeros((problem.num_periods, problem.num_offers))
    np.add.at(counts, hour, relaxed.values[share][:, None] * fleets[fleet])
    return Mean(prices, counts, relaxed.values[kept], relaxed.objective)
