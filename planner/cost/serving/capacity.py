"""Requests a second that workers serve within latency limits: what fleets and parallel plans are sized by."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from planner.cost.disaggregated import decode_only, prefill_scheduler
from planner.cost.queueing.open_loop import OpenLoop, highest_rate, open_loop
from planner.cost.queueing.step_times import BoolArray, StepTimes
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.step_times import scheduler, step_times
from planner.workload import Slo

FloatArray = npt.NDArray[np.float64]

#: Sequences of a rank around which a step is first made linear; the batch at each rate that is tried follows.
FIRST_BATCH = 64.0
#: The batch has settled where a round moves it by less than this share, or after so many rounds.
SETTLED, ROUNDS = 0.02, 24
#: Rates that stand for none and for more than any worker serves, requests/s.
SLOWEST, FLOOD = 1e-12, 1e12


#: Share of the limit on TTFT for a prompt that is prefilled apart, and for its first decoded token: assumed, no side is
#: favoured.
PART_OF_TTFT = 0.5
#: All of a request, its prompt alone, or its output alone from a cache that arrives whole.
Part = Literal["both", "prefill", "decode"]


def max_rates(
    model: ServingModel,
    plans: ServingPlans,
    slo: Slo,
    *,
    margin: float = 0.0,
    part: Part = "both",
) -> FloatArray:
    """Highest rate of each plan's requests to its whole worker that keeps the limits, requests/s, [plans].

    Poisson arrivals, spread evenly over the worker's attention ranks; plans.concurrency is not used. 0 where one
    sequence does not fit or no rate keeps the limits. margin : predictions count so much larger, as a share.
    part : prefill and decode may each take PART_OF_TTFT of the limit on TTFT: percentiles of parts add up to no less
    than the whole's. A cache is taken to move at once.
    Looser limits never give less: what requests meet depends on the rate alone, and the limits only choose it.
    """
    w = plans.worker
    ranks = np.array([worker.data_parallel_size for worker in model.workers], dtype=np.float64)[w]
    fits = model.predict(plans).admitted_sequences >= 1
    first_token = np.array([model.coefficients.of_ttft("first_token", worker) for worker in model.workers])[w]
    share = 1.0 if part == "both" else PART_OF_TTFT
    ttft = np.inf if slo.ttft_s is None else share * slo.ttft_s / (1 + margin) - first_token
    tpot = np.inf if slo.tpot_s is None else slo.tpot_s / (1 + margin)
    possible = fits & (np.broadcast_to(ttft, fits.shape) > 0)
    ranks_at = Settling(model, plans, part)

    def holds(rate: FloatArray) -> BoolArray:
        loop = ranks_at.at(np.maximum(rate, SLOWEST))
        if slo.percentile is None:
            return np.asarray((loop.ttft_mean_s <= ttft) & (loop.tpot_mean_s <= tpot))
        of_all = slo.percentile / 100
        return np.asarray((loop.ttft_s(of_all) <= ttft) & (loop.tpot_s(of_all) <= tpot))

    rate = highest_rate(holds, ranks_at.top, fits.shape)
    return np.where(possible, rate * ranks, 0.0)


class Settling:
    """Steady states of one attention rank of each plan, with steps made linear around what runs at the rate asked.

    rules : of its scheduler; top : a rate that none is above, [plans].
    """

    def __init__(self, model: ServingModel, plans: ServingPlans, part: Part = "both") -> None:
        self._model, self._plans, self._part = model, plans, part
        self._outputs = np.ones(len(plans)) if part == "prefill" else plans.output_tokens
        rules = scheduler(model, plans)
        self.rules = prefill_scheduler(rules) if part == "prefill" else rules
        self._batch = np.full(len(plans), FIRST_BATCH)
        self._prompt_tokens = plans.input_tokens * np.ones(len(plans))
        flood = self._loop(np.full(len(plans), FLOOD))
        first = self._batch
        self._batch = flood.mean_batch
        self.top = np.maximum(flood.max_rate_per_s, self._loop(np.full(len(plans), FLOOD)).max_rate_per_s)
        self._batch = first

    def at(self, rate: FloatArray) -> OpenLoop:
        """At a rate, [plans]; starts from what ran at the last one."""
        for _ in range(ROUNDS):
            loop = self._loop(rate)
            # Prompts that come while one iteration lasts are in the next; where they never end, they fill it.
            arriving = np.where(loop.stable, rate * np.where(loop.stable, loop.tpot_mean_s, 0.0), np.inf)
            most = self._model.max_num_batched_tokens
            prompts = np.clip(arriving * self._plans.input_tokens, np.minimum(self._plans.input_tokens, most), most)
            batch = np.sqrt(self._batch * np.clip(loop.mean_batch, 1.0, None))
            # Each plan by itself: it must not matter to one when others settle.
            moves = np.abs(batch - self._batch) > SETTLED * self._batch
            moves |= np.abs(np.sqrt(prompts / self._prompt_tokens) - 1) > SETTLED
            if not moves.any():
                break
            self._batch = np.where(moves, batch, self._batch)
            self._prompt_tokens = np.where(moves, np.sqrt(self._prompt_tokens * prompts), self._prompt_tokens)
        return loop

    @property
    def times(self) -> StepTimes:
        """Step times around what ran at the last rate, [plans]."""
        return step_times(self._model, self._plans, self._batch, self._prompt_tokens)

    def _loop(self, rate: FloatArray) -> OpenLoop:
        times, rules = self.times, self.rules
        if self._part == "decode":
            times, rules = decode_only(times, rules)
        return open_loop(
            times, rules, input_tokens=self._plans.input_tokens, output_tokens=self._outputs, rate_per_s=rate
        )
