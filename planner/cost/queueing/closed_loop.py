"""A closed loop in closed form: so many clients, each sending its next request when its last one ends.

A request waits for its first token, then decodes for OSL - 1 iterations. The other clients do the same, so a share
decode / (ttft + decode) of them decodes at any time: a fixed point. Two facts of closed-loop benchmarks shape the TTFT:

- all clients start at once, and requests of equal length then end together, wave after wave. Lengths that vary spread
  wave k over about sqrt(k) times the range of the output lengths; only then do arrivals thin out;
- when KV slots are fewer than clients, the rest wait in a queue, which Little's law sizes.

Validated against `simulation` by `python -m benchmarks.queueing`; no constant here is fitted to measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.step_times import FloatArray, Scheduler, StepTimes, refuse

#: Rounds of the fixed point; ten times as many change the mean errors on the benchmark's grid by under 0.1 points.
ROUNDS = 5
_ROOT_3 = 3.0**0.5
_ROOT_12 = 12.0**0.5


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClosedLoop:
    """Mean times of a closed loop, [plans]. Where no request fits: fits is False, times are inf and rates 0."""

    ttft_s: FloatArray
    """Mean over the whole benchmark, start-up burst included."""
    tpot_s: FloatArray
    steady_ttft_s: FloatArray
    """Mean of the requests after each client's first."""
    burst_ttft_s: FloatArray
    """Mean of each client's first request."""
    admitted: FloatArray
    """Requests that hold KV slots: the clients, or what fits."""
    mean_batch: FloatArray
    """Decoding sequences that a decoding request meets, itself included."""
    requests_per_s: FloatArray
    """Of the replica, in steady state."""
    output_tokens_per_s: FloatArray
    fits: npt.NDArray[np.bool_]


def benchmark_waves(clients: npt.ArrayLike) -> FloatArray:
    """Requests a client of the benchmark that `simulation.benchmark_requests` describes."""
    count = np.asarray(clients, dtype=np.float64)
    return np.minimum(10 * count, np.maximum(1200, 3 * count)) / count


