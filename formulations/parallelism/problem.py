"""The search for serving workers as arrays.

Sets    w in worker types (candidates that keep the limits), roles both, prefill, decode; d in device kinds
Data    rate[w]     requests/s of one worker in its role
        gpus[w], device[w], price[w] in USD/hour
        nodes[d], node_gpus[d]     a worker of at most node_gpus GPUs stays in a node; larger ones take whole nodes
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from planner.parallel_plan import Served, WorkerType
from planner.workload import read_only

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Goal = Literal["throughput", "gpus", "cost"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ParallelProblem:
    """Everything the search may know; arrays are read-only.

    workers : all worker types; usable : those that keep the limits, [W]; role : 0 both, 1 prefill, 2 decode, [W].
    limits : why the others do not, by number. target_per_s : requests/s to serve, None for as many as can be.
    margin : latencies count so much longer against the limits, as a share.
    served : what the workers run; nothing but exports reads it.
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
    device_names: tuple[str, ...]
    nodes: IntArray
    node_gpus: IntArray
    goal: Goal
    target_per_s: float | None
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    margin: float = 0.0
    max_workers: int | None = None
    dropped: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    source: Literal["given", "predicted"] = "given"
    served: Served = field(default_factory=Served)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, np.ndarray):
                read_only(value)

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster."""
        return int(self.nodes @ self.node_gpus)
