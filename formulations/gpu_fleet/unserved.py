"""What a plan leaves unserved: how much of each bucket and priority, and which limits keep one more instance away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.rows import Rows
from formulations.gpu_fleet.stages import servable
from planner.fleet_plan import FleetPlan, Unserved

#: Shares below this are sums that do not come out even.
LEAST_SHARE = 1e-9
#: Relative room that is none: sums of prices and watts.
ROUNDING = 1e-9
#: What is told of a bucket that nothing can serve, and of one that more could be served of as far as is known.
NO_OFFER, NOT_PROVEN = "no offer serves it within the SLO", "the search ended before more was found"


def unserved_rows(problem: FleetProblem, period: int, fractions: FloatArray, fleets: IntArray) -> tuple[Unserved, ...]:
    """Rows of a period, the highest priority first; empty where all must be served.

    fractions : unserved, [D]; fleets : instances of all periods of the plan, [T, K].
    """
    if not problem.leave_unserved:
        return ()
    left = np.flatnonzero((problem.rate[period] > 0) & (fractions > LEAST_SHARE))
    return tuple(
        Unserved(
            model=problem.model_names[problem.bucket_model[bucket]],
            input_tokens=int(problem.input_tokens[bucket]),
            output_tokens=int(problem.output_tokens[bucket]),
            priority=int(problem.priority[bucket]),
            fraction=float(fractions[bucket]),
            rate_per_s=float(fractions[bucket] * problem.rate[period, bucket]),
            limits=limits_of(problem, period, bucket, fleets),
        )
        for bucket in sorted(left.tolist(), key=lambda d: (-problem.priority[d], d))
    )


def limits_of(problem: FleetProblem, period: int, bucket: int, fleets: IntArray) -> tuple[str, ...]:
    """Why no more of a bucket is served: for each offer that could, what one more instance of it breaks."""
    can = problem.throughput[bucket] > 0
    if not servable(problem)[bucket]:
        return (NO_OFFER,)
    found: dict[str, None] = {}
    for offer in range(problem.num_offers):
        if (problem.held[can, offer] > 0).any():
            # A reserved instance is there in all periods, and must be within the limits of all.
            over = fleets if problem.reserved[offer] else fleets[period : period + 1]
            found |= dict.fromkeys(broken_by_one_more(problem, offer, over))
    if problem.config_role.any() and NOT_PROVEN in found:
        # An instance more of one role is no help while another role, or the way to it, is full.
        del found[NOT_PROVEN]
        return tuple(found) or ("bandwidth between roles",)
    return tuple(found)


def broken_by_one_more(problem: FleetProblem, offer: int, fleets: IntArray) -> Iterator[str]:
    """Limits that one more instance of an offer breaks, of any of the fleets [n, K]."""
    more = fleets + (np.arange(problem.num_offers) == offer)
    told = False
    if (more[:, offer] > problem.most[offer]).any():
        yield f"max_count of {problem.offer_names[offer]}"
        told = True
    watts = problem.watts if problem.draw is None else problem.draw.idle / (1 - problem.watt_margin)
    sums = [
        ("budget_usd_per_hour", problem.price, problem.budget_usd_per_hour),
        ("max_watts", watts, problem.max_watts),
    ]
    quotas = zip(problem.quota_names, problem.quota_offers, problem.quota_gpus, strict=True)
    sums += [(f"quota {name}", problem.gpus * mask, float(most)) for name, mask, most in quotas]
    for name, each, most in sums:
        # Where watts are not known there is no limit on them.
        if np.isfinite(most) and each[offer] > 0 and (more @ each > most * (1 + ROUNDING)).any():
            yield name
            told = True
    limited = problem.current is not None and problem.max_changes is not None
    if limited and np.abs(more - problem.current).sum() > problem.max_changes:
        yield "max_changes"
        told = True
    if not told and problem.spot[problem.pool_of_offer[offer]] and problem.max_spot_share < 1.0:
        yield "max_spot_share"
    elif not told:
        losses = {"spare_instances": bool(problem.spare_instances), "spare_zones": bool(problem.zone_names)}
        yield next((name for name, asked in losses.items() if asked), NOT_PROVEN)


def served_per_s(problem: FleetProblem, plan: FleetPlan) -> FloatArray:
    """Requests a second that are served in each of the plan's periods, [periods, D]."""
    known = Rows(problem)
    served = np.array([problem.rate[problem.hours.index(period.hours)] for period in plan.periods])
    for place, period in enumerate(plan.periods):
        for row in period.unserved:
            served[place, known.bucket(row)] *= 1 - row.fraction
    return served


def unserved_per_s(problem: FleetProblem, plan: FleetPlan) -> dict[int, float]:
    """Requests a second that a plan leaves unserved, by priority, the mean over the hours."""
    share = dict(zip(problem.hours, problem.share.tolist(), strict=True))
    found = dict.fromkeys(problem.tiers(), 0.0)
    for period in plan.periods:
        for row in period.unserved:
            found[row.priority] += share[period.hours] * row.rate_per_s
    return found
