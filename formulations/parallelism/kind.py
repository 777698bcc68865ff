"""Serving plans as a kind of instance: reading, and judging a plan."""

from __future__ import annotations

from formulations.kinds import Kind
from formulations.parallelism.check import check
from formulations.parallelism.formulation import PARALLELISM
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.reading import read_problem
from planner.cost.verdict import Metric, Source, Verdict, Violation
from planner.descriptions.parallel import ParallelInstance
from planner.parallel_plan import ParallelPlan
from planner.plan import ParallelDocument


def judge(problem: ParallelProblem, plan: ParallelPlan) -> Verdict:
    """The rules and limits of a plan, and what limits it."""
    broken = check(problem, plan)
    if any(one.rule == "worker" for one in broken):
        return Verdict(violations=tuple(broken))
    origin: Source = "modelled" if problem.source == "given" else "calibrated"
    slow, fast = _rates_within(plan)
    tokens = plan.output_tokens_per_s / plan.requests_per_s
    within = [None if one is None else one * tokens for one in (slow, fast)]
    metrics = [
        _between("requests_per_s", plan.requests_per_s, "1/s", origin, slow, fast),
        _between("output_tokens_per_s", plan.output_tokens_per_s, "1/s", origin, *within),
        Metric(name="gpus_used", value=plan.num_gpus, unit="count", source=origin),
        Metric(name="gpus_idle", value=problem.num_gpus - plan.num_gpus, unit="count", source=origin),
    ]
    for name, value, limit in (("ttft_s", plan.ttft_s, problem.ttft_s), ("tpot_s", plan.tpot_s, problem.tpot_s)):
        if value is not None:
            metrics.append(_between(name, value, "s", origin, *_latency_within(plan, name)))
            if limit is not None and value > limit:
                message = f"{name} is {value:.4g}, the limit is {limit:g}"
                violation = Violation(rule=f"slo_{name}", subject="plan", message=message, amount=value, limit=limit)
                broken.append(violation)
    metrics += _breakdown(problem, plan)
    sides = {
        role: sum(one.requests_per_s * one.count for one in plan.workers if one.role == role)
        for role in ("prefill", "decode")
    }
    bottleneck = None
    if all(sides.values()):
        scarce = min(sides, key=lambda role: sides[role])
        bottleneck = f"{scarce} workers: {sides['prefill']:.4g} prefill against {sides['decode']:.4g} decode requests/s"
    elif problem.goal == "throughput":
        bottleneck = f"GPUs: {plan.num_gpus} of {problem.num_gpus} are used"
    return Verdict(
        metrics=tuple(metrics), violations=tuple(broken), bottleneck=bottleneck, assumptions=problem.assumptions
    )


def _between(name: str, value: float, unit: str, origin: Source, low: float | None, high: float | None) -> Metric:
    return Metric(name=name, value=value, unit=unit, source=origin, low=low, high=high)


def _latency_within(plan: ParallelPlan, name: str) -> tuple[float | None, float | None]:
    """80 % of measurements of the worst worker's latency; None without predictions."""
    factor = f"{name.removesuffix('_s')}_factor"
    told = [(getattr(one, name), getattr(one, factor)) for one in plan.workers if getattr(one, name) is not None]
    if not told or any(spread is None for _, spread in told):
        return None, None
    return max(value / spread for value, spread in told), max(value * spread for value, spread in told)


def _rates_within(plan: ParallelPlan) -> tuple[float | None, float | None]:
    """Requests/s where all workers are off the same way: prefill by their TTFT's factor, the others by their TPOT's.

    Of several sizes by the largest of these factors: every flow is then at least that share of what was planned.
    """
    spread = [one.ttft_factor if one.role == "prefill" else one.tpot_factor for one in plan.workers]
    if plan.routing:
        most = max((each for each in spread if each is not None), default=1.0)
        return (None, None) if None in spread else (plan.requests_per_s / most, plan.requests_per_s * most)
    served = []
    for sign in (-1.0, 1.0):
        sides = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
        for one, factor in zip(plan.workers, spread, strict=True):
            if factor is None:
                return None, None
            sides[one.role] += one.count * one.requests_per_s * factor**sign
        served.append(sides["both"] + min(sides["prefill"], sides["decode"]))
    return served[0], served[1]


def _breakdown(problem: ParallelProblem, plan: ParallelPlan) -> list[Metric]:
    """Where the time and memory of every predicted worker go, as `time.PART[worker]` and `memory.PART[worker]`."""
    if problem.predictions is None:
        return []
    found = []
    for one in plan.workers:
        for what, unit, parts in (
            ("time", "s", problem.predictions.time_parts(one)),
            ("memory", "bytes", problem.predictions.memory_parts(one)),
        ):
            found += [
                Metric(name=f"{what}.{part}[{one.name}]", value=value, unit=unit, source="calibrated")
                for part, value in parts.items()
                if value
            ]
    return found


def judge_alone(plan: ParallelPlan) -> Verdict:
    """Sums only: limits and packing need the instance."""
    sums = sum(one.num_gpus * one.count for one in plan.workers)
    found: tuple[Violation, ...] = ()
    if sums != plan.num_gpus:
        message = f"the workers have {sums} GPUs, the plan says {plan.num_gpus}"
        found = (Violation(rule="num_gpus", subject="plan", message=message),)
    return Verdict(violations=found, assumptions=("no instance given: limits, packing and rates are not judged",))


KIND: Kind[ParallelInstance, ParallelProblem, ParallelPlan] = Kind(
    name="parallel",
    instance=ParallelInstance,
    document=ParallelDocument,
    formulation=PARALLELISM,
    read=read_problem,
    judge=judge,
    judge_alone=judge_alone,
)
