"""From a `pods` instance to the arrays of the problem, with every mistake located."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from formulations.pod_packing.contradictions import contradiction
from formulations.pod_packing.leave import with_leave
from formulations.pod_packing.numa.reading import numa_of
from formulations.pod_packing.offers import offers
from formulations.pod_packing.problem import BoolArray, Near, PodsProblem, Spread
from formulations.reading import Reading
from planner.descriptions.pods import PodsInstance
from planner.files import SourceText, canonical_json
from planner.kubernetes.reading import Notes, Value
from planner.kubernetes.rules import NearRule, PodSelector, SpreadRule
from planner.kubernetes.snapshot import PODS, WHOLE_MILLI, Gang, Node, Pod, Snapshot
from planner.readers.kube_pod import HOST_PORT
from planner.readers.kubernetes import read_snapshot
from planner.readers.openb import is_openb, read_openb_nodes, read_openb_pods
from planner.readers.pod_classes import expand_nodes, expand_pods, inline_gangs, read_kind
from planner.workload import FloatArray, IntArray

#: Most entries of the table of classes and nodes: 400 MB.
MAX_TABLE = 400_000_000


def read_problem(instance: PodsInstance, source: SourceText | None = None) -> PodsProblem:
    """Read the files that the instance names and build the arrays. Raises DescriptionError with all problems found."""
    reading = Reading(source)
    if instance.moves.allowed and instance.objective == "consolidate":
        reading.find(("moves", "allowed"), "with the objective consolidate running pods stay where they are")
    reading.stop_if_wrong()
    snapshot = _snapshot(instance, reading)
    return problem_of(snapshot, instance, reading)


def _snapshot(instance: PodsInstance, reading: Reading) -> Snapshot:
    notes = Notes()
    place = "instance" if reading.source is None else reading.source.path
    paths = [one for one in (instance.nodes, instance.pods) if isinstance(one, str) and not is_openb(one)]
    files = [one if one == "-" else reading.path(one) for one in dict.fromkeys([*paths, *instance.objects])]
    found = read_snapshot(files)
    nodes, pods, gangs, digest = found.nodes, found.pods, found.gangs, [found.digest]
    for written, is_nodes in ((instance.nodes, True), (instance.pods, False)):
        if isinstance(written, str) and is_openb(written):
            path = reading.path(written)
            if is_nodes:
                nodes += read_openb_nodes(path)
            else:
                pods += read_openb_pods(path)
            digest.append(hashlib.sha256(path.read_bytes()).hexdigest())
    if not isinstance(instance.nodes, str):
        nodes += tuple(expand_nodes(instance.nodes, place, notes))
    if not isinstance(instance.pods, str):
        inline = tuple(expand_pods(instance.pods, place, notes))
        pods, gangs = pods + inline, gangs + inline_gangs(inline)
    notes.refuse()
    if not nodes:
        reading.find(("nodes",), "there is no node")
    return replace(
        found, nodes=nodes, pods=pods, gangs=gangs, digest=" ".join(digest),
        not_modelled=tuple(dict.fromkeys((*found.not_modelled, *notes.not_modelled))),
    )  # fmt: skip


def problem_of(snapshot: Snapshot, instance: PodsInstance, reading: Reading | None = None) -> PodsProblem:
    """The arrays of a snapshot; `instance` gives its name, objective and limits."""
    return _Arrays(snapshot, instance, reading or Reading(None)).problem()


class _Arrays:
    """Builds the arrays; mistakes go to `reading`."""

    def __init__(self, snapshot: Snapshot, instance: PodsInstance, reading: Reading) -> None:
        self.nodes, self.pods, self.snapshot = snapshot.nodes, snapshot.pods, snapshot
        self.instance, self.reading = instance, reading
        #: Nodes that are there, then those that could be added.
        self.all_nodes = (*snapshot.nodes, *self._offered())
        self.assumptions: list[str] = [f"not modelled: {one}" for one in snapshot.not_modelled]

    def problem(self) -> PodsProblem:
        node_index = self._names()
        self.reading.stop_if_wrong()
        pod_class, classes = self._classes()
        if len(classes) * len(self.nodes) > MAX_TABLE:
            self.reading.find(("pods",), f"{len(classes)} classes of pods on {len(self.nodes)} nodes are too many")
        self.reading.stop_if_wrong()
        resources = sorted(
            {name for node in self.all_nodes for name in _amounts(node)}
            | {name for pod in classes for name in _amounts(pod)}
        )
        capacity = self._capacity(resources)
        request = np.array([[pod.requests.get(name, 0) for name in resources] for pod in classes], dtype=np.int64)
        request = request.reshape(len(classes), len(resources))
        allowed = self._allowed(classes)
        domain, topologies = self._domains(classes)
        num = len(self.nodes)
        of_offers = capacity[num:], allowed[:, num:], domain[:, num:]
        capacity, allowed, domain = capacity[:num], allowed[:, :num], domain[:, :num]
        pod_node = np.array([-1 if pod.node is None else node_index[pod.node] for pod in self.pods], dtype=np.int64)
        self._overfull(capacity, request, resources, pod_class, pod_node)
        devices = self._devices(pod_node)
        contradictions = tuple(map(contradiction, classes))
        pairs = zip(classes, contradictions, strict=True)
        self.assumptions += [f"{pod.name} can run nowhere: {pair}" for pod, pair in pairs if pair]
        self.reading.stop_if_wrong()
        near, spread = self._rules(classes, allowed, topologies)
        gang, names, least = self._gangs(classes)
        cost, unit = self._costs()
        if self.instance.objective == "allocation" and not any(node.gpus for node in self.nodes):
            self.reading.find(("objective",), "no node has a GPU to allocate")
            self.reading.stop_if_wrong()
        problem = PodsProblem(
            name=self.instance.name,
            sha256=self._sha256(),
            objective=self.instance.objective,
            resources=tuple(resources),
            node_names=tuple(node.name for node in self.nodes),
            capacity=capacity,
            gpus=np.array([node.gpus for node in self.nodes], dtype=np.int64),
            gpu_models=tuple(node.gpu_model for node in self.nodes),
            node_cost=cost,
            cost_unit=unit,
            request=request,
            class_gpus=np.array([pod.gpus for pod in classes], dtype=np.int64),
            class_milli=np.array([pod.gpu_milli for pod in classes], dtype=np.int64),
            priority=np.array([pod.priority for pod in classes], dtype=np.int64),
            allowed=allowed,
            barriers=tuple(_barrier(pod) for pod in classes),
            pod_names=tuple(pod.name for pod in self.pods),
            pod_class=pod_class,
            pod_node=pod_node,
            pod_devices=devices,
            pinned=np.array([pod.pinned for pod in self.pods], dtype=np.bool_),
            waiting=tuple(", ".join(pod.gated) if pod.node is None else "" for pod in self.pods),
            topologies=topologies,
            domain=domain,
            near=near,
            spread=spread,
            gang=gang,
            gang_names=names,
            gang_least=least,
            time_slice_s=self.instance.time_slice_s,
            assumptions=tuple(self.assumptions),
            contradictions=contradictions,
            island=np.array([node.gpu_island or max(1, node.gpus) for node in self.nodes], dtype=np.int64),
            one_island=np.array([pod.one_island for pod in classes], dtype=np.bool_),
        )
        if self.instance.objective == "fragments":
            problem = replace(
                problem, numa=numa_of(problem, self.nodes, self.pods, classes, self.instance, self.reading)
            )
            self.reading.stop_if_wrong()
        problem = replace(problem, offers=offers(problem, self.all_nodes, self.instance.offers, *of_offers))
        return with_leave(problem, self.instance.moves, self.snapshot)

    def _offered(self) -> Iterator[Node]:
        notes = Notes()
        place = "instance" if self.reading.source is None else self.reading.source.path
        for index, one in enumerate(self.instance.offers):
            yield read_kind(one, Value(None, place, f"offers[{index}]", notes))
        notes.refuse()

    def _names(self) -> dict[str, int]:
        """Nodes by name; repeated names and pods on unknown nodes are mistakes."""
        index = {node.name: place for place, node in enumerate(self.nodes)}
        if len(index) < len(self.nodes):
            self.reading.find(("nodes",), "two nodes have the same name")
        if len({pod.name for pod in self.pods}) < len(self.pods):
            self.reading.find(("pods",), "two pods have the same name")
        lost = [pod for pod in self.pods if pod.node is not None and pod.node not in index]
        for pod in lost[:20]:
            self.reading.find(("pods",), f"{pod.name} runs on {pod.node!r}, which is no node of the files")
        if len(lost) > 20:
            self.reading.find(("pods",), f"and {len(lost) - 20} more pods on unknown nodes")
        return index

    def _classes(self) -> tuple[IntArray, list[Pod]]:
        """Class of each pod, and one pod of each: equal in all that a plan depends on."""
        selectors = list(dict.fromkeys(rule.pods for pod in self.pods for rule in _pod_rules(pod)))
        matched: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[bool, ...]] = {}
        index: dict[tuple[object, ...], int] = {}
        classes: list[Pod] = []
        found = np.zeros(len(self.pods), dtype=np.int64)
        for place, pod in enumerate(self.pods):
            seen: tuple[bool, ...] = ()
            if selectors:
                key = pod.namespace, tuple(sorted(pod.labels.items()))
                if key not in matched:
                    matched[key] = tuple(one.matches(pod.namespace, pod.labels) for one in selectors)
                seen = matched[key]
            # Where a pod runs, nothing but its size and its labels matters to others.
            free = pod.node is None
            signature = (
                tuple(sorted(pod.requests.items())), pod.gpus, pod.gpu_milli, pod.gpu_resource, pod.gpu_models,
                pod.priority, pod.node_rule, pod.tolerations, pod.near, pod.spread, pod.gang, seen, free, pod.numa,
                pod.one_island,
            )  # fmt: skip
            if signature not in index:
                index[signature] = len(classes)
                classes.append(pod)
            found[place] = index[signature]
        return found, classes

    def _capacity(self, resources: list[str]) -> IntArray:
        """[N, R]; host ports are there once on each node, pod slots as many as told."""
        rows = [
            [1 if name.startswith(HOST_PORT) else node.allocatable.get(name, 0) for name in resources]
            for node in self.all_nodes
        ]
        return np.array(rows, dtype=np.int64).reshape(len(self.all_nodes), len(resources))

    def _allowed(self, classes: list[Pod]) -> BoolArray:
        """[J, N]; nodes and classes of equal rules are matched once."""
        node_keys = [
            (tuple(sorted(one.labels.items())), one.name, one.taints, one.gpu_resource, one.gpu_model, one.accepts)
            for one in self.all_nodes
        ]
        # Names and hostnames matter only where a rule asks for them.
        asked = {
            one.key
            for pod in classes
            for selector in (pod.node_rule.every, *(pod.node_rule.any_of or ()))
            for one in selector.requirements
        }
        by_name = any(selector.fields for pod in classes for selector in pod.node_rule.any_of or ())
        kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for place, (labels, name, *rest) in enumerate(node_keys):
            kinds[tuple(item for item in labels if item[0] in asked), name if by_name else "", *rest].append(place)
        found = np.zeros((len(classes), len(self.all_nodes)), dtype=np.bool_)
        rows: dict[tuple[object, ...], BoolArray] = {}
        for j, pod in enumerate(classes):
            key = pod.node_rule, pod.tolerations, pod.gpu_models, pod.gpus > 0, pod.gpu_resource
            if key not in rows:
                row = np.zeros(len(self.all_nodes), dtype=np.bool_)
                for places in kinds.values():
                    row[places] = _may_run(pod, self.all_nodes[places[0]])
                rows[key] = row
            found[j] = rows[key]
        return found

    def _domains(self, classes: list[Pod]) -> tuple[IntArray, tuple[str, ...]]:
        keys = tuple(dict.fromkeys(rule.topology_key for pod in classes for rule in _pod_rules(pod)))
        domain = np.full((len(keys), len(self.all_nodes)), -1, dtype=np.int64)
        for t, key in enumerate(keys):
            values: dict[str, int] = {}
            for n, node in enumerate(self.all_nodes):
                if key in node.labels:
                    domain[t, n] = values.setdefault(node.labels[key], len(values))
        return domain, keys

    def _rules(
        self, classes: list[Pod], allowed: BoolArray, topologies: tuple[str, ...]
    ) -> tuple[tuple[Near, ...], tuple[Spread, ...]]:
        matched: dict[PodSelector, BoolArray] = {}

        def matches(selector: PodSelector) -> BoolArray:
            if selector not in matched:
                matched[selector] = np.array([selector.matches(one.namespace, one.labels) for one in classes])
            return matched[selector]

        near = [
            Near(
                owner=j, topology=topologies.index(rule.topology_key), matches=matches(rule.pods),
                together=rule.together, text=str(rule),
            )
            for j, pod in enumerate(classes)
            for rule in pod.near
        ]  # fmt: skip
        spread = [
            Spread(
                owner=j, topology=topologies.index(rule.topology_key), matches=matches(rule.pods),
                max_skew=rule.max_skew, min_domains=rule.min_domains,
                counted=allowed[j] | rule.count_all_nodes, text=str(rule),
            )
            for j, pod in enumerate(classes)
            if pod.node is None
            for rule in pod.spread
        ]  # fmt: skip
        return tuple(near), tuple(spread)

    def _gangs(self, classes: list[Pod]) -> tuple[IntArray, tuple[str, ...], IntArray]:
        """A gang that no PodGroup describes has no least size, and is told."""
        least: dict[str, int] = {}
        for one in self.snapshot.gangs:
            if isinstance(one, Gang):
                least[one.name] = max(least.get(one.name, 0), one.least)
        names = tuple(dict.fromkeys(pod.gang for pod in classes if pod.gang in least and pod.gang is not None))
        unknown = {pod.gang for pod in classes if pod.gang is not None} - set(names)
        if unknown:
            self.assumptions.append(f"not modelled: {len(unknown)} pod groups that were not given")
        gang = np.array([names.index(pod.gang) if pod.gang in names else -1 for pod in classes], dtype=np.int64)
        return gang, names, np.array([least[name] for name in names], dtype=np.int64)

    def _overfull(
        self, capacity: IntArray, request: IntArray, resources: list[str], pod_class: IntArray, pod_node: IntArray
    ) -> None:
        # Sums as floats: a hostile file must not wrap around.
        used = np.zeros(capacity.shape)
        there = pod_node >= 0
        np.add.at(used, pod_node[there], request[pod_class[there]])
        over = np.argwhere(used > capacity)
        for n, r in over[:20].tolist():
            self.reading.find(
                ("nodes",),
                f"{self.nodes[n].name} runs pods that ask for {used[n, r]:.0f} of {resources[r]},"
                f" it has {capacity[n, r]}",
            )
        if len(over) > 20:
            self.reading.find(("nodes",), f"and {len(over) - 20} more amounts above what nodes have")

    def _devices(self, pod_node: IntArray) -> tuple[tuple[int, ...], ...]:
        """Devices of running pods: as told, the others onto the fullest device that has room, largest first."""
        free = [[WHOLE_MILLI] * node.gpus for node in self.nodes]
        found: list[tuple[int, ...]] = [()] * len(self.pods)
        guessed = 0
        there = [place for place in np.flatnonzero(pod_node >= 0).tolist() if self.pods[place].gpus]
        for place in sorted(there, key=lambda p: (self.pods[p].gpu_indices is None, -self.pods[p].gpu_milli, p)):
            pod, left = self.pods[place], free[pod_node[place]]
            if pod.gpu_indices is not None:
                chosen = [d for d in pod.gpu_indices if d < len(left) and left[d] >= pod.gpu_milli]
            else:
                fitting = [d for d, milli in enumerate(left) if milli >= pod.gpu_milli]
                chosen = sorted(fitting, key=lambda d: (left[d], d))[: pod.gpus]
                guessed += pod.gpu_milli < WHOLE_MILLI
            if len(chosen) < pod.gpus:
                self.reading.find(("nodes",), f"{pod.node} has no room on its GPUs for {pod.name}, which runs there")
                continue
            for d in chosen:
                left[d] -= pod.gpu_milli
            found[place] = tuple(chosen)
        if guessed:
            self.assumptions.append(f"{guessed} running pods share GPUs that nobody names: packed tightly")
        return tuple(found)

    def _costs(self) -> tuple[FloatArray, str]:
        gpus = np.array([node.gpus for node in self.nodes], dtype=np.float64)
        powered = self.instance.powered or ("gpus" if gpus.any() else "nodes")
        if powered == "price":
            return np.array([node.price_usd_per_hour for node in self.nodes], dtype=np.float64), "USD/hour"
        return (gpus, "GPUs") if powered == "gpus" else (np.ones(len(self.nodes)), "nodes")

    def _sha256(self) -> str:
        described = canonical_json(self.instance.model_dump(mode="json", exclude_defaults=True))
        return hashlib.sha256(f"{described} {self.snapshot.digest}".encode()).hexdigest()


def _amounts(one: Node | Pod) -> dict[str, int]:
    amounts = one.allocatable if isinstance(one, Node) else one.requests
    return {PODS: 0, **{name: amount for name, amount in amounts.items() if amount}}


def _pod_rules(pod: Pod) -> tuple[NearRule | SpreadRule, ...]:
    return *pod.near, *pod.spread


def _may_run(pod: Pod, node: Node) -> bool:
    if not node.accepts or not pod.node_rule.matches(node.labels, node.name):
        return False
    if pod.gpus and pod.gpu_resource != node.gpu_resource:
        return False
    if pod.gpu_models and node.gpu_model not in pod.gpu_models:
        return False
    return all(any(one.tolerates(taint) for one in pod.tolerations) for taint in node.taints)


def _barrier(pod: Pod) -> str:
    """What keeps a pod from nodes, in words."""
    parts = []
    if pod.node_rule.every.requirements:
        parts.append(f"node selector {pod.node_rule.every}")
    if pod.node_rule.any_of is not None:
        parts.append(f"node affinity {' or '.join(map(str, pod.node_rule.any_of)) or 'without a term'}")
    if pod.gpu_models:
        parts.append(f"GPU model {' or '.join(pod.gpu_models)}")
    return ", ".join(parts)
