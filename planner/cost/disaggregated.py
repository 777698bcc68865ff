"""Prefill and decode on different workers, and attention and experts on different workers. All functions vectorised.

Prefill/decode: x prefill workers hand the KV cache of each prompt over a link to y decode workers. Each side is an open
loop of its own (`queueing.open_loop`); the slowest of the three, link included, bounds the rate.

Attention/experts: micro-batches go back and forth between the two sides, layer by layer, so that neither waits
(MegaScale-Infer, arXiv 2504.02263; Step-3, arXiv 2507.19427).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.open_loop import OpenLoop, open_loop
from planner.cost.queueing.step_times import FloatArray, Scheduler, StepTimes, refuse

#: Names of what bounds the rate, by index in `Disaggregated.limited_by`.
SIDES = ("prefill", "link", "decode")
_NO_BUDGET = 1e12


def prefill_scheduler(scheduler: Scheduler) -> Scheduler:
    """The rules of a worker that only prefills; its requests have one output token."""
    return replace(scheduler, prefill_first=np.asarray(True))


def decode_only(times: StepTimes, scheduler: Scheduler) -> tuple[StepTimes, Scheduler]:
    """Step times and rules of a worker whose prompts arrive as a finished KV cache.

    They take no token budget, and their first iteration reads them as any other does.
    """
    return (
        replace(times, prefill_per_token_s=times.decode_per_kv_token_s, prefill_per_token_pair_s=np.zeros(())),
        replace(
            scheduler,
            max_num_seqs=np.minimum(scheduler.max_num_seqs, scheduler.max_num_batched_tokens),
            max_num_batched_tokens=_NO_BUDGET,
            prefill_first=np.asarray(False),
        ),
    )


def kv_transfer_s(
    kv_bytes: npt.ArrayLike,
    bandwidth_bytes_per_s: npt.ArrayLike,
    latency_s: npt.ArrayLike = 0.0,
    *,
    prefill_s: npt.ArrayLike = 0.0,
    overlapped_layers: npt.ArrayLike = 1,
) -> FloatArray:
    """Seconds from the end of a prefill until the whole KV cache has arrived.

    overlapped_layers : layers that are sent one by one while the next are computed; 1 sends all at the end.
    A layer is ready every prefill_s / layers and takes bytes / layers / bandwidth: a pipeline of two stages.
    """
    size, layers = np.asarray(kv_bytes, dtype=np.float64), np.asarray(overlapped_layers, dtype=np.float64)
    bandwidth = np.asarray(bandwidth_bytes_per_s, dtype=np.float64)
    refuse(~(size >= 0), "kv_bytes must not be negative")
    refuse(~(bandwidth > 0), "bandwidth_bytes_per_s must be above 0")
    refuse(~(np.asarray(latency_s) >= 0), "latency_s must not be negative")
    refuse(~(layers >= 1), "overlapped_layers must be at least 1")
    sending = size / bandwidth
    left = np.maximum(sending / layers, sending - np.asarray(prefill_s) * (layers - 1) / layers)
    return np.asarray(left + latency_s)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Disaggregated:
    """Steady state of x prefill and y decode workers at a rate, [plans]."""

    loop: OpenLoop
    """TTFT and TPOT of the whole, with percentiles; rates are those of the whole."""
    prefill: OpenLoop
    """One prefill worker at its share of the rate."""
    decode: OpenLoop
    """One decode worker at its share; its TTFT is the wait for a slot and the first decode iteration."""
    transfer_s: FloatArray
    """KV transfer with its queue."""
    limited_by: npt.NDArray[np.int64]
    """Index into SIDES of what bounds the rate."""


def disaggregated(
    prefill_times: StepTimes,
    prefill_rules: Scheduler,
    decode_times: StepTimes,
    decode_rules: Scheduler,
    *,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    rate_per_s: npt.ArrayLike,
    prefill_workers: npt.ArrayLike,
    decode_workers: npt.ArrayLike,
    kv_bytes: npt.ArrayLike,
    bandwidth_bytes_per_s: npt.ArrayLike,
    latency_s: npt.ArrayLike = 0.0,
    overlapped_layers: npt.ArrayLike = 1,
    prefill_degradation: npt.ArrayLike = 1.0,
    decode_degradation: npt.ArrayLike = 1.0,
    burstiness: npt.ArrayLike = 1.0,
    length_spread: npt.ArrayLike = 0.0,
) -> Disaggregated:
    """TTFT = prefill queue + prefill + transfer + wait for a decode slot + first decode iteration; TPOT of decode.

    rate_per_s : requests to all workers together; requests are spread at random over the workers of a side.
    kv_bytes : of one prompt; bandwidth_bytes_per_s, latency_s : of the link of one prefill worker.
    prefill_degradation, decode_degradation : factors on each side's highest rate. 1 by default, since queueing is
        modelled here; AIConfigurator 0.12 takes 0.90 and 0.92 in place of a queueing model.
    Errors: OptionError for sizes, counts or factors out of range. A rate too high is an answer: `loop.stable` is False.
    """
    rate = np.asarray(rate_per_s, dtype=np.float64)
    of_prefill, of_decode = np.asarray(prefill_workers, dtype=np.float64), np.asarray(decode_workers, dtype=np.float64)
    refuse(~(of_prefill >= 1) | ~(of_decode >= 1), "prefill_workers and decode_workers must be at least 1")
    factors = np.asarray(prefill_degradation, dtype=np.float64), np.asarray(decode_degradation, dtype=np.float64)
    refuse([np.any(~((factor > 0) & (factor <= 1))) for factor in factors], "degradations must be above 0, at most 1")

    prefill = open_loop(
        prefill_times,
        prefill_scheduler(prefill_rules),
        input_tokens=input_tokens,
        output_tokens=1,
        rate_per_s=rate / (of_prefill * factors[0]),
        burstiness=burstiness,
        length_spread=length_spread,
    )
    alone_times, alone_rules = decode_only(decode_times, decode_rules)
    decode = open_loop(
        alone_times,
        alone_rules,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        rate_per_s=rate / (of_decode * factors[1]),
        burstiness=burstiness,
        length_spread=length_spread,
    )
    sending = np.asarray(kv_bytes) / np.asarray(bandwidth_bytes_per_s)
    sent = kv_transfer_s(
        kv_bytes,
        bandwidth_bytes_per_s,
        latency_s,
        prefill_s=prefill.ttft_least_s,
        overlapped_layers=overlapped_layers,
    )
    link_load = rate / of_prefill * sending
    with np.errstate(divide="ignore"):
        most = np.stack(
            np.broadcast_arrays(
                prefill.max_rate_per_s * of_prefill * factors[0],
                of_prefill / np.asarray(sending, dtype=np.float64),
                decode.max_rate_per_s * of_decode * factors[1],
            )
        )
    max_rate = most.min(axis=0)
    stable = rate < max_rate
    # Prompts of equal length: a queue with even service (Pollaczek-Khinchine), its wait about exponential.
    held = np.minimum(link_load, 0.999)
    queue = np.where(stable, held * sending * burstiness / (2 * (1 - held)), np.inf)
    transfer = sent + queue
    prefill_wait = prefill.slot_chance * prefill.slot_wait_s
    variance = prefill.body_deviation_s**2 + prefill.slot_chance * prefill.slot_wait_s**2
    variance = np.where(stable, variance + queue**2 + decode.body_deviation_s**2, np.inf)
    loop = OpenLoop(
        ttft_mean_s=np.where(stable, prefill.ttft_mean_s + transfer + decode.ttft_mean_s, np.inf),
        body_mean_s=np.where(stable, prefill.body_mean_s + prefill_wait + transfer + decode.body_mean_s, np.inf),
        body_deviation_s=np.sqrt(variance),
        slot_chance=decode.slot_chance,
        slot_wait_s=np.where(stable, decode.slot_wait_s, np.inf),
        ttft_least_s=prefill.ttft_least_s + sent + decode.ttft_least_s,
        tpot_mean_s=np.where(stable, decode.tpot_mean_s, np.inf),
        tpot_deviation_s=np.where(stable, decode.tpot_deviation_s, np.inf),
        tpot_least_s=decode.tpot_least_s,
        mean_batch=decode.mean_batch,
        max_rate_per_s=max_rate,
        utilisation=rate / np.maximum(max_rate, 1e-300),
        stable=stable,
    )
    return Disaggregated(loop=loop, prefill=prefill, decode=decode, transfer_s=transfer, limited_by=most.argmin(axis=0))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PingPong:
    """One decode iteration with attention and experts on different workers, [plans]."""

    step_s: FloatArray
    """Until the last micro-batch has left the last layer."""
    attention_busy: FloatArray
    """Share of the step in which the attention workers compute."""
    expert_busy: FloatArray
    micro_batches_to_hide: FloatArray
    """Fewest micro-batches with which the slower side never waits."""


def ping_pong(
    *,
    attention_s: npt.ArrayLike,
    expert_s: npt.ArrayLike,
    transfer_s: npt.ArrayLike,
    num_layers: npt.ArrayLike,
    micro_batches: npt.ArrayLike,
) -> PingPong:
    """Attention/expert disaggregation, all arguments broadcast to [plans].

    attention_s, expert_s : seconds of one micro-batch in one layer on each side; transfer_s : one way between them.
    A micro-batch needs R = attention + expert + 2 transfers a layer, and each layer the slowest stage b for each of m
    micro-batches, so a layer takes max(R, m b) and the step (layers - 1) max(R, m b) + R + (m - 1) b. With m b >= R
    that is MegaScale-Infer's R + b (m layers - 1), and m >= 2 (1 + transfer / b) its condition with even sides.
    Errors: OptionError for negative times or counts below one.
    """
    attention, expert = np.asarray(attention_s, dtype=np.float64), np.asarray(expert_s, dtype=np.float64)
    transfer = np.asarray(transfer_s, dtype=np.float64)
    layers, batches = np.asarray(num_layers, dtype=np.float64), np.asarray(micro_batches, dtype=np.float64)
    refuse(~(attention > 0) | ~(expert > 0), "attention_s and expert_s must be above 0")
    refuse(~(transfer >= 0), "transfer_s must not be negative")
    refuse(~(layers >= 1) | ~(batches >= 1), "num_layers and micro_batches must be at least 1")
    around = attention + expert + 2 * transfer
    slowest = np.maximum(np.maximum(attention, expert), transfer)
    step = (layers - 1) * np.maximum(around, batches * slowest) + around + (batches - 1) * slowest
    return PingPong(
        step_s=step,
        attention_busy=layers * batches * attention / step,
        expert_busy=layers * batches * expert / step,
        micro_batches_to_hide=np.ceil(around / slowest - 1e-9),
    )
