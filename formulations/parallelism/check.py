"""Every rule of a plan of workers, from its decisions alone; no solver."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

from formulations.parallelism.problem import ParallelProblem
from planner.cost.verdict import Violation
from planner.parallel_plan import ParallelPlan

#: Relative difference of a claimed sum that is rounding.
ROUNDING = 1e-6


def check(problem: ParallelProblem, plan: ParallelPlan) -> list[Violation]:
    """Broken rules; an empty list for a plan that keeps them all."""
    names = {worker.name: index for index, worker in enumerate(problem.workers)}
    found: list[Violation] = []
    sizes: dict[int, Counter[int]] = defaultdict(Counter)
    rates = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
    gpus = 0
    for worker in plan.workers:
        index = names.get(worker.name)
        if index is None:
            found.append(_broken("worker", worker.name, f"there is no worker {worker.name!r}"))
            continue
        known = problem.workers[index]
        if worker.model_dump(exclude={"count"}) != known.model_dump():
            found.append(_broken("worker", worker.name, f"{worker.name} is not the worker of that name"))
            continue
        if not problem.usable[index]:
            found.append(_broken("slo", worker.name, f"{worker.name} does not keep the limits"))
        sizes[int(problem.device[index])][worker.num_gpus] += worker.count
        rates[worker.role] += worker.requests_per_s * worker.count
        gpus += worker.num_gpus * worker.count
    if any(one.rule == "worker" for one in found):
        return found
    for device, counts in sizes.items():
        node, nodes = int(problem.node_gpus[device]), int(problem.nodes[device])
        if not fits(counts, node, nodes):
            name = problem.device_names[device]
            need = sum(size * count for size, count in counts.items())
            message = f"workers of {sorted(counts)} GPUs do not fit on {nodes} nodes of {node} {name}"
            found.append(_broken("packing", name, message, float(need), float(node * nodes)))
    served = rates["both"] + min(rates["prefill"], rates["decode"])
    asked = served if problem.target_per_s is None else min(served, problem.target_per_s)
    ttft = [one.ttft_s for one in plan.workers if one.role != "decode" and one.ttft_s is not None]
    tpot = [one.tpot_s for one in plan.workers if one.role != "prefill" and one.tpot_s is not None]
    sums = {
        "requests_per_s": served,
        "num_gpus": gpus,
        "ttft_s": max(ttft, default=None),
        "tpot_s": max(tpot, default=None),
        "output_tokens_per_s": asked * problem.output_tokens,
        "output_tokens_per_s_per_gpu": asked * problem.output_tokens / max(gpus, 1),
    }
    for field, value in sums.items():
        found += _claimed(field, value, getattr(plan, field))
    repeated = {
        **problem.served.model_dump(),
        "input_tokens": problem.input_tokens,
        "output_tokens": problem.output_tokens,
        "gpus_per_node": dict(zip(problem.device_names, problem.node_gpus.tolist(), strict=True)),
    }
    for field, said in repeated.items():
        if getattr(plan, field) != said:
            found.append(_broken(field, "plan", f"{field} is {getattr(plan, field)!r}, the instance says {said!r}"))
    if problem.target_per_s is not None and served < problem.target_per_s * (1 - ROUNDING):
        message = f"{served:.6g} requests/s are served, {problem.target_per_s:g} are asked"
        found.append(_broken("rate", "plan", message, served, problem.target_per_s))
    count = sum(worker.count for worker in plan.workers)
    if problem.max_workers is not None and count > problem.max_workers:
        found.append(_broken("max_workers", "plan", f"{count} workers", float(count), float(problem.max_workers)))
    return found


def _claimed(field: str, value: float | None, said: float | None) -> list[Violation]:
    """A sum of the plan that is not what its workers add up to."""
    if value is None or said is None:
        return [] if value is said else [_broken(field, "plan", f"{field} is {value}, the plan says {said}")]
    if abs(value - said) <= ROUNDING * max(abs(value), abs(said)):
        return []
    message = f"{field} of the workers is {value:.6g}, the plan says {said:.6g}"
    return [_broken(field, "plan", message, said, value)]


def fits(counts: Counter[int], node: int, nodes: int) -> bool:
    """Workers of these sizes fit on equal nodes: whole nodes for the larger, the rest by search, largest first."""
    free = nodes - sum(-(-size // node) * count for size, count in counts.items() if size > node)
    small = sorted((size for size in counts if size <= node), reverse=True)
    if free < 0:
        return False
    chain = all(large % one == 0 for large, one in pairwise(small))
    if chain:
        used = 0
        for size in small:
            used += size * counts[size]
            if used > free * size * (node // size):
                return False
        return True
    return _search(tuple((size, counts[size]) for size in small), node, free)


def _search(left: tuple[tuple[int, int], ...], node: int, free: int) -> bool:
    """Fill node after node, each with the largest worker that is left and every way of the rest, fullest first."""
    sizes = [size for size, _ in left]

    def fill(remaining: tuple[int, ...], start: int, room: int) -> list[tuple[int, ...]]:
        """What is left after filling one node with no room for one more: moving a worker forward never hurts."""
        if start == len(sizes):
            least = min((size for size, count in zip(sizes, remaining, strict=True) if count), default=room + 1)
            return [remaining] if least > room else []
        ways = []
        for count in range(min(remaining[start], room // sizes[start]), -1, -1):
            after = tuple(c - count * (i == start) for i, c in enumerate(remaining))
            ways += fill(after, start + 1, room - count * sizes[start])
        return ways

    stack, seen = [(tuple(count for _, count in left), free)], set[tuple[tuple[int, ...], int]]()
    while stack:
        remaining, nodes = stack.pop()
        if not any(remaining):
            return True
        need = sum(size * count for size, count in zip(sizes, remaining, strict=True))
        if need > nodes * node or (remaining, nodes) in seen:
            continue
        seen.add((remaining, nodes))
        first = next(index for index, count in enumerate(remaining) if count)
        opened = tuple(count - (index == first) for index, count in enumerate(remaining))
        stack += [(after, nodes - 1) for after in reversed(fill(opened, first, node - sizes[first]))]
    return False


def _broken(
    rule: str, subject: str, message: str, amount: float | None = None, limit: float | None = None
) -> Violation:
    return Violation(rule=rule, subject=subject, message=message, amount=amount, limit=limit)
