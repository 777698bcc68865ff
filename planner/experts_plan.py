"""ExpertPlacement: which expert lies in which slot of which GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from planner.descriptions.base import Description, Problem
from planner.workload import IntArray

#: Largest number an id or count may be; what arrays of 64-bit integers hold with room to multiply.
Id = Annotated[int, Field(ge=0, lt=2**31)]


class Move(Description):
    """One replica loaded onto a GPU. Moves of one `step` happen together, through a one-expert staging buffer."""

    step: Id
    layer: Id
    slot: Id
    expert: Id
    replaces: Id
    from_gpu: Annotated[
        Id | None,
        Field(description="a GPU that holds the expert when the step begins; null: load it from the checkpoint"),
    ]
    to_gpu: Id


class ParetoPoint(Description):
    """One plan of the sweep over the communication weight."""

    communication_weight: float
    balancedness_mean: float
    communication: float


class ExpertPlacement(Description):
    """Where every physical expert of every MoE layer lies, in EPLB's layout.

    physical_to_logical : [num_layers][num_slots]; slot j lies on GPU j // (num_slots / num_gpus).
    replicas : [num_layers][num_experts], number of slots that hold each logical expert.
    layer_ids : absolute decoder layer of each row; dense layers have no row.
    split : the dispatch that the plan was made for; an `lp` plan is poor under even dispatch.
    """

    num_gpus: PositiveInt
    gpus_per_node: PositiveInt
    num_slots: PositiveInt
    num_decoder_layers: PositiveInt
    layer_ids: tuple[Id, ...]
    split: Literal["even", "lp"]
    physical_to_logical: tuple[tuple[Id, ...], ...]
    replicas: tuple[tuple[Id, ...], ...]
    moves: tuple[Move, ...] | None = None
    pareto: tuple[ParetoPoint, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """Shapes only; the rules of placement are checked against an instance."""
        if self.num_slots % self.num_gpus or self.num_gpus % self.gpus_per_node:
            yield ("num_slots",), "slots, GPUs and nodes do not divide evenly"
        rows, widths = len(self.physical_to_logical), {len(row) for row in self.physical_to_logical}
        if rows == 0 or rows != len(self.layer_ids) or rows != len(self.replicas):
            yield ("layer_ids",), "physical_to_logical, replicas and layer_ids need the same number of layers"
        if widths - {self.num_slots}:
            yield ("physical_to_logical",), f"rows need {self.num_slots} slots, got {sorted(widths)}"
        if len({len(row) for row in self.replicas}) > 1:
            yield ("replicas",), "rows differ in length"
        elif self.replicas and not self.replicas[0]:
            yield ("replicas",), "rows are empty"
        if list(self.layer_ids) != sorted(set(self.layer_ids)) or max(self.layer_ids, default=-1) >= (
            self.num_decoder_layers
        ):
            yield ("layer_ids",), "must rise and stay below num_decoder_layers"

    @classmethod
    def from_array(
        cls,
        physical_to_logical: IntArray,
        num_experts: int,
        *,
        num_gpus: int,
        gpus_per_node: int,
        layer_ids: tuple[int, ...],
        num_decoder_layers: int,
        split: Literal["even", "lp"],
    ) -> ExpertPlacement:
        """Build from an integer array [num_layers, num_slots]; replicas are counted."""
        rows = np.asarray(physical_to_logical, dtype=np.int64)
        replicas = [np.bincount(row, minlength=num_experts).tolist() for row in rows]
        return cls(
            num_gpus=num_gpus,
            gpus_per_node=gpus_per_node,
            num_slots=rows.shape[1],
            num_decoder_layers=num_decoder_layers,
            layer_ids=layer_ids,
            split=split,
            physical_to_logical=tuple(tuple(row) for row in rows.tolist()),
            replicas=tuple(tuple(row) for row in replicas),
        )

    @property
    def array(self) -> IntArray:
        """physical_to_logical as int64 [num_layers, num_slots]."""
        return np.array(self.physical_to_logical, dtype=np.int64)

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer."""
        return len(self.replicas[0])
