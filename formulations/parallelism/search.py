"""Solve for the workers, name the next best plans, and say what is in the way when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil, floor, log10

import numpy as np

from formulations.backends.result import SolverResult
from formulations.outcome import Bound, Budget, PartBudget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.insight import reliefs, runners_up, tradeoffs
from formulations.parallelism.milp import build
from formulations.parallelism.pareto import frontier
from formulations.parallelism.plans import plan_of, served_per_s
from formulations.parallelism.problem import BOTH, DECODE, PREFILL, IntArray, ParallelProblem
from formulations.parallelism.solving import QUICK_S, counts_of, quick, solve_model
from planner.parallel_plan import ParallelPlan

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
    started = time.perf_counter()
    built = build(problem)
    build_s = time.perf_counter() - started
    result, values = solve_model(built.model, budget, options, method)
    if result.status is Status.INFEASIBLE:
        return _none(problem, result, build_s, _short(problem))
    if values is None:
        return _none(problem, result, build_s, ())
    counts = counts_of(built, values)
    if served_per_s(problem, counts) <= 0:
        return _none(problem, replace(result, status=Status.INFEASIBLE, stop=Stop.PROOF), build_s, ("no worker fits",))
    counts = _fewest_gpus(problem, counts, budget)
    aside = PartBudget(budget, min(ASIDE_S, budget.remaining_s))
    told = {
        "runners_up": runners_up(problem, counts, aside),
        "reliefs": reliefs(problem, counts, aside),
        "tradeoffs": tradeoffs(problem, aside),
        "pareto": frontier(problem),
    }
    return SearchResult(
        status=result.status,
        stop=result.stop,
        plan=plan_of(problem, counts).model_copy(update=told),
        solver=result.solver,
        solver_version=result.solver_version,
        claimed=result.objective,
        bound=None if result.bound is None else Bound(value=result.bound, name="branch and bound over all counts"),
        build_s=build_s,
    )


def _fewest_gpus(problem: ParallelProblem, counts: IntArray, budget: Budget) -> IntArray:
    """As much throughput on fewer GPUs, where there are any to spare: the second goal after the first."""
    served = served_per_s(problem, counts)
    if problem.goal != "throughput":
        return counts
    fewer = quick(replace(problem, goal="gpus", target_per_s=served * (1.0 - SAME)), budget)
    if fewer is None or served_per_s(problem, fewer) < served * (1.0 - SAME):
        return counts
    return fewer if fewer @ problem.gpus < counts @ problem.gpus else counts


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
    roles = set(problem.role[problem.usable & (problem.rate > 0)].tolist())
    if BOTH in roles or {PREFILL, DECODE} <= roles:
        return ()
    missing = "prefill" if DECODE in roles else "decode" if PREFILL in roles else "mixed, prefill or decode"
    return (f"no {missing} worker keeps the limits", *problem.dropped)


def _short(problem: ParallelProblem) -> tuple[str, ...]:
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
    free = replace(problem, goal="throughput", target_per_s=None)
    counts = quick(free, Budget(QUICK_S))
    return 0.0 if counts is None else served_per_s(free, counts)
