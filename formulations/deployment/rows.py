"""What a deployment tells of its fleet in the dearest hours: workers, and who serves what."""

from __future__ import annotations

from collections import Counter

from formulations.deployment.problem import DeployProblem
from planner.deploy_plan import DeployedShare, DeployedWorkers, Rate
from planner.fleet_plan import FleetPlan, Period


def dearest(plan: FleetPlan) -> Period:
    """The hours that nodes, workers and pods are told of."""
    return max(plan.periods, key=lambda one: one.cost_usd_per_hour)


def told_rows(problem: DeployProblem, period: Period) -> tuple[tuple[DeployedWorkers, ...], tuple[DeployedShare, ...]]:
    """Workers by service and name, and shares of requests."""
    return _workers(problem, period), _assignment(period)


def _workers(problem: DeployProblem, period: Period) -> tuple[DeployedWorkers, ...]:
    fleet = problem.fleet
    counts: Counter[tuple[str, str]] = Counter()
    spans: dict[tuple[str, str], int] = {}
    largest = dict(zip(fleet.offer_names, fleet.gpus.tolist(), strict=True))
    for row in period.replicas:
        key = row.model, str(row.worker)
        counts[key] += row.count
        spans[key] = max(spans.get(key, 1), -(-row.gpus // largest[row.offer]))
    made = []
    for (service, name), count in sorted(counts.items()):
        worker, predicted = problem.workers[service, name], problem.predicted.get((service, name))
        made.append(
            DeployedWorkers(
                service=service,
                worker=name,
                count=count,
                role=worker.role,
                device=worker.device,
                num_gpus=worker.gpus,
                nodes=spans[service, name],
                sizes=dict(worker.sizes),
                rates=tuple(
                    Rate(input_tokens=size[0], output_tokens=size[1], requests_per_s=rate)
                    for size, rate in worker.rates.items()
                    if rate > 0
                ),
                type=None if predicted is None else predicted.type,
            )
        )
    return tuple(made)


def _assignment(period: Period) -> tuple[DeployedShare, ...]:
    return tuple(
        DeployedShare(
            service=row.model,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            worker=str(row.worker),
            offer=row.offer,
            role=row.role,
            fraction=row.fraction,
        )
        for row in period.assignment
    )
