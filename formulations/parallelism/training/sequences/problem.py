"""Sequences of different lengths over sequence-parallel groups of different sizes, for one micro-batch.

A long sequence needs a large group; short ones lose time in it. All groups work side by side and wait for the slowest.

Sets
    i   sequences
    k   classes of sequences of similar length, at most MAX_CLASSES
    d   degrees: devices of a sequence-parallel group
Data
    l[i]       tokens of a sequence
    t[i,d]     seconds that a sequence adds to a group of degree d; infinite where it cannot go
    b[d]       seconds that a group takes whatever it holds
    N, C       devices, and tokens that one device has room for
    t[k,d], l[k]   the least of a class's members, so that the program below bounds the real problem
Variables
    a[k,d]     sequences of a class that go to groups of a degree, continuous
    n[d]       groups of a degree, integer
Program for a given time T
    minimise   sum_d d n[d]                     devices; T is within reach only if they are at most N
    classes    sum_d a[k,d] = size of k                                                     every class
    time       sum_k t[k,d] a[k,d] <= (T - b[d]) n[d]                                       every degree
    memory     sum_k l[k] a[k,d] <= C d n[d]                                                every degree
    fits       a[k,d] = 0 where t[k,d] > T - b[d] or l[k] > C d
Search
    bisection of T; the last T that is proven out of reach is a bound
    numbers of groups found on the way, and those for T a little higher, are packed with the true lengths: longest
    first, each to the group that then ends earliest; then sequences of the slowest group are moved and swapped, and
    groups are split and merged, while that helps

Ignored: where groups lie (with degrees that are powers of two, largest first, none straddles more nodes than it must),
and how sequences came into this micro-batch.
Reference: FlexSP (arXiv 2412.01523), whose program names every group; equal groups are interchangeable and their
number is all that matters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SequenceProblem:
    """One micro-batch. Times may be in any unit, all the same.

    tokens : [n] of each sequence, at least 1.
    degrees : [D] devices of a group, ascending and different.
    sequence_s : [n, D] that a sequence adds to a group; infinite where it cannot go.
    group_s : [D] of a group whatever it holds.
    """

    tokens: IntArray
    degrees: IntArray
    sequence_s: FloatArray
    group_s: FloatArray
    num_devices: int
    tokens_per_device: float

    def __post_init__(self) -> None:
        shape = (self.tokens.size, self.degrees.size)
        if self.sequence_s.shape != shape or self.group_s.shape != shape[1:] or not all(shape):
            raise ValueError("sequence_s is [sequences, degrees], group_s [degrees]; neither is empty")
        if (self.tokens < 1).any() or self.degrees[0] < 1 or (np.diff(self.degrees) <= 0).any():
            raise ValueError("sequences have tokens, and degrees are ascending")
        if not ((self.sequence_s >= 0).all() and (self.group_s >= 0).all() and np.isfinite(self.group_s).all()):
            raise ValueError("times must be numbers and not negative")
        if self.num_devices < 1 or not self.tokens_per_device > 0:
            raise ValueError("there must be devices, with room for tokens")

    @property
    def fits(self) -> npt.NDArray[np.bool_]:
        """Whether a sequence can go to a group of a degree at all, [n, D]."""
        room = self.tokens_per_device * self.degrees
        small = self.degrees <= self.num_devices
        return np.asarray(np.isfinite(self.sequence_s) & (self.tokens[:, None] <= room) & small)


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that one sequence-parallel group works on, by number."""

    degree: int
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """Groups, largest first."""

    groups: tuple[Group, ...]


def makespan(problem: SequenceProblem, plan: SequencePlan) -> float:
    """Time of the slowest group."""
    place = {int(degree): d for d, degree in enumerate(problem.degrees)}
    return max(
        float(problem.group_s[place[group.degree]])
        + float(problem.sequence_s[list(group.sequences), place[group.degree]].sum())
        for group in plan.groups
    )
