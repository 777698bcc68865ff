"""Where the parts of a plan run, drawn on the cluster: `topology` of each kind of plan that has a place for them."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.gpu_fleet.problem import FleetProblem
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.training.mixed.problem import IntArray, MixedProblem
from formulations.parallelism.training.search.problem import TrainProblem
from planner.cluster import Cluster, Nodes
from planner.cost.expert_parallel import gpu_load
from planner.deploy_plan import DeployedPod, DeployPlan
from planner.experts_plan import ExpertPlacement
from planner.fleet_plan import FleetPlan, Period
from planner.layers_plan import LayersPlan, WindowsPlan
from planner.parallel_plan import ParallelPlan, Workers
from planner.plan import PlanDocument
from planner.reporting.page import Figure
from planner.reporting.topology import Area, Box, Cell, free, heat, topology, used
from planner.training_plan import TrainingPlan

#: Nodes of an expert placement that are drawn: the hottest, for every one differs.
MOST_EXPERT_NODES = 8
#: Kinds of pipelines that are drawn.
MOST_PIPELINES = 12


def placed(document: PlanDocument, problem: Any, cluster: Cluster | None) -> Iterator[Figure]:
    """The plan on its cluster; nothing for a plan without one.

    cluster : of instances that describe one, for what joins their nodes.
    """
    if document.plan is not None and document.kind_name in PLACED:
        yield from PLACED[document.kind_name](document.plan, problem, cluster)


@dataclass(slots=True)
class _Node:
    """A node while workers are put on it."""

    size: int
    cells: list[Cell] = field(default_factory=list)

    @property
    def room(self) -> int:
        return self.size - len(self.cells)


def _first_fit(nodes: Sequence[_Node], parts: Sequence[tuple[int, Cell]]) -> bool:
    """Put parts of so many devices on equal nodes, largest first, each on the fullest node that has room.

    Parts larger than a node take whole ones. False where a part finds no room, which unlike sizes can come to.
    """
    for size, cell in sorted(parts, key=lambda part: -part[0]):
        whole = -(-size // nodes[0].size) if nodes and size > nodes[0].size else 1
        fitting = sorted((node for node in nodes if node.room >= min(size, node.size)), key=lambda node: node.room)
        if len(fitting) < whole:
            return False
        cells = [*[cell] * size, *[free()] * (whole * nodes[0].size - size if whole > 1 else 0)]
        for place, node in enumerate(fitting[:whole]):
            node.cells += cells[place * node.size : (place + 1) * node.size] if whole > 1 else cells
    return True


def _islands(cells: Sequence[Cell], size: int) -> tuple[tuple[Cell, ...], ...]:
    """Devices of a node in islands of `size`, the free ones at the end."""
    return tuple(tuple(cells[start : start + size]) for start in range(0, len(cells), size))


def _letters(place: int) -> str:
    """A, B, .. Z, AA, .."""
    first, last = divmod(place, 26)
    return (string.ascii_uppercase[first - 1] if first else "") + string.ascii_uppercase[last]


def _areas(cluster: Cluster, boxes: Sequence[Box]) -> list[Area]:
    """The nodes, in the cluster's order, by scale-up domain where that spans nodes, else by leaf, else by kind."""
    groups: dict[str, list[Box]] = defaultdict(list)
    network, node = cluster.fabric, 0
    for number, kind in enumerate(cluster.resolved()):
        per_domain = kind.domain_gpus // kind.gpus_per_node
        for index in range(kind.count):
            if per_domain > 1:
                name = f"{kind.device.name}: domain {index // per_domain}, {kind.domain_gpus} GPUs"
            elif network is not None and network.nodes_per_leaf is not None:
                name = f"leaf {node // network.nodes_per_leaf}"
            else:
                name = f"{kind.device.name}" + ("" if len(cluster.nodes) == 1 else f", group {number}")
            groups[name].append(boxes[node])
            node += 1
    return [Area(name, tuple(found)) for name, found in groups.items()]


def _joined(cluster: Cluster) -> str:
    """What joins the nodes, in words."""
    network, link = cluster.fabric, cluster.network_link()
    if network is None or link is None:
        return "one node"
    how = {
        "flat": "one network that blocks nothing",
        "rail_only": "rails only: GPUs of equal place share a switch",
        "leaf_spine": f"leaves of {network.nodes_per_leaf} nodes under a spine, {network.oversubscription:g} to 1",
    }
    return f"{link.name}, {how[network.topology]}"


