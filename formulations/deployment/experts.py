"""Experts of a deployment: how even they lie decides what a worker serves, so it is known before workers are chosen.

The load of the busiest GPU over the mean is an attribute of a worker (GPUs that share the experts, slots), taken from
recorded loads: of several, each is measured on a map that was made without it (EPLB's rule), so that the figure holds
for loads that nobody has seen. The maps of the workers that a plan has are then made on all loads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from formulations.base import solve
from formulations.expert_placement.baseline import eplb
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.expert_placement.reading import read_problem
from formulations.outcome import Budget, SolveOptions
from planner.deploy_plan import ExpertMap
from planner.descriptions.experts import ExpertsInstance, LoadSource
from planner.files import SourceText
from planner.readers.service_workers import ServiceWorker
from planner.workload import FloatArray, IntArray

#: Seconds for the map of one kind of worker, and the least that is worth a search.
MAP_S, LEAST_S = 5.0, 0.2


def expert_problem(
    name: str, loads: tuple[LoadSource, ...], num_gpus: int, num_slots: int, node: int, source: SourceText | None
) -> ExpertPlacementProblem:
    """Placing the experts of one worker; node : GPUs of a node at most. Raises DescriptionError."""
    instance = ExpertsInstance(
        name=name,
        num_gpus=num_gpus,
        gpus_per_node=node if num_gpus % node == 0 and num_gpus > node else num_gpus,
        num_slots=num_slots,
        loads=loads,
    )
    return read_problem(instance, source)


def imbalance(problem: ExpertPlacementProblem) -> float:
    """Load of the busiest GPU over the mean, mean of the layers and loads, by EPLB's rule on the other loads."""
    several = len(problem.load) > 1
    found = []
    for k, load in enumerate(problem.load):
        known = problem
        if several:
            others = np.arange(len(problem.load)) != k
            names = tuple(name for name, use in zip(problem.scenario_names, others, strict=True) if use)
            known = problem.with_load(problem.load[others], problem.weight[others], names)
        found.append(busiest(eplb(known)[1], load, problem.num_gpus))
    return max(1.0, float(np.mean(found)))


def busiest(slots: IntArray, load: FloatArray, num_gpus: int) -> float:
    """Load of the busiest GPU over the mean, mean of the layers; slots [L, S], load [L, E], copies share evenly."""
    layers = np.arange(len(slots))[:, None]
    copies = np.zeros(load.shape)
    np.add.at(copies, (layers, slots), 1.0)
    each = load[layers, slots] / copies[layers, slots]
    gpus = each.reshape(len(slots), num_gpus, -1).sum(axis=2)
    used = gpus.sum(axis=1) > 0
    return float((gpus.max(axis=1)[used] / gpus.mean(axis=1)[used]).mean())


def expert_maps(
    problems: Mapping[tuple[str, int, int], ExpertPlacementProblem],
    workers: Mapping[tuple[str, str], ServiceWorker],
    used: tuple[tuple[str, str], ...],
    options: SolveOptions,
    budget: Budget,
) -> tuple[ExpertMap, ...]:
    """The map of each used worker whose experts have recorded loads; workers alike in size share one."""
    made: dict[tuple[str, int, int], tuple[ExpertMap, ...]] = {}
    found = []
    for service, name in used:
        key = sharing(workers[service, name])
        problem = None if key is None else problems.get((service, *key))
        if key is None or problem is None:
            continue
        at = service, *key
        if at not in made:
            seconds = max(LEAST_S, min(MAP_S, budget.remaining_s))
            work = SolveOptions(time_limit_s=seconds, seed=options.seed, work_limit=options.work_limit)
            plan = solve(EXPERT_PLACEMENT, problem, work).plan
            if plan is None:
                made[at] = ()
                continue
            both = plan.array, eplb(problem)[1]
            mine, rule = (
                {
                    told: busiest(slots, load, problem.num_gpus)
                    for told, load in zip(problem.scenario_names, problem.load, strict=True)
                }
                for slots in both
            )
            made[at] = (ExpertMap(service=service, worker=name, placement=plan, imbalance=mine, eplb_imbalance=rule),)
        found += [one.model_copy(update={"worker": name}) for one in made[at]]
    return tuple(found)


def sharing(worker: ServiceWorker) -> tuple[int, int] | None:
    """GPUs that share a worker's experts, and slots of a layer; None where each GPU has all, or slots are not told."""
    ranks, slots = worker.sizes.get("expert_parallel_size", 1), worker.sizes.get("expert_slots", 0)
    return (ranks, slots) if ranks > 1 and slots else None
