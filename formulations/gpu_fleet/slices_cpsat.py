"""A linear model of integers alone in CP-SAT: coefficients are rounded, so it is a cross-check and proves nothing."""

from __future__ import annotations

import numpy as np

from formulations.backends import load_ortools_first
from formulations.backends.cpsat import solve_cpsat
from formulations.backends.linear import LinearModel
from formulations.backends.result import SolverResult
from formulations.gpu_fleet.problem import FloatArray
from formulations.outcome import Budget, SolveOptions

#: Whole units of a row's largest coefficient: rounding of thousands of terms stays below what a check calls broken.
ROW_UNITS = 1e8
#: Whole units of the dearest instance.
COST_UNITS = 1e7


def solve_whole(model: LinearModel, budget: Budget, options: SolveOptions) -> tuple[SolverResult, FloatArray | None]:
    """Solve with CP-SAT; the values are [num_variables], or None. Every variable must be integer and bounded."""
    if not (model.integer.all() and np.isfinite(model.lower).all() and np.isfinite(model.upper).all()):
        raise ValueError("CP-SAT takes bounded integers alone")
    load_ortools_first()
    from ortools.sat.python import cp_model

    program = cp_model.CpModel()
    variables = [
        program.new_int_var(int(low), int(high), "") for low, high in zip(model.lower, model.upper, strict=True)
    ]
    starts = np.searchsorted(model.row, np.arange(model.row_lower.size + 1))
    for row, (low, high) in enumerate(zip(model.row_lower, model.row_upper, strict=True)):
        entries = slice(starts[row], starts[row + 1])
        value, columns = model.value[entries], model.column[entries].tolist()
        if not value.size:
            continue
        units = 1.0 if (value == np.round(value)).all() else ROW_UNITS / np.abs(value).max()
        terms = cp_model.LinearExpr.weighted_sum([variables[k] for k in columns], _whole(value * units))
        domain = cp_model.Domain(
            int(np.ceil(low * units)) if np.isfinite(low) else cp_model.INT_MIN // 4,
            int(np.floor(high * units)) if np.isfinite(high) else cp_model.INT_MAX // 4,
        )
        program.add_linear_expression_in_domain(terms, domain)
    scale = COST_UNITS / np.abs(model.cost).max()
    program.minimize(cp_model.LinearExpr.weighted_sum(variables, _whole(model.cost * scale)))
    result, read = solve_cpsat(program, budget, options, scale=1 / scale, exact=False)
    values = None if read is None else np.array([float(read(variable)) for variable in variables])
    return result, values


def _whole(values: FloatArray) -> list[int]:
    return [int(value) for value in np.round(values)]
