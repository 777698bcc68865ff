"""The closed loop in closed form: exact limits, order, and the simulation as the judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_cases import BIG, FAST, NAMES, times_of

from planner.cost.queueing.closed_loop import benchmark_waves, closed_loop, kv_slots
from planner.cost.queueing.simulation import benchmark_requests, simulate_closed_loop, uniform_lengths
from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.errors import OptionError


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("isl", [10, 512, 8192, 20000])
def test_one_client_is_exact(first: bool, isl: int) -> None:
    """TTFT: one iteration for each 8192 tokens, and the prompt. TPOT: an iteration of one, halfway through."""
    loop = closed_loop(FAST, Scheduler(prefill_first=first), input_tokens=isl, output_tokens=100, clients=1)
    iterations = -(-isl // 8192)
    prompt = 2.7e-5 * isl + 1.3e-9 * isl**2 / 2
    assert loop.ttft_s == pytest.approx(iterations * 5e-3 + prompt)
    assert loop.tpot_s == pytest.approx(5e-3 + 1.5e-5 + 4e-8 * (isl + 50))
    served = simulate_closed_loop(FAST, Scheduler(prefill_first=first), [isl] * 10, [100] * 10, clients=1)
    assert loop.ttft_s == pytest.approx(served.ttft_s.mean())
    assert loop.tpot_s == pytest.approx(served.tpot_s.mean())


def test_equal_requests_prefilled_first_stay_together() -> None:
    """Four prompts of 4096, a budget of 8192: two iterations of 2 prompts, wave after wave, then 4 decode together.

    Without per-pair cost: an iteration of prompts is 5 + 8192 * 0.027 = 226.184 ms; TTFT (1 + 1 + 2 + 2) / 4 of it.
    """
    times = times_of(5e-3, 1.5e-5, 0.0, 2.7e-5, 0.0)
    rules = Scheduler(prefill_first=True)
    loop = closed_loop(times, rules, input_tokens=4096, output_tokens=200, clients=4)
    assert loop.ttft_s == pytest.approx(1.5 * 226.184e-3)
    # Half wait one iteration more before they decode 199 times: 5.06 ms and 113.092 / 199 ms.
    assert loop.tpot_s == pytest.approx(5.06e-3 + 113.092e-3 / 199)


def test_clients_beyond_the_slots_wait_their_turn() -> None:
    """Slots for a quarter of 64 clients: in steady state a request waits three cycles of the admitted (Little)."""
    rules = Scheduler(kv_capacity_tokens=16 * 1500)
    few = closed_loop(FAST, rules, input_tokens=1000, output_tokens=500, clients=16, waves=np.inf, length_spread=0.1)
    many = closed_loop(FAST, rules, input_tokens=1000, output_tokens=500, clients=64, waves=np.inf, length_spread=0.1)
    assert many.admitted == 16
    cycle = few.steady_ttft_s + 499 * few.tpot_s
    assert many.steady_ttft_s == pytest.approx(few.steady_ttft_s + 3 * cycle)
    assert many.requests_per_s == pytest.approx(few.requests_per_s)


def test_slots_by_hand() -> None:
    """10,000 tokens for requests of 800 + 400: reserved 8.33, on demand 10; whole prompts need the budget."""
    sizes = (800, 400)
    assert kv_slots(Scheduler(kv_capacity_tokens=10000), *sizes) == 8
    assert kv_slots(Scheduler(kv_capacity_tokens=10000, reserve_full=False), *sizes) == 10
    assert kv_slots(Scheduler(kv_capacity_tokens=10000, max_num_seqs=3), *sizes) == 3
    assert kv_slots(Scheduler(kv_capacity_tokens=1199), *sizes) == 0
    assert kv_slots(Scheduler(max_num_batched_tokens=500, chunked_prefill=False), *sizes) == 0


def test_a_request_that_does_not_fit_is_an_answer() -> None:
    rules = Scheduler(kv_capacity_tokens=np.array([1000.0, 10000.0]))
    loop = closed_loop(FAST, rules, input_tokens=1000, output_tokens=500, clients=4)
    assert loop.fits.tolist() == [False, True]
    assert np.isinf(loop.ttft_s[0])
    assert np.isinf(loop.tpot_s[0])
    assert loop.requests_per_s[0] == loop.admitted[0] == 0
    assert np.isfinite([loop.ttft_s[1], loop.tpot_s[1]]).all()


def test_arrays_are_many_plans() -> None:
    """A mixed batch of plans says what each says alone."""
    clients, first = np.array([1, 8, 64, 200]), np.array([False, True, False, True])
    together = closed_loop(
        FAST, Scheduler(prefill_first=first), input_tokens=700, output_tokens=300, clients=clients, length_spread=0.05
    )
    for at, (count, rule) in enumerate(zip(clients, first, strict=True)):
        alone = closed_loop(
            FAST, Scheduler(prefill_first=rule), input_tokens=700, output_tokens=300, clients=count, length_spread=0.05
        )
        assert together.ttft_s[at] == pytest.approx(float(alone.ttft_s))
        assert together.tpot_s[at] == pytest.approx(float(alone.tpot_s))


SIZES = {"isl": st.integers(16, 8192), "osl": st.integers(16, 2048), "clients": st.integers(1, 512)}


@settings(max_examples=200, deadline=None)
@given(**SIZES, first=st.booleans(), which=st.sampled_from(NAMES), factor=st.floats(1.0, 2.0))
def test_slower_iterations_never_help(isl: int, osl: int, clients: int, first: bool, which: str, factor: float) -> None:
    """The rounding of prompts to iterations lets the closed form waver by a few percent, no more."""
    slower = replace(FAST, **{which: getattr(FAST, which) * factor})
    rules = Scheduler(prefill_first=first)
    sizes = {"input_tokens": isl, "output_tokens": osl, "clients": clients, "length_spread": 0.06}
    fast, slow = closed_loop(FAST, rules, **sizes), closed_loop(slower, rules, **sizes)
    assert slow.tpot_s >= 0.99 * fast.tpot_s
    assert slow.ttft_s >= 0.97 * fast.ttft_s


@settings(max_examples=100, deadline=None)
@given(**SIZES, first=st.booleans(), factor=st.floats(0.1, 10.0))
def test_times_scale(isl: int, osl: int, clients: int, first: bool, factor: float) -> None:
    scaled = StepTimes(**{name: getattr(FAST, name) * factor for name in NAMES})
    sizes = {"input_tokens": isl, "output_tokens": osl, "clients": clients, "length_spread": 0.06}
    one = closed_loop(FAST, Scheduler(prefill_first=first), **sizes)
    other = closed_loop(scaled, Scheduler(prefill_first=first), **sizes)
    assert other.ttft_s == pytest.approx(factor * float(one.ttft_s))
    assert other.tpot_s == pytest.approx(factor * float(one.tpot_s))


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_against_the_simulation(first: bool, varied: bool) -> None:
    """Mean error over a small grid; the benchmark prints the large one (1-3 % TTFT, 0.6-1.7 % TPOT)."""
    errors = []
    for times, isl, osl, clients in (
        (times, isl, osl, clients)
        for times in (FAST, BIG)
        for isl in (128, 2048, 8192)
        for osl in (128, 1024)
        for clients in (4, 64, 256)
    ):
        rng = np.random.default_rng(clients)
        count = benchmark_requests(clients)
        inputs = uniform_lengths(isl * 8 // 10 if varied else isl, isl, count, rng)
        outputs = uniform_lengths(osl * 8 // 10 if varied else osl, osl, count, rng)
        served = simulate_closed_loop(times, Scheduler(prefill_first=first), inputs, outputs, clients=clients)
        loop = closed_loop(
            times,
            Scheduler(prefill_first=first),
            input_tokens=inputs.mean(),
            output_tokens=outputs.mean(),
            clients=clients,
            length_spread=0.064 if varied else 0.0,
        )
        errors.append([loop.ttft_s / served.ttft_s.mean() - 1, loop.tpot_s / served.tpot_s.mean() - 1])
    ttft, tpot = np.abs(errors).mean(axis=0)
    assert ttft < 0.06
    assert tpot < 0.03


def test_bad_input() -> None:
    good = {"input_tokens": 10, "output_tokens": 10, "clients": 2}
    for wrong in (
        {"input_tokens": 0}, {"output_tokens": -1}, {"clients": 0}, {"waves": 0}, {"length_spread": -0.1},
        {"length_spread": 0.6}, {"input_tokens": np.nan},
    ):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(wrong))):
            closed_loop(FAST, Scheduler(), **{**good, **wrong})
    assert benchmark_waves(512) == 3
