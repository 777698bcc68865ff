"""The expert-placement problem as arrays.

Sets    l in layers (MoE only), e in logical experts, g in GPUs, s in scenarios, slots of a layer numbered GPU by GPU.
Data    load[s, l, e]   tokens routed, scaled so that 1 is the load of an evenly loaded GPU of unit speed
        weight[s]       scenario weights, summing to 1
        speed[g]        relative speed of a GPU
        transitions[l, e, f]  fraction of tokens whose best expert is e in layer l and f in layer l + 1
        tokens[t, l, k] the k experts of token t
        cost[g, h]      cost of sending one token from g to h
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from planner.cost.expert_step import ExpertStep
from planner.errors import OptionError
from planner.experts_plan import ExpertPlacement
from planner.workload import FloatArray, IntArray, RoutingTrace


@dataclass(frozen=True, eq=False, kw_only=True)
class CommunicationModel:
    """chain: `transitions` [L-1, E, E]. fanout: `tokens` [T, L, k]. Never both in one objective.

    weight : objective per unit of mean cost of a token in a layer.
    cost : float64 [num_gpus, num_gpus], zero on the diagonal.
    """

    model: Literal["chain", "fanout"]
    weight: float
    cost: FloatArray
    intra_node_cost: float
    inter_node_cost: float


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpertPlacementProblem:
    """Everything a search may know; arrays are read-only. See the module docstring for the symbols.

    Shapes: load [K, L, E] float64, weight [K], speed [G], current [L, num_slots] int64 or None,
    group_of [E] int64 or None.
    """

    kind: ClassVar[str] = "experts"

    name: str
    sha256: str
    scenario_names: tuple[str, ...]
    load: FloatArray
    weight: FloatArray
    num_gpus: int
    gpus_per_node: int
    num_slots: int
    speed: FloatArray
    layer_ids: tuple[int, ...]
    num_decoder_layers: int
    split: Literal["even", "lp"] = "even"
    trace: RoutingTrace | None = None
    communication: CommunicationModel | None = None
    group_of: IntArray | None = None
    group_spread: int | None = None
    expert_bytes: float | None = None
    gpu_memory_bytes: float | None = None
    current: IntArray | None = None
    max_moves: int | None = None
    move_cost: float = 0.0
    step: ExpertStep | None = None
    """What the cost model tells times with; no method reads it."""

    def __post_init__(self) -> None:
        for array in (self.load, self.weight, self.speed, self.group_of, self.current):
            if array is not None:
                array.setflags(write=False)

    @property
    def num_scenarios(self) -> int:
        """K."""
        return int(self.load.shape[0])

    @property
    def num_layers(self) -> int:
        """L, MoE layers only."""
        return int(self.load.shape[1])

    @property
    def num_experts(self) -> int:
        """E, logical experts of a layer."""
        return int(self.load.shape[2])

    @property
    def slots_per_gpu(self) -> int:
        """Physical experts of a layer that one GPU holds."""
        return self.num_slots // self.num_gpus

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.num_gpus // self.gpus_per_node

    @property
    def max_replicas(self) -> int:
        """Most replicas of one expert that lie on distinct GPUs its group may use."""
        spread = self.num_nodes if self.group_spread is None else min(self.group_spread, self.num_nodes)
        return spread * self.gpus_per_node

    @cached_property
    def node_of(self) -> IntArray:
        """Node of each GPU, [G]."""
        return np.arange(self.num_gpus) // self.gpus_per_node

    @cached_property
    def mean_gpu_load(self) -> FloatArray:
        """Load of a GPU of unit speed if the layer were spread evenly, [K, L]."""
        return np.asarray(self.load.sum(axis=2) / self.speed.sum())

    @cached_property
    def transitions(self) -> FloatArray:
        """[L-1, E, E]; only with a trace."""
        assert self.trace is not None
        return self.trace.transitions(self.num_experts)

    def with_load(
        self, load: FloatArray, weight: FloatArray, scenario_names: tuple[str, ...]
    ) -> ExpertPlacementProblem:
        """The same problem under other scenarios: load [K, L, E] as scaled here, weight [K]."""
        share = np.array(weight, dtype=np.float64)
        return replace(self, load=load.copy(), weight=share / share.sum(), scenario_names=scenario_names)

    def with_scenarios(self, chosen: list[int]) -> ExpertPlacementProblem:
        """The same problem under some of its scenarios."""
        names = tuple(self.scenario_names[k] for k in chosen)
        return self.with_load(self.load[chosen], self.weight[chosen], names)

    @property
    def chain_weight(self) -> float:
        """Weight of the chain model; 0 when it is not asked for."""
        comm = self.communication
        return comm.weight if comm is not None and comm.model == "chain" else 0.0

    @property
    def fanout_weight(self) -> float:
        """Weight of the fan-out model; 0 when it is not asked for."""
        comm = self.communication
        return comm.weight if comm is not None and comm.model == "fanout" else 0.0

    def placement(self, physical_to_logical: IntArray) -> ExpertPlacement:
        """Wrap an array [L, num_slots] of logical experts as a plan."""
        return ExpertPlacement.from_array(
            physical_to_logical,
            self.num_experts,
            num_gpus=self.num_gpus,
            gpus_per_node=self.gpus_per_node,
            layer_ids=self.layer_ids,
            num_decoder_layers=self.num_decoder_layers,
            split=self.split,
        )

    @classmethod
    def from_arrays(
        cls,
        counts: FloatArray,
        *,
        num_gpus: int,
        num_slots: int,
        gpus_per_node: int | None = None,
        weight: FloatArray | None = None,
        speed: FloatArray | None = None,
        scenario_names: tuple[str, ...] | None = None,
        layer_ids: tuple[int, ...] | None = None,
        num_decoder_layers: int | None = None,
        name: str = "unnamed",
        sha256: str = "",
        split: Literal["even", "lp"] = "even",
        trace: RoutingTrace | None = None,
        communication: CommunicationModel | None = None,
        num_groups: int | None = None,
        group_spread: int | None = None,
        expert_bytes: float | None = None,
        gpu_memory_bytes: float | None = None,
        current: IntArray | None = None,
        max_moves: int | None = None,
        move_cost: float = 0.0,
        step: ExpertStep | None = None,
    ) -> ExpertPlacementProblem:
        """Scale raw counts [K, L, E] (or [L, E]) and fill in the defaults.

        Each scenario is divided by its mean layer total, so a scenario recorded longer does not count more; layers of
        one scenario keep their relative size.
        """
        raw = np.array(counts, dtype=np.float64, ndmin=3)
        gpu_speed = np.ones(num_gpus) if speed is None else np.array(speed, dtype=np.float64)
        totals = raw.sum(axis=2)
        used = (totals > 0).sum(axis=1)
        if raw.ndim != 3 or not used.all() or (raw < 0).any() or not np.isfinite(raw).all():
            raise ValueError("counts must be finite, not negative and not all zero, [scenarios, layers, experts]")
        mean_total = totals.sum(axis=1) / used
        share = np.ones(raw.shape[0]) if weight is None else np.array(weight, dtype=np.float64)
        num_layers = raw.shape[1]
        return cls(
            name=name,
            sha256=sha256,
            scenario_names=scenario_names or tuple(f"scenario {k}" for k in range(raw.shape[0])),
            load=raw * (gpu_speed.sum() / mean_total)[:, None, None],
            weight=share / share.sum(),
            num_gpus=num_gpus,
            gpus_per_node=gpus_per_node or num_gpus,
            num_slots=num_slots,
            speed=gpu_speed,
            layer_ids=layer_ids if layer_ids is not None else tuple(range(num_layers)),
            num_decoder_layers=num_decoder_layers or num_layers,
            split=split,
            trace=trace,
            communication=communication,
            group_of=None if num_groups is None else np.arange(raw.shape[2]) // (raw.shape[2] // num_groups),
            group_spread=group_spread,
            expert_bytes=expert_bytes,
            gpu_memory_bytes=gpu_memory_bytes,
            current=None if current is None else np.array(current, dtype=np.int64),
            max_moves=max_moves,
            move_cost=move_cost,
            step=step,
        )


def refuse(condition: bool, method: str, why: str) -> None:
    """Raise OptionError when a method cannot take the instance; the message says what to use instead."""
    if condition:
        raise OptionError(f"method {method} {why}; use local-search")
