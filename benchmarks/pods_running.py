"""Running clusters for `benchmarks.pods`: openb placed online by FGD, 15 % departed, and pods worth 25 % pending."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.common import Row, data_folder
from formulations.base import solve
from formulations.outcome import SolveOptions
from formulations.pod_packing.baseline import fgd, kube_default
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.headroom import headroom
from formulations.pod_packing.objective import price
from formulations.pod_packing.ordering import ordered
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import problem_of
from planner.descriptions.pods import PodsInstance
from planner.kubernetes.rules import HOSTNAME
from planner.kubernetes.snapshot import CPU, MEMORY, PODS, Node, Pod, Snapshot
from planner.pods_plan import PodsPlan
from planner.readers.openb import read_openb_nodes, read_openb_pods

DEPARTED, ONLINE, PENDING = 0.15, 1.1, 0.25
ASKED = "default/asked"


def running(num_nodes: int, moves: int | None, seed: int = 0, more: tuple[Pod, ...] = ()) -> PodsProblem:
    """The cluster with so many moves allowed; more nodes than the trace has are drawn with replacement."""
    folder = data_folder("pods") / "openb"
    trace_nodes = read_openb_nodes(folder / "openb_node_list_gpu_node.csv")
    trace_pods = read_openb_pods(folder / "openb_pod_list_default.csv")
    rng = random.Random(seed)
    nodes = (
        tuple(rng.sample(trace_nodes, num_nodes))
        if num_nodes <= len(trace_nodes)
        else tuple(_renamed(node, f"n{i}") for i, node in enumerate(rng.choices(trace_nodes, k=num_nodes)))
    )
    milli = 1000 * sum(node.gpus for node in nodes)

    def drawn(share: float, prefix: str) -> list[Pod]:
        found: list[Pod] = []
        asked = 0
        while asked < share * milli:
            pod = rng.choice(trace_pods)
            found.append(replace(pod, name=f"default/{prefix}{len(found)}"))
            asked += pod.gpus * pod.gpu_milli
        return found

    online = drawn(ONLINE, "r")
    plan = fgd(_problem(nodes, online, None))
    by_name = {pod.name: pod for pod in online}
    kept = [
        replace(by_name[one.pod], node=one.node, gpu_indices=tuple(share.index for share in one.gpus))
        for one in plan.placements
        if rng.random() >= DEPARTED
    ]
    return _problem(nodes, [*kept, *drawn(PENDING, "p"), *more], moves)


def _renamed(node: Node, name: str) -> Node:
    return replace(node, name=name, labels={**node.labels, HOSTNAME: name})


def _problem(nodes: tuple[Node, ...], pods: list[Pod], moves: int | None) -> PodsProblem:
    described = {"name": "running", "nodes": "nodes.csv", "pods": "pods.csv", "objective": "allocation"}
    if moves is not None:
        described |= {"moves": {"allowed": True, "max": moves}}
    return problem_of(Snapshot(nodes=nodes, pods=tuple(pods)), PodsInstance.model_validate(described))


def _moves(num_nodes: int, share: float, seconds: float, asked: float) -> Iterator[Row]:
    count = round(share * float(running(num_nodes, None).running.sum()))
    problem = running(num_nodes, count)
    started = time.process_time()
    outcome = solve(POD_PACKING, problem, SolveOptions(time_limit_s=seconds, method="repair"))
    cpu_s = time.process_time() - started
    assert outcome.plan is not None
    (tier,) = outcome.plan.tiers
    assert tier.bound is not None
    here = float(problem.milli @ problem.running) / 1000
    gpus = float(problem.gpus.sum()) / 100
    case = f"running, {num_nodes} nodes, {count} moves"
    rule = 100 * gpus * price(problem, kube_default(problem)).terms["gpu_allocated_fraction"]
    placed = (tier.value - here) / gpus
    yield Row(case, "pending placed", placed, (rule - here) / gpus, "kube-default, no moves", "%", "higher")
    yield Row(case, "pending placed", placed, (tier.bound - here) / gpus, "our bound", "%", "higher")
    yield Row(
        case, "below the bound", 100 * (tier.bound - tier.value) / (tier.bound - here), asked, "asked", "%", "lower"
    )
    yield Row(case, "CPU", cpu_s, seconds, "asked", "s", "lower")
    plan = outcome.plan
    yield Row(case, "moves", float(len({move.pod for move in plan.moves})), float(count), "allowed", "pods", "lower")
    breaks = sum(move.way != "direct" for move in plan.moves)
    yield Row(case, "circles broken", float(breaks), 0.0, "none", "", "lower")
    yield Row(case, "CPU of ordering", _ordering_s(problem, plan), 1.0, "asked", "s", "lower")


def _ordering_s(problem: PodsProblem, plan: PodsPlan) -> float:
    nodes = {name: node for node, name in enumerate(problem.node_names)}
    pods = {name: pod for pod, name in enumerate(problem.pod_names)}
    moved = {move.pod for move in plan.moves}
    targets = {
        pods[one.pod]: (nodes[one.node], tuple(share.index for share in one.gpus))
        for one in plan.placements
        if one.pod in moved
    }
    started = time.process_time()
    ordered(problem, targets)
    return time.process_time() - started


def moves(short: bool) -> Iterator[Row]:
    """Moves of 0, 1 and 5 % of the running pods."""
    if short:
        yield from _moves(100, 0.0, 10.0, 1.2)
        yield from _moves(100, 0.05, 10.0, 0.1)
        return
    for share, asked in ((0.0, 1.2), (0.01, 0.5), (0.05, 0.1)):
        yield from _moves(1213, share, 30.0, asked)
    yield from _moves(5000, 0.01, 120.0, 0.6)


def rooms(short: bool) -> Iterator[Row]:
    """How many more pods of 8 GPUs and 64 cores fit, now and after moves."""
    num_nodes = 100 if short else 1213
    asked = Pod(
        name=ASKED,
        namespace="default",
        requests={CPU: 64_000, MEMORY: 256 * 2**30, PODS: 1},
        gpus=8,
        gpu_milli=1000,
    )
    problem = running(num_nodes, 10**6, more=(asked,))
    started = time.process_time()
    for room in headroom(problem, ASKED, [0, 10] if short else [0, 10, 30, 100], SolveOptions(time_limit_s=20.0)):
        case = f"headroom, {num_nodes} nodes, {room.moves} moves"
        yield Row(case, "8-GPU pods", float(room.least), float(room.most), "our bound", "pods", "higher")
        yield Row(case, "CPU", time.process_time() - started, 20.0, "asked", "s", "lower")
        started = time.process_time()
