"""`solve()` against a scripted formulation: broken plans, wrong claims, false proofs, Ctrl-C, refused options."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from formulations.base import solve
from formulations.outcome import (
    Bound,
    Budget,
    Objective,
    Outcome,
    Progress,
    SearchResult,
    SolveOptions,
    Status,
    Stop,
)
from planner.cost.verdict import Violation
from planner.errors import InvalidPlanError, OptionError

Script = Callable[[Budget], SearchResult[float]]


class Scripted:
    """A plan is a number, worth itself; negative numbers break a rule. The problem is the search to run."""

    name = "scripted"
    summary = "numbers"
    objective_unit = "units"

    def __init__(self) -> None:
        self.methods = {"first": "the default", "second": "another"}

    def search(self, problem: Script, options: SolveOptions, budget: Budget, hint: float | None) -> SearchResult[float]:
        return problem(budget)

    def check(self, problem: Script, plan: float) -> list[Violation]:
        return [] if plan >= 0 else [Violation(rule="sign", subject="plan", message="is negative")]

    def objective(self, problem: Script, plan: float) -> Objective:
        return Objective(total=plan, parts={"worth": plan})

    def baseline(self, problem: Script) -> tuple[str, float]:
        return "one", 1.0


RESULT = SearchResult(status=Status.FEASIBLE, stop=Stop.HEURISTIC, plan=10.0, solver="none", solver_version="1")


def answer(options: SolveOptions | None = None, **changes: Any) -> Outcome[float]:
    return solve(Scripted(), lambda budget: replace(RESULT, **changes), options)


def test_a_plan_is_priced_again_and_labelled() -> None:
    """Objective 10, bound 8: gap (10 - 8) / 10 = 0.2."""
    outcome = answer(claimed=10.0, bound=Bound(value=8.0, name="eight"), build_s=0.25)
    assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.HEURISTIC)
    assert outcome.objective is not None
    assert outcome.objective.total == 10.0
    assert outcome.objective.terms == {"worth": 10.0}
    assert outcome.gap == pytest.approx(0.2)
    assert (outcome.method, outcome.objective_unit, outcome.build_s) == ("first", "units", 0.25)


def test_gap_is_unknown_without_a_bound_or_a_plan() -> None:
    assert answer().gap is None
    bound = Bound(value=3.0, name="three")
    assert answer(status=Status.UNKNOWN, stop=Stop.TIME_LIMIT, plan=None, bound=bound).gap is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": -1.0}, "is negative"),
        ({"claimed": 9.0}, "claims 9"),
        ({"bound": Bound(value=10.1, name="wrong")}, "above the objective"),
        ({"status": Status.OPTIMAL, "stop": Stop.PROOF}, "says optimal"),
        ({"status": Status.OPTIMAL, "bound": Bound(value=9.9, name="short")}, "says optimal"),
        ({"claimed": float("nan")}, "claims nan"),
        ({"bound": Bound(value=float("nan"), name="nothing")}, "bound"),
    ],
)
def test_what_the_search_says_must_be_true(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPlanError, match=message):
        answer(**changes)


def test_rounding_is_not_a_false_claim() -> None:
    bound = Bound(value=10.0 * (1 + 1e-9), name="meets")
    outcome = answer(status=Status.OPTIMAL, stop=Stop.PROOF, claimed=10.0 * (1 - 1e-9), bound=bound)
    assert outcome.status is Status.OPTIMAL
    assert outcome.gap == 0.0


@pytest.mark.parametrize(
    ("relative_gap", "stop", "expected"),
    [
        (0.2, Stop.TIME_LIMIT, Stop.GAP),
        (0.25, Stop.WORK_LIMIT, Stop.GAP),
        (0.1, Stop.TIME_LIMIT, Stop.TIME_LIMIT),
        (None, Stop.WORK_LIMIT, Stop.WORK_LIMIT),
        (0.2, Stop.PROOF, Stop.PROOF),
    ],
)
def test_a_search_inside_the_asked_gap_stopped_for_it(relative_gap: float | None, stop: Stop, expected: Stop) -> None:
    options = SolveOptions(relative_gap=relative_gap)
    assert answer(options, stop=stop, bound=Bound(value=8.0, name="eight")).stop is expected


def test_infeasible_is_an_answer_with_reasons() -> None:
    outcome = answer(status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, reasons=("a: b",), relaxations=("a: c",))
    assert outcome.plan is None
    assert outcome.objective is None
    assert (outcome.reasons, outcome.relaxations) == (("a: b",), ("a: c",))


@pytest.mark.parametrize(
    "changes",
    [
        {"status": Status.OPTIMAL, "plan": None},
        {"status": Status.FEASIBLE, "plan": None},
        {"status": Status.UNKNOWN},
        {"status": Status.INFEASIBLE, "plan": None},
        {"status": Status.INFEASIBLE, "reasons": ("a",)},
    ],
)
def test_contradictory_outcomes_cannot_be_built(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"contradicts|reasons"):
        answer(**changes)


def test_a_plan_needs_its_objective() -> None:
    with pytest.raises(ValueError, match="go together"):
        replace(answer(), objective=None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"time_limit_s": 0.0},
        {"time_limit_s": -1.0},
        {"time_limit_s": float("inf")},
        {"time_limit_s": float("nan")},
        {"work_limit": 0.0},
        {"work_limit": float("inf")},
        {"num_threads": 0},
        {"seed": -1},
        {"seed": 2**31},
        {"relative_gap": -0.1},
        {"relative_gap": float("nan")},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        SolveOptions(**wrong)


def test_an_unknown_method_is_refused_with_the_choices() -> None:
    with pytest.raises(OptionError, match=r"third.*first, second"):
        answer(SolveOptions(method="third"))
    assert answer(SolveOptions(method="second")).method == "second"


def looping(budget: Budget) -> SearchResult[float]:
    """Improve until told to stop."""
    value = 100.0
    while (stop := budget.stop()) is None:
        value = max(10.0, value - 1.0)
        budget.report(value, 5.0)
        time.sleep(0.001)
    return replace(RESULT, plan=value, stop=stop)


def test_ctrl_c_returns_the_incumbent_labelled() -> None:
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        outcome = solve(Scripted(), looping, SolveOptions(time_limit_s=60.0))
    finally:
        timer.join()
    assert outcome.stop is Stop.INTERRUPTED
    assert outcome.status is Status.FEASIBLE
    assert outcome.plan is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_a_search_that_does_not_listen() -> None:
    def deaf(budget: Budget) -> SearchResult[float]:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        return RESULT

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        solve(Scripted(), deaf)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    found: list[Outcome[float]] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: found.append(answer()))
    thread.start()
    thread.join()
    assert found[0].plan == 10.0
    assert signal.getsignal(signal.SIGINT) is before


def test_the_clock_stops_a_search_and_progress_is_told() -> None:
    told: list[Progress] = []
    outcome = solve(Scripted(), looping, SolveOptions(time_limit_s=0.05), on_progress=told.append)
    assert outcome.stop is Stop.TIME_LIMIT
    assert told
    assert told[0].incumbent == 99.0
    assert told[0].bound == 5.0
    assert told[0].time_limit_s == 0.05
