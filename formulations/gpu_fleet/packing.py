"""From counts to a plan: replicas onto instances, and shares of requests onto offers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.unserved import unserved_rows
from planner.fleet_plan import Allocation, Assignment, FleetPlan, Period, RentedOffer, Replicas, Survival


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """The decisions of one period: instances [K], replicas [C], shares [D, C]; by lost offer, replicas and shares.

    lost_zone : shares by lost zone, on the replicas of the others.
    """

    instances: IntArray
    replicas: IntArray
    shares: FloatArray
    lost: dict[int, tuple[IntArray, FloatArray]] = field(default_factory=dict)
    lost_zone: dict[int, FloatArray] = field(default_factory=dict)


def place(
    problem: FleetProblem, instances: IntArray, replicas: IntArray
) -> tuple[IntArray, list[tuple[int, frozenset[int]]]]:
    """Replicas of each configuration on each offer, [C, K], and (offer, models on it) of every instance.

    Largest first, each into the first instance with room; exact, because the sizes of a pool divide one another.
    Raises ValueError when they do not fit, which a right model never makes.
    """
    where = np.zeros((problem.num_configs, problem.num_offers), dtype=np.int64)
    hosts: list[tuple[int, frozenset[int]]] = []
    for pool in range(len(problem.availability)):
        inside = np.flatnonzero(problem.pool_of_offer == pool)
        free = [[int(problem.gpus[k]), int(k)] for k in inside for _ in range(int(instances[k]))]
        models: list[set[int]] = [set() for _ in free]
        configs = np.flatnonzero(problem.config_pool == pool)
        order = sorted(configs.tolist(), key=lambda c: (-problem.config_gpus[c], problem.config_model[c]))
        start = 0
        for config in order:
            size, left = int(problem.config_gpus[config]), int(replicas[config])
            at = start
            while left:
                if at == len(free):
                    raise ValueError(f"{left} replicas of {size} GPUs have no room")
                fits = min(free[at][0] // size, left)
                if fits:
                    free[at][0] -= fits * size
                    where[config, free[at][1]] += fits
                    models[at].add(int(problem.config_model[config]))
                    left -= fits
                if left:
                    at += 1
            while start < len(free) and free[start][0] == 0:
                start += 1
        hosts += [(room[1], frozenset(found)) for room, found in zip(free, models, strict=True)]
    return where, hosts


def plan_of(problem: FleetProblem, counts: dict[int, Counts]) -> FleetPlan:
    """The plan of all periods."""
    instances = np.array([counts[period].instances for period in sorted(counts)])
    periods = [_period(problem, period, counts[period], instances) for period in sorted(counts)]
    dearest = max(periods, key=lambda one: one.cost_usd_per_hour)
    cost = sum(share * one.cost_usd_per_hour for share, one in zip(problem.share, periods, strict=True))
    changes = None
    if problem.current is not None:
        added = counts[0].instances - problem.current
        changes = {name: int(n) for name, n in zip(problem.offer_names, added, strict=True) if n}
    return FleetPlan(
        allocation=dearest.allocation,
        assignment=dearest.assignment,
        cost_usd_per_hour=float(cost),
        periods=tuple(periods),
        changes=changes,
        offers=dict(_rented(problem, instances)),
    )


def _rented(problem: FleetProblem, instances: IntArray) -> Iterator[tuple[str, RentedOffer]]:
    """What the offers are of which any period rents an instance; instances : [T, K]."""
    for name, described, most in zip(
        problem.offer_names, problem.described_offers, instances.max(axis=0).tolist(), strict=True
    ):
        if most:
            yield name, described


def _period(problem: FleetProblem, period: int, counts: Counts, fleets: IntArray) -> Period:
    where, hosts = place(problem, counts.instances, counts.replicas)
    alone: Counter[tuple[int, str | None]] = Counter()
    for offer, models in hosts:
        name = problem.model_names[next(iter(models))] if len(models) == 1 else None
        alone[offer, name] += 1
    survival = []
    for lost, (replicas, shares) in sorted(counts.lost.items()):
        left = counts.instances.copy()
        left[lost] -= 1
        kept, _ = place(problem, left, replicas)
        survival.append(
            Survival(
                lost_offer=problem.offer_names[lost],
                replicas=_replicas(problem, kept),
                assignment=_assignment(problem, period, shares, kept),
            )
        )
    for zone, shares in sorted(counts.lost_zone.items()):
        kept = np.where(problem.zone_of_offer == zone, 0, where)
        survival.append(
            Survival(
                lost_zone=problem.zone_names[zone],
                replicas=_replicas(problem, kept),
                assignment=_assignment(problem, period, shares, kept),
            )
        )
    return Period(
        hours=problem.hours[period],
        cost_usd_per_hour=float(counts.instances @ problem.price),
        allocation=tuple(
            Allocation(offer=problem.offer_names[offer], model=name, count=count)
            for (offer, name), count in sorted(alone.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        ),
        replicas=_replicas(problem, where),
        assignment=_assignment(problem, period, counts.shares, where),
        survival=tuple(survival),
        unserved=unserved_rows(problem, period, 1.0 - counts.shares.sum(axis=1), fleets),
    )


def _replicas(problem: FleetProblem, where: IntArray) -> tuple[Replicas, ...]:
    """Counts by offer, model and size: configurations of one pool that differ in nothing else are one."""
    found: dict[tuple[int, int, int], int] = defaultdict(int)
    for config, offer in zip(*np.nonzero(where), strict=True):
        key = int(offer), int(problem.config_model[config]), int(problem.config_gpus[config])
        found[key] += int(where[config, offer])
    return tuple(
        Replicas(offer=problem.offer_names[offer], model=problem.model_names[model], gpus=gpus, count=count)
        for (offer, model, gpus), count in sorted(found.items())
    )


def _assignment(problem: FleetProblem, period: int, shares: FloatArray, where: IntArray) -> tuple[Assignment, ...]:
    """Shares of a configuration go to its offers by their replicas."""
    total = where.sum(axis=1)
    made = []
    for bucket in np.flatnonzero(problem.rate[period] > 0):
        for config in np.flatnonzero(shares[bucket]):
            for offer in np.flatnonzero(where[config]):
                made.append(
                    Assignment(
                        model=problem.model_names[problem.bucket_model[bucket]],
                        input_tokens=int(problem.input_tokens[bucket]),
                        output_tokens=int(problem.output_tokens[bucket]),
                        offer=problem.offer_names[offer],
                        gpus=int(problem.config_gpus[config]),
                        fraction=min(1.0, float(shares[bucket, config] * where[config, offer] / total[config])),
                    )
                )
    return tuple(made)
