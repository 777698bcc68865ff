"""Cost against one number of the instance: a fleet for each of its values, each with its gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import instance_counts
from formulations.gpu_fleet.unserved import unserved_per_s
from formulations.outcome import Budget, OnProgress, SolveOptions
from planner.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value and its plan. Costs are None where there is no plan; `reasons` then says why.

    instances : by offer, at most at a time; unserved_per_s : requests/s that are left out, the mean over the hours.
    """

    value: float
    status: str
    stop: str
    usd_per_hour: float | None
    bound_usd_per_hour: float | None
    gap: float | None
    usd_per_million_output_tokens: float | None
    gpus_peak: float | None
    unserved_per_s: float | None
    instances: dict[str, int]
    solve_s: float
    reasons: tuple[str, ...]


def sweep(
    values: Sequence[float],
    problem_at: Callable[[float], FleetProblem],
    options: SolveOptions,
    on_progress: OnProgress | None = None,
) -> list[Point]:
    """A point for each value, in order. The time limit is for all of them: each may use its share of what is left."""
    watch = Budget(options.time_limit_s, on_progress)
    points = []
    for place, value in enumerate(values):
        share_s = max(watch.remaining_s / (len(values) - place), 0.01)
        watch.report(message=f"point {place + 1} of {len(values)}")
        points.append(_point(value, problem_at(value), replace(options, time_limit_s=share_s)))
    return points


def _point(value: float, problem: FleetProblem, options: SolveOptions) -> Point:
    outcome = solve(GPU_FLEET, problem, options)
    terms = {} if outcome.objective is None else outcome.objective.terms
    instances: dict[str, int] = {}
    if outcome.plan is not None:
        peak = instance_counts(problem, outcome.plan).max(axis=0)
        instances = {name: int(n) for name, n in zip(problem.offer_names, peak, strict=True) if n}
    return Point(
        value=value,
        status=outcome.status.value,
        stop=outcome.stop.value,
        usd_per_hour=None if outcome.objective is None else outcome.objective.total,
        bound_usd_per_hour=None if outcome.bound is None else outcome.bound.value,
        gap=outcome.gap,
        usd_per_million_output_tokens=terms.get("usd_per_million_output_tokens"),
        gpus_peak=terms.get("gpus_peak"),
        unserved_per_s=None if outcome.plan is None else sum(unserved_per_s(problem, outcome.plan).values()),
        instances=instances,
        solve_s=outcome.build_s + outcome.solve_s,
        reasons=outcome.reasons,
    )


def scaled(problem: FleetProblem, rate_per_s: float) -> FleetProblem:
    """The same demand at another mean rate, requests/s over all models and hours."""
    mean = float(problem.share @ problem.rate.sum(axis=1))
    return replace(problem, rate=problem.rate * (rate_per_s / mean))


def grid(low: float, high: float, num: int, geometric: bool) -> list[float]:
    """Values from low to high, both included. OptionError for an empty range, or a geometric one that touches 0."""
    if not (np.isfinite([low, high]).all() and low < high):
        raise OptionError(f"a sweep goes from a smaller to a larger number, got {low:g}..{high:g}")
    if num < 2:
        raise OptionError(f"a sweep needs at least 2 points, got {num}")
    if low < 0 or (geometric and low == 0):
        raise OptionError(f"this sweep needs values above 0, got {low:g}")
    values = np.geomspace(low, high, num) if geometric else np.linspace(low, high, num)
    return [float(f"{value:.9g}") for value in values]
