"""DeployPlan: what is rented or used, which workers run, and on which devices of which node each of them lies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from planner.descriptions.base import Description
from planner.descriptions.fleet import Role
from planner.experts_plan import ExpertPlacement
from planner.fleet_plan import FleetPlan
from planner.parallel_plan import Served, WorkerType

Count = Annotated[int, Field(ge=0, le=10_000_000)]


class DeployedNodes(Description):
    """Nodes of one offer, or standing nodes of one kind: one of `offer` and `node` is named.

    gpus : that a worker may take, of each. names : of the nodes, rented ones by offer and number.
    """

    offer: str | None = None
    node: str | None = None
    count: PositiveInt
    device: str
    gpus: PositiveInt
    usd_per_hour: FiniteFloat
    names: tuple[str, ...]


class Rate(Description):
    """Requests/s of one size that one worker serves, if it serves nothing else, in its role and at full utilisation."""

    input_tokens: PositiveInt
    output_tokens: PositiveInt
    requests_per_s: Annotated[FiniteFloat, Field(gt=0)]


class DeployedWorkers(Description):
    """So many equal workers of one service. nodes : that one of them spans; type : what is known of it."""

    service: str
    worker: str
    count: PositiveInt
    role: Role
    device: str
    num_gpus: PositiveInt
    nodes: PositiveInt = 1
    sizes: dict[str, int] = Field(default_factory=dict)
    rates: tuple[Rate, ...]
    type: Annotated[WorkerType | None, Field(description="parallel sizes, batch and latencies; null from a table")] = (
        None
    )


class DeployedShare(Description):
    """Share of a service's requests of one size that one kind of worker on one offer or kind of node serves."""

    service: str
    input_tokens: PositiveInt
    output_tokens: PositiveInt
    worker: str
    offer: str
    role: Role
    fraction: FiniteFloat


class DeployedPod(Description):
    """One worker's part on one node. part : of `parts`, for workers of several nodes. gpus : device indices."""

    pod: str
    service: str
    worker: str
    node: str
    gpus: Annotated[tuple[Annotated[int, Field(ge=0, lt=1024)], ...], Field(min_length=1)]
    part: Count = 0
    parts: PositiveInt = 1


class ExpertMap(Description):
    """Experts in the slots of every worker of one kind.

    imbalance : load of the busiest GPU over the mean, by recorded load, mean of the layers; eplb_imbalance : the same
    of EPLB's map.
    """

    service: str
    worker: str
    placement: ExpertPlacement
    imbalance: dict[str, FiniteFloat]
    eplb_imbalance: dict[str, FiniteFloat]


class SlotPrice(Description):
    """What one more place for a worker of so many GPUs is worth, at the prices of the linear relaxation.

    zone : where the loss of one is survived; spot : whether it is a place on spot nodes.
    """

    device: str
    region: str | None
    zone: str | None = None
    spot: bool = False
    gpus: PositiveInt
    usd_per_hour: FiniteFloat


class Step(Description):
    """What happens together, from the deployment in force: nodes are added, pods start, then pods stop and nodes go.

    served : of the demand with its headroom, in the worst service, after the step.
    """

    add_nodes: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    drop_nodes: tuple[str, ...] = ()
    served: FiniteFloat


class Change(Description):
    """From the deployment in force to the plan.

    lent_nodes : rented for the time of the change alone. pods : that steps name and the plan does not have, of the
    deployment in force and on lent nodes; lent : the workers on lent nodes.
    served_before, served_least : of the demand with its headroom, in the worst service: by what runs now on nodes that
    are still there, and at the worst of all steps.
    """

    kept: Count
    started: Count
    stopped: Count
    steps: tuple[Step, ...]
    lent_nodes: tuple[str, ...] = ()
    served_before: FiniteFloat
    served_least: FiniteFloat
    pods: tuple[DeployedPod, ...] = ()
    lent: tuple[DeployedWorkers, ...] = ()


class PodTemplate(Description):
    """What the pods of all workers have in common, and how nodes are named.

    requests_per_gpu, tolerations : as in the instance. hostnames : of the nodes of a cluster that stands, by name.
    """

    requests_per_gpu: dict[str, str | int | FiniteFloat] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    hostnames: dict[str, str] = Field(default_factory=dict)


class Coupling(Description):
    """The plan with one coupling between the stages cut; what it costs more is what the coupling pays."""

    cut: Literal["sharing", "workers", "nodes", "experts", "pd", "hours"]
    status: Literal["optimal", "feasible", "infeasible", "unknown"]
    usd_per_hour: FiniteFloat | None
    bound_usd_per_hour: FiniteFloat | None
    extra: Annotated[FiniteFloat | None, Field(description="of this plan's cost, as a share")]


class DeployPlan(Description):
    """The whole of a deployment. nodes, workers, assignment and pods are those of the most expensive hours.

    served : what the workers of each service run, for launch commands; without it where workers are from a table.
    template : what their pods have besides, for manifests.
    cost_usd_per_hour : mean over the hours. hours : that `pods` are for. fleet : every hour's nodes, workers and
    shares, in the terms of a fleet (its models are the services), standing nodes as offers of their own price.
    """

    nodes: tuple[DeployedNodes, ...]
    workers: tuple[DeployedWorkers, ...]
    assignment: tuple[DeployedShare, ...]
    pods: tuple[DeployedPod, ...]
    experts: tuple[ExpertMap, ...] = ()
    cost_usd_per_hour: FiniteFloat
    hours: tuple[Count, ...]
    served: dict[str, Served] = Field(default_factory=dict)
    template: PodTemplate = PodTemplate()
    slot_prices: tuple[SlotPrice, ...] = ()
    change: Change | None = None
    couplings: tuple[Coupling, ...] = ()
    fleet: FleetPlan
