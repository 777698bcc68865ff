"""Demand of several sizes, by the hour, and from what runs now: by hand, by brute force, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parallel_cases import METHODS, counts, problem, run, solved, worker

from formulations.parallelism.baseline import best_uniform
from formulations.parallelism.check import check
from formulations.parallelism.kind import judge
from formulations.parallelism.predictions import Predictions
from formulations.parallelism.problem import ParallelProblem
from formulations.parallelism.sizes import blended
from formulations.parallelism.steps import changes
from formulations.planning import load_problem
from formulations.planning import plan as plan_document
from planner.descriptions.parallel import ParallelInstance
from planner.errors import DescriptionError
from planner.files import to_json
from planner.parallel_plan import ParallelPlan, Workers, WorkerType

FOUR, ONE = worker("four", "both", 4, 6.0), worker("one", "both", 1, 1.0)


def sized(
    workers: Sequence[WorkerType],
    rates: Sequence[Sequence[float]],
    share: Sequence[float],
    nodes: tuple[int, int],
    **more: Any,
) -> ParallelProblem:
    """Rates by size and worker; a worker's own rate is that of all sizes in their shares."""
    size_rate, shares = np.array(rates, dtype=np.float64), np.array(share, dtype=np.float64)
    mean = blended(size_rate, shares)
    named = [one.model_copy(update={"requests_per_s": rate}) for one, rate in zip(workers, mean.tolist(), strict=True)]
    sizes = np.array([(1000 * (m + 1), 100) for m in range(len(shares))], dtype=np.int64)
    return problem(named, nodes, size_rate=size_rate, share=shares, sizes=sizes, **more)


def routed(plan: ParallelPlan) -> dict[tuple[int, str], float]:
    return {(one.input_tokens, one.worker): one.requests_per_s for one in plan.routing}


def running(**amounts: int) -> tuple[Workers, ...]:
    known = {"four": FOUR, "one": ONE}
    return tuple(Workers(**known[name].model_dump(), count=count) for name, count in amounts.items())


@pytest.mark.parametrize("method", METHODS)
def test_each_worker_serves_the_size_that_it_is_good_at(method: str) -> None:
    """Two sizes, half of the requests each. a serves 8 short or 2 long ones, b 2 short or 8 long ones a second.

    On two GPUs one of each serves 8 short and 8 long: 16. Without routing each does both in turn: 1 / (.5/8 + .5/2)
    = 3.2, together 6.4.
    """
    both = [worker("a", "both", 1, 1.0), worker("b", "both", 1, 1.0)]
    asked = sized(both, [[8, 2], [2, 8]], [0.5, 0.5], (2, 1))
    plan = solved(asked, method)
    assert counts(plan) == {"a": 1, "b": 1}
    assert plan.requests_per_s == pytest.approx(16.0)
    assert routed(plan) == pytest.approx({(1000, "a"): 8.0, (2000, "b"): 8.0})
    assert plan.output_tokens_per_s == pytest.approx(1600.0)
    rule = best_uniform(asked)
    assert rule is not None
    assert rule.requests_per_s == pytest.approx(6.4)
    assert check(asked, rule) == []


def test_sides_balance_for_each_size() -> None:
    """Three quarters short. Prefill: 12 short or 4 long; decode: 9 short or 9 long.

    1 + 1 worker: prefill 1 / (.75/12 + .25/4) = 8 all in all, decode 9: 8, of which 6 are short and 2 long.
    """
    workers = [worker("p", "prefill", 1, 1.0), worker("d", "decode", 1, 1.0)]
    asked = sized(workers, [[12, 9], [4, 9]], [0.75, 0.25], (2, 1))
    plan = solved(asked)
    assert plan.requests_per_s == pytest.approx(8.0)
    expected = {(1000, "p"): 6.0, (2000, "p"): 2.0, (1000, "d"): 6.0, (2000, "d"): 2.0}
    assert routed(plan) == pytest.approx(expected)


