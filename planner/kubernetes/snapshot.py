"""A snapshot of a cluster: nodes, pods, disruption budgets and gangs, whatever file format they came from.

Amounts are integers: cpu in thousandths of a core, memory and ephemeral-storage in bytes, everything else in units.
GPUs are devices, not an amount: a node has so many, a pod takes so many whole ones or thousandths of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.kubernetes.rules import NearRule, NodeRule, PodSelector, SpreadRule, Taint, Toleration

#: Thousandths of a whole device.
WHOLE_MILLI = 1000
CPU, MEMORY, PODS = "cpu", "memory", "pods"
#: Resources whose units are whole devices that may also be shared. Source: the vendors' device plug-ins.
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe", "habana.ai/gaudi")
#: GPUs of inline and CSV nodes.
DEFAULT_GPU = GPU_RESOURCES[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """allocatable : amounts by resource, without GPUs. gpu_model : as the node's labels or the trace say.

    gpu_island : devices of one island, in the order of their numbers; 0 for all. one_island (of a pod) : all in one.
    numa : NUMA nodes that its cores and memory are split over evenly.
    accepts : False for cordoned nodes and those that are not ready: nothing new goes there, and `reason` says why.
    """

    name: str
    allocatable: Mapping[str, int]
    gpus: int = 0
    gpu_resource: str = DEFAULT_GPU
    gpu_model: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    accepts: bool = True
    reason: str = ""
    price_usd_per_hour: float | None = None
    numa: int = 1
    gpu_island: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """requests : as the scheduler counts them, without GPUs. `name` is namespace/name.

    gpus, gpu_milli : so many devices, of each so many thousandths; less than 1000 only of one device.
    node : where it runs or is bound; None while it is pending. gpu_indices : its devices there, where known.
    numa : NUMA nodes that it is spread over evenly. numa_nodes : those where it runs, where known.
    pinned : stays whatever a plan would like: DaemonSet, static and terminating pods.
    gated : has scheduling gates; takes no part while it is pending.
    """

    name: str
    namespace: str
    requests: Mapping[str, int]
    gpus: int = 0
    gpu_milli: int = 0
    gpu_resource: str = DEFAULT_GPU
    gpu_models: tuple[str, ...] = ()
    gpu_indices: tuple[int, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    node: str | None = None
    pinned: bool = False
    gated: tuple[str, ...] = ()
    node_rule: NodeRule = field(default_factory=NodeRule)
    tolerations: tuple[Toleration, ...] = ()
    near: tuple[NearRule, ...] = ()
    spread: tuple[SpreadRule, ...] = ()
    gang: str | None = None
    preempts: bool = True
    numa: int = 1
    numa_nodes: tuple[int, ...] | None = None
    one_island: bool = False


@dataclass(frozen=True, slots=True)
class DisruptionBudget:
    """A PodDisruptionBudget: so many more of its pods may be evicted now."""

    name: str
    pods: PodSelector
    allowed: int


@dataclass(frozen=True, slots=True)
class Gang:
    """A PodGroup: at least so many of its pods, or none."""

    name: str
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """not_modelled : what the files say and a plan does not heed, once each."""

    nodes: tuple[Node, ...]
    pods: tuple[Pod, ...]
    budgets: tuple[DisruptionBudget, ...] = ()
    gangs: tuple[Gang, ...] = ()
    not_modelled: tuple[str, ...] = ()
    digest: str = ""
