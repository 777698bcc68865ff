"""How a plan does on workloads it was not fitted to: leave one scenario, or one cluster of alike scenarios, out.

In-sample balancedness says nothing about next week's load. Recordings often come in near-copies of one workload, and
leaving out only one copy flatters; leaving out its whole cluster is the honest test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from formulations.base import solve
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import OnProgress, SolveOptions
from planner.cost.expert_parallel import balancedness, gpu_load
from planner.errors import OptionError
from planner.workload import FloatArray, IntArray

#: Scenarios whose mean total variation distance is below this are copies of one workload: recordings of the same
#: workload differ by 0.01 to 0.03, different workloads by 0.05 to 0.2 (DeepSeek-V3 counts of SGLang issue 6017).
CLUSTER_DISTANCE = 0.03


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Mean balancedness on one held-out scenario: of the plan, of EPLB on the summed counts of the same scenarios, and
    of a plan fitted to the held-out scenario itself (the ceiling)."""

    name: str
    fitted_on: tuple[str, ...]
    plan: float
    baseline: float
    hindsight: float | None


def distance(one: FloatArray, two: FloatArray) -> float:
    """Mean over layers of the total variation between two load vectors, [L, E] each."""
    first = one / np.maximum(one.sum(axis=1, keepdims=True), 1e-300)
    second = two / np.maximum(two.sum(axis=1, keepdims=True), 1e-300)
    return float(0.5 * np.abs(first - second).sum(axis=1).mean())


def clusters(problem: ExpertPlacementProblem) -> IntArray:
    """Cluster of each scenario, [K]: single linkage below CLUSTER_DISTANCE."""
    label = np.arange(problem.num_scenarios)
    for one in range(problem.num_scenarios):
        for two in range(one):
            if distance(problem.load[one], problem.load[two]) < CLUSTER_DISTANCE:
                label[label == label[one]] = label[two]
    return label


def mean_balancedness(problem: ExpertPlacementProblem, rows: IntArray, load: FloatArray) -> float:
    """Mean over layers under the problem's split, for one scenario [L, E]."""
    return float(balancedness(gpu_load(load[None], rows, problem.speed, problem.split), problem.speed).mean())


def leave_out(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    by: Literal["scenario", "cluster"] = "scenario",
    on_progress: OnProgress | None = None,
    *,
    hindsight: bool = True,
) -> list[HeldOut]:
    """Plan without each scenario (or its whole cluster) and score the plan on it. The limits hold for each plan."""
    label = clusters(problem) if by == "cluster" else np.arange(problem.num_scenarios)
    if np.unique(label).size < 2:
        what = "scenarios" if by == "scenario" else "clusters of scenarios"
        raise OptionError(f"leaving out needs at least two {what}, got {np.unique(label).size}")
    result = []
    for held in range(problem.num_scenarios):
        others = problem.with_scenarios(np.flatnonzero(label != label[held]).tolist())
        load = problem.load[held]
        found = _rows(others, options, on_progress)
        _, rule = EXPERT_PLACEMENT.baseline(others)
        ceiling = None
        if hindsight:
            own = _rows(problem.with_scenarios([held]), options, on_progress)
            ceiling = mean_balancedness(problem, own, load)
        result.append(
            HeldOut(
                name=problem.scenario_names[held],
                fitted_on=others.scenario_names,
                plan=mean_balancedness(problem, found, load),
                baseline=mean_balancedness(problem, rule.array, load),
                hindsight=ceiling,
            )
        )
    return result


def _rows(problem: ExpertPlacementProblem, options: SolveOptions, on_progress: OnProgress | None) -> IntArray:
    outcome = solve(EXPERT_PLACEMENT, problem, options, on_progress=on_progress)
    if outcome.plan is None:
        raise OptionError(f"no plan without a scenario: {'; '.join(outcome.reasons) or outcome.stop.value}")
    return outcome.plan.array
