"""GPU fleets as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.verdict import judge
from formulations.kinds import Kind
from planner.cost.verdict import Verdict
from planner.descriptions.fleet import FleetInstance
from planner.fleet_plan import FleetPlan
from planner.plan import FleetDocument


def judge_alone(plan: FleetPlan) -> Verdict:
    """Nothing but the shape of a plan can be judged without prices and throughput."""
    return Verdict(assumptions=("no instance given: prices, throughput and limits are not judged",))


KIND: Kind[FleetInstance, FleetProblem, FleetPlan] = Kind(
    name="fleet",
    instance=FleetInstance,
    document=FleetDocument,
    formulation=GPU_FLEET,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
