"""`k8s` for serving plans: a Deployment and a Service for each kind of worker, on nodes that have its GPU.

Nodes are chosen by required node affinity to the product label of the GPU (NVIDIA's GPU feature discovery); where the
catalogue knows no label, by the GPU resource alone, and the file says so. A Deployment's pod is one node: workers of
several nodes need `lws`. Source: k8s.io/api apps/v1 and core/v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from planner.errors import ExportError
from planner.kubernetes.names import label
from planner.plan import ParallelDocument
from planner.writers.kube import (
    PORT,
    PRODUCT_LABEL,
    Started,
    container,
    device_of,
    names,
    products,
    shared_memory,
    started_workers,
    weights_told,
    write_manifests,
)
from planner.writers.serving_launch import Engine, Launch, told

#: Seconds for the weights to load before a pod counts as failed; the default of 600 is short for hundreds of GB.
PROGRESS_DEADLINE_S = 3600


def write(document: ParallelDocument, path: str) -> None:
    """Deployments and Services, one each a kind of worker; ExportError for workers of several nodes."""
    engine, started, model = started_workers(document.plan)
    for launch, _ in started:
        if launch.nodes > 1:
            raise ExportError(
                f"{launch.worker.name}: a pod of a Deployment is one node, and this worker has {launch.nodes};"
                " export it to lws"
            )
    app = label(document.instance.name)
    manifests = []
    for (launch, body), name in zip(started, names(started), strict=True):
        chosen = {"app.kubernetes.io/part-of": app, "app.kubernetes.io/name": name}
        labels = {**chosen, "gpuplan/role": launch.worker.role}
        pod = {**_affinity(launch), **pod_spec(launch, body, engine, model)}
        manifests += [deployment(name, launch.worker.count, chosen, labels, pod), service(name, chosen, labels)]
    write_manifests(document, path, "k8s", manifests, *_told(document, engine, started, model))


def pod_spec(launch: Launch, body: Sequence[str], engine: Engine, model: str) -> dict[str, Any]:
    """Of a worker of one node, wherever it runs."""
    return {"containers": [container(launch, body, engine, model)], "volumes": shared_memory()}


def deployment(
    name: str, replicas: int, chosen: Mapping[str, str], labels: Mapping[str, str], pod: Mapping[str, Any]
) -> dict[str, Any]:
    """So many equal pods; chosen : labels that tell them from all others."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": PROGRESS_DEADLINE_S,
            # GPUs for one more replica are seldom there: the old pod makes room before the new one starts.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": chosen},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def service(name: str, chosen: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, Any]:
    """The address of the chosen pods."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": chosen, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }


def _affinity(launch: Launch) -> dict[str, Any]:
    """Only nodes whose GPUs are of the planned kind."""
    found = products(device_of(launch.worker.device))
    if not found:
        return {}
    match = {"matchExpressions": [{"key": PRODUCT_LABEL, "operator": "In", "values": found}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [match]}}
    return {"affinity": {"nodeAffinity": required}}


def _told(document: ParallelDocument, engine: Engine, started: Started, model: str) -> Iterator[str]:
    assert document.plan is not None
    yield f"start: kubectl apply --dry-run=server -f FILE, then without; images of {engine.title}, port {PORT}"
    yield weights_told(model)
    for device in dict.fromkeys(launch.worker.device for launch, _ in started):
        if not products(device_of(device)):
            yield f"no node label is known of {device}: its pods go to any node with such a resource"
    yield from told(document.plan, engine)
