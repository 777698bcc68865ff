"""From counts to a plan: replicas onto instances, and shares of requests onto offers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.stages import HANDOVERS, ROLES, STAGES, has_role
from formulations.gpu_fleet.unserved import unserved_rows
from planner.fleet_plan import Allocation, Assignment, FleetPlan, Flow, Period, RentedOffer, Replicas, Survival

#: Flows below this are rounding of a solver.
NOTHING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """The decisions of one period: instances [K], replicas [C], shares [D, C].

    flows : [handovers, D, sites, sites]; None where no role is split. lost, lost_zone : what is left and does all of
    it, by lost offer (one instance) and by lost zone.
    """

    instances: IntArray
    replicas: IntArray
    shares: FloatArray
    flows: FloatArray | None = None
    lost: dict[int, Counts] = field(default_factory=dict)
    lost_zone: dict[int, Counts] = field(default_factory=dict)


def place(
    problem: FleetProblem, instances: IntArray, replicas: IntArray
) -> tuple[IntArray, list[tuple[int, frozenset[int]]]]:
    """Replicas of each configuration on each offer, [C, K], and (offer, configurations on it) of every instance.

    Those of whole instances first, then the largest, each into the first instance with room; exact, because the sizes
    that share instances of a pool divide one another.
    Raises ValueError when they do not fit, which a right model never makes.
    """
    whole = problem.whole
    where = np.zeros((problem.num_configs, problem.num_offers), dtype=np.int64)
    hosts: list[tuple[int, frozenset[int]]] = []
    for pool in range(len(problem.availability)):
        inside = np.flatnonzero(problem.pool_of_offer == pool)
        free = [[int(problem.gpus[k]), int(k)] for k in inside for _ in range(int(instances[k]))]
        found: list[set[int]] = [set() for _ in free]
        configs = np.flatnonzero(problem.config_pool == pool)
        for config in configs[whole[configs].any(axis=1)].tolist():
            offer = int(np.argmax(whole[config]))
            empty = [at for at, room in enumerate(free) if room[1] == offer and not found[at]]
            count = int(replicas[config] * whole[config, offer])
            if count > len(empty):
                raise ValueError(f"{count} instances of {problem.offer_names[offer]} are not there")
            where[config, offer] = replicas[config]
            for at in empty[:count]:
                free[at][0] = 0
                found[at].add(config)
        shared = configs[~whole[configs].any(axis=1)]
        order = sorted(shared.tolist(), key=lambda c: (-problem.config_gpus[c], problem.config_model[c]))
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
                    found[at].add(config)
                    left -= fits
                if left:
                    at += 1
            while start < len(free) and free[start][0] == 0:
                start += 1
        hosts += [(room[1], frozenset(hosted)) for room, hosted in zip(free, found, strict=True)]
    return where, hosts


#: What `place` does: replicas of each configuration on each offer, and the offer and configurations of every instance.
Placer = Callable[[FleetProblem, IntArray, IntArray], tuple[IntArray, list[tuple[int, frozenset[int]]]]]


def plan_of(problem: FleetProblem, counts: dict[int, Counts], placer: Placer = place) -> FleetPlan:
    """The plan of all periods. placer : of replicas onto offers, where another than `place` is wanted."""
    instances = np.array([counts[period].instances for period in sorted(counts)])
    periods = [_period(problem, period, counts[period], instances, placer) for period in sorted(counts)]
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


def _period(problem: FleetProblem, period: int, counts: Counts, fleets: IntArray, placer: Placer) -> Period:
    where, hosts = placer(problem, counts.instances, counts.replicas)
    alone: Counter[tuple[int, str | None, str]] = Counter()
    for offer, configs in hosts:
        models = {int(problem.config_model[config]) for config in configs}
        roles = {ROLES[problem.config_role[config]] for config in configs}
        name = problem.model_names[next(iter(models))] if len(models) == 1 else None
        alone[offer, name, next(iter(roles)) if len(roles) == 1 else "both"] += 1
    return Period(
        hours=problem.hours[period],
        cost_usd_per_hour=float(counts.instances @ problem.price),
        allocation=tuple(
            Allocation(offer=problem.offer_names[offer], model=name, count=count, role=role)
            for (offer, name, role), count in sorted(
                alone.items(), key=lambda item: (item[0][0], item[0][1] or "", item[0][2])
            )
        ),
        replicas=_replicas(problem, where),
        assignment=_assignment(problem, period, counts.shares, where),
        survival=(
            *(_survival(problem, period, left, lost_offer=k) for k, left in sorted(counts.lost.items())),
            *(_survival(problem, period, left, lost_zone=z) for z, left in sorted(counts.lost_zone.items())),
        ),
        unserved=unserved_rows(
            problem, period, 1.0 - counts.shares[:, has_role(problem, STAGES["prefill"])].sum(axis=1), fleets
        ),
        flows=_flows(problem, period, counts.flows),
    )


def _survival(
    problem: FleetProblem, period: int, left: Counts, lost_offer: int | None = None, lost_zone: int | None = None
) -> Survival:
    where, _ = place(problem, left.instances, left.replicas)
    return Survival(
        lost_offer=None if lost_offer is None else problem.offer_names[lost_offer],
        lost_zone=None if lost_zone is None else problem.zone_names[lost_zone],
        replicas=_replicas(problem, where),
        assignment=_assignment(problem, period, left.shares, where),
        flows=_flows(problem, period, left.flows),
    )


def _replicas(problem: FleetProblem, where: IntArray) -> tuple[Replicas, ...]:
    """Counts by offer, model and size: configurations of one pool that differ in nothing else are one."""
    found: dict[tuple[int, int, int, int, str], int] = defaultdict(int)
    for config, offer in zip(*np.nonzero(where), strict=True):
        key = int(offer), int(problem.config_model[config]), int(problem.config_gpus[config])
        role, worker = int(problem.config_role[config]), problem.worker(config) or ""
        found[*key, role, worker] += int(where[config, offer])
    return tuple(
        Replicas(
            offer=problem.offer_names[offer],
            model=problem.model_names[model],
            gpus=gpus,
            count=count,
            role=ROLES[role],
            worker=worker or None,
        )
        for (offer, model, gpus, role, worker), count in sorted(found.items())
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
                        role=ROLES[problem.config_role[config]],
                        worker=problem.worker(int(config)),
                    )
                )
    return tuple(made)


def _flows(problem: FleetProblem, period: int, flows: FloatArray | None) -> tuple[Flow, ...]:
    """What is handed over, from region to region."""
    if flows is None:
        return ()
    made = []
    for handover, bucket, sender, receiver in zip(*np.nonzero(flows > NOTHING), strict=True):
        fraction = min(1.0, float(flows[handover, bucket, sender, receiver]))
        size = float(problem.handed_bytes[handover, bucket] * problem.rate[period, bucket] * fraction)
        made.append(
            Flow(
                model=problem.model_names[problem.bucket_model[bucket]],
                input_tokens=int(problem.input_tokens[bucket]),
                output_tokens=int(problem.output_tokens[bucket]),
                handover=HANDOVERS[handover].name,
                from_region=problem.site_names[sender],
                to_region=problem.site_names[receiver],
                fraction=fraction,
                bytes_per_s=None if np.isnan(size) else size,
            )
        )
    return tuple(made)
