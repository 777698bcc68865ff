"""Infeasible instances say why, and what they tell to change works when it is applied."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from parallel_cases import problem, run, worker

from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner.descriptions.parallel import ParallelInstance


def numbers(text: str) -> list[float]:
    """What each 'to' of a way out says."""
    return [float(found) for found in re.findall(r" to ([0-9][0-9.e+-]*)", text)]


def predicted(**slo: float) -> ParallelProblem:
    cluster = {"nodes": [{"device": "h200_sxm", "count": 1, "gpus_per_node": 4}]}
    load = {"input_tokens": 4000, "output_tokens": 1000}
    model = "meta-llama/Llama-3.1-70B-Instruct"
    found: ParallelProblem = load_problem(
        ParallelInstance.model_validate({"name": "x", "model": model, "cluster": cluster, "workload": load, "slo": slo})
    )
    return found


@pytest.mark.parametrize("method", ["highs", "scip"])
def test_sides_that_do_not_fit_together_are_no_plan(method: str) -> None:
    """A prefill and a decode worker of 8 GPUs each on one node: either fits, both do not."""
    outcome = run(problem([worker("p", "prefill", 8, 1.0), worker("d", "decode", 8, 1.0)], (1, 8)), method)
    assert outcome.status == "infeasible"
    assert outcome.plan is None
    assert outcome.reasons == ("no worker fits",)


def test_nothing_fits() -> None:
    outcome = run(problem([worker("w", "both", 16, 1.0)], (1, 8)))
    assert (outcome.status, outcome.reasons) == ("infeasible", ("no worker fits",))
    assert outcome.relaxations


def test_no_workers_at_all() -> None:
    outcome = run(problem([], (1, 8)))
    assert (outcome.status, outcome.reasons) == ("infeasible", ("there is no worker to choose from",))


def test_a_side_without_workers_is_named() -> None:
    outcome = run(problem([worker("p", "prefill", 1, 1.0)], (1, 8)))
    assert outcome.reasons == ("no decode worker keeps the limits",)


def test_the_highest_rate_that_is_told_can_be_served() -> None:
    """3 x 1.23456789 = 3.70370367: rounded down, or it could not be served."""
    asked = problem([worker("w", "both", 2, 1.23456789)], (1, 6), goal="gpus", target_per_s=5.0)
    outcome = run(asked)
    assert outcome.status == "infeasible"
    (way,) = outcome.relaxations
    (rate,) = numbers(way)
    assert rate == 3.703
    assert run(replace(asked, target_per_s=rate)).status == "optimal"


@pytest.mark.parametrize("slo", [{"ttft_s": 0.01}, {"tpot_s": 0.001}, {"ttft_s": 2.0, "tpot_s": 0.001}])
def test_the_limit_that_is_told_holds_with_the_margin(slo: dict[str, float]) -> None:
    outcome = run(predicted(**slo))
    assert outcome.status == "infeasible"
    (way,) = outcome.relaxations
    name = "ttft_s" if "ttft_s" in way else "tpot_s"
    (limit,) = numbers(way)
    assert run(predicted(**{**slo, name: limit})).status == "optimal"
    assert run(predicted(**{**slo, name: 0.999 * limit})).status == "infeasible"


def test_limits_that_no_worker_keeps_together() -> None:
    """One worker is quick at first tokens, the other at the next: raising either limit to the other's time helps."""
    workers = [
        worker("first", "both", 1, 1.0, ttft_s=0.2, tpot_s=0.050),
        worker("next", "both", 1, 1.0, ttft_s=0.9, tpot_s=0.020),
    ]
    outcome = run(problem(workers, (1, 2), ttft_s=0.5, tpot_s=0.03))
    assert outcome.relaxations == (
        "raise ttft_s from 0.5 to 0.9: no worker is faster",
        "raise tpot_s from 0.03 to 0.05: no worker is faster",
    )
    assert run(problem(workers, (1, 2), ttft_s=0.9, tpot_s=0.03)).status == "optimal"
    assert run(problem(workers, (1, 2), ttft_s=0.5, tpot_s=0.05)).status == "optimal"


def test_both_limits_where_one_alone_does_not_help() -> None:
    one = [worker("slow", "both", 1, 1.0, ttft_s=1.0, tpot_s=0.1)]
    outcome = run(problem(one, (1, 2), ttft_s=0.5, tpot_s=0.03))
    (way,) = outcome.relaxations
    assert numbers(way) == [1.0, 0.1]
    assert run(problem(one, (1, 2), ttft_s=1.0, tpot_s=0.1)).status == "optimal"


def test_a_random_way_out_works() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        workers = [
            worker(f"w{index}", "both", 1, 1.0, ttft_s=ttft_s, tpot_s=ttft_s * float(random.uniform(0.02, 0.2)))
            for index, ttft_s in enumerate(random.uniform(0.1, 1.0, 4).tolist())
        ]  # fmt: skip
        limits = {"ttft_s": float(random.uniform(0.05, 0.5)), "tpot_s": float(random.uniform(0.005, 0.05))}
        outcome = run(problem(workers, (1, 2), **limits))
        if outcome.status == "optimal":
            continue
        for way in outcome.relaxations:
            names = re.findall(r"(ttft_s|tpot_s)", way)
            changed = dict(zip(names, numbers(way), strict=True))
            assert run(problem(workers, (1, 2), **{**limits, **changed})).status == "optimal"
