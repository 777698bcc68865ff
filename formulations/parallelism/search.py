"""Solve for the workers, name the next best plans, and say what is in the way when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil, floor, log10

import numpy as np

from formulations.backends.result import SolverResult
from formulations.outcome import Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.hours import Hours, solve_hours
from formulations.parallelism.insight import reliefs, runners_up, tradeoffs
from formulations.parallelism.pareto import frontier
from formulations.parallelism.plans import by_hour, period_of, plan_of, served_per_s
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, ParallelProblem
from formulations.parallelism.solving import QUICK_S, Choice, quick
from formulations.parallelism.steps import changes
from planner.parallel_plan import ParallelPlan, Period

#: Seconds for all that is told beside the plan.
ASIDE_S = 4.0
#: Relative difference of two throughputs that are the same.
SAME = 1e-9


def search(problem: ParallelProblem, options: SolveOptions, budget: Budget, method: str) -> SearchResult[ParallelPlan]:
    """The best counts with the solver's bound; infeasible with what would have to change."""
    hopeless = _hopeless(problem)
    if hopeless:
        return SearchResult(
            status=Status.INFEASIBLE, stop=Stop.PROOF, plan=None, solver="none", solver_version="-", reasons=hopeless,
            relaxations=ways_out(problem),
        )  # fmt: skip
    hours = solve_hours(problem, budget, options, method)
    result = hours.result
    if hours.choices is None:
        return _none(problem, result, hours.build_s, _short(problem) if result.status is Status.INFEASIBLE else ())
    choice = _fewest_gpus(problem, hours.choices[hours.peak], budget)
    bound = None if result.bound is None else Bound(value=result.bound, name="branch and bound over all counts")
    started_s = time.perf_counter()
    plan = _plan(problem, hours, choice, budget)
    return SearchResult(
        status=result.status,
        stop=result.stop,
        plan=plan,
        solver=result.solver,
        solver_version=result.solver_version,
        claimed=result.objective,
        bound=bound,
        build_s=hours.build_s,
        aside_s=time.perf_counter() - started_s,
    )


def _plan(problem: ParallelProblem, hours: Hours, choice: Choice, budget: Budget) -> ParallelPlan:
    """The plan of the hour that asks for most, the others, the changes between them, and what is told beside it."""
    alone = problem if problem.target_per_s is None else problem.at(problem.target_per_s)
    aside = PartBudget(budget, min(ASIDE_S, budget.remaining_s))
    # Where changes have a price the chosen workers need not be the best of their hour.
    beside = (quick(alone, aside) if problem.change_cost else None) or choice
    told = {
        "runners_up": runners_up(alone, beside[0], aside),
        "reliefs": reliefs(alone, beside, aside),
        "tradeoffs": tradeoffs(alone, aside),
        "pareto": frontier(problem),
    }
    plan = plan_of(alone, *choice).model_copy(update=told)
    plan = plan.model_copy(update={"periods": _periods(problem, hours)})
    return plan.model_copy(update={"changes": changes(problem, by_hour(plan))})


def _periods(problem: ParallelProblem, hours: Hours) -> tuple[Period, ...]:
    """Hours of one rate and the same workers together; none where the demand is not by the hour."""
    if problem.hourly is None or hours.choices is None:
        return ()
    alike: dict[tuple[float | None, bytes], list[int]] = {}
    for hour, (rate, (counts, _)) in enumerate(zip(hours.rates, hours.choices, strict=True)):
        alike.setdefault((rate, counts.tobytes()), []).append(hour)
    return tuple(
        period_of(problem, tuple(members), rate or 0.0, *hours.choices[members[0]])
        for (rate, _), members in alike.items()
    )


def _fewest_gpus(problem: ParallelProblem, choice: Choice, budget: Budget) -> Choice:
    """As much throughput on fewer GPUs, where there are any to spare: the second goal after the first."""
    served = served_per_s(problem, *choice)
    if problem.goal != "throughput":
        return choice
    fewer = quick(replace(problem, goal="gpus", target_per_s=served * (1.0 - SAME)), budget)
    if fewer is None or served_per_s(problem, *fewer) < served * (1.0 - SAME):
        return choice
    return fewer if fewer[0] @ problem.gpus < choice[0] @ problem.gpus else choice


