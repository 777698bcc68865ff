"""Slack of small pools, and bursts of sizes and hours: by hand, by trying all counts, and broken plans."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fleet_cases import (
    best,
    brute_force,
    cost,
    counts,
    demand,
    fleet,
    offers,
    problem,
    profile,
    random_problem,
    room,
    run,
)
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from formulations.gpu_fleet import search as search_module
from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.pools import capacity, replicas_for, slack_of
from planner.request_trace import poisson_quantiles

BETA = st.floats(0.0, 5.0)
#: z = 1.6449 at 95 %; with w = 1 s (one request a second) and 2.7055 s, beta = 1.
UNIT = {"window_s": 1.6448536269514722**2, "quantile": 0.95}


@given(beta=BETA, replicas=st.integers(1, 5000))
def test_the_rule_is_near_square_root_staffing_and_never_above(beta: float, replicas: int) -> None:
    """Exact at powers of two, and at most 6 % of a replica's pool below between them."""
    exact = replicas + beta**2 / 2 - beta * math.sqrt(replicas + beta**2 / 4)
    held = capacity(beta, replicas)
    assert held <= exact * (1 + 1e-9) + 1e-12
    assert held >= exact - 0.06 * replicas
    if replicas.bit_count() == 1:
        assert held == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert held == pytest.approx(room(beta, replicas), rel=1e-7, abs=1e-7)


@given(beta=BETA, one=st.integers(1, 300), other=st.integers(1, 300))
def test_pools_together_carry_no_less(beta: float, one: int, other: int) -> None:
    assert capacity(beta, one + other) >= capacity(beta, one) + capacity(beta, other) - 1e-9


@given(beta=BETA, load=st.floats(0.001, 2000))
def test_the_fewest_replicas_of_a_load(beta: float, load: float) -> None:
    count = replicas_for(beta, load)
    assert capacity(beta, count) >= load * (1 - 1e-8)
    assert capacity(beta, count - 1) < load
    assert replicas_for(beta, 0.0) == 0


