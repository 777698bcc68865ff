"""Why no fleet serves the demand, and the smallest change of one kind of limit that would make one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from formulations.backends.linear import solve_linear_mathopt
from formulations.gpu_fleet.milp import FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.outcome import Budget, SolveOptions

#: Seconds for each relaxation: an explanation may be rough, but not slow.
RELAXATION_S = 5.0
#: Slack below this is rounding.
LEAST = 1e-6


def impossible_buckets(problem: FleetProblem) -> list[int]:
    """Buckets with a demand that no configuration serves within the SLO."""
    asked = (problem.rate > 0).any(axis=0)
    return np.flatnonzero(asked & ~(problem.throughput > 0).any(axis=1)).tolist()


def explain(problem: FleetProblem, periods: tuple[int, ...], budget: Budget) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reasons and relaxations of an instance that is proven infeasible."""
    hopeless = impossible_buckets(problem)
    if hopeless:
        reasons = tuple(f"no offer serves {problem.bucket_name(bucket)} within the SLO" for bucket in hopeless)
        ways = ("relax the SLO, profile a larger replica or another GPU for these sizes, or leave them out",)
        return reasons, ways
    limits = tuple(_limits(problem))
    tried = (_relaxed(problem, periods, family, budget) for family in _families(problem))
    found = [text for text in tried if text is not None]
    return limits, tuple(found) or ("no single kind of limit is enough: relax several of them",)


def _families(problem: FleetProblem) -> Iterator[str]:
    if np.isfinite(problem.most).any():
        yield "max_count"
    if np.isfinite(problem.budget_usd_per_hour):
        yield "budget"
    if np.isfinite(problem.max_watts):
        yield "watts"
    if len(problem.quota_gpus):
        yield "quota"
    if problem.max_spot_share < 1.0:
        yield "spot share"
    if problem.max_changes is not None:
        yield "changes"
    yield "demand"


def _limits(problem: FleetProblem) -> Iterator[str]:
    """The limits that together leave no fleet."""
    caps = [
        f"{name} {most:g}" for name, most in zip(problem.offer_names, problem.most, strict=True) if np.isfinite(most)
    ]
    if caps:
        yield f"max_count: {', '.join(caps)}"
    if np.isfinite(problem.budget_usd_per_hour):
        yield f"budget_usd_per_hour {problem.budget_usd_per_hour:g}"
    if np.isfinite(problem.max_watts):
        yield f"max_watts {problem.max_watts:g}"
    yield from (
        f"quota {name}: {most:g} GPUs" for name, most in zip(problem.quota_names, problem.quota_gpus, strict=True)
    )
    if problem.max_spot_share < 1.0:
        yield f"max_spot_share {problem.max_spot_share:g}"
    if problem.max_changes is not None:
        yield f"max_changes {problem.max_changes}"
    if problem.spare_instances:
        yield "spare_instances 1: the loss of any one instance must be survived"
    if problem.headroom:
        yield f"headroom {problem.headroom:.0%}"


def _relaxed(problem: FleetProblem, periods: tuple[int, ...], family: str, budget: Budget) -> str | None:
    """The smallest change of one family that is enough, in words; None when none is, or time is up."""
    if budget.remaining_s <= 0:
        return None
    builder = FleetBuilder(problem, periods, relaxed=family)
    model = builder.build().model
    limit_s = min(RELAXATION_S, budget.remaining_s)
    _, values = solve_linear_mathopt(model, Budget(limit_s), SolveOptions(time_limit_s=limit_s, relative_gap=0.01))
    if values is None:
        return None
    slack = values[builder.slack]
    return _say(problem, periods, family, slack)


def _say(problem: FleetProblem, periods: tuple[int, ...], family: str, slack: FloatArray) -> str | None:
    if family == "max_count":
        more = slack.reshape(-1, problem.num_offers).max(axis=0)
        enough = problem.most + np.ceil(more - LEAST)
        named = [
            f"{problem.offer_names[offer]} from {problem.most[offer]:g} to {enough[offer]:g}"
            for offer in np.flatnonzero(more > LEAST)
        ]
        return f"raise max_count of {', '.join(named)}" if named else None
    most = float(slack.max(initial=0.0))
    if family == "budget":
        limit = problem.budget_usd_per_hour
        return f"raise budget_usd_per_hour from {limit:g} to {limit + most:.4g}"
    if family == "watts":
        return f"raise max_watts from {problem.max_watts:g} to {problem.max_watts + most:.5g}"
    if family == "quota":
        by_quota = slack.reshape(-1, len(problem.quota_gpus)).max(axis=0)
        named = [
            f"{name} from {limit:g} to {limit + np.ceil(more - LEAST):g} GPUs"
            for name, limit, more in zip(problem.quota_names, problem.quota_gpus, by_quota, strict=True)
            if more > LEAST
        ]
        return f"raise the quota {', '.join(named)}" if named else None
    if family == "spot share":
        total = problem.rate[list(periods)].sum(axis=1).max()
        return f"raise max_spot_share from {problem.max_spot_share:.0%} by {most / total:.0%} of the requests"
    if family == "changes":
        return f"raise max_changes from {problem.max_changes} to {(problem.max_changes or 0) + np.ceil(most - LEAST):g}"
    return _unserved(problem, periods, slack)


def _unserved(problem: FleetProblem, periods: tuple[int, ...], slack: FloatArray) -> str | None:
    """The demand that would have to go: the period in which most of it is left."""
    start, worst, named = 0, 0.0, ""
    for period in periods:
        asked = np.flatnonzero(problem.rate[period] > 0)
        left = slack[start : start + asked.size]
        start += asked.size
        share = float(left @ problem.rate[period][asked] / problem.rate[period].sum())
        if share > worst:
            parts = [
                f"{fraction:.0%} of {problem.bucket_name(bucket)}"
                for bucket, fraction in zip(asked.tolist(), left, strict=True)
                if fraction > LEAST
            ]
            worst, named = share, ", ".join(parts)
    return f"leave {worst:.1%} of the requests unserved: {named}" if worst > LEAST else None
