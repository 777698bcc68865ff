"""What each coupling between the stages pays: the same problem with one of them cut, as tools do that plan in stages.

sharing   a node hosts workers of one service alone
workers   one worker for each service and kind of GPU, that with the most requests/s a GPU, doing all of a request
nodes     GPUs are rented one by one at the cheapest price of their kind; then workers are packed onto real nodes
experts   workers with second copies of busy experts are left out
pd        prefill and decode have no workers of their own
hours     the busiest rate of every size holds in all hours

Each cut leaves fewer plans (or chooses among them by a price that is not the real one), so the difference to the whole
is what the coupling pays, up to the gaps of both. Costs hold the price of moves and starts; all serve what the whole
plan serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from formulations.base import solve
from formulations.deployment.baseline import best_workers
from formulations.deployment.problem import DeployProblem
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.problem import BoolArray, Draw, FleetProblem, IntArray
from formulations.gpu_fleet.rows import Rows, in_order
from formulations.gpu_fleet.solution import counts_of, solver_of
from formulations.outcome import Budget, PartBudget, SolveOptions
from planner.deploy_plan import Coupling, DeployPlan

Cut = Literal["sharing", "workers", "nodes", "experts", "pd", "hours"]
CUTS: tuple[Cut, ...] = get_args(Cut)
#: Statuses of a plan that ends a sequence of optima: the best of the last stage alone.
FOUND, NONE = "feasible", "unknown"


def couplings(
    problem: DeployProblem, plan: DeployPlan, cuts: Sequence[Cut], options: SolveOptions
) -> tuple[Coupling, ...]:
    """Each cut that changes something, solved within the time of the options for the demand that the plan serves."""
    fleet = _served(problem.fleet, plan)
    cost = GPU_FLEET.objective(problem.fleet, plan.fleet).total
    return tuple(_coupling(problem, fleet, cost, cut, options) for cut in cuts if _matters(problem, cut))


def _matters(problem: DeployProblem, cut: Cut) -> bool:
    """Whether the problem has what is cut."""
    fleet = problem.fleet
    if cut == "hours":
        return fleet.num_periods > 1
    if cut == "pd":
        return bool(fleet.config_role.any())
    return cut != "experts" or not _without_copies(problem, fleet).all()


def _served(fleet: FleetProblem, plan: DeployPlan) -> FleetProblem:
    """The fleet for what the plan serves: a cut that left out more would be no dearer."""
    known, rate = Rows(fleet), fleet.rate.copy()
    for period, place in enumerate(in_order(fleet, plan.fleet)):
        for row in plan.fleet.periods[place].unserved:
            rate[period, known.bucket(row)] *= 1.0 - row.fraction
    return replace(fleet, rate=rate, leave_unserved=False)


def _coupling(problem: DeployProblem, fleet: FleetProblem, cost: float, cut: Cut, options: SolveOptions) -> Coupling:
    if cut == "nodes":
        return _by_gpu(fleet, cost, options)
    outcome = solve(GPU_FLEET, without(problem, fleet, cut), options)
    found = None if outcome.objective is None else outcome.objective.total
    return Coupling(
        cut=cut,
        status=outcome.status.value,
        usd_per_hour=found,
        bound_usd_per_hour=None if outcome.bound is None else outcome.bound.value,
        extra=None if found is None or not cost else found / cost - 1.0,
    )


def without(problem: DeployProblem, fleet: FleetProblem, cut: Cut) -> FleetProblem:
    """The fleet with one coupling cut, but for `nodes`, which is two problems."""
    if cut == "sharing":
        return apart(fleet)
    if cut == "workers":
        return only(fleet, best_workers(fleet))
    if cut == "pd":
        return only(fleet, fleet.config_role == 0)
    if cut == "experts":
        return only(fleet, _without_copies(problem, fleet))
    most = fleet.rate.max(axis=0, keepdims=True)
    every = tuple(sorted(hour for hours in fleet.hours for hour in hours))
    burst = None if fleet.burst is None else np.nanmax(fleet.burst, axis=0, keepdims=True)
    return replace(
        fleet, rate=most, share=np.ones(1), hours=(every,), burst=burst, start_cost=None, max_starts=None,
        max_stops=None, cyclic=False,
    )  # fmt: skip


def _without_copies(problem: DeployProblem, fleet: FleetProblem) -> BoolArray:
    """Workers whose experts have as few slots as any of the same service, role and GPUs."""
    least: dict[tuple[int, ...], int] = {}
    rows = zip(fleet.config_model, fleet.config_pool, fleet.config_role, fleet.config_gpus, strict=True)
    keys = [tuple(int(value) for value in row) for row in rows]
    slots = [
        problem.workers[fleet.model_names[key[0]], name].sizes.get("expert_slots", 0)
        for key, name in zip(keys, fleet.config_worker, strict=True)
    ]
    for key, number in zip(keys, slots, strict=True):
        if number:
            least[key] = min(number, least.get(key, number))
    return np.array([not number or number == least[key] for key, number in zip(keys, slots, strict=True)])


def only(fleet: FleetProblem, kept: BoolArray) -> FleetProblem:
    """The fleet with some of its configurations, [C]."""
    draw = fleet.draw
    return replace(
        fleet,
        config_pool=fleet.config_pool[kept],
        config_model=fleet.config_model[kept],
        config_gpus=fleet.config_gpus[kept],
        config_role=fleet.config_role[kept],
        config_offer=None if fleet.config_offer is None else fleet.config_offer[kept],
        config_worker=tuple(name for name, use in zip(fleet.config_worker, kept, strict=True) if use),
        throughput=fleet.throughput[:, kept],
        slack=None if fleet.slack is None else fleet.slack[kept],
        draw=None if draw is None else Draw(draw.idle, draw.running[kept], draw.joules[:, kept]),
        running=None if fleet.running is None else fleet.running[kept],
        move_cost=None if fleet.move_cost is None else fleet.move_cost[kept],
    )


def apart(fleet: FleetProblem) -> FleetProblem:
    """The fleet in which every service has nodes of its own: a copy of each offer and pool for each service.

    What there is of an offer is shared by its copies, as a quota of GPUs; what must be rented of it is rented by the
    first of them.
    """
    models, pools = len(fleet.model_names), len(fleet.availability)
    pairs = sorted({(int(m), int(p)) for m, p in zip(fleet.config_model, fleet.config_pool, strict=True)})
    place = {pair: index for index, pair in enumerate(pairs)}
    copies = [
        (k, m, place[m, int(p)])
        for m in range(models)
        for k, p in enumerate(fleet.pool_of_offer)
        if (m, int(p)) in place
    ]
    offer = np.array([k for k, _, _ in copies])
    first = np.isin(np.arange(offer.size), np.unique(offer, return_index=True)[1])
    pool_of = np.array([p for _, p in pairs])
    limited = np.flatnonzero(np.isfinite(fleet.most))
    draw = fleet.draw
    return replace(
        fleet,
        offer_names=tuple(f"{fleet.offer_names[k]} for {fleet.model_names[m]}" for k, m, _ in copies),
        described_offers=tuple(fleet.described_offers[k] for k in offer),
        pool_of_offer=np.array([p for _, _, p in copies]),
        gpus=fleet.gpus[offer],
        price=fleet.price[offer],
        watts=fleet.watts[offer],
        least=fleet.least[offer] * first,
        most=fleet.most[offer],
        reserved=fleet.reserved[offer],
        start_cost=None if fleet.start_cost is None else fleet.start_cost[offer],
        availability=fleet.availability[pool_of],
        spot=fleet.spot[pool_of],
        site_of_pool=fleet.site_of_pool[pool_of],
        network_bytes_per_s=fleet.network_bytes_per_s[pool_of],
        zone_of_pool=None if fleet.zone_of_pool is None else fleet.zone_of_pool[pool_of],
        config_pool=np.array(
            [place[int(m), int(p)] for m, p in zip(fleet.config_model, fleet.config_pool, strict=True)], dtype=np.int64
        ),
        config_offer=None if fleet.config_offer is None else _copies_of(fleet, [(k, m) for k, m, _ in copies]),
        quota_names=(*fleet.quota_names, *(f"all there is of {fleet.offer_names[k]}" for k in limited)),
        quota_offers=np.concatenate([fleet.quota_offers[:, offer], limited[:, None] == offer]),
        quota_gpus=np.concatenate([fleet.quota_gpus, fleet.most[limited] * fleet.gpus[limited]]),
        draw=None if draw is None else Draw(draw.idle[offer], draw.running, draw.joules),
    ) if pools else fleet  # fmt: skip


def _copies_of(fleet: FleetProblem, copies: Sequence[tuple[int, int]]) -> IntArray:
    """The copy for its service of the offer that each configuration is bound to, [C]; copies : offer and service."""
    assert fleet.config_offer is not None
    place = {pair: index for index, pair in enumerate(copies)}
    pairs = zip(fleet.config_offer.tolist(), fleet.config_model.tolist(), strict=True)
    return np.array([-1 if k < 0 else place[k, m] for k, m in pairs], dtype=np.int64)


def _by_gpu(fleet: FleetProblem, cost: float, options: SolveOptions) -> Coupling:
    """Workers chosen with fractions of nodes, then whole nodes for at least these workers."""
    budget = Budget(options.time_limit_s)
    periods = tuple(range(fleet.num_periods))
    groups = [(period,) for period in periods] if fleet.decoupled else [periods]
    counts: dict[int, Counts] = {}
    for place, group in enumerate(groups):
        built = FleetBuilder(fleet, group).build()
        model = built.model
        integer, lower = model.integer.copy(), model.lower.copy()
        for columns in built.columns:
            integer[columns.y] = False
        part = PartBudget(budget, budget.remaining_s / (len(groups) - place) / 2)
        _, rented = solver_of("highs")(replace(model, integer=integer), part, options)
        if rented is None:
            return _unknown()
        for columns in built.columns:
            lower[columns.z] = np.round(rented[columns.z])
        part = PartBudget(budget, budget.remaining_s / (len(groups) - place))
        _, values = solver_of("highs")(replace(model, lower=lower), part, options)
        if values is None:
            return _unknown()
        for columns, period in zip(built.columns, group, strict=True):
            counts[period] = counts_of(fleet, columns, values)
    plan = plan_of(fleet, counts)
    found = GPU_FLEET.objective(fleet, plan).total
    return Coupling(
        cut="nodes",
        status=FOUND,
        usd_per_hour=found,
        bound_usd_per_hour=None,
        extra=found / cost - 1.0 if cost else None,
    )


def _unknown() -> Coupling:
    return Coupling(cut="nodes", status=NONE, usd_per_hour=None, bound_usd_per_hour=None, extra=None)
