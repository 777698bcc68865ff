"""Kinds of pods, and whose place serves whom: by hand."""

from __future__ import annotations

import numpy as np
import pytest

from formulations.pod_packing.exchanges import MOST_CLASSES, fitting
from formulations.pod_packing.problem import PodsProblem
from formulations.pod_packing.repair.kinds import Kinds
from tests.formulations.pod_packing.pods_cases import problem

NODES = [{"name": "a", "gpus": 4, "labels": {"zone": "east"}}, {"name": "b", "gpus": 4}]


def numbers(one: PodsProblem, kinds: Kinds) -> dict[str, int]:
    return {name.partition("/")[2]: int(kinds.of_class[one.pod_class[p]]) for p, name in enumerate(one.pod_names)}


def passed(one: PodsProblem) -> set[tuple[str, str]]:
    """(a, b): a place for b will do for a."""
    kinds = Kinds(one)
    name = {kind: pod for pod, kind in numbers(one, kinds).items()}
    return {(name[a], name[b]) for a, b in kinds.exchanges.tolist()}


def test_priority_and_owner_make_no_kind_of_their_own() -> None:
    one = problem(NODES, [{"name": "p", "gpus": 1}, {"name": "q", "gpus": 1, "priority": 7}, {"name": "r", "gpus": 2}])
    kinds = Kinds(one)
    of = numbers(one, kinds)
    assert kinds.count == 2
    assert of["p"] == of["q"] != of["r"]
    assert kinds.counts(one.demand).tolist() == [2, 1]


def test_a_place_serves_what_asks_for_no_more_of_anything() -> None:
    """Chain bare < half < one < two; what follows from others is left out. A large share and many cores fit nowhere."""
    pods = [
        {"name": "bare"},
        {"name": "half", "gpus": 1, "gpu_milli": 500},
        {"name": "one", "gpus": 1},
        {"name": "two", "gpus": 2},
        {"name": "cores", "cpu": 3, "gpus": 1, "gpu_milli": 300},
    ]
    chain = {("bare", "half"), ("half", "one"), ("one", "two"), ("bare", "cores")}
    assert passed(problem(NODES, pods)) == chain


def test_a_place_serves_only_who_may_run_wherever_it_can_be() -> None:
    """A pod for the east may not take the place of one that runs anywhere; the other way round it may."""
    pods = [{"name": "east", "gpus": 1, "node_selector": {"zone": "east"}}, {"name": "any", "gpus": 1}]
    assert passed(problem(NODES, pods)) == {("any", "east")}


def test_too_many_classes_take_no_places_of_each_other() -> None:
    """One more than the limit, each a little larger than the one before."""
    sizes = np.arange(MOST_CLASSES + 1)
    alike, none = np.zeros_like(sizes), np.zeros(sizes.size, dtype=np.bool_)
    assert not fitting(sizes[:, None], alike, alike, ~none[:, None], none).any()


def test_tied_pods_keep_to_themselves() -> None:
    apart = {"labelSelector": {"matchLabels": {"app": "x"}}, "topologyKey": "kubernetes.io/hostname"}
    rule = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    pods = [{"name": "tied", "labels": {"app": "x"}, "affinity": rule}, {"name": "free"}, {"name": "wide", "cpu": 2}]
    assert passed(problem(NODES, pods)) == {("free", "wide")}


def test_a_place_is_worth_the_pods_that_it_holds() -> None:
    """A pod of 2 GPUs and 4 cores: two of 1 GPU and 1 core worth 3 each, or four halves worth 1 each: 6 and 4."""
    pods = [
        {"name": "one", "gpus": 1},
        {"name": "half", "gpus": 1, "gpu_milli": 500},
        {"name": "two", "gpus": 2, "cpu": 4},
    ]
    one = problem(NODES, pods)
    kinds = Kinds(one)
    of = numbers(one, kinds)

    def worth(**pods: float) -> dict[str, float]:
        wanted = np.zeros(kinds.count)
        for name, value in pods.items():
            wanted[of[name]] = value
        found = kinds.worth(wanted)
        return {name: float(found[kind]) for name, kind in of.items()}

    assert worth(one=3.0) == pytest.approx({"one": 3.0, "half": 0.0, "two": 6.0})
    assert worth(half=1.0) == pytest.approx({"one": 1.0, "half": 1.0, "two": 4.0})
