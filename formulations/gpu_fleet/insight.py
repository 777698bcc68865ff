"""What limits a fleet plan, what one unit of relief of each limit would save, and the plan without its main offer.

Every answer is a re-solve of the changed instance, so it comes with what is proven of both: a saving is told only
where the new plan is cheaper than the old one's bound, which no plan within the limit can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.power import drawn
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.rows import in_order, instance_counts, on_spot
from formulations.outcome import TOLERANCE, Budget, OnProgress, Outcome, SolveOptions
from planner.fleet_plan import FleetPlan, Insight, Relief, Substitute

#: Most limits that are relaxed, and seconds for each: an explanation may be rough, but not slow.
MOST_RELIEFS = 8
RESOLVE_S = 5.0
#: By how much limits without a natural unit are raised.
STEP = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Limit:
    """A limit that a plan reaches: its name and value, and the instance with one unit more of it."""

    name: str
    now: float
    relaxed: float
    problem: FleetProblem


def binding(problem: FleetProblem, plan: FleetPlan) -> list[Limit]:
    """Limits with no room for one more unit in some period of the plan."""
    return list(_binding(problem, instance_counts(problem, plan), plan))


def _binding(problem: FleetProblem, counts: FloatArray, plan: FleetPlan) -> Iterator[Limit]:
    for offer, name in enumerate(problem.offer_names):
        used = counts[:, offer]
        if used.max() >= problem.most[offer]:
            most = problem.most.copy()
            most[offer] += 1
            yield Limit(f"max_count of {name}", problem.most[offer], most[offer], replace(problem, most=most))
        if problem.least[offer] and used.min() <= problem.least[offer]:
            least = problem.least.copy()
            least[offer] -= 1
            yield Limit(f"min_count of {name}", problem.least[offer], least[offer], replace(problem, least=least))
    budget, watts = problem.budget_usd_per_hour, problem.max_watts
    if _full(counts @ problem.price, budget, problem.price):
        raised = budget * (1 + STEP)
        yield Limit("budget_usd_per_hour", budget, raised, replace(problem, budget_usd_per_hour=raised))
    if problem.draw is None:
        filled, each = counts @ problem.watts, problem.watts
    else:
        filled = np.array([drawn(problem, period).expected for period in plan.periods]) / (1 - problem.watt_margin)
        each = problem.draw.idle / (1 - problem.watt_margin)
    if _full(filled, watts, each):
        yield Limit("max_watts", watts, watts * (1 + STEP), replace(problem, max_watts=watts * (1 + STEP)))
    for quota, (name, mask) in enumerate(zip(problem.quota_names, problem.quota_offers, strict=True)):
        if _full(counts[:, mask] @ problem.gpus[mask], problem.quota_gpus[quota], problem.gpus[mask]):
            most = problem.quota_gpus.copy()
            most[quota] += problem.gpus[mask].min()
            yield Limit(f"quota {name}", problem.quota_gpus[quota], most[quota], replace(problem, quota_gpus=most))
    if problem.max_spot_share < 1.0 and _spot_share(problem, plan) >= problem.max_spot_share - 1e-4:
        raised = min(1.0, problem.max_spot_share + STEP)
        yield Limit("max_spot_share", problem.max_spot_share, raised, replace(problem, max_spot_share=raised))
    if problem.spare_instances:
        yield Limit("spare_instances", 1.0, 0.0, replace(problem, spare_instances=0))
    if problem.zone_names:
        yield Limit("spare_zones", 1.0, 0.0, replace(problem, zone_names=(), zone_of_pool=None))
    order = in_order(problem, plan)
    moved = [counts[order[after]] - counts[order[before]] for before, after in problem.steps]
    for key, allowed, sign in (("max_starts", problem.max_starts, 1), ("max_stops", problem.max_stops, -1)):
        if allowed is not None and max((np.maximum(sign * one, 0).sum() for one in moved), default=0.0) >= allowed:
            changed_problem = replace(problem, **{key: allowed + 1})  # type: ignore[arg-type]
            yield Limit(key, allowed, allowed + 1, changed_problem)
    if problem.max_changes is not None and problem.current is not None:
        changed = float(np.abs(counts[0] - problem.current).sum())
        if changed >= problem.max_changes:
            raised = problem.max_changes + 1
            yield Limit("max_changes", problem.max_changes, raised, replace(problem, max_changes=raised))


def _full(used: FloatArray, limit: float, each: FloatArray) -> bool:
    """Not even the smallest instance more fits in some period."""
    sizes = each[each > 0]
    return bool(sizes.size and np.isfinite(limit) and used.max() + sizes.min() > limit)


def _spot_share(problem: FleetProblem, plan: FleetPlan) -> float:
    """Largest share of a stage of a model's requests that is on spot in any period, losses included."""
    worst = 0.0
    for period in plan.periods:
        index = problem.hours.index(period.hours)
        total = np.bincount(problem.bucket_model, weights=problem.rate[index], minlength=len(problem.model_names))
        for rows in (period.assignment, *(survival.assignment for survival in period.survival)):
            worst = max(worst, float((on_spot(problem, index, rows) / np.where(total > 0, total, 1.0)).max()))
    return worst


