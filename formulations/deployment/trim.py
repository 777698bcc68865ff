"""Of all plans with the same nodes, one with the fewest GPUs in workers: replicas cost nothing once a node is paid.

In every period, with the instances y of the plan found, and what it leaves unserved:  minimise sum_c gpus[c] z[c] (and
the price of moves), under all rows of `gpu_fleet.milp`. Nodes without a price that then host nothing are left out,
where no loss is to be survived and no start counted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts, Placer, place, plan_of
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.rows import Rows, in_order, instance_counts
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.outcome import Budget, PartBudget, SolveOptions
from planner.fleet_plan import FleetPlan, Tier

#: Seconds for a period, and USD/hour of a GPU in a worker: below any price that decides what is rented.
PERIOD_S, GPU_USD_PER_HOUR = 5.0, 1e-5
#: Gap at which the fewest GPUs are few enough.
GAP = 1e-3


def trimmed(
    problem: FleetProblem, plan: FleetPlan, options: SolveOptions, budget: Budget, placer: Placer = place
) -> FleetPlan:
    """The plan with as few GPUs in workers as were found, which leaves out the same demand and costs no more.

    The plan itself where time is short.

    placer : of workers onto offers, see `gpu_fleet.packing`.
    """
    # What survives a loss may need idle nodes; and fewer of them in one hour are starts in the next.
    idle_stay = bool(problem.spare_instances or problem.zone_names or problem.switching)
    known = Rows(problem)
    left = np.zeros((problem.num_periods, len(problem.bucket_model)))
    order = in_order(problem, plan)
    for period, at in enumerate(order):
        for row in plan.periods[at].unserved:
            left[period, known.bucket(row)] = row.fraction
    instances = instance_counts(problem, plan)[order]
    counts: dict[int, Counts] = {}
    for period in range(problem.num_periods):
        found = _period(problem, period, instances[period], left[period], options, budget)
        if found is None:
            return plan
        counts[period] = found if idle_stay else _without_idle(problem, found, placer)
    made = plan_of(problem, counts, placer)
    saved = GPU_FLEET.objective(problem, plan).total - GPU_FLEET.objective(problem, made).total
    if saved < 0:
        return plan
    return made.model_copy(update={"tiers": tuple(_cheaper(tier, saved) for tier in plan.tiers)})


def _cheaper(tier: Tier, saved: float) -> Tier:
    """A goal of the plan, where moves that nothing needed are saved."""
    if tier.goal != "cost" or not saved:
        return tier
    value = tier.value - saved
    gap = None if tier.bound is None else (value - tier.bound) / max(abs(value), 1e-12)
    return tier.model_copy(update={"value": value, "gap": gap})


def _period(
    problem: FleetProblem, period: int, instances: FloatArray, left: FloatArray, options: SolveOptions, budget: Budget
) -> Counts | None:
    alone = replace(problem, start_cost=None, max_starts=None, max_stops=None)
    built = FleetBuilder(alone, (period,), unserved=bool(left.any())).build()
    columns, model = built.columns[0], built.model
    lower, upper, cost = model.lower.copy(), model.upper.copy(), model.cost.copy()
    lower[columns.y] = upper[columns.y] = instances
    if columns.u.size:
        lower[columns.u] = upper[columns.u] = left[columns.asked]
    cost[columns.y] = 0.0
    cost[columns.z] += GPU_USD_PER_HOUR * problem.config_gpus
    limit_s = min(PERIOD_S, budget.remaining_s)
    if limit_s <= 0:
        return None
    work = replace(options, time_limit_s=limit_s, relative_gap=GAP)
    changed = replace(model, lower=lower, upper=upper, cost=cost)
    _, values = solver_of("highs", small=True)(changed, PartBudget(budget, limit_s), work)
    return None if values is None else counts_of(problem, columns, values)


def _without_idle(problem: FleetProblem, counts: Counts, placer: Placer) -> Counts:
    """Without the nodes that cost nothing and host nothing, down to the least that is asked for."""
    _, hosts = placer(problem, counts.instances, counts.replicas)
    hosting = np.bincount([offer for offer, configs in hosts if configs], minlength=problem.num_offers)
    kept = np.maximum(hosting, problem.least.astype(np.int64))
    free = (problem.price == 0) & ~problem.reserved
    return replace(counts, instances=np.where(free, np.minimum(counts.instances, kept), counts.instances))
