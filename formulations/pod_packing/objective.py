"""What a pods plan is worth, from its placements alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from formulations.outcome import Objective
from formulations.pod_packing.fragmentation import Fragmentation
from formulations.pod_packing.problem import Aim, Numa, PodsProblem
from planner.kubernetes.snapshot import CPU, WHOLE_MILLI
from planner.pods_plan import PodsPlan
from planner.workload import IntArray

UNIT = (
    "GPUs allocated, with a minus sign; pods not placed, lower priorities as fractions; what nodes in use count; or"
    " cores in fragments"
)


def placed(problem: PodsProblem, plan: PodsPlan) -> IntArray:
    """Placed pods of each class, running ones too, [J]."""
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    found = [int(problem.pod_class[pods[one.pod]]) for one in plan.placements]
    return np.bincount(np.array(found, dtype=np.int64), minlength=problem.num_classes).astype(np.int64)


def value(problem: PodsProblem, plan: PodsPlan, aim: Aim) -> float:
    """What the plan reaches of one aim, in its unit."""
    if aim.sense == "most":
        return float(aim.weight @ placed(problem, plan)) * aim.scale
    nodes = {name: index for index, name in enumerate(problem.node_names)}
    if problem.numa is not None:
        free = free_cores(problem, problem.numa, {one.pod: (nodes[one.node], one.numa) for one in plan.placements})
        return float((free % problem.numa.chunk).sum()) * aim.scale
    used = sorted({nodes[one.node] for one in plan.placements})
    return float(problem.node_cost[used].sum())


def total(problem: PodsProblem, values: list[float]) -> float:
    """One number for the values of all aims; smaller is better.

    Tiers of priority count pods that are not placed: the first as they are, each next one as a fraction that never adds
    up to a pod of the one before.
    """
    if problem.objective != "priority":
        return -values[0] if problem.objective == "allocation" else values[0]
    found, weight = 0.0, 1.0
    for aim, reached in zip(problem.aims, values, strict=True):
        offered = problem.offered(aim)
        found += weight * (offered - reached)
        weight /= offered + 1
    return found


def price(problem: PodsProblem, plan: PodsPlan) -> Objective:
    """The objective and what else one wants to know of a plan."""
    worth = total(problem, [value(problem, plan, aim) for aim in problem.aims])
    counts = placed(problem, plan)
    free, device = problem.capacity.copy(), np.where(
        np.arange(int(problem.gpus.max(initial=0))) < problem.gpus[:, None], WHOLE_MILLI, -1
    )  # fmt: skip
    pods = {name: index for index, name in enumerate(problem.pod_names)}
    nodes = {name: index for index, name in enumerate(problem.node_names)}
    for one in plan.placements:
        node = nodes[one.node]
        free[node] -= problem.request[problem.pod_class[pods[one.pod]]]
        for share in one.gpus:
            device[node, share.index] -= share.gpu_milli
    all_gpu = int(problem.gpus.sum()) * WHOLE_MILLI
    used = {one.node for one in plan.placements}
    measures = {
        f"placed_by_priority[{level}]": float(counts[problem.priority == level].sum())
        for level in sorted(set(problem.priority.tolist()), reverse=True)
    }
    measures |= {
        "pods_placed": float(counts.sum()),
        "pods_unplaced": float(len(plan.unplaced)),
        "gpu_milli_allocated": float(problem.milli @ counts),
        "gpu_milli_total": float(all_gpu),
        "gpu_allocated_fraction": float(problem.milli @ counts) / all_gpu if all_gpu else 0.0,
        "nodes_used": float(len(used)),
        "gpus_powered": float(problem.gpus[[nodes[name] for name in sorted(used)]].sum()),
    }
    if all_gpu:
        lost = Fragmentation(problem).of(np.arange(problem.num_nodes), free, device.astype(np.int64))
        measures["fragmentation"] = float(lost.sum()) / all_gpu
    if problem.numa is not None:
        rest = free_cores(problem, problem.numa, {one.pod: (nodes[one.node], one.numa) for one in plan.placements})
        measures["free_cores"] = float(rest.sum()) / WHOLE_MILLI
        measures["fragment_rate"] = 1000 * worth / max(1.0, float(rest.sum()))
    return Objective(total=worth, parts={}, measures=measures)


def free_cores(problem: PodsProblem, numa: Numa, places: Mapping[str, tuple[int, tuple[int, ...]]]) -> IntArray:
    """Milli-cores that are free on each NUMA node, [N, 2]; node and NUMA nodes of each placed pod by name."""
    cores = problem.resources.index(CPU)
    free = np.where(np.arange(2) < numa.count[:, None], (problem.capacity[:, cores] // numa.count)[:, None], 0)
    for pod, name in enumerate(problem.pod_names):
        if name in places:
            node, at = places[name]
            j = problem.pod_class[pod]
            free[node, list(at)] -= -(-problem.request[j, cores] // numa.width[j])
    return free.astype(np.int64)
