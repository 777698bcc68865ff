"""From one set of workers to the next, in steps: which start and which stop, and in what order. No solver.

A step starts workers that fit beside those that run, or stops some. Of all orders one is taken in which the capacity
falls short of the demand by the least at worst, and of those one with few steps: the shortest path over the sets of
workers between the two, as far as those are few (MOST_SETS), and greedy beyond.

Workers that stay are taken to lie where the next ones leave room. Weights: a GPU on which a worker stopped keeps what
the worker that starts there needs of them, as far as their shares of dense weights and of experts nest (ElasticMoE,
arXiv 2510.02613: experts that a GPU has are not loaded again).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from math import prod
from typing import Any

from formulations.parallelism.check import fits
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import ParallelProblem
from planner.parallel_plan import Change, Step, Workers

#: Sets of workers between two plans that are looked at.
MOST_SETS = 4000

#: One worker that starts (+1) or stops (-1), by its place among those that change.
Action = tuple[int, int]
#: Counts of the workers that change, and whether the last action was to start or to stop.
_Node = tuple[tuple[int, ...], int]


def change(
    problem: ParallelProblem, before: Sequence[Workers], after: Sequence[Workers], demand_per_s: float, hour: int
) -> Change | None:
    """Steps from some workers to others while `demand_per_s` has to be served; None where nothing changes."""
    path = _Path(problem, before, after, demand_per_s)
    if not path.names:
        return None
    steps, state, short = [], path.first, 0.0
    for sign, group in groupby(path.actions(), key=lambda action: action[1]):
        moved = Counter(path.names[place] for place, _ in group)
        state = tuple(count + sign * moved[name] for name, count in zip(path.names, state, strict=True))
        served = path.served(state)
        short = max(short, demand_per_s - served)
        steps.append(
            Step(
                start=dict(moved) if sign > 0 else {},
                stop=dict(moved) if sign < 0 else {},
                requests_per_s=served if problem.share is None else None,
                num_gpus=path.gpus(state),
            )
        )
    weights = None if problem.predictions is None else _loaded(problem.predictions, path.known, steps)
    cache = None if problem.predictions is None else _cached(problem.predictions, path.known, steps)
    return Change(
        hour=hour,
        steps=tuple(steps),
        short_per_s=short if problem.share is None else None,
        started_gpus=sum(path.known[name].num_gpus * count for step in steps for name, count in step.start.items()),
        loaded_bytes=None if weights is None else weights[0],
        loaded_expert_bytes=None if weights is None else weights[1],
        cache_bytes=cache,
    )


def changes(problem: ParallelProblem, hours: Sequence[tuple[float | None, tuple[Workers, ...]]]) -> tuple[Change, ...]:
    """What changes before each hour, given the rate and workers of all; before the first one if something runs now.

    The demand meanwhile is the lower one of the two hours: more starts before it is needed, and less stops after.
    """
    found, known = [], dict[tuple[Any, ...], Change | None]()
    sets: list[tuple[float | None, tuple[Workers, ...]]] = list(hours)
    if problem.current is not None:
        sets = [(None, problem.current), *sets]
    first = 0 if problem.current is not None else 1
    for hour, ((rate, before), (next_rate, after)) in enumerate(pairwise(sets), start=first):
        rates = [one for one in (rate, next_rate, problem.target_per_s) if one is not None]
        if problem.share is not None or not rates:
            # What both can, in requests/s or, of several sizes, in GPUs.
            rates = [capacity(problem, ((one, one.count) for one in workers)) for workers in (before, after)]
        demand = min(rates)
        key = tuple((one.name, one.count) for one in before), tuple((one.name, one.count) for one in after), demand
        if key not in known:
            known[key] = change(problem, before, after, demand, hour)
        one = known[key]
        if one is not None:
            found.append(one.model_copy(update={"hour": hour}))
    return tuple(found)


def capacity(problem: ParallelProblem, workers: Iterable[tuple[Workers, int]]) -> float:
    """Requests/s of so many workers; of several sizes their GPUs."""
    sides = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
    for one, count in workers:
        sides[one.role] += count * (one.requests_per_s if problem.share is None else one.num_gpus)
    if problem.share is not None:
        return sum(sides.values())
    return sides["both"] + min(sides["prefill"], sides["decode"])


class _Path:
    """Sets of workers between two plans: those that stay, and counts of those that change."""

    def __init__(
        self, problem: ParallelProblem, before: Sequence[Workers], after: Sequence[Workers], demand_per_s: float
    ) -> None:
        self._problem = problem
        self.known = {one.name: one for one in (*before, *after)}
        old, new = ({one.name: one.count for one in workers} for workers in (before, after))
        self.names = [name for name in self.known if old.get(name, 0) != new.get(name, 0)]
        self.stay = {name: count for name, count in old.items() if name not in self.names}
        self.first = tuple(old.get(name, 0) for name in self.names)
        self.last = tuple(new.get(name, 0) for name in self.names)
        self.demand_per_s = demand_per_s
        self._nodes = {
            name: (int(size), int(count))
            for name, size, count in zip(problem.device_names, problem.node_gpus, problem.nodes, strict=True)
        }

    def running(self, state: tuple[int, ...]) -> Iterator[tuple[Workers, int]]:
        for name, count in (*self.stay.items(), *zip(self.names, state, strict=True)):
            yield self.known[name], count

    def served(self, state: tuple[int, ...]) -> float:
        """Capacity of a set."""
        return capacity(self._problem, self.running(state))

    def gpus(self, state: tuple[int, ...]) -> int:
        return sum(one.num_gpus * count for one, count in self.running(state))

    def possible(self, state: tuple[int, ...]) -> bool:
        """All fit onto the nodes. What runs on devices that are gone is in nobody's way."""
        sizes = {name: Counter[int]() for name in self._nodes}
        for one, count in self.running(state):
            if one.device in sizes and count:
                sizes[one.device][one.num_gpus] += count
        return all(fits(sizes[name], *self._nodes[name]) for name in sizes)

    def _next(self, state: tuple[int, ...]) -> Iterator[tuple[Action, tuple[int, ...]]]:
        for place, (count, goal) in enumerate(zip(state, self.last, strict=True)):
            sign = (goal > count) - (goal < count)
            if sign:
                after = (*state[:place], count + sign, *state[place + 1 :])
                # What ran before fitted somehow, even where the cluster has shrunk: stopping is always possible.
                if sign < 0 or self.possible(after):
                    yield (place, sign), after

    def actions(self) -> list[Action]:
        """From the first set to the last, one worker at a time."""
        sets = prod(abs(old - new) + 1 for old, new in zip(self.first, self.last, strict=True))
        return self._shortest() if sets <= MOST_SETS else self._greedy()

    def _shortest(self) -> list[Action]:
        """The least shortfall at worst, then the fewest changes between starting and stopping."""
        start: _Node = (self.first, 0)
        heap: list[tuple[float, int, int, _Node]] = [(0.0, 0, 0, start)]
        best: dict[_Node, tuple[float, int]] = {start: (0.0, 0)}
        came: dict[_Node, tuple[_Node, Action]] = {}
        order = 0
        while True:
            # Never empty before the end: stopping is always possible, and the last set fits.
            short, turns, _, node = heapq.heappop(heap)
            if node[0] == self.last:
                break
            if (short, turns) > best[node]:
                continue
            for action, after in self._next(node[0]):
                new = (after, action[1])
                cost = max(short, self.demand_per_s - self.served(after)), turns + (action[1] != node[1])
                if new not in best or cost < best[new]:
                    order += 1
                    best[new], came[new] = cost, (node, action)
                    heapq.heappush(heap, (*cost, order, new))
        found = []
        while node != start:
            node, action = came[node]
            found.append(action)
        return found[::-1]

    def _greedy(self) -> list[Action]:
        """Start what fits; else stop the worker that the capacity misses least."""
        state, found = self.first, []
        while state != self.last:
            action, state = max(self._next(state), key=lambda one: (one[0][1], self.served(one[1])))
            found.append(action)
        return found


