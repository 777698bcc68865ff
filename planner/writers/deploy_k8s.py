"""`k8s` for deployments: every object in the order in which it is applied; in a folder, maps of experts beside it.

First what is shared (maps of experts that engines load, a Service for each kind of worker), then the sets of workers,
nodes that stand before rented ones, largest workers first. Source: k8s.io/api apps/v1 and core/v1, LeaderWorkerSet v1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from planner.errors import ExportError
from planner.kubernetes.names import NODE_LABEL, label, label_value
from planner.plan import DeployDocument, ExpertsDocument
from planner.writers import sglang, trtllm, vllm
from planner.writers.deploy_sets import Manifests, WorkerSet, sets_by_pod
from planner.writers.kube import PORT, write_manifests

#: Engines' maps, and how their files end.
MAPS = {"sglang": (sglang.write, "json"), "trtllm": (trtllm.write, "yaml"), "vllm": (vllm.write, "json")}


def write(document: DeployDocument, path: str) -> None:
    """All objects in one file; ExportError for what an engine or Kubernetes cannot express."""
    made = Manifests(document)
    assert document.plan is not None
    counts = Counter(sets_by_pod(document.plan.pods).values())
    objects = [*made.shared(), *(made.workers(one, counts[one]) for one in in_order(counts, made))]
    told = list(_told(made))
    if path != "-" and Path(path).is_dir():
        told += _maps(made, Path(path))
    write_manifests(document, path, "k8s", objects, *told)


def in_order(sets: Counter[WorkerSet], made: Manifests) -> list[WorkerSet]:
    """Nodes that stand before others, the largest workers first."""
    hosts = made.plan.template.hostnames
    return sorted(
        sets, key=lambda one: (one.nodes[0] not in hosts, -made.kinds[one.service, one.worker].num_gpus, one.name)
    )


def _told(made: Manifests) -> Iterator[str]:
    plan = made.plan
    sets = sets_by_pod(plan.pods).values()
    yield f"start: kubectl apply --dry-run=server -f FILE, then without; port {PORT}"
    if any(len(one.nodes) > 1 for one in sets):
        yield "workers of several nodes need LeaderWorkerSet v1 in the cluster"
    nodes = made.nodes_to_label(node for one in sets for node in one.nodes)
    if nodes:
        yield "nodes to label when they have joined, so that each takes the workers that are planned for it:"
    for node, what in nodes.items():
        yield f"  kubectl label node NODE {NODE_LABEL}={label_value(node)}   # {what}"
    if len(plan.fleet.periods) > 1:
        yield f"workers are those of the dearest hours: {', '.join(map(str, plan.hours))}"
    yield "which devices of a node a pod gets is the device plug-in's choice: the plan's count fits any"
    yield from made.told()


def _maps(made: Manifests, folder: Path) -> Iterator[str]:
    """Write the maps of experts beside the manifests; what was written, or why an engine takes none."""
    document = made.document
    for (service, worker), one in made.maps.items():
        engine = made.launched[service, worker][0]
        view = ExpertsDocument(
            problem="experts",
            instance=document.instance,
            gpuplan_version=document.gpuplan_version,
            outcome=document.outcome,
            plan=one.placement,
        )
        writer, ending = MAPS[engine.to]
        path = folder / f"experts-{label(f'{service}-{worker}')}.{ending}"
        try:
            writer(view, str(path))
            yield f"experts of {worker} of {service}: {path.name}"
        except ExportError as error:
            yield f"no map of experts for {worker} of {service}: {error}"
