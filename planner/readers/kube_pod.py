"""One Kubernetes Pod -> what it requests and where it may run, as the scheduler counts.

Requests of a resource: the larger of all containers and sidecars together, and of each ordinary init container with the
sidecars listed before it; requests of the pod level in place of that; plus overhead. A missing request is the limit.
Source: k8s.io/component-helpers/resource, PodRequests.
"""

from __future__ import annotations

from collections import Counter

from planner.kubernetes.reading import Value
from planner.kubernetes.snapshot import GPU_RESOURCES, PODS, WHOLE_MILLI, Pod
from planner.readers.kube_rules import PodContext, near_rules, node_rule, spread_rules, tolerations

#: Resources that the pod level may set. Source: KEP-2837.
_POD_LEVEL = ("cpu", "memory")
_GANG_KEYS = (
    "scheduling.k8s.io/group-name",
    "scheduling.volcano.sh/group-name",
    "scheduling.x-k8s.io/pod-group",
    "kueue.x-k8s.io/pod-group-name",
)
#: Shares of a device by annotation or resource, in thousandths. Sources: openb's simulator, KAI scheduler, HAMi.
_MILLI_ANNOTATION, _COUNT_ANNOTATION = "alibabacloud.com/gpu-milli", "alibabacloud.com/gpu-count"
_INDEX_ANNOTATION, _MODEL_ANNOTATION = "alibabacloud.com/gpu-index", "alibabacloud.com/gpu-card-model"
_FRACTION_ANNOTATION = "gpu-fraction"
_HAMI_CORES, _HAMI_MEMORY = "nvidia.com/gpucores", ("nvidia.com/gpumem", "nvidia.com/gpumem-percentage")
#: A host port can be taken once on a node.
HOST_PORT = "hostPort/"


def read_pod(value: Value, priorities: dict[str, int], namespaces: dict[str, dict[str, str]]) -> Pod | None:
    """A pod; None for one that has ended. priorities : values of PriorityClasses by name."""
    if value.at("status", "phase").text() in ("Succeeded", "Failed"):
        return None
    metadata, spec = value.at("metadata"), value.at("spec")
    namespace = metadata.at("namespace").text("default") or "default"
    name = metadata.at("name").text()
    if not name:
        metadata.wrong("a pod needs a name")
    labels, annotations = metadata.at("labels").labels(), metadata.at("annotations").labels()
    context = PodContext(namespace, labels, namespaces)
    requests = _requests(spec, value.at("status"))
    gpus, gpu_milli, resource = _gpus(value, requests, annotations)
    for claim in spec.at("resourceClaims").items():
        claim.not_modelled("resource claims (DRA)")
    for volume in spec.at("volumes").items():
        if volume.at("persistentVolumeClaim"):
            volume.not_modelled("volumes that tie a pod to a zone or node")
    if spec.at("schedulerName").text("default-scheduler") not in ("", "default-scheduler"):
        spec.not_modelled("rules of another scheduler (schedulerName)")
    node = spec.at("nodeName").text() or None
    return Pod(
        name=f"{namespace}/{name}",
        namespace=namespace,
        requests=requests,
        gpus=gpus,
        gpu_milli=gpu_milli,
        gpu_resource=resource,
        gpu_models=tuple(sorted(filter(None, annotations.get(_MODEL_ANNOTATION, "").split("|")))),
        gpu_indices=_indices(annotations, gpus) if node else None,
        labels=labels,
        priority=_priority(spec, priorities),
        node=node,
        pinned=_pinned(metadata),
        gated=tuple(gate.at("name").text() for gate in spec.at("schedulingGates").items()),
        node_rule=node_rule(spec),
        tolerations=tolerations(spec.at("tolerations")),
        near=near_rules(spec, context),
        spread=spread_rules(spec, context),
        gang=_gang(namespace, spec, labels, annotations),
        preempts=spec.at("preemptionPolicy").text() != "Never",
    )


def _container(container: Value) -> Counter[str]:
    requests = container.at("resources", "limits").amounts() | container.at("resources", "requests").amounts()
    found = Counter(requests)
    for port in container.at("ports").items():
        number = port.at("hostPort").integer(0, 0, 65535)
        if number:
            found[f"{HOST_PORT}{port.at('protocol').text('TCP')}/{number}"] = 1
    return found


