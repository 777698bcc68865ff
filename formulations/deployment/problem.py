"""The deploy problem: a fleet of services whose configurations are workers, and what is known beside its arrays.

The optimisation is that of `gpu_fleet.milp`: offers are what can be rented and, at the price of using one, the kinds of
nodes that stand already; models are services; configurations are workers, from a table or from the serving search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from formulations.deployment.standing import StandingKind
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.gpu_fleet.problem import FleetProblem
from planner.cost.serving.predict import ServingModel
from planner.deploy_plan import DeployPlan, PodTemplate
from planner.kubernetes.snapshot import Snapshot
from planner.parallel_plan import Served, WorkerType
from planner.readers.service_workers import ServiceWorker
from planner.workload import Slo

#: A service and one of its workers.
Named = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A worker of the serving search: its type, the compiled worker that judges it, and the limits that it keeps."""

    type: WorkerType
    model: ServingModel
    slo: Slo


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DeployProblem:
    """fleet : the arrays. workers : every worker by service and name; predicted : those of the serving search.

    standing : kinds of standing nodes, the fleet's last offers. snapshot : what their files say.
    unfit : why services have no worker at all. served : what the workers of each service run, where it is known.
    template : what all pods have in common.
    experts : problem of placing a worker's experts, by service, GPUs that share them, and slots.
    """

    kind: ClassVar[str] = "deploy"

    fleet: FleetProblem
    workers: Mapping[Named, ServiceWorker]
    predicted: Mapping[Named, Predicted]
    standing: tuple[StandingKind, ...] = ()
    snapshot: Snapshot | None = None
    experts: Mapping[tuple[str, int, int], ExpertPlacementProblem]
    current: DeployPlan | None = None
    unfit: tuple[str, ...] = ()
    served: Mapping[str, Served] = field(default_factory=dict)
    template: PodTemplate = field(default_factory=PodTemplate)

    @property
    def name(self) -> str:
        """Of the instance."""
        return self.fleet.name

    @property
    def sha256(self) -> str:
        """Of the instance and all files it names."""
        return self.fleet.sha256

    @property
    def num_rented(self) -> int:
        """Offers that can be rented; standing nodes follow them."""
        return self.fleet.num_offers - len(self.standing)
