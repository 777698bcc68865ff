"""Small serving problems, in few words, and an oracle that tries every count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from formulations.base import solve
from formulations.outcome import Outcome, SolveOptions
from formulations.parallelism.formulation import PARALLELISM
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.reading import ROLES
from planner.parallel_plan import ParallelPlan, Role, WorkerType

TTFT_S, TPOT_S = 0.5, 0.02
METHODS = ("highs", "scip", "cbc")


def worker(
    name: str,
    role: Role,
    gpus: int,
    rate: float,
    *,
    device: str = "h100_sxm",
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    watts: float | None = None,
) -> WorkerType:
    """A worker type with the latencies that its role has."""
    return WorkerType(
        name=name,
        role=role,
        device=device,
        num_gpus=gpus,
        requests_per_s=rate,
        ttft_s=None if role == "decode" else TTFT_S if ttft_s is None else ttft_s,
        tpot_s=None if role == "prefill" else TPOT_S if tpot_s is None else tpot_s,
        watts=watts,
    )


def problem(
    workers: Sequence[WorkerType],
    nodes: tuple[int, int] | dict[str, tuple[int, int]],
    *,
    prices: dict[str, float] | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    **limits: Any,
) -> ParallelProblem:
    """The arrays of these workers on (nodes, GPUs a node), of one device kind or by kind."""
    kinds = nodes if isinstance(nodes, dict) else {"h100_sxm": nodes}
    names = list(kinds)
    size = np.array([one.num_gpus for one in workers], dtype=np.int64)
    late = [ttft_s is not None and one.ttft_s is not None and one.ttft_s > ttft_s for one in workers]
    slow = [tpot_s is not None and one.tpot_s is not None and one.tpot_s > tpot_s for one in workers]
    price = np.array([(prices or {}).get(one.device, 0.0) for one in workers])
    watts = np.array([one.watts or 0.0 for one in workers])
    return ParallelProblem(
        **{
            "name": "case",
            "sha256": "",
            "workers": tuple(workers),
            "usable": ~(np.array(late, dtype=bool) | np.array(slow, dtype=bool)),
            "role": np.array([ROLES[one.role] for one in workers], dtype=np.int64),
            "rate": np.array([one.requests_per_s for one in workers], dtype=np.float64),
            "gpus": size,
            "device": np.array([names.index(one.device) for one in workers], dtype=np.int64),
            "price": size * price,
            "watts": watts,
            "device_names": tuple(names),
            "nodes": np.array([count for count, _ in kinds.values()], dtype=np.int64),
            "node_gpus": np.array([gpus for _, gpus in kinds.values()], dtype=np.int64),
            "goal": "throughput",
            "target_per_s": None,
            "input_tokens": 1000,
            "output_tokens": 100,
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            **limits,
        }
    )


def run(instance: ParallelProblem, method: str = "highs") -> Outcome[ParallelPlan]:
    """Solve to the end."""
    return solve(PARALLELISM, instance, SolveOptions(method=method, time_limit_s=60.0))


def best(instance: ParallelProblem, method: str = "highs") -> float:
    """The proven optimum: requests/s with a minus sign, GPUs or USD/hour."""
    outcome = run(instance, method)
    assert outcome.status == "optimal", (outcome.status, outcome.reasons)
    assert outcome.objective is not None
    return outcome.objective.total


def solved(instance: ParallelProblem, method: str = "highs") -> ParallelPlan:
    """The plan of the proven optimum."""
    outcome = run(instance, method)
    assert outcome.status == "optimal", (outcome.status, outcome.reasons)
    assert outcome.plan is not None
    return outcome.plan


def counts(plan: ParallelPlan) -> dict[str, int]:
    """Workers by name."""
    return {one.name: one.count for one in plan.workers}


def packs(items: Sequence[int], room: Sequence[int]) -> bool:
    """Whether items fit into bins, by trying every bin for every item."""
    if not items:
        return True
    tried: set[int] = set()
    for index, free in enumerate(room):
        if free >= items[0] and free not in tried:
            tried.add(free)
            if packs(items[1:], [*room[:index], free - items[0], *room[index + 1 :]]):
                return True
    return False


def packs_on_nodes(sizes: Counter[int], node: int, nodes: int) -> bool:
    """Whole nodes for what is larger than one, the rest by trying."""
    whole = sum(-(-size // node) * count for size, count in sizes.items() if size > node)
    small = sorted((size for size in sizes.elements() if size <= node), reverse=True)
    return whole <= nodes and packs(small, [node] * (nodes - whole))


def brute_force(instance: ParallelProblem) -> float | None:
    """The best worth over all counts, None where no counts do: every combination, priced at once, packed best first."""
    upper = np.where(instance.usable, instance.num_gpus // instance.gpus, 0).tolist()
    tried = np.array(list(product(*(range(most + 1) for most in upper))))
    both, prefill, decode = (tried @ np.where(instance.role == role, instance.rate, 0.0) for role in range(3))
    rate = both + np.minimum(prefill, decode)
    allowed = (rate > 0) & (rate >= (instance.target_per_s or 0.0) * (1 - 1e-9))
    allowed &= tried.sum(axis=1) <= (instance.max_workers or np.inf)
    worth = -rate if instance.goal == "throughput" else tried @ instance.weight()
    order = np.flatnonzero(allowed)[np.argsort(worth[allowed], kind="stable")]
    return next((float(worth[one]) for one in order if _placed(instance, tried[one])), None)


def _placed(instance: ParallelProblem, chosen: npt.NDArray[np.int64]) -> bool:
    for device, (nodes, node) in enumerate(zip(instance.nodes.tolist(), instance.node_gpus.tolist(), strict=True)):
        sizes = Counter[int]()
        for one in np.flatnonzero((instance.device == device) & (chosen > 0)).tolist():
            sizes[int(instance.gpus[one])] += int(chosen[one])
        if sum(size * count for size, count in sizes.items()) > nodes * node or not packs_on_nodes(sizes, node, nodes):
            return False
    return True