def test_a_worker_that_cannot_serve_long_requests_serves_the_others() -> None:
    """6 requests/s, a third of them long: small serves 4 short ones, large 1 long or 4 short. 1 + 2 GPUs of 1 + 1;
    with large alone 2 / 1 + 4 / 4 = 3 workers."""
    workers = [worker("small", "both", 1, 1.0), worker("large", "both", 1, 1.0)]
    asked = sized(workers, [[4, 4], [0, 1]], [2 / 3, 1 / 3], (4, 1), goal="gpus", target_per_s=6.0)
    plan = solved(asked)
    assert plan.num_gpus == 3
    assert plan.requests_per_s == pytest.approx(6.0)
    lonely = sized(workers[:1], [[4], [0]], [2 / 3, 1 / 3], (4, 1), goal="gpus", target_per_s=6.0)
    outcome = run(lonely)
    assert outcome.status == "infeasible"
    assert "2000/100" in outcome.reasons[0]


@pytest.mark.parametrize("seed", range(8))
def test_one_size_given_as_several_is_one_size(seed: int) -> None:
    """Equal rates for every size: the same optimum as with one."""
    random = np.random.default_rng(seed)
    roles = ("both", "prefill", "decode")
    workers = [
        worker(f"w{k}", roles[k % 3], int(random.integers(1, 4)), float(random.integers(1, 9))) for k in range(6)
    ]  # type: ignore[arg-type]
    alone = problem(workers, (2, 4))
    rates = np.array([one.requests_per_s for one in workers])
    both = sized(workers, [rates, rates, rates], [0.5, 0.3, 0.2], (2, 4))
    assert solved(both).requests_per_s == pytest.approx(solved(alone).requests_per_s)


@pytest.mark.parametrize("seed", range(8))
def test_routing_is_never_below_serving_all_in_turn(seed: int) -> None:
    random = np.random.default_rng(seed)
    roles = ("both", "prefill", "decode")
    workers = [worker(f"w{k}", roles[k % 3], int(random.integers(1, 4)), 1.0) for k in range(6)]  # type: ignore[arg-type]
    rates = random.integers(1, 9, (2, 6)).astype(float)
    share = [0.5, 0.5]
    asked = sized(workers, rates.tolist(), share, (2, 4))
    in_turn = problem(asked.workers, (2, 4))
    plan = solved(asked)
    assert plan.requests_per_s >= solved(in_turn).requests_per_s * (1 - 1e-6)
    assert check(asked, plan) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_for_each_hour(method: str) -> None:
    """6 requests/s: one worker of 4 GPUs. 7: with one of 1 GPU, 5 GPUs. 0: nothing. 2: 2 GPUs. Mean of 6, 7, 0, 2, 6
    requests/s: (4 + 5 + 0 + 2 + 4) / 5 = 3 GPUs."""
    hourly = np.array([6.0, 7.0, 0.0, 2.0, 6.0])
    asked = problem([FOUR, ONE], (1, 8), goal="gpus", target_per_s=7.0, hourly=hourly)
    outcome = run(asked, method)
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.plan is not None
    assert outcome.objective.total == pytest.approx(3.0)
    assert {one.hours: one.num_gpus for one in outcome.plan.periods} == {(0, 4): 4, (1,): 5, (2,): 0, (3,): 2}
    assert (outcome.plan.num_gpus, counts(outcome.plan)) == (5, {"four": 1, "one": 1})
    assert [one.hour for one in outcome.plan.changes] == [1, 2, 3, 4]
    assert all(one.short_per_s == 0 for one in outcome.plan.changes)
    rule = best_uniform(asked)
    assert rule is not None
    assert check(asked, rule) == []


def test_a_price_of_change_keeps_workers_through_a_dip() -> None:
    """6, 2, 6 requests/s: by itself the dip takes 2 GPUs of `one` that start. Keeping `four` costs 2 GPU-hours more;
    starting 2 GPUs and then 4 again costs 6 x 0.5 = 3. So (4 + 4 + 4) / 3 = 4 without changes; at 0.1 each,
    (4 + 2 + 4 + 0.6) / 3."""
    hourly = np.array([6.0, 2.0, 6.0])
    for price, mean in ((0.5, 4.0), (0.1, 10.6 / 3)):
        asked = problem([FOUR, ONE], (1, 8), goal="gpus", target_per_s=6.0, hourly=hourly, change_cost=price)
        outcome = run(asked)
        assert outcome.status == "optimal"
        assert outcome.objective is not None
        assert outcome.objective.total == pytest.approx(mean)
        assert outcome.plan is not None
        assert len(outcome.plan.changes) == (0 if price == 0.5 else 2)