def _none(
    problem: ParallelProblem, result: SolverResult, build_s: float, reasons: tuple[str, ...]
) -> SearchResult[ParallelPlan]:
    """No plan: proven with reasons, or not found in time."""
    proven = result.status is Status.INFEASIBLE
    return SearchResult(
        status=Status.INFEASIBLE if proven else Status.UNKNOWN,
        stop=Stop.PROOF if proven else result.stop,
        plan=None,
        solver=result.solver,
        solver_version=result.solver_version,
        build_s=build_s,
        reasons=reasons,
        relaxations=ways_out(problem) if proven else (),
    )


def _hopeless(problem: ParallelProblem) -> tuple[str, ...]:
    """Reasons that need no solver: nothing keeps the limits."""
    if not problem.workers:
        return problem.dropped or ("there is no worker to choose from",)
    by_size = [set(problem.role[problem.usable & (rate > 0)].tolist()) for rate in problem.rates]
    short = [m for m, roles in enumerate(by_size) if BOTH not in roles and not {PREFILL, DECODE} <= roles]
    if not short:
        return ()
    roles = by_size[short[0]]
    if problem.sizes is not None:
        told = ", ".join(f"{problem.sizes[m, 0]}/{problem.sizes[m, 1]}" for m in short)
        return (f"no worker keeps the limits for requests of {told} tokens", *problem.dropped)
    missing = "prefill" if DECODE in roles else "decode" if PREFILL in roles else "mixed, prefill or decode"
    return (f"no {missing} worker keeps the limits", *problem.dropped)


def _short(problem: ParallelProblem) -> tuple[str, ...]:
    if problem.target_per_s is None:
        return ("no worker fits",)
    return (
        f"{problem.target_per_s:g} requests/s cannot be served on the {problem.num_gpus} GPUs of the cluster",
        *problem.dropped,
    )


def ways_out(problem: ParallelProblem) -> tuple[str, ...]:
    """The smallest change of one limit that gives a plan, or of both where one alone does not."""
    ways = [*problem.relaxations, *_looser(problem)]
    if problem.target_per_s is not None and problem.usable.any():
        most = _most_throughput(problem)
        if 0 < most < problem.target_per_s:
            ways.append(f"lower rate_per_s from {problem.target_per_s:g} to {_rounded(most, floor):.4g}, or add nodes")
    return tuple(ways) or ("add nodes or GPUs with more memory, relax the SLO, or narrow the weights",)


def _looser(problem: ParallelProblem) -> list[str]:
    """Limits at which some mixed worker, or a prefill and a decode worker, keep them; none where some do already."""
    good = problem.rate > 0
    ttft, tpot = problem.counted.T
    limits = problem.ttft_s or np.inf, problem.tpot_s or np.inf
    both, prefill, decode = (np.flatnonzero(good & (problem.role == role)) for role in (BOTH, PREFILL, DECODE))
    # TTFT and TPOT of each mixed worker, and of the fastest prefill worker beside the fastest decode worker.
    pairs = list(zip(ttft[both].tolist(), tpot[both].tolist(), strict=True))
    if prefill.size and decode.size:
        pairs.append((float(ttft[prefill].min()), float(tpot[decode].min())))
    if not pairs or any(one[0] <= limits[0] and one[1] <= limits[1] for one in pairs):
        return []
    ways = []
    for side, name in enumerate(("ttft_s", "tpot_s")):
        least = min((one[side] for one in pairs if one[1 - side] <= limits[1 - side]), default=None)
        if least is not None:
            ways.append(f"raise {name} from {limits[side]:g} to {_rounded(least, ceil):.4g}: no worker is faster")
    if not ways:
        near = min(pairs, key=lambda one: max(one[0] / limits[0], one[1] / limits[1]))
        told = (
            f"{name} to {_rounded(value, ceil):.4g}" for name, value in zip(("ttft_s", "tpot_s"), near, strict=True)
        )
        ways.append(f"raise {' and '.join(told)}: no worker keeps either limit")
    return ways


def _rounded(value: float, way: Callable[[float], int]) -> float:
    """Four digits, up or down, so that the value that is told works."""
    scale = 10.0 ** (3 - floor(log10(value)))
    return way(value * scale) / scale


def _most_throughput(problem: ParallelProblem) -> float:
    free = replace(problem.at(0.0), goal="throughput", target_per_s=None)
    choice = quick(free, Budget(QUICK_S))
    return 0.0 if choice is None else served_per_s(free, *choice)
