"""From a deployment in force to the next: few moves, in an order in which no less is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deploy_cases import offer, planned, problem, run, worker, written

from formulations.deployment.cuts import only
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import SearchResult, Status
from planner.deploy_plan import DeployPlan
from planner.errors import DescriptionError
from planner.fleet_plan import FleetPlan


def change_of(folder: Path, before: DeployPlan, *arguments: object, **more: object) -> DeployPlan:
    """The plan from what is in force."""
    plan = planned(problem(folder, *arguments, current=written(folder, before), **more))[1]
    assert plan.change is not None
    return plan


def test_what_runs_stays_where_it_is(tmp_path: Path) -> None:
    rows, found = [worker("w", 5)], [offer("pair", 3, 2)]
    _, before = planned(problem(tmp_path, {"m": 15}, rows, found))
    after = change_of(tmp_path, before, {"m": 20}, rows, found)
    change = after.change
    assert change is not None
    assert (change.kept, change.started, change.stopped) == (3, 1, 0)
    assert set(before.pods) <= set(after.pods)
    assert change.served_before == pytest.approx(0.75)
    assert change.steps[-1].served == pytest.approx(1.0)


def test_less_demand_drops_what_is_not_needed(tmp_path: Path) -> None:
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 15}, rows, found))
    change = change_of(tmp_path, before, {"m": 5}, rows, found).change
    assert change is not None
    assert (change.kept, change.started, change.stopped) == (1, 0, 2)
    assert change.served_least == pytest.approx(1)
    assert sum(len(step.drop_nodes) for step in change.steps) == 2


def test_a_move_that_saves_less_than_it_costs_is_left(tmp_path: Path) -> None:
    """New workers would save 0.1 USD/h; starting one costs 0.2."""
    rows = [worker("old", 5), worker("new", 5, device="t4")]
    dear, cheap = offer("dear", 1.0), {**offer("cheap", 0.9), "device": "t4"}
    _, before = planned(problem(tmp_path, {"m": 5}, rows, [dear]))
    for cost, kept in ((0.2, 1), (0.05, 0)):
        after = change_of(tmp_path, before, {"m": 5}, rows, [dear, cheap], move_cost_usd_per_gpu_hour=cost)
        assert after.change is not None
        assert after.change.kept == kept


def test_a_swap_on_a_full_node_borrows_one(tmp_path: Path) -> None:
    """The one standing node is full of the worker of two GPUs; two small ones are wanted there. No GPU is free, so a
    node is rented for the time of the change."""
    nodes = [{"name": "own", "device": "l4", "gpus": 2}]
    rows = [worker("large", 4, gpus=2), worker("small", 5)]
    _, before = planned(problem(tmp_path, {"m": 4}, rows[:1], [offer("single", 5)], nodes=nodes))
    after = change_of(tmp_path, before, {"m": 9}, rows, [offer("single", 5)], nodes=nodes)
    change = after.change
    assert change is not None
    assert {pod.worker for pod in after.pods} == {"small"}
    # What ran served 4 of 9 requests/s; at no time is it less.
    assert change.served_before == pytest.approx(4 / 9)
    assert change.served_least >= 4 / 9 - 1e-9
    assert len(change.lent_nodes) == 1
    first = change.steps[0]
    assert first.add_nodes == change.lent_nodes
    assert change.steps[-1].drop_nodes == change.lent_nodes


def test_where_nothing_can_be_lent_the_gap_is_told(tmp_path: Path) -> None:
    nodes = [{"name": "own", "device": "l4", "gpus": 2}]
    rows = [worker("large", 4, gpus=2), worker("small", 5)]
    _, before = planned(problem(tmp_path, {"m": 4}, rows[:1], nodes=nodes))
    change = change_of(tmp_path, before, {"m": 9}, rows, nodes=nodes).change
    assert change is not None
    assert change.lent_nodes == ()
    assert change.served_least == pytest.approx(0)
    assert change.steps[-1].served == pytest.approx(1)


def test_a_lost_node_is_replaced(tmp_path: Path) -> None:
    """Of two standing nodes one is gone: what ran there starts elsewhere, what runs on the other stays."""
    nodes = [{"name": f"own-{i}", "device": "l4", "gpus": 1} for i in range(2)]
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 10}, rows, found, nodes=nodes))
    name = written(tmp_path, before)
    instance = problem(tmp_path, {"m": 10}, rows, found, nodes=nodes[:1], current=name)
    cost, plan = planned(instance)
    assert cost == pytest.approx(1.01)
    assert plan.change is not None
    assert (plan.change.kept, plan.change.started) == (1, 1)
    assert any("own-1, which is gone" in one for one in instance.fleet.assumptions)


def test_fewer_moves_than_needed_are_a_reason(tmp_path: Path) -> None:
    rows, found = [worker("w", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 5}, rows, found))
    name = written(tmp_path, before)
    outcome = run(problem(tmp_path, {"m": 15}, rows, found, current=name, max_moves=1))
    assert outcome.status is Status.INFEASIBLE
    assert any("raise max_moves from 1 to 2" in way for way in outcome.relaxations)


def test_what_is_rented_must_still_be_offered(tmp_path: Path) -> None:
    rows = [worker("w", 5)]
    _, before = planned(problem(tmp_path, {"m": 5}, rows, [offer("gone", 1)]))
    name = written(tmp_path, before)
    with pytest.raises(DescriptionError, match="rents 'gone', which is not offered"):
        problem(tmp_path, {"m": 5}, rows, [offer("single", 1)], current=name)


def test_a_plan_of_something_else_is_not_in_force(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"problem": "deploy"}')
    with pytest.raises(DescriptionError):
        problem(tmp_path, {"m": 5}, [worker("w", 5)], [offer("single", 1)], current="other.json")


def test_moves_that_the_search_had_no_time_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that stops early starts another worker for nothing; what follows keeps the one in force."""
    rows, found = [worker("old", 5), worker("new", 5)], [offer("single", 1)]
    _, before = planned(problem(tmp_path, {"m": 5}, rows[:1], found))
    instance = problem(tmp_path, {"m": 5}, rows, found, current=written(tmp_path, before))
    real = GPU_FLEET.search

    def early(fleet: FleetProblem, *arguments: Any) -> SearchResult[FleetPlan]:
        result = real(only(fleet, np.array(fleet.config_worker) == "new"), *arguments)
        return replace(result, status=Status.FEASIBLE, bound=None)

    monkeypatch.setattr(GPU_FLEET, "search", early)
    outcome = run(instance)
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(1)
    assert outcome.plan is not None
    assert outcome.plan.change is not None
    assert outcome.plan.change.kept == 1
