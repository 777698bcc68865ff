"""A pool of unequal devices as arrays.

Sets    g in classes of equal devices at one site; a, b in sites
Data    L layers; count[g]; layer_s[g], head_s[g] (embedding and head, on the last stage) of one step
        cap[g, e]     layers that memory holds beside: e = 0 nothing, 1 the embedding, 2 the head, 3 both
        hops          hand-over and return times, and steps/s, of the links between sites and inside one
        batch         sequences of a step, so tokens; in_flight: steps that caches have room for, at most
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from planner.cost.layers import Hops
from planner.workload import read_only_fields

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: What a stage holds beside its layers: nothing, the embedding, the head, both.
PLAIN, EMBEDDING, HEAD, BOTH = range(4)
#: Share by which a slot may be missed: times are sums of floats.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Needs:
    """What the memory rows come from: bytes of a layer (weights, caches), embedding, head, and room, [G]."""

    weight_bytes: float
    cache_bytes: float
    embedding_bytes: float
    head_bytes: float
    room_bytes: FloatArray


@dataclass(frozen=True, eq=False, kw_only=True)
class LayersProblem:
    """Everything the search may know; arrays are read-only. max_latency_s, in_flight : inf for no limit."""

    kind: ClassVar[str] = "layers"

    name: str
    sha256: str
    num_layers: int
    names: tuple[str, ...]
    site_names: tuple[str, ...]
    site: IntArray
    count: IntArray
    layer_s: FloatArray
    head_s: FloatArray
    cap: IntArray
    hops: Hops
    batch: int
    max_latency_s: float
    in_flight: float
    needs: Needs
    assumptions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        read_only_fields(self)

    @property
    def num_classes(self) -> int:
        """Classes of equal devices at one site."""
        return self.count.size

    @property
    def num_sites(self) -> int:
        """Sites; one where none are given."""
        return max(1, len(self.site_names))

    def layers_within(self, slot_s: FloatArray, ends: int) -> IntArray:
        """Layers that each class runs within slots [S] beside `ends`, by memory and time: [S, G], never negative."""
        head = self.head_s if ends in (HEAD, BOTH) else np.zeros(self.num_classes)
        by_time = np.floor((slot_s[:, None] - head) / self.layer_s * (1 + ROUNDING) + ROUNDING)
        return np.clip(np.minimum(by_time, self.cap[:, ends]), 0, self.num_layers).astype(np.int64)

    def slots(self) -> FloatArray:
        """The rate levels as times: every time that some stage may take, ascending; none below a local link's."""
        times = [
            head * one + np.arange(1, most + 1) * layer
            for layer, head, caps in zip(self.layer_s, self.head_s, self.cap, strict=True)
            for one, most in ((0.0, caps[PLAIN]), (1.0, caps[HEAD]))
        ]
        return np.unique(np.maximum(np.concatenate(times), self.least_slot_s))

    @property
    def least_slot_s(self) -> float:
        """A slot is at least what a link inside a site takes to carry a step."""
        return 1.0 / float(np.diag(self.hops.steps_per_s).min())

    @property
    def is_limited(self) -> bool:
        """Whether latency or steps under way may end the number of stages."""
        return bool(np.isfinite(self.max_latency_s) or np.isfinite(self.in_flight))

    @property
    def most_pipelines(self) -> int:
        """All layers that memory holds over the layers of a pipeline: more cannot be."""
        return int(self.count @ self.cap[:, PLAIN]) // self.num_layers

    def paths(self) -> Iterator[tuple[int, ...]]:
        """Orders of sites that a pipeline may go through, each site once, links and the way back there; depth first."""
        sites = [s for s in range(self.num_sites) if (self.site == s).any()]

        def extend(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            yield path
            for after in sites:
                if after not in path and np.isfinite(self.hops.step_s[path[-1], after]):
                    yield from extend((*path, after))

        for first in sites:
            yield from extend((first,))

    def most_stages(self, slot_s: FloatArray, path: tuple[int, ...]) -> FloatArray:
        """Stages that a pipeline of slots [S] may have on a path, by latency and steps in flight; inf, or below 1."""
        local = max(float(self.hops.step_s[s, s]) for s in path)
        limit = np.minimum(self.max_latency_s, self.in_flight * slot_s)
        if len(path) == 1:
            # Back to the first stage is one more local way, except from a stage to itself.
            s = path[0]
            extra = float(self.hops.return_s[s, s]) - local
            most = np.floor((limit - extra) / (slot_s + local) * (1 + ROUNDING))
            return np.maximum(most, np.where(slot_s <= limit * (1 + ROUNDING), 1.0, 0.0))
        way = sum(float(self.hops.step_s[one, two]) for one, two in pairwise(path))
        back = float(self.hops.return_s[path[-1], path[0]])
        if not np.isfinite(back):
            return np.zeros(slot_s.size)
        most = np.floor((limit - way - back + len(path) * local) / (slot_s + local) * (1 + ROUNDING))
        return np.asarray(most, dtype=np.float64)


def capacities(num_layers: int, needs: Needs) -> IntArray:
    """Layers that each class's memory holds beside nothing, the embedding, the head, both: [G, 4]."""
    beside = np.array([0.0, needs.embedding_bytes, needs.head_bytes, needs.embedding_bytes + needs.head_bytes])
    each = needs.weight_bytes + needs.cache_bytes
    # A layer that fits exactly is not lost to rounding.
    room = np.floor((needs.room_bytes[:, None] - beside[None, :]) / each * (1 + ROUNDING))
    return np.asarray(np.clip(room, 0, num_layers), dtype=np.int64)
