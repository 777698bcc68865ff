"""A fleet by its services: bounds below every plan, plans above every bound, and the optimum where it is proven."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import random_problem, run

from formulations.backends.linear import solve_linear_mathopt
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet import service_plans
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.columns import FleetModel
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.gpu_fleet.service_plans import ServicePlans
from formulations.gpu_fleet.solution import solver_of
from formulations.outcome import Budget, SolveOptions, Status
from planner.descriptions.fleet import FleetInstance

#: How much faster a replica of each role is than one that does all.
SPLIT = {"both": 1.0, "prefill": 3.0, "decode": 1.7}
#: What an instance may ask beside its demand.
MORE: list[dict[str, Any]] = [
    {}, {"headroom": 0.3}, {"spare_instances": 1}, {"roles": SPLIT}, {"budget_usd_per_hour": 40.0},
    {"current": {"a x4": 2}, "change_cost_usd_per_hour": 0.5},
]  # fmt: skip


def shared(seed: int, roles: dict[str, float] | None = None, **more: Any) -> FleetProblem:
    """Three models of two sizes on nodes of 1, 4 and 8 GPUs, replicas of 1, 2 and 4."""
    roles = roles or {"both": 1.0}
    rng = np.random.default_rng(seed)
    offers = [
        {"name": f"{device} x{gpus}", "device": device, "gpus": gpus,
         "price_usd_per_hour": float(round(price * gpus * rng.uniform(0.9, 1.1), 2))}
        for device, price in (("a", 1.0), ("b", 2.5))
        for gpus in (1, 4, 8)
    ]  # fmt: skip
    models = [f"m{k}" for k in range(3)]
    speed = rng.uniform(0.5, 2.0, (3, 2, 2))
    profiles = [
        {"offer": offer["name"], "model": model, "input_tokens": d + 1, "output_tokens": 1, "gpus": gpus, "role": role,
         "max_rate_per_s": float(
             faster * speed[m, d, "ab".index(str(offer["device"]))] * gpus ** (1 + 0.1 * m) / (1 + m)
         )}
        for role, faster in roles.items()
        for offer in offers
        for m, model in enumerate(models)
        for gpus in (1, 2, 4)
        if gpus <= int(str(offer["gpus"])) and gpus >= m
        for d in range(2)
    ]  # fmt: skip
    demand = [
        {"model": model, "input_tokens": d + 1, "output_tokens": 1, "rate_per_s": float(rng.uniform(0.2, 4.0))}
        for model in models
        for d in range(2)
    ]
    described = {"name": "t", "offers": offers, "models": [{"name": name} for name in models], "demand": demand,
                 "profiles": profiles}  # fmt: skip
    return read_problem(FleetInstance.model_validate(described | more))


def alone(problem: FleetProblem) -> FleetModel:
    return FleetBuilder(problem, (0,)).build()


def least(built: FleetModel) -> float:
    result, _ = solve_linear_mathopt(built.model, Budget(60), SolveOptions(time_limit_s=60))
    assert result.status is Status.OPTIMAL
    assert result.objective is not None
    return result.objective


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("more", MORE)
def test_the_optimum_stays_and_bounds_are_below_it(seed: int, more: dict[str, Any]) -> None:
    problem = shared(seed, **more)
    built = alone(problem)
    optimum = least(built)
    plans = ServicePlans(problem, 0, built, None)
    result, values = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    assert values is not None
    assert result.objective == pytest.approx(optimum, rel=1e-6)
    assert plans.parts.bound <= optimum * (1 + 1e-6)
    for one in plans.parts.priced:
        assert plans.parts._bound(one) <= optimum * (1 + 1e-6)
    tight = replace(built, model=plans.parts.onto(built.model))
    assert least(tight) == pytest.approx(optimum, rel=1e-6)
    below, above = relax(built.model, 20), relax(tight.model, 20)
    assert isinstance(below, Relaxation)
    assert isinstance(above, Relaxation)
    assert above.objective <= optimum * (1 + 1e-6)
    if not problem.spare_instances:  # there the rows of the lost instances are what GPUs are paid for
        assert above.objective > below.objective * (1 + 1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_many_services(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Plans combined and improved are plans of the whole, with a bound below the optimum."""
    problem = shared(seed)
    optimum = least(alone(problem))
    monkeypatch.setattr(service_plans, "MANY_SERVICES", 1)
    monkeypatch.setattr(service_plans, "LEAST_FREE", 3)
    monkeypatch.setattr(service_plans, "MOST_FREE", 3)
    outcome = run(problem)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert check(problem, outcome.plan) == []
    assert outcome.bound.value <= optimum * (1 + 1e-6)
    assert optimum * (1 - 1e-6) <= outcome.objective.total <= 1.02 * optimum


