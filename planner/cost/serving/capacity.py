"""Requests a second that workers serve within latency limits: what fleets and parallel plans are sized by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from planner.cost.queueing.open_loop import max_rate_under_slo, open_loop
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.step_times import scheduler, step_times
from planner.workload import Slo

FloatArray = npt.NDArray[np.float64]

#: Sequences of a rank around which a step is first made linear; the batch at the highest rate follows.
FIRST_BATCH = 64.0
#: Rounds in which that batch settles.
ROUNDS = 3
#: Rate that stands for none, requests/s.
SLOWEST = 1e-12


def max_rates(model: ServingModel, plans: ServingPlans, slo: Slo, *, margin: float = 0.0) -> FloatArray:
    """Highest rate of each plan's requests to its whole worker that keeps the limits, requests/s, [plans].

    Poisson arrivals, spread evenly over the worker's attention ranks; plans.concurrency is not used. 0 where one
    sequence does not fit or no rate keeps the limits. margin : predictions count so much larger, as a share.
    """
    w = plans.worker
    ranks = np.array([worker.data_parallel_size for worker in model.workers], dtype=np.float64)[w]
    fits = model.predict(plans).admitted_sequences >= 1
    rules = scheduler(model, plans)
    first_token = np.array([model.coefficients.of_ttft("first_token", worker) for worker in model.workers])[w]
    ttft = np.inf if slo.ttft_s is None else slo.ttft_s / (1 + margin) - first_token
    tpot = np.inf if slo.tpot_s is None else slo.tpot_s / (1 + margin)
    possible = fits & (np.broadcast_to(ttft, fits.shape) > 0)
    batch = np.full(len(plans), FIRST_BATCH)
    rate = np.zeros(len(plans))
    for _ in range(ROUNDS):
        times = step_times(model, plans, batch)
        percentile = None if slo.percentile is None else slo.percentile / 100
        rate = max_rate_under_slo(
            times,
            rules,
            input_tokens=plans.input_tokens,
            output_tokens=plans.output_tokens,
            ttft_s=np.where(possible, ttft, np.inf),
            tpot_s=tpot,
            percentile=percentile,
        )
        loop = open_loop(
            times,
            rules,
            input_tokens=plans.input_tokens,
            output_tokens=plans.output_tokens,
            rate_per_s=np.maximum(rate, SLOWEST),
        )
        seen = np.where(np.isfinite(loop.mean_batch), loop.mean_batch, batch)
        batch = np.sqrt(batch * np.clip(seen, 1.0, None))
    return np.where(possible, rate * ranks, 0.0)
