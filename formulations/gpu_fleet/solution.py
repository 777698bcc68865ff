"""Solvers of a fleet model, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from formulations.backends.linear import solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.gpu_fleet.columns import PeriodColumns, Routing
from formulations.gpu_fleet.handovers import flow_table
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
    begins = has_role(problem, STAGES["prefill"])
    served = np.ones(len(problem.bucket_model))
    if columns.u.size:
        left = np.clip(values[columns.u], 0.0, 1.0)
        left[left < ALL_SERVED] = 0.0
        left[left > 1 - ALL_SERVED] = 1.0
        served[columns.asked] = 1.0 - left

    def whole(where: IntArray) -> IntArray:
        return np.array([as_integer(value, WHOLE) for value in values[where]], dtype=np.int64)

    def routed(instances: IntArray, replicas: IntArray, routing: Routing) -> Counts:
        shares = np.zeros((len(problem.bucket_model), problem.num_configs))
        x = values[routing.x]
        shares[routing.bucket, routing.config] = np.where(x > NOTHING, x, 0.0)
        # A solver's shares sum to what is served but for its rounding, which is undone.
        total = shares[:, begins].sum(axis=1)
        scale = np.where(total > 0, served / np.where(total > 0, total, 1.0), 0.0)
        flows = flow_table(problem, routing.flows, values, scale)
        return Counts(instances, replicas, shares * scale[:, None], flows)

    instances, replicas = whole(columns.y), whole(columns.z)
    one = np.eye(problem.num_offers, dtype=np.int64)
    zone, zone_of = problem.zone_of_offer, problem.zone_of_config
    return replace(
        routed(instances, replicas, columns.routing),
        lost={
            offer: routed(instances - one[offer], whole(kept), routing)
            for offer, (kept, routing) in columns.lost.items()
            if instances[offer]
        },
        lost_zone={
            gone: routed(np.where(zone == gone, 0, instances), np.where(zone_of == gone, 0, replicas), routing)
            for gone, routing in columns.lost_zone.items()
            if instances[zone == gone].any()
        },
    )
