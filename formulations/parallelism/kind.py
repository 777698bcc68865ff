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
    metrics = [
        Metric(name="requests_per_s", value=plan.requests_per_s, unit="1/s", source=origin),
        Metric(name="output_tokens_per_s", value=plan.output_tokens_per_s, unit="1/s", source=origin),
        Metric(name="gpus_used", value=plan.num_gpus, unit="count", source=origin),
        Metric(name="gpus_idle", value=problem.num_gpus - plan.num_gpus, unit="count", source=origin),
    ]
    for name, value, limit in (("ttft_s", plan.ttft_s, problem.ttft_s), ("tpot_s", plan.tpot_s, problem.tpot_s)):
        if value is not None:
            metrics.append(Metric(name=name, value=value, unit="s", source=origin))
            if limit is not None and value > limit:
                message = f"{name} is {value:.4g}, the limit is {limit:g}"
                violation = Violation(rule=f"slo_{name}", subject="plan", message=message, amount=value, limit=limit)
                broken.append(violation)
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
