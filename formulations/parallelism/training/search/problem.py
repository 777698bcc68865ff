"""Which parallel sizes train a model on a cluster of equal nodes.

Sets
    q   legal plans: tensor t, context c, expert e, data d, pipeline p and virtual v parallel sizes, micro-batch b, ZeRO
        stage z, recomputation r, schedule; see `space` for all of them
    a   splits of the layers over stages: even, or the first stage some short (it has the embedding), the last some
        short (it has the head), the others even
    n   layers that recompute, of each chunk or of each stage, where `layer_scope` lets layers differ
Data
    T[q,a,n], M[q,a,n]  step time and memory of the fullest GPU, from the cost model (`planner.cost.training`)
    H, C             memory of a GPU less a reserve; sequences of a step
    price, watts     of a GPU
Variables
    one q, one a, one n
Objective, one of
    step_time  minimise T                                 cost  minimise T x GPUs of q x price
    joules     minimise GPUs of q x watts x (busy seconds + IDLE_SHARE x waiting seconds)
Constraints
    batch      d b | C                                        GPUs      t c d p <= those of the cluster
    heads      t | attention heads, key-value heads, MLP width
    layers     every layer on one stage, no stage empty; interleaving needs p | C / (d b)
    experts    e | experts, e | c d                           memory    M <= H
    links      t inside a scale-up domain, t | domain; other groups lie in the order of ranks (tensor, context, data,
               experts inside data, pipeline) and pay for what they span: node, leaf or rail, spine. What leaves its
               rail on a rail-only network is forwarded inside the node, and pays for that
Method, exact over q, a and n
    all even plans are priced as arrays. A split of q is no faster than the bound of `pricing.balanced_s`; splits of
    plans that fit are priced in the order of that bound, until it is no better than the best plan. n is as small as
    memory lets it (`mixes`). Layers that differ in tensor parallelism or ZeRO too (`layer_scope` any) are chosen for
    the top plans by an integer program for each stage, with a bound of their own (`layer_choice`).

Ignored: uneven splits of plans whose even split does not fit, links shared between groups.
Reference: Calculon (SC 2023), which enumerates such plans one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from planner.cost.training.coefficients import MemoryMargin, TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, Schedule
from planner.hardware import DeviceKind

FloatArray = npt.NDArray[np.float64]

Goal = Literal["step_time", "cost", "joules"]
#: What layers of a plan may differ in: nothing, how many of each chunk or of each stage recompute, anything.
LayerScope = Literal["uniform", "chunk", "stage", "any"]
#: What is minimised, by its key, with its unit.
UNITS: Mapping[Goal, str] = {"step_time": "s a step", "cost": "USD a step", "joules": "J a step"}
RECOMPUTE: Mapping[str, Recompute] = {
    "none": Recompute.NONE, "selective": Recompute.SELECTIVE, "full": Recompute.FULL
}  # fmt: skip
SCHEDULES: Mapping[str, Schedule] = {
    "1f1b": Schedule.ONE_F_ONE_B, "zb-1p": Schedule.ZB_1P, "zb-2p": Schedule.ZB_2P, "zb-v": Schedule.ZB_V
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainProblem:
    """Everything the search may know.

    num_gpus : of the cluster. domain_gpus : GPUs that tensor parallelism may span.
    capacity_bytes : memory of a GPU that a plan may use. usd_per_gpu_hour : None where no price is given.
    layer_scope : what layers of one plan may differ in. fixed : sizes that are decided, by the plan's names.
    node_bandwidth_bytes_per_s : [nodes, nodes] or None.
    time_mape : mean error of held-out predictions of this GPU and framework; None where nothing was measured.
    """

    kind: ClassVar[str] = "training"

    name: str
    sha256: str
    model: TrainingModel
    device: DeviceKind
    network: TrainingNetwork
    coefficients: TrainingCoefficients
    margin: MemoryMargin
    precision: str
    framework: str
    num_gpus: int
    gpus_per_node: int
    domain_gpus: int
    capacity_bytes: float
    global_batch_size: int
    sequence_length: int
    sequence_lengths: tuple[int, ...]
    gradient_bytes: int
    flash_attention: bool
    recompute: tuple[str, ...]
    layer_scope: LayerScope
    schedules: tuple[str, ...]
    fixed: Mapping[str, int]
    goal: Goal
    usd_per_gpu_hour: float | None
    watts: float | None
    node_bandwidth_bytes_per_s: FloatArray | None
    time_mape: float | None
    assumptions: tuple[str, ...] = field(default=())
