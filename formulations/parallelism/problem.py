"""The search for serving workers as arrays.

Sets    w in worker types (candidates that keep the limits), roles both, prefill, decode; d in device kinds
Data    rate[w]     requests/s of one worker in its role
        gpus[w], device[w], price[w] in USD/hour
        watts[w]    of one worker at its rate
        share[m]    of the requests that are of size m; size_rate[m, w]  requests/s of size m of a worker that serves
                    no other; rate[w] then is that of all sizes in their shares, 0 where it cannot serve some
        hourly[h]   requests/s asked in hour h
        nodes[d], node_gpus[d]     a worker of at most node_gpus GPUs stays in a node; larger ones take whole nodes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from formulations.parallelism.predictions import Predictions
from planner.parallel_plan import Served, Workers, WorkerType
from planner.workload import read_only_fields

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Roles as numbers.
BOTH, PREFILL, DECODE = 0, 1, 2

Goal = Literal["throughput", "gpus", "cost", "joules"]
#: What is minimised at the rate, by goal, in words.
UNITS: Mapping[Goal, str] = {"throughput": "requests/s", "gpus": "GPUs", "cost": "USD/hour", "joules": "W"}


@dataclass(frozen=True, eq=False, kw_only=True)
class ParallelProblem:
    """Everything the search may know; arrays are read-only.

    workers : all worker types; usable : those that keep the limits, [W]; role : 0 both, 1 prefill, 2 decode, [W].
    limits : why the others do not, by number. target_per_s : requests/s to serve, None for as many as can be.
    margins : how much longer TTFT and TPOT count against the limits, as a share, [W, 2]; None for not at all.
    sizes : prompt and output tokens of each size, [M, 2]; share [M] and size_rate [M, W] : None for one size.
    hourly : [H]; target_per_s then is its highest. current : workers that run before the first hour, change_cost : of
    a GPU that starts, in hours of the goal's unit.
    served : what the workers run; nothing but exports reads it. predictions : what reports tell beyond the arrays.
    relaxations : what would help where no worker fits at all.
    """

    kind: ClassVar[str] = "parallel"

    name: str
    sha256: str
    workers: tuple[WorkerType, ...]
    usable: BoolArray
    role: IntArray
    rate: FloatArray
    gpus: IntArray
    device: IntArray
    price: FloatArray
    watts: FloatArray
    device_names: tuple[str, ...]
    nodes: IntArray
    node_gpus: IntArray
    goal: Goal
    target_per_s: float | None
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    margins: FloatArray | None = None
    max_workers: int | None = None
    dropped: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    source: Literal["given", "predicted"] = "given"
    sizes: IntArray | None = None
    share: FloatArray | None = None
    size_rate: FloatArray | None = None
    hourly: FloatArray | None = None
    current: tuple[Workers, ...] | None = None
    change_cost: float = 0.0
    served: Served = field(default_factory=Served)
    predictions: Predictions | None = None

    def __post_init__(self) -> None:
        read_only_fields(self)

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self.nodes @ self.node_gpus)

    @property
    def counted(self) -> FloatArray:
        """TTFT and TPOT as they count against the limits, seconds [W, 2]; 0 where a role has none."""
        return counted_latencies(self.workers, self.margins)

    @property
    def rates(self) -> FloatArray:
        """Requests/s of each size by a worker that serves no other, [M, W]."""
        return self.rate[None] if self.size_rate is None else self.size_rate

    @property
    def mean_output_tokens(self) -> float:
        """Of a request."""
        if self.share is None or self.sizes is None:
            return float(self.output_tokens)
        return float(self.share @ self.sizes[:, 1])

    def at(self, rate_per_s: float) -> ParallelProblem:
        """The problem of one hour."""
        return replace(self, target_per_s=rate_per_s, hourly=None, current=None, change_cost=0.0)

    def running(self) -> IntArray:
        """Workers of each type that run now, [W]; those that are no candidates any more do not count."""
        names = {one.name: one.count for one in self.current or ()}
        return np.array([names.get(one.name, 0) for one in self.workers], dtype=np.int64)

    def within(self, ttft_s: float | None, tpot_s: float | None) -> BoolArray:
        """Workers that keep these limits, [W]."""
        limits = np.array([np.inf if limit is None else limit for limit in (ttft_s, tpot_s)])
        return np.asarray((self.counted <= limits).all(axis=1))

    def weight(self, goal: Goal | None = None) -> FloatArray:
        """What one worker of each type adds to the goal at a rate, [W]; requests/s for throughput."""
        arrays = {"throughput": self.rate, "gpus": self.gpus, "cost": self.price, "joules": self.watts}
        return arrays[goal or self.goal].astype(np.float64)


def counted_latencies(workers: Sequence[WorkerType], margins: FloatArray | None) -> FloatArray:
    """TTFT and TPOT of workers with their margins, seconds [W, 2]; 0 where a role has none."""
    first = [0.0 if one.role == "decode" else one.ttft_s or 0.0 for one in workers]
    later = [0.0 if one.role == "prefill" else one.tpot_s or 0.0 for one in workers]
    latencies = np.stack([np.array(first, dtype=np.float64), np.array(later, dtype=np.float64)], axis=1)
    return latencies if margins is None else latencies * (1.0 + margins)
