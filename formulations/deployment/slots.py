"""What one more place for a worker is worth: prices of the packing rows in the linear relaxation of the dearest hours.

A worker of g GPUs counts in the row of every size s <= g of its pool, so a place for it is worth g x the sum of their
prices: what the relaxed plan would cost less with one more such place, for a small change.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Budget
from planner.deploy_plan import SlotPrice

#: Seconds for the relaxation, and USD/hour below which a price is rounding.
RELAX_S, NOTHING = 10.0, 1e-7


def slot_prices(problem: FleetProblem, period: int, budget: Budget) -> tuple[SlotPrice, ...]:
    """Prices above zero by pool and size; none where the relaxation was not solved in time."""
    built = FleetBuilder(problem, (period,), unserved=problem.leave_unserved).build()
    # Bounds of replicas follow from the packing rows; without them the price of a place is not split between both.
    upper = built.model.upper.copy()
    upper[built.columns[0].z] = np.inf
    relaxed = relax(replace(built.model, upper=upper), min(RELAX_S, budget.remaining_s))
    if not isinstance(relaxed, Relaxation):
        return ()
    found = []
    rows = iter(built.packing[0])
    for pool in range(len(problem.availability)):
        offer = problem.described_offers[int((problem.pool_of_offer == pool).argmax())]
        total = 0.0
        # The rows of a pool's sizes come in their order.
        for size in problem.sizes(pool).tolist():
            total += max(0.0, -float(relaxed.duals[next(rows)]))
            if size * total > NOTHING:
                found.append(
                    SlotPrice(
                        device=offer.device,
                        region=offer.region,
                        zone=offer.zone if problem.zone_names else None,
                        spot=bool(problem.spot[pool]),
                        gpus=size,
                        usd_per_hour=size * total,
                    )
                )
    return tuple(found)
