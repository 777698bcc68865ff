"""The largest batches and loads that memory and the limits leave: by hand, and against trying all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formulations import SolveOptions
from formulations.base import solve
from formulations.parallelism import pricing
from formulations.parallelism.formulation import PARALLELISM
from formulations.parallelism.pricing import LEAST_LOAD, MOST_LOAD, largest
from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner.descriptions.parallel import ParallelInstance

SMALL = "Qwen/Qwen3-8B"


def read(**more: Any) -> ParallelProblem:
    cluster = {"nodes": [{"device": "h100_sxm", "count": 1, "gpus_per_node": 2}]}
    load = {"input_tokens": 2000, "output_tokens": 300}
    said = {"name": "case", "model": SMALL, "cluster": cluster, "workload": load, **more}
    found: ParallelProblem = load_problem(ParallelInstance.model_validate(said))
    return found


def most(problem: ParallelProblem) -> float:
    plan = solve(PARALLELISM, problem, SolveOptions(time_limit_s=20.0)).plan
    assert plan is not None
    return plan.requests_per_s


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 60)), min_size=1, max_size=5))
def test_largest(cases: list[tuple[int, int]]) -> None:
    """Up to `most`, of those at or below a threshold; the least where that is above it."""
    upper, threshold = np.array(cases).T
    found = largest(lambda at: at <= threshold, np.ones_like(upper), upper)
    assert found.tolist() == np.clip(threshold, 1, upper).tolist()


@pytest.mark.parametrize("slo", [{"ttft_s": 0.5, "tpot_s": 0.02}, {"ttft_s": 3.0}, {"tpot_s": 0.011}, {}])
@pytest.mark.parametrize("disaggregated", ["never", "only"])
def test_no_batch_or_load_between_is_better(
    monkeypatch: pytest.MonkeyPatch, slo: dict[str, float], disaggregated: str
) -> None:
    """The optimum over all batches from 1 to 1,024 and all loads in whole percent."""
    found = most(read(slo=slo, disaggregated=disaggregated))
    monkeypatch.setattr(pricing, "BATCHES", np.arange(1.0, 1025.0))
    monkeypatch.setattr(pricing, "LOADS", np.arange(LEAST_LOAD, MOST_LOAD + 1) / 100)
    assert found == pytest.approx(most(read(slo=slo, disaggregated=disaggregated)), rel=1e-9)


def test_one_more_misses_the_limit() -> None:
    """The slowest decode worker of each size within the limit has the largest batch; with one more it is late."""
    limit = 0.011
    problem = read(slo={"tpot_s": limit}, disaggregated="only")
    decode = [
        one for one, usable in zip(problem.workers, problem.usable, strict=True) if usable and one.role == "decode"
    ]
    for gpus in (1, 2):
        best = max((one for one in decode if one.num_gpus == gpus), key=lambda one: one.max_batch_size or 0)
        model = problem.predictions and problem.predictions.model_of(best)
        assert model is not None
        plans = pricing.ServingPlans.of(0, [best.max_batch_size, best.max_batch_size + 1], 2000, 300)
        late = model.predict(plans).step_s * 1.05 > limit
        assert late.tolist() == [False, True]


def test_limits_with_a_confidence_have_their_own() -> None:
    """Half of the measurements keep the limit without a margin: larger batches than at 90 %."""
    half, most_of_them = (most(read(slo={"tpot_s": 0.011}, slo_confidence=share)) for share in (0.5, 0.9))
    assert half > most_of_them
