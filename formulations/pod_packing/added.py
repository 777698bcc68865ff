"""Nodes to add so that pods find a place.

Pods of one class, tied to no others: a_k of them fit onto a node of offer k by plain arithmetic, so that the cheapest
n_k nodes with sum of a_k n_k >= pods are a knapsack, solved exactly. All else: `consolidate` over copies of every
offer, beside what runs. Cheapest where all offers have prices, else fewest nodes, of those the ones with fewest GPUs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.outcome import Budget, SolveOptions, Status
from formulations.pod_packing.problem import OWN_DOMAIN, BoolArray, Offer, PodsProblem
from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.pods_plan import NodesToAdd, PodsPlan, Remedy
from planner.workload import IntArray

#: Copies of all offers together beyond which nothing is told, and rounds of patterns (or parts) of the search.
MOST_COPIES, ROUNDS = 20_000, 60
#: What a GPU counts in nodes, so that of as few nodes those with fewer GPUs are taken; a cost is in millionths.
FEWER_GPUS = 1e-5


def nodes_to_add(
    problem: PodsProblem, pods: IntArray, options: SolveOptions, budget: Budget, beside: bool = False
) -> Remedy | None:
    """The cheapest or fewest nodes on which the pods run; None where none are found.

    Nodes that are there, with what runs on them, take part where rules tie the pods to others, or `beside`.
    """
    from formulations.pod_packing.cp_sat import auto

    classes = np.unique(problem.pod_class[pods])
    offers = [one for one in problem.offers if one.allowed[classes].any()]
    copies = [_copies(problem, one, pods) for one in offers]
    if not any(copies) or sum(copies) > MOST_COPIES:
        return None
    beside = beside or bool(problem.crossing[classes].any())
    priced = all(one.price_usd_per_hour is not None for one in offers)
    proven = True
    counts: IntArray | None
    if classes.size == 1 and not beside:
        counts = _of_one_class(problem, int(classes[0]), pods.size, offers, copies, priced)
    else:
        grown = _grown(problem, pods, offers, copies, priced, beside)
        limits = replace(options, work_limit=ROUNDS, time_limit_s=max(0.1, budget.remaining_s), relative_gap=None)
        result = auto(grown, limits, budget)
        proven = result.status is Status.OPTIMAL
        counts = None if result.plan is None else _used(grown, result.plan, offers, copies)
    if counts is None or not counts.any():
        return None
    added = tuple(
        NodesToAdd(
            name=one.name, count=int(count), gpus=one.gpus, gpu_model=one.gpu_model,
            price_usd_per_hour=one.price_usd_per_hour,
        )
        for one, count in zip(offers, counts.tolist(), strict=True)
        if count
    )  # fmt: skip
    price = sum(one.count * (one.price_usd_per_hour or 0.0) for one in added) if priced else None
    names = tuple(problem.pod_names[pod] for pod in pods.tolist())
    return Remedy(
        pods=names, way="nodes", proven=proven, nodes=added, price_usd_per_hour=price,
        text=_text(added, len(names), price, proven),
    )  # fmt: skip


def _copies(problem: PodsProblem, offer: Offer, pods: IntArray) -> int:
    """Nodes that do for all pods that the offer admits, each class on nodes of its own: no plan needs more."""
    total = 0
    classes, numbers = np.unique(problem.pod_class[pods], return_counts=True)
    for j, count in zip(classes.tolist(), numbers.tolist(), strict=True):
        fit = _fit(problem, offer, j, count)
        if fit:
            total += count if problem.crossing[j] else -(-count // fit)
    return total if offer.most is None else min(total, offer.most)


def _fit(problem: PodsProblem, offer: Offer, j: int, most: int) -> int:
    """Pods of class j that an empty node of the offer holds, up to `most`."""
    if not offer.allowed[j]:
        return 0
    asked, gpus, milli = problem.request[j] > 0, int(problem.class_gpus[j]), int(problem.class_milli[j])
    fit = int((offer.capacity[asked] // problem.request[j][asked]).min(initial=most))
    if gpus:
        islands = offer.gpus // offer.island * (offer.island // gpus) + offer.gpus % offer.island // gpus
        whole = islands if problem.bound[j] else offer.gpus // gpus
        fit = min(fit, offer.gpus * (WHOLE_MILLI // milli) if gpus == 1 else whole)
    return fit


def _of_one_class(
    problem: PodsProblem, j: int, pods: int, offers: list[Offer], copies: list[int], priced: bool
) -> IntArray | None:
    """Nodes of each offer, [O], for so many pods of a class: the cheapest cover, by dynamic programming."""
    cost = np.full(pods + 1, np.inf)
    cost[0] = 0.0
    bundles: list[tuple[int, int]] = []
    taken: list[BoolArray] = []
    fits = [_fit(problem, one, j, pods) for one in offers]
    index = np.arange(pods + 1)
    for o, one in enumerate(offers):
        each = one.price_usd_per_hour if priced and one.price_usd_per_hour is not None else 1.0 + FEWER_GPUS * one.gpus
        left, size = copies[o] if fits[o] else 0, 1
        while left:
            # Bundles of 1, 2, 4, ... copies make every number of them.
            size = min(size, left)
            with_it = cost[np.maximum(0, index - size * fits[o])] + size * each
            taken.append(with_it < cost)
            bundles.append((o, size))
            cost = np.minimum(cost, with_it)
            left, size = left - size, 2 * size
    if not np.isfinite(cost[pods]):
        return None
    found = np.zeros(len(offers), dtype=np.int64)
    still = pods
    for (o, size), better in zip(reversed(bundles), reversed(taken), strict=True):
        if better[still]:
            found[o] += size
            still = max(0, still - size * fits[o])
    return found


def _grown(
    problem: PodsProblem, pods: IntArray, offers: list[Offer], copies: list[int], priced: bool, beside: bool
) -> PodsProblem:
    """The problem of the pods alone, on copies of the offers, and on the nodes that are there with what runs."""
    there = np.arange(problem.num_nodes if beside else 0)
    runs = np.flatnonzero(problem.pod_node >= 0) if beside else np.zeros(0, dtype=np.int64)
    mine = np.concatenate([runs, pods])
    which = np.repeat(np.arange(len(offers)), copies)
    domain = np.stack([offers[o].domain for o in which.tolist()], axis=1)
    for t in range(len(problem.topologies)):
        own = np.flatnonzero(domain[t] == OWN_DOMAIN)
        domain[t, own] = problem.domain[t].max(initial=-1) + 1 + np.arange(own.size)
    each = [one.price_usd_per_hour if priced else 1.0 + FEWER_GPUS * one.gpus for one in offers]
    cost = np.array(each, dtype=np.float64)[which]
    return replace(
        problem,
        objective="consolidate",
        node_names=(*(problem.node_names[n] for n in there.tolist()), *(f"new-{i}" for i in range(which.size))),
        capacity=np.concatenate([problem.capacity[there], np.stack([offers[o].capacity for o in which.tolist()])]),
        gpus=np.concatenate([problem.gpus[there], np.array([offers[o].gpus for o in which.tolist()], dtype=np.int64)]),
        gpu_models=(
            *(problem.gpu_models[n] for n in there.tolist()),
            *(offers[o].gpu_model for o in which.tolist()),
        ),
        island=None
        if problem.island is None
        else np.concatenate([problem.island[there], np.array([offers[o].island for o in which.tolist()])]),
        node_cost=np.concatenate([np.zeros(there.size), cost]),
        cost_unit="USD/hour" if priced else "nodes",
        allowed=np.concatenate(
            [problem.allowed[:, there], np.stack([offers[o].allowed for o in which.tolist()], axis=1)], axis=1
        ),
        pod_names=tuple(problem.pod_names[p] for p in mine.tolist()),
        pod_class=problem.pod_class[mine],
        pod_node=np.concatenate([problem.pod_node[runs], np.full(pods.size, -1, dtype=np.int64)]),
        pod_devices=(*(problem.pod_devices[p] for p in runs.tolist()), *(() for _ in pods)),
        pinned=problem.pinned[mine],
        waiting=("",) * mine.size,
        domain=np.concatenate([problem.domain[:, there], domain], axis=1),
        spread=tuple(
            replace(
                one,
                counted=np.concatenate([one.counted[there], [bool(offers[o].allowed[one.owner]) for o in which]]),
            )
            for one in problem.spread
        ),
        leave=None,
        could_leave=None,
        offers=(),
    )


def _used(grown: PodsProblem, plan: PodsPlan, offers: list[Offer], copies: list[int]) -> IntArray:
    """Nodes of each offer in use, [O]."""
    first = grown.num_nodes - sum(copies)
    index = {name: n - first for n, name in enumerate(grown.node_names)}
    used = {index[one.node] for one in plan.placements if index[one.node] >= 0}
    which = np.repeat(np.arange(len(offers)), copies)
    found: IntArray = np.bincount(which[sorted(used)], minlength=len(offers)).astype(np.int64)
    return found


def _text(added: tuple[NodesToAdd, ...], pods: int, price: float | None, proven: bool) -> str:
    parts = []
    for one in added:
        gpus = f" ({one.gpus} × {one.gpu_model or 'GPU'})" if one.gpus else ""
        parts.append(f"{one.count} more node{'s' if one.count > 1 else ''} {one.name}{gpus}")
    cost = "" if price is None else f", {price:.6g} $/h"
    best = ("cheapest" if price is not None else "fewest") if proven else "fewer may do"
    what = "it" if pods == 1 else f"all {pods}"
    return f"{' and '.join(parts)}{cost} would place {what} ({best})"
