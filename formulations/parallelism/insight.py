"""What is told beside the best plan: the next best ones, what a little more of each limit brings, and the frontier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from formulations.outcome import Budget
from formulations.parallelism.margins import RELAXED
from formulations.parallelism.plans import plan_of, worth
from formulations.parallelism.problem import PREFILL, IntArray, ParallelProblem
from formulations.parallelism.solving import Choice, quick
from planner.parallel_plan import Alternative, Relief, Tradeoff

#: Plans that are told beside the best.
RUNNERS_UP = 2
#: Limits on TPOT that the frontier of plans is looked for at.
POINTS = 8
#: Relative difference of two objectives that are the same.
SAME = 1e-6


def runners_up(problem: ParallelProblem, best: IntArray, budget: Budget) -> tuple[Alternative, ...]:
    """The best plans without the worker types that take most GPUs in the chosen one, each left out alone."""
    found = []
    order = sorted(np.flatnonzero(best).tolist(), key=lambda w: -best[w] * problem.gpus[w])
    for left_out in order[:RUNNERS_UP]:
        choice = quick(problem, budget, frozenset({left_out}))
        if choice is not None:
            plan = plan_of(problem, *choice)
            found.append(
                Alternative(
                    workers=plan.workers,
                    requests_per_s=plan.requests_per_s,
                    num_gpus=plan.num_gpus,
                    why=f"the best without {problem.workers[left_out].name}{_instead(problem, left_out, choice[0])}",
                )
            )
    return tuple(found)


def _instead(problem: ParallelProblem, left_out: int, counts: IntArray) -> str:
    """What the plan does without: rate a GPU of the worker left out and of the best of its role that is used."""
    if problem.share is not None:
        return ""
    per_gpu = problem.rate / problem.gpus
    others = np.flatnonzero((counts > 0) & (problem.role == problem.role[left_out]))
    if not others.size:
        return f", with no other {problem.workers[left_out].role} worker"
    best = int(others[np.argmax(per_gpu[others])])
    return (
        f" ({per_gpu[left_out]:.4g} requests/s a GPU, limited by its size or number; {problem.workers[best].name}"
        f" makes {per_gpu[best]:.4g})"
        if per_gpu[best] > per_gpu[left_out]
        else f" ({per_gpu[left_out]:.4g} requests/s a GPU against {per_gpu[best]:.4g} of {problem.workers[best].name})"
    )


def reliefs(problem: ParallelProblem, best: Choice, budget: Budget) -> tuple[Relief, ...]:
    """The objective with a little more of each limit, one at a time, most gain first; left out where time is up."""
    now = worth(problem, *best)
    found = []
    for limit, before, after, relaxed in _relaxed(problem):
        choice = quick(relaxed, budget)
        if choice is not None:
            then = min(worth(relaxed, *choice), now)
            gains = now - then if now - then > SAME * abs(now) else 0.0
            found.append(Relief(limit=limit, now=before, relaxed=after, objective=then, gains=gains))
    return tuple(sorted(found, key=lambda one: -one.gains))


def _relaxed(problem: ParallelProblem) -> Iterator[tuple[str, float, float, ParallelProblem]]:
    """Each limit with its value, a looser one, and the problem under that."""
    for device, name in enumerate(problem.device_names):
        nodes = problem.nodes.copy()
        nodes[device] += 1
        yield f"nodes of {name}", int(nodes[device]) - 1, int(nodes[device]), replace(problem, nodes=nodes)
    # Of several sizes each has its own latencies, and the rates hold only those within the limits as they are.
    ttft, tpot = (problem.ttft_s, problem.tpot_s) if problem.share is None else (None, None)
    looser = 1.0 + RELAXED
    if ttft is not None:
        usable = problem.usable | problem.within(ttft * looser, tpot)
        yield "ttft_s", ttft, ttft * looser, replace(problem, usable=usable, ttft_s=ttft * looser)
    if tpot is not None:
        usable = problem.usable | problem.within(ttft, tpot * looser)
        yield "tpot_s", tpot, tpot * looser, replace(problem, usable=usable, tpot_s=tpot * looser)
    if problem.max_workers is not None:
        more = problem.max_workers + 1
        yield "max_workers", problem.max_workers, more, replace(problem, max_workers=more)
    if problem.target_per_s is not None:
        lower = problem.target_per_s * (1.0 - RELAXED)
        yield "rate_per_s", problem.target_per_s, lower, replace(problem, target_per_s=lower)


def tradeoffs(problem: ParallelProblem, budget: Budget) -> tuple[Tradeoff, ...]:
    """The best plan at each of several limits on TPOT, from the fastest worker's to the slowest's; dominated ones left
    out: a slower one makes more of each GPU, or at a rate takes less."""
    tpot = problem.counted[:, 1]
    there = tpot[problem.usable & (problem.rates > 0).any(axis=0) & (problem.role != PREFILL) & (tpot > 0)]
    if not there.size:
        return ()
    found: list[tuple[float, Tradeoff]] = []
    for limit in np.unique(np.geomspace(there.min(), there.max(), POINTS)).tolist():
        # The workers' own values, so that rounding of the limit rules none out.
        limit = float(there[there <= limit * (1.0 + SAME)].max())
        choice = quick(replace(problem, usable=problem.usable & problem.within(problem.ttft_s, limit)), budget)
        if choice is None:
            continue
        reached = worth(problem, *choice)
        if found and reached >= found[-1][0] - SAME * abs(reached):
            continue
        plan = plan_of(problem, *choice)
        point = Tradeoff(
            tpot_s=plan.tpot_s or 0.0,
            ttft_s=plan.ttft_s,
            requests_per_s=plan.requests_per_s,
            num_gpus=plan.num_gpus,
            output_tokens_per_s_per_gpu=plan.output_tokens_per_s_per_gpu,
            workers={one.name: one.count for one in plan.workers},
        )
        found.append((reached, point))
    return tuple(point for _, point in found)