def _parallel(plan: ParallelPlan, problem: ParallelProblem, cluster: Cluster | None) -> Iterator[Figure]:
    if cluster is None:
        return
    kinds = cluster.resolved()
    letter = {one.name: place for place, one in enumerate(plan.workers)}
    boxes: list[Box] = []
    for kind in kinds:
        nodes = [_Node(kind.gpus_per_node) for _ in range(kind.count)]
        mine = [one for one in plan.workers if one.device == kind.device.name]
        if not _first_fit(nodes, [part for one in mine for part in _parts(one, letter[one.name])]):
            return
        boxes += [_node_box(place, node, kind) for place, node in enumerate(nodes)]
    legend = [(used(letter[one.name], _letters(letter[one.name]), one.name), _worker(one)) for one in plan.workers]
    hour = " in the hour that asks for most" if plan.periods else ""
    caption = (
        f"One way to put the workers{hour} on the cluster ({_joined(cluster)}); frames are GPUs that NVLink or its like"
        " joins, grey GPUs are free."
    )
    yield Figure(topology(_areas(cluster, boxes), legend), caption)


def _parts(one: Workers, place: int) -> list[tuple[int, Cell]]:
    return [(one.num_gpus, used(place, _letters(place), one.name))] * one.count


def _worker(one: Workers) -> str:
    sizes = {
        "TP": one.tensor_parallel_size, "PP": one.pipeline_parallel_size, "DP": one.data_parallel_size,
        "EP": one.expert_parallel_size, "CP": one.context_parallel_size,
    }  # fmt: skip
    told = " ".join(f"{name}{size}" for name, size in sizes.items() if size > 1)
    does = "serves whole requests" if one.role == "both" else one.role
    return f"{one.count} x {one.name}: {does}, {one.num_gpus} GPUs each{', ' + told if told else ''}"


def _node_box(place: int, node: _Node, kind: Nodes) -> Box:
    cells = [*node.cells, *[free()] * node.room]
    return Box(f"node {place}", _islands(cells, min(kind.domain_gpus, kind.gpus_per_node)), kind.device.name)


def _training(plan: TrainingPlan, problem: TrainProblem | MixedProblem, cluster: Cluster | None) -> Iterator[Figure]:
    if cluster is None:
        return
    stage_of = np.full(problem.num_gpus, -1)
    for place, stage in enumerate(plan.stages):
        stage_of[stage.first_gpu : stage.first_gpu + stage.num_gpus] = place
    kinds = cluster.resolved()
    if isinstance(problem, MixedProblem):
        areas = _blocks(problem, kinds, stage_of)
    else:
        by_node = stage_of.reshape(-1, problem.gpus_per_node)
        if plan.rank_map is not None:
            by_node = np.full_like(by_node, -1)
            for group in plan.rank_map.nodes:
                for place, node in enumerate(group):
                    by_node[node] = place
        areas = _areas(cluster, _stage_boxes(by_node, kinds[0], 0))
    legend = [(_stage_cell(place), _stage(plan, place)) for place in range(len(plan.stages))]
    many = len(legend) > 2 * MOST_PIPELINES
    split = f"tensor {plan.tensor_parallel_size}, context {plan.context_parallel_size}, data {plan.data_parallel_size}"
    split = split if plan.layout in (None, "one_kind") else "its own sizes"
    mapped = "" if plan.rank_map is None else " Nodes are in the order that their measured links asked for."
    caption = (
        f"Pipeline stages on the cluster ({_joined(cluster)}). A stage's GPUs are split by {split}, tensor ranks being"
        f" neighbours.{mapped} Grey GPUs are idle."
    )
    yield Figure(topology(areas, () if many else legend), caption)


def _blocks(problem: MixedProblem, kinds: Sequence[Nodes], stage_of: IntArray) -> list[Area]:
    """Equal nodes of one kind and site are an area; their GPUs are numbered together."""
    areas, node = [], 0
    for number, block in enumerate(problem.blocks):
        kind = next(
            one for one in kinds if (one.device.name, one.gpus_per_node) == (block.device.name, block.gpus_per_node)
        )
        first = problem.first_gpu(number)
        by_node = stage_of[first : first + block.num_gpus].reshape(-1, block.gpus_per_node)
        areas.append(Area(problem.told(number), tuple(_stage_boxes(by_node, kind, node))))
        node += len(by_node)
    return areas


