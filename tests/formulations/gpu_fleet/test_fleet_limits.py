"""Time limits, gaps, progress and repetition of the fleet search."""

from __future__ import annotations

import numpy as np
import pytest
from fleet_cases import demand, offers, problem, profile, run

from formulations.base import solve
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import Progress, SolveOptions, Status, Stop
from planner.errors import OptionError

METHODS = ("highs", "scip", "cbc")


def large(seed: int = 0, hours: int = 1, num_sizes: int = 20, num_offers: int = 10) -> FleetProblem:
    """Many sizes and offers of differing strength; too much for a moment."""
    rng = np.random.default_rng(seed)
    rows = offers(
        **{
            f"o{k}": {"price": round(float(rng.uniform(1, 9)), 3), "gpus": 8 if k % 2 else 1, "max_count": 7}
            for k in range(num_offers)
        }
    )
    asked, served = [], []
    for s in range(num_sizes):
        size = {"input_tokens": 100 * (s + 1), "output_tokens": 50}
        rate = rng.uniform(0.5, 2.0, hours).round(3).tolist()
        asked.append(demand(rate if hours > 1 else rate[0], f"m{s % 3}", **size))
        served += [profile(row["name"], round(float(rng.uniform(0.3, 4)), 3), f"m{s % 3}", **size) for row in rows]
    return problem(rows, asked, served, spare_instances=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit_s", [1e-4, 0.05, 0.3])
def test_a_short_time_is_an_answer(method: str, limit_s: float) -> None:
    made = large()
    outcome = run(made, method, time_limit_s=limit_s)
    assert outcome.status in (Status.UNKNOWN, Status.FEASIBLE, Status.OPTIMAL)
    if outcome.status is Status.UNKNOWN:
        assert outcome.stop is Stop.TIME_LIMIT
        assert outcome.plan is None
    if outcome.plan is not None:
        assert check(made, outcome.plan) == []
    if outcome.status is Status.FEASIBLE and outcome.bound is not None and outcome.objective is not None:
        assert outcome.bound.value <= outcome.objective.total + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_a_short_time_for_many_hours(method: str) -> None:
    outcome = run(large(hours=30, num_sizes=6), method, time_limit_s=0.4)
    assert outcome.status in (Status.UNKNOWN, Status.FEASIBLE, Status.OPTIMAL)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_work_gives_the_same_plan(method: str) -> None:
    made = large(num_sizes=6, num_offers=4)
    first, second = (run(made, method, work_limit=5, seed=3) for _ in range(2))
    assert first.plan == second.plan
    assert first.status == second.status
    assert (first.bound is None) == (second.bound is None)
    if first.bound is not None and second.bound is not None:
        assert first.bound.value == second.bound.value


def test_a_gap_that_is_enough() -> None:
    made = large(num_sizes=6, num_offers=4)
    outcome = run(made, "scip", relative_gap=0.2)
    assert outcome.gap is not None
    assert outcome.gap <= 0.2
    exact = run(made, "scip").objective
    assert exact is not None
    assert outcome.bound is not None
    assert outcome.bound.value <= exact.total * (1 + 1e-6)


def test_an_interrupt_before_the_start_is_an_answer() -> None:
    """What the first Ctrl-C sets; the search of many hours ends with it."""
    from formulations.gpu_fleet.search import search
    from formulations.outcome import Budget

    budget = Budget(30.0)
    budget.interrupted = True
    result = search(large(hours=3, num_sizes=4), SolveOptions(), budget, "highs")
    assert (result.status, result.stop, result.plan) == (Status.UNKNOWN, Stop.INTERRUPTED, None)


def test_progress_is_told_of_all_hours() -> None:
    seen: list[Progress] = []
    made = problem(offers(a=1.0), [1.0, 2.0, 3.0], {"a": 1.0})
    outcome = solve(GPU_FLEET, made, SolveOptions(), on_progress=seen.append)
    assert outcome.objective is not None
    told = [progress.incumbent for progress in seen if progress.incumbent is not None]
    assert told[-1] == pytest.approx(outcome.objective.total)


def test_what_cannot_be_honoured_is_refused() -> None:
    made = problem(offers(a=1.0), 1.0, {"a": 1.0})
    with pytest.raises(OptionError, match="one thread"):
        run(made, "highs", num_threads=2)
    with pytest.raises(OptionError, match="no method 'gurobi'"):
        run(made, "gurobi")
    plan = run(made).plan
    with pytest.raises(OptionError, match="no start plan"):
        solve(GPU_FLEET, made, SolveOptions(), hint=plan)
