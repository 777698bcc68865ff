"""CBC under PuLP: what PuLP reports wrongly, bounds from the log, limits, seeds and interruption."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import solve_cpsat
from formulations.backends.mathopt import solve_mathopt
from formulations.backends.pulp_milp import solve_pulp
from formulations.backends.result import as_integer
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import OptionError, SolverError

load_ortools_first()
pulp = pytest.importorskip("pulp")


def _knapsack(*, items: int = 80, rows: int = 5, maximize: bool = False, offset: float = 0.0) -> Any:
    """A multi-dimensional knapsack. CBC has an incumbent in a tenth of a second, whatever the size."""
    draw = random.Random(1)
    problem = pulp.LpProblem("knapsack", pulp.LpMaximize if maximize else pulp.LpMinimize)
    take = [problem.add_variable(f"x{i}", cat="Binary") for i in range(items)]
    weights = [[draw.randint(100, 1000) for _ in take] for _ in range(rows)]
    gains = [sum(row[i] for row in weights) / rows + draw.randint(0, 500) for i in range(items)]
    sign = 1 if maximize else -1
    problem += pulp.lpSum(sign * g * x for g, x in zip(gains, take, strict=True)) + offset
    for row in weights:
        problem += pulp.lpSum(w * x for w, x in zip(row, take, strict=True)) <= sum(row) // 2
    return problem


def _hard() -> Any:
    """A knapsack whose proof takes CBC many minutes."""
    return _knapsack(items=200, rows=15)


def _pair(total: int) -> tuple[Any, Any]:
    problem = pulp.LpProblem("pair", pulp.LpMinimize)
    x = problem.add_variable("x", 0, 1, cat="Integer")
    y = problem.add_variable("y", 0, 1, cat="Integer")
    problem += 3 * x + y + 10
    problem += 2 * x + 2 * y == total
    return problem, y


def test_a_proven_optimum_keeps_the_constant_of_the_objective() -> None:
    problem, y = _pair(2)
    result, value = solve_pulp(problem, Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.OPTIMAL, Stop.PROOF)
    assert result.objective == result.bound == pytest.approx(11.0)
    assert value is not None
    assert as_integer(value(y)) == 1
    assert value(2 * y + 1) == pytest.approx(3.0)
    assert result.solver_version.startswith("2.10")
    assert "pulp 3." in result.solver_version


@pytest.mark.parametrize("total", [1, 6])
def test_infeasible_models_expose_no_values(total: int) -> None:
    problem, y = _pair(total)
    problem.solve(pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False))
    assert y.value() is not None, "PuLP no longer keeps values of infeasible models"

    result, value = solve_pulp(problem, Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.INFEASIBLE, Stop.PROOF)
    assert (result.objective, result.bound, value) == (None, None, None)
    assert y.value() is None


def test_an_unbounded_model_raises() -> None:
    problem = pulp.LpProblem("unbounded", pulp.LpMaximize)
    problem += problem.add_variable("x", 0, None, cat="Integer")
    with pytest.raises(SolverError, match="unbounded"):
        solve_pulp(problem, Budget(5.0), SolveOptions())


def test_a_problem_without_an_objective_is_solved() -> None:
    problem = pulp.LpProblem("any", pulp.LpMinimize)
    x = problem.add_variable("x", 2, 5, cat="Integer")
    problem += x <= 4
    result, value = solve_pulp(problem, Budget(5.0), SolveOptions())
    assert (result.status, result.objective) == (Status.OPTIMAL, 0.0)
    assert value is not None
    assert 2 <= value(x) <= 4
    assert problem.objective is None


def test_pulp_says_optimal_for_an_incumbent_and_the_backend_does_not() -> None:
    problem = _hard()
    cbc = pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, timeLimit=1.5)
    assert pulp.LpStatus[problem.solve(cbc)] == "Optimal"

    result, value = solve_pulp(problem, Budget(1.5), SolveOptions())
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert result.objective is not None
    assert result.bound is not None
    assert result.bound <= result.objective
    assert value is not None


def test_pulp_says_optimal_within_a_gap_and_the_backend_does_not() -> None:
    problem = _knapsack()
    problem.solve(pulp.COIN_CMD(path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, gapRel=0.05))
    assert problem.sol_status == pulp.LpSolutionOptimal

    result, _ = solve_pulp(problem, Budget(10.0), SolveOptions(relative_gap=0.05))
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.GAP)
    assert result.bound is not None
    assert result.objective is not None
    assert result.bound < result.objective


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_node_limit_repeats_the_plan_and_has_a_bound(maximize: bool, offset: float) -> None:
    plans = []
    for _ in range(2):
        problem = _knapsack(maximize=maximize, offset=offset)
        result, value = solve_pulp(problem, Budget(60.0), SolveOptions(work_limit=50, seed=7))
        assert (result.status, result.stop) == (Status.FEASIBLE, Stop.WORK_LIMIT)
        assert result.objective is not None
        assert result.bound is not None
        gap = (result.bound - result.objective) * (1 if maximize else -1)
        assert 0 <= gap < 0.05 * 4e4
        assert value is not None
        plans.append([as_integer(value(x)) for x in problem.variables()])
    assert plans[0] == plans[1]


def test_no_time_or_hardly_any_knows_no_plan() -> None:
    for budget in (Budget(0.0), Budget(0.01)):
        result, value = solve_pulp(_hard(), budget, SolveOptions())
        assert (result.status, result.stop) == (Status.UNKNOWN, Stop.TIME_LIMIT)
        assert (result.objective, value) == (None, None)


def test_a_work_limit_that_is_not_whole_is_refused() -> None:
    with pytest.raises(OptionError, match="whole"):
        solve_pulp(_pair(2)[0], Budget(5.0), SolveOptions(work_limit=0.5))


def test_threads_and_a_warm_start_are_taken() -> None:
    problem, y = _pair(2)
    for variable in problem.variables():
        variable.setInitialValue(1 if variable is y else 0)
    result, _ = solve_pulp(problem, Budget(5.0), SolveOptions(num_threads=2), warm_start=True)
    assert result.status is Status.OPTIMAL


def test_an_interrupt_keeps_the_incumbent() -> None:
    budget = Budget(60.0)
    threading.Timer(1.0, lambda: setattr(budget, "interrupted", True)).start()
    started_s = time.perf_counter()
    result, value = solve_pulp(_hard(), budget, SolveOptions(time_limit_s=60.0))
    assert time.perf_counter() - started_s < 30.0
    assert (result.status, result.stop) == (Status.FEASIBLE, Stop.INTERRUPTED)
    assert result.objective is not None
    assert result.bound is not None
    assert result.bound <= result.objective
    assert value is not None


def test_an_early_interrupt_ends_cbc_too() -> None:
    budget = Budget(60.0)
    threading.Timer(0.03, lambda: setattr(budget, "interrupted", True)).start()
    started_s = time.perf_counter()
    result, _ = solve_pulp(_hard(), budget, SolveOptions(time_limit_s=60.0))
    assert time.perf_counter() - started_s < 30.0
    assert result.stop is Stop.INTERRUPTED


def test_an_objective_in_small_units_is_solved_as_well() -> None:
    """With its default increment of 1e-5, CBC calls another plan optimal here."""
    plans = []
    for unit in (1.0, 1e-6):
        draw = random.Random(2)
        problem = pulp.LpProblem("cover", pulp.LpMinimize)
        weights = [[draw.randint(20, 60) for _ in range(40)] for _ in range(3)]
        prices = [draw.randint(20, 60) for _ in range(40)]
        take = [problem.add_variable(f"x{i}", cat="Binary") for i in range(40)]
        problem += pulp.lpSum(unit * p * x for p, x in zip(prices, take, strict=True))
        for row in weights:
            problem += pulp.lpSum(w * x for w, x in zip(row, take, strict=True)) >= 500
        result, value = solve_pulp(problem, Budget(20.0), SolveOptions(time_limit_s=20.0))
        assert result.status is Status.OPTIMAL
        assert value is not None
        plans.append(sum(p * as_integer(value(x)) for p, x in zip(prices, take, strict=True)))
    assert plans[0] == plans[1]


def test_all_backends_agree_on_an_assignment() -> None:
    from ortools.math_opt.python import mathopt
    from ortools.sat.python import cp_model

    draw = random.Random(3)
    size = range(6)
    cost = [[draw.randint(1, 50) for _ in size] for _ in size]

    integer = cp_model.CpModel()
    a = [[integer.new_bool_var("") for _ in size] for _ in size]
    linear = mathopt.Model()
    b = [[linear.add_binary_variable() for _ in size] for _ in size]
    problem = pulp.LpProblem("assignment", pulp.LpMinimize)
    c = [[problem.add_variable(f"c{i}_{j}", cat="Binary") for j in size] for i in size]
    problem += pulp.lpSum(cost[i][j] * c[i][j] for i in size for j in size)
    for i in size:
        integer.add_exactly_one(a[i])
        integer.add_exactly_one(a[j][i] for j in size)
        linear.add_linear_constraint(sum(b[i]) == 1)
        linear.add_linear_constraint(sum(b[j][i] for j in size) == 1)
        problem += pulp.lpSum(c[i]) == 1
        problem += pulp.lpSum(c[j][i] for j in size) == 1
    integer.minimize(sum(cost[i][j] * a[i][j] for i in size for j in size))
    linear.minimize(sum(cost[i][j] * b[i][j] for i in size for j in size))

    options = SolveOptions(time_limit_s=10.0)
    results = [
        solve_cpsat(integer, Budget(10.0), options)[0],
        solve_mathopt(linear, Budget(10.0), options, solver="highs")[0],
        solve_mathopt(linear, Budget(10.0), options, solver="scip")[0],
        solve_pulp(problem, Budget(10.0), options)[0],
    ]
    assert {result.status for result in results} == {Status.OPTIMAL}
    assert {round(result.objective or 0.0, 6) for result in results} == {round(results[0].objective or 0.0, 6)}


def _pretend_cbc(monkeypatch: pytest.MonkeyPatch, folder: Path, last_words: str) -> None:
    """Put a script in CBC's place; $answer is the file it is to write."""
    script = folder / "cbc"
    script.write_text(
        '#!/bin/bash\nwhile [ $# -gt 0 ]; do if [ "$1" = -solution ]; then answer=$2; fi; shift; done\n' + last_words
    )
    script.chmod(0o755)
    monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", str(script))


def test_a_crash_at_the_time_limit_is_a_time_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CBC has been seen to end by SIGSEGV when its clock strikes."""
    _pretend_cbc(monkeypatch, tmp_path, "echo 'Exiting on maximum time'\nkill -SEGV $$\n")
    result, values = solve_pulp(_knapsack(), Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.UNKNOWN, Stop.TIME_LIMIT)
    assert values is None


def test_a_crash_before_the_time_limit_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _pretend_cbc(monkeypatch, tmp_path, "kill -SEGV $$\n")
    with pytest.raises(SolverError, match="code -11"):
        solve_pulp(_knapsack(), Budget(5.0), SolveOptions())


def test_infeasible_at_the_time_limit_is_no_proof(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CBC has been seen to call a feasible model infeasible when it was cut off before a first solution."""
    words = "echo 'Exiting on maximum time'\necho 'Integer infeasible - objective value 0' > \"$answer\"\n"
    _pretend_cbc(monkeypatch, tmp_path, words)
    result, _ = solve_pulp(_knapsack(), Budget(5.0), SolveOptions())
    assert (result.status, result.stop) == (Status.UNKNOWN, Stop.TIME_LIMIT)
