"""What `gpuplan import kubectl`, `openb` and `topo` write: instances of pods, and clusters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cli.flags import FlagReader
from cli.importing import Imported
from cli.render import printable
from planner.errors import DescriptionError, OptionError
from planner.kubernetes.snapshot import WHOLE_MILLI, Node, Pod
from planner.readers.kube_cluster import cluster_of
from planner.readers.kubernetes import read_snapshot
from planner.readers.nvidia_topo import read_topo, topo_cluster
from planner.readers.openb import read_openb_nodes, read_openb_pods

MAX_COUNT = 1_000_000


def import_kubectl_pods(files: Sequence[str], name: str, objective: str | None, output: str) -> Imported:
    """An instance that names the files, once all of them were read without a mistake. DescriptionError, OptionError."""
    if "-" in files:
        raise OptionError("an instance of pods names its files: save what kubectl prints to a file first")
    snapshot = read_snapshot(files)
    if not snapshot.nodes:
        raise DescriptionError.single(files[0], "holds no Node; give `kubectl get nodes -o json`, too")
    if not snapshot.pods:
        raise DescriptionError.single(files[-1], "holds no Pod; give `kubectl get pods -A -o json`, too")
    first, second, *more = [_beside(file, output) for file in [*files, *files[:1]][: max(2, len(files))]]
    value: dict[str, Any] = {"problem": "pods", "name": name, "nodes": first, "pods": second}
    value |= {"objects": more} if more else {}
    value |= {"objective": objective} if objective else {}
    comments = [*_counted(snapshot.nodes, snapshot.pods), *(f"not modelled: {one}" for one in snapshot.not_modelled)]
    return Imported(value, comments)


def import_openb(nodes: str, pods: str, name: str, objective: str | None, output: str) -> Imported:
    """The same of openb's two tables, whose pods are all pending."""
    read = read_openb_nodes(nodes), read_openb_pods(pods)
    value = {"problem": "pods", "name": name, "nodes": _beside(nodes, output), "pods": _beside(pods, output)}
    value |= {"objective": objective} if objective else {}
    return Imported(value, _counted(*read))


def import_kubectl_cluster(files: Sequence[str], name: str, devices: Sequence[str], network: str | None) -> Imported:
    """A cluster of the nodes that take pods. DescriptionError for GPUs that are not known, OptionError for flags."""
    named = _named(devices)
    snapshot = read_snapshot(files)
    found = cluster_of(snapshot.nodes, "<stdin>" if files[0] == "-" else files[0], named, network)
    used = [pod for pod in snapshot.pods if pod.node is not None and pod.gpus]
    comments = [*_counted(snapshot.nodes, snapshot.pods)[:1], *found.notes]
    if used:
        comments.append(f"{len(used)} running pods have GPUs of these, which the cluster counts as free")
    return Imported({"name": name, **found.value}, comments)


def import_topo(file: str, device: str, count: int, name: str, network: str | None) -> Imported:
    """A cluster of `count` nodes like the one whose matrix the file holds."""
    reader = FlagReader()
    reader.whole("--count", count, most=MAX_COUNT)
    kind = reader.device("--device", device)
    reader.refuse()
    assert kind is not None
    topo = read_topo(file)
    value, notes = topo_cluster(topo, kind, count, "<stdin>" if file == "-" else file, network)
    return Imported({"name": name, **value}, notes)


def _named(devices: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in devices:
        label, equals, name = text.partition("=")
        if not (label and equals and name):
            raise OptionError(f"--device {text!r} is not LABEL=NAME, as NVIDIA-H100-80GB-HBM3=h100_sxm")
        found[label] = name
    return found


def _beside(path: str, output: str) -> str:
    """A path as the instance names it: relative to its own folder."""
    if os.path.isabs(path):
        return path
    return os.path.relpath(path, Path(output).parent if output != "-" else Path.cwd())


def _counted(nodes: Sequence[Node], pods: Sequence[Pod]) -> list[str]:
    """What there is, for people."""
    gpus: Counter[str] = Counter()
    for node in nodes:
        gpus[node.gpu_model or "no label"] += node.gpus
    kinds = ", ".join(f"{count} x {printable(model)}" for model, count in sorted(gpus.items()) if count)
    closed = sum(not node.accepts for node in nodes)
    told = f"{len(nodes)} nodes" + (f" ({closed} take no pods)" if closed else "") + f", GPUs: {kinds or 'none'}"
    states: Mapping[str, list[Pod]] = {
        "running": [pod for pod in pods if pod.node is not None],
        "pending": [pod for pod in pods if pod.node is None],
    }
    lines = [
        f"{len(some)} {state} pods, {sum(pod.gpus * pod.gpu_milli for pod in some) / WHOLE_MILLI:g} GPUs"
        for state, some in states.items()
    ]
    return [told, *lines]
