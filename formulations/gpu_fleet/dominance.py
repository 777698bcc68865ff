"""Configurations that no plan needs."""

from __future__ import annotations

import numpy as np

from formulations.gpu_fleet.problem import BoolArray, FleetProblem


def needless_configs(problem: FleetProblem) -> BoolArray:
    """Configurations whose every replica is as well replaced by smaller ones on the same GPUs, [C].

    A replica of r x g GPUs is, where r replicas of g GPUs serve at least as much of every bucket; so is one of as many
    GPUs that serves no more than another. One on whole instances is replaced by what fits into these. No limit speaks
    against it: instances stay as they are, replicas only become more.
    """
    found = np.zeros(problem.num_configs, dtype=np.bool_)
    if problem.slack is not None or problem.draw is not None or problem.running is not None:
        # The slack depends on the mix of requests, so more throughput of each size may still be less room; the
        # prefills of smaller replicas may draw more; and replicas in force need not be started.
        return found
    asked = problem.throughput[(problem.rate > 0).any(axis=0)]
    whole = problem.whole
    bound = np.asarray(whole.any(axis=1))
    shared = problem.gpus[None] // problem.config_gpus[:, None]
    for config in range(problem.num_configs):
        same = (
            (problem.config_pool == problem.config_pool[config])
            & (problem.config_model == problem.config_model[config])
            & (problem.config_role == problem.config_role[config])
        )
        if bound[config]:
            offer = int(np.argmax(whole[config]))
            # Of those that take whole instances themselves, only those of this offer.
            same &= ~bound | (whole[:, offer] > 0)
            nodes = whole[config, offer]
            times = np.where(bound, nodes // np.maximum(whole[:, offer], 1), nodes * shared[:, offer])
        else:
            same &= ~bound
            times = problem.config_gpus[config] // problem.config_gpus
        others = np.flatnonzero(same & (times > 0) & ~found)
        others = others[others != config]
        found[config] = (asked[:, config, None] <= asked[:, others] * times[others]).all(axis=0).any()
    return found
