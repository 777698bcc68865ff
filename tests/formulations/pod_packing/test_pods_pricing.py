"""Contents of nodes from the knapsacks: they fit, and no content is worth more than the bound."""

from __future__ import annotations

import numpy as np
import pytest

from formulations.pod_packing.pricing import Pricer
from formulations.pod_packing.shapes import counts, shapes_of
from formulations.pod_packing.state import State
from tests.formulations.pod_packing.pods_cases import best_values, problem, random_problem


@pytest.mark.parametrize("seed", range(30))
def test_contents_fit_and_bounds_hold(seed: int) -> None:
    """Random values; the best of many greedy fillings stays below the bound at any prices of amounts."""
    one = random_problem(seed, "priority")
    shapes = shapes_of(State(one))
    rng = np.random.default_rng(seed)
    pricer = Pricer(shapes)
    left = one.demand[shapes.classes]
    for _ in range(6):
        values = rng.random(shapes.classes.size)
        bounds = pricer.bounds(values, left)
        for kind, pattern in pricer.contents(values, left, 0.0):
            assert shapes.holds(kind, pattern)
            assert counts(shapes, pattern) @ values <= bounds[kind] + 1e-9
        for kind in range(len(shapes.nodes)):
            for _ in range(10):
                order = rng.permutation(shapes.classes.size).tolist()
                entries = [(j, devices) for j in order for devices in ((), (0,), (1,), (0, 1))]
                fitting = [entry for entry in entries if len(entry[1]) == one.class_gpus[shapes.classes[entry[0]]]]
                devices = (shapes.device[kind] >= 0).sum()
                usable = [entry for entry in fitting if all(d < devices for d in entry[1])]
                pattern = pricer.trimmed(kind, usable, values, left)
                assert counts(shapes, pattern) @ values <= bounds[kind] + 1e-9


def test_one_node_is_priced_exactly() -> None:
    """8 cores, two devices: the knapsack's content is the best there is, by trying all: values are GPUs."""
    pods = [
        {"name": "a", "count": 4, "gpus": 1, "gpu_milli": 600},
        {"name": "b", "count": 4, "cpu": 2, "gpus": 1, "gpu_milli": 400},
        {"name": "c", "cpu": 3, "gpus": 1},
    ]
    one = problem([{"name": "n", "gpus": 2}], pods, objective="allocation")
    shapes = shapes_of(State(one))
    best = best_values(one)
    assert best is not None
    assert Pricer(shapes).bounds(one.milli[shapes.classes] / 1000, one.demand[shapes.classes])[0] == pytest.approx(
        -best[0]
    )


def test_pods_without_cores_are_counted() -> None:
    """Their number is limited by nothing but how many there are: 3 of value 1, and 8 pods of a core of value 1."""
    one = problem([{"name": "n"}], [{"name": "z", "cpu": 0, "count": 3}, {"name": "p", "count": 20}])
    shapes = shapes_of(State(one))
    assert Pricer(shapes).bounds(np.ones(2), one.demand[shapes.classes])[0] >= 11
