"""Linear models as arrays on HiGHS, SCIP and CBC, and the LP-split placement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from placement_cases import brute_force, counts, instance, run

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.outcome import Budget, SolveOptions, Status, Stop

SOLVERS: dict[str, Callable[..., Any]] = {
    "highs": solve_linear_mathopt,
    "scip": partial(solve_linear_mathopt, solver="scip"),
    "cbc": solve_linear_pulp,
}


def _knapsack() -> tuple[LinearModel, np.ndarray]:
    """max 5a + 4b + 3c, 2a + 3b + c <= 5, one or two of them; an unused variable; objective from 10 down."""
    builder = LinearBuilder()
    take = builder.variables((3,), cost=[-5.0, -4.0, -3.0], integer=True)
    builder.variables((1,), lower=2.0, upper=3.0)
    builder.rows(-np.inf, 5.0, (take[None], [[2.0, 3.0, 1.0]]))
    builder.rows(1.0, 2.0, (take[None], 0.5), (take[None], 0.5))
    builder.offset = 10.0
    return builder.build(), take


def test_a_builder_adds_up_entries_of_one_place() -> None:
    model, take = _knapsack()
    assert model.num_variables == 4
    np.testing.assert_array_equal(model.row, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(model.column, [*take, *take])
    np.testing.assert_allclose(model.value, [2, 3, 1, 1, 1, 1])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", [None, np.array([1.0, 0.0, np.nan, np.nan])])
def test_each_solver_reads_the_same_model(solver: str, start: np.ndarray | None) -> None:
    model, take = _knapsack()
    result, values = SOLVERS[solver](model, Budget(5.0), SolveOptions(), start=start)
    assert (result.status, result.stop) == (Status.OPTIMAL, Stop.PROOF)
    assert result.objective == pytest.approx(1.0)
    np.testing.assert_allclose(values[take], [1.0, 1.0, 0.0], atol=1e-6)
    assert 2.0 <= values[3] <= 3.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_equalities_and_infinite_bounds(solver: str) -> None:
    builder = LinearBuilder()
    x = builder.variables((2,), lower=-np.inf, upper=np.inf, cost=[1.0, 0.0])
    builder.rows([3.0, -1.0], [3.0, np.inf], (np.array([[x[0], x[1]], [x[0], x[1]]]), [[1.0, 1.0], [1.0, -1.0]]))
    result, values = SOLVERS[solver](builder.build(), Budget(5.0), SolveOptions())
    assert result.status is Status.OPTIMAL
    np.testing.assert_allclose(values, [1.0, 2.0], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_contradicting_rows_are_infeasible(solver: str) -> None:
    builder = LinearBuilder()
    x = builder.variables((1,), integer=True)
    builder.rows(0.4, 0.6, (x[None], 1.0))
    result, values = SOLVERS[solver](builder.build(), Budget(5.0), SolveOptions())
    assert result.status is Status.INFEASIBLE
    assert values is None


LP_CASES = {
    "spare slots": lambda: instance(counts(2, 4, seed=2), 2, 6, split="lp"),
    "one hot expert": lambda: instance(np.array([[20.0, 1.0, 2.0, 3.0, 1.0]]), 5, 10, split="lp"),
    "scenarios and speeds": lambda: instance(
        counts(2, 1, 3, seed=4),
        3,
        6,
        split="lp",
        speed=np.array([1.0, 0.5, 0.8]),
        weight=np.array([1.0, 2.0]),
    ),
    "groups": lambda: instance(counts(1, 4, seed=5), 4, 8, split="lp", gpus_per_node=2, num_groups=2, group_spread=1),
    "moves": lambda: instance(
        counts(2, 1, 4, seed=6),
        2,
        6,
        split="lp",
        speed=np.array([1.0, 0.7]),
        current=np.array([[0, 1, 2, 0, 1, 3]]),
        max_moves=1,
        move_cost=0.02,
    ),
}


@pytest.mark.parametrize("method", ["milp", "milp-cbc"])
@pytest.mark.parametrize("name", sorted(set(LP_CASES) - {"one hot expert"}))
def test_the_lp_split_reaches_the_brute_force_optimum(name: str, method: str) -> None:
    problem = LP_CASES[name]()
    best = brute_force(problem)
    outcome = run(problem, method)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.objective.total == pytest.approx(best, rel=1e-6)
    assert outcome.bound.value <= best * (1 + 1e-6)


def test_the_lp_split_is_never_worse_than_the_even_split() -> None:
    even = instance(np.array([[20.0, 1.0, 2.0, 3.0, 1.0]]), 5, 10)
    lp = LP_CASES["one hot expert"]()
    outcomes = [run(problem, "milp") for problem in (even, lp)]
    totals = [outcome.objective.total for outcome in outcomes if outcome.objective is not None]
    assert totals[1] <= totals[0] * (1 + 1e-6)
    assert all(outcome.status is Status.OPTIMAL for outcome in outcomes)
