"""What a search knows when it ends: Status (what is proven) and Stop (why it ended) are two axes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from planner.errors import OptionError

PlanT = TypeVar("PlanT")

#: Default wall clock of a search. Long enough for a whole DeepSeek-V3; a limit is always finite.
DEFAULT_TIME_LIMIT_S = 30.0
#: Relative difference below which two objectives are the same number (float64 sums of about 1e5 terms).
TOLERANCE = 1e-6


class Status(StrEnum):
    """What is proven. OPTIMAL only for the real, unrounded problem and a bound that meets the objective."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"


class Stop(StrEnum):
    """Why the search ended. HEURISTIC: a method without a proof ran to its natural end."""

    PROOF = "proof"
    GAP = "gap"
    TIME_LIMIT = "time_limit"
    WORK_LIMIT = "work_limit"
    INTERRUPTED = "interrupted"
    HEURISTIC = "heuristic"


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveOptions:
    """Limits of a search. Same instance, seed, one thread and a work limit give the same plan.

    time_limit_s : finite wall clock.
    work_limit : deterministic effort, in the unit the method names (proposals a layer, deterministic seconds, nodes);
        with a work limit the clock only cuts off.
    relative_gap : stop at this gap; None asks for none.
    method : name of the method; None is the formulation's default.
    """

    time_limit_s: float = DEFAULT_TIME_LIMIT_S
    work_limit: float | None = None
    seed: int = 0
    num_threads: int = 1
    relative_gap: float | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_limit_s) and self.time_limit_s > 0):
            raise OptionError(f"the time limit must be positive and finite, got {self.time_limit_s}")
        if self.work_limit is not None and not (math.isfinite(self.work_limit) and self.work_limit > 0):
            raise OptionError(f"the work limit must be positive and finite, got {self.work_limit}")
        if self.num_threads < 1:
            raise OptionError(f"the number of threads must be at least 1, got {self.num_threads}")
        if not 0 <= self.seed < 2**31:
            raise OptionError(f"the seed must lie in 0 .. 2**31-1, got {self.seed}")
        if self.relative_gap is not None and not (math.isfinite(self.relative_gap) and self.relative_gap >= 0):
            raise OptionError(f"the gap must be finite and not negative, got {self.relative_gap}")


@dataclass(slots=True)
class Progress:
    """A moment of a running search, for display."""

    elapsed_s: float
    time_limit_s: float
    incumbent: float | None = None
    bound: float | None = None
    message: str = ""


OnProgress = Callable[[Progress], None]


class Budget:
    """The clock and the interrupt flag of one search; every loop asks it, none keeps its own."""

    def __init__(self, time_limit_s: float, on_progress: OnProgress | None = None) -> None:
        self.time_limit_s = time_limit_s
        self.started_s = time.perf_counter()
        self.interrupted = False
        self._on_progress = on_progress

    @property
    def elapsed_s(self) -> float:
        """Seconds since the search began."""
        return time.perf_counter() - self.started_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.time_limit_s - self.elapsed_s)

    def stop(self) -> Stop | None:
        """Why to stop now, or None to go on."""
        if self.interrupted:
            return Stop.INTERRUPTED
        return Stop.TIME_LIMIT if self.elapsed_s >= self.time_limit_s else None

    def report(self, incumbent: float | None = None, bound: float | None = None, message: str = "") -> None:
        """Tell whoever watches."""
        if self._on_progress is not None:
            self._on_progress(Progress(self.elapsed_s, self.time_limit_s, incumbent, bound, message))


class PartBudget(Budget):
    """A part's share of a search: progress is passed on as numbers of the whole, and so is the interrupt.

    others : incumbent (infinite if unknown) and bound of all other parts; None where the part's objective is
        another one, so that nothing is said of either.
    units : the part's objective per unit of the whole's.
    """

    def __init__(
        self,
        whole: Budget,
        share_s: float,
        others: tuple[float, float] | None = None,
        units: float = 1.0,
    ) -> None:
        super().__init__(share_s, self._pass_on)
        self._whole, self._others, self._units = whole, others, units
        self.interrupted = whole.interrupted

    def stop(self) -> Stop | None:
        """As the whole search, or when the share is used up."""
        return self._whole.stop() or super().stop()

    def _pass_on(self, progress: Progress) -> None:
        incumbent = bound = None
        if self._others is not None and progress.incumbent is not None and math.isfinite(self._others[0]):
            incumbent = self._others[0] + progress.incumbent / self._units
        if self._others is not None and progress.bound is not None:
            bound = self._others[1] + progress.bound / self._units
        self._whole.report(incumbent, bound, progress.message)
        self.interrupted = self._whole.interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A re-priced plan: the total that is minimised, and named terms. Terms that add up to it are in `parts`."""

    total: float
    parts: Mapping[str, float]
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def terms(self) -> dict[str, float]:
        """Parts and measures in one table, for the plan document."""
        return {**self.parts, **self.measures}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A proven lower bound of the objective and the argument it rests on."""

    value: float
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult(Generic[PlanT]):
    """What a method hands to `solve()`, before anything is checked.

    claimed : the objective as the method believes it; compared with the re-priced one. None when it keeps no total.
    aside_s : seconds spent on what is told beside the plan, which neither finds nor proves it.
    reasons, relaxations : for INFEASIBLE, in the user's own words.
    """

    status: Status
    stop: Stop
    plan: PlanT | None
    solver: str
    solver_version: str
    claimed: float | None = None
    bound: Bound | None = None
    build_s: float = 0.0
    aside_s: float = 0.0
    reasons: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome(Generic[PlanT]):
    """A checked and re-priced answer. Contradictory combinations cannot be built."""

    status: Status
    stop: Stop
    plan: PlanT | None
    objective: Objective | None
    objective_unit: str
    bound: Bound | None
    build_s: float
    solve_s: float
    solver: str
    solver_version: str
    method: str
    options: SolveOptions
    aside_s: float = 0.0
    reasons: tuple[str, ...] = ()
    relaxations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        has_plan = self.plan is not None
        if has_plan != (self.objective is not None):
            raise ValueError("a plan and its objective go together")
        if has_plan != (self.status in (Status.OPTIMAL, Status.FEASIBLE)):
            raise ValueError(f"status {self.status} contradicts {'a' if has_plan else 'no'} plan")
        if self.status is Status.INFEASIBLE and not self.reasons:
            raise ValueError("infeasible needs reasons")

    @property
    def gap(self) -> float | None:
        """(objective - bound) / |objective|, never below 0; None when either is unknown."""
        if self.objective is None or self.bound is None:
            return None
        scale = max(abs(self.objective.total), 1e-12)
        return max(0.0, (self.objective.total - self.bound.value) / scale)
