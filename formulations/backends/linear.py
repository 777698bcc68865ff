"""Mixed-integer linear models as sparse arrays: written once, solved by HiGHS, SCIP (MathOpt) and CBC (PuLP).

minimise    cost @ x + offset
subject to  row_lower <= A x <= row_upper,  lower <= x <= upper,  x integer where `integer`
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from formulations.backends import load_ortools_first
from formulations.backends.mathopt import solve_mathopt
from formulations.backends.pulp_milp import solve_pulp
from formulations.backends.result import SolverResult
from formulations.outcome import Budget, SolveOptions

if TYPE_CHECKING:
    import pulp
    from ortools.math_opt.python import mathopt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: Columns [m, k] and coefficients that broadcast to them: k terms of each of m rows.
Terms = tuple[npt.ArrayLike, npt.ArrayLike]
#: By how much solvers keep rows, bounds and integers. Source: the default of HiGHS, SCIP and CBC.
KEPT = 1e-6


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LinearModel:
    """Entry i of A is `value[i]` in `row[i]` and `column[i]`; entries are sorted and do not repeat."""

    cost: FloatArray
    lower: FloatArray
    upper: FloatArray
    integer: npt.NDArray[np.bool_]
    row: IntArray
    column: IntArray
    value: FloatArray
    row_lower: FloatArray
    row_upper: FloatArray
    offset: float = 0.0

    @property
    def num_variables(self) -> int:
        """Columns of A."""
        return self.cost.size

    def keeps(self, values: FloatArray) -> bool:
        """Whether values [any] are a solution, as near as solvers keep their rows."""
        if values.size != self.num_variables or (np.abs(values - np.round(values))[self.integer] > KEPT).any():
            return False
        sums = np.bincount(self.row, weights=self.value * values[self.column], minlength=self.row_lower.size)
        made = np.concatenate([values, sums])
        lower, upper = np.concatenate([self.lower, self.row_lower]), np.concatenate([self.upper, self.row_upper])
        return bool(((made >= lower - KEPT) & (made <= upper + KEPT)).all())

    def with_row(self, column: IntArray, value: FloatArray, most: float) -> LinearModel:
        """One more row, sum value x column <= most; columns ascend."""
        return replace(
            self,
            row=np.concatenate([self.row, np.full(column.size, self.row_lower.size)]),
            column=np.concatenate([self.column, column]),
            value=np.concatenate([self.value, value]),
            row_lower=np.append(self.row_lower, -np.inf),
            row_upper=np.append(self.row_upper, most),
        )


class LinearBuilder:
    """Collects blocks of variables and families of rows."""

    def __init__(self) -> None:
        self.num_variables = 0
        self.num_rows = 0
        self.offset = 0.0
        self._columns: list[tuple[FloatArray, ...]] = []
        self._row_bounds: list[tuple[FloatArray, FloatArray]] = []
        self._entries: list[tuple[IntArray, IntArray, FloatArray]] = []

    def variables(
        self,
        shape: tuple[int, ...],
        *,
        lower: npt.ArrayLike = 0.0,
        upper: npt.ArrayLike = 1.0,
        cost: npt.ArrayLike = 0.0,
        integer: bool = False,
    ) -> IntArray:
        """Columns of a new block, int64 of that shape; bounds and cost broadcast to it."""
        size = math.prod(shape)
        kind = np.full(shape, float(integer))
        arrays = (np.asarray(array, dtype=np.float64) for array in (lower, upper, cost, kind))
        self._columns.append(tuple(np.broadcast_to(array, shape).ravel() for array in arrays))
        self.num_variables += size
        return np.arange(self.num_variables - size, self.num_variables).reshape(shape)

    def rows(self, lower: npt.ArrayLike, upper: npt.ArrayLike, *terms: Terms) -> None:
        """One row for each entry of the terms' leading axis; bounds broadcast to [m]."""
        grids = [np.asarray(columns, dtype=np.int64) for columns, _ in terms]
        num_rows = len(grids[0])
        rows = np.arange(self.num_rows, self.num_rows + num_rows)
        for grid, (_, value) in zip(grids, terms, strict=True):
            flat = grid.reshape(num_rows, math.prod(grid.shape[1:]))
            full = np.broadcast_to(np.asarray(value, dtype=np.float64), grid.shape)
            self._entries.append((np.repeat(rows, flat.shape[1]), flat.ravel(), full.ravel()))
        low, high = (np.broadcast_to(np.asarray(side, dtype=np.float64), (num_rows,)) for side in (lower, upper))
        self._row_bounds.append((low, high))
        self.num_rows += num_rows

    def sparse_rows(
        self, lower: npt.ArrayLike, upper: npt.ArrayLike, *entries: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
    ) -> None:
        """Rows of differing length: bounds [m]; entries are (row 0 .. m-1, column, value), each of one shape."""
        low, high = np.broadcast_arrays(np.atleast_1d(np.asarray(lower, dtype=np.float64)), upper)
        for row, column, value in entries:
            rows, columns, values = np.broadcast_arrays(row, column, np.asarray(value, dtype=np.float64))
            self._entries.append(
                (rows.ravel().astype(np.int64) + self.num_rows, columns.ravel().astype(np.int64), values.ravel())
            )
        self._row_bounds.append((low.astype(np.float64), high.astype(np.float64)))
        self.num_rows += low.size

    def build(self) -> LinearModel:
        """The model; entries of the same place are added up."""
        lower, upper, cost, kind = (np.concatenate(arrays) for arrays in zip(*self._columns, strict=True))
        row_lower = row_upper = value = np.zeros(0)
        key: IntArray = np.zeros(0, dtype=np.int64)
        if self._entries:
            row_lower, row_upper = (np.concatenate(side) for side in zip(*self._row_bounds, strict=True))
            rows, columns, values = zip(*self._entries, strict=True)
            entry = np.concatenate(rows) * self.num_variables + np.concatenate(columns)
            key, place = np.unique(entry, return_inverse=True)
            value = np.bincount(place, weights=np.concatenate(values), minlength=key.size).astype(np.float64)
        return LinearModel(
            cost=cost,
            lower=lower,
            upper=upper,
            integer=kind > 0,
            row=key // self.num_variables,
            column=key % self.num_variables,
            value=value,
            row_lower=row_lower,
            row_upper=row_upper,
            offset=self.offset,
        )


