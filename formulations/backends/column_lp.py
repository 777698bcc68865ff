"""A linear program that grows by columns, solved again and again from where it was: GLOP through OR-Tools MathOpt.

minimise    cost @ x    subject to    row_lower <= A x <= row_upper,  lower <= x <= upper
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from formulations.backends import load_ortools_first
from formulations.outcome import Budget
from planner.errors import SolverError

FloatArray = npt.NDArray[np.float64]


class ColumnLp:
    """Rows are made first, columns come later; bounds of both may change between solves.

    Signs of duals: a row's dual is what one more unit of its bounds would change the objective by.
    """

    def __init__(self, row_lower: npt.ArrayLike, row_upper: npt.ArrayLike) -> None:
        self.version = f"ortools {load_ortools_first()}"
        from ortools.math_opt.python import mathopt

        self._mathopt = mathopt
        self._model = mathopt.Model()
        lower, upper = np.broadcast_arrays(np.asarray(row_lower, dtype=np.float64), row_upper)
        self._rows = [
            self._model.add_linear_constraint(lb=float(low), ub=float(high))
            for low, high in zip(lower, upper, strict=True)
        ]
        self._columns: list[Any] = []
        self._solver: Any = None

    @property
    def num_columns(self) -> int:
        """Columns so far."""
        return len(self._columns)

    def add(
        self, cost: float, rows: npt.ArrayLike, values: npt.ArrayLike, lower: float = 0.0, upper: float = np.inf
    ) -> int:
        """One more column with entries `values` in `rows`; its number."""
        variable = self._model.add_variable(lb=lower, ub=upper)
        if cost:
            self._model.objective.set_linear_coefficient(variable, float(cost))
        for row, value in zip(np.asarray(rows).tolist(), np.asarray(values, dtype=np.float64).tolist(), strict=True):
            self._rows[row].set_coefficient(variable, value)
        self._columns.append(variable)
        return len(self._columns) - 1

    def set_rows(self, rows: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike) -> None:
        """New bounds of some rows."""
        for row, low, high in zip(*(array.tolist() for array in np.broadcast_arrays(rows, lower, upper)), strict=True):
            self._rows[row].lower_bound, self._rows[row].upper_bound = float(low), float(high)

    def set_columns(
        self, columns: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike, cost: npt.ArrayLike | None = None
    ) -> None:
        """New bounds of some columns, and new costs."""
        arrays = np.broadcast_arrays(columns, lower, upper)
        for column, low, high in zip(*(array.tolist() for array in arrays), strict=True):
            variable = self._columns[column]
            variable.lower_bound, variable.upper_bound = float(low), float(high)
        if cost is not None:
            for column, one in zip(*(array.tolist() for array in np.broadcast_arrays(columns, cost)), strict=True):
                self._model.objective.set_linear_coefficient(self._columns[column], float(one))

    def solve(self, budget: Budget) -> tuple[float, FloatArray, FloatArray] | None:
        """Objective, values of the columns and duals of the rows; None when time is up.

        Raises SolverError for a program that is infeasible or unbounded.
        """
        if budget.stop() is not None:
            return None
        warm = self._solver is not None
        if not warm:
            self._solver = self._mathopt.IncrementalSolver(self._model, self._mathopt.SolverType.GLOP)
        parameters = self._mathopt.SolveParameters(time_limit=timedelta(seconds=max(budget.remaining_s, 1e-3)))
        # Nobody reads reduced costs, and turning them into Python objects takes as long as a warm solve.
        nothing = self._mathopt.ModelSolveParameters(
            reduced_costs_filter=self._mathopt.VariableFilter(filtered_items=[])
        )
        try:
            answer = self._solver.solve(params=parameters, model_params=nothing)
        except (AttributeError, RuntimeError) as error:
            if not warm:
                raise SolverError(f"GLOP refuses the program of columns: {error.__context__ or error}") from error
            # From where it was, GLOP can lose its way in rounding errors ("abnormal"); from nothing it does not.
            self._solver = None
            return self.solve(budget)
        reason = self._mathopt.TerminationReason
        if answer.termination.reason is reason.NO_SOLUTION_FOUND or answer.termination.reason is reason.FEASIBLE:
            return None
        if answer.termination.reason is not reason.OPTIMAL:
            raise SolverError(f"the program of columns ended with {answer.termination.reason.name.lower()}")
        values = answer.variable_values(self._columns)
        duals = answer.dual_values(self._rows)
        return float(answer.objective_value()), np.array(values, dtype=np.float64), np.array(duals, dtype=np.float64)
