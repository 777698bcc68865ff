"""Rows that tighten a fleet of several models: what each model's replicas are worth at least, at some prices.

At prices w >= 0 of replicas, model m alone costs at least V_m(w) = min w @ z, over whole replicas z that serve its
demand. So every fleet keeps sum_c w[c] z[c] >= V_m(w): true of whole replicas, not of the halves that the linear
relaxation takes. Prices are those that the relaxation pays for GPUs (duals of the packing rows); with the rows of each
round they change, until the bound stops rising. Its limit is the bound of a Dantzig-Wolfe decomposition by model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.milp import FleetBuilder, FleetModel
from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.stages import STAGES, has_role
from formulations.outcome import Budget, SolveOptions

#: Rounds of rows, and the rise of the bound in one round below which they end.
ROUNDS = 12
RISE = 5e-4
#: Share of the time that the rows may take, and seconds for one model's prices.
TIME_SHARE = 0.25
MODEL_S = 5.0
#: Gap of one model's problem; its bound counts.
GAP = 1e-3
#: Rows are loosened by this share, as solvers keep theirs to 1e-6 only.
LOOSE = 1e-6


def tighten(problem: FleetProblem, builder: FleetBuilder, built: FleetModel, budget: Budget) -> FleetModel:
    """The model of one period with rows for each of its models; as it is where there is one model or no time."""
    if len(problem.model_names) < 2:
        return built
    limit = Budget(TIME_SHARE * budget.remaining_s)
    columns = built.columns[0]
    alone = [_alone(problem, built, builder.load(built.periods[0]), m) for m in range(len(problem.model_names))]
    reached = 0.0
    for _ in range(ROUNDS):
        relaxed = relax(built.model, limit.remaining_s)
        if not isinstance(relaxed, Relaxation) or relaxed.objective <= reached * (1 + RISE):
            break
        reached = relaxed.objective
        price = slot_prices(built, relaxed)
        for configs, model in alone:
            if limit.stop() is not None or budget.stop() is not None:
                return built
            least = _least(model, configs.size, price[configs], limit)
            if least > relaxed.values[columns.z[configs]] @ price[configs] * (1 + LOOSE):
                builder.at_least(columns.z[configs], price[configs], least * (1 - LOOSE))
        built = replace(built, model=builder.builder.build())
    return built


def slot_prices(built: FleetModel, relaxed: Relaxation) -> FloatArray:
    """What the relaxation of one period pays for the room of one replica of each configuration, [C]."""
    model, z, rows = built.model, built.columns[0].z, built.packing[0]
    own = np.zeros(model.num_variables)
    inside = (model.row >= rows.start) & (model.row < rows.stop)
    paid = np.maximum(0.0, -relaxed.duals[model.row[inside]]) * model.value[inside]
    np.add.at(own, model.column[inside], paid)
    return own[z]


def _alone(problem: FleetProblem, built: FleetModel, load: FloatArray, m: int) -> tuple[IntArray, LinearModel]:
    """Configurations of a model, and the model of serving it: replicas first, then shares."""
    configs = np.flatnonzero((problem.config_model == m) & (built.model.upper[built.columns[0].z] > 0))
    buckets = np.flatnonzero((problem.bucket_model == m) & (problem.rate[built.periods[0]] > 0))
    own = load[np.ix_(buckets, configs)]
    builder = LinearBuilder()
    z = builder.variables((configs.size,), upper=built.model.upper[built.columns[0].z[configs]], integer=True)
    bucket, config = np.nonzero(np.isfinite(own))
    x = builder.variables((bucket.size,))
    # What roles hand over is left out: a bound needs less than the whole.
    for roles in STAGES.values() if problem.config_role.any() else [STAGES["prefill"]]:
        does = has_role(problem, roles)[configs][config]
        builder.sparse_rows(np.ones(buckets.size), 1.0, (bucket[does], x[does], 1.0))
    there = problem.availability[problem.config_pool[configs]]
    every = np.arange(configs.size)
    builder.sparse_rows(np.full(every.size, -np.inf), 0.0, (config, x, own[bucket, config]), (every, z, -there))
    # A share needs a replica: the relaxation is much tighter for it where a bucket takes a part of one.
    part = np.flatnonzero(own[bucket, config] < there[config])
    if part.size:
        builder.rows(-np.inf, 0.0, (x[part][:, None], 1.0), (z[config[part]][:, None], -1.0))
    return configs, builder.build()


def _least(model: LinearModel, num_configs: int, price: FloatArray, limit: Budget) -> float:
    """A bound of V_m at these prices; 0 where none was found."""
    cost = np.concatenate([price, np.zeros(model.num_variables - num_configs)])
    seconds = max(0.05, min(MODEL_S, limit.remaining_s))
    options = SolveOptions(time_limit_s=seconds, relative_gap=GAP)
    result, _ = solve_linear_mathopt(replace(model, cost=cost), Budget(seconds), options)
    return 0.0 if result.bound is None else result.bound
