"""Plans that can be found with pencil and paper."""

from __future__ import annotations

import pytest
from parallel_cases import best, counts, problem, run, solved, worker

METHODS = ("highs", "scip", "cbc")


@pytest.mark.parametrize("method", METHODS)
def test_mixed_workers_only(method: str) -> None:
    """8 GPUs: 2 of 4 GPUs serve 2 x 5 = 10, 4 of 2 GPUs only 4 x 2 = 8 requests/s; 100 output tokens each."""
    plan = solved(problem([worker("large", "both", 4, 5.0), worker("small", "both", 2, 2.0)], (1, 8)), method)
    assert counts(plan) == {"large": 2}
    assert (plan.num_gpus, plan.requests_per_s) == (8, 10.0)
    assert plan.output_tokens_per_s == 1000.0
    assert plan.output_tokens_per_s_per_gpu == 125.0
    assert (plan.ttft_s, plan.tpot_s) == (0.5, 0.02)


@pytest.mark.parametrize("method", METHODS)
def test_prefill_and_decode_beat_mixed_workers(method: str) -> None:
    """8 GPUs: 3 prefill of 1 GPU (3 x 4 = 12) and 1 decode of 4 (11) serve min(12, 11) = 11 on 7 GPUs; mixed 2 x 5."""
    workers = [worker("mixed", "both", 4, 5.0), worker("p", "prefill", 1, 4.0), worker("d", "decode", 4, 11.0)]
    plan = solved(problem(workers, (1, 8)), method)
    assert counts(plan) == {"p": 3, "d": 1}
    assert plan.requests_per_s == pytest.approx(11.0)
    assert plan.num_gpus == 7


def test_a_mixture_beats_both() -> None:
    """12 GPUs: 1 P (4) + 1 D (4) serve 8, and a mixed worker (4) 3: 11. Three mixed serve 9; two P and a D still 8."""
    workers = [worker("mixed", "both", 4, 3.0), worker("p", "prefill", 4, 8.0), worker("d", "decode", 4, 8.0)]
    plan = solved(problem(workers, (3, 4)))
    assert counts(plan) == {"mixed": 1, "p": 1, "d": 1}
    assert plan.requests_per_s == pytest.approx(11.0)
    assert best(problem(workers[:1], (3, 4))) == pytest.approx(-9.0)
    assert best(problem(workers[1:], (3, 4))) == pytest.approx(-8.0)


@pytest.mark.parametrize("method", METHODS)
def test_workers_do_not_straddle_nodes(method: str) -> None:
    """Sizes 3 and 5 on 3 nodes of 8: pairs 5 + 3 fill a node. Of size 5 alone 3 fit, of size 3 alone 6.

    At 5.0 and 3.1 requests/s a node holds 5 + 3 (8.1) or 3 + 3 (6.2): 3 x 8.1 = 24.3. Volume alone would allow
    8 of size 3 (24 of 24 GPUs, 24.8).
    """
    workers = [worker("five", "both", 5, 5.0), worker("three", "both", 3, 3.1)]
    plan = solved(problem(workers, (3, 8)), method)
    assert counts(plan) == {"five": 3, "three": 3}
    assert plan.requests_per_s == pytest.approx(24.3)
    assert best(problem(workers[1:], (3, 8)), method) == pytest.approx(-6 * 3.1)


def test_room_is_left_where_sizes_do_not_divide_the_node() -> None:
    """Nodes of 6: one worker of 4 and one of 2 fill it; two of 4 do not fit on 8 of 12 GPUs left in pieces.

    2 nodes: 2 x (4 at 6/s + 2 at 1/s) = 14; three workers of 4 (12 GPUs by volume) would be 18.
    """
    workers = [worker("four", "both", 4, 6.0), worker("two", "both", 2, 1.0)]
    plan = solved(problem(workers, (2, 6)))
    assert counts(plan) == {"four": 2, "two": 2}
    assert plan.requests_per_s == pytest.approx(14.0)


def test_workers_larger_than_a_node_take_whole_nodes() -> None:
    """5 nodes of 8: a worker of 16 takes two nodes (20/s), one of 12 two as well (9/s), one of 8 a node (7/s).

    2 x 16 GPUs + 1 x 8 GPUs: 47. Five of 8 GPUs: 35.
    """
    workers = [worker("two", "both", 16, 20.0), worker("half", "both", 12, 9.0), worker("one", "both", 8, 7.0)]
    plan = solved(problem(workers, (5, 8)))
    assert counts(plan) == {"two": 2, "one": 1}
    assert plan.requests_per_s == pytest.approx(47.0)
    small = [workers[1], worker("four", "both", 4, 1.0)]
    # The 4 GPUs that the worker of 12 leaves in its second node are not given away: 2 x 9 + 2 x 1, on the fifth node.
    assert best(problem(small, (5, 8))) == pytest.approx(-20.0)


def test_two_device_kinds_share_the_sides() -> None:
    """Prefill on 4 H100 (1 GPU, 3/s each), decode on 4 L40S (2 GPUs, 5/s each): min(12, 10) = 10.

    With H100 alone: 2 P (6) + 1 D of 2 GPUs (6): 6.
    """
    workers = [
        worker("p", "prefill", 1, 3.0),
        worker("d", "decode", 2, 6.0),
        worker("slow d", "decode", 2, 5.0, device="l40s"),
    ]
    both = problem(workers, {"h100_sxm": (1, 4), "l40s": (1, 4)})
    plan = solved(both)
    assert plan.requests_per_s == pytest.approx(10.0)
    assert counts(plan) == {"p": 4, "slow d": 2}
    assert best(problem(workers[:2], (1, 4))) == pytest.approx(-6.0)


