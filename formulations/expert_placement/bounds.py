"""Lower bounds of the objective, by layer and scenario; no plan can be better.

mean            the hottest GPU is at least the mean
hottest replica with T the time of the hottest GPU, expert e needs at least ceil(load_e / (T * fastest)) replicas, and
                all of them together at most num_slots
group           a group kept on k nodes loads at least one of them with its k-th part; with k = 1 and more groups than
                nodes, two of the largest num_nodes + 1 groups share a node
pairing         two slots a GPU, even split: see `pairing_bound`
chain           a token of expert e stays only if its next expert lies on the same GPU, which holds s experts
fan-out         k experts of a token fill at least ceil(k / s) GPUs, all but one of them remote
"""

from __future__ import annotations

import math

import numpy as np

from formulations.backends.scipy_lp import feasible_point
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import Bound, Budget
from planner.workload import FloatArray

#: Relative width at which the bisections stop; far below any gap that is printed.
RESOLUTION = 1e-9


def load_bound(problem: ExpertPlacementProblem) -> tuple[FloatArray, list[str]]:
    """Lower bound of max_g load/speed, [K, L], and the names of the arguments that bind somewhere."""
    parts = {"mean load": problem.mean_gpu_load, "hottest replica": _hottest_replica(problem)}
    if problem.group_of is not None and problem.group_spread is not None:
        parts["group spread"] = _group(problem)
    stacked = np.stack(list(parts.values()))
    best = stacked.max(axis=0)
    names = [name for name, part in parts.items() if (part >= best * (1 - 1e-12)).any()]
    return best, names


def _hottest_replica(problem: ExpertPlacementProblem) -> FloatArray:
    fastest = problem.speed.max()
    load = problem.load / fastest
    low = np.maximum(problem.mean_gpu_load, load.max(axis=2) / problem.max_replicas)
    high = np.maximum(load.max(axis=2), low)

    def slots(limit: FloatArray) -> FloatArray:
        need = np.ceil(load / np.maximum(limit, 1e-300)[:, :, None] * (1 - 1e-12))
        return np.asarray(np.maximum(need, 1).sum(axis=2))

    for _ in range(64):
        middle = (low + high) / 2
        fits = slots(middle) <= problem.num_slots
        high, low = np.where(fits, middle, high), np.where(fits, low, middle)
        if (high - low <= RESOLUTION * high).all():
            break
    return np.asarray(np.where(slots(low) <= problem.num_slots, high, low))


def _group(problem: ExpertPlacementProblem) -> FloatArray:
    assert problem.group_of is not None
    assert problem.group_spread is not None
    num_groups = int(problem.group_of.max()) + 1
    group_load = problem.load.reshape(*problem.load.shape[:2], num_groups, -1).sum(axis=3)
    node_speed = np.sort(problem.speed.reshape(problem.num_nodes, -1).sum(axis=1))
    spread = min(problem.group_spread, problem.num_nodes)
    bound = group_load.max(axis=2) / node_speed[-spread:].sum()
    if spread == 1 and num_groups > problem.num_nodes:
        largest = np.sort(group_load, axis=2)[:, :, ::-1]
        together = largest[:, :, problem.num_nodes - 1] + largest[:, :, problem.num_nodes]
        bound = np.maximum(bound, together / node_speed[-1])
    return np.asarray(bound)


def communication_bound(problem: ExpertPlacementProblem) -> float:
    """Lower bound of the weighted communication term."""
    comm = problem.communication
    if comm is None or problem.num_gpus == 1:
        return 0.0
    per_gpu = problem.slots_per_gpu
    if comm.model == "fanout":
        assert problem.trace is not None
        filled = math.ceil(problem.trace.experts.shape[2] / per_gpu) - 1
        complete = bool((problem.trace.experts >= 0).all())
        hop = min(comm.intra_node_cost, comm.inter_node_cost)
        return comm.weight * hop * filled * problem.num_layers if complete else 0.0
    flow = problem.transitions
    kept = np.sort(flow, axis=2)[:, :, ::-1][:, :, :per_gpu].sum(axis=(1, 2))
    if problem.num_slots == problem.num_experts:
        kept = np.minimum(kept, np.sort(flow, axis=1)[:, ::-1][:, :per_gpu].sum(axis=(1, 2)))
    cheapest = comm.cost[~np.eye(problem.num_gpus, dtype=bool)].min()
    return comm.weight * float(cheapest) * float((flow.sum(axis=(1, 2)) - kept).clip(min=0).sum())


