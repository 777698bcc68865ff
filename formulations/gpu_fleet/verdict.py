"""The verdict on a fleet: its rules, how full every offer is, watts, and what limits it."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.power import drawn
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import Rows
from formulations.gpu_fleet.unserved import unserved_per_s
from planner.cost.verdict import Metric, Verdict
from planner.fleet_plan import Assignment, FleetPlan, Period, Replicas

#: Rules without which a plan has no utilisation: it names what is not there, or what takes for ever.
UNREADABLE = ("hours", "offer", "model", "configuration", "assignment", "slo")


def judge(problem: FleetProblem, plan: FleetPlan) -> Verdict:
    """Utilisation by offer and model in the fullest hour, watts, and broken rules."""
    broken = check(problem, plan)
    if any(one.rule in UNREADABLE for one in broken):
        return Verdict(violations=tuple(broken))
    fullest: dict[tuple[str, str], float] = defaultdict(float)
    for period in plan.periods:
        for key, used in _utilisation(problem, period).items():
            fullest[key] = max(fullest[key], used)
    metrics = [] if np.isnan(problem.watts).any() else _watts(problem, plan)
    metrics += [
        Metric(name=f"utilisation[{offer}, {model}]", value=value, unit="fraction", source="modelled")
        for (offer, model), value in sorted(fullest.items())
    ]
    if problem.leave_unserved:
        metrics += [
            Metric(name=f"unserved_per_s[priority {priority}]", value=left, unit="requests/s", source="modelled")
            for priority, left in unserved_per_s(problem, plan).items()
        ]
    worst = max(fullest, key=lambda key: fullest[key], default=None)
    return Verdict(
        metrics=tuple(metrics),
        violations=tuple(broken),
        bottleneck=None if worst is None else f"{worst[1]} on {worst[0]}: {fullest[worst]:.1%} of its capacity is used",
        assumptions=("loads of different sizes on one replica add up", *problem.assumptions),
    )


def _utilisation(problem: FleetProblem, period: Period) -> dict[tuple[str, str], float]:
    """Load over replicas by offer and model (with its role, where split), headroom not counted as load."""
    index = problem.hours.index(period.hours)
    known = Rows(problem)
    load: dict[tuple[str, str], float] = defaultdict(float)
    have: dict[tuple[str, str], float] = defaultdict(float)
    for replica in period.replicas:
        pool = problem.pool_of_offer[known.offers[replica.offer]]
        have[replica.offer, _who(replica)] += replica.count * replica.gpus * float(problem.availability[pool])
    for row in period.assignment:
        d = known.bucket(row)
        replicas = problem.rate[index, d] * row.fraction / problem.throughput[d, known.config(row)]
        load[row.offer, _who(row)] += float(replicas) * row.gpus
    return {key: load[key] / gpus for key, gpus in have.items() if gpus}


def _who(row: Replicas | Assignment) -> str:
    return row.model if row.role == "both" else f"{row.model}, {row.role}"


def _watts(problem: FleetProblem, plan: FleetPlan) -> list[Metric]:
    """Of the fullest hour, and the mean."""
    watts = dict(zip(problem.offer_names, problem.watts.tolist(), strict=True))
    share = dict(zip(problem.hours, problem.share.tolist(), strict=True))
    used = [sum(watts[row.offer] * row.count for row in period.allocation) for period in plan.periods]
    mean = sum(share[period.hours] * value for period, value in zip(plan.periods, used, strict=True))
    found = [
        Metric(name="watts_peak", value=max(used), unit="W", source="datasheet"),
        Metric(name="watts_mean", value=mean, unit="W", source="datasheet"),
    ]
    if problem.draw is not None:
        swings = [drawn(problem, period) for period in plan.periods]
        chance = max(one.above(problem.max_watts) for one in swings)
        found += [
            Metric(name="watts_drawn_peak", value=max(one.expected for one in swings), unit="W", source="modelled"),
            Metric(name="oversubscription", value=max(used) / problem.max_watts, unit="fraction", source="modelled"),
            Metric(name="capping_share", value=chance, unit="fraction", source="modelled"),
        ]
    return found
