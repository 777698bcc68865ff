"""What the manifests of several kinds share: images, resources, names, the container that starts a worker, one file."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner import catalog
from planner.errors import ExportError, OptionError
from planner.files import write_text
from planner.hardware import DeviceKind
from planner.kubernetes.names import MOST_NAME, label
from planner.parallel_plan import ParallelPlan
from planner.plan import PlanDocument
from planner.writers.common import comments
from planner.writers.serving_launch import Engine, Launch, default_model, launches

if TYPE_CHECKING:
    from ruamel.yaml import YAML

#: Images of the engines' releases that the launch commands are for. Source: the engines' release pages; documented.
IMAGES = {
    "vllm": "vllm/vllm-openai:v0.33.0",
    "sglang": "lmsysorg/sglang:v0.5.23",
    "trtllm": "nvcr.io/nvidia/tensorrt-llm/release",
}
#: Resource of a GPU, by vendor. Source: the vendors' device plugins.
RESOURCES = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu"}
#: Label of a node's product. Source: NVIDIA's GPU feature discovery; its values are the aliases that begin NVIDIA-
#: or Tesla-, as the driver names the product with dashes for spaces.
PRODUCT_LABEL = "nvidia.com/gpu.product"
PRODUCTS = ("NVIDIA-", "Tesla-")
PORT = 8000

Started = Sequence[tuple[Launch, Sequence[str]]]


def started_workers(plan: ParallelPlan | None) -> tuple[Engine, Started, str]:
    """The plan's engine, what it starts, and the shell value of MODEL; ExportError for what the engine cannot run."""
    from planner.writers import sglang_serve, trtllm_serve, vllm_serve

    assert plan is not None
    if plan.backend is None:
        raise ExportError("the plan names no engine; plan again with one (`backend:`, --backend)")
    engine = {"vllm": vllm_serve, "sglang": sglang_serve, "trtllm": trtllm_serve}[plan.backend].ENGINE
    model = default_model(plan, engine)
    if plan.checkpoint is None and str(plan.model).endswith(".json") and not model.startswith("${MODEL:?"):
        wanted = f"set MODEL, or plan with checkpoint (--checkpoint): pods do not see {plan.model}"
        model = f"${{MODEL:?{shlex.quote(wanted)}}}"
    return engine, launches(plan, engine), model


def weights_told(model: str) -> str:
    """Where pods have the weights from, by the shell value of MODEL."""
    if model.startswith("${MODEL:?"):
        return "weights: the plan does not say what pods can load; set the variable MODEL of every container"
    return "weights: pods download MODEL unless a volume with them is added"


def container(launch: Launch, body: Sequence[str], engine: Engine, model: str, *, leads: bool = True) -> dict[str, Any]:
    """The container of one node of a worker; the one that leads answers requests on PORT."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    lines = ["set -euo pipefail", f"MODEL={model}"]
    if launch.nodes > 1:
        lines += ["NODE_RANK=$LWS_WORKER_INDEX", "MASTER_ADDR=$LWS_LEADER_ADDRESS"]
    serves = ["--host", "0.0.0.0", "--port", str(PORT)]
    follows = ["--headless"] if engine.to == "vllm" else serves
    found: dict[str, Any] = {
        "name": engine.to,
        "image": IMAGES[engine.to],
        "command": ["/bin/bash", "-c", LiteralScalarString("\n".join([*lines, *body]) + "\n"), launch.worker.role],
        "args": serves if leads else follows,
        "resources": {"limits": {resource(device_of(launch.worker.device)): str(launch.node_gpus)}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if model.startswith("${MODEL:?"):
        found["env"] = [{"name": "MODEL", "value": ""}]
    if engine.to == "vllm" and launch.worker.role != "both":
        field = {"fieldRef": {"fieldPath": "status.podIP"}}
        found.setdefault("env", []).append({"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": field})
    if leads:
        found["ports"] = [{"containerPort": PORT, "name": "http"}]
        found["readinessProbe"] = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
    return found


def shared_memory() -> list[dict[str, Any]]:
    """The volume that engines' processes share memory by."""
    return [{"name": "shm", "emptyDir": {"medium": "Memory"}}]


def device_of(name: str) -> DeviceKind:
    """A device of the catalogue; ExportError for another, of which nothing is known."""
    try:
        return catalog.device(name)
    except OptionError as error:
        raise ExportError(f"no Kubernetes resource is known of {name}: {error}") from None


def resource(kind: DeviceKind) -> str:
    """The resource that a device plugin offers it as; ExportError where none is known."""
    found = RESOURCES.get(kind.vendor)
    if found is None:
        whose = kind.vendor or "not known"
        raise ExportError(f"no Kubernetes resource is known of {kind.name}, whose vendor is {whose}")
    return found


def products(kind: DeviceKind) -> list[str]:
    """Values of PRODUCT_LABEL on nodes that have the device; none where the catalogue knows no label."""
    if kind.vendor != "NVIDIA":
        return []
    return [alias for alias in kind.aliases if alias.startswith(PRODUCTS)]


def names(started: Started) -> list[str]:
    """Kubernetes names of the workers, which stay apart where cutting made them equal."""
    found: list[str] = []
    for launch, _ in started:
        name = label(launch.worker.name)
        found.append(name if name not in found else f"{name[: MOST_NAME - 4].rstrip('-')}-{launch.place}")
    return found


def write_manifests(
    document: PlanDocument, path: str, to: str, manifests: Sequence[Mapping[str, Any]], *said: str
) -> None:
    """All manifests in one YAML file, or in `<to>.yaml` of the folder `path`, with comments before them."""
    if path != "-" and Path(path).is_dir():
        path = str(Path(path) / f"{to}.yaml")
    text = io.StringIO()
    dumper().dump_all(list(manifests), text)
    write_text(path, comments(document, to, path, *said) + text.getvalue())


def dumper() -> YAML:
    """Writes objects as people read them."""
    from ruamel.yaml import YAML

    made = YAML()
    made.default_flow_style = False
    made.width = 4096
    # Labels that are said twice are written twice.
    made.representer.ignore_aliases = lambda _: True
    return made
