"""An open loop in closed form: requests arrive at a rate, whatever the replica does.

Little's law gives the batch: B = rate (OSL - 1) T, where an iteration with its share of prompts takes T. Arrivals
during one iteration run in the next: a gated queue, whose iterations follow S' = d + prompts(S) P. A request waits for
the rest of the iteration that it finds, then runs with all that came in the same one. Two queues come on top: prompts
that exceed the token budget, and requests that find every KV slot taken.

The highest rate is what a closed loop serves with every slot taken. Above it the answer is inf, and `stable` says so.
Validated against `simulation` by `python -m benchmarks.queueing`; no constant here is fitted to measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.closed_loop import check_sizes, closed_loop, kv_slots
from planner.cost.queueing.percentiles import shifted_gamma
from planner.cost.queueing.step_times import FloatArray, Scheduler, StepTimes, refuse

#: Rounds of the fixed point of prefill-first scheduling.
ROUNDS = 8


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OpenLoop:
    """Steady state under random arrivals, [plans]. Times are inf where stable is False."""

    ttft_mean_s: FloatArray
    body_mean_s: FloatArray
    body_deviation_s: FloatArray
    slot_chance: FloatArray
    slot_wait_s: FloatArray
    ttft_least_s: FloatArray
    """What a request takes that meets nobody."""
    tpot_mean_s: FloatArray
    tpot_deviation_s: FloatArray
    tpot_least_s: FloatArray
    mean_batch: FloatArray
    """Decoding sequences, averaged over time."""
    max_rate_per_s: FloatArray
    """Requests a second above which queues grow without end; 0 where not even one request fits."""
    utilisation: FloatArray
    """rate / max_rate_per_s."""
    stable: npt.NDArray[np.bool_]

    def ttft_s(self, percentile: float) -> FloatArray:
        """TTFT that this fraction of requests stays below, [plans]."""
        body = shifted_gamma(self.body_mean_s, self.body_deviation_s, self.ttft_least_s, percentile)
        with np.errstate(divide="ignore", invalid="ignore"):
            tail = self.slot_wait_s * np.log(np.maximum(self.slot_chance / (1 - percentile), 1.0))
        return np.asarray(body + np.where(np.isfinite(body), tail, 0.0))

    def tpot_s(self, percentile: float) -> FloatArray:
        """TPOT, averaged over a request, that this fraction of requests stays below, [plans]."""
        return shifted_gamma(self.tpot_mean_s, self.tpot_deviation_s, self.tpot_least_s, percentile)


def open_loop(
    times: StepTimes,
    scheduler: Scheduler,
    *,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    rate_per_s: npt.ArrayLike,
    burstiness: npt.ArrayLike = 1.0,
    length_spread: npt.ArrayLike = 0.0,
) -> OpenLoop:
    """TTFT and TPOT at a rate of requests to one replica, all arguments broadcast to [plans]; TPOT 0 where OSL is 1.

    input_tokens, output_tokens : mean lengths; length_spread : their standard deviation over mean.
    burstiness : squared coefficient of variation of the times between arrivals; 1 is Poisson.
    Errors: OptionError for sizes below one, rates that are not above zero, negative burstiness or spread.
    """
    rate, bursts = np.asarray(rate_per_s, dtype=np.float64), np.asarray(burstiness, dtype=np.float64)
    refuse(~(np.isfinite(rate) & (rate > 0)), "rate_per_s must be above 0")
    return _Source(times, scheduler, input_tokens, output_tokens, bursts, length_spread).at(rate)


def max_rate_under_slo(
    times: StepTimes,
    scheduler: Scheduler,
    *,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    ttft_s: npt.ArrayLike = np.inf,
    tpot_s: npt.ArrayLike = np.inf,
    percentile: float | None = 0.9,
    margin: npt.ArrayLike = 0.0,
    burstiness: npt.ArrayLike = 1.0,
    length_spread: npt.ArrayLike = 0.0,
    rounds: int = 24,
) -> FloatArray:
    """Highest rate of requests to one replica whose TTFT and TPOT stay within limits, [plans]; 0 where no rate does.

    percentile : fraction of requests that must stay within each limit; None judges the means.
    margin : predictions count this much larger, against their own error: 0.1 plans with 10 % in hand.
    """
    refuse(np.asarray(margin) < 0, "margin must not be negative")
    source = _Source(times, scheduler, input_tokens, output_tokens, np.asarray(burstiness), length_spread)
    ttft_limit, tpot_limit = (np.asarray(limit) / (1 + np.asarray(margin)) for limit in (ttft_s, tpot_s))
    refuse(~(ttft_limit > 0) | ~(tpot_limit > 0), "limits must be above 0")

    def holds(rate: FloatArray) -> npt.NDArray[np.bool_]:
        loop = source.at(rate)
        if percentile is None:
            ttft, tpot = loop.ttft_mean_s, loop.tpot_mean_s
        else:
            ttft, tpot = loop.ttft_s(percentile), loop.tpot_s(percentile)
        return np.asarray((ttft <= ttft_limit) & (tpot <= tpot_limit))

    return highest_rate(holds, source.max_rate, np.broadcast_shapes(ttft_limit.shape, tpot_limit.shape), rounds)


def highest_rate(
    holds: Callable[[FloatArray], npt.NDArray[np.bool_]], top: FloatArray, shape: tuple[int, ...], rounds: int = 24
) -> FloatArray:
    """Bisection on the share of a highest rate `top`, from below: what is returned holds.

    Where one limit holds whenever another does, its rate is at least the other's: until the first rate at which only
    the looser one holds both see the same rates, and that rate is above all that the stricter one sees later. This is
    so even if `holds` remembers what it was asked before.
    """
    low = np.zeros(np.broadcast_shapes(top.shape, shape))
    high = np.ones(low.shape)
    for _ in range(rounds):
        middle = (low + high) / 2
        good = holds(np.maximum(middle * top, 1e-300))
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.asarray(low * top)


class _Source:
    """What does not depend on the rate; all arrays [plans]."""

    def __init__(
        self,
        times: StepTimes,
        scheduler: Scheduler,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        burstiness: FloatArray,
        length_spread: npt.ArrayLike,
    ) -> None:
        self.inputs = np.asarray(input_tokens, dtype=np.float64)
        outputs = np.asarray(output_tokens, dtype=np.float64)
        self.spread = np.asarray(length_spread, dtype=np.float64)
        check_sizes(self.inputs, outputs)
        refuse(~(burstiness >= 0), "burstiness must not be negative")
        self.bursts, self.base = burstiness, times.decode_base_s
        self.prompt = times.prefill(self.inputs)
        self.steps = np.maximum(outputs - 1, 1e-9)
        self.per_decode = times.per_decode(self.inputs + outputs / 2)
        self.work = np.maximum(self.prompt + self.steps * self.per_decode, 1e-12)
        self.budget, self.prefill_first = (
            np.asarray(scheduler.max_num_batched_tokens),
            np.asarray(scheduler.prefill_first),
        )
        slots = kv_slots(scheduler, self.inputs, outputs)
        self.slots = np.maximum(slots, 1.0)
        full = closed_loop(
            times,
            scheduler,
            input_tokens=self.inputs,
            output_tokens=outputs,
            clients=self.slots,
            waves=np.inf,
            length_spread=self.spread,
        )
        self.max_rate = np.where(full.fits, full.requests_per_s, 0.0)
        # No iteration is longer than with every slot taken.
        self.most_tpot = np.maximum(full.tpot_s, self.base + self.per_decode)
        self.least_ttft = np.ceil(self.inputs / self.budget) * self.base + self.prompt
        self.least_tpot = self.base + self.per_decode

    def at(self, rate: FloatArray) -> OpenLoop:
        """The steady state at a rate, [plans]."""
        with np.errstate(divide="ignore"):
            load = np.where(self.max_rate > 0, rate / np.where(self.max_rate > 0, self.max_rate, 1.0), np.inf)
        stable = load < 1
        rate = np.where(stable, rate, np.maximum(self.max_rate / 2, 1e-9))
        interval, seen, deviation = self._iterations(rate)
        decode = self.steps * interval
        batch = rate * decode
        # n requests leave at the rate n / (a + b n), a the time of one alone and b the work that it adds for all: a
        # processor-sharing queue. Under random arrivals n is negative binomial, whatever the lengths, with success
        # b rate and shape 1 + a / b; here its chance of no request at all.
        share = np.minimum(rate * self.work, 0.999)
        busy = -np.expm1((self.steps * self.least_tpot + self.least_ttft) / self.work * np.log1p(-share))

        # The iteration that a request finds, then the one it runs in.
        found = busy * seen
        beside = np.where(self.prefill_first, 0.0, self.per_decode * batch)
        room = np.maximum(self.budget - np.where(self.prefill_first, 0.0, batch), 1.0)
        prompts = room / self.inputs
        full = self.base + beside + self.prompt * prompts
        servers, service = np.maximum(prompts, 1.0), np.maximum(1 / prompts, 1.0) * full
        budget_wait, budget_chance = _queue(rate * full / prompts, servers, service, self.bursts)
        extra_chunks = np.maximum(np.ceil(self.inputs / room) - np.ceil(self.inputs / self.budget), 0.0)
        ttft = self.least_ttft + beside + found * (0.5 + rate * self.prompt) + extra_chunks * (self.base + beside)
        ttft = ttft + budget_wait
        slot_chance, slot_wait = self._slots_taken(rate, load, rate * (decode + ttft))
        variance = (
            found**2 / 12
            + (0.5 + rate * self.prompt) ** 2 * (busy * deviation**2 + busy * (1 - busy) * seen**2)
            + self.bursts * rate * found * self.prompt**2
            + (self.spread * self.prompt) ** 2
            + np.where(self.prefill_first, 0.0, self.per_decode**2 * batch)
            + _queue_variance(budget_wait, budget_chance)
        )
        # Each other request met for a share u of the stay adds u per_decode; one that comes meanwhile its prompt too.
        stall = (self.prompt + np.where(self.prefill_first, self.base, 0.0)) / self.steps
        each = stall**2 + stall * self.per_decode + 2 / 3 * self.per_decode**2
        tpot_variance = self.bursts * rate * decode * each * interval / self.least_tpot
        unstable = np.where(stable, 0.0, np.inf)
        return OpenLoop(
            ttft_mean_s=ttft + slot_chance * slot_wait + unstable,
            body_mean_s=ttft + unstable,
            body_deviation_s=np.sqrt(variance) + unstable,
            ttft_least_s=self.least_ttft * (1 - 3.0**0.5 * self.spread),
            tpot_mean_s=np.where(self.steps < 0.5, 0.0, interval) + unstable,
            tpot_deviation_s=np.where(self.steps < 0.5, 0.0, np.sqrt(tpot_variance)) + unstable,
            tpot_least_s=np.where(self.steps < 0.5, 0.0, self.least_tpot) + 0 * rate,
            slot_chance=slot_chance,
            slot_wait_s=slot_wait + unstable,
            mean_batch=np.where(stable, batch, self.slots),
            max_rate_per_s=self.max_rate + 0 * rate,
            utilisation=load,
            stable=stable,
        )

    def _slots_taken(self, rate: FloatArray, load: FloatArray, resident: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Chance that an arrival finds every slot taken, and its mean wait then.

        Up to the slots the requests are negative binomial with mean `resident`, above them a plain queue.
        """
        share = np.minimum(rate * self.work, 0.999)
        shape = np.maximum(resident * (1 - share) / share, 1.0)
        deviation = np.sqrt(self.bursts * resident / (1 - share)) + 1e-12
        at = resident + (self.slots - resident) / np.sqrt(np.maximum(self.bursts, 1e-3))
        at = np.maximum(at, 0.0)
        log_chance = _log_gamma(at + shape) - _log_gamma(at + 1) - _log_gamma(shape)
        log_chance = log_chance + at * np.log(share) + shape * np.log1p(-share)
        variation = (self.bursts + self.spread**2) / 2
        held = np.minimum(load, 0.9999)
        over = np.exp(np.minimum(log_chance, 0.0)) / (1 - held)
        below = 1 / (1 + np.exp(np.clip(-1.702 * (self.slots - 0.5 - resident) / deviation, -700, 700)))
        wait = np.maximum(variation, 1e-9) / (np.maximum(self.max_rate, 1e-300) * (1 - held))
        return over / (over + below), wait

    def _iterations(self, rate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Time between two tokens, the iteration that an arrival finds (length-biased), and its deviation."""
        if not self.prefill_first.any():
            return self._mixed(rate)
        if self.prefill_first.all():
            return self._alone(rate)
        mixed, alone = self._mixed(rate), self._alone(rate)
        return tuple(np.where(self.prefill_first, a, b) for a, b in zip(alone, mixed, strict=True))  # type: ignore[return-value]

    def _mixed(self, rate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        prompt_load = rate * self.prompt
        # Below the highest rate the work stays below one; only the slots may hold more off.
        left = np.maximum(1 - prompt_load - rate * self.steps * self.per_decode, 1e-3)
        interval = np.minimum(self.least_tpot / left, self.most_tpot)
        batch = rate * self.steps * interval
        quiet = np.maximum(1 - prompt_load, 1e-3)
        length = (self.base + self.per_decode * batch) / quiet
        variance = self.bursts * self.prompt**2 * rate * length / np.maximum(1 - prompt_load**2, 1e-3)
        variance = variance + (self.per_decode / quiet) ** 2 * batch
        return interval, length + variance / length, np.sqrt(variance)

    def _alone(self, rate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Prompts run in iterations of their own: one after each decode iteration in which some came, and so on."""
        prompt_load = rate * self.prompt
        # Without decoding, iterations of prompts follow each other.
        decodes = np.where(self.steps < 0.5, 1e-9, 1.0)
        decode = decodes * (self.base + self.per_decode)
        prefill = self.base + self.prompt
        interval = decode + prompt_load * decode
        runs = np.zeros(())
        for _ in range(ROUNDS):
            after_decode = _at_least_one(rate * decode)
            after_prefill = _at_least_one(rate * prefill)
            again = -np.expm1(-rate * prefill)
            group = (1 - again) * after_decode + again * after_prefill
            prefill = self.base + group * self.prompt
            runs = rate * decode / np.maximum(group - rate * prefill, 1e-3 * group)
            interval = np.minimum(decode + runs * prefill, self.most_tpot)
            decode = decodes * (self.base + self.per_decode * (1 + rate * self.steps * interval))
        cycle = decode + runs * prefill
        variance = self.bursts * rate * prefill * self.prompt**2
        second = decode**2 + runs * (prefill**2 + variance)
        third = decode**3 + runs * prefill * (prefill**2 + 3 * variance)
        seen = second / cycle
        return interval, seen, np.sqrt(np.maximum(third / cycle - seen**2, 0.0))


def _at_least_one(mean: FloatArray) -> FloatArray:
    """Mean of a Poisson number given that it is not 0."""
    return np.asarray(np.where(mean > 1e-9, mean / -np.expm1(-np.maximum(mean, 1e-9)), 1.0))


def _log_gamma(x: FloatArray) -> FloatArray:
    """log Gamma by Stirling's series (Abramowitz & Stegun 6.1.41), within 1e-3 from 1 on."""
    return np.asarray((x - 0.5) * np.log(x) - x + 0.9189385332 + 1 / (12 * x))


def _queue(
    utilisation: FloatArray, servers: FloatArray, service: FloatArray, variation: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean wait and chance to wait of a queue with many servers (Sakasegawa 1977); variation: ca² + cs²."""
    load = np.clip(utilisation, 0.0, 0.999)
    chance = load ** (np.sqrt(2 * (servers + 1)) - 1)
    return chance * service * variation / (2 * servers * (1 - load)), chance


def _queue_variance(wait: FloatArray, chance: FloatArray) -> FloatArray:
    """Those who wait do so for an exponential time."""
    return wait**2 * (2 / np.maximum(chance, 1e-9) - 1)
