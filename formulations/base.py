"""The protocol of a formulation, and `solve()`: search, then an independent check, then a re-priced objective."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar, Protocol, TypeVar

from formulations.outcome import (
    TOLERANCE,
    Budget,
    Objective,
    OnProgress,
    Outcome,
    SearchResult,
    SolveOptions,
    Status,
    Stop,
)
from planner.cost.verdict import Violation
from planner.errors import InvalidPlanError, OptionError

ProblemT = TypeVar("ProblemT")
ProblemT_contra = TypeVar("ProblemT_contra", contravariant=True)
PlanT = TypeVar("PlanT")


class Formulation(Protocol[ProblemT_contra, PlanT]):
    """One optimization. `methods` maps each method's name to one line about it; the first is the default.

    one_thread : methods whose solver takes one thread and refuses more.
    """

    name: str
    summary: str
    objective_unit: str
    methods: Mapping[str, str]
    one_thread: ClassVar[frozenset[str]]

    def search(
        self, problem: ProblemT_contra, options: SolveOptions, budget: Budget, hint: PlanT | None
    ) -> SearchResult[PlanT]:
        """Find a plan; the only part that may use a solver."""
        ...

    def check(self, problem: ProblemT_contra, plan: PlanT) -> list[Violation]:
        """Every broken rule; no solver in it."""
        ...

    def objective(self, problem: ProblemT_contra, plan: PlanT) -> Objective:
        """Price a plan from its decisions alone."""
        ...

    def baseline(self, problem: ProblemT_contra) -> tuple[str, PlanT | None]:
        """The field's plain rule: its name and its plan; None where it has none."""
        ...


@contextmanager
def _interruptible(budget: Budget) -> Iterator[None]:
    """First Ctrl-C asks the search to stop and keeps the incumbent; a second one is Python's usual interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(signum: int, frame: FrameType | None) -> None:
        if budget.interrupted:
            raise KeyboardInterrupt
        budget.interrupted = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def solve(
    formulation: Formulation[ProblemT, PlanT],
    problem: ProblemT,
    options: SolveOptions | None = None,
    *,
    hint: PlanT | None = None,
    on_progress: OnProgress | None = None,
) -> Outcome[PlanT]:
    """Search, check independently, re-price, and compare with what the search claimed.

    Raises OptionError for an option that cannot be honoured and InvalidPlanError when the search's plan breaks a rule,
    its claimed objective is not the re-priced one, or its bound is above its objective: those are our bugs.
    """
    options = options or SolveOptions()
    method = options.method or next(iter(formulation.methods))
    if method not in formulation.methods:
        raise OptionError(f"{formulation.name} has no method {method!r}; choose from {', '.join(formulation.methods)}")
    budget = Budget(options.time_limit_s, on_progress)
    started_s = time.perf_counter()
    with _interruptible(budget):
        result = formulation.search(problem, options, budget, hint)
    solve_s = time.perf_counter() - started_s - result.build_s - result.aside_s

    objective = None
    if result.plan is not None:
        violations = formulation.check(problem, result.plan)
        if violations:
            text = "; ".join(violation.message for violation in violations[:5])
            raise InvalidPlanError(f"{formulation.name}/{method} returned a plan that breaks rules: {text}")
        objective = formulation.objective(problem, result.plan)
        _compare(formulation.name, method, objective, result)
    return Outcome(
        status=result.status,
        stop=_stop(result, options, objective),
        plan=result.plan,
        objective=objective,
        objective_unit=formulation.objective_unit,
        bound=result.bound,
        build_s=result.build_s,
        solve_s=solve_s,
        aside_s=result.aside_s,
        solver=result.solver,
        solver_version=result.solver_version,
        method=method,
        options=options,
        reasons=result.reasons,
        relaxations=result.relaxations,
    )


def _compare(name: str, method: str, objective: Objective, result: SearchResult[PlanT]) -> None:
    allowed = TOLERANCE * max(1.0, abs(objective.total))
    if not math.isfinite(objective.total):
        raise InvalidPlanError(f"{name}/{method}: the plan is worth {objective.total}, which is no number")
    # Written so that a NaN is a difference.
    if result.claimed is not None and not abs(result.claimed - objective.total) <= allowed:
        raise InvalidPlanError(
            f"{name}/{method} claims {result.claimed:.9g} but the plan is worth {objective.total:.9g}"
        )
    if result.bound is not None and not -math.inf < result.bound.value <= objective.total + allowed:
        raise InvalidPlanError(
            f"{name}/{method}: bound {result.bound.value:.9g} ({result.bound.name}) is above the objective"
            f" {objective.total:.9g}"
        )
    proven = result.bound is not None and objective.total - result.bound.value <= allowed
    if result.status is Status.OPTIMAL and not proven:
        raise InvalidPlanError(f"{name}/{method} says optimal, but its bound does not meet the objective")


def _stop(result: SearchResult[PlanT], options: SolveOptions, objective: Objective | None) -> Stop:
    """A search that was cut off inside the asked gap has stopped for the gap."""
    if options.relative_gap is None or objective is None or result.bound is None or result.stop is Stop.PROOF:
        return result.stop
    gap = (objective.total - result.bound.value) / max(abs(objective.total), 1e-12)
    return Stop.GAP if gap <= options.relative_gap else result.stop
