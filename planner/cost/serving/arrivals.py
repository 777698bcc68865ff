"""One serving worker under requests that arrive at a rate: its curves, made linear around the batch that results.

`planner.cost.queueing` knows an iteration as base + B x (sequence + K x token) + prompts. The curves of a worker bend,
so that line is drawn through the batch that the rate leads to, which is found by repeating. How engines order prompts
and decoding is in the fitted coefficients already, so all of them are taken to mix both in an iteration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from planner.cost.queueing.open_loop import OpenLoop, open_loop
from planner.cost.queueing.step_times import Scheduler
from planner.cost.serving.judge import Load, evaluate_serving
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.serving.step_times import step_times
from planner.cost.verdict import Metric, Verdict, Violation
from planner.units import format_seconds
from planner.workload import Slo

#: Percentiles that are told, as fractions.
PERCENTILES = (0.5, 0.9, 0.99)
#: Rounds in which the batch settles, each the geometric mean of the last and the next.
ROUNDS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Steady state of a worker. loop : of one attention rank; before_first_s : what a first token takes beside it.

    sequences : that run on the whole worker, averaged over time. max_rate_per_s : of requests to the whole worker.
    """

    loop: OpenLoop
    before_first_s: float
    sequences: float
    max_rate_per_s: float

    rate_per_s: float

    @property
    def utilisation(self) -> float:
        """The rate over the highest."""
        return self.rate_per_s / self.max_rate_per_s

    @property
    def stable(self) -> bool:
        """The rate can be served: queues do not grow without end."""
        return bool(self.loop.stable)

    def ttft_s(self, percentile: float | None = None) -> float:
        """Time to first token of the mean request, or that this fraction of requests stays below; inf if unstable."""
        body = self.loop.ttft_mean_s if percentile is None else self.loop.ttft_s(percentile)
        return float(body) + self.before_first_s

    def tpot_s(self, percentile: float | None = None) -> float:
        """Time per output token, likewise."""
        return float(self.loop.tpot_mean_s if percentile is None else self.loop.tpot_s(percentile))


def arrivals(
    model: ServingModel,
    index: int,
    rate_per_s: float,
    input_tokens: int,
    output_tokens: int,
    max_num_seqs: float = np.inf,
) -> Arrivals:
    """One compiled worker at a rate of requests, spread evenly over its attention ranks; Poisson arrivals.

    max_num_seqs : most sequences of a rank, beside what its cache admits. OptionError for a rate that is not above 0.
    """
    worker = model.workers[index]
    ranks = worker.data_parallel_size
    one = ServingPlans.of([index], 1, input_tokens, output_tokens)
    admitted = float(model.predict(one).admitted_sequences[0]) / ranks
    slots = max(1.0, min(admitted, max_num_seqs))
    scheduler = Scheduler(
        max_num_batched_tokens=model.max_num_batched_tokens,
        max_num_seqs=slots,
    )

    def at(batch: float) -> OpenLoop:
        times = step_times(model, one, np.array([batch])).of_plan(0)
        return open_loop(
            times, scheduler, input_tokens=input_tokens, output_tokens=output_tokens, rate_per_s=rate_per_s / ranks
        )

    full = at(slots)
    loop, batch = full, slots
    if full.stable:
        for _ in range(ROUNDS):
            batch = float(np.clip(np.sqrt(batch * max(float(loop.mean_batch), 1.0)), 1.0, slots))
            loop = at(batch)
    alone = float(model.first_token_parts(one)["alone"][0])
    prompt = model.coefficients.of_ttft("prompt", worker)
    return Arrivals(
        loop=loop,
        before_first_s=model.coefficients.of_ttft("first_token", worker) + max(prompt - 1.0, 0.0) * alone,
        sequences=float(loop.mean_batch) * ranks,
        max_rate_per_s=float(full.max_rate_per_s) * ranks,
        rate_per_s=rate_per_s,
    )


def evaluate_arrivals(model: ServingModel, index: int, found: Arrivals, load: Load, slo: Slo | None = None) -> Verdict:
    """Verdict of one compiled worker under arrivals: of a closed loop of the mean batch, with the open loop's times.

    load : prompt and output; its concurrency is the mean batch, at least 1. Metrics beside those of evaluate_serving:
    ttft_p50_s ... tpot_p99_s, max_rate_per_s and utilisation; no times where requests come faster than they can be
    served, which is a violation. Limits hold for the percentile of `slo`, or for the mean.
    """
    closed, worker = evaluate_serving(model, index, load), model.workers[index]
    tokens_per_s = min(found.rate_per_s, found.max_rate_per_s) * load.output_tokens
    given = {
        "output_tokens_per_s": tokens_per_s,
        "output_tokens_per_s_per_gpu": tokens_per_s / worker.num_gpus,
        "running_sequences": found.sequences,
    }
    if found.stable:
        given |= {"tpot_s": found.tpot_s(), "ttft_s": found.ttft_s()}
    gone = () if found.stable else ("tpot_s", "ttft_s")
    metrics = [_scaled(one, given.get(one.name, one.value)) for one in closed.metrics if one.name not in gone]
    origin = closed.metrics[0].source
    metrics.append(Metric(name="max_rate_per_s", value=found.max_rate_per_s, unit="1/s", source=origin))
    metrics.append(Metric(name="utilisation", value=found.utilisation, unit="fraction", source=origin))
    for share in PERCENTILES if found.stable else ():
        for name, value in (("ttft", found.ttft_s(share)), ("tpot", found.tpot_s(share))):
            metrics.append(Metric(name=f"{name}_p{100 * share:g}_s", value=value, unit="s", source=origin))
    subject = f"{worker.model.name} on {worker.num_gpus} x {worker.device.name}"
    return Verdict(
        metrics=tuple(metrics),
        violations=(*closed.violations, *_violations(found, slo or Slo(), subject)),
        bottleneck=closed.bottleneck,
        assumptions=(
            "open loop: Poisson arrivals; all prompts and outputs of the given lengths",
            *closed.assumptions[1:],
        ),
    )


def _scaled(metric: Metric, value: float) -> Metric:
    """The metric with another value, its interval in proportion."""
    if metric.low is None or metric.high is None or value == metric.value:
        return metric.model_copy(update={"value": value})
    scale = value / metric.value
    return metric.model_copy(update={"value": value, "low": metric.low * scale, "high": metric.high * scale})


def _violations(found: Arrivals, slo: Slo, subject: str) -> Iterator[Violation]:
    if not found.stable:
        rate, most = found.rate_per_s, found.max_rate_per_s
        told = f"{rate:g} requests arrive a second, and at most {most:.3g} can be served"
        yield Violation(rule="rate", subject=subject, message=told, amount=rate, limit=most, unit="1/s")
        return
    share = None if slo.percentile is None else slo.percentile / 100
    which = "mean" if slo.percentile is None else f"p{slo.percentile:g}"
    for name, limit, value in (
        ("ttft", slo.ttft_s, found.ttft_s(share)),
        ("tpot", slo.tpot_s, found.tpot_s(share)),
    ):
        if limit is not None and value > limit:
            told = f"{which} {name.upper()} of {format_seconds(value)} is over the limit of {format_seconds(limit)}"
            yield Violation(rule=f"slo_{name}", subject=subject, message=told, amount=value, limit=limit, unit="s")