def _requests(spec: Value, status: Value) -> dict[str, int]:
    """Amounts by resource, GPUs among them."""
    allocated = {
        one.at("name").text(): one.at("allocatedResources").amounts() for one in status.at("containerStatuses").items()
    }
    running: Counter[str] = Counter()
    for container in spec.at("containers").items():
        own = _container(container)
        # While a resize is under way both sizes may be in use.
        for resource, amount in allocated.get(container.at("name").text(), {}).items():
            own[resource] = max(own[resource], amount)
        running += own
    before: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in spec.at("initContainers").items():
        own = _container(container)
        if container.at("restartPolicy").text() == "Always":
            before += own
            peak |= before
        else:
            peak |= before + own
    total = (running + before) | peak
    pod_level = spec.at("resources", "limits").amounts() | spec.at("resources", "requests").amounts()
    for resource, amount in pod_level.items():
        if resource in _POD_LEVEL or resource.startswith("hugepages-"):
            total[resource] = amount
    total += Counter(spec.at("overhead").amounts())
    return {**{resource: amount for resource, amount in sorted(total.items()) if amount}, PODS: 1}


def _gpus(value: Value, requests: dict[str, int], annotations: dict[str, str]) -> tuple[int, int, str]:
    """Devices, thousandths of each, and their resource; taken out of the requests."""
    place = value.at("metadata", "annotations")
    asked = {resource: requests.pop(resource) for resource in GPU_RESOURCES if resource in requests}
    if len(asked) > 1:
        value.wrong(f"asks for GPUs of two kinds: {', '.join(asked)}")
    resource, gpus = next(iter(asked.items()), (GPU_RESOURCES[0], 0))
    milli = WHOLE_MILLI
    if _MILLI_ANNOTATION in annotations:
        milli = Value(annotations[_MILLI_ANNOTATION], place.place, place.path, place.notes).integer(
            WHOLE_MILLI, 0, WHOLE_MILLI
        )
        gpus = Value(annotations.get(_COUNT_ANNOTATION, "1"), place.place, place.path, place.notes).integer(1, 0, 1024)
    elif _FRACTION_ANNOTATION in annotations:
        text = annotations[_FRACTION_ANNOTATION]
        share = Value(text, place.place, place.path, place.notes).take(lambda: _thousandths(text), WHOLE_MILLI)
        gpus, milli = 1, share
    cores = requests.pop(_HAMI_CORES, 0)
    if any(requests.pop(resource, 0) for resource in _HAMI_MEMORY):
        value.not_modelled("memory of a shared GPU (gpumem): the pod counts as taking whole devices")
    elif cores and gpus == 1:
        milli = min(WHOLE_MILLI, 10 * cores)
    if gpus > 1 and milli < WHOLE_MILLI:
        value.wrong(f"takes {milli} thousandths of each of {gpus} devices; a share is of one device")
        milli = WHOLE_MILLI
    if not gpus or not milli:
        return 0, 0, resource
    return gpus, milli, resource


def _thousandths(text: str) -> int:
    from planner.kubernetes.quantity import parse_amount

    milli = parse_amount(text, WHOLE_MILLI)
    if not 0 < milli <= WHOLE_MILLI:
        raise ValueError(f"gpu-fraction must be above 0 and at most 1, got {text!r}")
    return milli


def _indices(annotations: dict[str, str], gpus: int) -> tuple[int, ...] | None:
    """Devices of a running pod, written as 0-1-3; None where nobody says, or what is said cannot be."""
    parts = annotations.get(_INDEX_ANNOTATION, "").replace(",", "-").split("-")
    if not all(part.isdecimal() and len(part) < 5 for part in parts) or len(set(parts)) != gpus:
        return None
    return tuple(int(part) for part in parts)


def _priority(spec: Value, priorities: dict[str, int]) -> int:
    """The resolved number, else the class's; a class that nobody gave counts as 0 and is told."""
    if spec.at("priority"):
        return spec.at("priority").integer(0, -(2**31))
    name = spec.at("priorityClassName").text()
    if name and name not in priorities:
        spec.not_modelled("priority classes that were not given, taken as 0")
    return priorities.get(name, priorities.get("", 0))


def _pinned(metadata: Value) -> bool:
    """DaemonSet and static pods, and those that are on their way out: they stay, or go, whatever is planned."""
    kinds = {owner.at("kind").text() for owner in metadata.at("ownerReferences").items()}
    mirror = bool(metadata.at("annotations").at("kubernetes.io/config.mirror"))
    return mirror or bool(kinds & {"DaemonSet", "Node"}) or bool(metadata.at("deletionTimestamp"))


def _gang(namespace: str, spec: Value, labels: dict[str, str], annotations: dict[str, str]) -> str | None:
    """Name of the PodGroup, by the scheduler's field or the common annotations and labels."""
    name = spec.at("schedulingGroup", "podGroupName").text()
    for key in _GANG_KEYS:
        name = name or annotations.get(key, "") or labels.get(key, "")
    return f"{namespace}/{name}" if name else None
