"""The pods problem as arrays: classes of equal pods, nodes, rules between pods, and the tiers of the objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from planner.kubernetes.snapshot import WHOLE_MILLI
from planner.workload import FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]
#: Domain of a topology by host name on nodes that are not there yet.
OWN_DOMAIN = -2
GPU_MILLI, PLACED, POWERED, FRAGMENTS = "GPU allocation", "pods placed", "powered", "fragments"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rule:
    """What ties pods of class `owner` to others: `matches` [J] are the classes meant, `topology` indexes `domain`."""

    owner: int
    topology: int
    matches: BoolArray
    text: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Near(Rule):
    """Affinity (`together`) or anti-affinity."""

    together: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spread(Rule):
    """Topology spread. `counted` [N]: nodes whose domains are compared."""

    max_skew: int
    min_domains: int
    counted: BoolArray


@dataclass(frozen=True, slots=True, eq=False)
class EvictionBudget:
    """A PodDisruptionBudget: of `pods` [P] so many may be moved or evicted."""

    name: str
    pods: BoolArray
    allowed: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Leave:
    """What may happen to running pods: at most so many are moved or evicted.

    movable : [P] running pods that may leave their node. evictable : [J] classes whose pods may be left without a node.
    """

    most: int
    movable: BoolArray
    evictable: BoolArray
    budgets: tuple[EvictionBudget, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Offer:
    """A kind of node that could be added, at most `most` of them (None: any number).

    capacity : [R]; allowed : [J]; domain : [T], OWN_DOMAIN where each new node is a domain of its own.
    island : devices of one island.
    """

    name: str
    capacity: IntArray
    gpus: int
    gpu_model: str
    allowed: BoolArray
    domain: IntArray
    price_usd_per_hour: float | None = None
    most: int | None = None
    island: int = 1024


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Numa:
    """Nodes whose cores and memory are split evenly over their NUMA nodes; a VM is on one of them, or evenly on both.

    count : [N] NUMA nodes of each node, 1 or 2. width : [J] NUMA nodes that a pod of a class is on.
    places : NUMA nodes of each running pod. chunk : milli-cores; what is free of a NUMA node beyond a multiple of it is
        a fragment.
    """

    count: IntArray
    width: IntArray
    places: tuple[tuple[int, ...], ...]
    chunk: int


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """One tier: the sum of `weight` [J] over placed pods (most), or of `cost` [N] over nodes in use (least).

    With the objective `fragments` it is the sum over NUMA nodes of free cores modulo the chunk (least).
    """

    name: str
    unit: str
    sense: Literal["most", "least"]
    weight: IntArray
    scale: float = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class PodsProblem:
    """P pods of J classes, N nodes, R resources. Pods that run stay on their nodes and devices, but for `leave`.

    capacity : [N, R], request : [J, R], in the units of a snapshot. gpus : [N] devices of 1000 milli each.
    class_gpus, class_milli : [J] devices, and thousandths of each.
    allowed : [J, N] by selectors, taints, GPU kind and model, and whether the node takes new pods.
    pod_class, pod_node : [P]; pod_node is -1 for pending pods. pod_devices : indices of a running pod's devices.
    pinned : [P] pods that never move. waiting : [P] pending pods with scheduling gates, which take no part.
    domain : [T, N] number of the node's domain by topology key, -1 where it lacks the label.
    gang : [J] gang of a class, -1 for none; gang_least : pods that a gang needs at least.
    node_cost : [N] what `consolidate` counts of a node in use.
    contradictions : [J] the pair of rules that lets pods of a class run nowhere, in words, or nothing.
    island : [N] devices of one island of a node, in the order of their numbers; None where no node has islands.
    one_island : [J] classes whose devices belong to one island.
    numa : where nodes have NUMA nodes, which the objective `fragments` asks for.
    offers : kinds of nodes that could be added. could_leave : what might happen to running pods if it were allowed.
    """

    kind: ClassVar[str] = "pods"

    name: str
    sha256: str
    objective: Literal["priority", "allocation", "consolidate", "fragments"]
    resources: tuple[str, ...]
    node_names: tuple[str, ...]
    capacity: IntArray
    gpus: IntArray
    gpu_models: tuple[str, ...]
    node_cost: FloatArray
    cost_unit: str
    request: IntArray
    class_gpus: IntArray
    class_milli: IntArray
    priority: IntArray
    allowed: BoolArray
    barriers: tuple[str, ...]
    pod_names: tuple[str, ...]
    pod_class: IntArray
    pod_node: IntArray
    pod_devices: tuple[tuple[int, ...], ...]
    pinned: BoolArray
    waiting: tuple[str, ...]
    topologies: tuple[str, ...]
    domain: IntArray
    near: tuple[Near, ...]
    spread: tuple[Spread, ...]
    gang: IntArray
    gang_names: tuple[str, ...]
    gang_least: IntArray
    time_slice_s: float | None
    assumptions: tuple[str, ...] = ()
    leave: Leave | None = None
    contradictions: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()
    could_leave: Leave | None = None
    numa: Numa | None = None
    island: IntArray | None = None
    one_island: BoolArray | None = None

    @property
    def num_nodes(self) -> int:
        """N."""
        return len(self.node_names)

    @property
    def num_classes(self) -> int:
        """J."""
        return len(self.request)

    @cached_property
    def milli(self) -> IntArray:
        """Thousandths of devices that a pod of each class takes, [J]."""
        return self.class_gpus * self.class_milli

    @cached_property
    def is_share(self) -> BoolArray:
        """Classes that take a part of one device, [J]."""
        found: BoolArray = (self.class_gpus == 1) & (self.class_milli < WHOLE_MILLI)
        return found

    @cached_property
    def pending(self) -> BoolArray:
        """Pods that a plan may place, [P]."""
        return (self.pod_node < 0) & np.array([not gates for gates in self.waiting], dtype=np.bool_)

    @cached_property
    def demand(self) -> IntArray:
        """Pending pods of each class, [J]."""
        return np.bincount(self.pod_class[self.pending], minlength=self.num_classes).astype(np.int64)

    @cached_property
    def running(self) -> IntArray:
        """Running pods of each class, [J]."""
        return np.bincount(self.pod_class[self.pod_node >= 0], minlength=self.num_classes).astype(np.int64)

    @cached_property
    def bound(self) -> BoolArray:
        """Classes of several devices that must belong to one island, where some node has more than one, [J]."""
        if self.island is None or self.one_island is None or (self.island >= self.gpus).all():
            return np.zeros(self.num_classes, dtype=np.bool_)
        found: BoolArray = self.one_island & (self.class_gpus > 1)
        return found

    @cached_property
    def rules(self) -> tuple[Rule, ...]:
        """Affinities first, then spreads."""
        return (*self.near, *self.spread)

    @cached_property
    def crossing(self) -> BoolArray:
        """Classes whose place depends on where other pods are: by affinity, spread or a gang, [J]."""
        found: BoolArray = self.gang >= 0
        for rule in self.rules:
            found = found | rule.matches
            found[rule.owner] = True
        return found

    @cached_property
    def aims(self) -> tuple[Aim, ...]:
        """The objective's tiers, most important first."""
        if self.objective == "allocation":
            return (Aim(GPU_MILLI, "GPUs", "most", self.milli, 1 / WHOLE_MILLI),)
        if self.objective == "consolidate":
            return (Aim(POWERED, self.cost_unit, "least", np.zeros(self.num_classes, dtype=np.int64)),)
        if self.objective == "fragments":
            return (Aim(FRAGMENTS, "cores", "least", np.zeros(self.num_classes, dtype=np.int64), 1e-3),)
        levels = np.unique(self.priority[(self.demand + self.running) > 0])[::-1].tolist()
        return tuple(
            Aim(f"{PLACED}, priority {level}", "pods", "most", (self.priority == level).astype(np.int64))
            for level in levels
        )

    def offered(self, aim: Aim) -> int:
        """What an aim of the sense `most` would reach if every pod ran."""
        return int(aim.weight @ (self.demand + self.running))
