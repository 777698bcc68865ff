"""Why no fleet serves the demand, and the smallest change of one kind of limit that would make one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from formulations.backends.linear import solve_linear_mathopt
from formulations.gpu_fleet.milp import MOST_INSTANCES, FleetBuilder
from formulations.gpu_fleet.problem import FleetProblem, FloatArray
from formulations.gpu_fleet.stages import servable
from formulations.outcome import Budget, SolveOptions, Status

#: Seconds for each relaxation: an explanation may be rough, but not slow.
RELAXATION_S = 5.0
#: A relaxation is at most this share larger than the smallest one.
RELAXATION_GAP = 0.01
#: Slack below this is rounding.
LEAST = 1e-6

Groups = Sequence[tuple[int, ...]]


class Tried(NamedTuple):
    """A way out in words, None where it leads nowhere; `proven` is False where the time was too short to know."""

    text: str | None
    proven: bool


def impossible_buckets(problem: FleetProblem) -> list[int]:
    """Buckets with a demand that no configuration serves within the SLO."""
    hopeless: list[int] = np.flatnonzero((problem.rate > 0).any(axis=0) & ~servable(problem)).tolist()
    return hopeless


def explain(problem: FleetProblem, groups: Groups, budget: Budget) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reasons and relaxations of an instance that is proven infeasible; a relaxation holds for all groups of periods.

    groups : periods that are solved together.
    """
    hopeless = [] if problem.leave_unserved else impossible_buckets(problem)
    if hopeless:
        able = set(np.flatnonzero((problem.throughput > 0).any(axis=1)).tolist())
        reasons = tuple(
            f"no offer serves {problem.bucket_name(bucket)} within the SLO"
            if bucket not in able
            else f"no joined offers serve all stages of {problem.bucket_name(bucket)} within the SLO"
            for bucket in hopeless
        )
        ways = ("relax the SLO, profile a larger replica or another GPU for these sizes, or leave them out",)
        return reasons, ways
    limits = tuple(_limits(problem)) or (f"more than {MOST_INSTANCES:g} instances of an offer are needed",)
    tried = [_relaxed(problem, groups, family, budget) for family in _families(problem)]
    tried += [_without(changed, groups, text, budget) for changed, text in _switches(problem)]
    found = tuple(one.text for one in tried if one.text is not None)
    if found:
        return limits, found
    if all(one.proven for one in tried):
        return limits, ("no single kind of limit is enough: relax several of them",)
    return limits, ("no single kind of limit was found to be enough in the time given",)


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
    if problem.max_moves is not None:
        yield "moves"
    if problem.max_starts is not None:
        yield "starts"
    if problem.max_stops is not None:
        yield "stops"
    if not problem.leave_unserved:
        yield "demand"


def _switches(problem: FleetProblem) -> Iterator[tuple[FleetProblem, str]]:
    """What can be given up as a whole."""
    if problem.spare_instances:
        yield replace(problem, spare_instances=0), "set spare_instances to 0"
    if problem.zone_names:
        yield replace(problem, zone_names=(), zone_of_pool=None), "set spare_zones to 0"
    if problem.headroom:
        yield replace(problem, headroom=0.0), "set headroom to 0"
    if problem.config_role.any() and (limited := limited_links(problem)):
        free = np.where(problem.link_bytes_per_s > 0, np.inf, 0.0)
        none = np.full(problem.network_bytes_per_s.size, np.inf)
        changed = replace(problem, link_bytes_per_s=free, network_bytes_per_s=none)
        yield changed, f"raise the bandwidth of {limited}"
    if problem.burst is not None:
        yield replace(problem, burst=None), "leave out `burst` of the demand"
    if problem.slack is not None:
        yield replace(problem, slack=None), "leave out pool_slack"
    if problem.watt_margin:
        yield replace(problem, watt_margin=0.0), "set the margin of power to 0"
    if problem.min_replicas.any():
        yield replace(problem, min_replicas=np.zeros_like(problem.min_replicas)), "leave out min_replicas"
    if problem.least.any():
        yield replace(problem, least=np.zeros_like(problem.least)), "leave out min_count"


def _limits(problem: FleetProblem) -> Iterator[str]:
    """The limits that together leave no fleet."""
    for label, values, wanted in (
        ("max_count", problem.most, np.isfinite(problem.most)),
        ("min_count", problem.least, problem.least > 0),
    ):
        named = [
            f"{name} {value:g}" for name, value, use in zip(problem.offer_names, values, wanted, strict=True) if use
        ]
        if named:
            yield f"{label}: {', '.join(named)}"
    if np.isfinite(problem.budget_usd_per_hour):
        yield f"budget_usd_per_hour {problem.budget_usd_per_hour:g}"
    if np.isfinite(problem.max_watts):
        yield f"max_watts {problem.max_watts:g}"
    yield from (
        f"quota {name}: {most:g} GPUs" for name, most in zip(problem.quota_names, problem.quota_gpus, strict=True)
    )
    if problem.max_spot_share < 1.0:
        yield f"max_spot_share {problem.max_spot_share:g}"
    if problem.config_role.any() and limited_links(problem):
        yield f"bandwidth of {limited_links(problem)}"
    for label, most in (
        ("max_changes", problem.max_changes), ("max_moves", problem.max_moves),
        ("max_starts", problem.max_starts), ("max_stops", problem.max_stops),
    ):  # fmt: skip
        if most is not None:
            yield f"{label} {most}"
    if problem.spare_instances:
        yield "spare_instances 1: the loss of any one instance must be survived"
    if problem.zone_names:
        yield f"spare_zones 1: the loss of any one of {', '.join(problem.zone_names)} must be survived"
    if problem.headroom:
        yield f"headroom {problem.headroom:.0%}"
    if problem.burst is not None:
        yield f"burst: up to {np.nanmax(problem.burst):g} times the rate"
    if problem.slack is not None:
        yield "pool_slack: small pools of replicas are not filled"
    kept = [f"{name} {n}" for name, n in zip(problem.model_names, problem.min_replicas, strict=True) if n]
    if kept:
        yield f"min_replicas: {', '.join(kept)}"


