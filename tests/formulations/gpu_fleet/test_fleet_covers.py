"""Rows for each model: the optimum stays, the relaxation rises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from formulations.backends.linear import solve_linear_mathopt
from formulations.backends.relaxation import Relaxation, relax
from formulations.gpu_fleet.covers import tighten
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import Budget, SolveOptions, Status
from planner.descriptions.fleet import FleetInstance

#: How much faster a replica of each role is than one that does all.
SPLIT = {"both": 1.0, "prefill": 3.0, "decode": 1.7}


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


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("more", [{}, {"headroom": 0.3}, {"spare_instances": 1}, {"roles": SPLIT}])
def test_the_optimum_stays_and_the_relaxation_rises(seed: int, more: dict[str, Any]) -> None:
    problem = shared(seed, **more)
    plain = FleetBuilder(problem, (0,)).build()
    builder = FleetBuilder(problem, (0,))
    tight = tighten(problem, builder, builder.build(), Budget(60))
    optimum = [solve_linear_mathopt(one.model, Budget(60), SolveOptions(time_limit_s=60))[0] for one in (plain, tight)]
    assert all(one.status is Status.OPTIMAL for one in optimum)
    assert optimum[1].objective == pytest.approx(optimum[0].objective)
    below, above = relax(plain.model, 20), relax(tight.model, 20)
    assert isinstance(below, Relaxation)
    assert isinstance(above, Relaxation)
    assert above.objective <= optimum[0].objective * (1 + 1e-6)
    if not problem.spare_instances:  # there the rows of the lost instances are what GPUs are paid for
        assert above.objective > below.objective * (1 + 1e-4)


def test_one_model_and_no_time_leave_the_model_as_it_is() -> None:
    problem = shared(0)
    builder = FleetBuilder(problem, (0,))
    built = builder.build()
    assert tighten(problem, builder, built, Budget(1e-9)) is built


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
