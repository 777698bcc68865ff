"""The oracle: continuous batching, iteration by iteration. Slow beside the closed forms, and right by construction.

Runs of iterations that only decode are taken in one jump: nothing changes until a request ends, one arrives that can
be admitted, or the KV cache is full. All decoding requests advance together, so one counter of decode iterations and a
heap of the counts at which requests end hold the whole batch. The cost is a few operations a request, not a token.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.step_times import FloatArray, Scheduler, StepTimes, refuse
from planner.workload import IntArray


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Served:
    """What happened: per-request arrays [requests] in seconds and tokens, and sums over the run."""

    arrival_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    busy_s: float
    mean_batch: float
    """Decoding sequences, averaged over busy time."""
    peak_kv_tokens: int
    peak_step_tokens: int
    preemptions: int

    @property
    def ttft_s(self) -> FloatArray:
        """Time to first token, [requests]."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> FloatArray:
        """(latency - TTFT) / (OSL - 1), of the requests with more than one output token."""
        many = self.output_tokens > 1
        return (self.finish_s - self.first_token_s)[many] / (self.output_tokens[many] - 1)

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens over the time from the first arrival to the last finish."""
        return float(self.output_tokens.sum() / (self.finish_s.max() - self.arrival_s.min()))


def benchmark_requests(clients: int) -> int:
    """Requests of a closed-loop benchmark: 10 a client, above 1200 in all only as 3 a client."""
    return min(10 * clients, max(1200, 3 * clients))


def uniform_lengths(low: int, high: int, count: int, rng: np.random.Generator) -> IntArray:
    """Token counts drawn evenly from low..high, both included."""
    return rng.integers(low, high + 1, size=count)


def poisson_arrivals(rate_per_s: float, count: int, rng: np.random.Generator) -> FloatArray:
    """Ascending arrival times of a Poisson process."""
    return np.cumsum(rng.exponential(1 / rate_per_s, size=count))


def simulate_closed_loop(
    times: StepTimes,
    scheduler: Scheduler,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    *,
    clients: int,
) -> Served:
    """So many clients start at once, and each sends its next request when its last one ends.

    input_tokens, output_tokens : [requests], in the order in which they are sent.
    Errors: OptionError for sizes below one, or a request that never fits.
    """
    refuse(clients < 1, "clients must be at least 1")
    count = np.size(input_tokens)
    arrival = np.full(count, np.inf)
    arrival[:clients] = 0.0
    return _Replica(times, scheduler, input_tokens, output_tokens, arrival).run()


def simulate_open_loop(
    times: StepTimes,
    scheduler: Scheduler,
    input_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    *,
    arrival_s: npt.ArrayLike,
) -> Served:
    """Requests arrive when they arrive: a Poisson process or a trace. All arrays [requests], arrivals ascending.

    Errors: OptionError for sizes below one, arrivals that are not finite and ascending, or a request that never fits.
    """
    arrival = np.array(arrival_s, dtype=np.float64)
    refuse(~np.isfinite(arrival), "arrival times must be finite")
    refuse(np.diff(arrival) < 0, "arrival times must ascend")
    return _Replica(times, scheduler, input_tokens, output_tokens, arrival).run()


class _Replica:
    """One run. Requests are indices; `left` prompt tokens of a request include those to be computed again."""

    def __init__(
        self,
        times: StepTimes,
        scheduler: Scheduler,
        input_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        arrival: FloatArray,
    ) -> None:
        inputs, outputs = np.array(input_tokens, dtype=np.int64), np.array(output_tokens, dtype=np.int64)
        refuse(inputs.ndim != 1 or inputs.shape != outputs.shape or inputs.shape != arrival.shape or not inputs.size,
               "input tokens, output tokens and arrivals must be lists of one length, not empty")  # fmt: skip
        refuse((inputs < 1) | (outputs < 1), "requests need at least one input and one output token")
        self.base, self.per_sequence, self.per_kv, self.per_token, self.per_pair = (
            float(getattr(times, name)) for name in StepTimes.__dataclass_fields__
        )
        self.budget, self.capacity = float(scheduler.max_num_batched_tokens), float(scheduler.kv_capacity_tokens)
        self.max_seqs = min(float(scheduler.max_num_seqs), self.budget)
        self.chunked, self.prefill_first = bool(scheduler.chunked_prefill), bool(scheduler.prefill_first)
        self.reserve_full = bool(scheduler.reserve_full)
        longest = int((inputs + outputs).max())
        refuse(longest > self.capacity, f"a request of {longest} tokens does not fit: the KV cache holds "
               f"{self.capacity:.0f}, so ISL + OSL may be at most that")  # fmt: skip
        # A request that was dropped comes back with what it had generated.
        whole = int(inputs.max()) if self.reserve_full else longest - 1
        refuse(not self.chunked and whole > self.budget, f"a prompt of {whole} tokens exceeds the budget of "
               f"{self.budget:.0f} tokens of an iteration; allow chunked prefill or raise it")  # fmt: skip

        self.inputs, self.outputs, self.arrival = inputs, outputs, arrival
        self.input_list, self.output_list, self.arrivals = inputs.tolist(), outputs.tolist(), arrival.tolist()
        count = len(inputs)
        self.first, self.finish = [math.nan] * count, [math.nan] * count
        self.generated = [0] * count
        self.epoch = [0] * count  # raised by a preemption: older entries of the heap and the stack are void
        self.entered = [0] * count  # decode counter at which it began to decode
        self.waiting: deque[int] = deque()
        self.prefilling: deque[list[int]] = deque()  # [request, cached, left]
        self.ends: list[tuple[int, int, int]] = []  # (decode counter, request, epoch)
        self.admitted: list[tuple[int, int]] = []  # (request, epoch), oldest first; may hold void entries
        self.now, self.decoded, self.num_decodes, self.kv, self.held, self.next = 0.0, 0, 0, 0, 0, 0
        self.called = int(np.isfinite(arrival).sum())  # requests that have an arrival time
        self.done = self.preemptions = self.peak_kv = self.peak_tokens = 0
        self.busy = self.batch_time = 0.0

    def run(self) -> Served:
        count = len(self.input_list)
        while self.done < count:
            self._arrive()
            self._make_room()
            chunks = self._plan_chunks()
            if chunks:
                self._step(chunks)
            elif self.num_decodes:
                self._jump()
            else:
                self.now = self.arrivals[self.next]
        return Served(
            arrival_s=np.array(self.arrivals),
            first_token_s=np.array(self.first),
            finish_s=np.array(self.finish),
            input_tokens=self.inputs,
            output_tokens=self.outputs,
            busy_s=self.busy,
            mean_batch=self.batch_time / self.busy,
            peak_kv_tokens=self.peak_kv,
            peak_step_tokens=self.peak_tokens,
            preemptions=self.preemptions,
        )

    def _arrive(self) -> None:
        while self.next < len(self.arrivals) and self.arrivals[self.next] <= self.now:
            self.waiting.append(self.next)
            self.next += 1

    def _make_room(self) -> None:
        """Drop the newest requests until every decoding one can cache another token."""
        while not self.reserve_full and self.held + self.num_decodes > self.capacity:
            request, epoch = self.admitted.pop()
            if epoch != self.epoch[request] or self.finish[request] == self.finish[request]:
                continue
            self.epoch[request] += 1
            self.preemptions += 1
            if self.prefilling and self.prefilling[-1][0] == request:
                self.held -= self.input_list[request] + self.generated[request]
                self.prefilling.pop()
            else:
                cached = self.input_list[request] + self.generated[request] - 1 + self.decoded - self.entered[request]
                self.generated[request] += self.decoded - self.entered[request]
                self.held -= cached
                self.kv -= cached
                self.num_decodes -= 1
            self.waiting.appendleft(request)

    def _plan_chunks(self) -> list[tuple[list[int], int]]:
        """Prompt chunks of the next iteration, (entry of `prefilling`, tokens): those begun first, then the queue."""
        room = self.budget - (0 if self.prefill_first else self.num_decodes)
        chunks: list[tuple[list[int], int]] = []
        for entry in self.prefilling:
            take = int(min(entry[2], room))
            if take:
                chunks.append((entry, take))
                room -= take
        while self.waiting and room >= 1 and self.num_decodes + len(self.prefilling) < self.max_seqs:
            request = self.waiting[0]
            prompt = self.input_list[request] + self.generated[request]
            hold = self.input_list[request] + self.output_list[request] if self.reserve_full else prompt
            growth = 0 if self.reserve_full else self.num_decodes
            if self.held + growth + hold > self.capacity or (not self.chunked and prompt > room):
                break
            self.waiting.popleft()
            self.held += hold
            self.admitted.append((request, self.epoch[request]))
            entry = [request, 0, prompt]
            self.prefilling.append(entry)
            take = int(min(prompt, room))
            chunks.append((entry, take))
            room -= take
        return chunks

    def _step(self, chunks: list[tuple[list[int], int]]) -> None:
        """One iteration with prompt chunks, and with the decoding sequences unless prompts go alone."""
        decodes = 0 if self.prefill_first else self.num_decodes
        seconds = self.base + decodes * self.per_sequence + (self.kv + decodes) * self.per_kv * (decodes > 0)
        tokens = decodes
        for (_, cached, _), take in chunks:
            seconds += take * self.per_token + take * (cached + take / 2) * self.per_pair
            tokens += take
        self._pass(seconds, tokens)
        if decodes:
            self._advance(1)
        for entry, take in chunks:
            entry[1] += take
            entry[2] -= take
        while self.prefilling and not self.prefilling[0][2]:
            request, cached, _ = self.prefilling.popleft()
            if self.first[request] != self.first[request]:
                self.first[request] = self.now
            self.generated[request] += 1
            left = self.output_list[request] - self.generated[request]
            self.entered[request] = self.decoded
            self.num_decodes += 1
            self.kv += cached
            heapq.heappush(self.ends, (self.decoded + left, request, self.epoch[request]))
        self._retire()

    def _jump(self) -> None:
        """All iterations until something can change: a request ends, memory is full, or one arrives."""
        self._drop_void()
        steps = self.ends[0][0] - self.decoded
        batch = self.num_decodes
        if not self.reserve_full:
            steps = min(steps, int((self.capacity - self.held) // batch) if self.capacity < math.inf else steps)
        linear = self.base + batch * self.per_sequence + self.per_kv * (self.kv + batch / 2)
        square = self.per_kv * batch / 2
        if not self.waiting and self.next < self.called:
            gap = self.arrivals[self.next] - self.now
            until = math.ceil(2 * gap / (linear + math.sqrt(linear * linear + 4 * square * gap)))
            steps = min(steps, max(1, until))
        self._pass(steps * (linear + square * steps), batch)
        self._advance(steps)
        self._retire()

    def _pass(self, seconds: float, tokens: int) -> None:
        self.now += seconds
        self.busy += seconds
        self.batch_time += seconds * self.num_decodes
        self.peak_tokens = max(self.peak_tokens, tokens)

    def _advance(self, steps: int) -> None:
        """Every decoding sequence caches so many more tokens."""
        self.decoded += steps
        self.kv += steps * self.num_decodes
        if not self.reserve_full:
            self.held += steps * self.num_decodes
        self.peak_kv = max(self.peak_kv, self.held)

    def _drop_void(self) -> None:
        while self.ends and self.ends[0][2] != self.epoch[self.ends[0][1]]:
            heapq.heappop(self.ends)

    def _retire(self) -> None:
        """Requests that have all their tokens leave; in a closed loop each calls the next."""
        self.peak_kv = max(self.peak_kv, self.held)
        self._drop_void()
        while self.ends and self.ends[0][0] <= self.decoded:
            _, request, _ = heapq.heappop(self.ends)
            cached = self.input_list[request] + self.output_list[request] - 1
            self.finish[request] = self.now
            self.num_decodes -= 1
            self.kv -= cached
            self.held -= cached + 1 if self.reserve_full else cached
            self.done += 1
            if self.called < len(self.arrivals):
                self.arrivals[self.called] = self.now
                self.called += 1
            self._drop_void()
