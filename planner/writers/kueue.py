"""`kueue`: a fleet as Kueue's ResourceFlavor, Topology and ClusterQueue objects, v1beta2.

A flavor is a kind of GPU in a region: what labels of nodes tell apart. Each model has a ClusterQueue whose quota is the
GPUs of its replicas; GPUs that the plan leaves free are the quota of one more queue, and all lend to each other in one
cohort, so that the quotas add up to the rented fleet. The quotas are those of the most expensive hour. CPU and memory
are not planned: the file says what to do about them. Source: the custom resources of kubernetes-sigs/kueue.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from planner.errors import ExportError
from planner.fleet_plan import FleetPlan, Period, RentedOffer
from planner.kubernetes.names import HOSTNAME_LABEL, REGION_LABEL, ZONE_LABEL, label
from planner.plan import DeployDocument, FleetDocument
from planner.writers.kube import PRODUCT_LABEL, device_of, products, resource, write_manifests

API_VERSION = "kueue.x-k8s.io/v1beta2"
SPARE = "spare"

Gpus = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Flavor:
    """Nodes that are alike to Kueue."""

    name: str
    device: str
    region: str | None

    @property
    def labels(self) -> dict[str, str]:
        """Of its nodes; none where the catalogue knows no label of the GPU and the offer no region."""
        found = products(device_of(self.device))
        labels = {PRODUCT_LABEL: found[0]} if found else {}
        return labels | ({REGION_LABEL: self.region} if self.region else {})


def write(document: FleetDocument, path: str) -> None:
    """The objects in one file; ExportError for offers that are not described and flavors that no label tells apart."""
    plan = document.plan
    assert plan is not None
    missing = [row.offer for row in plan.allocation if row.offer not in plan.offers]
    if missing:
        raise ExportError(f"the plan does not say which GPUs {missing[0]} has; plan again with this version")
    if not plan.allocation:
        raise ExportError("the plan rents nothing: there is no quota to set")
    flavors = _flavors(plan)
    _refuse_alike(flavors.values())
    name = label(document.instance.name)
    period = next(one for one in plan.periods if one.allocation == plan.allocation)
    queues = _queues(plan, period, flavors)
    levels = _levels([plan.offers[row.offer] for row in plan.allocation])
    kinds = {flavor.name: flavor for flavor in flavors.values()}
    manifests = [
        {
            "apiVersion": API_VERSION,
            "kind": "Topology",
            "metadata": {"name": name},
            "spec": {"levels": [{"nodeLabel": level} for level in levels]},
        },
        *(_flavor(flavor, name) for flavor in kinds.values()),
        *(_queue(queue, gpus, kinds, name) for queue, gpus in queues.items()),
    ]
    write_manifests(document, path, "kueue", manifests, *_told(plan, kinds.values()))


def write_deployment(document: DeployDocument, path: str) -> None:
    """The same of a deployment, whose services are the models: standing nodes have a quota, too."""
    assert document.plan is not None
    said = {name: getattr(document, name) for name in ("instance", "gpuplan_version", "outcome")}
    write(FleetDocument(problem="fleet", plan=document.plan.fleet, **said), path)


def _flavors(plan: FleetPlan) -> dict[str, Flavor]:
    """By offer; offers of one device and region share theirs."""
    found: dict[str, Flavor] = {}
    for row in plan.allocation:
        rented = plan.offers[row.offer]
        kind = device_of(rented.device).name
        name = label(f"{kind}-{rented.region}" if rented.region else kind)
        found[row.offer] = Flavor(name, kind, rented.region)
    return found


def _refuse_alike(flavors: Iterable[Flavor]) -> None:
    """No node may have the labels of two flavors: Kueue would count it for both."""
    for one, other in combinations(dict.fromkeys(flavors), 2):
        alike = resource(device_of(one.device)) == resource(device_of(other.device))
        if alike and (one.labels.items() <= other.labels.items() or other.labels.items() <= one.labels.items()):
            raise ExportError(f"no label is known that tells nodes of {one.name} from those of {other.name}")


def _queues(plan: FleetPlan, period: Period, flavors: Mapping[str, Flavor]) -> dict[str, dict[str, int]]:
    """GPUs by flavor of each model, and of what is left."""
    rented: dict[str, int] = defaultdict(int)
    for row in period.allocation:
        rented[flavors[row.offer].name] += row.count * plan.offers[row.offer].gpus
    queues: dict[str, dict[str, int]] = {}
    for replicas in period.replicas:
        flavor = flavors[replicas.offer].name
        queue = queues.setdefault(label(replicas.model), defaultdict(int))
        queue[flavor] += replicas.gpus * replicas.count
        rented[flavor] -= replicas.gpus * replicas.count
    if any(rented.values()):
        spare = SPARE if SPARE not in queues else f"{SPARE}-gpus"
        queues[spare] = {flavor: left for flavor, left in rented.items() if left}
    return queues


def _levels(offers: list[RentedOffer]) -> list[str]:
    """From far to near: zones where every offer has one, and nodes."""
    return [*([ZONE_LABEL] if all(one.zone for one in offers) else []), HOSTNAME_LABEL]


def _flavor(flavor: Flavor, topology: str) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    if flavor.labels:
        # Kueue wants labels of nodes wherever there is a topology.
        spec = {"nodeLabels": flavor.labels, "topologyName": topology}
    return {"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": flavor.name}, "spec": spec}


def _queue(name: str, gpus: Gpus, flavors: Mapping[str, Flavor], fleet: str) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for flavor, count in sorted(gpus.items()):
        unit = resource(device_of(flavors[flavor].device))
        groups[unit].append({"name": flavor, "resources": [{"name": unit, "nominalQuota": count}]})
    return {
        "apiVersion": API_VERSION,
        "kind": "ClusterQueue",
        "metadata": {"name": f"{fleet}-{name}"},
        "spec": {
            "cohortName": fleet,
            "namespaceSelector": {},
            "resourceGroups": [
                {"coveredResources": [unit], "flavors": found} for unit, found in sorted(groups.items())
            ],
            "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"},
        },
    }


def _told(plan: FleetPlan, flavors: Iterable[Flavor]) -> Iterator[str]:
    yield "start: kubectl apply -f FILE, with Kueue (v1beta2) installed; a LocalQueue opens a queue to its namespace"
    yield "CPU and memory are not planned: add them to coveredResources with quotas, or exclude them in Kueue's"
    yield "  configuration (resources.excludeResourcePrefixes); else workloads that request them are not admitted"
    if len(plan.periods) > 1:
        yield "quotas are those of the most expensive hour; other hours rent less, and Kueue's quotas know no hours"
    if any(plan.offers[row.offer].market == "spot" for row in plan.allocation):
        yield "some of it is spot: no label that all clouds share tells those nodes apart, so flavors do not"
    for flavor in flavors:
        more = products(device_of(flavor.device))[1:]
        if more:
            yield f"{flavor.name}: nodes may also be labelled {', '.join(more)}; a flavor takes one value"
        if not flavor.labels:
            yield f"{flavor.name}: no node label is known of {flavor.device}; any node with the resource counts"
