"""Pods as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

import numpy as np

from formulations.kinds import Kind
from formulations.pod_packing.check import check
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.objective import price
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.reading import read_problem
from planner.cost.verdict import Metric, Verdict
from planner.descriptions.pods import PodsInstance
from planner.plan import PodsDocument
from planner.pods_plan import PodsPlan


def judge(problem: PodsProblem, plan: PodsPlan) -> Verdict:
    """Broken rules, how full the cluster is by resource, and which amount is scarcest."""
    broken = tuple(check(problem, plan))
    if any(one.rule in ("pod", "node", "devices") for one in broken):
        return Verdict(violations=broken)
    terms = price(problem, plan).terms
    names = {name: index for index, name in enumerate(problem.pod_names)}
    classes = [int(problem.pod_class[names[one.pod]]) for one in plan.placements]
    used = problem.request[classes].astype(np.float64).sum(axis=0)
    have = problem.capacity.astype(np.float64).sum(axis=0)
    full = {name: used[r] / have[r] for r, name in enumerate(problem.resources) if have[r] and name != "pods"}
    if terms["gpu_milli_total"]:
        full["gpu"] = terms["gpu_allocated_fraction"]
    metrics = [
        Metric(name=f"allocated[{name}]", value=float(share), unit="fraction", source="measured")
        for name, share in full.items()
    ]
    scarce = max(full, key=lambda name: full[name], default=None)
    return Verdict(
        metrics=tuple(metrics),
        violations=broken,
        bottleneck=None if scarce is None or not np.any(used) else f"{scarce}: {full[scarce]:.2%} is allocated",
        assumptions=problem.assumptions,
    )


def judge_alone(plan: PodsPlan) -> Verdict:
    """Nothing of a plan can be judged without its nodes and pods."""
    return Verdict(assumptions=("no instance given: amounts, devices and rules are not judged",))


KIND: Kind[PodsInstance, PodsProblem, PodsPlan] = Kind(
    name="pods",
    instance=PodsInstance,
    document=PodsDocument,
    formulation=POD_PACKING,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
