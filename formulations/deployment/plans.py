"""From a fleet of services to the plan of a deployment: nodes, workers, shares, pods, experts, prices and steps."""

from __future__ import annotations

from formulations.deployment.experts import expert_maps
from formulations.deployment.placing import place_pods
from formulations.deployment.problem import DeployProblem
from formulations.deployment.rows import dearest, told_rows
from formulations.deployment.slots import slot_prices
from formulations.deployment.steps import Lender, change
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
    counts = {row.offer: row.count for row in nodes}
    lenders = [
        Lender(name, fleet.described_offers[k].device, int(fleet.gpus[k]), float(fleet.most[k]) - counts.get(name, 0))
        for k, name in enumerate(fleet.offer_names[: problem.num_rented])
    ]
    kinds = {(row.service, row.worker): row for row in (*current.workers, *workers)}
    lenders.sort(key=lambda one: float(fleet.price[fleet.offer_names.index(one.offer)]))
    return change(fleet, (current.nodes, current.pods), (nodes, pods), kinds.values(), lenders)