@pytest.mark.parametrize("quantile", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("replicas", [1, 2, 5, 16, 60])
def test_independent_arrivals_stay_within_a_pool(quantile: float, replicas: int) -> None:
    """Replicas of 2/s, windows of 30 s: the Poisson quantile of the allowed load's windows is what n replicas do.

    A Poisson count's upper quantile is above the normal one by some tenths of a request, here of 60 n.
    """
    beta = float(slack_of(np.array([[2.0]]), np.array([7.0]), 30.0, quantile)[0])
    load = capacity(beta, replicas)
    seen = float(poisson_quantiles(load * 2.0 * 30.0, (quantile,))[0]) * load
    assert seen <= replicas * 1.02


def test_a_small_pool_is_filled_less() -> None:
    """beta = 1: one replica may carry a with a + sqrt(a) = 1: 0.382; two 1.0; four 2.438."""
    rows, served = offers(a=1.0), {"a": 1.0}
    assert cost(rows, 0.38, served, pool_slack=UNIT) == pytest.approx(1.0)
    assert cost(rows, 0.39, served, pool_slack=UNIT) == pytest.approx(2.0)
    assert cost(rows, 1.0, served, pool_slack=UNIT) == pytest.approx(2.0)
    assert cost(rows, 2.43, served, pool_slack=UNIT) == pytest.approx(4.0)
    assert cost(rows, 2.45, served, pool_slack=UNIT) == pytest.approx(5.0)


def test_slack_favours_one_pool() -> None:
    """3.9/s: two of each, 3.8. With slack 2.43/s take 4 a: two of each would hold 1.0 + 1.0."""
    rows = offers(a={"price": 1.0}, b={"price": 0.9, "max_count": 2})
    assert cost(rows, 3.9, {"a": 1.0, "b": 1.0}) == pytest.approx(3.8)
    assert cost(rows, 2.43, {"a": 1.0, "b": 1.0}, pool_slack=UNIT) == pytest.approx(4.0)


def test_headroom_counts_before_slack() -> None:
    """1/s and twice that to be ready for: 2 replicas of load, and 2 + sqrt(2) = 3.41: 4 of them."""
    assert cost(offers(a=1.0), 1.0, {"a": 1.0}, headroom=1.0, pool_slack=UNIT) == pytest.approx(4.0)


def test_a_burst_stands_instead_of_headroom() -> None:
    """2/s three times over and 1/s with 50 %: 6 + 1.5 = 7.5: 8 instances."""
    bursty = {**demand(2.0), "burst": 3.0}
    calm = demand(1.0, input_tokens=7)
    served = [profile("a", 1.0), profile("a", 1.0, input_tokens=7)]
    assert cost(offers(a=1.0), [bursty, calm], served, headroom=0.5) == pytest.approx(8.0)


def test_hours_have_bursts_of_their_own() -> None:
    """2/s in both hours, once with 1.5 and once with 3 times that: 3 and 6 instances; 4.5 on average."""
    rows = [{**demand([2.0, 2.0]), "burst": [1.5, 3.0]}]
    made = problem(offers(a=1.0), rows, [profile("a", 1.0)])
    assert made.num_periods == 2
    assert best(made) == pytest.approx(4.5)
    same = problem(offers(a=1.0), [{**demand([2.0, 2.0]), "burst": [1.5, 1.5]}], [profile("a", 1.0)])
    assert same.num_periods == 1


def test_bursts_are_one_for_each_hour() -> None:
    for burst in ([1.5], [1.5, 2.0, 2.5], 0.5):
        with pytest.raises(ValidationError, match="burst"):
            fleet(offers(a=1.0), [{**demand([2.0, 2.0]), "burst": burst}], [profile("a", 1.0)])


def bursty(seed: int, zones: int = 0) -> Any:
    """A random fleet with slack, and bursts in half of its rates."""
    made = random_problem(seed, zones=zones, pool_slack={"window_s": 1.0, "quantile": 0.8})
    rng = np.random.default_rng(seed)
    burst = np.where(rng.random(made.rate.shape) < 0.5, rng.uniform(1, 2, made.rate.shape), np.nan)
    return made if np.isnan(burst).all() else replace(made, burst=burst)


@pytest.mark.parametrize("method", ["highs", "scip", "cbc"])
@pytest.mark.parametrize("seed", [300, 302, 303, 305, 306, 307, 309, 310])
def test_every_backend_finds_what_trying_all_counts_finds(seed: int, method: str) -> None:
    made = bursty(seed, zones=2 * (seed % 2))
    outcome, truth = run(made, method), brute_force(made)
    if math.isinf(truth):
        assert outcome.status == "infeasible"
        return
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    assert outcome.objective.total == pytest.approx(truth, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("seed", range(320, 330))
def test_less_slack_never_costs_more(seed: int) -> None:
    made = bursty(seed)
    assert made.slack is not None
    costs = [
        math.inf if found.objective is None else found.objective.total
        for found in (run(replace(made, slack=slack), "scip") for slack in (None, made.slack / 2, made.slack))
    ]
    assert costs[0] <= costs[1] + 1e-6
    assert costs[1] <= costs[2] + 1e-6


@pytest.mark.parametrize("alike", [True, False])
def test_hours_apart_have_the_optimum_of_one_model(alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    first = rng.uniform(0.3, 3.0, 8).round(2)
    second = first * 0.5 if alike else rng.uniform(0.3, 3.0, 8).round(2)
    rows = offers(a={"price": 1.0}, b={"price": 0.7, "market": "reserved"})
    asked = [demand(first.tolist()), demand(second.tolist(), input_tokens=7)]
    served = [
        profile("a", 1.0),
        profile("b", 1.2),
        profile("a", 2.0, input_tokens=7),
        profile("b", 1.7, input_tokens=7),
    ]
    made = problem(rows, asked, served, pool_slack={"window_s": 4.0})
    apart = run(made)
    assert apart.bound is not None
    assert apart.bound.name.startswith("hours apart")
    monkeypatch.setattr(search_module, "MANY_PERIODS", 1000)
    whole = run(made)
    assert apart.objective is not None
    assert whole.objective is not None
    assert apart.objective.total == pytest.approx(whole.objective.total)
    assert apart.bound.value == pytest.approx(whole.objective.total, rel=1e-5)


def test_broken_plans_are_found() -> None:
    """A plan made without slack or bursts breaks them, and has a message that names the pool."""
    free = problem(offers(a=1.0), 3.0, {"a": 1.0})
    plan = run(free).plan
    assert plan is not None
    assert counts(plan) == {"a": 3}
    slack = problem(offers(a=1.0), 3.0, {"a": 1.0}, pool_slack=UNIT)
    (found,) = check(slack, plan)
    assert found.rule == "pool_slack"
    assert found.amount == pytest.approx(3.0)
    assert found.limit == pytest.approx(capacity(1.0, 3))
    burst = problem(offers(a=1.0), [{**demand(3.0), "burst": 1.4}], [profile("a", 1.0)])
    assert {one.rule for one in check(burst, plan)} == {"capacity"}


def test_too_small_for_slack_is_explained() -> None:
    rows = offers(a={"price": 1.0, "max_count": 3})
    outcome = run(problem(rows, [{**demand(2.0), "burst": 1.4}], [profile("a", 1.0)], pool_slack=UNIT))
    assert outcome.status == "infeasible"
    assert "pool_slack: small pools of replicas are not filled" in outcome.reasons
    assert "burst: up to 1.4 times the rate" in outcome.reasons
    assert "leave out pool_slack" in outcome.relaxations
    assert "raise max_count of a from 3 to 5" in outcome.relaxations


def test_the_single_offer_rule_keeps_slack_too() -> None:
    made = problem(offers(a=1.0), 2.43, {"a": 1.0}, pool_slack=UNIT)
    plan = best_single_offer(made)
    assert plan is not None
    assert check(made, plan) == []
