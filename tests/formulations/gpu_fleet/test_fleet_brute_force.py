"""Small random fleets with all kinds of limits: every backend finds what trying all counts finds."""

from __future__ import annotations

import math

import pytest
from fleet_cases import brute_force, random_problem, run

from formulations.gpu_fleet.problem import FleetProblem

METHODS = ("highs", "scip", "cbc")
SEEDS = range(60)


def agrees(instance: FleetProblem, method: str) -> None:
    outcome = run(instance, method)
    truth = brute_force(instance)
    if math.isinf(truth):
        assert outcome.status == "infeasible"
        assert outcome.reasons
        return
    assert outcome.status == "optimal", (outcome.reasons, truth)
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.objective.total == pytest.approx(truth, rel=1e-6, abs=1e-6)
    assert outcome.bound.value <= outcome.objective.total + 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_backend_finds_the_optimum(seed: int, method: str) -> None:
    agrees(random_problem(seed), method)
