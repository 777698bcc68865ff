"""Every rule of a plan of workers, from its decisions alone; no solver."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from formulations.parallelism.plans import by_hour, served_per_s, time_used
from formulations.parallelism.problem import FloatArray, IntArray, ParallelProblem
from planner.cost.verdict import Violation
from planner.parallel_plan import ParallelPlan, Routing, Workers

#: Relative difference of a claimed sum that is rounding.
ROUNDING = 1e-6


def check(problem: ParallelProblem, plan: ParallelPlan) -> list[Violation]:
    """Broken rules; an empty list for a plan that keeps them all."""
    target = problem.target_per_s
    alone = problem if target is None else problem.at(target)
    found = _check_workers(alone, plan.workers, plan.routing, "plan")
    if any(one.rule == "worker" for one in found):
        return found
    served = _served(alone, plan.workers, plan.routing)
    asked = served if target is None else min(served, target)
    gpus = sum(one.num_gpus * one.count for one in plan.workers)
    ttft = [one.ttft_s for one in plan.workers if one.role != "decode" and one.ttft_s is not None]
    tpot = [one.tpot_s for one in plan.workers if one.role != "prefill" and one.tpot_s is not None]
    sums = {
        "requests_per_s": served,
        "num_gpus": gpus,
        "ttft_s": max(ttft, default=None),
        "tpot_s": max(tpot, default=None),
        "output_tokens_per_s": asked * problem.mean_output_tokens,
        "output_tokens_per_s_per_gpu": asked * problem.mean_output_tokens / max(gpus, 1),
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
    hours = _check_hours(problem, plan)
    return [*found, *hours] if hours else [*found, *_check_changes(problem, plan)]


def _check_workers(
    problem: ParallelProblem, workers: Sequence[Workers], routing: Sequence[Routing], where: str
) -> list[Violation]:
    """Rules of one set of workers: that they are known, keep the limits, fit, and serve the rate."""
    names = {worker.name: index for index, worker in enumerate(problem.workers)}
    found: list[Violation] = []
    sizes: dict[int, Counter[int]] = defaultdict(Counter)
    for worker in workers:
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
    if any(one.rule == "worker" for one in found):
        return found
    found += _check_routing(problem, workers, routing)
    for device, counts in sizes.items():
        node, nodes = int(problem.node_gpus[device]), int(problem.nodes[device])
        if not fits(counts, node, nodes):
            name = problem.device_names[device]
            need = sum(size * count for size, count in counts.items())
            message = f"workers of {sorted(counts)} GPUs do not fit on {nodes} nodes of {node} {name}"
            found.append(_broken("packing", name, message, float(need), float(node * nodes)))
    served = _served(problem, workers, routing)
    if problem.target_per_s is not None and served < problem.target_per_s * (1 - ROUNDING):
        message = f"{served:.6g} requests/s are served, {problem.target_per_s:g} are asked"
        found.append(_broken("rate", where, message, served, problem.target_per_s))
    count = sum(worker.count for worker in workers)
    if problem.max_workers is not None and count > problem.max_workers:
        found.append(_broken("max_workers", where, f"{count} workers", float(count), float(problem.max_workers)))
    return found


def _flows(problem: ParallelProblem, routing: Sequence[Routing]) -> FloatArray | None:
    """Requests/s of each size by each type, [M, W]; None without any routing. KeyError for what is not known."""
    if not routing or problem.sizes is None:
        return None
    size = {(int(i), int(o)): m for m, (i, o) in enumerate(problem.sizes)}
    names = {worker.name: index for index, worker in enumerate(problem.workers)}
    flows = np.zeros((len(size), len(names)))
    for one in routing:
        flows[size[one.input_tokens, one.output_tokens], names[one.worker]] += one.requests_per_s
    return flows


def _check_routing(problem: ParallelProblem, workers: Sequence[Workers], routing: Sequence[Routing]) -> list[Violation]:
    """Requests flow to workers that are there, serve their size, and have the time."""
    try:
        flows = _flows(problem, routing)
    except KeyError as error:
        return [_broken("routing", "plan", f"there is no {error.args[0]!r} to route")]
    if routing and flows is None:
        return [_broken("routing", "plan", "requests of one size need no routing")]
    if flows is None:
        return []
    counts = _counts(problem, workers)
    busy = time_used(problem, flows)
    return [
        _broken(
            "routing",
            problem.workers[w].name,
            f"{busy[w]:.6g} are kept busy, {counts[w]} are there",
            busy[w],
            float(counts[w]),
        )
        for w in np.flatnonzero(busy > counts * (1 + ROUNDING) + ROUNDING).tolist()
    ]


def _counts(problem: ParallelProblem, workers: Sequence[Workers]) -> IntArray:
    names = {worker.name: worker.count for worker in workers}
    return np.array([names.get(worker.name, 0) for worker in problem.workers], dtype=np.int64)


def _served(problem: ParallelProblem, workers: Sequence[Workers], routing: Sequence[Routing]) -> float:
    try:
        flows = _flows(problem, routing)
    except KeyError:
        flows = None
    return served_per_s(problem, _counts(problem, workers), flows)


def _check_hours(problem: ParallelProblem, plan: ParallelPlan) -> list[Violation]:
    """Every hour is there once, at its rate, and its workers keep the rules of one hour."""
    asked = [] if problem.hourly is None else problem.hourly.tolist()
    told = sorted(hour for period in plan.periods for hour in period.hours)
    if told != list(range(len(asked))):
        return [_broken("periods", "plan", f"periods are of {len(told)} hours, the demand is of {len(asked)}")]
    found: list[Violation] = []
    for place, period in enumerate(plan.periods):
        where = f"period {place}"
        for hour in period.hours:
            if asked[hour] != period.rate_per_s:
                message = f"hour {hour} asks for {asked[hour]:g} requests/s, its period for {period.rate_per_s:g}"
                found.append(_broken("rate", where, message))
        one = problem.at(period.rate_per_s)
        broken = _check_workers(one, period.workers, period.routing, where)
        found += broken
        if not any(each.rule == "worker" for each in broken):
            served = _served(one, period.workers, period.routing)
            found += _claimed("requests_per_s", served, period.requests_per_s)
            gpus = float(sum(each.num_gpus * each.count for each in period.workers))
            found += _claimed("num_gpus", gpus, float(period.num_gpus))
    return found


def _check_changes(problem: ParallelProblem, plan: ParallelPlan) -> list[Violation]:
    """Where steps are told, they lead from each hour's workers to the next one's, and what starts fits beside what
    runs."""
    if not plan.changes:
        return []
    sets = [workers for _, workers in by_hour(plan)]
    first = 1
    if problem.current is not None:
        sets, first = [problem.current, *sets], 0
    steps = {one.hour: one.steps for one in plan.changes}
    found = []
    for hour, (before, after) in enumerate(pairwise(sets), start=first):
        running = Counter({one.name: one.count for one in before})
        known = {one.name: one for one in (*before, *after)}
        for place, step in enumerate(steps.pop(hour, ())):
            if {*step.start, *step.stop} - known.keys():
                found.append(_broken("changes", f"hour {hour}", f"step {place} names a worker of neither plan"))
                break
            running.update(step.start)
            running.subtract(step.stop)
            sizes: dict[str, Counter[int]] = {name: Counter() for name in problem.device_names}
            for name, count in running.items():
                if known[name].device in sizes and count:
                    sizes[known[name].device][known[name].num_gpus] += count
            room = zip(problem.device_names, problem.node_gpus.tolist(), problem.nodes.tolist(), strict=True)
            if step.start and not all(fits(sizes[name], node, nodes) for name, node, nodes in room):
                found.append(_broken("changes", f"hour {hour}", f"what runs after step {place} does not fit"))
        if +running != Counter({one.name: one.count for one in after}) or min(running.values(), default=0) < 0:
            found.append(_broken("changes", f"hour {hour}", "the steps do not lead to the workers of the hour"))
    found += [_broken("changes", f"hour {hour}", "there is no such change") for hour in steps]
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
