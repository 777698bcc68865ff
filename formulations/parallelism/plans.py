"""What some counts of workers are: requests a second, and the plan. No solver."""

from __future__ import annotations

import numpy as np

from formulations.parallelism.problem import BOTH, DECODE, PREFILL, IntArray, ParallelProblem
from planner.parallel_plan import ParallelPlan, Workers


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
