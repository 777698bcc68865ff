"""Selectors, taints and node rules match as the scheduler matches them."""

from __future__ import annotations

import pytest

from planner.kubernetes.rules import NodeRule, PodSelector, Requirement, Selector, Taint, Toleration

LABELS = {"zone": "a", "gpus": "8"}


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [
        (Requirement("zone", "In", ("a", "b")), True),
        (Requirement("zone", "In", ("b",)), False),
        (Requirement("zone", "NotIn", ("b",)), True),
        (Requirement("missing", "NotIn", ("b",)), True),
        (Requirement("missing", "In", ("b",)), False),
        (Requirement("zone", "Exists"), True),
        (Requirement("zone", "DoesNotExist"), False),
        (Requirement("missing", "DoesNotExist"), True),
        (Requirement("gpus", "Gt", ("4",)), True),
        (Requirement("gpus", "Gt", ("8",)), False),
        (Requirement("gpus", "Lt", ("9",)), True),
        (Requirement("zone", "Gt", ("1",)), False),
        (Requirement("missing", "Lt", ("1",)), False),
    ],
)
def test_every_operator(requirement: Requirement, matches: bool) -> None:
    assert requirement.matches(LABELS) is matches


def test_selectors_that_are_empty_or_absent() -> None:
    assert Selector().matches(LABELS)
    assert PodSelector(None, Selector()).matches("any", {})
    assert not PodSelector(None, None).matches("any", {})
    assert not PodSelector(frozenset({"x"}), Selector()).matches("y", {})


def test_node_rules() -> None:
    """Terms are alternatives, no term is no node, and fields ask for the name."""
    a, b = (Selector((Requirement("zone", "In", (zone,)),)) for zone in "ab")
    assert NodeRule(any_of=(b, a)).matches(LABELS, "n")
    assert not NodeRule(every=b, any_of=(a,)).matches(LABELS, "n")
    assert not NodeRule(any_of=()).matches(LABELS, "n")
    named = Selector(fields=(Requirement("metadata.name", "In", ("n",)),))
    assert NodeRule(any_of=(named,)).matches(LABELS, "n")
    assert not NodeRule(any_of=(named,)).matches(LABELS, "m")


@pytest.mark.parametrize(
    ("toleration", "tolerates"),
    [
        (Toleration(operator="Exists"), True),
        (Toleration(key="gpu", operator="Exists"), True),
        (Toleration(key="gpu", value="true"), True),
        (Toleration(key="gpu", value="no"), False),
        (Toleration(key="cpu", operator="Exists"), False),
        (Toleration(key="gpu", operator="Exists", effect="NoExecute"), False),
        (Toleration(), False),
    ],
)
def test_tolerations(toleration: Toleration, tolerates: bool) -> None:
    assert toleration.tolerates(Taint("gpu", "true", "NoSchedule")) is tolerates


def test_contradictions_are_found() -> None:
    for one, two in (
        (Requirement("z", "In", ("a",)), Requirement("z", "In", ("b",))),
        (Requirement("z", "In", ("a",)), Requirement("z", "NotIn", ("a",))),
        (Requirement("z", "Exists"), Requirement("z", "DoesNotExist")),
    ):
        assert Selector((one, two)).contradiction() == (one, two)
    assert Selector((Requirement("z", "In", ("a", "b")), Requirement("z", "NotIn", ("a",)))).contradiction() is None
