"""Plan types and the plan document: the JSON that every command writes and reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, SerializeAsAny

from planner.cost.verdict import Verdict, Violation
from planner.descriptions.base import Description, Problem
from planner.errors import DescriptionError
from planner.files import read_source, validate
from planner.fleet_plan import FleetPlan
from planner.layers_plan import LayersPlan, WindowsPlan
from planner.parallel_plan import ParallelPlan
from planner.pods_plan import PodsPlan
from planner.training_plan import TrainingPlan
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


class InstanceReference(Description):
    """Which instance a plan answers: its name and the hash of all of its inputs, data files included."""

    name: str
    sha256: str


class OutcomeRecord(Description):
    """How the plan was found and what is proven about it; None means unknown, never zero."""

    status: Literal["optimal", "feasible", "infeasible", "unknown"]
    stop: Literal["proof", "gap", "time_limit", "work_limit", "interrupted", "heuristic"]
    objective: float | None
    objective_unit: str
    terms: dict[str, float] = Field(default_factory=dict)
    bound: float | None
    bound_name: str | None = None
    gap: float | None
    build_s: float
    solve_s: float
    aside_s: Annotated[float, Field(description="spent on what is told beside the plan")] = 0.0
    solver: str
    solver_version: str
    method: str
    seed: int
    num_threads: int
    reasons: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()


class BaselineRecord(Description):
    """What the field's plain rule reaches on the same instance, and the instance's rules that it breaks."""

    name: str
    objective: float
    terms: dict[str, float] = Field(default_factory=dict)
    violations: tuple[Violation, ...] = ()


class PlanDocument(Description):
    """One answered instance: contract of the JSON that `gpuplan plan` writes. Each kind has its own subclass.

    Where a problem has several kinds, documents of all but the main one also have the key `kind`.
    """

    schema_version: Literal[1] = 1
    problem: str
    instance: InstanceReference
    gpuplan_version: str
    outcome: OutcomeRecord
    baseline: BaselineRecord | None = None
    plan: SerializeAsAny[Description] | None = None
    verdict: Verdict | None = None

    @property
    def kind_name(self) -> str:
        """The kind of instance that is answered: the key `kind`, or the problem's main one."""
        return str(getattr(self, "kind", self.problem))


class ExpertsDocument(PlanDocument):
    """An answered `experts` instance."""

    problem: Literal["experts"]
    plan: ExpertPlacement | None = None


class FleetDocument(PlanDocument):
    """An answered `fleet` instance."""

    problem: Literal["fleet"]
    plan: FleetPlan | None = None


class ParallelDocument(PlanDocument):
    """An answered `parallel` instance."""

    problem: Literal["parallel"]
    plan: ParallelPlan | None = None


class LayersDocument(PlanDocument):
    """An answered `parallel` instance of the task `layers`."""

    problem: Literal["parallel"]
    kind: Literal["layers"] = "layers"
    plan: LayersPlan | None = None


class WindowsDocument(PlanDocument):
    """An answered `parallel` instance of the task `windows`."""

    problem: Literal["parallel"]
    kind: Literal["windows"] = "windows"
    plan: WindowsPlan | None = None


class TrainingDocument(PlanDocument):
    """An answered `parallel` instance of the task `train`."""

    problem: Literal["parallel"]
    kind: Literal["training"] = "training"
    plan: TrainingPlan | None = None


class PodsDocument(PlanDocument):
    """An answered `pods` instance."""

    problem: Literal["pods"]
    plan: PodsPlan | None = None


#: The document of each kind.
DOCUMENTS: Mapping[str, type[PlanDocument]] = {
    "experts": ExpertsDocument,
    "fleet": FleetDocument,
    "parallel": ParallelDocument,
    "layers": LayersDocument,
    "windows": WindowsDocument,
    "training": TrainingDocument,
    "pods": PodsDocument,
}


def read_document(path: str | Path) -> PlanDocument:
    """A plan document of any problem from a file, or '-' for standard input. Raises DescriptionError."""
    source = read_source(path)
    keys = source.value if isinstance(source.value, dict) else {}
    key = "kind" if "kind" in keys else "problem"
    name = keys.get(key)
    kind = DOCUMENTS.get(name) if isinstance(name, str) else None
    if kind is None:
        place = (key,) if name is not None else ()
        message = f"{key} must be one of: {', '.join(DOCUMENTS)} (got {name!r}); is this a plan document?"
        raise DescriptionError([source.finding(place, message)])
    return validate(source, kind)