def lower_bound(problem: ExpertPlacementProblem, load: FloatArray | None = None, extra: str = "") -> Bound:
    """Bound of the whole objective; `load` [K, L] replaces `load_bound` when something better is known (`extra`)."""
    base, names = load_bound(problem)
    if load is not None:
        base = np.maximum(base, load)
        names = [*names, extra]
    comm = communication_bound(problem)
    if comm > 0:
        names.append("co-location")
    return Bound(value=float((problem.weight @ base).sum()) + comm, name=", ".join(names))


def pairing_bound(load: FloatArray, num_slots: int, low: float, high: float, budget: Budget) -> float:
    """Lower bound of the hottest GPU of one layer and scenario with two slots a GPU, even split, unit speeds.

    load [E]; low is a valid bound, high an achieved value; the result lies between. With z[e, k] = 1 when e has k
    replicas of size load_e / k, a hottest GPU of T needs, for every t > T / 2, at most as many replicas of size >= t as
    of size <= T - t, because each of the former is paired with one of the latter. T is raised only where the linear
    relaxation of this system is infeasible; bisection, cuts added as they are violated.
    """
    most = num_slots - load.size + 1
    expert = np.repeat(np.arange(load.size), most)
    replicas = np.tile(np.arange(1, most + 1), load.size)
    size = load[expert] / replicas
    while high - low > 1e-3 * high and not budget.stop():
        middle = (low + high) / 2
        verdict = _pairing_feasible(expert, replicas, size, num_slots, middle)
        if verdict is None:
            break
        low, high = (low, middle) if verdict else (middle, high)
    return low


def _pairing_feasible(
    expert: np.ndarray, replicas: np.ndarray, size: FloatArray, num_slots: int, limit: float
) -> bool | None:
    """Whether the relaxation has a solution at T = limit; None when the LP solver gives no verdict."""
    from scipy.sparse import csr_matrix, vstack

    keep = size <= limit * (1 + 1e-12)
    expert, replicas, size = expert[keep], replicas[keep], size[keep]
    columns = np.arange(size.size)
    equality = vstack(
        [csr_matrix((np.ones(size.size), (expert, columns))), csr_matrix(replicas[None].astype(np.float64))]
    )
    target = np.append(np.ones(int(expert.max()) + 1), num_slots)
    levels = np.unique(size[size > limit / 2 * (1 + 1e-12)])

    def cut(level: float) -> FloatArray:
        big, small = size >= level * (1 - 1e-12), size <= (limit - level) * (1 + 1e-12)
        return np.asarray(replicas * (big.astype(np.float64) - small))

    cuts = [cut(level) for level in levels[:: max(1, levels.size // 8)]]
    for _ in range(200):
        verdict, point = feasible_point(
            equality, target, np.stack(cuts) if cuts else None, np.zeros(len(cuts)) if cuts else None
        )
        if point is None:
            return verdict
        weight = point * replicas
        order = np.argsort(size, kind="stable")
        cumulative = np.concatenate(([0.0], np.cumsum(weight[order])))
        ordered = size[order]
        big = cumulative[-1] - cumulative[np.searchsorted(ordered, levels * (1 - 1e-12))]
        small = cumulative[np.searchsorted(ordered, (limit - levels) * (1 + 1e-12), side="right")]
        violation = big - small
        if not violation.size or violation.max() <= 1e-7:
            return True
        worst = np.argsort(-violation)[:5]
        cuts += [cut(levels[i]) for i in worst if violation[i] > 1e-7]
    return None
