"""The kinds of instances, each a formulation with its files: what `planning` and the CLI dispatch on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from formulations.base import Formulation
from planner.cost.verdict import Verdict
from planner.descriptions.base import Description
from planner.errors import DescriptionError
from planner.files import SourceText, validate
from planner.plan import PlanDocument


class Problem(Protocol):
    """What every problem's arrays come with."""

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """Of the instance."""
        ...

    @property
    def sha256(self) -> str:
        """Of the instance and all files it names."""
        ...


InstanceT = TypeVar("InstanceT", bound=Description)
ProblemT = TypeVar("ProblemT", bound=Problem)
PlanT = TypeVar("PlanT", bound=Description)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[InstanceT, ProblemT, PlanT]):
    """One kind of instance.

    read : from a described instance (and its source, to locate mistakes) to the arrays.
    judge : the independent check and the cost model, as one verdict.
    judge_alone : what can be said without an instance.
    """

    name: str
    instance: type[InstanceT]
    document: type[PlanDocument]
    formulation: Formulation[ProblemT, PlanT]
    read: Callable[[InstanceT, SourceText | None], ProblemT]
    judge: Callable[[ProblemT, PlanT], Verdict]
    judge_alone: Callable[[PlanT], Verdict]


#: Where each kind is defined, in the module's `KIND`; imported on first use.
HOMES: Mapping[str, str] = {
    "experts": "formulations.expert_placement.kind",
    "fleet": "formulations.gpu_fleet.kind",
    "parallel": "formulations.parallelism.kind",
}


def kind(name: str) -> Kind[Any, Any, Any]:
    """A kind by the name that instances carry as `problem`; KeyError for an unknown one."""
    found: Kind[Any, Any, Any] = import_module(HOMES[name]).KIND
    return found


def problem_name(source: SourceText) -> str:
    """The `problem` key of an instance; DescriptionError when it is none that is known."""
    name = source.value.get("problem") if isinstance(source.value, dict) else None
    if isinstance(name, str) and name in HOMES:
        return name
    place = ("problem",) if isinstance(source.value, dict) and "problem" in source.value else ()
    raise DescriptionError([source.finding(place, f"problem must be one of: {', '.join(HOMES)} (got {name!r})")])


def read_instance(source: SourceText) -> tuple[Kind[Any, Any, Any], Description]:
    """Validate an instance file by its `problem` key."""
    found = kind(problem_name(source))
    return found, validate(source, found.instance)