def solve_linear_mathopt(
    model: LinearModel,
    budget: Budget,
    options: SolveOptions,
    *,
    solver: str = "highs",
    sub_searches: bool = True,
    start: FloatArray | None = None,
) -> tuple[SolverResult, FloatArray | None]:
    """Solve with HiGHS or SCIP; the values are [num_variables], or None.

    NaN in `start` leaves a variable open. See `solve_mathopt` for options and errors.
    """
    load_ortools_first()
    loaded = _mathopt_model(model)
    variables = list(loaded.variables())
    hint = None
    if start is not None:
        hint = {variables[i]: float(start[i]) for i in np.flatnonzero(~np.isnan(start))}
    result, read = solve_mathopt(loaded, budget, options, solver=solver, sub_searches=sub_searches, hint=hint)
    values = None if read is None else np.array([read(variable) for variable in variables])
    return result, values


def _mathopt_model(model: LinearModel) -> mathopt.Model:
    from ortools.math_opt import model_pb2
    from ortools.math_opt.python import mathopt

    proto = model_pb2.ModelProto()
    proto.variables.ids.extend(range(model.num_variables))
    proto.variables.lower_bounds.extend(model.lower.tolist())
    proto.variables.upper_bounds.extend(model.upper.tolist())
    proto.variables.integers.extend(model.integer.tolist())
    proto.objective.offset = model.offset
    priced = np.flatnonzero(model.cost)
    proto.objective.linear_coefficients.ids.extend(priced.tolist())
    proto.objective.linear_coefficients.values.extend(model.cost[priced].tolist())
    proto.linear_constraints.ids.extend(range(model.row_lower.size))
    proto.linear_constraints.lower_bounds.extend(model.row_lower.tolist())
    proto.linear_constraints.upper_bounds.extend(model.row_upper.tolist())
    proto.linear_constraint_matrix.row_ids.extend(model.row.tolist())
    proto.linear_constraint_matrix.column_ids.extend(model.column.tolist())
    proto.linear_constraint_matrix.coefficients.extend(model.value.tolist())
    return mathopt.Model.from_model_proto(proto)


def solve_linear_pulp(
    model: LinearModel, budget: Budget, options: SolveOptions, *, start: FloatArray | None = None
) -> tuple[SolverResult, FloatArray | None]:
    """Solve with CBC; the values are [num_variables], or None. CBC completes a start from its integers.

    See `solve_pulp` for options and errors.
    """
    load_ortools_first()
    problem, variables = _pulp_model(model)
    if start is not None:
        for i in np.flatnonzero(~np.isnan(start)):
            variables[i].setInitialValue(float(start[i]), check=False)
    result, read = solve_pulp(problem, budget, options, warm_start=start is not None)
    values = None
    if read is not None:
        # A variable that no row and no price mentions is unknown to CBC; any value within its bounds will do.
        resting = np.clip(0.0, model.lower, model.upper)
        values = np.array(
            [
                rest if variable.varValue is None else variable.varValue
                for rest, variable in zip(resting, variables, strict=True)
            ]
        )
    return result, values


def _pulp_model(model: LinearModel) -> tuple[pulp.LpProblem, list[Any]]:
    import pulp

    def side(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    problem = pulp.LpProblem("model", pulp.LpMinimize)
    variables = [
        problem.add_variable(f"x{i}", side(low), side(high), pulp.LpInteger if whole else pulp.LpContinuous)
        for i, (low, high, whole) in enumerate(zip(model.lower, model.upper, model.integer, strict=True))
    ]
    priced = {variables[i]: float(model.cost[i]) for i in np.flatnonzero(model.cost)}
    problem.setObjective(pulp.LpAffineExpression(priced, model.offset))
    starts = np.searchsorted(model.row, np.arange(model.row_lower.size + 1))
    for i, (low, high) in enumerate(zip(model.row_lower, model.row_upper, strict=True)):
        entries = slice(starts[i], starts[i + 1])
        columns, values = model.column[entries].tolist(), model.value[entries].tolist()
        terms = {variables[column]: value for column, value in zip(columns, values, strict=True)}
        senses = [(pulp.LpConstraintEQ, low)] if low == high else []
        if not senses:
            sides = ((pulp.LpConstraintGE, low), (pulp.LpConstraintLE, high))
            senses = [(sense, bound) for sense, bound in sides if math.isfinite(bound)]
        for part, (sense, bound) in enumerate(senses):
            expression = pulp.LpAffineExpression(terms)
            problem.addConstraint(pulp.LpConstraint(expression, sense, f"r{i}_{part}", float(bound)))
    return problem, variables
