"""Plans and bounds against the best of all plans, on instances small enough to try every one."""

from __future__ import annotations

import pytest

from formulations.outcome import Status
from tests.formulations.pod_packing.pods_cases import best_values, random_problem, solved


@pytest.mark.parametrize("objective", ["priority", "allocation", "consolidate"])
@pytest.mark.parametrize("seed", range(12))
def test_no_plan_is_better_and_no_bound_is_passed(seed: int, objective: str) -> None:
    """Every first tier's bound holds for the best plan; where the search says optimal, it is; it nearly always is."""
    one = random_problem(seed, objective)
    best = best_values(one)
    outcome = solved(one)
    if best is None:
        assert outcome.status in (Status.INFEASIBLE, Status.UNKNOWN)
        return
    assert outcome.status is not Status.INFEASIBLE
    assert outcome.plan is not None
    signs = [-1.0 if aim.sense == "most" else 1.0 for aim in one.aims]
    ours = tuple(sign * tier.value for sign, tier in zip(signs, outcome.plan.tiers, strict=True))
    assert ours >= tuple(value - 1e-9 for value in best)
    first = outcome.plan.tiers[0]
    assert first.bound is not None
    assert signs[0] * first.bound <= best[0] + 1e-9
    if outcome.status is Status.OPTIMAL:
        assert ours == pytest.approx(best)


def test_the_search_finds_most_optima() -> None:
    """Not promised for each instance, but for most of them."""
    found = 0
    for seed in range(10):
        one = random_problem(100 + seed, "allocation")
        best = best_values(one)
        outcome = solved(one)
        assert best is not None
        assert outcome.plan is not None
        found += -outcome.plan.tiers[0].value == pytest.approx(best[0])
    assert found >= 8
