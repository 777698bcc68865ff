"""Stages of a request, the roles of replicas that do them, and what is handed from one role to the next.

A replica that is `both` does all of a request. Else one prefills the prompt and hands its KV cache to another, which
decodes; or the decoding is itself split, and for every token activations go between attention and expert replicas.
Every stage of a request is done exactly once, by one of the stage's roles:

    prefill            both, prefill
    attention          both, decode, attention
    experts            both, decode, experts

so what is prefilled apart is decoded apart, and what one attention replica decodes has experts.

Reference: DistServe, arXiv 2401.09670, and Mooncake, arXiv 2407.00079, for prefill and decode; MegaScale-Infer,
arXiv 2504.02263, for attention and experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from formulations.gpu_fleet.problem import BoolArray, FleetProblem, FloatArray

#: Roles by their number in `FleetProblem.config_role`.
ROLES = ("both", "prefill", "decode", "attention", "experts")
#: The roles of each stage.
STAGES = {
    "prefill": ("both", "prefill"),
    "attention": ("both", "decode", "attention"),
    "experts": ("both", "decode", "experts"),
}


class Handover(NamedTuple):
    """Bytes that replicas of one role send to replicas of another."""

    name: str
    senders: tuple[str, ...]
    receivers: tuple[str, ...]


#: By their number in `FleetProblem.handed_bytes`.
HANDOVERS = (
    Handover("kv_cache", ("prefill",), ("decode", "attention")),
    Handover("activations", ("attention",), ("experts",)),
)


def has_role(problem: FleetProblem, roles: tuple[str, ...]) -> BoolArray:
    """Configurations of these roles, [C]."""
    return np.isin(problem.config_role, [ROLES.index(role) for role in roles])


def servable(problem: FleetProblem) -> BoolArray:
    """Buckets with replicas for all stages, on sites that are joined, [D]."""
    joined = problem.link_bytes_per_s > 0
    num_sites = len(problem.site_names)

    def at_site(roles: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        can = (problem.throughput > 0) & has_role(problem, roles)
        site = problem.site_of_pool[problem.config_pool]
        return np.stack([can[:, site == here].any(axis=1) for here in range(num_sites)], axis=1)

    decodes = at_site(("decode",)) | (at_site(("attention",)) & (at_site(("experts",)) @ joined.T))
    return np.asarray((at_site(("both",)) | (at_site(("prefill",)) & (decodes @ joined.T))).any(axis=1))


def network_need(problem: FleetProblem, period: int) -> FloatArray:
    """Replicas of each configuration whose network takes what the whole demand hands over, the larger way, [C]."""
    need = problem.needed(period)
    each = problem.network_bytes_per_s[problem.config_pool] * problem.config_gpus
    found = np.zeros(problem.num_configs)
    for number, kind in enumerate(HANDOVERS):
        for roles in (kind.senders, kind.receivers):
            limited = has_role(problem, roles) & np.isfinite(each)
            able = problem.throughput[:, limited] > 0
            carried = np.where(able, (need * problem.handed_bytes[number])[:, None], 0.0).sum(axis=0)
            found[limited] = np.maximum(found[limited], carried / each[limited])
    return found
