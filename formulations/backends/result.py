"""What every backend returns, and the rules that all of them read solver numbers by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from formulations.outcome import TOLERANCE, Budget, SolveOptions, Status, Stop
from planner.errors import OptionError, SolverError

#: Difference below which two objectives are equal where no tolerance is granted; absolute around zero.
_EQUAL = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverResult:
    """The end of one solver run. Objective and bound have the model's sense and unit; None is unknown.

    solve_s : wall clock of the solver alone, in seconds.
    """

    status: Status
    stop: Stop
    objective: float | None
    bound: float | None
    solver: str
    solver_version: str
    solve_s: float

    @property
    def has_solution(self) -> bool:
        """Whether there are values to read."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)


def as_integer(value: float, tolerance: float = 1e-6) -> int:
    """The integer that a solver's float stands for; SolverError when none is within `tolerance`."""
    if not math.isfinite(value) or abs(value - round(value)) > tolerance:
        raise SolverError(f"the solver returned {value!r} where an integer was required")
    return round(value)


def finite(value: float | None) -> float | None:
    """None for the infinities by which solvers say that they do not know."""
    return value if value is not None and math.isfinite(value) else None


def conclude(objective: float, bound: float | None, relative_gap: float | None) -> tuple[Status, Stop]:
    """Read a solver's "optimal": proven when the bound meets the objective, else stopped at a gap.

    Solvers say "optimal" at the gap that was asked, and at absolute tolerances of their own (HiGHS: 1e-6)
    that are large beside a small objective.
    """
    relative = _EQUAL if relative_gap else TOLERANCE
    if bound is not None and abs(objective - bound) <= max(_EQUAL, relative * abs(objective)):
        return Status.OPTIMAL, Stop.PROOF
    return Status.FEASIBLE, Stop.GAP


def node_limit(options: SolveOptions) -> int | None:
    """The work limit of a branch-and-bound solver; OptionError when it is no whole number of nodes."""
    if options.work_limit is not None and not float(options.work_limit).is_integer():
        raise OptionError(f"the work limit counts nodes here and must be whole, got {options.work_limit}")
    return None if options.work_limit is None else int(options.work_limit)


def not_started(solver: str, version: str, budget: Budget) -> SolverResult | None:
    """The result of a run for which no time is left, or None when there is."""
    stop = budget.stop()
    if stop is None:
        return None
    return SolverResult(
        status=Status.UNKNOWN,
        stop=stop,
        objective=None,
        bound=None,
        solver=solver,
        solver_version=version,
        solve_s=0.0,
    )
