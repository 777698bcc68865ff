"""Pods whose GPUs belong to one island of a node, in an exact model: how many of them are on each island.

z_ikl in {0, 1, ...} pods of group i on island l of node k:
    sum over l of z_ikl  =  x_ik
    sum over i of gpus_i z_ikl + devices of l that share  <=  free devices of l, each l
Other whole devices may be anywhere: that there are enough of them in all is a row of the model (`exact`). Running pods
that move keep devices of an island only where they stay; these count too.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.kubernetes.snapshot import WHOLE_MILLI

if TYPE_CHECKING:
    from formulations.backends.cpsat import IntegerValues
    from formulations.pod_packing.exact import ExactModel


class Islands:
    """The counts of one model."""

    def __init__(self, exact: ExactModel) -> None:
        self.z: dict[tuple[int, int], list[Any]] = {}
        self.exact = exact
        problem = exact.problem
        for (i, k), count in exact.x.items():
            if not problem.bound[exact.klass[i]]:
                continue
            gpus = int(problem.class_gpus[exact.klass[i]])
            rooms = [len(one) // gpus for one in self.free(k)]
            z = [exact.model.new_int_var(0, room, f"z{i}_{k}_{island}") for island, room in enumerate(rooms)]
            exact.model.add(sum(z) == count)
            self.z[i, k] = z

    def limit(self) -> None:
        """No island gives more devices than it has; after the devices that share are known."""
        exact = self.exact
        asked: dict[int, list[tuple[int, list[Any]]]] = defaultdict(list)
        for (i, k), z in self.z.items():
            asked[k].append((int(exact.problem.class_gpus[exact.klass[i]]), z))
        for k, groups in asked.items():
            taken: dict[int, list[Any]] = defaultdict(list)
            for home, t in exact.stay.items():
                if home[1] == k and not exact.problem.is_share[exact.klass[home[0]]]:
                    for d in home[2]:
                        taken[d].append(t)
            for island, devices in enumerate(self.free(k)):
                used = [exact.sharing[k, d] for d in devices if (k, d) in exact.sharing]
                used += [t for d in devices for t in taken[d]]
                exact.model.add(sum(gpus * z[island] for gpus, z in groups) + sum(used) <= len(devices))

    def of(self, k: int, device: int) -> int:
        """Number of a device's island, where that tells devices apart: pods of the model ask for islands."""
        island = self.exact.problem.island
        return device // int(island[self.exact.nodes[k]]) if self.z and island is not None else 0

    def free(self, k: int) -> list[list[int]]:
        """Free devices of each island of a node of the model."""
        assert self.exact.problem.island is not None
        size = int(self.exact.problem.island[self.exact.nodes[k]])
        device = self.exact.device[k]
        whole = np.flatnonzero(device == WHOLE_MILLI).tolist()
        return [[d for d in whole if d // size == island] for island in range(-(-device.size // size))]

    def islands(self, i: int, k: int, value: IntegerValues) -> list[int]:
        """The island of each pod of a group on a node, in an answer."""
        return [island for island, z in enumerate(self.z[i, k]) for _ in range(value(z))]
