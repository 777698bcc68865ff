"""Selectors, taints and spreading: the rules that say where a pod may run. Compiled once, matched exactly.

Source: k8s.io/api core/v1 and meta/v1, and the scheduler's plug-ins NodeAffinity, TaintToleration, InterPodAffinity and
PodTopologySpread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Labels = Mapping[str, str]
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One expression of a selector. Gt and Lt compare integers."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """NotIn and DoesNotExist also match where the key is missing."""
        value = labels.get(self.key)
        if self.operator in ("In", "NotIn"):
            return (value in self.values) == (self.operator == "In")
        if self.operator in ("Exists", "DoesNotExist"):
            return (value is not None) == (self.operator == "Exists")
        try:
            ours, theirs = int(value or ""), int(self.values[0])
        except ValueError:
            return False
        return ours > theirs if self.operator == "Gt" else ours < theirs

    def __str__(self) -> str:
        if self.operator in ("Exists", "DoesNotExist"):
            return f"{self.key} {self.operator}"
        return f"{self.key} {self.operator} {', '.join(self.values)}"


@dataclass(frozen=True, slots=True)
class Selector:
    """All of its requirements; an empty one matches everything. `fields` are requirements on metadata.name."""

    requirements: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels, name: str = "") -> bool:
        """Labels, and for nodes the name."""
        return all(one.matches(labels) for one in self.requirements) and all(
            one.matches({"metadata.name": name}) for one in self.fields
        )

    def contradiction(self) -> tuple[Requirement, Requirement] | None:
        """Two requirements that no labels can meet together, if there are."""
        for index, one in enumerate(self.requirements):
            for two in self.requirements[index + 1 :]:
                if one.key == two.key and _contradict(one, two):
                    return one, two
        return None

    def __str__(self) -> str:
        return " and ".join(str(one) for one in (*self.requirements, *self.fields)) or "anything"


def _contradict(one: Requirement, two: Requirement) -> bool:
    if "DoesNotExist" in (one.operator, two.operator):
        other = two if one.operator == "DoesNotExist" else one
        return other.operator in ("In", "Exists", "Gt", "Lt")
    for first, second in ((one, two), (two, one)):
        if first.operator == "In":
            return not any(second.matches({first.key: value}) for value in first.values)
    return False


@dataclass(frozen=True, slots=True)
class NodeRule:
    """nodeSelector and required node affinity: every selector of `every`, and one of `any_of` where it is not None."""

    every: Selector = Selector()
    any_of: tuple[Selector, ...] | None = None

    def matches(self, labels: Labels, name: str) -> bool:
        """An empty list of terms matches no node."""
        if not self.every.matches(labels, name):
            return False
        return self.any_of is None or any(term.matches(labels, name) for term in self.any_of)


@dataclass(frozen=True, slots=True)
class Taint:
    """What keeps pods off a node. Only NoSchedule and NoExecute do."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True)
class Toleration:
    """An empty key with Exists tolerates everything; an empty effect every effect."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Whether the taint is no obstacle."""
        if self.effect and self.effect != taint.effect:
            return False
        if self.key and self.key != taint.key:
            return False
        if not self.key and self.operator != "Exists":
            return False
        return self.operator == "Exists" or self.value == taint.value


@dataclass(frozen=True, slots=True)
class PodSelector:
    """Pods of some namespaces (None: of all) that a selector matches; None as selector matches nothing."""

    namespaces: frozenset[str] | None
    selector: Selector | None

    def matches(self, namespace: str, labels: Labels) -> bool:
        """Whether a pod is meant."""
        if self.selector is None or (self.namespaces is not None and namespace not in self.namespaces):
            return False
        return self.selector.matches(labels)

    def __str__(self) -> str:
        where = "any namespace" if self.namespaces is None else ", ".join(sorted(self.namespaces))
        return f"pods with {self.selector} in {where}"


@dataclass(frozen=True, slots=True)
class NearRule:
    """Required pod affinity (`together`: with selected pods in one topology domain) or anti-affinity (with none)."""

    pods: PodSelector
    topology_key: str
    together: bool

    def __str__(self) -> str:
        return f"{'affinity' if self.together else 'anti-affinity'} to {self.pods} by {self.topology_key}"


@dataclass(frozen=True, slots=True)
class SpreadRule:
    """Topology spread, DoNotSchedule: selected pods of a domain exceed those of the emptiest by at most max_skew.

    count_all_nodes : nodeAffinityPolicy Ignore, so domains count whether or not the pod may run there.
    """

    pods: PodSelector
    topology_key: str
    max_skew: int
    min_domains: int = 1
    count_all_nodes: bool = False

    def __str__(self) -> str:
        return f"spread of {self.pods} by {self.topology_key}, max skew {self.max_skew}"
