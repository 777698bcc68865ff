"""Prompts served together: exact for one at a time, near a simulation for several."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.queueing.batch_service import batch_sojourn_s
from planner.errors import OptionError


def simulated(rate: float, first: float, added: float, most: int, number: int = 40_000) -> float:
    """Mean time of `number` prompts, one step after another."""
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1.0 / rate, number)).tolist()
    now, done, spent = 0.0, 0, 0.0
    while done < number:
        now = max(now, arrivals[done])
        last = done
        while last < number and last < done + most and arrivals[last] <= now:
            last += 1
        now += first + (last - done - 1) * added
        spent += (last - done) * now - sum(arrivals[done:last])
        done = last
    return spent / number


def test_one_at_a_time_is_a_queue_with_even_service() -> None:
    """M/D/1 at 0.8 with a second of service: 1 + 0.8 / (2 x 0.2) = 3 s; at 1 it grows without end."""
    assert batch_sojourn_s([0.8, 1.0], 1.0, 0.5, 1).tolist() == pytest.approx([3.0, np.inf])


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("most", [2, 8])
@pytest.mark.parametrize("added", [1.0, 0.5, 0.1])
def test_near_the_simulation(load: float, most: int, added: float) -> None:
    rate = load * most / (1.0 + (most - 1) * added)
    assert float(batch_sojourn_s(rate, 1.0, added, most)) == pytest.approx(simulated(rate, 1.0, added, most), rel=0.25)


@given(st.floats(0.01, 0.98), st.floats(0.01, 10.0), st.floats(0.0, 1.0), st.integers(1, 64))
def test_never_below_its_own_service_and_more_load_is_never_faster(
    load: float, first: float, share: float, most: int
) -> None:
    full = first * (1 + (most - 1) * share)
    rates = np.array([0.9, 1.0]) * load * most / full
    slow, fast = batch_sojourn_s(rates[::-1], first, share * first, most)
    assert slow >= fast * (1 - 1e-9)
    assert fast >= first


def test_hostile_numbers_are_refused() -> None:
    for wrong in (
        (0.0, 1.0, 0.0, 1),
        (1.0, -1.0, 0.0, 1),
        (1.0, 1.0, -0.1, 1),
        (1.0, 1.0, 0.0, 0.5),
        (np.nan, 1, 1, 1),
    ):
        with pytest.raises(OptionError):
            batch_sojourn_s(*wrong)