@pytest.mark.parametrize("seed", range(6))
def test_hours_with_a_price_of_change_by_brute_force(seed: int) -> None:
    """Three hours, two types, every count in every hour tried."""
    random = np.random.default_rng(seed)
    workers = [
        worker("a", "both", 1, float(random.integers(1, 4))),
        worker("b", "both", 2, float(random.integers(3, 9))),
    ]
    hourly = random.integers(0, 9, 3).astype(float)
    hourly[random.integers(3)] = 6.0
    price = float(random.choice([0.1, 0.4, 1.0]))
    now = tuple(Workers(**workers[1].model_dump(), count=1) for _ in range(seed % 2))
    asked = problem(
        workers, (1, 6), goal="gpus", target_per_s=float(hourly.max()), hourly=hourly, change_cost=price,
        current=now or None,
    )  # fmt: skip
    rate = np.array([one.requests_per_s for one in workers])
    size = np.array([1, 2])
    sets = [np.array(one) for one in product(range(7), range(4)) if np.array(one) @ size <= 6]
    best = np.inf
    for chosen in product(*([one for one in sets if one @ rate >= need - 1e-9] for need in hourly)):
        started = [np.maximum(after - before, 0) @ size for before, after in pairwise(chosen)]
        if now:
            started.append(np.maximum(chosen[0] - np.array([0, 1]), 0) @ size)
        best = min(best, (sum(one @ size for one in chosen) + price * sum(started)) / 3)
    outcome = run(asked)
    if not np.isfinite(best):
        assert outcome.status == "infeasible"
        return
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(best)


def test_steps_start_before_they_stop_where_there_is_room() -> None:
    """From 4 x one to one four on 8 GPUs (4.4 with its price; a fifth of one would be 5.1): it fits beside them."""
    asked = problem([FOUR, ONE], (1, 8), goal="gpus", target_per_s=5.0, current=running(one=4), change_cost=0.1)
    plan = solved(asked)
    assert counts(plan) == {"four": 1}
    (change,) = plan.changes
    assert [(dict(step.start), dict(step.stop)) for step in change.steps] == [({"four": 1}, {}), ({}, {"one": 4})]
    assert [(step.requests_per_s, step.num_gpus) for step in change.steps] == [(10.0, 8), (6.0, 4)]
    assert change.short_per_s == 0


def test_steps_without_room_stop_what_is_missed_least() -> None:
    """4 GPUs, all taken by 4 x one; four takes them all, so that meanwhile nothing runs and all 6 are short."""
    asked = problem([FOUR, ONE], (1, 4), goal="gpus", target_per_s=6.0, current=running(one=4))
    (change,) = solved(asked).changes
    assert [(dict(step.start), dict(step.stop)) for step in change.steps] == [({}, {"one": 4}), ({"four": 1}, {})]
    assert change.short_per_s == pytest.approx(6.0)
    assert change.started_gpus == 4
    assert change.loaded_bytes is None, "a table does not tell what a worker holds"


def test_a_change_of_sides_keeps_the_scarcer_one_up() -> None:
    """From 2 p1 + 1 d to 1 p2 + 1 d on 5 GPUs, 2 requests/s asked: p1 (1 GPU) serves 2, p2 (2 GPUs) 5, d (2 GPUs) 9.
    One p1 stops, which leaves 2, p2 starts in its place and the free GPU, then the other stops."""
    p1, p2, d = worker("p1", "prefill", 1, 2.0), worker("p2", "prefill", 2, 5.0), worker("d", "decode", 2, 9.0)
    now = tuple(Workers(**one.model_dump(), count=count) for one, count in ((p1, 2), (d, 1)))
    asked = problem([p2, d], (1, 5), goal="gpus", target_per_s=2.0, current=now)
    (change,) = solved(asked).changes
    assert [(dict(step.start), dict(step.stop)) for step in change.steps] == [
        ({}, {"p1": 1}), ({"p2": 1}, {}), ({}, {"p1": 1})
    ]  # fmt: skip
    assert change.short_per_s == 0