def _stage_boxes(by_node: IntArray, kind: Nodes, first: int) -> list[Box]:
    """A box of each node from its GPUs' stages [nodes, GPUs]; nodes are numbered from `first`."""
    island = min(kind.domain_gpus, kind.gpus_per_node)
    return [
        Box(f"node {first + node}", _islands([_stage_cell(place) for place in row], island))
        for node, row in enumerate(by_node.tolist())
    ]


def _stage_cell(place: int) -> Cell:
    return free() if place < 0 else used(place, str(place), f"stage {place}")


def _stage(plan: TrainingPlan, place: int) -> str:
    stage = plan.stages[place]
    beside = [name for name, held in (("embedding", stage.embedding), ("head", stage.head)) if held]
    holds = f"stage {place}: {' and '.join([f'{stage.num_layers} layers', *beside])}"
    if plan.layout in (None, "one_kind"):
        return holds
    sizes = {
        "TP": stage.tensor_parallel_size, "CP": stage.context_parallel_size, "EP": stage.expert_parallel_size,
        "DP": stage.data_parallel_size,
    }  # fmt: skip
    told = " ".join(f"{name}{size}" for name, size in sizes.items() if size is not None and size > 1)
    return f"{holds} on {stage.num_gpus} {stage.device}{', ' + told if told else ''}"


def _layers(plan: LayersPlan, problem: Any, cluster: Cluster | None) -> Iterator[Figure]:
    sites: dict[str, list[Box]] = defaultdict(list)
    for place, pipeline in enumerate(plan.pipelines[:MOST_PIPELINES]):
        for stage in pipeline.stages:
            cell = used(place, _letters(place), f"pipeline {_letters(place)}")
            note = f"layers {stage.first_layer}-{stage.first_layer + stage.num_layers - 1}"
            sites[stage.site or ""].append(Box(stage.device, ((cell,),), note, pipeline.count))
    for idle in plan.idle:
        sites[idle.site or ""].append(Box(idle.device, ((free(),),), "idle", idle.count))
    legend = [
        (used(place, _letters(place), ""), f"{one.count} x pipeline of {one.steps_per_s:.4g} steps/s each")
        for place, one in enumerate(plan.pipelines[:MOST_PIPELINES])
    ]
    more = "" if len(plan.pipelines) <= MOST_PIPELINES else f" The first {MOST_PIPELINES} kinds of pipelines are drawn."
    areas = [Area(site, tuple(boxes)) for site, boxes in sites.items()]
    yield Figure(topology(areas, legend), f"Which layers lie on which devices, site by site.{more}")


def _windows(plan: WindowsPlan, problem: Any, cluster: Cluster | None) -> Iterator[Figure]:
    boxes, first = [], 0
    for place, one in enumerate(plan.windows):
        cell = used(place, str(one.num_layers), f"{one.num_layers} layers, {one.gpu_layers} of them on its GPU")
        note = f"layers {first}-{first + one.num_layers - 1}, {one.gpu_layers} on GPU"
        boxes.append(Box(f"{place + 1}. {one.device}", ((cell,),), note))
        first += one.num_layers
    again = "" if plan.rounds == 1 else f" A token goes round {plan.rounds} times; layers of the first round are told."
    yield Figure(topology([Area("", tuple(boxes))]), f"The ring of devices in order, with the layers of each.{again}")


def _fleet(plan: FleetPlan, problem: FleetProblem, cluster: Cluster | None) -> Iterator[Figure]:
    busiest = max(plan.periods, key=lambda period: period.cost_usd_per_hour)
    models = list(dict.fromkeys(_model(row.model, row.role) for row in busiest.replicas))
    places: dict[str, list[Box]] = defaultdict(list)
    for offer, count in _counts(busiest).items():
        what = plan.offers.get(offer)
        if what is None:
            return
        nodes = [_Node(what.gpus) for _ in range(count)]
        parts = [
            (row.gpus, used(models.index(_model(row.model, row.role)), "", row.worker or _model(row.model, row.role)))
            for row in busiest.replicas
            if row.offer == offer
            for _ in range(row.count)
        ]
        if not _first_fit(nodes, parts):
            return
        where = ", ".join(str(one) for one in (what.zone or what.region,) if one is not None)
        note = f"{what.device}{'' if what.market == 'on_demand' else ', ' + what.market}"
        places[where] += [Box(offer, ((*node.cells, *[free()] * node.room),), note) for node in nodes]
    legend = [(used(place, "", name), name) for place, name in enumerate(models)]
    areas = [Area(where, tuple(boxes)) for where, boxes in places.items()]
    hours = len([hour for period in plan.periods for hour in period.hours])
    when = "" if hours <= 1 else " in the most expensive hour"
    caption = f"Instances and the replicas on their GPUs{when}; grey GPUs are free."
    if areas:
        yield Figure(topology(areas, legend), caption)


