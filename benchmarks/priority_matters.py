"""Scenarios of "Priority Matters" (arXiv 2511.08373): their generator, and the default scheduler that they start from.

Reference: henrikdchristensen/scheduler-plugins, scripts/kwok_workload_once/test_runner.py. The scheduler is simulated:
LeastAllocated + BalancedAllocation + 2 × soft topology spread by hostname, with preemption; ties go to the first node.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.common import Row, data_folder
from formulations.base import solve
from formulations.outcome import SolveOptions, Status
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.problem import Leave, PodsProblem
from formulations.pod_packing.reading import read_problem
from planner.descriptions.pods import PodsInstance

#: Of a scenario, as published, from its arrays to the checked plan. On a busy machine the wall clock gives less than a
#: second of CPU: both are told.
SECONDS = 1.0
#: Milli-cores and bytes of a pod, and replicas of a set.
CPU, MEMORY, REPLICAS = (100, 1000), (100_000_000, 1_000_000_000), (1, 4)


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """Equal pods; a larger priority matters more."""

    priority: int
    cpu: int
    memory: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """Equal nodes, and sets in the order of their creation."""

    nodes: int
    cpu: int
    memory: int
    sets: tuple[ReplicaSet, ...]


def _rng(seed: int, label: str) -> random.Random:
    digest = hashlib.blake2b(seed.to_bytes(16, "big") + b"\0" + label.encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


def scenario(seed: int, nodes: int, pods: int, priorities: int, usage: float) -> Scenario:
    """The published generator, number for number."""
    sizes: list[int] = []
    draw = _rng(seed, "rs-sizes")
    while sum(sizes) < pods:
        sizes.append(draw.randint(REPLICAS[0], min(REPLICAS[1], pods - sum(sizes))))
    cores, memory, base = _rng(seed, "rs-cpu"), _rng(seed, "rs-mem"), _rng(seed, "base")
    cpus = [cores.randint(*CPU) for _ in sizes]
    memories = [memory.randint(*MEMORY) for _ in sizes]
    levels = [base.randint(1, priorities) for _ in sizes]
    return Scenario(
        nodes=nodes,
        cpu=_node(cpus, sizes, usage, nodes),
        memory=_node(memories, sizes, usage, nodes),
        sets=tuple(ReplicaSet(*one) for one in zip(levels, cpus, memories, sizes, strict=True)),
    )


def _node(amounts: list[int], sizes: list[int], usage: float, nodes: int) -> int:
    total = sum(amount * size for amount, size in zip(amounts, sizes, strict=True))
    whole = int(np.ceil(total / usage))
    return max(max(amounts), -(-whole // nodes))


class Scheduler:
    """The default scheduler at work; `node` of each pod, -1 while it is pending."""

    def __init__(self, given: Scenario) -> None:
        self.set = np.repeat(np.arange(len(given.sets)), [one.replicas for one in given.sets])
        self.request = np.array([(given.sets[s].cpu, given.sets[s].memory) for s in self.set], dtype=np.int64)
        self.priority = np.array([given.sets[s].priority for s in self.set], dtype=np.int64)
        self.capacity = np.array([given.cpu, given.memory], dtype=np.int64)
        self.free = np.tile(self.capacity, (given.nodes, 1))
        self.node = np.full(self.set.size, -1, dtype=np.int64)
        for s in range(len(given.sets)):
            self._create(s)

    def _create(self, s: int) -> None:
        """A set is created; then all that wait are tried, and again while preemption makes others wait."""
        for _ in range(self.set.size):
            arrived = self.set <= s
            waiting = np.flatnonzero((self.node < 0) & arrived)
            before = self.node.copy()
            for pod in waiting[np.argsort(-self.priority[waiting], kind="stable")].tolist():
                node = self._best(pod)
                if node < 0:
                    node = self._preempt(pod)
                if node >= 0:
                    self.node[pod] = node
                    self.free[node] -= self.request[pod]
            if (before == self.node).all():
                return

    def _best(self, pod: int) -> int:
        left = self.free - self.request[pod]
        fits = (left >= 0).all(axis=1)
        if not fits.any():
            return -1
        least = (100 * left // self.capacity).sum(axis=1) // 2
        used = 1.0 - left / self.capacity
        balanced = (100 * (1.0 - np.abs(used[:, 0] - used[:, 1]) / 2)).astype(np.int64)
        alike = np.bincount(self.node[(self.set == self.set[pod]) & (self.node >= 0)], minlength=len(left))
        most, fewest = alike[fits].max(), alike[fits].min()
        spread = np.where(most > 0, 100 * (most + fewest - alike) // max(1, most), 100)
        points = np.where(fits, least + balanced + 2 * spread, -1)
        return int(points.argmax())

    def _preempt(self, pod: int) -> int:
        """Room by evicting pods of lower priority: the least important, fewest; the node, or -1."""
        best: tuple[tuple[int, int, int, int], list[int]] | None = None
        for node in range(len(self.free)):
            lower = np.flatnonzero((self.node == node) & (self.priority < self.priority[pod]))
            free = self.free[node] + self.request[lower].sum(axis=0) - self.request[pod]
            if not lower.size or (free < 0).any():
                continue
            victims = []
            for other in lower[np.argsort(-self.priority[lower], kind="stable")].tolist():
                if (self.request[other] <= free).all():
                    free = free - self.request[other]
                else:
                    victims.append(other)
            levels = [int(self.priority[other]) for other in victims]
            key = max(levels), sum(levels), len(levels), node
            if best is None or key < best[0]:
                best = key, victims
        if best is None:
            return -1
        for other in best[1]:
            self.free[self.node[other]] += self.request[other]
            self.node[other] = -1
        return best[0][3]


def problem_of(given: Scenario, node: np.ndarray) -> PodsProblem:
    """The scenario with its pods on these nodes, all of them free to move or to be evicted."""
    owner = np.repeat(np.arange(len(given.sets)), [one.replicas for one in given.sets])
    pods = []
    for s, at in sorted({*zip(owner.tolist(), node.tolist(), strict=True)}):
        one, count = given.sets[s], int(((owner == s) & (node == at)).sum())
        where = {} if at < 0 else {"node": f"n-{at}"}
        name = f"rs{s}-{'waits' if at < 0 else at}"
        pods.append({"name": name, "count": count, "cpu": f"{one.cpu}m", "memory": one.memory,
                     "priority": one.priority, **where})  # fmt: skip
    nodes = [{"name": "n", "count": given.nodes, "cpu": f"{given.cpu}m", "memory": given.memory, "pods": 1000}]
    found = read_problem(PodsInstance.model_validate({"name": "scenario", "nodes": nodes, "pods": pods}))
    return with_moves(found, None)


def with_moves(problem: PodsProblem, most: int | None) -> PodsProblem:
    """So many moves and evictions may be made; None for any number."""
    running = problem.pod_node >= 0
    everyone = np.ones(problem.num_classes, dtype=np.bool_)
    allowed = int(running.sum()) if most is None else most
    return replace(problem, leave=Leave(most=allowed, movable=running, evictable=everyone))


@dataclass(frozen=True, slots=True)
class Result:
    """What one method made of a scenario: pods placed by priority from the highest, and pods disturbed."""

    placed: tuple[int, ...]
    disturbed: int
    seconds: float
    cpu_s: float
    failed: bool = False
    proven: bool = False


def run(problem: PodsProblem, method: str) -> Result:
    """The checked plan of a method; where it has none, pods stay as they are."""
    started, cpu_started = time.perf_counter(), time.process_time()
    outcome = solve(POD_PACKING, problem, SolveOptions(time_limit_s=SECONDS, method=method))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    if outcome.plan is None:
        return Result(standing(problem), 0, seconds, cpu_s, failed=True)
    moved = {move.pod for move in outcome.plan.moves}
    return Result(
        placed=tuple(round(tier.value) for tier in outcome.plan.tiers),
        disturbed=len(moved) + len(outcome.plan.evictions),
        seconds=seconds,
        cpu_s=cpu_s,
        proven=outcome.status is Status.OPTIMAL,
    )


def standing(problem: PodsProblem) -> tuple[int, ...]:
    """Pods that run, by priority from the highest."""
    counts = problem.running
    return tuple(int(aim.weight @ counts) for aim in problem.aims)


def cells(short: bool) -> Iterator[tuple[str, list[PodsProblem]]]:
    """Scenarios in which the default scheduler leaves pods pending, by number of nodes."""
    folder = data_folder("pods") / "priority_matters"
    seeds = [int(line) for line in (folder / "seeds_nodes64_pods512_prio4_util095.txt").read_text().split()]
    for nodes, per_node in ((8, 4),) if short else ((4, 4), (8, 4), (16, 4), (32, 4), (64, 8)):
        problems = []
        for priorities in (4,) if short else (1, 4):
            for usage in (0.95, 1.0):
                for seed in seeds[: 2 if short else (6 if nodes < 64 else 2)]:
                    given = scenario(seed, nodes, per_node * nodes, priorities, usage)
                    problem = problem_of(given, Scheduler(given).node)
                    if problem.pending.any():
                        problems.append(problem)
        yield f"priority-matters, {nodes} nodes", problems


def rows(short: bool) -> Iterator[Row]:
    """One second each, against the default scheduler and the published model; then with its number of moves."""
    warm = problem_of(scenario(1, 4, 16, 1, 1.0), np.full(16, -1, dtype=np.int64))
    # Loading solvers and machine code is the start of a process, not of a scenario.
    run(warm, "auto")
    for case, problems in cells(short):
        pending = {"default": 0, "published": 0, "ours": 0, "budget": 0}
        better = known = worse = failed = not_worse = 0
        slowest = cpu_s = their_cpu_s = 0.0
        for problem in problems:
            old, theirs, ours = standing(problem), *(run(problem, one) for one in ("priority-matters", "auto"))
            # Their plug-in drops a plan that is not better than what stands.
            anchor = theirs if theirs.placed > old else Result(old, 0, theirs.seconds, theirs.cpu_s)
            bounded = run(with_moves(problem, anchor.disturbed), "auto")
            total = int((problem.demand + problem.running).sum())
            results = (
                ("default", old),
                ("published", anchor.placed),
                ("ours", ours.placed),
                ("budget", bounded.placed),
            )
            for name, placed in results:
                pending[name] += total - sum(placed)
            better += ours.placed > old
            known += ours.placed > old or ours.proven
            worse += ours.placed < max(old, anchor.placed)
            failed += ours.failed
            not_worse += bounded.placed >= anchor.placed
            slowest = max(slowest, ours.seconds)
            cpu_s += ours.cpu_s
            their_cpu_s += theirs.cpu_s
        share = 100 / max(1, len(problems))
        yield Row(case, "better than the default scheduler", share * better, 95.0, "asked", "%", "higher")
        yield Row(case, "better, or proven that none is", share * known, 95.0, "asked", "%", "higher")
        yield Row(case, "worse than either, or failed", worse + failed, 0.0, "asked", "plans", "lower")
        yield Row(case, "pods pending", pending["ours"], pending["default"], "default scheduler", "pods", "lower")
        yield Row(case, "pods pending", pending["ours"], pending["published"], "published model", "pods", "lower")
        yield Row(case, "pending, at its moves", pending["budget"], pending["published"], "published", "pods", "lower")
        yield Row(case, "not worse, at its moves", share * not_worse, 95.0, "asked", "%", "higher")
        yield Row(case, "slowest scenario", slowest, SECONDS, "asked", "s", "lower")
        yield Row(case, "CPU a scenario", share / 100 * cpu_s, share / 100 * their_cpu_s, "published", "s", "lower")
