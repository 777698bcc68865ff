"""Selectors, affinity, tolerations and spread constraints of Kubernetes objects -> rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from planner.kubernetes.reading import Value
from planner.kubernetes.rules import (
    NearRule,
    NodeRule,
    PodSelector,
    Requirement,
    Selector,
    SpreadRule,
    Taint,
    Toleration,
)

_LABEL_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_NODE_OPERATORS = (*_LABEL_OPERATORS, "Gt", "Lt")
_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)


@dataclass(frozen=True, slots=True)
class PodContext:
    """What rules of a pod refer to besides themselves; namespaces: labels by name, where they were given."""

    namespace: str
    labels: dict[str, str]
    namespaces: dict[str, dict[str, str]]


def requirements(value: Value, operators: tuple[str, ...]) -> Iterator[Requirement]:
    """matchExpressions, with the number of values that each operator takes."""
    for item in value.items():
        operator = item.at("operator").one_of(operators, "Exists")
        values = tuple(one.text() for one in item.at("values").items())
        if operator in ("In", "NotIn") and not values:
            item.wrong(f"{operator} needs values")
        elif operator in ("Exists", "DoesNotExist") and values:
            item.wrong(f"{operator} takes no values")
        elif operator in ("Gt", "Lt") and not (len(values) == 1 and values[0].removeprefix("-").isdecimal()):
            item.wrong(f"{operator} takes one whole number")
            continue
        yield Requirement(item.at("key").text(), operator, values)  # type: ignore[arg-type]


def label_selector(value: Value) -> Selector | None:
    """A LabelSelector; an absent one matches nothing."""
    if not value:
        return None
    labels = [Requirement(key, "In", (text,)) for key, text in sorted(value.at("matchLabels").labels().items())]
    return Selector((*labels, *requirements(value.at("matchExpressions"), _LABEL_OPERATORS)))


def node_rule(spec: Value) -> NodeRule:
    """nodeSelector and required node affinity; contradictions are mistakes, preferences are told."""
    node = spec.at("affinity", "nodeAffinity")
    for _ in node.at(_PREFERRED).items():
        node.not_modelled("preferred node affinity")
        break
    labels = spec.at("nodeSelector").labels()
    every = Selector(tuple(Requirement(key, "In", (text,)) for key, text in sorted(labels.items())))
    terms = node.at(_REQUIRED)
    if not terms:
        return NodeRule(every)
    found: list[Selector] = []
    for term in terms.at("nodeSelectorTerms").items():
        fields = tuple(requirements(term.at("matchFields"), ("In", "NotIn")))
        if any(one.key != "metadata.name" for one in fields):
            term.wrong("matchFields knows metadata.name alone")
        one = Selector(tuple(requirements(term.at("matchExpressions"), _NODE_OPERATORS)), fields)
        # A term without any expression matches no node.
        if one.requirements or one.fields:
            found.append(one)
    return NodeRule(every, tuple(found))


def taints(value: Value) -> tuple[Taint, ...]:
    """Those that keep pods off; PreferNoSchedule is a preference."""
    found = []
    for item in value.items():
        effect = item.at("effect").one_of(("NoSchedule", "NoExecute", "PreferNoSchedule"), "NoSchedule")
        if effect == "PreferNoSchedule":
            item.not_modelled("PreferNoSchedule taints")
        else:
            found.append(Taint(item.at("key").text(), item.at("value").text(), effect))
    return tuple(found)


def tolerations(value: Value) -> tuple[Toleration, ...]:
    """Tolerations of a pod."""
    effects = ("", "NoSchedule", "NoExecute", "PreferNoSchedule")
    return tuple(
        Toleration(
            item.at("key").text(),
            item.at("operator").one_of(("Exists", "Equal"), "Equal")  # type: ignore[arg-type]
            if item.at("operator") and item.at("operator").value
            else "Equal",
            item.at("value").text(),
            item.at("effect").one_of(effects, ""),
        )
        for item in value.items()
    )


def near_rules(spec: Value, pod: PodContext) -> tuple[NearRule, ...]:
    """Required affinity and anti-affinity to other pods; preferences are told."""
    found = []
    for key, together in (("podAffinity", True), ("podAntiAffinity", False)):
        part = spec.at("affinity", key)
        for _ in part.at(_PREFERRED).items():
            part.not_modelled(f"preferred {key}")
            break
        for term in part.at(_REQUIRED).items():
            found.append(NearRule(_pods(term, pod), _topology_key(term), together))
    return tuple(found)


def spread_rules(spec: Value, pod: PodContext) -> tuple[SpreadRule, ...]:
    """Topology spread with DoNotSchedule; ScheduleAnyway is a preference."""
    found = []
    for item in spec.at("topologySpreadConstraints").items():
        if (
            item.at("whenUnsatisfiable").one_of(("DoNotSchedule", "ScheduleAnyway"), "DoNotSchedule")
            == "ScheduleAnyway"
        ):
            item.not_modelled("topology spread with ScheduleAnyway")
            continue
        if item.at("nodeTaintsPolicy").text("Ignore") == "Honor":
            item.not_modelled("nodeTaintsPolicy Honor of topology spread")
        selector = label_selector(item.at("labelSelector"))
        found.append(
            SpreadRule(
                PodSelector(frozenset({pod.namespace}), _with_own_labels(item, selector, pod)),
                _topology_key(item),
                item.at("maxSkew").integer(1, 1),
                item.at("minDomains").integer(1, 1),
                item.at("nodeAffinityPolicy").text("Honor") == "Ignore",
            )
        )
    return tuple(found)


def _topology_key(value: Value) -> str:
    key = value.at("topologyKey")
    if not key.text():
        key.wrong("is required")
    return key.text()


def _pods(term: Value, pod: PodContext) -> PodSelector:
    """The pods that a term means: of the namespaces listed and selected, or of the pod's own."""
    selector = _with_own_labels(term, label_selector(term.at("labelSelector")), pod)
    listed = frozenset(one.text() for one in term.at("namespaces").items())
    chosen = label_selector(term.at("namespaceSelector"))
    if chosen is None:
        return PodSelector(listed or frozenset({pod.namespace}), selector)
    if not chosen.requirements:
        return PodSelector(None, selector)
    known = pod.namespaces
    if not known:
        term.not_modelled("namespaceSelector without the Namespace objects: taken as any namespace")
        return PodSelector(None, selector)
    return PodSelector(listed | {name for name, labels in known.items() if chosen.matches(labels)}, selector)


def _with_own_labels(term: Value, selector: Selector | None, pod: PodContext) -> Selector | None:
    """matchLabelKeys and mismatchLabelKeys: the pod's own values of these labels, or any others."""
    if selector is None:
        return None
    more = []
    for key, operator in (("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")):
        for item in term.at(key).items():
            own = pod.labels.get(item.text())
            if own is not None:
                more.append(Requirement(item.text(), cast("object", operator), (own,)))  # type: ignore[arg-type]
    return Selector((*selector.requirements, *more))