@pytest.mark.parametrize("method", METHODS)
def test_fewest_gpus_at_a_rate(method: str) -> None:
    """11 requests/s from workers of 4 GPUs (6/s) and 1 GPU (1/s): 4 + 4 = 8 GPUs (12/s); 4 + 5 x 1 = 9 GPUs."""
    workers = [worker("four", "both", 4, 6.0), worker("one", "both", 1, 1.0)]
    asked = problem(workers, (2, 8), goal="gpus", target_per_s=11.0)
    plan = solved(asked, method)
    assert counts(plan) == {"four": 2}
    assert plan.num_gpus == 8
    # What is served is what is asked, not what there is room for.
    assert plan.requests_per_s == pytest.approx(12.0)
    assert plan.output_tokens_per_s == pytest.approx(1100.0)
    # 7 requests/s: 4 + 1 GPUs.
    assert best(problem(workers, (2, 8), goal="gpus", target_per_s=7.0), method) == 5


@pytest.mark.parametrize("method", METHODS)
def test_least_cost_takes_more_gpus_where_they_are_cheaper(method: str) -> None:
    """6 requests/s: one H100 worker (2 GPUs at 4 USD = 8) or three L40S workers (6 GPUs at 1 USD = 6)."""
    workers = [worker("h", "both", 2, 6.0), worker("l", "both", 2, 2.0, device="l40s")]
    kinds, prices = {"h100_sxm": (1, 8), "l40s": (1, 8)}, {"h100_sxm": 4.0, "l40s": 1.0}
    cheap = problem(workers, kinds, prices=prices, goal="cost", target_per_s=6.0)
    outcome = run(cheap, method)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(6.0)
    assert counts(outcome.plan) == {"l": 3}
    assert outcome.objective.measures["usd_per_hour"] == pytest.approx(6.0)
    assert best(problem(workers, kinds, goal="gpus", target_per_s=6.0), method) == 2


def test_no_more_workers_than_may_be() -> None:
    """Eight of 1 GPU serve 8 x 1.5 = 12, one of 8 GPUs 9: with two workers at most 1 x 4 GPUs twice, 2 x 5 = 10."""
    workers = [worker("one", "both", 1, 1.5), worker("four", "both", 4, 5.0), worker("eight", "both", 8, 9.0)]
    assert best(problem(workers, (1, 8))) == pytest.approx(-12.0)
    assert best(problem(workers, (1, 8), max_workers=2)) == pytest.approx(-10.0)
    assert best(problem(workers, (1, 8), max_workers=1)) == pytest.approx(-9.0)


def test_as_much_on_fewer_gpus_is_the_second_goal() -> None:
    """Prefill is the bound: 1 P of 4 GPUs serves 5. Decode of 2 GPUs serves 6, of 4 GPUs 7: the smaller is enough."""
    workers = [
        worker("p", "prefill", 4, 5.0),
        worker("d4", "decode", 4, 7.0),
        worker("d2", "decode", 2, 6.0),
    ]
    plan = solved(problem(workers, (1, 8), max_workers=2))
    assert counts(plan) == {"p": 1, "d2": 1}
    assert plan.num_gpus == 6


def test_workers_without_a_rate_are_never_chosen() -> None:
    plan = solved(problem([worker("none", "both", 1, 0.0), worker("some", "both", 8, 1.0)], (1, 8)))
    assert counts(plan) == {"some": 1}


def test_small_rates_are_kept_as_exactly_as_large_ones() -> None:
    """3 workers of 0.0009999 serve 0.0029997: less than 0.003, so four are needed."""
    asked = problem([worker("slow", "both", 1, 0.0009999)], (1, 8), goal="gpus", target_per_s=0.003)
    assert best(asked) == 4
    fast = problem([worker("fast", "both", 1, 9.999e5)], (1, 8), goal="gpus", target_per_s=3e6)
    assert best(fast) == 4


def test_runners_up_are_the_best_plans_without_a_chosen_worker() -> None:
    """Without the worker of 4 GPUs: 8 / 2 x 2 = 8 requests/s."""
    plan = solved(problem([worker("large", "both", 4, 5.0), worker("small", "both", 2, 2.0)], (1, 8)))
    (other,) = plan.runners_up
    assert other.why.startswith("the best without large")
    assert (other.requests_per_s, other.num_gpus) == (8.0, 8)
    assert [(one.name, one.count) for one in other.workers] == [("small", 4)]


def test_the_frontier_tells_each_role_without_dominated_workers() -> None:
    """Per GPU: large 1.25, small 1.0 but on fewer GPUs; same is as large as large and worse."""
    workers = [worker("large", "both", 4, 5.0), worker("same", "both", 4, 4.5), worker("small", "both", 2, 2.0)]
    plan = solved(problem(workers, (1, 8)))
    assert [(one.name, one.requests_per_s_per_gpu) for one in plan.pareto] == [("large", 1.25), ("small", 1.0)]
