"""kubectl output -> Snapshot: JSON or YAML files, lists, folders of them, or standard input.

Any mix of Node, Pod, PodDisruptionBudget, PodGroup, PriorityClass and Namespace objects, alone or in lists. Other kinds
are passed over and told. Every mistake of all files is raised at once.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from planner.errors import DescriptionError, Finding
from planner.files import parse_json, parse_source, read_text
from planner.kubernetes.reading import Notes, Value
from planner.kubernetes.rules import HOSTNAME, PodSelector
from planner.kubernetes.snapshot import GPU_RESOURCES, DisruptionBudget, Gang, Node, Pod, Snapshot
from planner.readers.kube_pod import read_pod
from planner.readers.kube_rules import label_selector, taints

#: Most objects of one reading: twenty times the largest clusters that Kubernetes supports.
MAX_OBJECTS = 3_000_000
#: What objects of some kinds say that a plan does not heed.
_LEFT_OUT = {
    "NodeResourceTopology": "NUMA nodes (NodeResourceTopology): GPUs and cores of a pod may be on different ones",
    "ResourceClaim": "resource claims (DRA)",
    "ResourceQuota": "quotas of namespaces (ResourceQuota)",
    "PersistentVolumeClaim": "volumes that tie a pod to a zone or node",
}
_SUFFIXES = (".json", ".yaml", ".yml")
_MODEL_LABELS = ("nvidia.com/gpu.product", "alibabacloud.com/gpu-card-model", "amd.com/gpu.product-name")
#: Devices that one node may have; more is a mistake. The largest sold has 16, time-slicing multiplies them.
MAX_GPUS = 1024


def read_snapshot(paths: Iterable[str | Path]) -> Snapshot:
    """Everything that the files hold. Raises DescriptionError with all problems found."""
    notes = Notes()
    objects: dict[str, list[Value]] = defaultdict(list)
    digest = hashlib.sha256()
    total = 0
    for path in _files(paths):
        text_objects, sha = _load(path, notes)
        digest.update(sha.encode())
        for value in text_objects:
            kind = value.at("kind").text()
            objects[kind].append(value)
            total += 1
            if total > MAX_OBJECTS:
                raise DescriptionError.single(path, f"more than {MAX_OBJECTS} objects")
    notes.refuse()
    return read_objects(objects, notes, digest.hexdigest())


def read_objects(objects: dict[str, list[Value]], notes: Notes, digest: str = "") -> Snapshot:
    """A snapshot of parsed objects by kind."""
    known = ("Node", "Pod", "PodDisruptionBudget", "PodGroup", "PriorityClass", "Namespace")
    for kind, values in objects.items():
        if kind not in known:
            for value in values:
                value.not_modelled(_LEFT_OUT.get(kind, f"objects of kind {kind[:40] or '(none)'}"))
    priorities = {
        one.at("metadata", "name").text(): one.at("value").integer(0, -(2**31)) for one in objects["PriorityClass"]
    }
    for one in objects["PriorityClass"]:
        if one.at("globalDefault").flag():
            priorities[""] = one.at("value").integer(0, -(2**31))
    namespaces = {
        one.at("metadata", "name").text(): one.at("metadata", "labels").labels() for one in objects["Namespace"]
    }
    for name, labels in namespaces.items():
        labels.setdefault("kubernetes.io/metadata.name", name)
    nodes = [read_node(value) for value in objects["Node"]]
    pods: list[Pod] = []
    for value in objects["Pod"]:
        pod = read_pod(value, priorities, namespaces)
        if pod is not None:
            pods.append(pod)
    places = [value.place for value in objects["Node"]], [value.place for value in objects["Pod"]]
    snapshot = Snapshot(
        nodes=tuple(nodes),
        pods=tuple(pods),
        budgets=tuple(_budget(value) for value in objects["PodDisruptionBudget"]),
        gangs=tuple(_gang(value) for value in objects["PodGroup"]),
        not_modelled=notes.not_modelled,
        digest=digest,
    )
    for noun, names, where in (
        ("node", [one.name for one in nodes], places[0]),
        ("pod", [one.name for one in pods], places[1]),
    ):
        for name in sorted(_repeated(names)):
            notes.findings.append(Finding(where[0], f"two {noun}s are named {name!r}"))
    notes.refuse()
    return snapshot


def read_node(value: Value) -> Node:
    """A node: allocatable amounts, devices, labels, taints and whether it takes pods."""
    metadata, spec = value.at("metadata"), value.at("spec")
    name = metadata.at("name").text()
    if not name:
        metadata.wrong("a node needs a name")
    amounts = value.at("status", "allocatable")
    if not amounts:
        amounts.wrong("is required: capacity is not what pods may take")
    allocatable = amounts.amounts()
    found = {resource: allocatable.pop(resource) for resource in GPU_RESOURCES if resource in allocatable}
    kinds = {resource: count for resource, count in found.items() if count}
    if len(kinds) > 1:
        amounts.wrong(f"has GPUs of two kinds: {', '.join(kinds)}")
    resource, gpus = next(iter(kinds.items()), (GPU_RESOURCES[0], 0))
    if gpus > MAX_GPUS:
        amounts.wrong(f"{gpus} GPUs on one node are more than {MAX_GPUS}")
        gpus = 0
    labels = metadata.at("labels").labels()
    labels.setdefault(HOSTNAME, name)
    # Partitions and shares that a device plug-in has fixed are amounts; cutting devices anew is not planned.
    if any(resource.startswith("nvidia.com/mig-") for resource in allocatable):
        value.not_modelled("cutting GPUs into other MIG slices: slices are taken as they are")
    conditions = {one.at("type").text(): one.at("status").text() for one in value.at("status", "conditions").items()}
    reason = "is cordoned" if spec.at("unschedulable").flag() else ""
    if conditions.get("Ready", "True") != "True":
        reason = "is not ready"
    return Node(
        name=name,
        allocatable=allocatable,
        gpus=gpus,
        gpu_resource=resource,
        gpu_model=next((labels[key] for key in _MODEL_LABELS if key in labels), ""),
        labels=labels,
        taints=taints(spec.at("taints")),
        accepts=not reason,
        reason=reason,
    )


def _files(paths: Iterable[str | Path]) -> Iterator[str | Path]:
    """Files as given; those of a folder in order of their names."""
    for path in paths:
        if str(path) != "-" and Path(path).is_dir():
            found = sorted(one for one in Path(path).iterdir() if one.suffix in _SUFFIXES and one.is_file())
            if not found:
                raise DescriptionError.single(path, f"holds no {', '.join(_SUFFIXES)} file")
            yield from found
        else:
            yield path


def _load(path: str | Path, notes: Notes) -> tuple[list[Value], str]:
    """Objects of a file, lists unpacked, and the hash of its text."""
    text = read_text(path)
    place = "<stdin>" if str(path) == "-" else str(path)
    sha = hashlib.sha256(text.encode()).hexdigest()
    if Path(path).suffix == ".json":
        if text.lstrip()[:1] != "{":
            raise DescriptionError.single(path, "is no JSON object, as `kubectl get -o json` prints")
        return list(_unpacked(Value(parse_json(text, place), place, "", notes))), sha
    values = [parse_source(one, place, Path.cwd()).value for one in _documents(text)]
    if all(value is None for value in values):
        raise DescriptionError.single(place, "holds no object, as `kubectl get -o json` prints")
    found = [Value(value, place, "", notes) for value in values if value is not None]
    return [one for value in found for one in _unpacked(value)], sha


def _documents(text: str) -> Iterator[str]:
    """Documents of a YAML file, each on the lines that it has in the file."""
    if "\n---" not in text:
        yield text
        return
    lines = text.splitlines(keepends=True)
    starts = [0, *(index + 1 for index, line in enumerate(lines) if line.rstrip() == "---"), len(lines) + 1]
    for start, end in pairwise(starts):
        if "".join(lines[start : end - 1]).strip():
            yield "\n" * start + "".join(lines[start : end - 1])


def _unpacked(value: Value) -> Iterator[Value]:
    """The object itself, or the items of a list, wherever their kind is told."""
    if isinstance(value.value, dict) and "items" in value.value:
        kind = value.at("kind").text("List")
        for item in value.at("items").items():
            if not isinstance(item.value, dict):
                item.wrong("is no Kubernetes object")
                continue
            if "kind" not in item.value and kind.endswith("List"):
                item.value = {**item.value, "kind": kind.removesuffix("List")}
            yield from _unpacked(item) if item.value.get("kind") == "List" else [item]
    elif isinstance(value.value, dict):
        yield value
    elif isinstance(value.value, list):
        for item in value.items():
            yield from _unpacked(item)
    else:
        value.wrong("is no Kubernetes object, nor a list of them")


def _repeated(names: list[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]


def _budget(value: Value) -> DisruptionBudget:
    namespace = value.at("metadata", "namespace").text("default")
    selector = label_selector(value.at("spec", "selector"))
    name = value.at("metadata", "name").text()
    allowed = value.at("status", "disruptionsAllowed")
    if not allowed:
        value.not_modelled("disruption budgets without status, taken as 0 disruptions")
    return DisruptionBudget(f"{namespace}/{name}", PodSelector(frozenset({namespace}), selector), allowed.integer(0))


def _gang(value: Value) -> Gang:
    """PodGroups of Kubernetes (schedulingPolicy.gang.minCount), Volcano and the coscheduling plug-in (minMember)."""
    namespace = value.at("metadata", "namespace").text("default")
    spec = value.at("spec")
    least = spec.at("minMember").integer(0) or spec.at("schedulingPolicy", "gang", "minCount").integer(1)
    if spec.at("schedulingConstraints") or spec.at("networkTopology"):
        value.not_modelled("topology constraints of pod groups")
    return Gang(f"{namespace}/{value.at('metadata', 'name').text()}", least)
