"""Solvers of a fleet model, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from formulations.backends.linear import solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.gpu_fleet.handovers import flow_table
from formulations.gpu_fleet.milp import PeriodColumns
from formulations.gpu_fleet.packing import Counts
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.stages import STAGES, has_role

Solver = Callable[..., tuple[SolverResult, FloatArray | None]]
#: How far a solver's count may be from a whole number.
WHOLE = 1e-5
#: Shares below this are rounding of the solver.
NOTHING = 1e-9
#: Unserved shares below this are none: a solver keeps its rows to 1e-6.
ALL_SERVED = 1e-6


def solver_of(method: str, small: bool = False) -> Solver:
    """The backend of a method: highs, scip or cbc. For many `small` models HiGHS goes without searches in searches."""
    if method == "cbc":
        return solve_linear_pulp
    return partial(solve_linear_mathopt, solver=method, sub_searches=not small)


def counts_of(problem: FleetProblem, columns: PeriodColumns, values: FloatArray) -> Counts:
    """The decisions of one period in a solution of the model. Raises SolverError for a count that is not whole."""

    def whole(where: IntArray) -> IntArray:
        return np.array([as_integer(value, WHOLE) for value in values[where]], dtype=np.int64)

    def shares(where: IntArray) -> tuple[FloatArray, FloatArray]:
        """Shares on configurations, and the factor by which rounding of each bucket was undone, [D]."""
        table = np.zeros((len(problem.bucket_model), problem.num_configs))
        table[columns.bucket, columns.config] = np.where(values[where] > NOTHING, values[where], 0.0)
        total = table[:, begins].sum(axis=1)
        scale = np.where(total > 0, served / np.where(total > 0, total, 1.0), 0.0)
        return table * scale[:, None], scale

    begins = has_role(problem, STAGES["prefill"])
    served = np.ones(len(problem.bucket_model))
    if columns.u.size:
        left = np.clip(values[columns.u], 0.0, 1.0)
        left[left < ALL_SERVED] = 0.0
        left[left > 1 - ALL_SERVED] = 1.0
        served[columns.asked] = 1.0 - left
    table, scale = shares(columns.x)
    lost, lost_flows = {}, {}
    for offer in columns.lost_z:
        if values[columns.y[offer]] > 0.5:
            kept, kept_scale = shares(columns.lost_x[offer])
            lost[offer] = whole(columns.lost_z[offer]), kept
            lost_flows[offer] = flow_table(problem, columns.lost_flows[offer], values, kept_scale)
    return Counts(
        instances=whole(columns.y),
        replicas=whole(columns.z),
        shares=table,
        flows=flow_table(problem, columns.flows, values, scale),
        lost=lost,
        lost_flows=lost_flows,
    )
