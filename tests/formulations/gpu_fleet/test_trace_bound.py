"""Lower bounds of windows: below every plan, and met where fractions are whole."""

from __future__ import annotations

import numpy as np
import pytest
from fleet_cases import best, offers, problem

from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.trace_bound import window_bounds


def test_by_hand_in_the_order_of_hours() -> None:
    """2 a second for 1 USD or 6 for 4: the small one is cheaper, the large one needs fewer GPUs."""
    found = window_bounds(problem(offers(small=1, large=4), [4.0, 13.0, 4.0, 0.0], {"small": 2, "large": 6}))
    assert [one.usd_per_hour for one in found] == pytest.approx([2, 6.5, 2, 0])
    assert [one.gpus for one in found] == [1, 3, 1, 0]
    assert [one.rate_per_s for one in found] == [4, 13, 4, 0]


def test_caps_count_and_what_exceeds_them_is_no_number() -> None:
    found = window_bounds(problem(offers(a={"price": 1, "max_count": 2}), [4.0, 5.0], {"a": 2}))
    assert found[0].usd_per_hour == pytest.approx(2)
    assert found[1].usd_per_hour is None
    assert found[1].gpus is None


def test_never_above_the_cheapest_fleet() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        prices, rates = rng.uniform(0.5, 8, 3), rng.uniform(0.5, 6, 3)
        rows = offers(**{f"o{k}": float(price) for k, price in enumerate(prices)})
        asked = float(rng.uniform(0.5, 30))
        found: FleetProblem = problem(rows, asked, {f"o{k}": float(rate) for k, rate in enumerate(rates)})
        (bound,) = window_bounds(found)
        assert bound.usd_per_hour is not None
        assert bound.usd_per_hour == pytest.approx(asked * (prices / rates).min(), rel=1e-6)
        assert bound.usd_per_hour <= best(found) * (1 + 1e-9)
