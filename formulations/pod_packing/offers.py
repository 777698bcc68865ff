"""Kinds of nodes that could be added: those that an instance offers, or else those that the cluster has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from formulations.pod_packing.problem import OWN_DOMAIN, BoolArray, Offer, PodsProblem
from planner.descriptions.pods import NodeOffer
from planner.kubernetes.rules import HOSTNAME
from planner.kubernetes.snapshot import Node
from planner.workload import IntArray

#: Kinds of nodes of the cluster that count as offered: those that most nodes are of.
MOST_KINDS = 40


def offers(
    problem: PodsProblem,
    nodes: Sequence[Node],
    written: Sequence[NodeOffer],
    capacity: IntArray,
    allowed: BoolArray,
    domain: IntArray,
) -> tuple[Offer, ...]:
    """What is written, or one kind of each sort of node that takes pods.

    nodes : of the problem, then one of each offer. capacity [O, R], allowed [J, O], domain [T, O] : of the offers.
    """
    by_host = np.array([key == HOSTNAME for key in problem.topologies], dtype=np.bool_)
    if written:
        return tuple(
            Offer(
                name=one.name, capacity=capacity[o], gpus=one.gpus, gpu_model=one.gpu_model, allowed=allowed[:, o],
                domain=np.where(by_host, OWN_DOMAIN, domain[:, o]), price_usd_per_hour=one.price_usd_per_hour,
                most=one.count, island=one.gpu_island or max(1, one.gpus),
            )
            for o, one in enumerate(written)
        )  # fmt: skip
    own = np.where(by_host[:, None], OWN_DOMAIN, problem.domain)
    there = nodes[: problem.num_nodes]
    accepting = np.array([node.accepts for node in there], dtype=np.bool_)
    prices = np.array([-1.0 if node.price_usd_per_hour is None else node.price_usd_per_hour for node in there])
    _, price = np.unique(prices, return_inverse=True)
    island = problem.gpus if problem.island is None else problem.island
    columns = problem.capacity, problem.gpus[:, None], island[:, None], problem.allowed.T, own.T, price.reshape(-1, 1)
    table = np.concatenate([np.asarray(one, dtype=np.int64) for one in columns], axis=1)
    _, first, count = np.unique(table[accepting], axis=0, return_index=True, return_counts=True)
    examples = np.flatnonzero(accepting)[first[np.argsort(-count, kind="stable")[:MOST_KINDS]]]
    return tuple(
        Offer(
            name=f"like {there[n].name}", capacity=problem.capacity[n], gpus=int(problem.gpus[n]),
            gpu_model=problem.gpu_models[n], allowed=problem.allowed[:, n], domain=own[:, n],
            price_usd_per_hour=there[n].price_usd_per_hour, island=int(island[n]),
        )
        for n in examples.tolist()
    )  # fmt: skip
