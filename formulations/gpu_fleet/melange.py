"""Mélange's model: the demand is cut into slices, and each slice goes to one GPU type as a whole.

A bucket's demand is cut into S equal slices. With y[c] replicas of a type and its load L[d, c] of a whole bucket:

minimise    sum_c price[c] y[c]
subject to  sum_c x[d, i, c] = 1                          every slice i of every bucket d, x binary
            sum_{d, i} L[d, c] / S x[d, i, c] <= y[c]     capacity is pooled by type, y integer

`as_written` is that, for comparisons. Slices of a bucket are alike, so n[d, c] = sum_i x[d, i, c], an integer in 0 .. S
with sum_c n[d, c] = S, has the same optimum without the S! orders of equal slices; `slice_shares` makes it from any
fleet model by letting the shares x be whole S-ths, so that all its limits are kept. Both can only be costlier than
continuous shares: a plan is feasible for the real problem, an optimum of theirs is no bound of it. The bound that is
given is the linear relaxation of the continuous model.

Reference: Griffin et al., Mélange, arXiv 2404.14527; S = 8 in the paper, 4 in AIBrix's copy, 1 in the example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from formulations.backends.linear import LinearBuilder, LinearModel, solve_linear_mathopt
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.columns import FleetModel
from formulations.gpu_fleet.explain import explain
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import plan_of
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.slices_cpsat import solve_whole
from formulations.gpu_fleet.solution import counts_of
from formulations.outcome import Bound, Budget, SearchResult, SolveOptions, Status, Stop
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan

#: Slices of a bucket by method.
SLICES: Mapping[str, int] = {"melange-1": 1, "melange-4": 4, "melange-8": 8, "cp-sat": 16}
#: What the relaxation may take of the time.
BOUND_SHARE = 0.25


def search(problem: FleetProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[FleetPlan]:
    """The cheapest fleet whose routing shares are whole slices. OptionError for what Mélange cannot express."""
    refuse(problem, method)
    built = FleetBuilder(problem, (0,)).build()
    build_s = budget.elapsed_s
    relaxed = relax(built.model, BOUND_SHARE * budget.remaining_s)
    sliced = slice_shares(built, SLICES[method])
    if method == "cp-sat":
        result, values = solve_whole(sliced, budget, options)
    else:
        # Where S = 1, the presolve of HiGHS (ortools 9.15, SciPy 1.17) loses cheap plans: it calls ones "optimal" that
        # cost up to 28 times as much. SCIP agrees with CBC on the model as written.
        result, values = solve_linear_mathopt(sliced, budget, options, solver="scip")
    status, stop, plan = Status.UNKNOWN, result.stop, None
    reasons: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()
    if result.status in (Status.OPTIMAL, Status.INFEASIBLE):
        # A proof for slices is none for shares.
        stop = Stop.HEURISTIC
    if relaxed is False:
        status, stop = Status.INFEASIBLE, Stop.PROOF
        reasons, relaxations = explain(problem, [(0,)], budget)
    elif values is not None:
        status = Status.FEASIBLE
        values[built.columns[0].routing.x] /= SLICES[method]
        plan = plan_of(problem, {0: counts_of(problem, built.columns[0], values)})
    bound = None
    if isinstance(relaxed, Relaxation):
        bound = Bound(value=relaxed.objective, name="linear relaxation, continuous shares")
    return SearchResult(
        status=status, stop=stop, plan=plan, solver=result.solver, solver_version=result.solver_version, bound=bound,
        build_s=build_s, reasons=reasons, relaxations=relaxations,
    )  # fmt: skip


def refuse(problem: FleetProblem, method: str) -> None:
    """Raise OptionError for what Mélange's model has not: it has one constant demand and gives a GPU to one model."""
    shared = np.bincount(problem.config_pool, minlength=len(problem.availability)).max() > 1
    found = [
        text
        for text, there in (
            ("rates that change by the hour", problem.num_periods > 1),
            ("several models or replica sizes on one kind of GPU", shared),
            ("replicas on several instances", bool(problem.whole.any())),
            ("spare_instances", problem.spare_instances > 0),
            ("pool_slack", problem.slack is not None),
            ("power", problem.draw is not None),
            ("spare_zones", bool(problem.zone_names)),
            ("max_spot_share", problem.max_spot_share < 1.0),
            ("a current fleet", problem.current is not None),
            ("replicas of split roles", bool(problem.config_role.any())),
            ("demand that may stay unserved", problem.leave_unserved),
        )
        if there
    ]
    if found:
        raise OptionError(f"{method} cannot express {', '.join(found)}; use highs")


def slice_shares(built: FleetModel, slices: int) -> LinearModel:
    """The model of one period with shares in whole slices: its columns x count slices, 0 .. S."""
    model, x = built.model, built.columns[0].routing.x
    scale = np.ones(model.num_variables)
    scale[x] = slices
    integer = model.integer.copy()
    integer[x] = True
    return replace(
        model,
        cost=model.cost / scale,
        lower=model.lower * scale,
        upper=model.upper * scale,
        value=model.value / scale[model.column],
        integer=integer,
    )


def as_written(problem: FleetProblem, slices: int) -> LinearModel:
    """Mélange's own model, one binary for each slice and GPU type; buckets that a type cannot serve have none there.

    Caps and min_count bound y; nothing else of the instance is in it.
    """
    refuse(problem, "Mélange's model")
    builder = LinearBuilder()
    load = problem.load(0) / slices
    each = np.bincount(problem.pool_of_offer, minlength=len(problem.availability))
    if each.max() > 1:
        raise OptionError("Mélange's model has one offer for each kind of GPU")
    offer = np.argsort(problem.pool_of_offer)[problem.config_pool]
    y = builder.variables(
        (problem.num_offers,), lower=problem.least, upper=problem.most, cost=problem.price, integer=True
    )
    bucket, config = np.nonzero(np.isfinite(load) & (problem.rate[0] > 0)[:, None])
    x = builder.variables((slices, bucket.size), integer=True)
    asked, place = np.unique(bucket, return_inverse=True)
    for part in range(slices):
        builder.sparse_rows(np.ones(asked.size), 1.0, (place, x[part], 1.0))
    replicas = problem.gpus[offer] // problem.config_gpus * problem.availability[problem.config_pool]
    every = np.arange(problem.num_configs)
    builder.sparse_rows(
        np.full(every.size, -np.inf),
        0.0,
        (np.tile(config, slices), x.ravel(), np.tile(load[bucket, config], slices)),
        (every, y[offer], -replicas.astype(np.float64)),
    )
    return builder.build()


def rent(problem: FleetProblem, values: FloatArray) -> float:
    """Cost an hour of a solution of `as_written`."""
    return float(np.round(values[: problem.num_offers]) @ problem.price)
