"""Packing of the true lengths into given groups, and its improvement."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from formulations.parallelism.training.sequences.problem import FloatArray, IntArray, SequenceProblem


@dataclass(slots=True, eq=False)
class Packing:
    """Which group holds each sequence, and when groups end."""

    degree: IntArray  # [G] places in problem.degrees
    held_by: IntArray  # [n]
    end_s: FloatArray  # [G]
    tokens: FloatArray  # [G]

    @property
    def makespan(self) -> float:
        return float(self.end_s.max())


def pack(problem: SequenceProblem, groups: IntArray) -> Packing | None:
    """Longest sequences first, each to the group that then ends earliest; None where one finds no room.

    groups : [D] how many of each degree.
    """
    degree = np.repeat(np.arange(groups.size), groups)[::-1]
    fits = problem.fits
    room = problem.tokens_per_device * problem.degrees
    # Of a degree only the group that ends first matters, as long as it has room.
    queues: list[list[tuple[float, int, float]]] = [[] for _ in groups]
    for group, d in enumerate(degree.tolist()):
        heapq.heappush(queues[d], (float(problem.group_s[d]), group, 0.0))
    held_by = np.zeros(problem.tokens.size, dtype=np.int64)
    order = np.argsort(-problem.tokens, kind="stable")
    for i, tokens in zip(order.tolist(), problem.tokens[order].tolist(), strict=True):
        best: tuple[float, int, int] | None = None
        for d in np.flatnonzero(fits[i]).tolist():
            for place, (end_s, _, used) in enumerate(queues[d]):
                after = end_s + float(problem.sequence_s[i, d])
                if best is not None and after >= best[0]:
                    if place == 0:
                        break
                    continue
                if used + tokens <= room[d]:
                    best = (after, d, place)
                    break
        if best is None:
            return None
        after, d, place = best
        _, group, used = queues[d][place]
        queues[d][place] = (after, group, used + tokens)
        heapq.heapify(queues[d])
        held_by[i] = group
    return _packing(problem, degree, held_by)


def _packing(problem: SequenceProblem, degree: IntArray, held_by: IntArray) -> Packing:
    added = problem.sequence_s[np.arange(held_by.size), degree[held_by]]
    return Packing(
        degree=degree,
        held_by=held_by,
        end_s=problem.group_s[degree] + np.bincount(held_by, weights=added, minlength=degree.size),
        tokens=np.bincount(held_by, weights=problem.tokens, minlength=degree.size).astype(np.float64),
    )


def improve(problem: SequenceProblem, packing: Packing) -> Packing:
    """Move or swap one sequence of the slowest group, the best way each time, until none helps."""
    room = (problem.tokens_per_device * problem.degrees)[packing.degree]
    every_s = np.where(problem.fits, problem.sequence_s, np.inf)
    while True:
        slow = int(packing.end_s.argmax())
        own = np.flatnonzero(packing.held_by == slow)
        own_s = every_s[own, packing.degree[slow]]
        # Moved to group g, which then ends at ...
        away_s = packing.end_s[slow] - own_s
        there_s = packing.end_s[None] + every_s[own][:, packing.degree]
        full = packing.tokens[None] + problem.tokens[own][:, None] > room[None]
        moved_s = np.where(full, np.inf, np.maximum(there_s, away_s[:, None]))
        moved_s[:, slow] = np.inf
        # Swapped with sequence j of another group.
        other = packing.held_by
        degree = packing.degree[other]
        change = problem.tokens[own][:, None] - problem.tokens[None]
        here_s = away_s[:, None] + every_s[:, packing.degree[slow]][None]
        gone_s = packing.end_s[other] - every_s[np.arange(other.size), degree]
        across_s = gone_s[None] + every_s[own][:, degree]
        full = (packing.tokens[other] + change > room[other]) | (packing.tokens[slow] - change > room[slow])
        swapped_s = np.where(full | (other == slow)[None], np.inf, np.maximum(here_s, across_s))
        best_s = min(moved_s.min(initial=np.inf), swapped_s.min(initial=np.inf))
        if not best_s < packing.end_s[slow] * (1 - 1e-9):
            return packing
        held_by = packing.held_by.copy()
        if moved_s.min(initial=np.inf) <= best_s:
            i, group = np.unravel_index(int(moved_s.argmin()), moved_s.shape)
            held_by[own[i]] = group
        else:
            i, j = np.unravel_index(int(swapped_s.argmin()), swapped_s.shape)
            held_by[own[i]], held_by[j] = other[j], slow
        packing = _packing(problem, packing.degree, held_by)


def neighbours(problem: SequenceProblem, groups: IntArray) -> Iterator[IntArray]:
    """One group taken away for others of the same devices in all, or one more where devices are free."""
    degrees = problem.degrees
    free = problem.num_devices - int(groups @ degrees)
    for d in np.flatnonzero(degrees <= free).tolist():
        yield groups + (np.arange(groups.size) == d)
    for large in range(groups.size):
        for small in range(large):
            parts = int(degrees[large] // degrees[small])
            change = (np.arange(groups.size) == large) - parts * (np.arange(groups.size) == small)
            for after in (groups + change, groups - change):
                if (after >= 0).all() and after @ degrees <= problem.num_devices:
                    yield after


@dataclass(slots=True)
class Best:
    """The best packing so far; numbers of groups that were packed already."""

    problem: SequenceProblem
    packing: Packing | None = None
    tried: set[tuple[int, ...]] = field(default_factory=set)

    def offer(self, groups: IntArray) -> bool:
        """Pack and improve these numbers of groups; whether the best got better."""
        key = tuple(groups.tolist())
        if key in self.tried:
            return False
        self.tried.add(key)
        found = pack(self.problem, groups)
        # Improvement rarely gains more than this, and costs more than packing.
        if found is None or (self.packing is not None and found.makespan > 1.1 * self.packing.makespan):
            return False
        found = improve(self.problem, found)
        if self.packing is not None and found.makespan >= self.packing.makespan * (1 - 1e-9):
            return False
        self.packing = found
        return True


def one_degree(problem: SequenceProblem) -> Best:
    """The plain rule: groups of one degree, as many as there are devices for, packed longest first."""
    best = Best(problem)
    for d, degree in enumerate(problem.degrees.tolist()):
        best.offer((np.arange(problem.degrees.size) == d) * (problem.num_devices // degree))
    return best
