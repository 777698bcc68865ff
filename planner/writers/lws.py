"""`lws` and `disaggregatedset`: serving plans as Kubernetes manifests of kubernetes-sigs/lws, v1.

A worker is a group of pods, one a node, which run the launch command of the plan's engine: LeaderWorkerSet gives each
its place (LWS_WORKER_INDEX) and the address of the first (LWS_LEADER_ADDRESS). `lws` writes one LeaderWorkerSet a kind
of worker; `disaggregatedset` one DisaggregatedSet whose roles are the kinds of prefill and decode workers, and a
LeaderWorkerSet for each kind of mixed workers beside them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from planner import catalog
from planner.errors import ExportError, OptionError
from planner.files import write_text
from planner.plan import ParallelDocument
from planner.writers.common import comments
from planner.writers.serving_launch import Engine, Launch, default_model, launches, told

#: Images of the engines' releases that the launch commands are for. Source: the engines' release pages; documented.
IMAGES = {
    "vllm": "vllm/vllm-openai:v0.33.0",
    "sglang": "lmsysorg/sglang:v0.5.23",
    "trtllm": "nvcr.io/nvidia/tensorrt-llm/release",
}
#: Resource of a GPU and label of its product, by vendor. Source: the vendors' device plugins and node labellers.
RESOURCES = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu"}
PRODUCT_LABEL = "nvidia.com/gpu.product"
PORT = 8000
#: Longest name of a set: pods add a number or two to it, and a label holds 63 characters.
MOST_NAME = 50


def write(document: ParallelDocument, path: str) -> None:
    """One LeaderWorkerSet for each kind of worker; ExportError for what the engine or the format cannot run."""
    engine, started, model = _engine(document)
    names = _names(started)
    sets = [
        _manifest(name, _spec(launch, body, engine, model)) for (launch, body), name in zip(started, names, strict=True)
    ]
    _write(document, path, "lws", sets, engine)


def write_disaggregated(document: ParallelDocument, path: str) -> None:
    """A DisaggregatedSet of the prefill and decode workers; ExportError where the plan has none."""
    engine, started, model = _engine(document)
    names = _names(started)
    specs = {
        name: (launch, _spec(launch, body, engine, model)) for (launch, body), name in zip(started, names, strict=True)
    }
    roles = [{"name": name, "spec": spec} for name, (launch, spec) in specs.items() if launch.worker.role != "both"]
    if not roles:
        raise ExportError("the plan has no prefill and decode workers, only mixed ones; export it to lws")
    whole = {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSet",
        "metadata": {"name": _label(document.instance.name)},
        "spec": {"roles": roles},
    }
    mixed = [_manifest(name, spec) for name, (launch, spec) in specs.items() if launch.worker.role == "both"]
    _write(document, path, "disaggregatedset", [whole, *mixed], engine)


def _engine(document: ParallelDocument) -> tuple[Engine, list[tuple[Launch, Sequence[str]]], str]:
    from planner.writers import sglang_serve, trtllm_serve, vllm_serve

    plan = document.plan
    assert plan is not None
    if plan.backend is None:
        raise ExportError("the plan names no engine; plan again with one (`backend:`, --backend)")
    engine = {"vllm": vllm_serve, "sglang": sglang_serve, "trtllm": trtllm_serve}[plan.backend].ENGINE
    model, started = default_model(plan, engine), launches(plan, engine)
    for launch, _ in started:
        if engine.to == "trtllm" and launch.nodes > 1:
            raise ExportError(
                f"{launch.worker.name}: TensorRT-LLM starts the {launch.nodes} nodes of a worker with srun or mpirun,"
                " which pods of a LeaderWorkerSet have not; export it to trtllm, or plan with workers of a node"
            )
    return engine, started, model


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
    from ruamel.yaml.scalarstring import LiteralScalarString

    lines = ["set -euo pipefail", f"MODEL={model}"]
    if launch.nodes > 1:
        lines += ["NODE_RANK=$LWS_WORKER_INDEX", "MASTER_ADDR=$LWS_LEADER_ADDRESS"]
    serves = ["--host", "0.0.0.0", "--port", str(PORT)]
    follows = ["--headless"] if engine.to == "vllm" else serves
    resource, selector = _device(launch.worker.device)
    container: dict[str, Any] = {
        "name": engine.to,
        "image": IMAGES[engine.to],
        "command": ["/bin/bash", "-c", LiteralScalarString("\n".join([*lines, *body]) + "\n"), launch.worker.role],
        "args": serves if leads else follows,
        "resources": {"limits": {resource: str(launch.node_gpus)}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if engine.to == "vllm" and launch.worker.role != "both":
        field = {"fieldRef": {"fieldPath": "status.podIP"}}
        container["env"] = [{"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": field}]
    if leads:
        container["ports"] = [{"containerPort": PORT, "name": "http"}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
    spec: dict[str, Any] = {
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }
    if selector:
        spec["nodeSelector"] = selector
    return {"metadata": {"labels": {"gpuplan/role": launch.worker.role}}, "spec": spec}


def _device(name: str) -> tuple[str, dict[str, str]]:
    """Resource of a device, and the label of nodes that have it where the catalogue knows one."""
    try:
        kind = catalog.device(name)
    except OptionError as error:
        raise ExportError(f"no Kubernetes resource is known of {name}: {error}") from None
    resource = RESOURCES.get(kind.vendor)
    if resource is None:
        raise ExportError(f"no Kubernetes resource is known of {name}, whose vendor is {kind.vendor or 'not known'}")
    product = next((alias for alias in kind.aliases if alias.startswith("NVIDIA-")), None)
    return resource, {PRODUCT_LABEL: product} if product and kind.vendor == "NVIDIA" else {}


def _names(started: Sequence[tuple[Launch, Sequence[str]]]) -> list[str]:
    """Kubernetes names of the workers, which stay apart where cutting made them equal."""
    found: list[str] = []
    for launch, _ in started:
        name = _label(launch.worker.name)
        found.append(name if name not in found else f"{name[: MOST_NAME - 4].rstrip('-')}-{launch.place}")
    return found


def _label(text: str) -> str:
    """Lower-case letters, digits and dashes, a letter first."""
    made = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    made = made if made[:1].isalpha() else f"w-{made}"
    return made[:MOST_NAME].strip("-")


def _write(
    document: ParallelDocument, path: str, to: str, manifests: Sequence[Mapping[str, Any]], engine: Engine
) -> None:
    from ruamel.yaml import YAML

    assert document.plan is not None
    if path != "-" and Path(path).is_dir():
        path = str(Path(path) / f"{to}.yaml")
    dumper = YAML()
    dumper.default_flow_style = False
    dumper.width = 4096
    text = io.StringIO()
    dumper.dump_all(list(manifests), text)
    head = comments(document, to, path, *_told(document, engine))
    write_text(path, head + text.getvalue())


def _told(document: ParallelDocument, engine: Engine) -> Iterator[str]:
    assert document.plan is not None
    yield f"start: kubectl apply -f FILE, with LeaderWorkerSet v1 installed; images of {engine.title}, port {PORT}"
    yield "weights: pods download MODEL unless a volume with them is added"
    yield from told(document.plan, engine)
