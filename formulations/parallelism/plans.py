"""What some counts of workers are: requests a second, and the plan. No solver."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from formulations.parallelism.problem import BOTH, DECODE, PREFILL, FloatArray, IntArray, ParallelProblem
from planner.parallel_plan import ParallelPlan, Period, Routing, Workers

#: Relative surplus of a worker's time that is rounding.
ROUNDING = 1e-6


def served_per_s(problem: ParallelProblem, counts: IntArray, flows: FloatArray | None = None) -> float:
    """Requests/s of mixed workers, and of prefill and decode workers as far as both sides go.

    flows : requests/s of each size by each type, [M, W], which must fit into the workers' time; without them every
    worker serves all sizes in their shares.
    """
    if flows is None or problem.share is None:
        by_role = [float((problem.rate * counts)[problem.role == role].sum()) for role in (BOTH, PREFILL, DECODE)]
        return by_role[BOTH] + min(by_role[PREFILL], by_role[DECODE])
    both, prefill, decode = (flows[:, problem.role == role].sum(axis=1) for role in (BOTH, PREFILL, DECODE))
    return float(((both + np.minimum(prefill, decode)) / problem.share).min())


def time_used(problem: ParallelProblem, flows: FloatArray) -> FloatArray:
    """Workers of each type that the flows keep busy, [W]; infinite where a type cannot serve what flows to it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(flows > 0, flows / problem.rates, 0.0).sum(axis=0))


def plan_of(problem: ParallelProblem, counts: IntArray, flows: FloatArray | None = None) -> ParallelPlan:
    """The plan that some counts are."""
    workers = workers_of(problem, counts)
    rate = served_per_s(problem, counts, flows)
    asked = rate if problem.target_per_s is None else min(rate, problem.target_per_s)
    gpus = int(counts @ problem.gpus)
    ttft = [one.ttft_s for one in workers if one.role != "decode" and one.ttft_s is not None]
    tpot = [one.tpot_s for one in workers if one.role != "prefill" and one.tpot_s is not None]
    return ParallelPlan(
        workers=workers,
        num_gpus=gpus,
        requests_per_s=rate,
        ttft_s=max(ttft, default=None),
        tpot_s=max(tpot, default=None),
        output_tokens_per_s=asked * problem.mean_output_tokens,
        output_tokens_per_s_per_gpu=asked * problem.mean_output_tokens / gpus,
        **problem.served.model_dump(),
        input_tokens=problem.input_tokens,
        output_tokens=problem.output_tokens,
        gpus_per_node=dict(zip(problem.device_names, problem.node_gpus.tolist(), strict=True)),
        routing=routing_of(problem, flows),
    )


def workers_of(problem: ParallelProblem, counts: IntArray) -> tuple[Workers, ...]:
    """Those that there are some of."""
    return tuple(
        Workers(**problem.workers[w].model_dump(exclude={"count"}), count=int(counts[w]))
        for w in np.flatnonzero(counts).tolist()
    )


def routing_of(problem: ParallelProblem, flows: FloatArray | None) -> tuple[Routing, ...]:
    """Flows [M, W] as rows; none for one size."""
    if flows is None or problem.sizes is None:
        return ()
    return tuple(
        Routing(
            input_tokens=int(problem.sizes[m, 0]),
            output_tokens=int(problem.sizes[m, 1]),
            worker=problem.workers[w].name,
            requests_per_s=float(flows[m, w]),
        )
        for m, w in np.argwhere(flows > 0).tolist()
    )


def period_of(
    problem: ParallelProblem, hours: tuple[int, ...], rate_per_s: float, counts: IntArray, flows: FloatArray | None
) -> Period:
    """What runs in some hours of one rate."""
    return Period(
        hours=hours,
        rate_per_s=rate_per_s,
        workers=workers_of(problem, counts),
        routing=routing_of(problem, flows),
        requests_per_s=served_per_s(problem, counts, flows),
        num_gpus=int(counts @ problem.gpus),
    )


def by_hour(plan: ParallelPlan) -> list[tuple[float | None, tuple[Workers, ...]]]:
    """Rate and workers of every hour in order; of a plan without hours its own, and no rate."""
    if not plan.periods:
        return [(None, plan.workers)]
    found = {hour: (one.rate_per_s, one.workers) for one in plan.periods for hour in one.hours}
    return [found[hour] for hour in sorted(found)]


def started_gpus(problem: ParallelProblem, plan: ParallelPlan) -> int:
    """GPUs of workers that start, over all hours; before the first one only where something runs now."""
    sets = [workers for _, workers in by_hour(plan)]
    if problem.current is not None:
        sets = [problem.current, *sets]
    total = 0
    for before, after in pairwise(sets):
        had = {one.name: one.count for one in before}
        total += sum(max(one.count - had.get(one.name, 0), 0) * one.num_gpus for one in after)
    return total


def worth(problem: ParallelProblem, counts: IntArray, flows: FloatArray | None = None) -> float:
    """What is minimised, of one hour and without changes."""
    if problem.goal == "throughput":
        return -served_per_s(problem, counts, flows)
    return float(counts @ problem.weight())
