"""The published model and its scenarios: the generator number for number, the model by hand, and ours against it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.priority_matters import Scheduler, problem_of, scenario, standing, with_moves
from formulations.base import solve
from formulations.outcome import Budget, Outcome, SolveOptions, Status
from formulations.pod_packing.formulation import POD_PACKING
from formulations.pod_packing.priority_matters import Published
from formulations.pod_packing.problem import PodsProblem
from planner.errors import OptionError
from planner.pods_plan import PodsPlan
from tests.formulations.pod_packing.pods_cases import places, problem

GOLDEN = "pods/priority_matters/golden.json"


def ran(one: PodsProblem, method: str) -> Outcome[PodsPlan]:
    return solve(POD_PACKING, one, SolveOptions(time_limit_s=60, work_limit=20, method=method))


def test_the_generator_is_the_published_one(shared_data: Path) -> None:
    """Sets and nodes are those recorded; the simulated scheduler differs from the recorded one by a pod at most."""
    instances = json.loads((shared_data / GOLDEN).read_text(encoding="utf-8"))["instances"]
    for golden in instances:
        found = scenario(golden["seed"], 4, 16, 4, 0.95)
        if "node_cpu_m" in golden:
            assert (found.cpu, found.memory) == (golden["node_cpu_m"], golden["node_mem_b"])
        if "replicasets" in golden:
            recorded = [(one["prio"], one["cpu_m"], one["mem_b"], one["replicas"]) for one in golden["replicasets"]]
            assert [(one.priority, one.cpu, one.memory, one.replicas) for one in found.sets] == recorded
        running = int((Scheduler(found).node >= 0).sum())
        assert abs(running - sum(golden["default_running_by_prio"].values())) <= 1


def test_the_scheduler_evicts_the_least_important() -> None:
    """No node has more than it can give, and no pod waits that a less important one on some node could make room for
    alone: that is what preemption is for."""
    given = scenario(12345, 4, 24, 4, 1.05)
    found = Scheduler(given)
    assert (found.free >= 0).all()
    for pod in np.flatnonzero(found.node < 0).tolist():
        for other in np.flatnonzero((found.node >= 0) & (found.priority < found.priority[pod])).tolist():
            freed = found.free[found.node[other]] + found.request[other]
            assert (freed < found.request[pod]).any()


def swapped() -> PodsProblem:
    """Two nodes of 8 cores, 5 taken on one and 3 on the other: a pod of 6 has room once both are on one node."""
    pods = [
        {"name": "five", "cpu": 5, "node": "n-0", "priority": 1},
        {"name": "three", "cpu": 3, "node": "n-1", "priority": 1},
        {"name": "new", "cpu": 6, "priority": 1},
    ]
    return with_moves(problem([{"name": "n", "count": 2}], pods), None)


@pytest.mark.parametrize("method", ["priority-matters", "cp-sat", "auto"])
def test_one_move_makes_room(method: str) -> None:
    """6 fits nowhere until 3 joins 5, or 5 joins 3: all three run after one move."""
    outcome = ran(swapped(), method)
    found = places(outcome.plan)
    assert found["default/five"] == found["default/three"] != found["default/new"]
    assert outcome.plan is not None
    assert len(outcome.plan.moves) == 1
    assert not outcome.plan.evictions


def test_an_eviction_is_cheaper_than_a_move_to_the_published_model() -> None:
    """One node of 8: 5 of priority 0 runs, 6 of priority 1 waits. The five is evicted: tier 0 counts one pod less."""
    pods = [{"name": "low", "cpu": 5, "node": "n"}, {"name": "high", "cpu": 6, "priority": 1}]
    one = with_moves(problem([{"name": "n"}], pods), None)
    outcome = ran(one, "priority-matters")
    assert outcome.plan is not None
    assert outcome.plan.evictions == ("default/low",)
    assert places(outcome.plan) == {"default/high": "n"}


def test_forced_progress_can_leave_the_published_model_without_a_plan() -> None:
    """Nothing pending fits on any node, even empty: its rule that one pending pod is placed has no solution. Ours
    leaves everything as it is."""
    pods = [{"name": "run", "cpu": 5, "node": "n"}, {"name": "wide", "cpu": 9}]
    one = with_moves(problem([{"name": "n"}], pods), None)
    assert ran(one, "priority-matters").status is Status.UNKNOWN
    outcome = ran(one, "cp-sat")
    assert outcome.plan is not None
    assert places(outcome.plan) == {"default/run": "n"}


def test_what_it_does_not_know_is_refused() -> None:
    one = problem([{"name": "n", "gpus": 1}], [{"name": "p", "gpus": 1}])
    with pytest.raises(OptionError, match="GPUs"):
        ran(one, "priority-matters")


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_never_worse_than_the_scheduler_or_the_published_model(seed: int) -> None:
    """Free, and with the published plan's own number of moves; every plan is checked, each prefix of its moves too."""
    given = scenario(seed, 4, 16, 4, 1.0)
    one = problem_of(given, Scheduler(given).node)
    run = Published(one, SolveOptions(work_limit=5), Budget(60))
    run.run()
    old = standing(one)
    theirs, most = old, 0
    if run.packing is not None:
        placed = run.packing.placed()
        theirs = tuple(int(aim.weight @ placed) for aim in one.aims)
        most = run.packing.evicted.size + run.packing.moved.size
    for problem_, floor in ((one, theirs), (with_moves(one, most), theirs)):
        plan = ran(problem_, "cp-sat").plan
        assert plan is not None
        ours = tuple(round(tier.value) for tier in plan.tiers)
        assert ours >= max(old, floor)
