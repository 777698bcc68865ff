"""The open loop in closed form: limits, order, percentiles, and the simulation as the judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_cases import BIG, FAST
from scipy.stats import gamma

from planner.cost.queueing.open_loop import max_rate_under_slo, open_loop
from planner.cost.queueing.percentiles import shifted_gamma
from planner.cost.queueing.simulation import poisson_arrivals, simulate_open_loop, uniform_lengths
from planner.cost.queueing.step_times import Scheduler
from planner.errors import OptionError

SIZES = {"input_tokens": 1000, "output_tokens": 200}


@pytest.mark.parametrize("first", [False, True])
def test_a_lone_request_meets_nobody(first: bool) -> None:
    loop = open_loop(FAST, Scheduler(prefill_first=first), rate_per_s=1e-6, **SIZES)
    assert loop.ttft_mean_s == pytest.approx(5e-3 + 2.7e-2 + 1.3e-9 * 5e5, rel=1e-4)
    assert loop.tpot_mean_s == pytest.approx(5e-3 + 1.5e-5 + 4e-8 * 1100, rel=1e-4)
    assert loop.ttft_s(0.99) == pytest.approx(float(loop.ttft_least_s), rel=1e-2)


def test_the_batch_by_hand() -> None:
    """Mixed, memory without end: each request is 27.65 ms of prompt and 199 * 59 us of decoding work.

    At 10 a second that is 0.2765 + 0.1174 = 0.3939 of the time, so an iteration takes (5 + 0.059) / 0.6061 = 8.347 ms,
    and 10 * 199 of them are 16.61 requests.
    """
    loop = open_loop(FAST, Scheduler(), rate_per_s=10, **SIZES)
    assert loop.tpot_mean_s == pytest.approx(8.347e-3, rel=1e-3)
    assert loop.mean_batch == pytest.approx(16.61, rel=1e-3)


@settings(max_examples=150, deadline=None)
@given(
    isl=st.integers(16, 8192),
    osl=st.integers(2, 2048),
    slots=st.integers(1, 300),
    first=st.booleans(),
    bursts=st.floats(0.3, 4.0),
)
def test_a_higher_rate_never_waits_less(isl: int, osl: int, slots: int, first: bool, bursts: float) -> None:
    rules = Scheduler(prefill_first=first, kv_capacity_tokens=slots * (isl + osl))
    top = open_loop(FAST, rules, input_tokens=isl, output_tokens=osl, rate_per_s=1.0).max_rate_per_s
    rates = top * np.array([0.01, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.97])
    loop = open_loop(FAST, rules, input_tokens=isl, output_tokens=osl, rate_per_s=rates, burstiness=bursts)
    assert loop.stable.all()
    assert (np.diff(loop.ttft_mean_s) >= -0.01 * loop.ttft_mean_s[1:]).all()
    assert (np.diff(loop.tpot_mean_s) >= -0.01 * loop.tpot_mean_s[1:]).all()
    for times in (loop.ttft_s, loop.tpot_s):
        assert (times(0.5) <= times(0.9)).all()
        assert (times(0.9) <= times(0.99)).all()


def test_too_much_is_an_answer() -> None:
    top = open_loop(FAST, Scheduler(), rate_per_s=1.0, **SIZES).max_rate_per_s
    loop = open_loop(FAST, Scheduler(), rate_per_s=top * np.array([0.5, 1.0, 2.0]), **SIZES)
    assert loop.stable.tolist() == [True, False, False]
    assert np.isfinite(loop.ttft_s(0.9)).tolist() == [True, False, False]
    assert np.isfinite(loop.tpot_s(0.9)).tolist() == [True, False, False]
    nothing = open_loop(FAST, Scheduler(kv_capacity_tokens=1100), rate_per_s=1.0, **SIZES)
    assert not nothing.stable
    assert nothing.max_rate_per_s == 0
    assert np.isinf(nothing.ttft_mean_s)


@pytest.mark.parametrize("first", [False, True])
def test_against_the_simulation(first: bool) -> None:
    """Mean error at loads up to 0.8; the benchmark prints the large table."""
    errors: dict[str, list[float]] = {"ttft": [], "tpot": []}
    for times, isl, osl, slots, load in (
        (times, isl, osl, slots, load)
        for times in (FAST, BIG)
        for isl, osl in ((1024, 128), (1024, 512))
        for slots in (16, 128)
        for load in (0.3, 0.6, 0.8)
    ):
        rng = np.random.default_rng((slots, int(10 * load)))
        rules = Scheduler(prefill_first=first, kv_capacity_tokens=slots * (isl + osl))
        inputs, outputs = uniform_lengths(isl * 8 // 10, isl, 4000, rng), uniform_lengths(osl * 8 // 10, osl, 4000, rng)
        sizes = {"input_tokens": inputs.mean(), "output_tokens": outputs.mean(), "length_spread": 0.064}
        rate = load * float(open_loop(times, rules, rate_per_s=1e-6, **sizes).max_rate_per_s)
        loop = open_loop(times, rules, rate_per_s=rate, **sizes)
        served = simulate_open_loop(times, rules, inputs, outputs, arrival_s=poisson_arrivals(rate, 4000, rng))
        for p in (0.5, 0.9, 0.99):
            errors["ttft"].append(abs(float(loop.ttft_s(p)) / np.quantile(served.ttft_s[800:], p) - 1))
            errors["tpot"].append(abs(float(loop.tpot_s(p)) / np.quantile(served.tpot_s[800:], p) - 1))
    assert np.mean(errors["ttft"]) < 0.2
    assert np.mean(errors["tpot"]) < 0.06


@settings(max_examples=60, deadline=None)
@given(
    ttft=st.floats(0.03, 1.0), tpot=st.floats(0.005, 0.1), margin=st.floats(0.0, 0.5), first=st.booleans(),
    percentile=st.sampled_from([None, 0.5, 0.99]),
)  # fmt: skip
def test_the_highest_rate_holds_and_no_higher_does(
    ttft: float, tpot: float, margin: float, first: bool, percentile: float | None
) -> None:
    rules = Scheduler(prefill_first=first, kv_capacity_tokens=64 * 1200)
    limits = {"ttft_s": ttft, "tpot_s": tpot, "percentile": percentile}
    rate = max_rate_under_slo(FAST, rules, margin=margin, **limits, **SIZES)
    assert rate <= max_rate_under_slo(FAST, rules, **limits, **SIZES)

    def within(at: float) -> bool:
        loop = open_loop(FAST, rules, rate_per_s=at, **SIZES)
        found = (loop.ttft_mean_s, loop.tpot_mean_s)
        if percentile is not None:
            found = (loop.ttft_s(percentile), loop.tpot_s(percentile))
        return bool(found[0] * (1 + margin) <= ttft * (1 + 1e-9) and found[1] * (1 + margin) <= tpot * (1 + 1e-9))

    if rate > 0:
        assert within(float(rate))
    assert not within(float(rate) + 0.001 * float(open_loop(FAST, rules, rate_per_s=1.0, **SIZES).max_rate_per_s))


def test_no_rate_meets_an_impossible_limit() -> None:
    assert max_rate_under_slo(FAST, Scheduler(), ttft_s=0.01, tpot_s=0.1, **SIZES) == 0
    several = max_rate_under_slo(FAST, Scheduler(), ttft_s=1.0, tpot_s=np.array([0.004, 0.008, 0.02]), **SIZES)
    assert several[0] == 0
    assert 0 < several[1] < several[2]


@pytest.mark.parametrize("percentile", [0.1, 0.5, 0.9, 0.999])
def test_percentiles_are_those_of_a_gamma(percentile: float) -> None:
    mean, deviation, least = np.array([3.0, 5.0, 4.0]), np.array([1.0, 8.0, 0.1]), np.array([1.0, 1.0, 1.0])
    shape, scale = ((mean - least) / deviation) ** 2, deviation**2 / (mean - least)
    exact = least + gamma.ppf(percentile, shape, scale=scale)
    assert shifted_gamma(mean, deviation, least, percentile) == pytest.approx(exact, rel=2e-2)


def test_percentiles_of_a_certainty() -> None:
    assert shifted_gamma(np.array(3.0), np.array(0.0), np.array(1.0), 0.99) == 3.0
    assert np.isinf(shifted_gamma(np.array(np.inf), np.array(np.inf), np.array(1.0), 0.99))
    with pytest.raises(OptionError, match="percentile"):
        shifted_gamma(np.array(3.0), np.array(1.0), np.array(1.0), 99)


def test_bad_input() -> None:
    for wrong in ({"rate_per_s": 0}, {"rate_per_s": np.inf}, {"burstiness": -1}, {"output_tokens": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            open_loop(FAST, Scheduler(), **{"rate_per_s": 1.0, **SIZES, **wrong})
    with pytest.raises(OptionError, match="margin"):
        max_rate_under_slo(FAST, Scheduler(), margin=-0.1, **SIZES)
    with pytest.raises(OptionError, match="limits"):
        max_rate_under_slo(FAST, Scheduler(), ttft_s=0, **SIZES)
