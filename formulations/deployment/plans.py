"""From a fleet of services to the plan of a deployment: nodes, workers, shares, pods, experts, prices and steps."""

from __future__ import annotations

from collections import Counter

import numpy as np

from formulations.deployment.experts import expert_maps
from formulations.deployment.placing import place_pods
from formulations.deployment.problem import DeployProblem, Named
from formulations.deployment.rows import dearest, told_rows
from formulations.deployment.slots import slot_prices
from formulations.deployment.steps import Lender, change
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Budget, SolveOptions
from planner.deploy_plan import Change, DeployedNodes, DeployedPod, DeployedWorkers, DeployPlan, PodTemplate
from planner.fleet_plan import FleetPlan


def bare_plan(problem: DeployProblem, fleet: FleetPlan) -> DeployPlan:
    """The plan with everything that follows from the fleet; experts and prices aside."""
    period = dearest(fleet)
    nodes, pods = place_pods(problem, period)
    workers, assignment = told_rows(problem, period)
    return DeployPlan(
        nodes=nodes,
        workers=workers,
        assignment=assignment,
        pods=pods,
        cost_usd_per_hour=fleet.cost_usd_per_hour,
        hours=period.hours,
        served=dict(problem.served),
        template=_template(problem, {name for row in nodes for name in row.names}),
        change=change_to(problem, nodes, pods, workers),
        fleet=fleet,
    )


def whole_plan(problem: DeployProblem, fleet: FleetPlan, options: SolveOptions, budget: Budget) -> DeployPlan:
    """The plan with expert maps, prices of slots and, from a deployment in force, the steps."""
    plan = bare_plan(problem, fleet)
    used = tuple(dict.fromkeys((row.service, row.worker) for row in plan.workers))
    index = problem.fleet.hours.index(plan.hours)
    return plan.model_copy(
        update={
            "experts": expert_maps(problem.experts, problem.workers, used, options, budget),
            "slot_prices": slot_prices(problem.fleet, index, budget),
        }
    )


def _template(problem: DeployProblem, used: set[str]) -> PodTemplate:
    """What pods have in common, with the nodes that the plan uses."""
    known = problem.template
    return known.model_copy(update={"hostnames": {n: host for n, host in known.hostnames.items() if n in used}})


def change_to(
    problem: DeployProblem,
    nodes: tuple[DeployedNodes, ...],
    pods: tuple[DeployedPod, ...],
    workers: tuple[DeployedWorkers, ...],
) -> Change | None:
    """Steps from the deployment in force; None without one."""
    current, fleet = problem.current, problem.fleet
    if current is None:
        return None
    there = {node.name: frozenset(node.devices) for kind in problem.standing for node in kind.nodes}
    there |= {name: frozenset(range(row.gpus)) for row in current.nodes if row.offer is not None for name in row.names}
    # A node of an offer is not dropped before the end: on the way there are as many as before or after.
    most = [Counter({str(row.offer): row.count for row in rows}) for rows in (current.nodes, nodes)]
    lenders = [
        Lender(name, float(fleet.most[k]) - max(rows[name] for rows in most), _hosted(fleet, k))
        for k, name in enumerate(fleet.offer_names[: problem.num_rented])
    ]
    kinds = {(row.service, row.worker): row for row in (*current.workers, *workers)}
    lenders.sort(key=lambda one: float(fleet.price[fleet.offer_names.index(one.offer)]))
    return change(fleet, (current.nodes, current.pods), (nodes, pods), kinds.values(), lenders, there)


def _hosted(fleet: FleetProblem, offer: int) -> dict[Named, int]:
    """GPUs of the workers that one node of an offer can host."""
    fits = (fleet.config_pool == fleet.pool_of_offer[offer]) & (fleet.config_gpus <= fleet.gpus[offer])
    return {
        (fleet.model_names[fleet.config_model[c]], str(fleet.worker(c))): int(fleet.config_gpus[c])
        for c in np.flatnonzero(fits).tolist()
    }