def explain_plan(
    problem: FleetProblem,
    plan: FleetPlan,
    objective: float,
    bound: float | None,
    options: SolveOptions,
    on_progress: OnProgress | None = None,
) -> Insight:
    """Relief of the limits that bind, and the plan without the offer that most money goes to.

    objective, bound : of the plan. At most MOST_RELIEFS + 1 re-solves, none longer than RESOLVE_S seconds.
    """
    limits = binding(problem, plan)
    watch = Budget(RESOLVE_S * (min(len(limits), MOST_RELIEFS) + 1), on_progress)

    def again(changed: FleetProblem) -> Outcome[FleetPlan]:
        watch.report(incumbent=objective, bound=bound, message="what would change")
        return solve(GPU_FLEET, changed, replace(options, time_limit_s=min(RESOLVE_S, options.time_limit_s)))

    short = any(period.unserved for period in plan.periods)
    reliefs = tuple(
        _service(limit, again(limit.problem)) if short else _relief(limit, objective, bound, again(limit.problem))
        for limit in limits[:MOST_RELIEFS]
    )
    counts = instance_counts(problem, plan)
    spent = counts.sum(axis=0) * problem.price
    main = int(np.argmax(spent if spent.any() else counts.sum(axis=0)))
    gone = np.arange(problem.num_offers) == main
    most, least = np.where(gone, 0.0, problem.most), np.where(gone, 0.0, problem.least)
    outcome = again(replace(problem, most=most, least=least))
    return Insight(
        reliefs=reliefs,
        untried=tuple(limit.name for limit in limits[MOST_RELIEFS:]),
        without=_substitute(problem, main, objective, outcome),
    )


def _relief(limit: Limit, objective: float, bound: float | None, outcome: Outcome[FleetPlan]) -> Relief:
    """The true saving lies between the old bound less the new plan and the old plan less the new bound."""
    least = most = None
    if outcome.objective is not None and bound is not None:
        # The old plan keeps the relaxed limit too, so the best plan known there is never worse.
        found = bound - min(outcome.objective.total, objective)
        least = found if found > TOLERANCE * max(1.0, abs(objective)) else 0.0
    if outcome.bound is not None:
        most = max(0.0, objective - outcome.bound.value)
    return Relief(
        limit=limit.name,
        now=float(limit.now),
        relaxed=float(limit.relaxed),
        saves_at_least_usd_per_hour=least,
        saves_at_most_usd_per_hour=most if least is None or most is None else max(least, most),
    )


def _service(limit: Limit, outcome: Outcome[FleetPlan]) -> Relief:
    """What stays unserved with one unit more: where demand is, a relief buys service and not money."""
    return Relief(
        limit=limit.name,
        now=float(limit.now),
        relaxed=float(limit.relaxed),
        saves_at_least_usd_per_hour=None,
        saves_at_most_usd_per_hour=None,
        unserved_per_s=_unserved(outcome),
    )


def _unserved(outcome: Outcome[FleetPlan]) -> dict[str, float] | None:
    """What stays unserved, by goal; None without a plan."""
    if outcome.plan is None:
        return None
    return {tier.goal: tier.value for tier in outcome.plan.tiers if tier.goal.startswith("unserved")}


def _substitute(problem: FleetProblem, offer: int, objective: float, outcome: Outcome[FleetPlan]) -> Substitute:
    instances: dict[str, int] = {}
    if outcome.plan is not None:
        peak = instance_counts(problem, outcome.plan).max(axis=0)
        instances = {name: int(n) for name, n in zip(problem.offer_names, peak, strict=True) if n}
    return Substitute(
        offer=problem.offer_names[offer],
        status=outcome.status.value,
        objective_usd_per_hour=None if outcome.objective is None else outcome.objective.total,
        extra_usd_per_hour=None if outcome.objective is None else outcome.objective.total - objective,
        gap=outcome.gap,
        instances=instances,
        unserved_per_s=_unserved(outcome) if problem.leave_unserved else None,
    )