def test_threads_of_a_solver_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for many in (1, 16):
        monkeypatch.setattr(service_plans, "MANY_SERVICES", many)
        monkeypatch.setattr(service_plans, "MOST_FREE", 3)
        assert run(shared(1), "scip", num_threads=2).plan is not None


def test_a_gap_that_is_reached_ends_the_search() -> None:
    outcome = run(shared(1), relative_gap=0.5)
    assert (outcome.status, outcome.stop) == ("feasible", "gap")
    assert outcome.gap is not None
    assert outcome.gap <= 0.5


def test_needs_do_not_depend_on_the_unit_of_prices() -> None:
    """Prices of 1e-8 USD: a solver's own tolerances would take such costs for none, and its bound would be wrong."""
    plans = ServicePlans(shared(2), 0, alone(shared(2)), None)
    plans._meet(1e-4, Budget(60), None)
    parts = plans.parts
    for one in parts.priced[:3]:
        small = parts._price(one.prices * 1e-8, Budget(60))
        assert small is not None
        assert small.least * 1e8 == pytest.approx(one.least, rel=2e-4, abs=1e-6)


def test_other_prices_of_the_same_services() -> None:
    """What services need stays true when instances cost something else: half the price, half the optimum."""
    problem = shared(0)
    built = alone(problem)
    plans = ServicePlans(problem, 0, built, None)
    first, _ = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    plans.change(replace(built.model, cost=built.model.cost / 2, offset=10.0))
    assert first.objective is not None
    assert plans.parts.bound <= first.objective / 2 + 10 + 1e-6
    second, values = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    assert values is not None
    assert second.objective == pytest.approx(first.objective / 2 + 10)


def test_replicas_in_force() -> None:
    """What they are worth is not in the blocks, whose columns are those of the whole, what else is needless too."""
    problem = shared(0)
    running = np.arange(problem.num_configs) % 3
    moving = replace(problem, running=running, move_cost=np.full(running.size, 0.7))
    built = alone(moving)
    plans = ServicePlans(moving, 0, built, None)
    result, _ = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    assert result.objective == pytest.approx(least(built))
    assert plans.parts.model.num_variables == built.columns[0].routing.x.max() + 1


def test_needs_of_any_scale() -> None:
    """Prices of a master without a plan have any scale; HiGHS broke down on the rows of this one."""
    made = random_problem(3079)
    assert {run(one).status for one in (made, replace(made, headroom=0.0))} == {"infeasible"}


def test_no_time() -> None:
    problem = shared(0)
    plans = ServicePlans(problem, 0, alone(problem), None)
    result, values = plans.solve(solver_of("highs"), SolveOptions(), Budget(1e-9))
    assert (result.status, values) == (Status.UNKNOWN, None)


def test_a_first_round_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of some services, and no bound: the whole model is solved."""
    problem = shared(0)
    built = alone(problem)
    plans = ServicePlans(problem, 0, built, None)
    plans.parts._add(0, np.zeros(plans.parts.blocks[0].columns.size))
    monkeypatch.setattr(plans.parts, "_price", lambda *_: None)
    result, values = plans.solve(solver_of("highs"), SolveOptions(), Budget(60))
    assert values is not None
    assert result.objective == pytest.approx(least(built))


@pytest.mark.parametrize("many", [1, 16])
def test_infeasible(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    monkeypatch.setattr(service_plans, "MANY_SERVICES", many)
    outcome = run(shared(0, budget_usd_per_hour=1.0))
    assert outcome.status == "infeasible"
    assert "budget_usd_per_hour 1" in outcome.reasons


def test_a_service_without_a_demand() -> None:
    problem = shared(0)
    rate = problem.rate.copy()
    rate[:, problem.bucket_model == 1] = 0.0
    quiet = replace(problem, rate=rate)
    outcome = run(quiet)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(least(alone(quiet)))


def test_costs_of_a_block_are_refused() -> None:
    problem = shared(0)
    model = alone(problem).model
    with pytest.raises(ValueError, match="outside all blocks"):
        service_plans.Decomposition(model, np.zeros(model.num_variables, dtype=np.int64), 1e-4)


def test_duals_are_what_one_unit_more_costs() -> None:
    problem = shared(0)
    built = FleetBuilder(problem, (0,)).build()
    found = relax(built.model, 20)
    assert isinstance(found, Relaxation)
    # Strong duality: rows and bounds at their prices give the objective; here all lower bounds are 0.
    side = np.where(found.duals > 0, built.model.row_lower, built.model.row_upper)
    rows = float(np.where(found.duals != 0, found.duals * np.where(np.isfinite(side), side, 0.0), 0.0).sum())
    reduced = built.model.cost - np.bincount(
        built.model.column, weights=built.model.value * found.duals[built.model.row], minlength=built.model.cost.size
    )
    bounds = float((np.minimum(reduced, 0.0) * built.model.upper).sum())
    assert rows + bounds == pytest.approx(found.objective)
