"""Nodes that stand already, as offers: kinds of nodes with so many whole GPUs free, at the price of using one.

What runs on a node keeps its devices. Of a node read from files, as many GPUs are free as whole devices and the rest of
the pod's requests allow; nodes that take no such pod (cordoned, tainted, not ready), and those without a free GPU, are
left out and told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import problem_of
from formulations.pod_packing.state import State
from formulations.reading import Reading
from planner.deploy_plan import DeployPlan
from planner.descriptions.deploy import DeployInstance, StandingNodes
from planner.descriptions.fleet import Offer
from planner.descriptions.pods import PodClass, PodsInstance
from planner.errors import OptionError
from planner.files import Loc
from planner.kubernetes.names import DEPLOYMENT_LABEL, REGION_LABEL, ZONE_LABEL, label_value
from planner.kubernetes.quantity import parse_amount
from planner.kubernetes.reading import Notes
from planner.kubernetes.snapshot import CPU, PODS, WHOLE_MILLI, Pod, Snapshot
from planner.readers.kube_cluster import node_device, shared_gpus
from planner.readers.kubernetes import read_snapshot
from planner.readers.pod_classes import expand_pods

#: Namespace of pods where nothing says it.
NAMESPACE = "default"
#: Findings of one kind that are told one by one.
MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class StandingNode:
    """devices : indices of its free GPUs, rising."""

    name: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StandingKind:
    """Equal nodes, and the offer that they are to the fleet; loc : where in the instance they are described."""

    offer: Offer
    nodes: tuple[StandingNode, ...]
    loc: Loc


@dataclass(frozen=True, slots=True)
class Standing:
    """All kinds; notes : what is left out or assumed. snapshot : of files, else None."""

    kinds: tuple[StandingKind, ...] = ()
    notes: tuple[str, ...] = ()
    snapshot: Snapshot | None = None


def standing(instance: DeployInstance, current: DeployPlan | None, reading: Reading) -> Standing:
    """The nodes of an instance; the pods of a deployment in force do not count as running, as they may be moved.

    Mistakes go to `reading`; DescriptionError for files that cannot be read.
    """
    if instance.nodes is None:
        return Standing()
    if isinstance(instance.nodes, str):
        return _from_files(instance, instance.nodes, current, reading)
    kinds = [_described(one, index) for index, one in enumerate(instance.nodes) if one.free_gpus != 0]
    seen = _rented(current)
    for kind in kinds:
        names = {node.name for node in kind.nodes}
        for name in sorted(names & seen)[:MOST_TOLD]:
            reading.find((*kind.loc, "name"), f"another node is named {name!r} too")
        seen |= names
    full = sum(one.count for one in instance.nodes if one.free_gpus == 0)
    return Standing(tuple(kinds), (f"{full} nodes left out: no GPU is free",) * bool(full))


def _described(one: StandingNodes, index: int) -> StandingKind:
    free = one.gpus if one.free_gpus is None else one.free_gpus
    offer = Offer(
        name=one.name,
        device=one.device,
        gpus=free,
        price_usd_per_hour=one.price_usd_per_hour,
        max_count=one.count,
        region=one.region,
        zone=one.zone,
        watts=one.watts,
        network_bytes_per_s=one.network_bytes_per_s,
    )
    names = [one.name] if one.count == 1 else [f"{one.name}-{i}" for i in range(one.count)]
    devices = tuple(range(one.gpus - free, one.gpus))
    return StandingKind(offer, tuple(StandingNode(name, devices) for name in names), ("nodes", index))


def _from_files(instance: DeployInstance, nodes: str, current: DeployPlan | None, reading: Reading) -> Standing:
    files = [one if one == "-" else reading.path(one) for one in (nodes, instance.pods) if one is not None]
    snapshot = read_snapshot(files)
    own = set() if current is None else {f"{NAMESPACE}/{pod.pod}" for pod in current.pods}
    label = label_value(instance.name)
    others = (pod for pod in snapshot.pods if pod.name not in own and pod.labels.get(DEPLOYMENT_LABEL) != label)
    snapshot = replace(snapshot, pods=tuple(others))
    if not snapshot.nodes:
        reading.find(("nodes",), "there is no node")
        return Standing()
    asked = _requests(instance, reading)
    free = _free(instance, snapshot, asked, reading)
    groups: dict[tuple[str, int, str | None, str | None], list[StandingNode]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    rented = _rented(current)
    for node, devices in zip(snapshot.nodes, free, strict=True):
        if node.name in rented:
            left_out["rented by the deployment in force"] += 1
            continue
        if not node.gpus or isinstance(devices, str):
            left_out[devices if node.gpus and isinstance(devices, str) else "no GPUs"] += 1
            continue
        if reason := shared_gpus(node):
            left_out[reason] += 1
            continue
        try:
            device = instance.gpu_labels.get(node.gpu_model) or node_device(node, {}).name
        except OptionError as error:
            unknown.setdefault(node.gpu_model, f"node {node.name}: {error}; `gpu_labels` says it")
            continue
        key = device, len(devices), node.labels.get(REGION_LABEL), node.labels.get(ZONE_LABEL)
        groups[key].append(StandingNode(node.name, devices))
    for message in list(unknown.values())[:MOST_TOLD]:
        reading.find(("nodes",), message)
    told = [f"{count} nodes left out: {why}" for why, count in sorted(left_out.items())]
    pending = sum(pod.node is None for pod in snapshot.pods)
    if pending:
        told.append(f"{pending} pending pods are not placed; `gpuplan pods` does that")
    if not groups and not unknown and not instance.offers:
        reading.find(("nodes",), f"no node has a free GPU: {'; '.join(told)}")
    kinds = [_kind(*key, found) for key, found in groups.items()]
    kinds = _named_apart(kinds, {offer.name for offer in instance.offers})
    notes = (*told, *(f"not modelled: {one}" for one in snapshot.not_modelled))
    return Standing(tuple(kinds), notes, snapshot)


def _kind(device: str, free: int, region: str | None, zone: str | None, nodes: list[StandingNode]) -> StandingKind:
    place = "".join(f"-{one}" for one in (region, zone) if one)
    name = f"{device}-{free}-free{place}"
    offer = Offer(
        name=name, device=device, gpus=free, price_usd_per_hour=0.0, max_count=len(nodes), region=region, zone=zone
    )
    return StandingKind(offer, tuple(nodes), ("nodes",))


def _named_apart(kinds: Sequence[StandingKind], taken: set[str]) -> list[StandingKind]:
    """The kinds under names that no offer and no other kind has."""
    found = []
    for kind in kinds:
        base = kind.offer.name
        names = (base, *(f"{base}-{i}" for i in range(2, len(taken) + 3)))
        name = next(name for name in names if name not in taken)
        taken = taken | {name}
        found.append(replace(kind, offer=kind.offer.model_copy(update={"name": name})))
    return found


def _rented(current: DeployPlan | None) -> set[str]:
    """Names of the nodes that the deployment in force rents."""
    rows = () if current is None else current.nodes
    return {name for row in rows if row.offer is not None for name in row.names}


def _requests(instance: DeployInstance, reading: Reading) -> dict[str, int]:
    """Amounts of each resource that a pod takes for one of its GPUs."""
    found = {}
    for name, value in instance.requests_per_gpu.items():
        try:
            found[name] = parse_amount(value, 1000 if name == CPU else 1)
        except ValueError as error:
            reading.find(("requests_per_gpu", name), str(error))
    return found


def _free(
    instance: DeployInstance, snapshot: Snapshot, asked: dict[str, int], reading: Reading
) -> list[tuple[int, ...] | str]:
    """Indices of the GPUs of each node that a worker may take, or why there is none."""
    probes = _probes(instance, snapshot)
    reading.stop_if_wrong()
    described = PodsInstance(name=instance.name, nodes="-", pods=())
    problem = problem_of(replace(snapshot, pods=(*snapshot.pods, *probes)), described)
    state = State(problem)
    found: list[tuple[int, ...] | str] = []
    for place, node in enumerate(snapshot.nodes):
        if not node.accepts:
            found.append(node.reason)
            continue
        if not problem.allowed[problem.pod_class[-len(probes) :], place].any():
            found.append("taints that the workers' pods do not tolerate")
            continue
        whole = np.flatnonzero(state.device[place] == WHOLE_MILLI).tolist()
        most = _most_by_requests(problem, state, place, asked)
        devices = tuple(whole[:most])
        found.append(devices or ("no GPU is free" if not whole else "no room beside its free GPUs"))
    return found


def _probes(instance: DeployInstance, snapshot: Snapshot) -> tuple[Pod, ...]:
    """A pending pod of one GPU for each of the resources that nodes call their GPUs."""
    tolerations = [*instance.tolerations]
    resources = sorted({node.gpu_resource for node in snapshot.nodes if node.gpus})
    # What the API server's ExtendedResourceToleration admits: taints named after the resource that is asked for.
    tolerations += [{"key": name, "operator": "Exists"} for name in resources]
    notes = Notes()
    made = PodClass(name="worker", namespace="gpuplan-probe", gpus=1, tolerations=tuple(tolerations))
    (pod,) = expand_pods([made], "instance", notes)
    notes.refuse()
    return tuple(replace(pod, name=f"{pod.name}-{place}", gpu_resource=name) for place, name in enumerate(resources))


def _most_by_requests(problem: PodsProblem, state: State, node: int, asked: dict[str, int]) -> int:
    """GPUs of a node for which the free amounts of everything else are enough, and a slot for the pod."""
    most = int(problem.gpus[node])
    for index, name in enumerate(problem.resources):
        each = asked.get(name, 1 if name == PODS else 0)
        if each:
            most = min(most, int(state.free[node, index]) // each)
    missing = set(asked) - set(problem.resources)
    return 0 if missing else max(0, most)
