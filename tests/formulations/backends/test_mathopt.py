"""MathOpt with HiGHS and SCIP: reasons and limits, refused options, hints, interruption, integers."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from formulations.backends.highs import last_solution, read_log
from formulations.backends.mathopt import SOLVERS, solve_mathopt
from formulations.backends.result import as_integer, conclude
from formulations.backends.worker import Seen
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import OptionError, SolverError

both = pytest.mark.parametrize("solver", SOLVERS)


def _knapsack(*, maximize: bool = False) -> tuple[Any, list[Any]]:
    """A multi-dimensional knapsack: incumbents at once, a proof only after minutes."""
    from ortools.math_opt.python import mathopt

    draw = random.Random(1)
    model = mathopt.Model()
    take = [model.add_binary_variable(name=f"take {i}") for i in range(200)]
    weights = [[draw.randint(100, 1000) for _ in take] for _ in range(15)]
    for row in weights:
        model.add_linear_constraint(sum(w * x for w, x in zip(row, take, strict=True)) <= sum(row) // 2)
    gains = [sum(row[i] for row in weights) / 15 + draw.randint(0, 500) for i in range(200)]
    gain = sum(g * x for g, x in zip(gains, take, strict=True))
    if maximize:
        model.maximize(gain)
    else:
        model.minimize(-gain)
    return model, take


def _line(lowest: float, highest: float = 5.0) -> tuple[Any, Any]:
    from ortools.math_opt.python import mathopt

    model = mathopt.Model()
    x = model.add_integer_variable(lb=0.0, ub=highest, name="x")
    model.add_linear_constraint(x >= lowest)
    model.minimize(2 * x + 1)
    return model, x


@both
def test_a_proven_optimum_has_a_bound_that_meets_it(solver: str) -> None:
    model, x = _line(2.5)
    result, value = solve_mathopt(model, Budget(5.0), SolveOptions(), solver=solver)
    assert (result.status, result.stop) == (Status.OPTIMAL, Stop.PROOF)
    assert result.objective == pytest.approx(7.0)
    assert result.bound == pytest.approx(7.0)
    assert value is not None
    assert as_integer(value(x)) == 3
    assert (result.solver, result.solver_version[:7]) == (solver, "ortools")


@both
def test_infeasible_has_neither_values_nor_numbers(solver: str) -> None:
    result, value = solve_mathopt(_line(7.0)[0], Budget(5.0), SolveOptions(), solver=solver)
    assert (result.status, result.stop) == (Status.INFEASIBLE, Stop.PROOF)
    assert (result.objective, result.bound, value) == (None, None, None)


@both
def test_an_unbounded_model_raises(solver: str) -> None:
    from ortools.math_opt.python import mathopt

    model = mathopt.Model()
    model.maximize(model.add_integer_variable(lb=0.0))
    with pytest.raises(SolverError, match="unbounded"):
        solve_mathopt(model, Budget(5.0), SolveOptions(), solver=solver)


def test_a_model_that_is_refused_raises_with_the_reason() -> None:
    with pytest.raises(SolverError, match=r"(?i)nan"):
        solve_mathopt(_line(math.nan)[0], Budget(5.0), SolveOptions())


@both
@pytest.mark.parametrize("maximize", [False, True])
def test_the_time_limit_keeps_the_incumbent_and_the_bound(solver: str, maximize: bool) -> None:
    model, take = _knapsack(maximize=maximize)
    result, value = solve_mathopt(model, Budget(0.7), SolveOptions(), solver=solver)
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert result.objective is not None
    assert result.bound is not None
    assert (result.bound >= result.objective) if maximize else (result.bound <= result.objective)
    assert value is not None
    assert {as_integer(value(x)) for x in take} <= {0, 1}


@both
def test_no_time_knows_nothing(solver: str) -> None:
    result, value = solve_mathopt(_knapsack()[0], Budget(0.0), SolveOptions(), solver=solver)
    assert (result.status, result.stop) == (Status.UNKNOWN, Stop.TIME_LIMIT)
    assert (result.objective, result.bound, value) == (None, None, None)


@both
def test_a_node_limit_repeats_the_plan(solver: str) -> None:
    plans = []
    for _ in range(2):
        model, take = _knapsack()
        options = SolveOptions(time_limit_s=60.0, work_limit=20, seed=7)
        result, value = solve_mathopt(model, Budget(60.0), options, solver=solver)
        assert (result.status, result.stop) == (Status.FEASIBLE, Stop.WORK_LIMIT)
        assert value is not None
        plans.append([as_integer(value(x)) for x in take])
    assert plans[0] == plans[1]


@both
def test_a_gap_that_was_asked_is_not_optimal(solver: str) -> None:
    result, _ = solve_mathopt(_knapsack()[0], Budget(10.0), SolveOptions(relative_gap=0.05), solver=solver)
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.GAP)
    assert result.bound is not None
    assert result.objective is not None
    assert result.bound < result.objective


def test_optimal_needs_a_bound_that_meets_the_objective() -> None:
    assert conclude(3.28e-06, 2.99e-06, None) == (Status.FEASIBLE, Stop.GAP)
    assert conclude(1e6, 1e6 - 0.1, None) == (Status.OPTIMAL, Stop.PROOF)
    assert conclude(1e6, 1e6 - 0.1, 0.05) == (Status.FEASIBLE, Stop.GAP)
    assert conclude(1.0, None, None) == (Status.FEASIBLE, Stop.GAP)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("highs", SolveOptions(num_threads=2), "one thread"),
        ("highs", SolveOptions(work_limit=0.5), "whole"),
        ("scip", SolveOptions(work_limit=2.5), "whole"),
        ("glop", SolveOptions(), "choose from highs, scip"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(solver: str, options: SolveOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        solve_mathopt(_line(1.0)[0], Budget(5.0), options, solver=solver)


def test_scip_takes_threads() -> None:
    result, _ = solve_mathopt(_line(1.0)[0], Budget(5.0), SolveOptions(num_threads=2), solver="scip")
    assert result.status is Status.OPTIMAL


@both
def test_a_hint_is_at_least_matched(solver: str) -> None:
    model, take = _knapsack()
    options = SolveOptions(time_limit_s=60.0, work_limit=1)
    first, value = solve_mathopt(model, Budget(60.0), SolveOptions(work_limit=50), solver=solver)
    assert value is not None
    assert first.objective is not None
    hint = {x: float(as_integer(value(x))) for x in take}
    again, _ = solve_mathopt(model, Budget(60.0), options, solver=solver, hint=hint)
    assert again.objective is not None
    assert again.objective <= first.objective + 1e-6


@both
def test_an_interrupt_keeps_the_incumbent(solver: str) -> None:
    model, take = _knapsack()
    limit_s = 3.0
    budget = Budget(limit_s)
    threading.Timer(0.7, lambda: setattr(budget, "interrupted", True)).start()
    result, value = solve_mathopt(model, budget, SolveOptions(time_limit_s=limit_s), solver=solver)
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.INTERRUPTED)
    assert value is not None
    assert {as_integer(value(x)) for x in take} <= {0, 1}
    assert result.objective is not None
    assert result.bound is not None
    assert result.bound <= result.objective
    gain = model.objective.offset + sum(
        term.coefficient * value(term.variable) for term in model.objective.linear_terms()
    )
    assert gain == pytest.approx(result.objective)


def test_an_interrupted_budget_starts_nothing() -> None:
    budget = Budget(5.0)
    budget.interrupted = True
    result, value = solve_mathopt(_line(1.0)[0], budget, SolveOptions())
    assert (result.status, result.stop, value) == (Status.UNKNOWN, Stop.INTERRUPTED, None)


def test_the_log_of_highs_gives_bound_and_incumbent() -> None:
    seen = Seen()
    read_log(
        [" J   0    0     0   0.00%   -inf            42                 Large   0  0  0  0   0.0s"],
        seen,
        True,
    )
    assert (seen.bound, seen.incumbent) == (None, 42.0)
    read_log(
        ["    65    8     9   0.00%   36.5            42                13.10%   1  2  3  4   2.1s"],
        seen,
        True,
    )
    assert seen.bound is not None
    assert 36.4 < seen.bound < 36.5
    read_log(["Solving MIP model with:", ""], seen, True)
    assert seen.incumbent == 42.0


def test_a_half_written_solution_of_highs_is_skipped(tmp_path: Path) -> None:
    saved = tmp_path / "solutions"
    assert last_solution(saved, 2) is None
    saved.write_text("Objective 5\n# Columns 2\na b 1\n 4\nObjective 3\n# Columns 2\na b 1\n ")
    assert last_solution(saved, 2) == (5.0, [1.0, 4.0])
    saved.write_text("Objective 5\n# Columns 2\na b 1\n")
    assert last_solution(saved, 2) is None


def test_as_integer_rounds_and_never_truncates() -> None:
    assert as_integer(2.9999999) == 3
    assert as_integer(-1e-9) == 0
    for value in (2.5, 2.99999, math.nan, math.inf):
        with pytest.raises(SolverError, match="integer"):
            as_integer(value)
    assert as_integer(2.999, tolerance=0.01) == 3