def _loaded(
    predictions: Predictions, known: Mapping[str, Workers], steps: Sequence[Step]
) -> tuple[float, float] | None:
    """Bytes of weights, and of experts among them, that started GPUs do not hold from what stopped there before."""
    if any(predictions.weight_parts(one) is None for one in known.values()):
        return None
    parts = {name: predictions.weight_parts(one) or (0.0, 0.0) for name, one in known.items()}
    free: Counter[str] = Counter()
    dense = experts = 0.0
    for step in steps:
        for name, count in step.stop.items():
            free[name] += known[name].num_gpus * count
        for name, count in step.start.items():
            need, left = parts[name], known[name].num_gpus * count

            def kept(other: str, need: tuple[float, float] = need) -> tuple[float, float]:
                return min(need[0], parts[other][0]), min(need[1], parts[other][1])

            for other in sorted(free, key=lambda other: -sum(kept(other))):
                if known[other].device == known[name].device:
                    taken = min(left, free[other])
                    free[other] -= taken
                    left -= taken
                    dense += taken * (need[0] - kept(other)[0])
                    experts += taken * (need[1] - kept(other)[1])
            dense += left * need[0]
            experts += left * need[1]
    return dense + experts, experts


def _cached(predictions: Predictions, known: Mapping[str, Workers], steps: Sequence[Step]) -> float | None:
    """Bytes of cache of the sequences on workers that stop; prefill workers hold none for long."""
    total = 0.0
    for step in steps:
        for name, count in step.stop.items():
            one = known[name]
            if one.role == "prefill":
                continue
            if predictions.model_of(one) is None:
                return None
            total += count * one.num_gpus * predictions.memory_parts(one)["cache"]
    return total
