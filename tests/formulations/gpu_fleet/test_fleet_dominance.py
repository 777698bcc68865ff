"""Leaving out configurations that smaller replicas replace changes no optimum, whatever the caps."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from fleet_cases import best, demand, offers, problem, profile, random_problem, run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from formulations.gpu_fleet import milp, service_plans
from formulations.gpu_fleet.dominance import needless_configs
from formulations.gpu_fleet.problem import BoolArray, FleetProblem


def worth(instance: FleetProblem) -> float:
    """The optimum, or inf."""
    outcome = run(instance, "scip")
    if outcome.status == "infeasible":
        return math.inf
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    return outcome.objective.total


def none_needless(instance: FleetProblem) -> BoolArray:
    return np.zeros(instance.num_configs, dtype=np.bool_)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 20_000), cap=st.integers(1, 6), better=st.floats(1.0, 1.5))
def test_the_whole_model_has_the_same_optimum(seed: int, cap: int, better: float) -> None:
    made = random_problem(seed)
    # Single GPUs that are a little better make more of the larger replicas needless.
    faster = np.where(made.config_gpus == 1, better, 1.0)
    made = replace(made, most=np.minimum(made.most, cap), throughput=made.throughput * faster)
    made = replace(made, least=np.minimum(made.least, made.most))
    assume(needless_configs(made).any())
    with (
        patch.object(milp, "needless_configs", none_needless),
        patch.object(service_plans, "needless_configs", none_needless),
    ):
        whole = worth(made)
    assert worth(made) == pytest.approx(whole)


def shape(*rates: tuple[int, float, float]) -> FleetProblem:
    """One offer of 4 GPUs: (GPUs of a replica, requests/s of short ones, of long ones)."""
    served = [
        profile("a", rate, "m", gpus, input_tokens=tokens)
        for gpus, short, long in rates
        for tokens, rate in ((100, short), (1000, long))
    ]
    asked = [demand(1.0, input_tokens=100), demand(1.0, input_tokens=1000)]
    return problem(offers(a={"price": 4.0, "gpus": 4, "max_count": 1}), asked, served)


def test_a_size_is_needless_only_where_it_is_nowhere_better() -> None:
    # Four of (1, 0.5) serve (4, 2): as much as one of (4, 2), less than one of (3, 2.1).
    assert needless_configs(shape((1, 1.0, 0.5), (4, 4.0, 2.0))).tolist() == [False, True]
    assert needless_configs(shape((1, 1.0, 0.5), (4, 3.0, 2.1))).tolist() == [False, False]


def test_a_large_replica_is_kept_for_what_small_ones_cannot_serve() -> None:
    # Long requests fit on four GPUs only: one instance serves 1/4 + 1/2 of its replica.
    made = shape((1, 2.0, 0.0), (4, 4.0, 2.0))
    assert not needless_configs(made).any()
    assert best(made) == pytest.approx(4.0)
