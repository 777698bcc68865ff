"""CP-SAT: statuses, limits, rounded objectives, repeatability and interruption."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest

from formulations.backends.cpsat import solve_cpsat
from formulations.outcome import Budget, Progress, SolveOptions, Status, Stop
from planner.errors import SolverError


def _knapsack(items: int = 200, rows: int = 15) -> tuple[Any, list[Any]]:
    """A multi-dimensional knapsack: incumbents at once, a proof only after minutes."""
    from ortools.sat.python import cp_model

    draw = random.Random(1)
    model = cp_model.CpModel()
    take = [model.new_bool_var(f"take{i}") for i in range(items)]
    weights = [[draw.randint(100, 1000) for _ in range(items)] for _ in range(rows)]
    for row in weights:
        model.add(sum(w * x for w, x in zip(row, take, strict=True)) <= sum(row) // 2)
    gains = [sum(row[i] for row in weights) // rows + draw.randint(0, 500) for i in range(items)]
    model.minimize(-sum(g * x for g, x in zip(gains, take, strict=True)))
    return model, take


def _line(lowest: int) -> tuple[Any, Any]:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x = model.new_int_var(0, 5, "x")
    model.add(x >= lowest)
    model.minimize(2 * x)
    return model, x


def test_a_proven_optimum_has_a_bound_that_meets_it() -> None:
    model, x = _line(3)
    result, value = solve_cpsat(model, Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.OPTIMAL, Stop.PROOF)
    assert result.objective == result.bound == 6.0
    assert value is not None
    assert value(x) == 3
    assert result.solver == "cp-sat"
    assert result.solver_version.startswith("9.")


def test_infeasible_has_neither_values_nor_numbers() -> None:
    result, value = solve_cpsat(_line(7)[0], Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.INFEASIBLE, Stop.PROOF)
    assert not result.has_solution
    assert result.objective is None
    assert result.bound is None
    assert value is None


def test_a_solution_without_an_objective_is_feasible_by_proof() -> None:
    model, x = _line(3)
    model.clear_objective()
    result, value = solve_cpsat(model, Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.PROOF)
    assert result.objective is None
    assert result.bound is None
    assert value is not None
    assert value(x) >= 3


def test_an_invalid_model_raises_with_the_reason() -> None:
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    model.new_int_var(0, 2**62, "huge")
    with pytest.raises(SolverError, match="huge"):
        solve_cpsat(model, Budget(5.0), SolveOptions())


def test_the_time_limit_keeps_the_incumbent_and_the_bound() -> None:
    seen: list[Progress] = []
    budget = Budget(1.0, seen.append)
    result, value = solve_cpsat(_knapsack()[0], budget, SolveOptions(time_limit_s=1.0))
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert result.objective is not None
    assert result.bound is not None
    assert result.bound <= result.objective
    assert value is not None
    assert seen[-1].incumbent is not None
    assert seen[-1].bound is not None


def test_no_time_or_hardly_any_knows_nothing() -> None:
    for budget in (Budget(0.0), Budget(1e-4)):
        result, value = solve_cpsat(_knapsack()[0], budget, SolveOptions())
        assert (result.status, result.stop) == (Status.UNKNOWN, Stop.TIME_LIMIT)
        assert (result.objective, result.bound, value) == (None, None, None)


def test_unknown_at_the_work_limit_has_no_bound_of_zero() -> None:
    result, _ = solve_cpsat(_knapsack()[0], Budget(5.0), SolveOptions(work_limit=1e-6))
    assert (result.status, result.stop) == (Status.UNKNOWN, Stop.WORK_LIMIT)
    assert result.bound is None


@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_work_limit_repeats_the_plan(num_threads: int) -> None:
    plans = []
    for _ in range(2):
        model, take = _knapsack()
        options = SolveOptions(time_limit_s=60.0, work_limit=0.1, seed=7, num_threads=num_threads)
        result, value = solve_cpsat(model, Budget(60.0), options)
        assert (result.status, result.stop) == (Status.FEASIBLE, Stop.WORK_LIMIT)
        assert value is not None
        plans.append([value(x) for x in take])
    assert plans[0] == plans[1]


def test_a_gap_that_was_asked_is_not_optimal() -> None:
    result, _ = solve_cpsat(_knapsack()[0], Budget(10.0), SolveOptions(relative_gap=0.05))
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.GAP)
    assert result.bound is not None
    assert result.objective is not None
    assert result.bound < result.objective


def test_a_gap_that_closes_is_optimal() -> None:
    result, _ = solve_cpsat(_line(3)[0], Budget(5.0), SolveOptions(relative_gap=0.05))
    assert (result.status, result.stop) == (Status.OPTIMAL, Stop.PROOF)


def test_a_rounded_objective_is_never_optimal() -> None:
    result, _ = solve_cpsat(_line(3)[0], Budget(5.0), SolveOptions(), scale=0.5, exact=False)
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.HEURISTIC)
    assert result.objective == 3.0
    assert result.bound is None


def test_a_rounded_objective_takes_the_bound_that_its_caller_vouches_for() -> None:
    result, _ = solve_cpsat(
        _line(3)[0],
        Budget(5.0),
        SolveOptions(),
        scale=0.5,
        exact=False,
        unscale_bound=lambda bound: 0.5 * bound - 0.1,
    )
    assert (result.status, result.bound) == (Status.FEASIBLE, pytest.approx(2.9))


def test_an_interrupt_keeps_the_incumbent() -> None:
    budget = Budget(60.0)
    threading.Timer(0.5, lambda: setattr(budget, "interrupted", True)).start()
    started_s = time.perf_counter()
    result, value = solve_cpsat(_knapsack()[0], budget, SolveOptions(time_limit_s=60.0))
    assert time.perf_counter() - started_s < 30.0
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.INTERRUPTED)
    assert value is not None


def test_solutions_are_handed_on_and_errors_come_back() -> None:
    model, take = _knapsack()
    plans: list[list[int]] = []
    solve_cpsat(model, Budget(0.5), SolveOptions(), on_solution=lambda value: plans.append([value(x) for x in take]))
    assert plans

    def fail(value: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve_cpsat(model, Budget(5.0), SolveOptions(), on_solution=fail)


def test_a_failing_progress_display_stops_the_search() -> None:
    def fail(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve_cpsat(_knapsack()[0], Budget(60.0, fail), SolveOptions(time_limit_s=60.0))
    assert not [thread for thread in threading.enumerate() if thread.name == "solver"]
