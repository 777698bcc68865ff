"""The deployment in force, in the terms of the problem that is planned anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from formulations.deployment.placing import workers_in
from formulations.deployment.standing import StandingKind
from formulations.gpu_fleet.problem import FleetProblem, IntArray
from formulations.gpu_fleet.rows import Rows
from planner.deploy_plan import DeployPlan
from planner.fleet_plan import Replicas


def offer_of_node(kinds: Sequence[StandingKind], plan: DeployPlan) -> Mapping[str, str]:
    """The offer of every node that stands now or that the plan rents."""
    found = {name: row.offer for row in plan.nodes if row.offer is not None for name in row.names}
    return found | {node.name: kind.offer.name for kind in kinds for node in kind.nodes}


def running_workers(
    fleet: FleetProblem, kinds: Sequence[StandingKind], current: DeployPlan
) -> tuple[IntArray, tuple[str, ...]]:
    """Workers in force by configuration, [C], and how many there are that nothing of the problem is like.

    Those on nodes that are gone, and those of services or sizes that are not asked for any more, can only stop.
    """
    known = Rows(fleet)
    place = offer_of_node(kinds, current)
    kinds_of = {(row.service, row.worker): row for row in current.workers}
    running = np.zeros(fleet.num_configs, dtype=np.int64)
    lost: Counter[str] = Counter()
    for worker in workers_in(current.pods):
        row, offers = kinds_of[worker.service, worker.worker], [place.get(node) for node, _ in worker.places]
        if None in offers:
            lost[f"on {worker.places[offers.index(None)][0]}, which is gone"] += 1
            continue
        one = Replicas(
            offer=str(offers[0]), model=row.service, gpus=row.num_gpus, count=1, role=row.role, worker=row.worker
        )
        if row.service not in known.models or not known.has_config(one):
            lost[f"{row.worker} of {row.service}, which the problem does not have"] += 1
            continue
        running[known.config(one)] += 1
    return running, tuple(f"{count} workers in force can only stop: {why}" for why, count in sorted(lost.items()))
