"""Solve for the workers, name the next best plans, and say what is in the way when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil, floor, log10

import numpy as np

from formulations.backends.linear import FloatArray, LinearModel, solve_linear_mathopt, solve_linear_pulp
from formulations.backends.result import SolverResult, as_integer
from formulations.outcome import Bound, Budget, SearchResult, SolveOptions, Status, Stop
from formulations.parallelism.milp import BOTH, DECODE, PREFILL, ParallelModel, build
from formulations.parallelism.pareto import frontier
from formulations.parallelism.problem import IntArray, ParallelProblem
from planner.parallel_plan import Alternative, ParallelPlan, Workers

#: Plans that are told beside the best, and seconds for each.
RUNNERS_UP, RUNNER_UP_S = 2, 2.0
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
    result, values = _solve(built.model, budget, options, method)
    if result.status is Status.INFEASIBLE:
        return _none(problem, result, build_s, _short(problem))
    if values is None:
        return _none(problem, result, build_s, ())
    counts = _counts(built, values)
    if served_per_s(problem, counts) <= 0:
        return _none(problem, replace(result, status=Status.INFEASIBLE, stop=Stop.PROOF), build_s, ("no worker fits",))
    counts = _fewest_gpus(problem, counts, budget)
    runners = _runners_up(problem, counts, budget)
    return SearchResult(
        status=result.status,
        stop=result.stop,
        plan=plan_of(problem, counts).model_copy(update={"runners_up": runners, "pareto": frontier(problem)}),
        solver=result.solver,
        solver_version=result.solver_version,
        claimed=result.objective,
        bound=None if result.bound is None else Bound(value=result.bound, name="branch and bound over all counts"),
        build_s=build_s,
    )


def _fewest_gpus(problem: ParallelProblem, counts: IntArray, budget: Budget) -> IntArray:
    """As much throughput on fewer GPUs, where there are any to spare: the second goal after the first."""
    limit_s = min(RUNNER_UP_S, budget.remaining_s)
    served = served_per_s(problem, counts)
    if problem.goal != "throughput" or limit_s <= 0:
        return counts
    lean = replace(problem, goal="gpus", target_per_s=served * (1.0 - SAME))
    built = build(lean)
    _, values = _solve(built.model, Budget(limit_s), SolveOptions(time_limit_s=limit_s), "highs")
    if values is None:
        return counts
    fewer = _counts(built, values)
    same = served_per_s(problem, fewer) >= served * (1.0 - SAME)
    return fewer if same and fewer @ problem.gpus < counts @ problem.gpus else counts


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


def _solve(
    model: LinearModel, budget: Budget, options: SolveOptions, method: str
) -> tuple[SolverResult, FloatArray | None]:
    if method == "cbc":
        return solve_linear_pulp(model, budget, options)
    return solve_linear_mathopt(model, budget, options, solver=method)


def _counts(built: ParallelModel, values: FloatArray) -> IntArray:
    counts = np.zeros(built.counts.size, dtype=np.int64)
    inside = built.counts >= 0
    counts[inside] = [as_integer(value, 1e-5) for value in values[built.counts[inside]]]
    return counts


def served_per_s(problem: ParallelProblem, counts: IntArray) -> float:
    """Requests/s of mixed workers, and of prefill and decode workers as far as both sides go."""
    by_role = [float((problem.rate * counts)[problem.role == role].sum()) for role in (BOTH, PREFILL, DECODE)]
    return by_role[BOTH] + min(by_role[PREFILL], by_role[DECODE])


def plan_of(problem: ParallelProblem, counts: IntArray) -> ParallelPlan:
    """The plan that some counts are."""
    used = np.flatnonzero(counts)
    workers = tuple(
        Workers(**problem.workers[w].model_dump(exclude={"count"}), count=int(counts[w])) for w in used.tolist()
    )
    rate = served_per_s(problem, counts)
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
        output_tokens_per_s=asked * problem.output_tokens,
        output_tokens_per_s_per_gpu=asked * problem.output_tokens / gpus,
        **problem.served.model_dump(),
        input_tokens=problem.input_tokens,
        output_tokens=problem.output_tokens,
        gpus_per_node=dict(zip(problem.device_names, problem.node_gpus.tolist(), strict=True)),
    )


def _runners_up(problem: ParallelProblem, best: IntArray, budget: Budget) -> tuple[Alternative, ...]:
    """The best plans without the worker types that take most GPUs in the chosen one, each left out alone."""
    found = []
    order = sorted(np.flatnonzero(best).tolist(), key=lambda w: -best[w] * problem.gpus[w])
    for left_out in order[:RUNNERS_UP]:
        limit_s = min(RUNNER_UP_S, budget.remaining_s)
        if limit_s <= 0:
            break
        built = build(problem, without=frozenset({left_out}))
        _, values = _solve(built.model, Budget(limit_s), SolveOptions(time_limit_s=limit_s), "highs")
        if values is None:
            continue
        counts = _counts(built, values)
        if served_per_s(problem, counts) <= 0:
            continue
        plan = plan_of(problem, counts)
        found.append(
            Alternative(
                workers=plan.workers,
                requests_per_s=plan.requests_per_s,
                num_gpus=plan.num_gpus,
                why=f"the best without {problem.workers[left_out].name}",
            )
        )
    return tuple(found)


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
    loose, good = 1.0 + problem.margin, problem.rate > 0
    ttft, tpot = (
        loose * np.array([getattr(one, name) or 0.0 for one in problem.workers]) for name in ("ttft_s", "tpot_s")
    )
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
    built = build(free)
    _, values = _solve(built.model, Budget(RUNNER_UP_S), SolveOptions(time_limit_s=RUNNER_UP_S), "highs")
    return 0.0 if values is None else served_per_s(free, _counts(built, values))
