"""Small pods problems, and the best of all plans by trying each one."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import numpy as np

from formulations.base import solve
from formulations.outcome import Outcome, SolveOptions
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import read_problem
from planner.descriptions.pods import PodsInstance
from planner.pods_plan import PodsPlan


def problem(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], **more: Any) -> PodsProblem:
    """A problem of inline classes; a node has 8 cores and 32 GiB, a pod asks for 1 core, unless they say otherwise."""
    wide = [{"cpu": 8, "memory": "32Gi", **one} for one in nodes]
    thin = [{"cpu": 1, **one} for one in pods]
    return read_problem(PodsInstance.model_validate({"name": "case", "nodes": wide, "pods": thin, **more}))


def solved(one: PodsProblem, **options: Any) -> Outcome[PodsPlan]:
    """Solved with rounds of patterns as limit, so that tests repeat themselves."""
    return solve(POD_PACKING, one, SolveOptions(time_limit_s=60, work_limit=200, **options))


def places(plan: PodsPlan | None) -> dict[str, str]:
    """Node of each placed pod."""
    assert plan is not None
    return {one.pod: one.node for one in plan.placements}


def random_problem(seed: int, objective: str) -> PodsProblem:
    """Two kinds of nodes and a few kinds of pods, tight in cores, memory and devices."""
    rng = random.Random(seed)
    nodes = [
        {"name": "a", "count": rng.randint(1, 2), "cpu": rng.randint(3, 6), "memory": "8Gi", "gpus": 2},
        {"name": "b", "cpu": rng.randint(2, 5), "memory": f"{rng.randint(2, 9)}Gi", "gpus": rng.randint(0, 2)},
    ]
    pods = []
    for index in range(rng.randint(2, 4)):
        gpus = rng.choice([0, 1, 1, 1, 2])
        pods.append(
            {
                "name": f"p{index}",
                "count": rng.randint(1, 2),
                "cpu": f"{rng.randint(5, 25)}00m",
                "memory": f"{rng.randint(1, 5)}Gi",
                "gpus": gpus,
                "gpu_milli": rng.choice([300, 500, 700, 1000]) if gpus == 1 else 1000,
                "priority": rng.choice([0, 10]),
            }
        )
    return problem(nodes, pods, objective=objective)


def best_values(one: PodsProblem) -> tuple[float, ...] | None:
    """The lexicographically best values, with a minus sign where most is best; None where no plan is one."""
    best: list[tuple[float, ...]] = []
    free, device = one.capacity.copy(), [[1000] * int(count) for count in one.gpus]
    placed: list[tuple[int, int]] = []
    pods = np.flatnonzero(one.pending).tolist()
    must = one.objective == "consolidate"

    def value() -> tuple[float, ...]:
        counts = np.bincount([j for j, _ in placed], minlength=one.num_classes)
        used = sorted({node for _, node in placed})
        return tuple(
            -float(aim.weight @ counts) * aim.scale if aim.sense == "most" else float(one.node_cost[used].sum())
            for aim in one.aims
        )

    def visit(index: int) -> None:
        if index == len(pods):
            best[:] = [min([*best, value()])]
            return
        j = int(one.pod_class[pods[index]])
        if not must:
            visit(index + 1)
        milli = int(one.class_milli[j])
        for node in np.flatnonzero(one.allowed[j] & (free >= one.request[j]).all(axis=1)).tolist():
            for devices in combinations(range(len(device[node])), int(one.class_gpus[j])):
                if any(device[node][d] < milli for d in devices):
                    continue
                if one.bound[j] and one.island is not None and len({d // one.island[node] for d in devices}) > 1:
                    continue
                for d in devices:
                    device[node][d] -= milli
                free[node] -= one.request[j]
                placed.append((j, node))
                visit(index + 1)
                placed.pop()
                free[node] += one.request[j]
                for d in devices:
                    device[node][d] += milli

    visit(0)
    return best[0] if best else None
