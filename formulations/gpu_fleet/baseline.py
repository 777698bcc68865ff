"""The plain rule: for each model the one cheapest offer that serves all of it, as many as its busiest hour takes."""

from __future__ import annotations

import math

import numpy as np

from formulations.gpu_fleet.packing import Counts, plan_of
from formulations.gpu_fleet.pools import replicas_for
from formulations.gpu_fleet.problem import ROUNDING, FleetProblem
from planner.fleet_plan import FleetPlan


def best_single_offer(problem: FleetProblem) -> FleetPlan | None:
    """Every model on instances of its own of one offer, sized at its peak; None where no single offer serves a model.

    Limits, spares and the current fleet are not looked at, as a spreadsheet would not: the plan may break them.
    """
    counts = [
        Counts(
            instances=np.zeros(problem.num_offers, dtype=np.int64),
            replicas=np.zeros(problem.num_configs, dtype=np.int64),
            shares=np.zeros((len(problem.bucket_model), problem.num_configs)),
        )
        for _ in range(problem.num_periods)
    ]
    held = problem.held
    loads = [problem.load(period) for period in range(problem.num_periods)]
    for model in range(len(problem.model_names)):
        best: tuple[float, int, int, int, int] | None = None
        asked = (problem.bucket_model == model) & (problem.rate > 0).any(axis=0)
        for config in np.flatnonzero((problem.config_model == model) & (problem.config_role == 0)).tolist():
            if not (problem.throughput[asked, config] > 0).all():
                continue
            there = problem.availability[problem.config_pool[config]]
            needs = [
                np.where(problem.rate[t][asked] > 0, load[asked, config], 0.0).sum() for t, load in enumerate(loads)
            ]
            slack = 0.0 if problem.slack is None else float(problem.slack[config])
            replicas = max(replicas_for(slack, max(needs) / there), int(problem.min_replicas[model]), 1)
            for offer in np.flatnonzero(held[config]).tolist():
                instances = math.ceil(replicas / held[config, offer] - ROUNDING)
                found = (float(instances * problem.price[offer]), config, offer, replicas, instances)
                best = found if best is None or found < best else best
        if best is None and asked.any():
            return None
        if best is not None and asked.any():
            _, config, offer, replicas, instances = best
            for one in counts:
                one.instances[offer] += instances
                one.replicas[config] += replicas
                one.shares[asked, config] = 1.0
    # Each model's replicas fit onto its own instances, so together they fit onto all: packing by counting is additive.
    return plan_of(problem, dict(enumerate(counts)))
