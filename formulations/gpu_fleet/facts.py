"""What a fleet's workbook shows beyond its plan: throughput of each route, margins of the cost model, other demands."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from formulations.gpu_fleet.insight import explain_plan
from formulations.gpu_fleet.problem import FleetProblem
from formulations.gpu_fleet.rows import Rows
from formulations.gpu_fleet.sweep import scaled, sweep
from formulations.gpu_fleet.throughput import replica
from formulations.outcome import OnProgress, SolveOptions
from planner import catalog
from planner.cost.serving.capacity import Settling
from planner.cost.serving.memory import worker_memory
from planner.cost.serving.predict import ServingModel, ServingPlans
from planner.descriptions.efficiency import calibrated
from planner.descriptions.fleet import FleetInstance
from planner.files import SourceText
from planner.fleet_plan import FleetPlan
from planner.plan import FleetDocument
from planner.reporting.workbook.facts import Margin, Route, Scenario
from planner.reporting.workbook.fleet_placement import ReplicaKind
from planner.units import GIB
from planner.workload import Slo

#: Multiples of the demand that a workbook's scenarios are solved for.
FACTORS = (0.5, 0.75, 1.25, 1.5, 2.0)


def route_throughput(problem: FleetProblem, plan: FleetPlan) -> dict[Route, float]:
    """Requests/s that one replica serves of a size, of every route of the plan."""
    rows = Rows(problem)
    return {
        (rows.bucket(one), one.offer, one.gpus, one.role, one.worker): float(
            problem.throughput[rows.bucket(one), rows.config(one)]
        )
        for period in plan.periods
        for one in period.assignment
    }


def scenarios(
    problem: FleetProblem, options: SolveOptions, on_progress: OnProgress | None = None
) -> tuple[Scenario, ...]:
    """The best fleet at multiples of the demand; the time limit is for all of them together."""
    mean = float(problem.share @ problem.rate.sum(axis=1))
    free = replace(problem, current=None, max_changes=None, change_cost=0.0)
    points = sweep([factor * mean for factor in FACTORS], lambda rate: scaled(free, rate), options, on_progress)
    return tuple(
        Scenario(
            factor=factor,
            status=point.status,
            usd_per_hour=point.usd_per_hour,
            bound_usd_per_hour=point.bound_usd_per_hour,
            gap=point.gap,
            gpus_peak=point.gpus_peak,
            instances=point.instances,
            reasons=point.reasons,
        )
        for factor, point in zip(FACTORS, points, strict=True)
    )


def with_insight(
    problem: FleetProblem, document: FleetDocument, options: SolveOptions, on_progress: OnProgress | None = None
) -> FleetDocument:
    """The document with what its limits cost, by solving anew; as it is where that is known or there is no plan."""
    plan, outcome = document.plan, document.outcome
    if plan is None or plan.insight is not None or outcome.objective is None:
        return document
    insight = explain_plan(problem, plan, outcome.objective, outcome.bound, options, on_progress)
    return document.model_copy(update={"plan": plan.model_copy(update={"insight": insight})})


def margins(instance: FleetInstance, problem: FleetProblem, plan: FleetPlan, source: SourceText) -> Sequence[Margin]:
    """Memory of each kind of replica, and TTFT and TPOT of each size on it in its fullest hour, by the cost model.

    A replica that serves several sizes has the latency that it would have if its load were all of the size. Empty
    where throughput was given: then nothing is known of memory, and latency is what the profiles were measured for.
    """
    return () if instance.profiles or instance.workers is not None else tuple(_margins(instance, problem, plan, source))


def _margins(instance: FleetInstance, problem: FleetProblem, plan: FleetPlan, source: SourceText) -> Iterator[Margin]:
    rows = Rows(problem)
    described = {model.name: model for model in instance.models}
    devices = {offer.name: catalog.device(offer.device) for offer in instance.offers}
    coefficients = None if instance.calibration is None else calibrated(source.base_dir / instance.calibration)
    fullest: dict[ReplicaKind, float] = defaultdict(float)
    sizes: dict[ReplicaKind, dict[tuple[int, int], float]] = defaultdict(dict)
    for period in plan.periods:
        busy: dict[ReplicaKind, float] = defaultdict(float)
        rate = problem.rate[problem.hours.index(period.hours)]
        for one in period.assignment:
            bucket, config = rows.bucket(one), rows.config(one)
            key: ReplicaKind = one.offer, one.model, one.gpus, one.role, one.worker
            throughput = float(problem.throughput[bucket, config])
            busy[key] += float(rate[bucket]) * one.fraction / throughput
            sizes[key][one.input_tokens, one.output_tokens] = throughput
        for group in period.replicas:
            kind: ReplicaKind = group.offer, group.model, group.gpus, group.role, group.worker
            pool = problem.pool_of_offer[problem.offer_names.index(group.offer)]
            there = group.count * float(problem.availability[pool])
            if there:
                fullest[kind] = max(fullest[kind], busy[kind] / there)
    for kind, used in fullest.items():
        offer, name, gpus, role, _ = kind
        model = described[name]
        path = str(model.model)
        spec = catalog.model(source.base_dir / path if path.endswith(".json") else path)
        worker = replica(model, spec, devices[offer], gpus)
        where = f"{name} on {offer}, {gpus} GPU{'s' if gpus > 1 else ''}, {role}"
        memory = worker_memory(worker)
        yield Margin(where, "memory without cache", memory.fixed_bytes / GIB, memory.usable_bytes / GIB, "GiB a GPU")
        served = list(sizes[kind])
        if not served or role != "both":
            # Alone, neither prefill nor decode has both of a request's latencies.
            continue
        compiled = ServingModel([worker], coefficients)
        inputs, outputs = (np.array(column) for column in zip(*served, strict=True))
        plans = ServingPlans.of(np.zeros(len(served), dtype=np.int64), 1, inputs, outputs)
        rates = used * np.array([sizes[kind][size] for size in served]) / worker.data_parallel_size
        loop = Settling(compiled, plans).at(rates)
        slo = model.slo or instance.slo or Slo()
        share = None if slo.percentile is None else slo.percentile / 100
        first_token = compiled.coefficients.of_ttft("first_token", worker)
        ttft = (loop.ttft_mean_s if share is None else loop.ttft_s(share)) + first_token
        tpot = loop.tpot_mean_s if share is None else loop.tpot_s(share)
        told = "mean" if share is None else f"p{slo.percentile:g}"
        for what, values, limit in (("TTFT", ttft, slo.ttft_s), ("TPOT", tpot, slo.tpot_s)):
            worst = int(np.argmax(values))
            size = f"{served[worst][0]}/{served[worst][1]} tokens"
            value = float(values[worst])
            if np.isfinite(value):
                yield Margin(f"{where}, {size}", f"{what}, {told}, fullest hour", value, limit, "s")
