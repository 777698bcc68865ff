"""What binds, and what relief saves: by hand, and never more than the bounds allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fleet_cases import demand, fleet, offers, problem, profile, run

from formulations.gpu_fleet.insight import MOST_RELIEFS, binding, explain_plan
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import SolveOptions
from planner.fleet_plan import Insight


def explained(found: FleetProblem) -> tuple[list[str], Insight]:
    outcome = run(found)
    assert outcome.plan is not None
    assert outcome.objective is not None
    assert outcome.bound is not None
    insight = explain_plan(found, outcome.plan, outcome.objective.total, outcome.bound.value, SolveOptions())
    return [limit.name for limit in binding(found, outcome.plan)], insight


def test_one_more_of_a_scarce_offer() -> None:
    """7 a second: 2 cheap serve 4, 2 dear the other 3, for 2 + 6 USD; with 3 cheap, one dear is enough: 3 + 3."""
    names, insight = explained(
        problem(offers(cheap={"price": 1, "max_count": 2}, dear=3), 7.0, {"cheap": 2, "dear": 2})
    )
    assert names == ["max_count of cheap"]
    (relief,) = insight.reliefs
    assert (relief.now, relief.relaxed) == (2, 3)
    assert relief.saves_at_least_usd_per_hour == pytest.approx(2)
    assert relief.saves_at_most_usd_per_hour == pytest.approx(2)
    # Most money goes to the dear one; without it two cheap ones are too few.
    assert insight.without.offer == "dear"
    assert insight.without.status == "infeasible"
    assert insight.without.extra_usd_per_hour is None


def test_relief_that_saves_nothing_says_so() -> None:
    """1 a second is served by the one that may be had; a second one changes nothing."""
    _, insight = explained(problem(offers(only={"price": 1, "max_count": 1}), 1.0, {"only": 2}))
    assert insight.reliefs[0].saves_at_least_usd_per_hour == 0
    assert insight.reliefs[0].saves_at_most_usd_per_hour == pytest.approx(0, abs=1e-6)


def test_the_fleet_without_its_main_offer() -> None:
    _, insight = explained(problem(offers(best=1, next=1.5), 10.0, {"best": 2, "next": 2}))
    assert insight.without.offer == "best"
    assert insight.without.extra_usd_per_hour == pytest.approx(2.5)
    assert insight.without.instances == {"next": 5}


@pytest.mark.parametrize(
    ("limits", "name", "saving"),
    [
        # 2 a second need one `a`, and a second one in case it is lost.
        ({"spare_instances": 1}, "spare_instances", 1.0),
        # All three are kept though one would do; one change less than needed.
        ({"current": {"a": 3}, "max_changes": 1}, "max_changes", 1.0),
    ],
)
def test_rules_of_the_whole_fleet(limits: dict[str, Any], name: str, saving: float) -> None:
    names, insight = explained(problem(offers(a=1), 2.0, {"a": 2}, **limits))
    assert name in names
    found = {relief.limit: relief for relief in insight.reliefs}[name]
    assert found.saves_at_least_usd_per_hour == pytest.approx(saving)


def test_budget_watts_quota_and_least_count() -> None:
    found = problem(
        offers(a={"price": 1, "watts": 100, "min_count": 1}), 2.0, {"a": 2},
        budget_usd_per_hour=1.5, max_watts=150, quotas=[{"name": "q", "offers": ["a"], "max_gpus": 1}],
    )  # fmt: skip
    names, _ = explained(found)
    assert names == ["min_count of a", "budget_usd_per_hour", "max_watts", "quota q"]
    roomy = replace(found, budget_usd_per_hour=2.0, max_watts=200.0, least=found.least * 0)
    assert explained(roomy)[0] == ["quota q"]


def test_spot_share() -> None:
    """4 a second, half on spot at most: 1 spot + 1 on demand = 1 + 3; with 60 % the counts stay."""
    rows = offers(spot={"price": 1, "market": "spot"}, sure=3)
    names, insight = explained(problem(rows, 4.0, {"spot": 2, "sure": 2}, max_spot_share=0.5))
    assert names == ["max_spot_share"]
    assert insight.reliefs[0].saves_at_least_usd_per_hour == 0


def test_many_limits_are_cut() -> None:
    names = [f"o{index}" for index in range(MOST_RELIEFS + 2)]
    rows = offers(**{name: {"price": 1, "max_count": 1} for name in names})
    sizes = [demand(2.0, input_tokens=100 + index) for index in range(len(names))]
    served = [profile(name, 2.0, input_tokens=100 + index) for index, name in enumerate(names)]
    _, insight = explained(problem(rows, sizes, served))
    assert len(insight.reliefs) == MOST_RELIEFS
    assert len(insight.untried) == 2


def test_an_unproven_plan_claims_no_saving() -> None:
    """With a bound far below, nothing is told apart from the gap."""
    found = problem(offers(cheap={"price": 1, "max_count": 2}, dear=3), 7.0, {"cheap": 2, "dear": 2})
    plan = run(found).plan
    assert plan is not None
    insight = explain_plan(found, plan, 8.0, 1.0, SolveOptions())
    assert insight.reliefs[0].saves_at_least_usd_per_hour == 0
    assert insight.reliefs[0].saves_at_most_usd_per_hour == pytest.approx(2)


def test_instances_can_be_read_back() -> None:
    assert fleet(offers(a=1), 1.0, {"a": 2}).offers[0].name == "a"
