"""Sweeps: every value has a point, costs grow with demand, and bounds hold."""

from __future__ import annotations

import pytest
from fleet_cases import offers, problem

from formulations.gpu_fleet.sweep import grid, scaled, sweep
from formulations.outcome import SolveOptions
from planner.errors import OptionError


def test_rate_is_the_mean_over_models_and_hours() -> None:
    base = problem(offers(a=1), [1.0, 3.0], {"a": 2})
    changed = scaled(base, 8.0)
    assert changed.rate.ravel().tolist() == pytest.approx([4, 12])
    assert changed.share @ changed.rate.sum(axis=1) == pytest.approx(8)
    assert base.rate.ravel().tolist() == [1, 3]


def test_points_by_hand_in_the_order_asked() -> None:
    """One `a` serves 2 a second: 1, 1, 2 and 4 of them."""
    base = problem(offers(a=3), 1.0, {"a": 2})
    points = sweep([1, 2, 4, 8], lambda rate: scaled(base, rate), SolveOptions(time_limit_s=60))
    assert [point.usd_per_hour for point in points] == pytest.approx([3, 3, 6, 12])
    assert [point.instances for point in points] == [{"a": 1}, {"a": 1}, {"a": 2}, {"a": 4}]
    assert all(point.gap is not None and point.gap <= 1e-6 for point in points)
    assert points[0].usd_per_million_output_tokens == pytest.approx(3 / 3600 / 50 * 1e6)


def test_infeasible_points_stay_with_their_reasons() -> None:
    base = problem(offers(a={"price": 1, "max_count": 2}), 1.0, {"a": 2})
    points = sweep([4, 5], lambda rate: scaled(base, rate), SolveOptions(time_limit_s=60))
    assert [point.status for point in points] == ["optimal", "infeasible"]
    assert points[1].usd_per_hour is None
    assert "max_count" in points[1].reasons[0]


def test_no_time_is_told_and_nothing_is_dropped() -> None:
    base = problem(offers(a=1), 1.0, {"a": 2})
    points = sweep([1, 2, 3], lambda rate: scaled(base, rate), SolveOptions(time_limit_s=1e-9))
    assert len(points) == 3


def test_grids() -> None:
    assert grid(1, 4096, 13, geometric=True) == [2.0**power for power in range(13)]
    assert grid(0, 0.5, 6, geometric=False) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("low", "high", "num", "geometric"),
    [
        (2, 1, 3, False),
        (0, 1, 3, True),
        (-1, 1, 3, False),
        (1, 2, 1, False),
        (1, float("inf"), 3, True),
        (1, 1, 3, True),
    ],
)
def test_grids_that_are_none_are_refused(low: float, high: float, num: int, geometric: bool) -> None:
    with pytest.raises(OptionError):
        grid(low, high, num, geometric)
