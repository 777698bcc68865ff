"""What the rows of a plan stand for: offers, buckets and configurations by their numbers; and sums of rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from formulations.gpu_fleet.problem import FleetProblem, FloatArray, IntArray
from formulations.gpu_fleet.stages import ROLES, STAGES
from planner.fleet_plan import Assignment, FleetPlan, Flow, Replicas, Unserved


class Rows:
    """Numbers of what rows name."""

    def __init__(self, problem: FleetProblem) -> None:
        self.problem = problem
        self.offers = {name: k for k, name in enumerate(problem.offer_names)}
        self.models = {name: m for m, name in enumerate(problem.model_names)}
        sizes = zip(problem.bucket_model, problem.input_tokens, problem.output_tokens, strict=True)
        self._buckets = {(problem.model_names[m], int(i), int(o)): d for d, (m, i, o) in enumerate(sizes)}
        bound = np.full(problem.num_configs, -1) if problem.config_offer is None else problem.config_offer
        where = zip(problem.config_pool.tolist(), bound.tolist(), strict=True)
        self._configs = {
            (*place, int(problem.config_model[c]), int(gpus), ROLES[role], problem.worker(c)): c
            for c, (place, gpus, role) in enumerate(zip(where, problem.config_gpus, problem.config_role, strict=True))
        }

    def bucket(self, row: Assignment | Flow | Unserved) -> int:
        """The bucket of a model's size. KeyError for one that the problem does not have."""
        return self._buckets[row.model, row.input_tokens, row.output_tokens]

    def config(self, row: Assignment | Replicas) -> int:
        """The configuration of replicas. KeyError for one that the problem does not have."""
        return self._configs[self._key(row)]

    def has_bucket(self, row: Assignment | Flow | Unserved) -> bool:
        """Whether there is such a bucket."""
        return (row.model, row.input_tokens, row.output_tokens) in self._buckets

    def has_config(self, row: Assignment | Replicas) -> bool:
        """Whether there is such a configuration, of an offer and a model that there are."""
        return self._key(row) in self._configs

    def _key(self, row: Assignment | Replicas) -> tuple[int, int, int, int, str, str | None]:
        """Replicas of more GPUs than an instance has are bound to their offer, others to none (-1)."""
        offer = self.offers[row.offer]
        bound = offer if row.gpus > self.problem.gpus[offer] else -1
        pool = int(self.problem.pool_of_offer[offer])
        return pool, bound, self.models[row.model], row.gpus, row.role, row.worker


def instance_counts(problem: FleetProblem, plan: FleetPlan) -> FloatArray:
    """Instances of each offer in each of the plan's periods, [periods, K]; offers that are unknown are left out."""
    offers = Rows(problem).offers
    counts = np.zeros((len(plan.periods), problem.num_offers))
    for place, period in enumerate(plan.periods):
        for row in period.allocation:
            if row.offer in offers:
                counts[place, offers[row.offer]] += row.count
    return counts


def started_replicas(problem: FleetProblem, plan: FleetPlan) -> FloatArray:
    """Replicas of each configuration that the first period has beside those in force, [C]; none without such."""
    if problem.running is None:
        return np.zeros(problem.num_configs)
    known = Rows(problem)
    found = -problem.running.astype(np.float64)
    for row in plan.periods[0].replicas:
        found[known.config(row)] += row.count
    return np.asarray(np.maximum(found, 0.0))


def in_order(problem: FleetProblem, plan: FleetPlan) -> IntArray:
    """Places of the plan's periods in the order of the problem's."""
    return np.argsort([problem.hours.index(period.hours) for period in plan.periods])


def on_spot(problem: FleetProblem, index: int, rows: Iterable[Assignment]) -> FloatArray:
    """Requests a second of each model on spot instances in the stage that has most of them there, [M]."""
    known = Rows(problem)
    found = np.zeros((len(STAGES), len(problem.model_names)))
    for row in rows:
        if problem.spot[problem.pool_of_offer[known.offers[row.offer]]]:
            bucket = known.bucket(row)
            stages = [row.role in roles for roles in STAGES.values()]
            found[stages, problem.bucket_model[bucket]] += problem.rate[index, bucket] * row.fraction
    return np.asarray(found.max(axis=0))


def cost_parts(problem: FleetProblem, plan: FleetPlan) -> dict[str, float]:
    """USD/hour on the mean of the hours: rent, and starts, changes and moves where the problem prices them."""
    share = {hours: float(s) for hours, s in zip(problem.hours, problem.share, strict=True)}
    counts = instance_counts(problem, plan)
    weights = np.array([share[period.hours] for period in plan.periods])
    parts = {"rent_usd_per_hour": float(weights @ (counts @ problem.price))}
    if problem.start_cost is not None and problem.start_cost.any():
        parts["start_usd_per_hour"] = problem.start_usd_per_hour(counts[in_order(problem, plan)])
    if problem.current is not None:
        parts["change_usd_per_hour"] = problem.change_cost * float(np.abs(counts[0] - problem.current).sum())
    if problem.running is not None and problem.move_cost is not None:
        parts["move_usd_per_hour"] = float(problem.move_cost @ started_replicas(problem, plan))
    return parts