def test_check_refuses_broken_hours_and_steps() -> None:
    hourly = np.array([6.0, 2.0])
    asked = problem([FOUR, ONE], (1, 8), goal="gpus", target_per_s=6.0, hourly=hourly)
    plan = solved(asked)
    assert check(asked, plan) == []
    first, second = plan.periods
    (change,) = plan.changes
    strange = Workers(**worker("x", "both", 1, 9.0).model_dump(), count=1)
    fewer = {"workers": second.workers, "requests_per_s": 2.0, "num_gpus": 2}
    crowded = change.steps[0].model_copy(update={"start": {"one": 9}})
    broken: list[tuple[str, dict[str, Any]]] = [
        ("periods", {"periods": (first,)}),
        ("periods", {"periods": (first, second, second)}),
        ("rate", {"periods": (first.model_copy(update={"rate_per_s": 1.0}), second)}),
        ("rate", {"periods": (first.model_copy(update=fewer), second)}),
        ("worker", {"periods": (first.model_copy(update={"workers": (strange,)}), second)}),
        ("num_gpus", {"periods": (first.model_copy(update={"num_gpus": 3}), second)}),
        ("requests_per_s", {"periods": (first.model_copy(update={"requests_per_s": 9.0}), second)}),
        ("changes", {"changes": (change.model_copy(update={"steps": change.steps[:1]}),)}),
        ("changes", {"changes": (change.model_copy(update={"hour": 0}),)}),
        ("changes", {"changes": (change.model_copy(update={"steps": (crowded, *change.steps)}),)}),
    ]
    for rule, update in broken:
        assert rule in {one.rule for one in check(asked, plan.model_copy(update=update))}, (rule, update)


def test_check_refuses_broken_routing() -> None:
    both = [worker("a", "both", 1, 1.0), worker("b", "both", 1, 1.0)]
    asked = sized(both, [[8, 2], [2, 8]], [0.5, 0.5], (2, 1))
    plan = solved(asked)
    way = plan.routing[0]
    for change in ({"requests_per_s": 9.0}, {"worker": "c"}, {"input_tokens": 7}):
        broken = plan.model_copy(update={"routing": (way.model_copy(update=change), *plan.routing[1:])})
        assert "routing" in {one.rule for one in check(asked, broken)}
    alone = problem([FOUR], (1, 8))
    assert "routing" in {one.rule for one in check(alone, solved(alone).model_copy(update={"routing": (way,)}))}


MOE = {
    "name": "case",
    "model": "Qwen/Qwen3-30B-A3B",
    "cluster": {"nodes": [{"device": "h100_sxm", "count": 2, "gpus_per_node": 4}]},
    "slo": {"ttft_s": 2.0, "tpot_s": 0.02},
    "backend": "sglang",
}
LOAD = {"input_tokens": 2000, "output_tokens": 300}


def read(**more: Any) -> ParallelProblem:
    found: ParallelProblem = load_problem(ParallelInstance.model_validate({**MOE, "workload": LOAD, **more}))
    return found


def test_predicted_workers_of_two_sizes_have_the_rates_of_each_alone() -> None:
    """Those of one size, read by itself, are among them: at the same rate, where they keep the limits."""
    long = {"input_tokens": 12_000, "output_tokens": 200}
    asked = read(workload={**LOAD, "others": [{**long, "weight": 0.25}]})
    names = {one.name: w for w, one in enumerate(asked.workers)}
    assert asked.share is not None
    assert asked.share.tolist() == pytest.approx([0.8, 0.2])
    for m, load in enumerate((LOAD, long)):
        alone = read(workload=load)
        # Prefill runs in other steps where several sizes share a worker.
        # The largest batch within the limits is another one for each size.
        common = [w for w, one in enumerate(alone.workers) if one.role != "prefill" and one.name in names]
        kept = [w for w in common if alone.usable[w]]
        assert len(kept) > 20
        for w in kept:
            assert asked.rates[m, names[alone.workers[w].name]] == pytest.approx(alone.rate[w])
    shared = [w for w, one in enumerate(asked.workers) if one.role == "prefill" and (asked.rates[:, w] > 0).all()]
    assert shared, "a prefill worker serves both"
    assert (asked.rates[0, shared] > asked.rates[1, shared]).all(), "and long prompts more slowly"
    plan = solved(asked)
    assert {one.input_tokens for one in plan.routing} == {2000, 12_000}
    assert plan.ttft_s is not None
    assert plan.ttft_s <= 2.0
    verdict = judge(asked, plan)
    assert verdict.feasible