def _counts(period: Period) -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for row in period.allocation:
        found[row.offer] += row.count
    return {offer: count for offer, count in found.items() if count}


def _model(name: str, role: str) -> str:
    return name if role == "both" else f"{name}, {role}"


def _experts(plan: ExpertPlacement, problem: ExpertPlacementProblem, cluster: Cluster | None) -> Iterator[Figure]:
    rows = plan.array
    load = gpu_load(problem.load, rows, problem.speed, problem.split) / problem.speed
    hot = load / np.maximum(load.mean(axis=2, keepdims=True), np.finfo(float).tiny)
    scenario, layer, _ = (int(place) for place in np.unravel_index(int(hot.argmax()), hot.shape))
    share = problem.load[scenario, layer] / np.maximum(np.bincount(rows[layer], minlength=plan.num_experts), 1)
    top = float(share[rows[layer]].max()) or 1.0
    slots = plan.num_slots // plan.num_gpus
    copies = plan.replicas[layer]

    def cell(expert: int) -> Cell:
        several = "" if copies[expert] == 1 else f", one of {copies[expert]} replicas"
        return Cell(str(expert), heat(float(share[expert]) / top), f"expert {expert}{several}")

    hottest = hot[scenario, layer].reshape(-1, plan.gpus_per_node)
    shown = np.argsort(-hottest.max(axis=1), kind="stable")[:MOST_EXPERT_NODES].tolist()
    areas = []
    for node in sorted(shown):
        boxes = []
        for local in range(plan.gpus_per_node):
            gpu = node * plan.gpus_per_node + local
            held = rows[layer, gpu * slots : (gpu + 1) * slots].tolist()
            note = f"{hot[scenario, layer, gpu]:.3f} of the mean load"
            boxes.append(Box(f"GPU {gpu}", (tuple(cell(expert) for expert in held),), note))
        areas.append(Area(f"node {node}", tuple(boxes)))
    nodes = plan.num_gpus // plan.gpus_per_node
    some = "" if len(shown) == nodes else f" Of {nodes} nodes those with the {len(shown)} hottest GPUs are drawn."
    split = "" if problem.split == "even" else " Shares are those of even dispatch; the LP evens them out further."
    caption = (
        f"Experts in the slots of every GPU in layer {plan.layer_ids[layer]}, which has the hottest GPU; the darker,"
        f" the more tokens a slot gets.{some}{split}"
    )
    yield Figure(topology(areas), caption)


def _deploy(plan: DeployPlan, problem: Any, cluster: Cluster | None) -> Iterator[Figure]:
    parts = [(one.service, one.worker) for one in plan.workers]
    services = list(dict.fromkeys(service for service, _ in parts))
    running: dict[str, list[DeployedPod]] = defaultdict(list)
    for pod in plan.pods:
        running[pod.node].append(pod)
    areas = []
    for row in plan.nodes:
        boxes = []
        for name in row.names:
            pods = running[name]
            size = max([row.gpus, *(1 + max(pod.gpus) for pod in pods)])
            cells = [free()] * size
            for pod in pods:
                for gpu in pod.gpus:
                    place = services.index(pod.service)
                    cells[gpu] = used(place, _letters(parts.index((pod.service, pod.worker))), pod.service)
            boxes.append(Box(name, (tuple(cells),), row.device))
        areas.append(Area(str(row.offer) if row.node is None else f"{row.node} (stands)", tuple(boxes)))
    legend = [
        (
            used(services.index(one.service), _letters(place), one.service),
            f"{one.count} x {one.service}: {one.worker}" + ("" if one.role == "both" else f", {one.role}"),
        )
        for place, one in enumerate(plan.workers)
    ]
    when = "" if len(plan.fleet.periods) == 1 else " in the most expensive hours"
    free_ones = "grey ones are free, or taken by what ran there before"
    yield Figure(topology(areas, legend), f"Which worker has which devices of which node{when}; {free_ones}.")


PLACED: Mapping[str, Callable[[Any, Any, Cluster | None], Iterator[Figure]]] = {
    "deploy": _deploy,
    "experts": _experts,
    "fleet": _fleet,
    "parallel": _parallel,
    "layers": _layers,
    "windows": _windows,
    "training": _training,
}
