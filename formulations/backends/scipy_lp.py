"""Linear feasibility by SciPy's HiGHS, for bounds that need many small LPs."""

from __future__ import annotations

from typing import Any

import numpy as np

from planner.workload import FloatArray

#: scipy.optimize.linprog result statuses.
_SOLVED, _INFEASIBLE = 0, 2


def feasible_point(
    equality: Any, target: FloatArray, at_most: FloatArray | None, limit: FloatArray | None
) -> tuple[bool | None, FloatArray | None]:
    """Whether x >= 0 with equality @ x == target and at_most @ x <= limit exists, and one such x.

    None when the solver gives no verdict; only a proof of infeasibility is False.
    """
    from scipy.optimize import linprog

    cost = np.zeros(equality.shape[1])
    result = linprog(cost, A_ub=at_most, b_ub=limit, A_eq=equality, b_eq=target, method="highs")
    if result.status == _INFEASIBLE:
        return False, None
    if result.status != _SOLVED:
        return None, None
    return True, np.asarray(result.x)
