"""An order of VM moves that can be carried out, NUMA node by NUMA node; as `ordering` does for devices.

Waves of moves whose places are free while the old ones are still taken. Where none can start, one VM goes to a spare
place for a while, or, where there is none, stops first and starts again when its place is free. Greedy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from formulations.pod_packing.numa.slots import Place, Slots
from planner.pods_plan import PodMove


class VmOrder:
    """The moves of VMs to their new places, from `slots`, which hold all VMs where they run now."""

    def __init__(self, slots: Slots, targets: Mapping[int, Place]) -> None:
        self.slots, self.problem = slots, slots.problem
        self.target = dict(targets)
        self.now: dict[int, Place] = {
            pod: (int(self.problem.pod_node[pod]), slots.numa.places[pod]) for pod in self.target
        }
        self.out_since: dict[int, int] = {}
        self.spared: set[int] = set()
        self.moves: list[PodMove] = []
        self.step = 0

    def run(self) -> tuple[PodMove, ...]:
        """By step, from 1."""
        left = dict(self.target)
        while left:
            self.step += 1
            ready = [pod for pod in left if self._fits(pod, left[pod]) and self._start(pod, left[pod])]
            for pod in ready:
                self._arrive(pod, left.pop(pod))
            if not ready:
                self._break(list(left))
        return tuple(sorted(self.moves, key=lambda move: (move.step, move.arrives or 0)))

    def _class(self, pod: int) -> int:
        return int(self.problem.pod_class[pod])

    def _fits(self, pod: int, place: Place) -> bool:
        return self.slots.fits(place[0], self._class(pod), place[1])

    def _start(self, pod: int, place: Place) -> bool:
        self.slots.put(place[0], self._class(pod), place[1])
        return True

    def _arrive(self, pod: int, place: Place) -> None:
        """Tell the move, and give the old place back."""
        old, names = self.now[pod], self.problem.node_names
        since = self.out_since.pop(pod, None)
        if since is None:
            self.slots.put(old[0], self._class(pod), old[1], -1)
        way = "direct" if since is None else "evict-first"
        self._tell(pod, names[old[0]], place, way, since)
        self.now[pod] = place

    def _tell(self, pod: int, from_name: str, place: Place, way: str, since: int | None = None) -> None:
        self.moves.append(
            PodMove.model_validate(
                {
                    "step": self.step if since is None else since,
                    "pod": self.problem.pod_names[pod],
                    "from": from_name,
                    "to": self.problem.node_names[place[0]],
                    "numa": place[1],
                    "way": way,
                    "arrives": None if since is None else self.step,
                }
            )
        )

    def _break(self, waiting: list[int]) -> None:
        """Let one VM go: to a spare place if any has one, else out."""
        inside = [pod for pod in waiting if pod not in self.out_since]
        for pod in inside:
            spare = None if pod in self.spared else self._spare(pod)
            if spare is not None:
                self.spared.add(pod)
                self._start(pod, spare)
                old = self.now[pod]
                self.slots.put(old[0], self._class(pod), old[1], -1)
                self._tell(pod, self.problem.node_names[old[0]], spare, "spare")
                self.now[pod] = spare
                return
        pod = max(
            inside, key=lambda p: int(self.slots.share[self._class(p), 0] * self.slots.numa.width[self._class(p)])
        )
        old = self.now[pod]
        self.slots.put(old[0], self._class(pod), old[1], -1)
        self.out_since[pod] = self.step

    def _spare(self, pod: int) -> Place | None:
        j = self._class(pod)
        for node in np.flatnonzero(self.problem.allowed[j]).tolist():
            for at in self.slots.choices(node, j):
                if self.slots.fits(node, j, at):
                    return node, at
        return None
