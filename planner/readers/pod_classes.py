"""Nodes and pods written down by class in an instance -> nodes and pods, by way of the objects that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.descriptions.pods import NodeClass, NodeOffer, PodClass
from planner.kubernetes.reading import Notes, Value
from planner.kubernetes.rules import HOSTNAME
from planner.kubernetes.snapshot import GPU_RESOURCES, PODS, Gang, Node, Pod
from planner.readers.kube_pod import read_pod
from planner.readers.kubernetes import read_node


def expand_nodes(classes: Sequence[NodeClass], place: str, notes: Notes) -> Iterator[Node]:
    """Every node of every class; mistakes in taints go into `notes`."""
    for index, one in enumerate(classes):
        node = read_kind(one, Value(None, place, f"nodes[{index}]", notes))
        for name in names(one.name, one.count):
            yield replace(node, name=name, labels={**node.labels, HOSTNAME: name})


def read_kind(one: NodeClass | NodeOffer, at: Value) -> Node:
    """One node of a kind; mistakes go to the notes of `at`, which says where it is written."""
    amounts = {"cpu": one.cpu, "memory": one.memory, PODS: one.pods, **one.resources, GPU_RESOURCES[0]: one.gpus}
    raw = {
        "metadata": {"name": one.name, "labels": dict(one.labels)},
        "spec": {"taints": list(one.taints)},
        "status": {"allocatable": amounts},
    }
    return replace(
        read_node(Value(raw, at.place, at.path, at.notes)),
        gpu_model=one.gpu_model,
        price_usd_per_hour=one.price_usd_per_hour,
        numa=one.numa,
        gpu_island=one.gpu_island or 0,
    )


def expand_pods(classes: Sequence[PodClass], place: str, notes: Notes) -> Iterator[Pod]:
    """Every pod of every class; mistakes in rules go into `notes`."""
    for index, one in enumerate(classes):
        requests = {"cpu": one.cpu, "memory": one.memory, **one.resources}
        raw = {
            "metadata": {"name": one.name, "namespace": one.namespace, "labels": dict(one.labels)},
            "spec": {
                "containers": [{"name": "main", "resources": {"requests": requests}}],
                "nodeSelector": dict(one.node_selector),
                "tolerations": list(one.tolerations),
                "affinity": one.affinity,
                "topologySpreadConstraints": list(one.topology_spread),
                "priority": one.priority,
                "nodeName": one.node,
            },
        }
        pod = read_pod(Value(raw, place, f"pods[{index}]", notes), {}, {})
        assert pod is not None
        pod = replace(
            pod,
            gpus=one.gpus,
            gpu_milli=one.gpu_milli if one.gpus else 0,
            gpu_models=tuple(sorted(one.gpu_models)),
            numa=one.numa,
            numa_nodes=one.numa_nodes,
            one_island=one.one_island,
            gang=None if one.gang is None else f"{one.namespace}/{one.gang}",
        )
        for name in names(one.name, one.count):
            yield replace(pod, name=f"{one.namespace}/{name}")


def inline_gangs(pods: Sequence[Pod]) -> tuple[Gang, ...]:
    """Gangs of inline pods: all of the pods that name them."""
    sizes: dict[str, int] = {}
    for pod in pods:
        if pod.gang is not None:
            sizes[pod.gang] = sizes.get(pod.gang, 0) + 1
    return tuple(Gang(name, least) for name, least in sizes.items())


def names(name: str, count: int) -> Iterator[str]:
    """NAME alone, or NAME-0, NAME-1 and so on."""
    return iter((name,)) if count == 1 else (f"{name}-{index}" for index in range(count))
