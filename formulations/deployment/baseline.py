"""Stage by stage, as it is done without one optimisation: a worker for each service, then GPUs, then nodes.

1. On every kind of GPU, each service has the worker with the most requests/s a GPU, which does all of a request; or the
   one with the fewest GPUs. Both are tried for all services, also without those of several nodes; the cheapest counts.
2. Each service goes to the kind that costs least for its demand, at the cheapest price of a GPU; replicas for the peak.
3. Per kind, the workers of all services are packed together onto nodes, largest first: standing nodes, then the offer
   that is cheapest for what is left, its last node replaced by a smaller one that is enough. Where the loss of a node
   is to be survived, one more of each offer that is used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.pools import replicas_for
from formulations.gpu_fleet.problem import BoolArray, FleetProblem, IntArray
from planner.fleet_plan import FleetPlan


def best_workers(problem: FleetProblem, smallest: bool = False, one_node: bool = False) -> BoolArray:
    """Of each service on each pool the worker with the most requests/s a GPU for its mix, [C]; prefer `both` roles.

    A service that no worker does alone has the best one of each role. smallest : fewest GPUs, then the most requests/s.
    one_node : without workers of several.
    """
    fit = ~problem.whole.any(axis=1) if one_node else np.ones(problem.num_configs, dtype=np.bool_)
    demand = problem.share @ problem.rate
    kept = np.zeros(problem.num_configs, dtype=np.bool_)
    for model in range(len(problem.model_names)):
        own = np.flatnonzero(problem.bucket_model == model)
        asked = own[demand[own] > 0] if demand[own].any() else own
        with np.errstate(divide="ignore"):
            seconds = (demand[asked, None] / problem.throughput[asked]).sum(axis=0)
        rate = demand[asked].sum() / np.where(seconds > 0, seconds, np.inf) / problem.config_gpus
        mine = (problem.config_model == model) & np.isfinite(seconds) & (rate > 0) & fit
        worth = rate / problem.config_gpus.astype(np.float64) ** (8 * smallest)
        roles = [0] if (mine & (problem.config_role == 0)).any() else np.unique(problem.config_role[mine]).tolist()
        for role in roles:
            for pool in np.unique(problem.config_pool[mine]).tolist():
                found = np.flatnonzero(mine & (problem.config_role == role) & (problem.config_pool == pool))
                if found.size:
                    kept[found[np.argmax(worth[found])]] = True
    return kept


def stage_by_stage(problem: FleetProblem) -> FleetPlan | None:
    """The rule's fleet; None where a service has no worker that does it alone, or nodes run out.

    Limits but those of nodes, spare zones and the fleet in force are not looked at: the plan may break them.
    """
    ways = [best_workers(problem, *how) for how in ((False, False), (False, True), (True, False))]
    found = [plan for kept in ways if (plan := _with(problem, kept & (problem.config_role == 0))) is not None]
    return min(found, key=lambda plan: plan.cost_usd_per_hour, default=None)


def _with(problem: FleetProblem, kept: BoolArray) -> FleetPlan | None:
    """Stages 2 and 3 with some of the workers, [C]."""
    replicas = np.zeros(problem.num_configs, dtype=np.int64)
    chosen: dict[int, int] = {}
    for model in range(len(problem.model_names)):
        if not (problem.rate[:, problem.bucket_model == model] > 0).any():
            continue
        best = min(_priced(problem, model, np.flatnonzero(kept & (problem.config_model == model))), default=None)
        if best is None:
            return None
        _, config, count = best
        chosen[model] = config
        replicas[config] += count
    instances = _packed(problem, replicas)
    if instances is None:
        return None
    more = (instances > 0).astype(np.int64) * problem.spare_instances
    instances = instances + more
    counts = {}
    for period in range(problem.num_periods):
        shares = np.zeros((len(problem.bucket_model), problem.num_configs))
        for model, config in chosen.items():
            shares[problem.bucket_model == model, config] = 1.0
        shares *= (problem.rate[period] > 0)[:, None]
        # Without its spare node an offer holds all replicas as before.
        lost = {
            k: Counts(instances - np.eye(more.size, dtype=np.int64)[k], replicas, shares)
            for k in np.flatnonzero(more).tolist()
        }
        counts[period] = Counts(instances, replicas, shares, lost=lost)
    return plan_of(problem, counts)


def _priced(problem: FleetProblem, model: int, configs: IntArray) -> Iterator[tuple[float, int, int]]:
    """Price at the cheapest GPU of the pool, configuration and replicas."""
    asked = (problem.bucket_model == model) & (problem.rate > 0).any(axis=0)
    for config in configs.tolist():
        if not (problem.throughput[asked, config] > 0).all():
            continue
        pool = problem.config_pool[config]
        loads = [problem.load(t)[asked, config].sum() for t in range(problem.num_periods)]
        slack = 0.0 if problem.slack is None else float(problem.slack[config])
        count = replicas_for(slack, max(loads) / float(problem.availability[pool]))
        count = max(count, int(problem.min_replicas[model]), 1)
        inside = problem.held[config] > 0
        if inside.any():
            each = float((problem.price[inside] / problem.gpus[inside]).min())
            yield each * count * float(problem.config_gpus[config]), config, count


def _packed(problem: FleetProblem, replicas: IntArray) -> IntArray | None:
    """Instances of each offer that hold the replicas, [K]; None where there are not enough."""
    whole = problem.whole
    instances = np.maximum(problem.least.astype(np.int64), replicas @ whole)
    if (instances > problem.most).any():
        return None
    taken = replicas @ whole
    for pool in range(len(problem.availability)):
        configs = np.flatnonzero((problem.config_pool == pool) & (replicas > 0) & ~whole.any(axis=1))
        sizes = np.repeat(problem.config_gpus[configs], replicas[configs])
        left = sorted(sizes.tolist(), reverse=True)
        inside = np.flatnonzero(problem.pool_of_offer == pool)
        # Nodes without a price first, the fullest first; then by what the whole rest costs on one offer.
        for offer in sorted(inside[problem.price[inside] == 0].tolist(), key=lambda k: -int(problem.gpus[k])):
            left, used = _fill(left, int(problem.gpus[offer]), float(problem.most[offer] - taken[offer]))
            instances[offer] = max(instances[offer], taken[offer] + used)
        ways = []
        for offer in inside[problem.price[inside] > 0].tolist():
            rest, used = _fill(left, int(problem.gpus[offer]), float(problem.most[offer] - taken[offer]))
            if not rest:
                ways.append((*_smaller_last(problem, inside, left, offer, used), offer, used))
        if left and not ways:
            return None
        if left:
            _, last, offer, used = min(ways, key=lambda way: way[0])
            instances[offer] += used - (last is not None)
            if last is not None:
                instances[last] += 1
    return np.asarray(instances, dtype=np.int64)


def _fill(sizes: list[int], gpus: int, most: float) -> tuple[list[int], int]:
    """Largest first onto nodes of so many GPUs; what is left over, and the nodes used."""
    free: list[int] = []
    left = []
    for size in sizes:
        at = next((place for place, room in enumerate(free) if room >= size), None)
        if at is None and (size > gpus or len(free) >= most):
            left.append(size)
            continue
        if at is None:
            free.append(gpus)
            at = len(free) - 1
        free[at] -= size
    return left, len(free)


def _smaller_last(
    problem: FleetProblem, inside: IntArray, sizes: list[int], offer: int, used: int
) -> tuple[float, int | None]:
    """Cost of so many nodes of an offer, and a cheaper offer for the last one, if one holds what lies there."""
    cost = float(problem.price[offer] * used)
    rest, _ = _fill(sizes, int(problem.gpus[offer]), used - 1)
    best: tuple[float, int | None] = (cost, None)
    for other in inside.tolist():
        if other != offer and problem.price[other] > 0 and sum(rest) <= problem.gpus[other]:
            changed = cost - float(problem.price[offer]) + float(problem.price[other])
            if changed < best[0] and not _fill(rest, int(problem.gpus[other]), 1)[0]:
                best = (changed, other)
    return best
