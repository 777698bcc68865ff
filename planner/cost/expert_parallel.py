"""What an expert placement costs: GPU loads, balancedness, and two communication models. Pure array functions.

Dispatch of a replicated expert: `even` shares its tokens equally (EPLB, vLLM, TensorRT-LLM); `lp` solves the per-batch
LP (SGLang). Communication prefers a replica near the token: its own GPU, then its own node, then any, as SGLang's
static dispatch does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from planner.cost.lp_split import lp_gpu_load
from planner.workload import FloatArray, IntArray, RoutingTrace

#: Entries of the largest temporary array in the token loops (8 bytes each).
CHUNK_ENTRIES = 4_000_000
#: Most token x GPU x GPU x choice x layer products of one fan-out count, a few seconds of numpy.
FANOUT_WORK = 2_000_000_000


def gpu_of_slot(num_slots: int, num_gpus: int) -> IntArray:
    """GPU of each slot, [num_slots]."""
    return np.arange(num_slots) // (num_slots // num_gpus)


def membership(physical_to_logical: IntArray, num_experts: int, num_gpus: int) -> FloatArray:
    """Replicas of each expert on each GPU, [L, E, G]."""
    num_layers, num_slots = physical_to_logical.shape
    result = np.zeros((num_layers, num_experts, num_gpus))
    layers = np.arange(num_layers)[:, None]
    np.add.at(result, (layers, physical_to_logical, gpu_of_slot(num_slots, num_gpus)[None]), 1.0)
    return result


def gpu_load(
    load: FloatArray, physical_to_logical: IntArray, speed: FloatArray, split: Literal["even", "lp"]
) -> FloatArray:
    """Load of each GPU under a dispatch rule, [K, L, G], in units of `load` [K, L, E]."""
    if split == "lp":
        return lp_gpu_load(load, physical_to_logical, speed)[0]
    num_layers, num_experts = load.shape[1:]
    offset = (np.arange(num_layers) * num_experts)[:, None]
    count = np.bincount((physical_to_logical + offset).ravel(), minlength=num_layers * num_experts)
    share = load / np.maximum(count.reshape(num_layers, num_experts), 1)
    slots = share[:, np.arange(num_layers)[:, None], physical_to_logical]
    return np.asarray(slots.reshape(*load.shape[:2], speed.size, -1).sum(axis=3))


def hottest(load_of_gpu: FloatArray, speed: FloatArray) -> FloatArray:
    """Time of the slowest GPU, [K, L]."""
    return np.asarray((load_of_gpu / speed).max(axis=-1))


def balancedness(load_of_gpu: FloatArray, speed: FloatArray) -> FloatArray:
    """Mean over max GPU time, [K, L]; 1 where a layer has no load at all."""
    top = hottest(load_of_gpu, speed)
    mean = load_of_gpu.sum(axis=-1) / speed.sum()
    return np.where(top > 0, mean / np.where(top > 0, top, 1.0), 1.0)


def nearest_cost(holders: FloatArray, cost: FloatArray) -> FloatArray:
    """Cost from each GPU to the nearest replica of each expert: holders [E, G], cost [G, G] -> [E, G]."""
    result = np.empty(holders.shape)
    for expert, row in enumerate(holders):
        result[expert] = cost[:, row > 0].min(axis=1) if row.any() else np.inf
    return result


def chain_cost(physical_to_logical: IntArray, transitions: FloatArray, cost: FloatArray) -> FloatArray:
    """Expected travel cost of a token between consecutive layers, [L-1].

    A token sits on any replica of its expert with equal chance and goes to the nearest replica of the next expert.
    Exact without replicas; with replicas the true position depends on the way there (see `simulate_chain`).
    transitions : [L-1, E, E] fractions of tokens; cost : [G, G].
    """
    num_experts, num_gpus = transitions.shape[1], cost.shape[0]
    holders = membership(physical_to_logical, num_experts, num_gpus)
    result = np.zeros(transitions.shape[0])
    for layer in range(transitions.shape[0]):
        position = holders[layer] / np.maximum(holders[layer].sum(axis=1, keepdims=True), 1)
        result[layer] = (transitions[layer] * (position @ nearest_cost(holders[layer + 1], cost).T)).sum()
    return result


def _choice(holders: FloatArray, node_of: IntArray) -> FloatArray:
    """Chance that a token on GPU h that wants expert e goes to GPU g: [E, G(h), G(g)]. Own GPU, own node, any."""
    same_node = (node_of[:, None] == node_of[None, :]).astype(np.float64)
    held = (holders > 0).astype(np.float64)
    near = held[:, None, :] * same_node[None]
    near_total = near.sum(axis=2, keepdims=True)
    anywhere = held[:, None, :] / np.maximum(held.sum(axis=1), 1)[:, None, None]
    choice = np.where(near_total > 0, near / np.maximum(near_total, 1), anywhere)
    own = np.eye(node_of.size)[None] * held[:, None, :]
    return np.asarray(np.where(own.sum(axis=2, keepdims=True) > 0, own, choice))


def simulate_chain(
    physical_to_logical: IntArray, trace: RoutingTrace, num_experts: int, num_gpus: int, gpus_per_node: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Follow each token's best expert through the layers under nearest-replica dispatch, in expectation.

    Returns the fraction of transitions that change GPU and that change node, each [L-1], and the tokens each GPU
    computes in each layer, [L, G].
    """
    held = membership(physical_to_logical, num_experts, num_gpus) > 0
    first = trace.experts[:, :, 0].astype(np.int64)
    first = first[(first >= 0).all(axis=1)]
    num_tokens, num_layers = first.shape
    crossed, crossed_node = np.zeros((2, max(0, num_layers - 1)))
    load = np.zeros((num_layers, num_gpus))
    for block in _blocks(num_tokens, num_gpus):
        ids = first[block]
        start = held[0][ids[:, 0]]
        where = start / start.sum(axis=1, keepdims=True)
        load[0] += where.sum(axis=0)
        for layer in range(1, num_layers):
            holds = held[layer][ids[:, layer]]
            stay = where * holds
            by_node = holds.reshape(len(ids), -1, gpus_per_node)
            in_node = by_node.sum(axis=2)
            leaving = (where - stay).reshape(by_node.shape).sum(axis=2)
            near = np.where(in_node > 0, leaving / np.maximum(in_node, 1), 0.0)
            far = np.where(in_node > 0, 0.0, leaving).sum(axis=1)
            spread = near[:, :, None] + (far / holds.sum(axis=1))[:, None, None]
            where = stay + (spread * by_node).reshape(where.shape)
            crossed[layer - 1] += leaving.sum()
            crossed_node[layer - 1] += far.sum()
            load[layer] += where.sum(axis=0)
    return crossed / max(1, num_tokens), crossed_node / max(1, num_tokens), load


