"""A fleet plan under a request trace: every replica simulated, request by request, and judged by its limits.

Requests go as the plan says: each to the smallest size that covers it, from there to offers by the plan's fractions
(spread evenly in the order of arrival), and to the replicas of an offer in turn. Nothing here is a formula of the
plan: bursts, mixed sizes and queues are what the trace makes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.throughput import replica
from planner import catalog
from planner.cost.queueing.simulation import simulate_open_loop
from planner.cost.queueing.step_times import Scheduler, StepTimes
from planner.cost.serving.capacity import Settling
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.cost.verdict import Metric, Violation
from planner.descriptions.fleet import FleetInstance, ServedModel
from planner.errors import OptionError
from planner.fleet_plan import FleetPlan
from planner.model.spec import ModelSpec
from planner.request_trace import RequestTrace
from planner.workload import Slo

#: Percentiles that are told beside the one that is asked.
SHOWN = (50.0, 90.0, 99.0)
#: Multiples of it modulo 1 lie evenly over 0..1, whatever their number. Source: the golden ratio less 1.
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Replayed:
    """What a trace's requests to one model met.

    rate_per_s, planned_per_s : of the trace and of the plan's demand; attainment : share within both limits.
    beyond : requests larger than any planned size, which went where the largest ones go.
    ttft_s, tpot_s : [requests], and of those with more than one output token.
    """

    model: str
    slo: Slo
    rate_per_s: float
    planned_per_s: float
    beyond: int
    ttft_s: FloatArray
    tpot_s: FloatArray
    attainment: float

    def of(self, values: FloatArray) -> float:
        """The mean, or the percentile that the limits are for."""
        if not values.size:
            return 0.0
        at = self.slo.percentile
        return float(values.mean() if at is None else np.percentile(values, at))

    def violations(self) -> list[Violation]:
        """Limits that the asked percentile misses."""
        which = "mean" if self.slo.percentile is None else f"p{self.slo.percentile:g}"
        found = []
        for name, values, limit in (("TTFT", self.ttft_s, self.slo.ttft_s), ("TPOT", self.tpot_s, self.slo.tpot_s)):
            seen = self.of(values)
            if limit is not None and seen > limit:
                message = f"{self.model}: {which} {name} of the trace is {seen:.4g} s, the limit is {limit:g} s"
                found.append(
                    Violation(rule="slo", subject=self.model, message=message, amount=seen, limit=limit, unit="s")
                )
        return found

    def metrics(self) -> list[Metric]:
        """Attainment and percentiles, for the verdict."""
        made = [Metric(name=f"slo_attainment[{self.model}]", value=self.attainment, unit="fraction", source="modelled")]
        for name, values in (("ttft", self.ttft_s), ("tpot", self.tpot_s)):
            made += [
                Metric(
                    name=f"{name}_p{at:g}[{self.model}]",
                    value=float(np.percentile(values, at)),
                    unit="s",
                    source="modelled",
                )
                for at in sorted({*SHOWN, self.slo.percentile or SHOWN[0]})
                if values.size
            ]
        return made


def replay(
    instance: FleetInstance, specs: Mapping[str, ModelSpec], problem: FleetProblem, plan: FleetPlan,
    traces: Mapping[str, RequestTrace],
) -> list[Replayed]:  # fmt: skip
    """Serve a trace for each named model. specs : by the instance's model name.

    OptionError where throughput was given by profiles, demand is hourly, or a model is not in the plan.
    """
    if instance.profiles:
        raise OptionError("a trace needs step times to be simulated; profiles give rates alone")
    if any(period.unserved for period in plan.periods):
        raise OptionError("the plan leaves requests unserved, and a trace has no mark of which: serve all to simulate")
    if problem.config_role.any():
        raise OptionError("a trace is simulated on whole replicas: leave out `roles`")
    if problem.num_periods > 1:
        raise OptionError("a plan of hourly demand changes its fleet: simulate one with a constant rate")
    described = {model.name: model for model in instance.models}
    found = []
    for name, trace in traces.items():
        if name not in described:
            raise OptionError(f"no model is named {name!r}; choose from {', '.join(described)}")
        found.append(_replay(instance, described[name], specs[name], problem, plan, trace))
    return found


def _replay(
    instance: FleetInstance,
    described: ServedModel,
    spec: ModelSpec,
    problem: FleetProblem,
    plan: FleetPlan,
    trace: RequestTrace,
) -> Replayed:
    model = problem.model_names.index(described.name)
    period = plan.periods[0]
    own = np.flatnonzero((problem.bucket_model == model) & (problem.rate[0] > 0))
    if not own.size:
        raise OptionError(f"the plan serves no request of {described.name}")
    bucket, beyond = _covering(trace, problem.input_tokens[own], problem.output_tokens[own])
    routes = {
        d: [
            (row.offer, row.gpus, row.fraction)
            for row in period.assignment
            if row.model == described.name
            and (row.input_tokens, row.output_tokens) == (problem.input_tokens[d], problem.output_tokens[d])
        ]
        for d in own.tolist()
    }
    groups: dict[tuple[str, int], list[IntArray]] = {}
    for place, d in enumerate(own.tolist()):
        requests = np.flatnonzero(bucket == place)
        shares = np.cumsum([fraction for *_, fraction in routes[d]])
        ways = np.searchsorted(shares / shares[-1], (GOLDEN * np.arange(1, requests.size + 1)) % 1.0, side="right")
        for way, (offer, gpus, _) in enumerate(routes[d]):
            groups.setdefault((offer, gpus), []).append(requests[ways == way])
    running: Counter[tuple[str, int]] = Counter()
    for row in period.replicas:
        if row.model == described.name:
            running[row.offer, row.gpus] += row.count
    devices = {offer.name: offer.device for offer in instance.offers}
    ttft, tpot = np.zeros(len(trace)), np.full(len(trace), np.nan)
    for (offer, gpus), parts in groups.items():
        requests = np.sort(np.concatenate(parts))
        if requests.size:
            worker = replica(described, spec, catalog.device(devices[offer]), gpus)
            _serve(ServingModel([worker]), trace, requests, running[offer, gpus], ttft, tpot)
    slo = described.slo or instance.slo or Slo()
    kept = np.ones(len(trace), dtype=np.bool_)
    if slo.ttft_s is not None:
        kept &= ttft <= slo.ttft_s
    if slo.tpot_s is not None:
        kept &= ~(tpot > slo.tpot_s)
    return Replayed(
        model=described.name,
        slo=slo,
        rate_per_s=trace.rate_per_s,
        planned_per_s=float(problem.rate[0][own].sum()),
        beyond=beyond,
        ttft_s=ttft,
        tpot_s=tpot[~np.isnan(tpot)],
        attainment=float(kept.mean()),
    )


def _covering(trace: RequestTrace, inputs: IntArray, outputs: IntArray) -> tuple[IntArray, int]:
    """The smallest size that covers each request, [requests]; the largest for those beyond all, and their number."""
    bucket = np.full(len(trace), -1)
    for place in np.argsort(-(inputs * outputs), kind="stable").tolist():
        bucket[(trace.input_tokens <= inputs[place]) & (trace.output_tokens <= outputs[place])] = place
    beyond = bucket < 0
    bucket[beyond] = int(np.argmax(inputs * outputs))
    return bucket, int(beyond.sum())


def _serve(
    model: ServingModel, trace: RequestTrace, requests: IntArray, count: int, ttft: FloatArray, tpot: FloatArray
) -> None:
    """Simulate the replicas of one offer, and write what their requests met."""
    prompt, output = trace.input_tokens[requests], trace.output_tokens[requests]
    plans = ServingPlans.of(0, 1, prompt.mean(), output.mean())
    times, rules = _steps(model, plans, requests.size / trace.span_s / count)
    first_token = model.coefficients.of_ttft("first_token", model.workers[0])
    for turn in range(count):
        own = requests[turn::count]
        if not own.size:
            continue
        served = simulate_open_loop(
            times, rules, trace.input_tokens[own], trace.output_tokens[own], arrival_s=trace.arrival_s[own]
        )
        ttft[own] = served.ttft_s + first_token
        tpot[own[trace.output_tokens[own] > 1]] = served.tpot_s


def _steps(model: ServingModel, plans: ServingPlans, rate_per_s: float) -> tuple[StepTimes, Scheduler]:
    """Step times around the batch that such a rate of such requests keeps running."""
    settling = Settling(model, plans)
    settling.at(np.array([rate_per_s]))
    rules = settling.rules
    of_one = {name: getattr(rules, name).flat[0] for name in Scheduler.__dataclass_fields__}
    return settling.times.of_plan(0), Scheduler(**of_one)
