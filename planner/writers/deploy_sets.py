"""A deployment's plan as Kubernetes objects: a set for equal workers on the same nodes, a Service for each kind.

A set is a Deployment, or a LeaderWorkerSet for workers of several nodes, pinned to its nodes: so each node gets as many
workers as planned, and steps of a change scale sets. Nodes of a cluster that stands are known by their host's name,
others by the label gpuplan/node, which they are given when they join. A set's name depends on nothing but its service,
worker and nodes: it is the same in the next plan.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from planner.deploy_plan import DeployedPod, DeployedWorkers, ExpertMap
from planner.errors import ExportError
from planner.kubernetes.names import (
    DEPLOYMENT_LABEL,
    HOSTNAME_LABEL,
    MOST_NAME,
    NODE_LABEL,
    digest,
    label,
    label_value,
)
from planner.parallel_plan import ParallelPlan, Workers
from planner.plan import DeployDocument
from planner.writers.deployment import deployment, pod_spec, service
from planner.writers.kube import PRODUCT_LABEL, device_of, products, resource, started_workers, weights_told
from planner.writers.lws import group, refuse_mpi
from planner.writers.serving_launch import Engine, Launch
from planner.writers.sglang import map_flags, map_text

#: Pods of a LeaderWorkerSet that lead. Source: LeaderWorkerSet's reference of labels.
LEADS = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
#: Where the map of experts is in a container.
MAP_FOLDER, MAP_FILE = "/etc/gpuplan", "experts.json"
QUANTITY = re.compile(r"([0-9.]+)([A-Za-z]*)")


class WorkerSet(NamedTuple):
    """Equal workers on the same nodes."""

    service: str
    worker: str
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its Kubernetes object."""
        return f"{label(self.service, 20)}-{label(self.nodes[0], 20)}-{digest(*self[:2], *self.nodes)}"


def sets_by_pod(pods: Iterable[DeployedPod]) -> dict[str, WorkerSet]:
    """The set of each worker, by the name of its first pod."""
    nodes: dict[str, list[str]] = defaultdict(list)
    first: dict[str, DeployedPod] = {}
    for pod in pods:
        worker = pod.pod if pod.parts == 1 else pod.pod.removesuffix(f"-{pod.part}")
        nodes[worker].append(pod.node)
        if pod.part == 0:
            first[worker] = pod
    return {pod.pod: WorkerSet(pod.service, pod.worker, tuple(nodes[name])) for name, pod in first.items()}


