"""An order of moves that can be carried out: a pod starts on its new node while it still runs on the old one.

Evictions for good come first. Then waves: in each, every move whose place is free now, old places still taken; they are
given back when the wave is over. Where nothing can start, moves wait for each other in a circle, and one pod is chosen
whose exit lets another one in: it goes to a spare place for a while (an extra move), or, where there is none, it is
evicted first and starts again when its place is free. Where circles were broken, other choices are tried, and the order
that stops fewest pods, then breaks fewest circles, is kept; without any it is the least, else that is not proven.
Pending pods come last.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass

import numpy as np

from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.state import State
from planner.pods_plan import GpuShare, PodMove

Place = tuple[int, tuple[int, ...]]
#: Orders that are tried, as long as moves times broken circles are no more than this.
TRIES, MOST_WORK = 6, 30_000


@dataclass(frozen=True, slots=True)
class Order:
    """Moves by step, from 1, and pods evicted for good before them."""

    moves: tuple[PodMove, ...]
    evictions: tuple[str, ...]


def ordered(problem: PodsProblem, targets: Mapping[int, Place | None]) -> Order:
    """The order for running pods and their new places; None is an eviction."""
    room = State(problem)
    best: tuple[tuple[int, int], Order] | None = None
    for attempt in range(TRIES):
        order = _Ordering(problem, targets, room, attempt).run()
        ways = Counter(move.way for move in order.moves)
        breaks = ways["evict-first"], ways["spare"]
        if best is None or breaks < best[0]:
            best = breaks, order
        if not any(breaks) or len(targets) * sum(breaks) > MOST_WORK:
            break
    assert best is not None
    return best[1]


class _Ordering:
    def __init__(self, problem: PodsProblem, targets: Mapping[int, Place | None], room: State, attempt: int) -> None:
        self.problem = problem
        self.room = copy(room)
        self.room.free, self.room.device = room.free.copy(), room.device.copy()
        #: Pods with a lower number come first: at first as in the instance, then at random.
        self.rank = np.arange(len(problem.pod_names))
        if attempt:
            self.rank = np.random.default_rng(attempt).permutation(self.rank)
        self.evicted = [pod for pod, place in targets.items() if place is None]
        self.target = {pod: place for pod, place in targets.items() if place is not None}
        self.now: dict[int, Place | None] = {
            pod: (int(problem.pod_node[pod]), problem.pod_devices[pod]) for pod in self.target
        }
        self.coming: dict[int, set[int]] = defaultdict(set)
        self.leaving: dict[int, set[int]] = defaultdict(set)
        for pod, (node, _) in self.target.items():
            self.coming[node].add(pod)
            self.leaving[int(problem.pod_node[pod])].add(pod)
        #: Of pods that were evicted first: the step, and the node.
        self.out_since: dict[int, int] = {}
        self.came_from: dict[int, int] = {}
        self.spared: set[int] = set()
        self.looked = 0
        self.moves: list[PodMove] = []
        self.step = 0

    def run(self) -> Order:
        for pod in self.evicted:
            self._shift(pod, (int(self.problem.pod_node[pod]), self.problem.pod_devices[pod]), 1)
        looked = sorted(self.coming)
        while any(self.coming.values()):
            freed = self._wave(looked)
            looked = self._break() if freed is None else freed
        moves = sorted(self.moves, key=lambda move: move.step)
        return Order(tuple(moves), tuple(self.problem.pod_names[pod] for pod in self.evicted))

    def _shift(self, pod: int, place: Place, sign: int) -> None:
        """Give back (1) or take (-1) the room of a pod at a place."""
        problem, (node, devices) = self.problem, place
        j = problem.pod_class[pod]
        self.room.free[node] += sign * problem.request[j]
        self.room.device[node, list(devices)] += sign * problem.class_milli[j]

    def _fits(self, pod: int, place: Place) -> bool:
        problem, (node, devices) = self.problem, place
        j = problem.pod_class[pod]
        if (problem.request[j] > self.room.free[node]).any():
            return False
        return bool((self.room.device[node, list(devices)] >= problem.class_milli[j]).all())

    def _wave(self, nodes: Iterable[int]) -> list[int] | None:
        """Start what fits on these nodes; nodes with more room afterwards, None where nothing could start."""
        self.step += 1
        started: list[tuple[int, Place | None]] = []
        for node in nodes:
            for pod in sorted(self.coming[node], key=self.rank.__getitem__):
                place = self.target[pod]
                if self._fits(pod, place):
                    self._shift(pod, place, -1)
                    started.append((pod, self.now[pod]))
                    self.coming[node].discard(pod)
                    self._note(pod, place, "direct")
        for pod, old in started:
            if old is not None:
                self._shift(pod, old, 1)
                self.leaving[old[0]].discard(pod)
        if not started:
            self.step -= 1
            return None
        return sorted({old[0] for _, old in started if old is not None})

    def _note(self, pod: int, place: Place, way: str) -> None:
        problem, old = self.problem, self.now[pod]
        source = self.came_from[pod] if old is None else old[0]
        milli = int(problem.class_milli[problem.pod_class[pod]])
        out = pod in self.out_since
        self.moves.append(
            PodMove.model_validate(
                {
                    "step": self.out_since[pod] if out else self.step,
                    "pod": problem.pod_names[pod],
                    "from": problem.node_names[source],
                    "to": problem.node_names[place[0]],
                    "gpus": tuple(GpuShare(index=d, gpu_milli=milli) for d in sorted(place[1])),
                    "way": "evict-first" if out else way,
                    "arrives": self.step if out else None,
                }
            )
        )
        self.now[pod] = place

    def _break(self) -> list[int]:
        """Break one circle; the nodes to look at then."""
        best: tuple[bool, bool, int, int] | None = None
        room: dict[int, bool] = {}
        waited = sorted(node for node, pods in self.coming.items() if pods)
        # On from where the last circle was broken.
        first = bisect_left(waited, self.looked)
        for node in (*waited[first:], *waited[:first]):
            for pod in sorted(self.leaving[node], key=self.rank.__getitem__):
                if self.now[pod] is None:
                    continue
                j = int(self.problem.pod_class[pod])
                if j not in room:
                    room[j] = bool(self.room.room(j).any())
                admits = self._admits(pod, node)
                spare = room[j] and pod not in self.spared and self._spare(pod) is not None
                rank = (admits, spare, -int(self.rank[pod]), pod)
                if best is None or rank > best:
                    best = rank
                if admits and spare:
                    break
            if best is not None and best[0] and best[1]:
                self.looked = node
                break
        assert best is not None, "every place of the plan is free once all pods that leave have left"
        pod = best[3]
        place = self.now[pod]
        assert place is not None
        self.step += 1
        guest = self._spare(pod) if best[1] else None
        if guest is None:
            self.out_since[pod] = self.step
            self._shift(pod, place, 1)
            self.leaving[place[0]].discard(pod)
            self.now[pod] = None
            # It leaves at the beginning of the step, in which others may start.
            self.step -= 1
            self.came_from[pod] = place[0]
        else:
            self.spared.add(pod)
            self._shift(pod, guest, -1)
            self._note(pod, guest, "spare")
            self._shift(pod, place, 1)
            self.leaving[place[0]].discard(pod)
            self.leaving[guest[0]].add(pod)
        return [place[0]]

    def _admits(self, pod: int, node: int) -> bool:
        """Whether a waiting pod fits once this one has left the node."""
        place = self.now[pod]
        assert place is not None
        self._shift(pod, place, 1)
        found = any(self._fits(other, self.target[other]) for other in self.coming[node])
        self._shift(pod, place, -1)
        return found

    def _spare(self, pod: int) -> Place | None:
        """A place for a while, on another node than the pod's and with least room left behind."""
        place = self.now[pod]
        assert place is not None
        j = int(self.problem.pod_class[pod])
        nodes = self.room.room(j)
        nodes[place[0]] = False
        # Where others want to go, a guest would be in the way.
        quiet = nodes.copy()
        quiet[[node for node, pods in self.coming.items() if pods]] = False
        if quiet.any():
            nodes = quiet
        if not nodes.any():
            return None
        node = int(np.flatnonzero(nodes)[0])
        return node, self.room.devices(j, node)
