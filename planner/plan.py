"""Plan types and the plan document: the JSON that every command writes and reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from planner.cost.verdict import Verdict, Violation
from planner.deploy_plan import DeployPlan
from planner.descriptions.base import Description
from planner.errors import DescriptionError
from planner.experts_plan import ExpertPlacement
from planner.files import read_source, validate
from planner.fleet_plan import FleetPlan
from planner.layers_plan import LayersPlan, WindowsPlan
from planner.parallel_plan import ParallelPlan
from planner.pods_plan import PodsPlan
from planner.training_plan import TrainingPlan


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


class DeployDocument(PlanDocument):
    """An answered `deploy` instance."""

    problem: Literal["deploy"]
    plan: DeployPlan | None = None


#: The document of each kind.
DOCUMENTS: Mapping[str, type[PlanDocument]] = {
    "experts": ExpertsDocument,
    "fleet": FleetDocument,
    "parallel": ParallelDocument,
    "layers": LayersDocument,
    "windows": WindowsDocument,
    "training": TrainingDocument,
    "pods": PodsDocument,
    "deploy": DeployDocument,
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
