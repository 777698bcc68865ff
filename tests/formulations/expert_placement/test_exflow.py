"""ExFlow's affinity programs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from placement_cases import chain_instance, counts, crossings, instance, planted_trace, run

from formulations.expert_placement import exflow
from formulations.expert_placement.check import check
from formulations.outcome import Budget, SolveOptions, Status, Stop
from planner.errors import OptionError


def test_it_reaches_the_planted_crossings() -> None:
    trace, hidden = planted_trace(8, 6, 4)
    problem = chain_instance(trace, 8, 4)
    outcome = run(problem, "exflow")
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.HEURISTIC)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.bound is not None
    planted = crossings(hidden, problem.transitions, 4)
    assert crossings(outcome.plan.array, problem.transitions, 4) <= planted + 1e-9
    assert outcome.bound.value <= outcome.objective.total
    assert not check(problem, outcome.plan)


@pytest.mark.parametrize("bisection", [True, False])
def test_two_gpus_have_no_fewer_crossings_in_any_placement(bisection: bool) -> None:
    trace, _ = planted_trace(4, 3, 2, stay=0.2, tokens=200)
    problem = chain_instance(trace, 4, 2)
    result = exflow.search(problem, SolveOptions(time_limit_s=10.0), Budget(10.0), None, bisection=bisection)
    assert result.plan is not None
    halves = [np.array([*half, *(set(range(4)) - set(half))]) for half in itertools.combinations(range(4), 2)]
    best = min(crossings(np.stack(rows), problem.transitions, 2) for rows in itertools.product(halves, repeat=3))
    assert crossings(result.plan.array, problem.transitions, 2) == pytest.approx(best, abs=1e-9)


def test_three_gpus_are_placed_at_once() -> None:
    trace, hidden = planted_trace(6, 3, 3)
    problem = chain_instance(trace, 6, 3)
    outcome = run(problem, "exflow")
    assert outcome.plan is not None
    planted = crossings(hidden, problem.transitions, 3)
    assert crossings(outcome.plan.array, problem.transitions, 3) <= planted + 1e-9


def test_a_hint_is_a_start() -> None:
    trace, hidden = planted_trace(16, 4, 4)
    problem = chain_instance(trace, 16, 4)
    outcome = run(problem, "exflow", hint=problem.placement(hidden), time_limit_s=1.0)
    assert outcome.plan is not None
    planted = crossings(hidden, problem.transitions, 4)
    assert crossings(outcome.plan.array, problem.transitions, 4) <= planted + 1e-9


def test_one_layer_or_one_gpu_has_nothing_to_cross() -> None:
    trace, _ = planted_trace(4, 1, 2, tokens=50)
    for num_gpus in (1, 2):
        outcome = run(instance(trace.counts(4)[None], num_gpus, trace=trace), "exflow")
        assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.HEURISTIC)


def test_without_time_the_starts_are_kept_and_said_to_be() -> None:
    problem = chain_instance(planted_trace(8, 4, 4)[0], 8, 4)
    outcome = run(problem, "exflow", time_limit_s=1e-6)
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
    assert "3 of 3 programs kept their start" in outcome.solver
    assert outcome.plan is not None
    assert not check(problem, outcome.plan)


def test_what_it_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = planted_trace(6, 2, 2, tokens=50)[0]
    load = trace.counts(6)[None]
    with pytest.raises(OptionError, match="exflow needs a routing trace"):
        run(instance(counts(1, 6)), "exflow")
    with pytest.raises(OptionError, match="no spare slots"):
        run(instance(load, 2, 8, trace=trace), "exflow")
    with pytest.raises(OptionError, match="group_spread"):
        run(instance(load, trace=trace, num_groups=2, group_spread=1, gpus_per_node=1), "exflow")
    with pytest.raises(OptionError, match="max_moves"):
        run(instance(load, trace=trace, current=np.tile(np.arange(6), (2, 1)), max_moves=1), "exflow")
    with pytest.raises(OptionError, match="power of two"):
        exflow.search(instance(load, 3, trace=trace), SolveOptions(), Budget(1.0), None, bisection=True)
    monkeypatch.setattr(exflow, "MAX_ROWS", 10)
    with pytest.raises(OptionError, match="at most 10"):
        run(instance(load, trace=trace), "exflow")
