"""`dynamo`: a serving plan as a DynamoGraphDeployment of NVIDIA Dynamo, pinned to v1alpha1 and the 1.3.1 runtimes.

One service a kind of worker and a frontend. Sources: the operator's Go types of v1alpha1 (componentType,
subComponentType, replicas, resources, sharedMemory, multinode, extraPodSpec) and the project's own examples
(examples/backends/{vllm,sglang}/deploy), read in the repository. Not verified: that the engine releases inside the
1.3.1 images know every flag of vLLM 0.33 and SGLang 0.5.23, for which the flags are written; the file says so.

Refused: workers of several nodes with vLLM, whose rank flags the operator makes in a way that was not verified (those
of SGLang it adds itself: --dist-init-addr, --nnodes, --node-rank); TensorRT-LLM, which reads its sizes from a file in
the image; mixed workers beside prefill and decode workers, among which Dynamo's frontend splits no requests by share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from planner.errors import ExportError
from planner.kubernetes.names import label
from planner.plan import ParallelDocument
from planner.writers.engine_argv import engine_flags, model_name
from planner.writers.kube import (
    PRODUCT_LABEL,
    device_of,
    names,
    products,
    resource,
    started_workers,
    write_manifests,
)
from planner.writers.serving_launch import Engine, Launch, told

API_VERSION = "nvidia.com/v1alpha1"
RUNTIME_VERSION = "1.3.1"
IMAGES = {
    "vllm": f"nvcr.io/nvidia/ai-dynamo/vllm-runtime:{RUNTIME_VERSION}",
    "sglang": f"nvcr.io/nvidia/ai-dynamo/sglang-runtime:{RUNTIME_VERSION}",
}
#: Flags of several nodes that the operator adds by itself for SGLang: the example has none of them.
OPERATORS_FLAGS = ("--nnodes", "--node-rank", "--dist-init-addr")
MODEL_FLAGS = {"vllm": "--model", "sglang": "--model-path"}
#: Where prefill workers of SGLang offer their caches; each pod has its own address. Source: the example.
BOOTSTRAP = ("--disaggregation-bootstrap-port", "30001", "--host", "0.0.0.0")
TRANSFER = ("--disaggregation-transfer-backend", "nixl")


def write(document: ParallelDocument, path: str) -> None:
    """One DynamoGraphDeployment; ExportError for what it cannot express, see the module."""
    engine, started, shell_model = started_workers(document.plan)
    roles = {launch.worker.role for launch, _ in started}
    if "both" in roles and len(roles) > 1:
        raise ExportError(
            "the plan has mixed workers beside prefill and decode workers, and Dynamo's frontend splits no requests"
            " between them; export to lws, or plan with disaggregated: only or never"
        )
    if engine.to not in IMAGES:
        raise ExportError("Dynamo's TensorRT-LLM worker reads its sizes from a file in its image; export to trtllm")
    model = model_name(document, shell_model, "dynamo")
    services: dict[str, Any] = {
        "Frontend": {
            "componentType": "frontend",
            "replicas": 1,
            "extraPodSpec": {"mainContainer": {"image": IMAGES[engine.to]}},
        }
    }
    for (launch, body), name in zip(started, names(started), strict=True):
        services[name] = _service(launch, body, engine, model)
    whole = {
        "apiVersion": API_VERSION,
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": label(document.instance.name)},
        "spec": {"backendFramework": engine.to, "services": services},
    }
    write_manifests(document, path, "dynamo", [whole], *_told(document, engine))


def _service(launch: Launch, body: Sequence[str], engine: Engine, model: str) -> dict[str, Any]:
    worker = launch.worker
    if launch.nodes > 1 and engine.to != "sglang":
        raise ExportError(
            f"{worker.name}: how Dynamo starts {engine.to} on {launch.nodes} nodes is not known well enough;"
            " export to lws, or plan with workers of a node"
        )
    kind = device_of(worker.device)
    if resource(kind) != "nvidia.com/gpu":
        raise ExportError(f"{worker.name}: Dynamo's resource `gpu` is NVIDIA's, and {worker.device} is {kind.vendor}'s")
    flags = list(_args(launch, body, engine, model))
    spec: dict[str, Any] = {
        "mainContainer": {
            "image": IMAGES[engine.to],
            "command": ["python3", "-m", f"dynamo.{engine.to}"],
            "args": flags,
        }
    }
    if found := products(kind):
        spec["nodeSelector"] = {PRODUCT_LABEL: found[0]}
    made: dict[str, Any] = {"componentType": "worker"}
    if worker.role != "both":
        made["subComponentType"] = worker.role
    made |= {"replicas": worker.count, "resources": {"limits": {"gpu": str(launch.node_gpus)}}}
    if launch.nodes > 1:
        made["multinode"] = {"nodeCount": launch.nodes}
    return {**made, "extraPodSpec": spec}


def _args(launch: Launch, body: Sequence[str], engine: Engine, model: str) -> Iterator[str]:
    """The model, the engine's flags without those that the operator adds, and the role in Dynamo's words."""
    yield from (MODEL_FLAGS[engine.to], model, "--served-model-name", model)
    rest = engine_flags(engine.to, launch, body, "dynamo")
    while rest:
        flag = rest.pop(0)
        if flag in OPERATORS_FLAGS:
            rest.pop(0)
        else:
            yield flag
    if launch.worker.role != "both":
        yield from (*TRANSFER, *BOOTSTRAP) if engine.to == "sglang" else ("--disaggregation-mode", launch.worker.role)


def _told(document: ParallelDocument, engine: Engine) -> Iterator[str]:
    assert document.plan is not None
    yield f"start: kubectl apply -f FILE, with Dynamo's operator of {RUNTIME_VERSION} installed ({API_VERSION})"
    yield f"flags are those of the releases that gpuplan knows, {engine.title}; the image may have an older engine"
    yield "weights: workers download the model; add envFromSecret with HF_TOKEN where it is gated"
    yield from told(document.plan, engine)[len(engine.pairs) if _paired(document) else 0 :]


def _paired(document: ParallelDocument) -> bool:
    """Whether `told` begins with what the engine's own router needs, which Dynamo replaces."""
    assert document.plan is not None
    return any(worker.role != "both" for worker in document.plan.workers)