def test_a_plan_in_force_tells_what_is_loaded(tmp_path: Path) -> None:
    """Nothing changes from a plan to itself. To one with less to serve, GPUs that shrink load no dense weights anew,
    and what starts on fresh GPUs loads all of its weights at most."""
    document = plan_document(ParallelInstance.model_validate({**MOE, "workload": LOAD}))
    (tmp_path / "now.json").write_text(to_json(document))
    assert document.plan is not None
    again = read(current=str(tmp_path / "now.json"))
    assert solved(again).changes == ()
    fewer = read(current=str(tmp_path / "now.json"), workload={**LOAD, "rate_per_s": document.plan.requests_per_s / 3})
    plan = solved(fewer)
    (change,) = plan.changes
    assert change.hour == 0
    assert change.loaded_bytes is not None
    assert change.loaded_expert_bytes is not None
    assert change.cache_bytes is not None
    assert 0 <= change.loaded_expert_bytes <= change.loaded_bytes <= 62e9 * change.started_gpus
    assert change.cache_bytes > 0


def test_bytes_that_are_loaded_by_hand() -> None:
    """A worker of 2 GPUs with 10 GB dense and 20 GB of experts on each takes the place of one of 1 GPU with 12 and 40:
    that GPU has all it needs, the fresh one loads 30 GB, of them 20 of experts."""

    class Known(Predictions):
        def weight_parts(self, one: WorkerType) -> tuple[float, float]:
            return {"old": (12e9, 40e9), "new": (10e9, 20e9)}[one.name]

        def model_of(self, one: WorkerType) -> None:
            return None

    old, new = worker("old", "both", 1, 1.0), worker("new", "both", 2, 3.0)
    now = (Workers(**old.model_dump(), count=1),)
    known = Known({}, 1000, 100)
    asked = problem([new], (1, 2), goal="gpus", target_per_s=2.0, current=now, predictions=known)
    (change,) = changes(asked, [(2.0, (Workers(**new.model_dump(), count=1),))])
    assert [(dict(step.start), dict(step.stop)) for step in change.steps] == [({}, {"old": 1}), ({"new": 1}, {})]
    assert (change.loaded_bytes, change.loaded_expert_bytes) == (30e9, 20e9)
    assert change.cache_bytes is None


def test_many_changes_are_ordered_greedily() -> None:
    """Twelve types with twelve workers each are too many sets to look at: every step is possible all the same."""
    old = [worker(f"o{k}", "both", 1, 1.0 + k / 10) for k in range(6)]
    new = [worker(f"n{k}", "both", 1, 1.0 + k / 10) for k in range(6)]
    now = tuple(Workers(**one.model_dump(), count=12) for one in old)
    asked = problem(new, (10, 8), goal="gpus", target_per_s=40.0, current=now)
    (change,) = changes(asked, [(40.0, tuple(Workers(**one.model_dump(), count=12) for one in new))])
    assert change.short_per_s == 0
    assert max(step.num_gpus for step in change.steps) <= 80
    assert change.steps[-1].requests_per_s == pytest.approx(sum(12 * (1.0 + k / 10) for k in range(6)))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"workload": {**LOAD, "hourly": [1.0], "rate_per_s": 1.0}}, "takes the place of rate_per_s"),
        ({"workload": {**LOAD, "hourly": [0.0]}}, "nothing to serve"),
        ({"workload": {**LOAD, "others": [LOAD]}}, "given twice"),
        ({"workload": {**LOAD, "hourly": [1.0]}, "objective": "throughput"}, "no use for workload.hourly"),
        (
            {"workload": {**LOAD, "others": [{**LOAD, "input_tokens": 9}]}, "candidates": "x.csv"},
            "needs the cost model",
        ),
        ({"change_cost": 1.0}, "needs a current plan"),
        ({"current": "missing.json"}, "missing.json"),
    ],
)
def test_contradictions_of_demand_are_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, DescriptionError), match=told):
        read(**more)
