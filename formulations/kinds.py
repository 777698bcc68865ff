"""The kinds of instances, each a formulation with its files: what `planning` and the CLI dispatch on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

    name : its key in HOMES. read : from a described instance (and its source, to locate mistakes) to the arrays.
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


@dataclass(frozen=True, slots=True)
class Home:
    """Where a kind is defined, as the module's `KIND`, imported on first use; and which instances are of it.

    problem : their `problem` key. marks : values of other keys that tell them from the problem's other instances; the
    kind without marks takes all that no other kind of the problem does.
    """

    module: str
    problem: str
    marks: Mapping[str, str] = field(default_factory=dict)

    def takes(self, value: Callable[[str], Any]) -> bool:
        """An instance whose keys have these values is of this kind, or of a kind with marks."""
        return value("problem") == self.problem and all(value(key) == mark for key, mark in self.marks.items())


#: The kinds by name. A plan document names its kind where that is not its `problem`.
HOMES: Mapping[str, Home] = {
    "experts": Home("formulations.expert_placement.kind", "experts"),
    "fleet": Home("formulations.gpu_fleet.kind", "fleet"),
    "parallel": Home("formulations.parallelism.kind", "parallel"),
    "layers": Home("formulations.parallelism.layers.kind", "parallel", {"task": "layers"}),
    "windows": Home("formulations.parallelism.windows.kind", "parallel", {"task": "windows"}),
    "training": Home("formulations.parallelism.training.search.kind", "parallel", {"task": "train"}),
    "pods": Home("formulations.pod_packing.kind", "pods"),
    "deploy": Home("formulations.deployment.kind", "deploy"),
}


def kind(name: str) -> Kind[Any, Any, Any]:
    """A kind by its name; KeyError for an unknown one."""
    found: Kind[Any, Any, Any] = import_module(HOMES[name].module).KIND
    return found


def kind_name(instance: SourceText | Description) -> str:
    """The kind that an instance is of, by its keys; DescriptionError when its `problem` is none that is known."""
    if isinstance(instance, Description):
        found = _of_kind(lambda key: getattr(instance, key, None))
        if found is None:
            raise TypeError(f"{type(instance).__name__} is no instance of a problem")
        return found
    keys = instance.value if isinstance(instance.value, dict) else {}
    found = _of_kind(keys.get)
    if found is None:
        problems = dict.fromkeys(home.problem for home in HOMES.values())
        message = f"problem must be one of: {', '.join(problems)} (got {keys.get('problem')!r})"
        raise DescriptionError([instance.finding(("problem",) if "problem" in keys else (), message)])
    return found


def _of_kind(value: Callable[[str], Any]) -> str | None:
    fitting = [name for name, home in HOMES.items() if home.takes(value)]
    return max(fitting, key=lambda name: len(HOMES[name].marks), default=None)


def read_instance(source: SourceText) -> tuple[Kind[Any, Any, Any], Description]:
    """Validate an instance file by its kind."""
    found = kind(kind_name(source))
    return found, validate(source, found.instance)
