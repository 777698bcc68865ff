"""Nodes of Kubernetes -> the `cluster` that a serving or training search plans on.

A node's GPUs are what it may give to pods (allocatable), their kind is its product label, its shape the instance type
where the catalogue has one of that name with these GPUs. Nodes without GPUs, and those that take no pods, are left out
and told. GPUs that run something today count: the search plans for an empty cluster.
Source: labels of NVIDIA's GPU feature discovery (gpu.product, gpu.count, gpu.replicas, mig.strategy) and of Kubernetes
(node.kubernetes.io/instance-type).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from planner import catalog
from planner.cluster import Cluster
from planner.errors import DescriptionError, Finding, OptionError
from planner.files import SourceText, validate
from planner.hardware import DeviceKind, NodeShape
from planner.kubernetes.snapshot import Node
from planner.readers.gpu_names import find_device

INSTANCE_TYPE = "node.kubernetes.io/instance-type"
#: Labels of nodes whose GPUs are shared or cut: one GPU of the resource is then no GPU.
REPLICAS, MIG = "nvidia.com/gpu.replicas", "nvidia.com/mig.strategy"
#: Ends of product labels that say the same. Source: GPU feature discovery's time-slicing and MIG labels.
SHARED_ENDS = ("-SHARED",)
MIG_PART = "-MIG-"
MIB = 2**20


@dataclass(frozen=True, slots=True)
class ClusterFound:
    """value : the cluster file; notes : what was left out or assumed."""

    value: dict[str, Any]
    notes: tuple[str, ...]


def cluster_of(
    nodes: Sequence[Node], place: str, devices: Mapping[str, str] | None = None, network: str | None = None
) -> ClusterFound:
    """Groups of equal nodes, in the order of their first.

    devices : catalogue names by product label, over what the catalogue knows. place : the file, for messages.
    Raises DescriptionError with every product that is not known and every node whose GPUs are shared.
    """
    findings: list[Finding] = []
    groups: Counter[tuple[str, int, str | None]] = Counter()
    left_out: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    for node in nodes:
        if not node.gpus:
            left_out["without GPUs"] += 1
            continue
        if not node.accepts:
            left_out[f"{node.reason} ({node.gpus} GPUs)"] += 1
            continue
        if reason := shared_gpus(node):
            findings.append(Finding(place, f"node {node.name}: {reason}; the search plans with whole GPUs"))
            continue
        try:
            kind = node_device(node, devices or {})
        except OptionError as error:
            unknown.setdefault(node.gpu_model, f"node {node.name}: {error}")
            continue
        shape = _shape(node, kind)
        groups[kind.name, node.gpus, None if shape is None else shape.name] += 1
    findings += [Finding(place, f"{told}; --device {label or 'LABEL'}=NAME says it") for label, told in unknown.items()]
    if findings:
        raise DescriptionError(findings[:100])
    if not groups:
        told = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "there is none"
        raise DescriptionError.single(place, f"no node has GPUs to plan with: {told}")
    entries = [
        {"shape": shape, "count": count}
        if shape is not None
        else {"device": device, "count": count, "gpus_per_node": gpus}
        for (device, gpus, shape), count in groups.items()
    ]
    value: dict[str, Any] = {"nodes": entries} | ({} if network is None else {"network": {"link": network}})
    cluster = validate(SourceText(place, "", value, _nowhere()), Cluster)
    notes = [f"{count} nodes left out: {why}" for why, count in left_out.items()]
    return ClusterFound(value, (*notes, *cluster.notes()))


def _nowhere() -> Any:
    from pathlib import Path

    return Path.cwd()


def shared_gpus(node: Node) -> str:
    """Why a GPU of the resource is not a whole one; empty where it is."""
    model = node.gpu_model
    replicas = node.labels.get(REPLICAS, "1")
    if model.endswith(SHARED_ENDS) or replicas not in ("", "0", "1"):
        return f"its GPUs are shared by time ({REPLICAS} is {replicas[:20]})"
    if MIG_PART in model or node.labels.get(MIG) == "single":
        return f"its GPUs are cut into MIG slices ({model[:60]})"
    return ""


def node_device(node: Node, devices: Mapping[str, str]) -> DeviceKind:
    """GPU of a node by its labels; devices: catalogue names by product label. OptionError where it is not known."""
    if node.gpu_model in devices:
        return catalog.device(devices[node.gpu_model])
    if not node.gpu_model:
        shape = _named_shape(node)
        if shape is not None:
            return catalog.device(shape.device)
        raise OptionError("no label says which GPUs it has (nvidia.com/gpu.product, amd.com/gpu.product-name)")
    memory = node.labels.get("nvidia.com/gpu.memory", "")
    memory_gb = int(memory) * MIB / 1e9 if memory.isascii() and memory.isdecimal() and 0 < len(memory) < 9 else None
    return find_device(node.gpu_model, memory_gb)


def _named_shape(node: Node) -> NodeShape | None:
    try:
        return catalog.node(node.labels.get(INSTANCE_TYPE, "").removeprefix("Standard_") or "-")
    except OptionError:
        return None


def _shape(node: Node, kind: DeviceKind) -> NodeShape | None:
    """The catalogue's shape of that name, where it has these GPUs and gives all of them to pods."""
    shape = _named_shape(node)
    if shape is None or shape.gpus != node.gpus or catalog.device(shape.device).name != kind.name:
        return None
    return shape
