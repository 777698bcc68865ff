"""Rows that tie the stages of a request: what one role hands over the next takes, over links with room for it.

Sets    h in handovers (KV cache; activations), s in sites: pools of one region, which are joined
Data    bytes[h, d]    that a request hands over; need[d] requests/s to be ready for
        link[s, s']    bytes/s between two sites, 0 where they are not joined; network[p]  bytes/s of one GPU, each way
Variables, in each period
    f[h, d, s, s']     share of a bucket's requests that is handed from one site to another, continuous
Constraints
    sent      sum_{c at s sends h} x[d, c] = sum_s' f[h, d, s, s']          every bucket and site
    taken     sum_{c at s' takes h} x[d, c] = sum_s f[h, d, s, s']
    links     sum_{h, d} need[d] bytes[h, d] f[h, d, s, s'] <= link[s, s']           every pair of sites with a limit
    network   sum_d need[d] bytes[h, d] x[d, c] <= availability network gpus[c] z[c]  every sender and receiver

Inside a site any replica may hand to any other. Ignored: how long a transfer takes, which is part of the given
throughput; which replica of a site meets which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formulations.backends.linear import IntArray, LinearBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.stages import HANDOVERS, has_role


@dataclass(frozen=True, slots=True, eq=False)
class FlowColumns:
    """Columns f of one period and what each of them is, all [N]: handover, bucket, sites."""

    f: IntArray
    handover: IntArray
    bucket: IntArray
    sender: IntArray
    receiver: IntArray


def add_handovers(
    problem: FleetProblem,
    builder: LinearBuilder,
    period: int,
    bucket: IntArray,
    config: IntArray,
    x: IntArray,
    z: IntArray,
) -> FlowColumns:
    """Flows of the pairs (bucket, config) and all rows of the module docstring; no flows where nothing is staged."""
    kinds = [
        _flows(problem, handover, bucket, config) for handover in range(len(HANDOVERS)) if problem.config_role.any()
    ]
    handover, flow_bucket, sender, receiver = np.concatenate([np.zeros((4, 0), dtype=np.int64), *kinds], axis=1)
    flows = FlowColumns(builder.variables((handover.size,)), handover, flow_bucket, sender, receiver)
    site = problem.site_of_pool[problem.config_pool]
    need = problem.needed(period)
    every = np.arange(problem.num_configs)
    there = problem.availability[problem.config_pool]
    network = problem.network_bytes_per_s[problem.config_pool] * problem.config_gpus
    for number, kind in enumerate(HANDOVERS):
        for roles, ends in ((kind.senders, flows.sender), (kind.receivers, flows.receiver)):
            own = np.flatnonzero(has_role(problem, roles)[config])
            flow = np.flatnonzero(flows.handover == number)
            # One row for every bucket and site that either a replica or a flow is at.
            of_x = bucket[own] * len(problem.site_names) + site[config[own]]
            of_f = flows.bucket[flow] * len(problem.site_names) + ends[flow]
            keys, row = np.unique(np.concatenate([of_x, of_f]), return_inverse=True)
            builder.sparse_rows(
                np.zeros(keys.size), 0.0, (row[: own.size], x[own], 1.0), (row[own.size :], flows.f[flow], -1.0)
            )
            limited = own[np.isfinite(network[config[own]])]
            if limited.size:
                used = need[bucket[limited]] * problem.handed_bytes[number, bucket[limited]] / network[config[limited]]
                builder.sparse_rows(
                    np.full(every.size, -np.inf), 0.0, (config[limited], x[limited], used), (every, z, -there)
                )
    pairs = [(s, r) for s, r in zip(*np.nonzero(problem.link_bytes_per_s), strict=True)]
    for s, r in pairs:
        over = np.flatnonzero((flows.sender == s) & (flows.receiver == r))
        if over.size and np.isfinite(problem.link_bytes_per_s[s, r]):
            carried = need[flows.bucket[over]] * problem.handed_bytes[flows.handover[over], flows.bucket[over]]
            builder.sparse_rows([-np.inf], 1.0, (0, flows.f[over], carried / problem.link_bytes_per_s[s, r]))
    return flows


def _flows(problem: FleetProblem, handover: int, bucket: IntArray, config: IntArray) -> IntArray:
    """Handover, bucket, sending and receiving site of every flow that can be, [4, N]."""
    kind = HANDOVERS[handover]
    site = problem.site_of_pool[problem.config_pool][config]
    ends = []
    for roles in (kind.senders, kind.receivers):
        own = has_role(problem, roles)[config]
        there = np.zeros((len(problem.bucket_model), len(problem.site_names)), dtype=np.bool_)
        there[bucket[own], site[own]] = True
        ends.append(there)
    found = np.nonzero(ends[0][:, :, None] & ends[1][:, None, :] & (problem.link_bytes_per_s > 0))
    return np.stack([np.full(found[0].size, handover), *found]).astype(np.int64)


def flow_table(problem: FleetProblem, columns: FlowColumns, values: FloatArray, scale: FloatArray) -> FloatArray:
    """Shares that are handed over, [handovers, D, sites, sites]; scale : of each bucket, [D]."""
    sites = len(problem.site_names)
    table = np.zeros((len(HANDOVERS), len(scale), sites, sites))
    table[columns.handover, columns.bucket, columns.sender, columns.receiver] = np.maximum(values[columns.f], 0.0)
    return table * scale[:, None, None]