def limited_links(problem: FleetProblem) -> str:
    """Which bandwidths have a limit, in words; empty for none."""
    links = np.isfinite(problem.link_bytes_per_s) & (problem.link_bytes_per_s > 0)
    named = [f"{problem.site_names[s]} to {problem.site_names[r]}" for s, r in zip(*np.nonzero(links), strict=True)]
    pools = np.isfinite(problem.network_bytes_per_s)[problem.pool_of_offer]
    return ", ".join([*named, *(name for name, own in zip(problem.offer_names, pools, strict=True) if own)])


def _solve(builder: FleetBuilder, budget: Budget) -> tuple[Status, FloatArray | None]:
    limit_s = min(RELAXATION_S, budget.remaining_s)
    if limit_s <= 0:
        return Status.UNKNOWN, None
    options = SolveOptions(time_limit_s=limit_s, relative_gap=RELAXATION_GAP)
    result, values = solve_linear_mathopt(builder.build().model, Budget(limit_s), options)
    return result.status, values


def _without(changed: FleetProblem, groups: Groups, text: str, budget: Budget) -> Tried:
    """Whether the changed instance has a fleet."""
    for group in groups:
        status, values = _solve(FleetBuilder(changed, group, unserved=changed.leave_unserved), budget)
        if values is None:
            return Tried(None, status is Status.INFEASIBLE)
    return Tried(text, True)


def _relaxed(problem: FleetProblem, groups: Groups, family: str, budget: Budget) -> Tried:
    """A small change of one family that is enough, in words."""
    slacks = []
    for group in groups:
        builder = FleetBuilder(problem, group, family, problem.leave_unserved)
        status, values = _solve(builder, budget)
        if values is None:
            return Tried(None, status is Status.INFEASIBLE)
        slacks.append(values[builder.slack])
    return Tried(_say(problem, groups, family, slacks), True)


def _say(problem: FleetProblem, groups: Groups, family: str, slacks: list[FloatArray]) -> str | None:
    """The limit that the neediest period asks for."""
    if family == "demand":
        return _unserved(problem, groups, slacks)
    slack = np.concatenate(slacks)
    if family == "max_count":
        more = slack.reshape(-1, problem.num_offers).max(axis=0)
        return _raised("max_count of", problem.offer_names, problem.most, more, "")
    if family == "quota":
        more = slack.reshape(-1, len(problem.quota_gpus)).max(axis=0)
        return _raised("the quota", problem.quota_names, problem.quota_gpus, more, " GPUs")
    if family == "spot share":
        share = problem.max_spot_share + float(slack.max(initial=0.0))
        return f"raise max_spot_share from {problem.max_spot_share:g} to {min(1.0, _rounded_up(share)):g}"
    most = float(slack.max(initial=0.0))
    if family == "budget":
        now = problem.budget_usd_per_hour
        return f"raise budget_usd_per_hour from {now:g} to {_rounded_up(now + most):.10g}"
    if family == "watts":
        return f"raise max_watts from {problem.max_watts:g} to {_rounded_up(problem.max_watts + most):.10g}"
    limits = {"changes": problem.max_changes, "moves": problem.max_moves}
    now = (limits | {"starts": problem.max_starts, "stops": problem.max_stops})[family] or 0
    return f"raise max_{family} from {now} to {now + math.ceil(most - LEAST)}"


def _raised(what: str, names: Sequence[str], limits: FloatArray, more: FloatArray, unit: str) -> str | None:
    named = [
        f"{name} from {limit:g} to {limit + math.ceil(extra - LEAST):g}{unit}"
        for name, limit, extra in zip(names, limits, more, strict=True)
        if extra > LEAST
    ]
    return f"raise {what} {', '.join(named)}" if named else None


def _rounded_up(value: float) -> float:
    """To four digits, upwards: a limit that was rounded down would not be enough."""
    if value <= 0:
        return 0.0
    digit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return math.ceil(value / digit - LEAST) * digit


def _unserved(problem: FleetProblem, groups: Groups, slacks: list[FloatArray]) -> str | None:
    """The demand that would have to go: the period in which most of it is left, the loss of an instance included."""
    worst, named = 0.0, ""
    for group, slack in zip(groups, slacks, strict=True):
        asked = [np.flatnonzero(problem.rate[period] > 0) for period in group]
        # Of each period its buckets, once for all instances and once for each loss.
        cases = slack.size // max(1, sum(buckets.size for buckets in asked))
        start = 0
        for period, buckets in zip(group, asked, strict=True):
            rate = problem.rate[period][buckets]
            for left in slack[start : start + cases * buckets.size].reshape(cases, buckets.size):
                share = float(left @ rate) / max(float(rate.sum()), 1e-300)
                if share > worst:
                    worst = share
                    named = ", ".join(
                        f"{fraction:.0%} of {problem.bucket_name(bucket)}"
                        for bucket, fraction in zip(buckets.tolist(), left, strict=True)
                        if fraction > LEAST
                    )
            start += cases * buckets.size
    return f"leave {worst:.1%} of the requests unserved: {named}" if worst > LEAST else None