def fanout(
    physical_to_logical: IntArray, trace: RoutingTrace, num_experts: int, num_gpus: int, gpus_per_node: int
) -> tuple[FloatArray, FloatArray]:
    """Expected distinct remote GPUs and remote nodes that a token's k experts touch, each [L].

    The token's own GPU is any GPU with equal chance (data-parallel attention); replicas are chosen as in `_choice`.
    Of a long trace on many GPUs, evenly spaced tokens stand for all (FANOUT_WORK).
    """
    node_of = np.arange(num_gpus) // gpus_per_node
    num_nodes = int(node_of[-1]) + 1
    holders = membership(physical_to_logical, num_experts, num_gpus)
    num_layers, top_k = trace.experts.shape[1:]
    most = max(1, FANOUT_WORK // (num_gpus**2 * top_k * num_layers))
    tokens = trace.experts[:: -(-len(trace.experts) // most)]
    num_tokens = len(tokens)
    gpus, nodes = np.zeros((2, num_layers))
    own_gpu = np.eye(num_gpus, dtype=bool)
    own_node = node_of[:, None] == np.arange(num_nodes)[None]
    for layer in range(num_layers):
        choice = _choice(holders[layer], node_of)
        missed = np.concatenate((1.0 - choice, np.ones((1, num_gpus, num_gpus))))
        by_node = choice.reshape(num_experts, num_gpus, num_nodes, gpus_per_node).sum(axis=3)
        missed_node = np.concatenate((1.0 - by_node, np.ones((1, num_gpus, num_nodes))))
        for block in _blocks(num_tokens, num_gpus * num_gpus):
            ids = tokens[block, layer]
            untouched = np.ones((len(ids), num_gpus, num_gpus))
            untouched_node = np.ones((len(ids), num_gpus, num_nodes))
            for k in range(top_k):
                untouched *= missed[ids[:, k]]
                untouched_node *= missed_node[ids[:, k]]
            gpus[layer] += (1.0 - untouched)[:, ~own_gpu].sum() / num_gpus
            nodes[layer] += (1.0 - untouched_node)[:, ~own_node].sum() / num_gpus
    return gpus / max(1, num_tokens), nodes / max(1, num_tokens)


def fanout_cost(
    remote_gpus: FloatArray, remote_nodes: FloatArray, intra_node_cost: float, inter_node_cost: float
) -> FloatArray:
    """Cost of a token's fan-out per layer: one hop for each remote GPU, and the network once for each remote node."""
    return np.asarray(intra_node_cost * remote_gpus + (inter_node_cost - intra_node_cost) * remote_nodes)


def _blocks(num_tokens: int, entries_per_token: int) -> list[slice]:
    size = max(1, CHUNK_ENTRIES // max(1, entries_per_token))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


def moved_replicas(physical_to_logical: IntArray, current: IntArray, num_experts: int, num_gpus: int) -> IntArray:
    """Replicas that must be loaded onto a GPU that does not hold their expert yet, per layer, [L]."""
    new = membership(physical_to_logical, num_experts, num_gpus)
    old = membership(current, num_experts, num_gpus)
    return np.asarray(np.maximum(new - old, 0).sum(axis=(1, 2)).astype(np.int64))
