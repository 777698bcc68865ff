"""`lws` and `disaggregatedset`: serving plans as Kubernetes manifests of kubernetes-sigs/lws, v1.

A worker is a group of pods, one a node, which run the launch command of the plan's engine: LeaderWorkerSet gives each
its place (LWS_WORKER_INDEX) and the address of the first (LWS_LEADER_ADDRESS). `lws` writes one LeaderWorkerSet a kind
of worker; `disaggregatedset` one DisaggregatedSet whose roles are the kinds of prefill and decode workers, and a
LeaderWorkerSet for each kind of mixed workers beside them.
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


def write(document: ParallelDocument, path: str) -> None:
    """One LeaderWorkerSet for each kind of worker; ExportError for what the engine or the format cannot run."""
    engine, started, model = _started(document)
    sets = [
        group(name, launch, body, engine, model) for (launch, body), name in zip(started, names(started), strict=True)
    ]
    write_manifests(document, path, "lws", sets, *_told(document, engine, model))


def write_disaggregated(document: ParallelDocument, path: str) -> None:
    """A DisaggregatedSet of the prefill and decode workers; ExportError where the plan has none."""
    engine, started, model = _started(document)
    specs = {
        name: (launch, _spec(launch, body, engine, model))
        for (launch, body), name in zip(started, names(started), strict=True)
    }
    roles = [{"name": name, "spec": spec} for name, (launch, spec) in specs.items() if launch.worker.role != "both"]
    if not roles:
        raise ExportError("the plan has no prefill and decode workers, only mixed ones; export it to lws")
    whole = {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSet",
        "metadata": {"name": label(document.instance.name)},
        "spec": {"roles": roles},
    }
    mixed = [_manifest(name, spec) for name, (launch, spec) in specs.items() if launch.worker.role == "both"]
    write_manifests(document, path, "disaggregatedset", [whole, *mixed], *_told(document, engine, model))


def _started(document: ParallelDocument) -> tuple[Engine, Started, str]:
    engine, started, model = started_workers(document.plan)
    for launch, _ in started:
        refuse_mpi(engine, launch)
    return engine, started, model


def refuse_mpi(engine: Engine, launch: Launch) -> None:
    """ExportError for workers that pods of a LeaderWorkerSet cannot start."""
    if engine.to == "trtllm" and launch.nodes > 1:
        raise ExportError(
            f"{launch.worker.name}: TensorRT-LLM starts the {launch.nodes} nodes of a worker with srun or mpirun,"
            " which pods of a LeaderWorkerSet have not; export it to trtllm, or plan with workers of a node"
        )


def group(name: str, launch: Launch, body: Sequence[str], engine: Engine, model: str) -> dict[str, Any]:
    """A LeaderWorkerSet of one kind of worker."""
    return _manifest(name, _spec(launch, body, engine, model))


def _manifest(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": name},
        "spec": spec,
    }


def _spec(launch: Launch, body: Sequence[str], engine: Engine, model: str) -> dict[str, Any]:
    """So many groups of so many pods; the first of a group answers requests."""
    template: dict[str, Any] = {"size": launch.nodes, "restartPolicy": "RecreateGroupOnPodRestart"}
    if launch.nodes > 1:
        template["leaderTemplate"] = _pod(launch, body, engine, model, leads=True)
    template["workerTemplate"] = _pod(launch, body, engine, model, leads=launch.nodes == 1)
    return {"replicas": launch.worker.count, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template}


def _pod(launch: Launch, body: Sequence[str], engine: Engine, model: str, *, leads: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "containers": [container(launch, body, engine, model, leads=leads)],
        "volumes": shared_memory(),
    }
    if found := products(device_of(launch.worker.device)):
        spec["nodeSelector"] = {PRODUCT_LABEL: found[0]}
    return {"metadata": {"labels": {"gpuplan/role": launch.worker.role}}, "spec": spec}


def _told(document: ParallelDocument, engine: Engine, model: str) -> Iterator[str]:
    assert document.plan is not None
    yield f"start: kubectl apply -f FILE, with LeaderWorkerSet v1 installed; images of {engine.title}, port {PORT}"
    yield weights_told(model)
    yield from told(document.plan, engine)