class Manifests:
    """The objects of a plan. Raises ExportError for what an engine or Kubernetes cannot express."""

    def __init__(self, document: DeployDocument) -> None:
        assert document.plan is not None
        self.document, self.plan = document, document.plan
        change = self.plan.change
        lent = () if change is None else change.lent
        self.kinds = {(row.service, row.worker): row for row in (*lent, *self.plan.workers)}
        self.launched = {what: self._launched(row) for what, row in self.kinds.items()}
        self.maps = {(row.service, row.worker): row for row in self.plan.experts}
        self.service_names = {what: _service_name(*what) for what in self.kinds}
        if alike := [name for name, count in Counter(self.service_names.values()).items() if count > 1]:
            raise ExportError(f"two kinds of workers would have the one name {alike[0]}; give a service another name")

    def _launched(self, row: DeployedWorkers) -> tuple[Engine, Launch, tuple[str, ...], str]:
        """What starts a worker: that of a serving plan which has only this one."""
        served = self.plan.served.get(row.service)
        if row.type is None or served is None:
            raise ExportError(
                f"the plan says what {row.worker} of {row.service} serves, but not its engine and parallel sizes:"
                " it is from a table of workers; plan with `model` in place of `workers`"
            )
        sizes = [(one.input_tokens, one.output_tokens) for one in self.plan.assignment if one.service == row.service]
        sizes += [(one.input_tokens, one.output_tokens) for one in row.rates]
        rate = row.type.requests_per_s
        view = ParallelPlan(
            **served.model_dump(),
            workers=(Workers(**row.type.model_dump(), count=row.count),),
            num_gpus=row.num_gpus * row.count,
            requests_per_s=rate,
            ttft_s=row.type.ttft_s,
            tpot_s=row.type.tpot_s,
            output_tokens_per_s=0.0,
            output_tokens_per_s_per_gpu=0.0,
            input_tokens=max(one for one, _ in sizes),
            output_tokens=max(one for _, one in sizes),
            gpus_per_node={row.device: row.num_gpus // row.nodes},
        )
        try:
            engine, ((launch, body),), model = started_workers(view)
            refuse_mpi(engine, launch)
        except ExportError as error:
            raise ExportError(f"{row.service}: {error}") from None
        return engine, launch, tuple(body), model

    def shared(self) -> Iterator[dict[str, Any]]:
        """What sets refer to, or what refers to them: maps of experts, and a Service for each kind of worker."""
        for what in self.kinds:
            if (found := self._map(what)) is not None:
                yield {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": _map_name(*what), "labels": self._labels(what)},
                    "data": {MAP_FILE: map_text(found.placement)},
                }
        for what, row in self.kinds.items():
            chosen = self._chosen(what) | (LEADS if row.nodes > 1 else {})
            yield service(self.service_names[what], chosen, self._labels(what))

    def workers(self, one: WorkerSet, replicas: int) -> dict[str, Any]:
        """The object of a set with so many workers."""
        what = one.service, one.worker
        engine, launch, body, model = self.launched[what]
        if launch.nodes == 1:
            labels = self._labels(what)
            chosen = self._chosen(what) | {"app.kubernetes.io/name": one.name}
            made = deployment(one.name, replicas, chosen, labels | chosen, pod_spec(launch, body, engine, model))
            pods = [made["spec"]["template"]]
        else:
            made = copy.deepcopy(group(one.name, launch, body, engine, model))
            made["metadata"]["labels"] = self._labels(what)
            made["spec"]["replicas"] = replicas
            template = made["spec"]["leaderWorkerTemplate"]
            pods = [template[part] for part in ("leaderTemplate", "workerTemplate")]
            for pod in pods:
                pod["metadata"]["labels"] = self._labels(what) | {"app.kubernetes.io/name": one.name}
        for pod in pods:
            self._pin(pod["spec"], one, launch)
        return made

    def _pin(self, spec: dict[str, Any], one: WorkerSet, launch: Launch) -> None:
        """Put a pod on its nodes, with the requests and tolerations of all, and the map of its experts."""
        template = self.plan.template
        spec.pop("nodeSelector", None)
        terms = []
        for key, nodes in self._by_label(one.nodes).items():
            match = [{"key": key, "operator": "In", "values": nodes}]
            found = products(device_of(launch.worker.device)) if key == NODE_LABEL else []
            match += [{"key": PRODUCT_LABEL, "operator": "In", "values": found}] if found else []
            terms.append({"matchExpressions": match})
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        spec["affinity"] = {"nodeAffinity": required}
        taint = {"key": resource(device_of(launch.worker.device)), "operator": "Exists"}
        spec["tolerations"] = [taint, *(one for one in template.tolerations if one != taint)]
        (container,) = spec["containers"]
        for name, amount in template.requests_per_gpu.items():
            # Of extended resources, the request is the limit.
            kind = "limits" if "/" in name or name.startswith("hugepages-") else "requests"
            container["resources"].setdefault(kind, {})[name] = _times(amount, launch.node_gpus)
        if (found_map := self._map((one.service, one.worker))) is not None:
            flags = map_flags(found_map.placement, f"{MAP_FOLDER}/{MAP_FILE}")
            container["args"] = [*container["args"], *(word for flag in flags.items() for word in flag)]
            mount = {"name": "experts", "mountPath": MAP_FOLDER, "readOnly": True}
            container["volumeMounts"] = [*container["volumeMounts"], mount]
            volume = {"name": "experts", "configMap": {"name": _map_name(one.service, one.worker)}}
            spec["volumes"] = [*spec["volumes"], volume]

    def _by_label(self, nodes: Iterable[str]) -> dict[str, list[str]]:
        """Values by the label that nodes are known by."""
        hosts = self.plan.template.hostnames
        found: dict[str, list[str]] = defaultdict(list)
        for node in nodes:
            known = node in hosts
            found[HOSTNAME_LABEL if known else NODE_LABEL].append(hosts[node] if known else label_value(node))
        return found

    def _map(self, what: tuple[str, str]) -> ExpertMap | None:
        """The map that the engine loads; None where there is none, or the engine loads none from a file of its own."""
        return self.maps.get(what) if self.launched[what][0].to == "sglang" else None

    def _chosen(self, what: tuple[str, str]) -> dict[str, str]:
        """Labels that tell workers of one kind from all others."""
        return {
            DEPLOYMENT_LABEL: label_value(self.document.instance.name),
            "gpuplan/service": label_value(what[0]),
            "gpuplan/worker": label_value(what[1]),
        }

    def _labels(self, what: tuple[str, str]) -> dict[str, str]:
        return self._chosen(what) | {"gpuplan/role": self.kinds[what].role}

    def nodes_to_label(self, nodes: Iterable[str]) -> Mapping[str, str]:
        """Of these nodes those that the label gpuplan/node has to tell, and what each of them is."""
        found = {}
        rows = {name: row for row in self.plan.nodes for name in row.names}
        change = self.plan.change
        lent = {} if change is None else {pod.node: self.kinds[pod.service, pod.worker] for pod in change.pods
                                          if pod.node in change.lent_nodes}  # fmt: skip
        for node in nodes:
            if node in self.plan.template.hostnames:
                continue
            if node in rows:
                row = rows[node]
                what = f"of {row.offer}" if row.offer is not None else f"{row.node}, which stands"
                found[node] = f"{what}: {row.gpus} x {row.device}"
            else:
                found[node] = f"for the time of the change: {lent[node].num_gpus} x {lent[node].device}"
        return found

    def told(self) -> Iterator[str]:
        """What a reader of the manifests has to know: weights, shares of the requests, maps of experts."""
        for service_name in dict.fromkeys(row.service for row in self.plan.workers):
            mine = [what for what in self.kinds if what[0] == service_name]
            engine, _, _, model = self.launched[mine[0]]
            yield f"{service_name}: {engine.title}; {weights_told(model)}"
            if any(self.kinds[what].role != "both" for what in mine):
                yield from engine.pairs
            shares: dict[tuple[int, int, str, str], float] = defaultdict(float)
            for one in self.plan.assignment:
                if one.service == service_name:
                    shares[one.input_tokens, one.output_tokens, one.role, one.worker] += one.fraction
            for (size_in, size_out, role, worker), share in shares.items():
                to = self.service_names[service_name, worker]
                does = "" if role == "both" else f", {role}"
                yield f"  requests of {size_in}/{size_out} tokens{does}: {share:.1%} to {to}"
        for service_name, worker in self.maps:
            if self._map((service_name, worker)) is None:
                engine = self.launched[service_name, worker][0]
                yield f"{service_name}: {engine.title} is not given the map of the experts of {worker} here"


def _service_name(service_name: str, worker: str) -> str:
    whole = f"{service_name}-{worker}"
    name = label(whole, len(whole) + 2)
    return name if len(name) <= MOST_NAME else f"{label(whole, MOST_NAME - 7)}-{digest(service_name, worker)}"


def _map_name(service_name: str, worker: str) -> str:
    return f"{label(service_name, 30)}-experts-{digest(service_name, worker)}"


def _times(amount: str | int | float, number: int) -> str:
    """So many times a quantity. It was read by then, so it is one."""
    found = QUANTITY.fullmatch(str(amount))
    if found is None:
        raise ExportError(f"{amount!r} is no plain quantity such as 500m, 8 or 100Gi")
    return f"{(Decimal(found[1]) * number).normalize():f}{found[2]}"
