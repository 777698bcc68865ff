"""The linear relaxation of a model: a bound, and the prices of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from formulations.backends.linear import FloatArray, LinearModel

#: Statuses of scipy.optimize.linprog.
_SOLVED, _INFEASIBLE = 0, 2


@dataclass(frozen=True, slots=True, eq=False)
class Relaxation:
    """Optimum without integrality: objective, values [n] and what one unit more of each row would cost, [rows]."""

    objective: float
    values: FloatArray
    duals: FloatArray


def relax(model: LinearModel, time_limit_s: float) -> Relaxation | Literal[False] | None:
    """The linear relaxation, by SciPy's HiGHS; False where it has no solution, None when time is up."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix, vstack

    shape = model.row_lower.size, model.num_variables
    matrix = csr_matrix((model.value, (model.row, model.column)), shape=shape)
    equal = model.row_lower == model.row_upper
    upper = np.isfinite(model.row_upper) & ~equal
    lower = np.isfinite(model.row_lower) & ~equal
    result = linprog(
        model.cost,
        A_ub=vstack([matrix[upper], -matrix[lower]]),
        b_ub=np.concatenate([model.row_upper[upper], -model.row_lower[lower]]),
        A_eq=matrix[equal],
        b_eq=model.row_lower[equal],
        bounds=np.stack([model.lower, model.upper], axis=1),
        method="highs",
        options={"time_limit": max(time_limit_s, 1e-3)},
    )
    if result.status == _INFEASIBLE:
        return False
    if result.status != _SOLVED:
        return None
    duals = np.zeros(shape[0])
    duals[equal] = result.eqlin.marginals
    num_upper = int(upper.sum())
    duals[upper] += result.ineqlin.marginals[:num_upper]
    duals[lower] -= result.ineqlin.marginals[num_upper:]
    return Relaxation(float(result.fun) + model.offset, np.asarray(result.x), duals)