def kv_slots(scheduler: Scheduler, input_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> FloatArray:
    """Requests that the KV cache and the scheduler's limits admit at a time, [plans]; 0 where not even one fits.

    With reservation each holds ISL + OSL. On demand a request holds ISL + OSL/2 on average.
    """
    inputs, outputs = np.asarray(input_tokens, dtype=np.float64), np.asarray(output_tokens, dtype=np.float64)
    held = np.where(scheduler.reserve_full, inputs + outputs, inputs + outputs / 2)
    slots = np.floor(np.asarray(scheduler.kv_capacity_tokens) / held)
    slots = np.minimum(slots, np.minimum(scheduler.max_num_seqs, scheduler.max_num_batched_tokens))
    whole = inputs <= scheduler.max_num_batched_tokens
    fits = (inputs + outputs <= scheduler.kv_capacity_tokens) & (scheduler.chunked_prefill | whole)
    return np.where(fits, slots, 0.0)


def check_sizes(input_tokens: FloatArray, output_tokens: FloatArray) -> None:
    """OptionError for sizes below one token."""
    refuse(~(input_tokens >= 1), "input_tokens must be at least 1")
    refuse(~(output_tokens >= 1), "output_tokens must be at least 1")


def closed_loop(
    times: StepTimes,
    scheduler: Scheduler,
    *,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    clients: npt.ArrayLike,
    waves: npt.ArrayLike | None = None,
    length_spread: npt.ArrayLike = 0.0,
) -> ClosedLoop:
    """Mean TTFT and TPOT of a closed loop, all arguments broadcast to [plans].

    input_tokens, output_tokens : mean lengths.
    clients : concurrent requests of one replica.
    waves : requests each client sends; default as `benchmark_waves`, inf for the steady state alone.
    length_spread : standard deviation over mean of the lengths; 0 for fixed ones, 0.064 for 0.8..1.0 of a nominal one.
    Errors: OptionError for sizes below one or a negative spread.
    """
    inputs, outputs = np.asarray(input_tokens, dtype=np.float64), np.asarray(output_tokens, dtype=np.float64)
    count, spread = np.asarray(clients, dtype=np.float64), np.asarray(length_spread, dtype=np.float64)
    check_sizes(inputs, outputs)
    refuse(~(count >= 1), "clients must be at least 1")
    num_waves = benchmark_waves(count) if waves is None else np.asarray(waves, dtype=np.float64)
    refuse(~(num_waves >= 1), "waves must be at least 1")
    refuse(~((spread >= 0) & (spread < 1 / _ROOT_3)), "length_spread must be from 0 to below 0.577")

    slots = kv_slots(scheduler, inputs, outputs)
    admitted = np.minimum(count, slots)
    fits = admitted >= 1
    active = np.maximum(admitted, 1.0)
    queued = count / active  # requests for each slot
    load = _Load(times, scheduler, inputs, outputs, active, num_waves * queued, spread)
    ttft, decode, batch = load.steady()
    burst = load.burst()

    cycle = ttft + decode
    steady_ttft = (queued - 1) * cycle + ttft
    whole = np.floor(queued)
    cycles_waited = whole * (queued - (whole + 1) / 2) / queued
    burst_ttft = cycles_waited * cycle + (burst + (queued - 1) * ttft) / queued
    first = 1 / num_waves
    tpot = decode / np.maximum(outputs - 1, 1)
    rate = np.minimum(active / cycle, 1 / load.least_work())
    return ClosedLoop(
        ttft_s=np.where(fits, first * burst_ttft + (1 - first) * steady_ttft, np.inf),
        tpot_s=np.where(fits, tpot, np.inf),
        steady_ttft_s=np.where(fits, steady_ttft, np.inf),
        burst_ttft_s=np.where(fits, burst_ttft, np.inf),
        admitted=np.where(fits, admitted, 0.0),
        mean_batch=np.where(fits, batch, 0.0),
        requests_per_s=np.where(fits, rate, 0.0),
        output_tokens_per_s=np.where(fits, rate * outputs, 0.0),
        fits=fits,
    )


class _Load:
    """The terms of one call that the fixed point reuses; all arrays [plans]."""

    def __init__(
        self,
        times: StepTimes,
        scheduler: Scheduler,
        inputs: FloatArray,
        outputs: FloatArray,
        active: FloatArray,
        waves: FloatArray,
        spread: FloatArray,
    ) -> None:
        self.base, self.inputs, self.active = times.decode_base_s, inputs, active
        self.steps = np.maximum(outputs - 1, 1e-9)
        self.prompt = times.prefill(inputs)
        self.per_decode = times.per_decode(inputs + outputs / 2)
        self.budget = np.asarray(scheduler.max_num_batched_tokens)
        self.prefill_first, self.chunked = np.asarray(scheduler.prefill_first), np.asarray(scheduler.chunked_prefill)
        self.varied = np.minimum(spread * 1e9, 1.0)
        self.shortest, self.longest = inputs * (1 - _ROOT_3 * spread), inputs * (1 + _ROOT_3 * spread)
        self.waves = waves
        # Mean of 1/sqrt(k) over the waves after the first: how dense they are beside one spread by the lengths once.
        self.later = np.maximum(waves - 1, 1.0)
        with np.errstate(invalid="ignore"):
            density = np.where(np.isfinite(waves), np.minimum((2 * np.sqrt(self.later) - 1) / self.later, 1.0), 0.0)
        wide = np.full(np.shape(density), np.inf)
        np.divide(_ROOT_12 * spread * self.steps, density, out=wide, where=density > 0)
        self.spread_steps = np.broadcast_to(wide, np.broadcast_shapes(wide.shape, spread.shape))

    def steady(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Seconds to the first token once admitted, of decoding, and the batch a decoding request meets."""
        # From where the token budget, shared by prompts and decoding, lets no more decode.
        most = np.minimum(self.active, self.budget * self.steps / (self.inputs + self.steps))
        most = np.where(self.prefill_first, self.active, most)
        decode = self.steps * (self.base + self.per_decode * most) + most * self.prompt
        ttft = np.maximum(self.base + self.prompt, decode * (self.active / most - 1))
        for left in reversed(range(ROUNDS)):
            if self.prefill_first.all():
                wait, busy = self._prefill_first(ttft, decode)
            elif not self.prefill_first.any():
                wait, busy = self._mixed(ttft, decode)
            else:
                first, mixed = self._prefill_first(ttft, decode), self._mixed(ttft, decode)
                wait = np.where(self.prefill_first, first[0], mixed[0])
                busy = np.where(self.prefill_first, first[1], mixed[1])
            # Half a step, against swinging; the last one whole, so that a lone client is exact.
            ttft, decode = ((ttft + wait) / 2, (decode + busy) / 2) if left else (wait, busy)
        sharing = np.where(self.prefill_first, 1.0, decode / (ttft + decode))
        return ttft, decode, 1 + (self.active - 1) * sharing

    def least_work(self) -> FloatArray:
        """Seconds of the replica that a request takes at the least: its own work, its share of full iterations."""
        decoding, prefilling = self.steps / self.active, self.inputs / self.budget
        shared = np.maximum(np.maximum(decoding, prefilling), prefilling + self.steps / self.budget)
        iterations = np.where(self.prefill_first, decoding + prefilling, shared)
        return np.asarray(self.prompt + self.steps * self.per_decode + iterations * self.base)

    def _mixed(self, ttft: FloatArray, decode: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Prompts share iterations with decoding sequences, which take their part of the token budget first."""
        active, inputs = self.active, self.inputs
        cycle = ttft + decode
        share = decode / cycle
        others = (active - 1) * share
        room = self._room(others)
        prompts = room / inputs  # that an iteration takes
        iteration = self.base + self.per_decode * others
        start = active * inputs / self._room(others / 2)  # iterations of the burst at the start
        window = np.minimum(np.sqrt(start * start + self.spread_steps**2), cycle * self.steps / decode)
        window = np.maximum(window, 1.0)
        arriving = np.minimum((active - 1) / window, prompts)  # other prompts an iteration
        backlog = self._backlog(arriving / prompts, prompts, np.minimum(self.spread_steps / start, 1.0))
        # The decoding sequences take more of the budget than at the start: a queue builds once.
        backlog = backlog + np.maximum(active / prompts - window, 0.0) / 2 / self.later
        # Beside equal prompts a group fits its iteration or not; beside varied ones it may overhang.
        loose = np.where(self.varied > 0, 1.0, 1 - prompts / np.maximum(prompts, 1.0))
        spans = _mean_ceil(self.shortest / room, (self.longest + arriving * inputs * loose) / room) + backlog
        tokens = np.minimum(spans * room, inputs + arriving * inputs * np.maximum(spans, 1.0) + backlog * room)
        wait = spans * iteration + self.prompt * tokens / inputs
        # In its last wave a request meets half of the other prompts.
        met = np.maximum(active - 1 - arriving, 0.0) * share * (1 - share / (2 * self.waves))
        busy = self.steps * (iteration + self.per_decode) + met * self.prompt
        # Decoding must leave room for all prompts: else they wait until it does.
        return np.maximum(wait, active * busy / (self.steps * prompts) - busy), busy

    def _prefill_first(self, ttft: FloatArray, decode: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Prompts that arrive in one decode iteration run together, while decoding stands still."""
        active = self.active
        cycle = (ttft + decode) * self.steps / decode
        window = np.maximum(np.minimum(self.spread_steps, cycle), 1.0)
        group = np.minimum(1 + (active - 1) / window, active)
        spans, prompts, last = self._together(group, self._room(0.0))
        wait = spans * self.base + prompts * self.prompt
        # A request stands still while the rest of its own group and all of the others are prefilled.
        met = np.maximum(active - group, 0.0) * (1 - 0.5 / self.waves)
        whole = last * self.base + group * self.prompt
        stalled = whole - wait + met * whole / group
        return wait, self.steps * (self.base + self.per_decode * active) + stalled

    def _room(self, decodes: npt.ArrayLike) -> FloatArray:
        """Prompt tokens that an iteration takes beside so many decoding sequences."""
        room = np.maximum(self.budget - decodes, 1.0)
        if self.chunked.all():
            return room
        whole = np.maximum(np.floor(room / self.inputs), 1.0) * self.inputs
        return np.where(self.chunked, room, whole)

    def _backlog(self, utilisation: FloatArray, prompts: FloatArray, burstiness: FloatArray) -> FloatArray:
        """Iterations of prompts found waiting: Sakasegawa's M/M/c form with `prompts` servers, and at most what a
        random walk over the prompts of one wave piles up."""
        servers, service = np.maximum(prompts, 1.0), np.maximum(1 / prompts, 1.0)
        load = np.minimum(utilisation, 0.999)
        queue = load ** (np.sqrt(2 * (servers + 1)) - 1) * service * burstiness / (2 * servers * (1 - load))
        walk = np.sqrt(self.active) * service / (2 * servers) * burstiness + 1e-12
        return np.asarray(queue * walk / (queue + walk))

    def burst(self) -> FloatArray:
        """Mean seconds to the first token when all prompts come at once to an idle replica."""
        active = self.active
        room = self._room(np.where(self.prefill_first, 0.0, np.minimum(active - 1, self.budget / 2) / 2))
        spans, prompts, last = self._together(active, room)
        # The decodes that have joined, summed over the iterations up to the mean one.
        joined = np.minimum((last * last - 1) / 6, (last + 1) / 2 * self.steps)
        joined = joined * np.minimum(room / self.inputs, active - 1) * self.per_decode
        joining = np.where(self.prefill_first, 0.0, joined)
        return np.asarray(spans * self.base + prompts * self.prompt + joining)

    def _together(self, group: FloatArray, room: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """When prompts that came together end, on average: iterations and prompts' worth of work; iterations in all."""
        one, total = self.inputs / room, group * self.inputs / room
        last = np.ceil(total - 1e-9)
        spans = _mean_ceil(np.where(one > 1, one, 0.0), total)
        # The last iteration is not full.
        in_last = np.clip((total - (last - 1)) / one, 1.0, group) / group
        return spans, (spans - (last - total) * in_last) / one, last


def _mean_ceil(low: FloatArray, high: FloatArray) -> FloatArray:
    """Mean of ceil(x) for x uniform between the two."""
    width = high - low

    def integral(x: FloatArray) -> FloatArray:
        up = np.ceil(x)
        return up * (x - (up - 1) / 2)

    narrow = width < 1e-6
    return np.where(narrow, np.ceil(low - 1e-9), (integral(high) - integral(low)) / np.where(narrow, 1.0, width))
