"""What must hold whatever the instance: order, names, hours, and that a limit never helps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from fleet_cases import best, cost, counts, demand, offers, problem, profile, random_problem, run
from hypothesis import given, settings
from hypothesis import strategies as st

from formulations.gpu_fleet.baseline import best_single_offer
from formulations.gpu_fleet.check import check
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem

SEEDS = st.integers(0, 5000)
#: One backend that is right on all of these.
METHOD = "scip"
FEW = settings(max_examples=25, deadline=None)


def worth(instance: FleetProblem) -> float:
    """The optimum, or inf."""
    outcome = run(instance, METHOD)
    if outcome.status == "infeasible":
        return math.inf
    assert outcome.status == "optimal"
    assert outcome.objective is not None
    return outcome.objective.total


def at_most(low: float, high: float) -> bool:
    return low <= high + 1e-6 * max(1.0, abs(high)) or math.isinf(high)


@FEW
@given(seed=SEEDS, factor=st.integers(2, 4))
def test_more_demand_never_costs_less(seed: int, factor: int) -> None:
    made = random_problem(seed, current=None, max_changes=None, change_cost_usd_per_hour=0)
    assert at_most(worth(made), worth(replace(made, rate=made.rate * factor)))


@FEW
@given(seed=SEEDS, offer=st.integers(0, 2), factor=st.floats(1.01, 3.0))
def test_a_higher_price_never_costs_less(seed: int, offer: int, factor: float) -> None:
    made = random_problem(seed)
    price = made.price.copy()
    price[offer % made.num_offers] *= factor
    assert at_most(worth(made), worth(replace(made, price=price)))


RELAXED = {
    "most": lambda made: {"most": made.most + 1},
    "least": lambda made: {"least": np.maximum(made.least - 1, 0)},
    "budget": lambda made: {"budget_usd_per_hour": made.budget_usd_per_hour + 1},
    "watts": lambda made: {"max_watts": made.max_watts + 100},
    "spot share": lambda made: {"max_spot_share": min(1.0, made.max_spot_share + 0.2)},
    "quota": lambda made: {"quota_gpus": made.quota_gpus + 1},
    "spare": lambda made: {"spare_instances": 0},
    "headroom": lambda made: {"headroom": 0.0},
    "min_replicas": lambda made: {"min_replicas": np.zeros_like(made.min_replicas)},
    "changes": lambda made: {"max_changes": None if made.max_changes is None else made.max_changes + 1},
    "change cost": lambda made: {"change_cost": 0.0},
}


@pytest.mark.parametrize("limit", RELAXED)
@settings(max_examples=12, deadline=None)
@given(seed=SEEDS)
def test_a_relaxed_limit_never_costs_more(limit: str, seed: int) -> None:
    made = random_problem(seed)
    assert at_most(worth(replace(made, **RELAXED[limit](made))), worth(made))


@FEW
@given(seed=SEEDS)
def test_an_offer_more_never_costs_more(seed: int) -> None:
    """Without its last offer (as if none were there) the fleet is no cheaper."""
    made = random_problem(seed)
    most, least = made.most.copy(), made.least.copy()
    most[-1] = least[-1] = 0
    if made.least[-1]:
        made = replace(made, least=least)
    assert at_most(worth(made), worth(replace(made, most=most, least=least)))


@FEW
@given(seed=SEEDS, data=st.data())
def test_names_and_order_do_not_matter(seed: int, data: st.DataObject) -> None:
    made = random_problem(seed)
    order = np.array(data.draw(st.permutations(range(made.num_offers))))
    place = np.argsort(order)
    turned = replace(
        made,
        offer_names=tuple(f"other {made.offer_names[k]}" for k in order),
        pool_of_offer=np.arange(made.num_offers),
        availability=made.availability[order],
        spot=made.spot[order],
        **{key: getattr(made, key)[order] for key in ("gpus", "price", "watts", "least", "most", "reserved")},
        quota_offers=made.quota_offers[:, order],
        current=None if made.current is None else made.current[order],
        config_pool=place[made.config_pool],
        model_names=tuple(f"other {name}" for name in made.model_names),
    )
    assert worth(turned) == pytest.approx(worth(made), rel=1e-6, abs=1e-6)


@FEW
@given(seed=SEEDS)
def test_a_plan_keeps_every_rule_and_its_bound(seed: int) -> None:
    made = random_problem(seed)
    outcome = run(made, METHOD)
    if outcome.plan is None:
        assert outcome.reasons
        return
    assert check(made, outcome.plan) == []
    assert outcome.bound is not None
    assert outcome.objective is not None
    assert outcome.bound.value <= outcome.objective.total + 1e-6


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_baseline_that_keeps_all_limits_is_never_cheaper(seed: int) -> None:
    made = random_problem(seed)
    plan = best_single_offer(made)
    if plan is not None and not check(made, plan):
        assert at_most(worth(made), GPU_FLEET.objective(made, plan).total)


HOURS = st.lists(st.integers(0, 4), min_size=1, max_size=8).filter(any)
MARKETS = offers(fixed={"price": 0.6, "market": "reserved"}, there=1.0, big=2.2)
SERVED = {"fixed": 1.0, "there": 1.0, "big": 2.5}


@FEW
@given(hours=HOURS)
def test_equal_hours_are_merged_without_loss(hours: list[int]) -> None:
    """Numbers a hair apart are not merged, and cost the same."""
    apart = [hour and hour - 1e-7 * index for index, hour in enumerate(hours)]
    made = problem(MARKETS, [float(hour) for hour in hours], SERVED)
    assert made.num_periods == len(set(hours))
    assert sorted(hour for of in made.hours for hour in of) == list(range(len(hours)))
    assert best(made, METHOD) == pytest.approx(cost(MARKETS, apart, SERVED), rel=1e-6)


@FEW
@given(hours=HOURS, times=st.integers(2, 4), seed=st.integers(0, 99))
def test_days_that_repeat_cost_the_same_in_any_order(hours: list[int], times: int, seed: int) -> None:
    rates = np.array(hours * times, dtype=float)
    shuffled = np.random.default_rng(seed).permutation(rates).tolist()
    once = cost(MARKETS, [float(hour) for hour in hours], SERVED)
    assert cost(MARKETS, shuffled, SERVED) == pytest.approx(once, rel=1e-6)


@FEW
@given(hours=HOURS)
def test_hours_that_nothing_ties_are_their_own_optima(hours: list[int]) -> None:
    rows = [row for row in MARKETS if row["name"] != "fixed"]
    served = {name: rate for name, rate in SERVED.items() if name != "fixed"}
    alone = [cost(rows, float(hour), served) if hour else 0.0 for hour in hours]
    assert cost(rows, [float(hour) for hour in hours], served) == pytest.approx(np.mean(alone), rel=1e-6)


def test_a_constant_rate_is_an_hour_that_lasts() -> None:
    assert cost(MARKETS, 3.3, SERVED) == pytest.approx(cost(MARKETS, [3.3] * 24, SERVED))


def test_sizes_that_nobody_asks_for_do_not_matter() -> None:
    """A size of rate 0 that nothing serves is no reason to refuse the rest."""
    long = {"input_tokens": 4000}
    served = [profile("a", 1.0), profile("a", 0.0, **long)]
    outcome = run(problem(offers(a=1.0), [demand(2.5), demand(0.0, **long)], served))
    assert outcome.plan is not None
    assert counts(outcome.plan) == {"a": 3}
    assert {row.input_tokens for row in outcome.plan.assignment} == {100}


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_the_baseline_breaks_nothing_but_limits(seed: int) -> None:
    """It serves everything, with replicas that fit."""
    made = random_problem(seed)
    plan = best_single_offer(made)
    if plan is not None:
        allowed = {"count", "budget", "watts", "max_spot_share", "max_changes", "spare_instances"}
        rules = {one.rule for one in check(made, plan)}
        assert {rule for rule in rules if not rule.startswith("quota")} <= allowed
