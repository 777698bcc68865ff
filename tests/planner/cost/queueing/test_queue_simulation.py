"""The iteration-level simulation: by hand, against a plain one, and what it may never do."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_cases import FAST, plain_simulation, times_of

from planner.cost.queueing.simulation import (
    benchmark_requests,
    poisson_arrivals,
    simulate_closed_loop,
    simulate_open_loop,
    uniform_lengths,
)
from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.errors import OptionError


def test_step_by_hand() -> None:
    """1 + 3 * 0.1 + 50 * 0.01 = 1.8; a chunk of 4 behind 10: 4 * 0.2 + 4 * (10 + 2) * 0.001 = 0.848."""
    times = times_of(1.0, 0.1, 0.01, 0.2, 0.001)
    assert times.step(3, 50) == pytest.approx(1.8)
    assert times.prefill(4, 10) == pytest.approx(0.848)
    assert times.step(3, 50, 4, 10) == pytest.approx(2.648)
    # A prompt costs the same, however it is cut.
    assert times.prefill(7) + times.prefill(3, 7) == pytest.approx(float(times.prefill(10)))


def test_two_requests_by_hand() -> None:
    """Base 1 s, 0.1 s a prompt token, nothing else; two prompts of 10 tokens, a budget of 10 tokens.

    Mixed: the first prompt alone (2 s), then one decoding and 9 tokens of the second (1.9 s), then its last (1.1 s).
    With 3 output tokens the first request ends there, at 5.0; the second decodes twice more: 7.0.
    Prefill first: prompts at 2 and 4 s, then both decode twice: 6.0.
    """
    times = times_of(1.0, 0.0, 0.0, 0.1, 0.0)
    mixed = simulate_closed_loop(times, Scheduler(max_num_batched_tokens=10), [10, 10], [3, 3], clients=2)
    assert mixed.first_token_s == pytest.approx([2.0, 5.0])
    assert mixed.finish_s == pytest.approx([5.0, 7.0])
    assert mixed.peak_step_tokens == 10
    rules = Scheduler(max_num_batched_tokens=10, prefill_first=True)
    first = simulate_closed_loop(times, rules, [10, 10], [3, 3], clients=2)
    assert first.first_token_s == pytest.approx([2.0, 4.0])
    assert first.finish_s == pytest.approx([6.0, 6.0])
    assert first.tpot_s == pytest.approx([2.0, 1.0])


def test_memory_for_one_makes_a_queue() -> None:
    """Base 1 s: a request of 3 tokens takes 3 s, and the second starts when the first has left."""
    times = times_of(1.0, 0.0, 0.0, 0.0, 0.0)
    served = simulate_closed_loop(times, Scheduler(kv_capacity_tokens=13), [10, 10], [3, 3], clients=2)
    assert served.first_token_s == pytest.approx([1.0, 4.0])
    assert served.peak_kv_tokens == 13


def test_the_newest_request_is_dropped_and_computed_again() -> None:
    """Room for 24 tokens, two requests of 10 + 5, prompts in one step (1 s + 0.1 s a token), base 1 s.

    Step 1: both prompts, 20 cached (3 s). Steps 2 and 3: 24 cached (4, 5 s). The second, with 3 tokens made and 12
    cached, is dropped; the first makes its last two (6, 7 s). Its prompt of 13 then yields the 4th token at
    7 + 1 + 1.3 = 9.3 s, and the 5th at 10.3 s.
    """
    times = times_of(1.0, 0.0, 0.0, 0.1, 0.0)
    rules = Scheduler(kv_capacity_tokens=24, reserve_full=False)
    served = simulate_closed_loop(times, rules, [10, 10], [5, 5], clients=2)
    assert served.preemptions == 1
    assert served.first_token_s == pytest.approx([3.0, 3.0])
    assert served.finish_s == pytest.approx([7.0, 10.3])
    assert served.peak_kv_tokens <= 24


RULES = st.builds(
    Scheduler,
    max_num_batched_tokens=st.integers(40, 120),
    chunked_prefill=st.booleans(),
    prefill_first=st.booleans(),
    max_num_seqs=st.integers(1, 8),
    kv_capacity_tokens=st.integers(60, 300),
)
REQUESTS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.floats(0, 3)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(RULES, REQUESTS, st.integers(0, 4))
def test_jumps_change_nothing(rules: Scheduler, requests: list[tuple[int, int, float]], clients: int) -> None:
    times = times_of(0.01, 1e-3, 1e-5, 1e-3, 1e-5)
    inputs, outputs = [r[0] for r in requests], [r[1] for r in requests]
    if clients:
        served = simulate_closed_loop(times, rules, inputs, outputs, clients=clients)
        first, finish = plain_simulation(times, rules, inputs, outputs, clients=clients)
    else:
        arrivals = np.cumsum([r[2] for r in requests]).tolist()
        served = simulate_open_loop(times, rules, inputs, outputs, arrival_s=arrivals)
        first, finish = plain_simulation(times, rules, inputs, outputs, arrivals=arrivals)
    assert served.first_token_s == pytest.approx(first)
    assert served.finish_s == pytest.approx(finish)


@settings(max_examples=100, deadline=None)
@given(RULES, REQUESTS, st.booleans())
def test_limits_hold_and_nothing_is_lost(
    rules: Scheduler, requests: list[tuple[int, int, float]], reserve: bool
) -> None:
    kept = Scheduler(
        max_num_batched_tokens=rules.max_num_batched_tokens,
        prefill_first=rules.prefill_first,
        kv_capacity_tokens=rules.kv_capacity_tokens,
        reserve_full=reserve,
    )
    inputs, outputs = [r[0] for r in requests], [r[1] for r in requests]
    served = simulate_open_loop(FAST, kept, inputs, outputs, arrival_s=np.cumsum([r[2] / 100 for r in requests]))
    assert served.peak_kv_tokens <= float(kept.kv_capacity_tokens)
    assert served.peak_step_tokens <= float(kept.max_num_batched_tokens)
    assert np.isfinite(served.finish_s).all()
    assert (served.first_token_s > served.arrival_s).all()
    many = served.output_tokens > 1
    assert (served.finish_s >= served.first_token_s).all()
    assert (served.finish_s[many] > served.first_token_s[many]).all()


@pytest.mark.parametrize("first", [False, True])
def test_more_clients_never_make_less(first: bool) -> None:
    rng = np.random.default_rng(0)
    rates = []
    for clients in (1, 4, 16, 64, 256):
        count = 40 * clients
        inputs, outputs = uniform_lengths(400, 500, count, rng), uniform_lengths(160, 200, count, rng)
        served = simulate_closed_loop(FAST, Scheduler(prefill_first=first), inputs, outputs, clients=clients)
        rates.append(served.output_tokens_per_s)
    assert all(later > 0.98 * earlier for earlier, later in pairwise(rates))


def test_same_seed_same_run() -> None:
    def run() -> np.ndarray:
        rng = np.random.default_rng(7)
        inputs, outputs = uniform_lengths(10, 99, 50, rng), uniform_lengths(10, 99, 50, rng)
        return simulate_open_loop(FAST, Scheduler(), inputs, outputs, arrival_s=poisson_arrivals(9, 50, rng)).ttft_s

    assert (run() == run()).all()


def test_requests_of_the_benchmark() -> None:
    assert [benchmark_requests(clients) for clients in (1, 100, 200, 1000)] == [10, 1000, 1200, 3000]


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="ISL \\+ OSL may be at most that"):
        simulate_closed_loop(FAST, Scheduler(kv_capacity_tokens=100), [90], [20], clients=1)
    with pytest.raises(OptionError, match="allow chunked prefill"):
        simulate_closed_loop(FAST, Scheduler(chunked_prefill=False, max_num_batched_tokens=50), [90], [20], clients=1)
    with pytest.raises(OptionError, match="at least one"):
        simulate_closed_loop(FAST, Scheduler(), [0], [20], clients=1)
    with pytest.raises(OptionError, match="one length"):
        simulate_closed_loop(FAST, Scheduler(), [1, 2], [20], clients=1)
    with pytest.raises(OptionError, match="clients"):
        simulate_closed_loop(FAST, Scheduler(), [1], [20], clients=0)
    with pytest.raises(OptionError, match="ascend"):
        simulate_open_loop(FAST, Scheduler(), [1, 2], [20, 20], arrival_s=[2.0, 1.0])
    with pytest.raises(OptionError, match="finite"):
        simulate_open_loop(FAST, Scheduler(), [1, 2], [20, 20], arrival_s=[2.0, np.inf])
    with pytest.raises(OptionError, match="kv_capacity_tokens"):
        Scheduler(kv_capacity_tokens=0)
    with pytest.raises(OptionError, match="not negative"):
        times_of(1.0, -1.0, 0.0, 0.0, 0.0)
    with pytest.raises(OptionError, match="above zero"):
        StepTimes(
            decode_base_s=np.zeros(2),
            decode_per_sequence_s=np.ones(2),
            decode_per_kv_token_s=np.ones(2),
            prefill_per_token_s=np.ones(2),
            prefill_per_token_pair_s=np.ones(2),
        )
