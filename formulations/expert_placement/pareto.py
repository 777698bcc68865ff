"""Balance against communication: plans over a sweep of the communication weight, dominated ones left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from formulations.base import solve
from formulations.expert_placement.check import communication
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import OnProgress, SolveOptions
from planner.errors import OptionError
from planner.experts_plan import ExpertPlacement, ParetoPoint

#: Multiples of the instance's own weight that are tried.
WEIGHT_FACTORS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0)


def pareto_plans(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    weights: Sequence[float] | None = None,
    on_progress: OnProgress | None = None,
) -> list[tuple[ParetoPoint, ExpertPlacement]]:
    """Undominated plans, least communication weight first; each weight has the options' limits to itself.

    A point's `communication` is the unweighted mean cost of a token per transition (chain) or per layer (fan-out).
    """
    if problem.communication is None:
        raise OptionError("a Pareto sweep needs a communication model")
    base = problem.communication.weight or 1.0
    found: list[tuple[ParetoPoint, ExpertPlacement]] = []
    hint: ExpertPlacement | None = None
    for weight in weights if weights is not None else [base * factor for factor in WEIGHT_FACTORS]:
        priced = replace(problem, communication=replace(problem.communication, weight=weight))
        outcome = solve(EXPERT_PLACEMENT, priced, options, hint=hint, on_progress=on_progress)
        if outcome.plan is None or outcome.objective is None:
            continue
        hint = outcome.plan
        point = ParetoPoint(
            communication_weight=weight,
            balancedness_mean=outcome.objective.measures["balancedness_mean"],
            communication=float(communication(priced, outcome.plan.array).mean()),
        )
        found.append((point, outcome.plan))
    return [entry for entry in found if not any(_dominates(other[0], entry[0]) for other in found)]


def pareto(
    problem: ExpertPlacementProblem,
    options: SolveOptions,
    weights: Sequence[float] | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[ParetoPoint, ...]:
    """The points of `pareto_plans`."""
    return tuple(point for point, _ in pareto_plans(problem, options, weights, on_progress))


def _dominates(one: ParetoPoint, two: ParetoPoint) -> bool:
    better = (one.balancedness_mean - two.balancedness_mean, two.communication - one.communication)
    return min(better) >= 0 and max(better) > 0
