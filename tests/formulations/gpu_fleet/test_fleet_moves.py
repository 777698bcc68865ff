"""Replicas in force: starting others has a price and a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.reading import read_problem
from formulations.outcome import SolveOptions, Status
from planner.fleet_plan import FleetPlan
from tests.formulations.gpu_fleet.fleet_cases import fleet, offers


def in_force(move_cost: float, max_moves: int | None = None) -> FleetProblem:
    """10 requests/s; a cheap offer serves 5 for 1 USD/h, a dear one 5 for 1.5. Two replicas of the dear one run."""
    problem = read_problem(fleet(offers(cheap=1.0, dear=1.5), 10.0, {"cheap": 5.0, "dear": 5.0}))
    return replace(problem, running=np.array([0, 2]), move_cost=np.full(2, move_cost), max_moves=max_moves)


@pytest.mark.parametrize(
    ("move_cost", "max_moves", "cost", "started"),
    [
        # Two cheap ones: 2 USD/h and two starts; kept: 3 USD/h. The price of a start decides at 0.5.
        (0.4, None, 2.8, 2),
        (0.6, None, 3.0, 0),
        # With one start at most: one of each, 1 + 1.5 + 0.4.
        (0.4, 1, 2.9, 1),
        (0.4, 0, 3.0, 0),
    ],
)
def test_a_start_costs_what_it_saves_or_is_left(
    move_cost: float, max_moves: int | None, cost: float, started: int
) -> None:
    problem = in_force(move_cost, max_moves)
    outcome = solve(GPU_FLEET, problem)
    assert outcome.status is Status.OPTIMAL
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(cost)
    assert outcome.objective.terms["move_usd_per_hour"] == pytest.approx(started * move_cost)


def test_more_starts_than_allowed_are_found() -> None:
    plan = solve(GPU_FLEET, in_force(0.4)).plan
    assert isinstance(plan, FleetPlan)
    assert [one.rule for one in GPU_FLEET.check(in_force(0.4, 1), plan)] == ["max_moves"]


def test_too_few_starts_are_a_reason_and_a_way_out() -> None:
    # What runs serves 10 of 20 requests/s; two more are needed.
    problem = in_force(0.4, 1)
    problem = replace(problem, rate=2 * problem.rate)
    outcome = solve(GPU_FLEET, problem, SolveOptions(time_limit_s=10))
    assert outcome.status is Status.INFEASIBLE
    assert "max_moves 1" in outcome.reasons
    assert any("raise max_moves from 1 to 2" in way for way in outcome.relaxations)
