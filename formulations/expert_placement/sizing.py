"""The fewest slots that reach a target balancedness."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from formulations.base import solve
from formulations.expert_placement.bounds import load_bound
from formulations.expert_placement.formulation import EXPERT_PLACEMENT
from formulations.expert_placement.problem import ExpertPlacementProblem
from formulations.outcome import OnProgress, SolveOptions
from planner.errors import OptionError

#: A balancedness this close to the target reaches it: sums of loads are rounded.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class SlotTrial:
    """One slot count: mean balancedness reached, and the most that any plan can reach."""

    num_slots: int
    balancedness: float
    bound: float
    reached: bool


@dataclass(frozen=True, slots=True)
class SlotSearch:
    """num_slots: fewest found that reach the target; proven: every smaller count is ruled out by its bound."""

    target: float
    trials: tuple[SlotTrial, ...]
    num_slots: int | None
    proven: bool


def balancedness_bound(problem: ExpertPlacementProblem) -> float:
    """Upper bound of the mean balancedness of any plan."""
    ratio = problem.mean_gpu_load / np.maximum(load_bound(problem)[0], 1e-300)
    return float((problem.weight @ np.where(problem.mean_gpu_load > 0, ratio, 1.0)).mean())


def find_slots(
    problem: ExpertPlacementProblem,
    target: float,
    options: SolveOptions,
    on_progress: OnProgress | None = None,
) -> SlotSearch:
    """Fewest slots a layer whose plan reaches `target` mean balancedness; the limits hold for each trial.

    Counts below the bound's limit are skipped without a search. Balancedness need not rise with every slot, so counts
    are tried upwards in doubling steps, and then downwards one by one in the last step's gap by bisection.
    """
    if not 0 < target <= 1:
        raise OptionError(f"a target balancedness lies in (0, 1], got {target}")
    if problem.current is not None:
        raise OptionError("find-slots plans afresh; leave out the current placement")
    gpus = problem.num_gpus
    first = -(-problem.num_experts // gpus)
    most = problem.num_experts
    if problem.gpu_memory_bytes is not None and problem.expert_bytes:
        most = min(most, int(problem.gpu_memory_bytes / (problem.expert_bytes * problem.num_layers)))
    trials: dict[int, SlotTrial] = {}

    def sized(per_gpu: int) -> ExpertPlacementProblem:
        return replace(problem, num_slots=per_gpu * gpus)

    def trial(per_gpu: int) -> bool:
        if per_gpu not in trials:
            attempt = sized(per_gpu)
            bound = balancedness_bound(attempt)
            outcome = solve(EXPERT_PLACEMENT, attempt, options, on_progress=on_progress)
            value = 0.0 if outcome.objective is None else outcome.objective.measures["balancedness_mean"]
            trials[per_gpu] = SlotTrial(per_gpu * gpus, value, bound, value >= target - ROUNDING)
        return trials[per_gpu].reached

    def possible(per_gpu: int) -> bool:
        return balancedness_bound(sized(per_gpu)) >= target - ROUNDING

    low = next((size for size in range(first, most + 1) if possible(size)), None)
    if low is None:
        return SlotSearch(target, (), None, True)
    step, high = 1, low
    while not trial(high):
        if high >= most:
            return SlotSearch(target, _ordered(trials), None, False)
        high = min(most, high + step)
        step *= 2
    failed = max((size for size, tried in trials.items() if not tried.reached), default=low - 1)
    while high - failed > 1:
        middle = (high + failed) // 2
        if trial(middle):
            high = middle
        else:
            failed = middle
    return SlotSearch(target, _ordered(trials), high * gpus, high == low)


def _ordered(trials: dict[int, SlotTrial]) -> tuple[SlotTrial, ...]:
    return tuple(trials[size] for size in sorted(trials))
