"""Prefill and decode apart, attention and experts apart."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cost.disaggregated import SIDES, disaggregated, kv_transfer_s, ping_pong
from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.errors import OptionError

TIMES = StepTimes(
    decode_base_s=np.asarray(5e-3),
    decode_per_sequence_s=np.asarray(1.5e-5),
    decode_per_kv_token_s=np.asarray(4e-8),
    prefill_per_token_s=np.asarray(2.7e-5),
    prefill_per_token_pair_s=np.asarray(0.0),
)
RULES = Scheduler(kv_capacity_tokens=64 * 1200)
SYSTEM = {
    "input_tokens": 1000, "output_tokens": 200, "prefill_workers": 2, "decode_workers": 1, "kv_bytes": 1.3e8,
    "bandwidth_bytes_per_s": 25e9, "latency_s": 1e-3,
}  # fmt: skip


def test_transfer_by_hand() -> None:
    """1 GB at 10 GB/s is 100 ms. Over 4 layers of a prefill of 200 ms only the last quarter is left: 25 ms."""
    assert kv_transfer_s(1e9, 10e9, 2e-3) == pytest.approx(0.102)
    assert kv_transfer_s(1e9, 10e9, 2e-3, prefill_s=0.2, overlapped_layers=4) == pytest.approx(0.027)
    # A prefill of 40 ms has computed three of four layers by 30 ms: the link is behind, 100 - 30 ms are left.
    assert kv_transfer_s(1e9, 10e9, 0.0, prefill_s=0.04, overlapped_layers=4) == pytest.approx(0.07)


def test_a_lone_request() -> None:
    """Prefill 5 + 27 ms, transfer 5.2 + 1 ms, first decode iteration 5.04 ms."""
    system = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1e-6, **SYSTEM)
    assert system.loop.ttft_mean_s == pytest.approx(43.24e-3, rel=1e-3)
    assert system.loop.tpot_mean_s == pytest.approx(5.059e-3, rel=1e-4)
    assert system.transfer_s == pytest.approx(6.2e-3, rel=1e-4)


def test_the_slowest_side_bounds_the_rate() -> None:
    """Doubling the side that binds helps; doubling another does not."""
    few = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **SYSTEM)
    bound = SIDES[int(few.limited_by)]
    assert bound == "decode"
    more_prefill = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **{**SYSTEM, "prefill_workers": 4})
    assert more_prefill.loop.max_rate_per_s == pytest.approx(float(few.loop.max_rate_per_s))
    more_decode = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **{**SYSTEM, "decode_workers": 2})
    assert more_decode.loop.max_rate_per_s > 1.3 * few.loop.max_rate_per_s
    # 2 workers, 1.3e8 bytes over 1e9 bytes/s: 2 / 0.13 = 15.4 requests a second.
    link = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **{**SYSTEM, "bandwidth_bytes_per_s": 1e9})
    assert SIDES[int(link.limited_by)] == "link"
    assert link.loop.max_rate_per_s == pytest.approx(2 / 0.13)


def test_degradation_takes_its_share() -> None:
    plain = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **SYSTEM)
    worse = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, decode_degradation=0.92, **SYSTEM)
    assert worse.loop.max_rate_per_s == pytest.approx(0.92 * float(plain.loop.max_rate_per_s))


def test_a_higher_rate_waits_longer_and_too_high_is_an_answer() -> None:
    top = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **SYSTEM).loop.max_rate_per_s
    rates = float(top) * np.array([0.1, 0.4, 0.7, 0.9, 1.1])
    loop = disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=rates, **SYSTEM).loop
    assert loop.stable.tolist() == [True] * 4 + [False]
    assert (np.diff(loop.ttft_mean_s[:4]) > 0).all()
    assert np.isinf(loop.ttft_s(0.9)[4])
    assert (loop.ttft_s(0.5) <= loop.ttft_s(0.99)).all()


def simulated_ping_pong(attention: float, expert: float, transfer: float, layers: int, batches: int) -> float:
    """Events: four stages in a ring, each taking one micro-batch at a time, first come first served."""
    service = (attention, transfer, expert, transfer)
    free = [0.0] * 4
    events = [(0.0, batch, 0) for batch in range(batches)]
    heapq.heapify(events)
    end = 0.0
    while events:
        ready, batch, done = heapq.heappop(events)
        stage = done % 4
        free[stage] = max(free[stage], ready) + service[stage]
        end = max(end, free[stage])
        if done + 1 < 4 * layers:
            heapq.heappush(events, (free[stage], batch, done + 1))
    return end


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 50), st.integers(1, 50), st.integers(0, 60), st.integers(1, 12), st.integers(1, 8)
)  # fmt: skip
def test_ping_pong_against_events(attention: int, expert: int, transfer: int, layers: int, batches: int) -> None:
    found = ping_pong(
        attention_s=attention, expert_s=expert, transfer_s=transfer, num_layers=layers, micro_batches=batches
    )
    assert found.step_s == pytest.approx(simulated_ping_pong(attention, expert, transfer, layers, batches))


def test_enough_micro_batches_hide_the_transfers() -> None:
    """Even sides of 1 and transfers of 0.5: 2 (1 + 0.5) = 3 micro-batches keep both busy but for filling."""
    found = ping_pong(
        attention_s=1.0, expert_s=1.0, transfer_s=0.5, num_layers=1000, micro_batches=np.array([1, 2, 3, 4])
    )
    assert found.micro_batches_to_hide == 3
    assert found.attention_busy == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0], rel=1e-2)


def test_bad_input() -> None:
    with pytest.raises(OptionError, match="bandwidth"):
        kv_transfer_s(1.0, 0.0)
    with pytest.raises(OptionError, match="kv_bytes"):
        kv_transfer_s(-1.0, 1.0)
    with pytest.raises(OptionError, match="decode_workers"):
        disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, **{**SYSTEM, "decode_workers": 0})
    with pytest.raises(OptionError, match="degradations"):
        disaggregated(TIMES, RULES, TIMES, RULES, rate_per_s=1.0, prefill_degradation=1.5, **SYSTEM)
    with pytest.raises(OptionError, match="attention_s"):
        ping_pong(attention_s=0, expert_s=1, transfer_s=0, num_layers=1, micro_batches=1)
