"""Local search: the optimum of tiny instances, and what holds on any instance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_cases import brute_force, counts, instance, run
from small_cases import load_instances, random_placement, routed, travelling

from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.check import check, objective
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import SolveOptions, Status, Stop
from formulations.planning import plan
from planner.cost.expert_parallel import gpu_load, hottest
from planner.errors import OptionError

SHORT = SolveOptions(time_limit_s=60.0, work_limit=1500)
CURRENT = np.array([[0, 1, 2, 1, 2, 3]])

TINY: dict[str, Callable[[int], ExpertPlacementProblem]] = {
    "even": lambda seed: instance(counts(1, 4, seed=seed), 2, 6),
    "even, three GPUs": lambda seed: instance(counts(1, 4, seed=seed), 3, 6),
    "even, no spare slot": lambda seed: instance(counts(1, 5, seed=seed)[:, [0, 1, 2, 3]], 2, 4),
    "three slots a GPU": lambda seed: instance(counts(1, 5, seed=seed), 3, 9),
    "nearly everything everywhere": lambda seed: instance(counts(1, 4, seed=seed), 3, 9),
    "unequal speeds": lambda seed: instance(counts(1, 4, seed=seed), 3, 6, speed=np.array([1.0, 0.5, 0.7])),
    "scenarios": lambda seed: instance(counts(2, 1, 4, seed=seed), 2, 6, weight=np.array([1.0, 2.0])),
    "lp": lambda seed: instance(counts(1, 5, seed=seed) ** 2, 2, 6, split="lp"),
    "lp, three GPUs": lambda seed: instance(counts(1, 4, seed=seed) ** 2, 3, 6, split="lp"),
    "chain": lambda seed: travelling("chain", routed(4, 2, 1, seed=seed), 4, 2, 4),
    "chain with replicas": lambda seed: travelling("chain", routed(4, 2, 1, seed=seed), 4, 2, 6, 0.3),
    "chain over nodes": lambda seed: travelling("chain", routed(4, 2, 1, seed=seed), 4, 4, 4, 0.2, gpus_per_node=2),
    "fan-out": lambda seed: travelling("fanout", routed(4, 1, 2, seed=seed), 4, 2, 6),
    "fan-out over nodes": lambda seed: travelling("fanout", routed(4, 1, 2, seed=seed), 4, 4, 4, gpus_per_node=2),
    "move cost": lambda seed: instance(counts(1, 4, seed=seed), 2, 6, current=CURRENT, move_cost=0.04),
    "chain and move cost": lambda seed: travelling(
        "chain", routed(4, 2, 1, seed=seed), 4, 2, 6, current=np.repeat(CURRENT, 2, axis=0), move_cost=0.05
    ),
    "groups": lambda seed: instance(counts(1, 4, seed=seed), 4, 8, gpus_per_node=2, num_groups=2, group_spread=1),
    "groups and move cost": lambda seed: instance(
        counts(1, 4, seed=seed),
        4,
        8,
        gpus_per_node=2,
        num_groups=2,
        group_spread=1,
        current=np.array([[2, 3, 2, 3, 0, 1, 0, 1]]) if seed % 2 else np.array([[0, 1, 0, 1, 2, 3, 2, 3]]),
        move_cost=0.2,
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_tiny_instances_reach_the_brute_force_optimum(name: str) -> None:
    for seed in range(3):
        problem = TINY[name](seed)
        best = brute_force(problem)
        outcome = run(problem, "local-search")
        assert outcome.objective is not None
        assert outcome.bound is not None
        assert outcome.objective.total == pytest.approx(best, rel=1e-5), seed
        assert outcome.bound.value <= best * (1 + 1e-6)


@settings(deadline=None, max_examples=40)
@given(problem=load_instances(), split=st.sampled_from(["even", "lp"]))
def test_a_plan_is_valid_bounded_and_no_layer_is_worse_than_eplb(problem: ExpertPlacementProblem, split: str) -> None:
    problem = replace(problem, split=split)  # type: ignore[arg-type]
    document = plan(problem, options=replace(SHORT, work_limit=200))
    assert document.plan is not None
    assert document.verdict is not None
    assert document.verdict.feasible
    assert document.outcome.objective is not None
    assert document.outcome.bound is not None
    assert document.outcome.bound <= document.outcome.objective * (1 + 1e-6)
    found, rule = document.plan.array, problem.placement(eplb(problem)[1])
    if not check(problem, rule):
        assert document.baseline is not None
        assert document.outcome.objective <= document.baseline.objective * (1 + 2e-6)
        price = [
            hottest(gpu_load(problem.load, rows, problem.speed, problem.split), problem.speed)[0]
            for rows in (found, rule.array)
        ]
        assert (price[0] <= price[1] * (1 + 2e-6)).all()


@settings(deadline=None, max_examples=25)
@given(problem=load_instances(scenarios=3), seed=st.integers(0, 2**31 - 1))
def test_scenarios_together_are_no_worse_than_eplb_on_their_sum(problem: ExpertPlacementProblem, seed: int) -> None:
    outcome = run(problem, "local-search", work_limit=200, seed=seed)
    assert outcome.objective is not None
    assert outcome.bound is not None
    assert outcome.bound.value <= outcome.objective.total * (1 + 1e-6)
    rule = problem.placement(eplb(problem)[1])
    if not check(problem, rule):
        assert outcome.objective.total <= objective(problem, rule).total * (1 + 1e-6)


@pytest.mark.parametrize(
    ("experts", "gpus", "slots"), [(4, 3, 9), (4, 3, 12), (3, 8, 16), (5, 4, 16), (6, 4, 20), (7, 3, 18), (9, 5, 40)]
)
@pytest.mark.parametrize("split", ["even", "lp"])
def test_almost_full_replication_still_gives_a_plan(experts: int, gpus: int, slots: int, split: str) -> None:
    for seed in range(3):
        outcome = run(
            instance(counts(2, experts, seed=seed) ** 3, gpus, slots, split=split), "local-search", work_limit=50
        )
        assert outcome.plan is not None


REPEATED = {
    "even": lambda: instance(counts(2, 3, 24), 4, 32),
    "two slots a GPU": lambda: instance(counts(3, 24), 16, 32),
    "lp": lambda: instance(counts(3, 24), 4, 32, split="lp"),
    "chain": lambda: travelling("chain", routed(8, 3, 1), 8, 4, 12),
    "fan-out": lambda: travelling("fanout", routed(8, 2, 3), 8, 4, 12),
    "capped": lambda: instance(
        counts(2, 12), 4, 16, current=random_placement(np.random.default_rng(0), 2, 12, 4, 4), max_moves=5
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_seed_and_work_limit_repeat_the_plan_whatever_the_clock(name: str) -> None:
    problem = REPEATED[name]()
    plans = [run(problem, "local-search", work_limit=700, seed=7, time_limit_s=limit).plan for limit in (120.0, 300.0)]
    assert plans[0] is not None
    assert plans[0] == plans[1]


@pytest.mark.parametrize("name", ["even", "two slots a GPU", "lp"])
def test_doubled_counts_give_the_same_plan(name: str) -> None:
    problem = REPEATED[name]()
    doubled = instance(2.0 * np.asarray(problem.load), problem.num_gpus, problem.num_slots, split=problem.split)
    assert run(problem, "local-search", work_limit=300).plan == run(doubled, "local-search", work_limit=300).plan


def test_renamed_experts_and_gpus_keep_validity_and_bound() -> None:
    load = counts(2, 10)
    order = np.random.default_rng(1).permutation(10)
    bounds = []
    for renamed in (load, load[:, order]):
        outcome = run(instance(renamed, 4, 16), "local-search", work_limit=2000)
        assert outcome.bound is not None
        assert outcome.objective is not None
        assert outcome.objective.total <= outcome.bound.value * 1.1
        bounds.append(float(instance(renamed, 4, 16).mean_gpu_load.sum()))
    assert bounds[0] == pytest.approx(bounds[1])


def test_a_perfect_balance_is_proven() -> None:
    outcome = run(instance(np.ones((2, 8)), 4, 8), "local-search")
    assert (outcome.status, outcome.stop) == (Status.OPTIMAL, Stop.PROOF)
    assert outcome.gap == pytest.approx(0.0, abs=1e-9)


def test_without_time_there_is_still_a_checked_plan() -> None:
    for problem in (instance(counts(3, 64), 8, 80), travelling("chain", routed(8, 3, 1), 8, 4, 12)):
        outcome = run(problem, "local-search", time_limit_s=1e-6)
        assert (outcome.status, outcome.stop) == (Status.FEASIBLE, Stop.TIME_LIMIT)
        assert outcome.objective is not None
        rule = problem.placement(eplb(problem)[1])
        assert outcome.objective.total <= objective(problem, rule).total * (1 + 1e-6)


def test_a_hint_is_never_lost() -> None:
    problem = instance(counts(2, 24), 6, 30)
    good = run(problem, "local-search", work_limit=20_000)
    assert good.plan is not None
    assert good.objective is not None
    again = run(problem, "local-search", hint=good.plan, work_limit=1)
    assert again.objective is not None
    assert again.objective.total <= good.objective.total * (1 + 1e-9)


def test_hints_and_options_that_do_not_fit_are_refused() -> None:
    problem = instance(counts(1, 4), 2, 6)
    shorter = instance(counts(1, 4), 2, 4).placement(np.array([[0, 1, 2, 3]]))
    with pytest.raises(OptionError, match="hint"):
        run(problem, "local-search", hint=shorter)
    stranger = instance(counts(1, 6), 2, 6).placement(np.arange(6)[None])
    with pytest.raises(OptionError, match="hint"):
        run(problem, "local-search", hint=stranger)
    with pytest.raises(OptionError, match="work limit"):
        run(problem, "local-search", work_limit=0.5)
    with pytest.raises(OptionError, match="lp"):
        run(travelling("chain", routed(4, 2, 1), 4, 2, 4, split="lp"), "local-search")


def test_a_current_placement_that_keeps_the_rules_is_never_left_for_a_worse_plan() -> None:
    """Dear moves: staying costs no more than the plan, whichever node the current placement gives each group."""
    for first in (0, 4):
        current = np.roll(np.arange(8), first)[None]
        problem = instance(
            counts(1, 8), 4, 8, gpus_per_node=2, num_groups=2, group_spread=1, current=current, move_cost=0.5
        )
        stay = objective(problem, problem.placement(current)).total
        outcome = run(problem, "local-search", work_limit=2000)
        assert outcome.objective is not None
        assert outcome.objective.total <= stay * (1 + 1e-9)
