"""What is told beside the best plan: intervals, where time and memory go, reliefs, the frontier of plans, joules."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from parallel_cases import best, brute_force, problem, run, solved, worker

from formulations.parallelism.kind import judge
from formulations.parallelism.milp import candidates
from formulations.parallelism.problem import ParallelProblem
from formulations.planning import load_problem
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError
from planner.parallel_plan import ParallelPlan, WorkerType

TWO = [worker("large", "both", 4, 5.0, tpot_s=0.02), worker("small", "both", 2, 2.0, tpot_s=0.01)]


def read(**more: Any) -> ParallelProblem:
    cluster = {"nodes": [{"device": "h100_sxm", "count": 1, "gpus_per_node": 4}]}
    load = {"input_tokens": 2000, "output_tokens": 300}
    given = {"name": "case", "model": "Qwen/Qwen3-30B-A3B", "cluster": cluster, "workload": load, **more}
    found: ParallelProblem = load_problem(ParallelInstance.model_validate(given))
    return found


def test_a_node_more_and_a_looser_limit_are_worth_what_they_bring() -> None:
    """One node of 8: 2 x 5 = 10, with a second 20. At a limit of 0.0195 s only small is left: 4 x 2 = 8; 10 % more
    lets large in: 10. A limit on TTFT of 9 s binds nothing."""
    plan = solved(problem(TWO, (1, 8)))
    assert {one.limit: one.gains for one in plan.reliefs} == pytest.approx({"nodes of h100_sxm": 10.0})
    plan = solved(problem(TWO, (1, 8), tpot_s=0.0195, ttft_s=9.0))
    gains = {one.limit: one.gains for one in plan.reliefs}
    assert gains == pytest.approx({"nodes of h100_sxm": 8.0, "tpot_s": 2.0, "ttft_s": 0.0})
    assert [one.gains for one in plan.reliefs] == sorted(gains.values(), reverse=True)


def test_at_a_rate_less_of_it_and_more_workers_are_reliefs_too() -> None:
    """10 requests/s by at most two workers: 2 large, 8 GPUs. 9 requests/s take 2 large as well, but with three
    workers allowed still 8 GPUs. Of 7.5, 10 % less is 6.75: one large and one small, 6 GPUs instead of 8."""
    plan = solved(problem(TWO, (1, 8), goal="gpus", target_per_s=10.0, max_workers=2))
    assert {one.limit for one in plan.reliefs} == {"nodes of h100_sxm", "max_workers", "rate_per_s"}
    assert not any(one.gains for one in plan.reliefs)
    plan = solved(problem(TWO, (1, 8), goal="gpus", target_per_s=7.5))
    assert {one.limit: one.gains for one in plan.reliefs if one.gains} == {"rate_per_s": 2.0}


def test_the_frontier_of_plans_trades_speed_for_throughput() -> None:
    """At 0.01 s only small: 4 x 2 = 8 on 8 GPUs; at 0.02 s large: 10."""
    plan = solved(problem(TWO, (1, 8)))
    told = [(one.tpot_s, one.requests_per_s, one.workers) for one in plan.tradeoffs]
    assert told == [(0.01, 8.0, {"small": 4}), (0.02, 10.0, {"large": 2})]
    assert [one.output_tokens_per_s_per_gpu for one in plan.tradeoffs] == [100.0, 125.0]


def test_a_runner_up_says_why_it_lost() -> None:
    """Per GPU large makes 5 / 4, small 2 / 2; a lone prefill worker has no other to take its place."""
    (other,) = solved(problem(TWO, (1, 8))).runners_up
    assert other.why == "the best without large (1.25 requests/s a GPU against 1 of small)"
    pair = [worker("p", "prefill", 1, 4.0), worker("d", "decode", 4, 11.0), worker("mixed", "both", 4, 3.0)]
    told = [one.why for one in solved(problem(pair, (1, 8))).runners_up]
    assert "the best without p, with no other prefill worker" in told


def test_joules_prefer_the_frugal_worker_even_on_more_gpus() -> None:
    """6 requests/s: one fast worker, 2 GPUs at 1400 W, or three slow ones, 6 GPUs at 3 x 300 = 900 W."""
    workers = [worker("fast", "both", 2, 6.0, watts=1400.0), worker("slow", "both", 2, 2.0, watts=300.0)]
    frugal = problem(workers, (1, 8), goal="joules", target_per_s=6.0)
    outcome = run(frugal)
    assert outcome.objective is not None
    assert outcome.plan is not None
    assert outcome.objective.total == pytest.approx(900.0)
    assert outcome.objective.measures["joules_per_output_token"] == pytest.approx(900.0 / 600.0)
    assert brute_force(frugal) == pytest.approx(900.0)
    assert best(problem(workers, (1, 8), goal="gpus", target_per_s=6.0)) == 2


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("goal", ["throughput", "joules"])
def test_slower_workers_of_a_size_are_left_out_and_nothing_is_lost(seed: int, goal: str) -> None:
    """Many types of few sizes: those that are kept reach what all of them do, by trying every count."""
    random = np.random.default_rng(seed)
    roles = ("both", "prefill", "decode")
    workers = [
        worker(
            f"w{k}",
            roles[k % 3],
            int(random.choice([1, 2])),
            float(random.integers(1, 9)),
            watts=float(random.integers(1, 9)),
        )  # type: ignore[arg-type]
        for k in range(9)
    ]
    asked = problem(workers, (1, 3), goal=goal, target_per_s=None if goal == "throughput" else 2.0)
    kept = candidates(asked)
    assert len(kept) < len(workers)
    expected = brute_force(asked)
    if expected is None:
        assert run(asked).status == "infeasible"
    else:
        assert best(asked) == pytest.approx(expected)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_a_confidence_takes_the_margin_from_the_predictions_own_spread(confidence: float) -> None:
    """90 % of measurements lie below the prediction times its factor, half of them below the prediction itself."""
    asked = read(slo={"ttft_s": 1.0, "tpot_s": 0.02}, slo_confidence=confidence)
    power = NormalDist().inv_cdf(confidence) / NormalDist().inv_cdf(0.9)

    def kept(one: WorkerType) -> bool:
        late = one.ttft_s is not None and one.ttft_s * (one.ttft_factor or 0.0) ** power > 1.0
        return not late and (one.tpot_s is None or one.tpot_s * (one.tpot_factor or 0.0) ** power <= 0.02)

    assert asked.usable.tolist() == [kept(one) for one in asked.workers]
    assert asked.usable.any()
    assert not asked.usable.all()
    assert all((one.ttft_factor is None) == (one.role == "decode") for one in asked.workers)


def test_more_confidence_never_serves_more() -> None:
    rates = [-best(read(slo={"tpot_s": 0.012, "ttft_s": 2.0}, slo_confidence=share)) for share in (0.5, 0.8, 0.95)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_a_plan_tells_intervals_and_where_time_and_memory_go() -> None:
    """Parts add up to the latency of their worker, and to the memory of its GPU."""
    asked = read()
    plan = solved(asked)
    verdict = judge(asked, plan)
    found = {one.name: one for one in verdict.metrics}
    for name in ("ttft_s", "tpot_s", "requests_per_s", "output_tokens_per_s"):
        metric = found[name]
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low < metric.value < metric.high
    for one in plan.workers:
        time = [v.value for name, v in found.items() if name.startswith("time.") and name.endswith(f"[{one.name}]")]
        assert sum(time) == pytest.approx(one.ttft_s if one.role == "prefill" else one.tpot_s)
        memory = [v.value for name, v in found.items() if name.startswith("memory.") and name.endswith(f"[{one.name}]")]
        assert 70e9 < sum(memory) < 90e9
        assert min(memory) >= 0
        assert one.watts is not None
        assert 0.12 * 700 * one.num_gpus <= one.watts <= 700 * one.num_gpus


def test_given_workers_have_no_intervals() -> None:
    asked = problem(TWO, (1, 8))
    plan: ParallelPlan = solved(asked)
    assert all(one.low is None and one.high is None for one in judge(asked, plan).metrics)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"slo_confidence": 0.9, "margin": 0.1}, "takes the place of margin"),
        ({"slo_confidence": 0.9, "candidates": "x.csv"}, "is for predictions"),
        ({"slo_confidence": 1.0}, "less than 1"),
        ({"objective": "joules"}, "joules needs workload.rate_per_s"),
    ],
)
def test_contradictions_are_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, DescriptionError), match=told):
        read(**more)
