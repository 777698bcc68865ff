"""Replanning: a new plan against the one in force, and whether moving to it pays back.

A move costs `move_price` once, in the objective's unit times hours (USD for an instance of a fleet, or for a GPU of a
worker that a deployment starts), and the new plan stands for `horizon_hours`. So the instance is solved with each move
priced at move_price / horizon_hours; and solved again with no move allowed, which says what keeping the plan in force
is worth under the new data.

    gain_per_hour     objective of keeping - objective of the new plan, both without the price of moves
    move_cost         moves x move_price
    pays_back         gain_per_hour x horizon_hours > move_cost; None when the plan in force cannot be kept
    break_even_hours  move_cost / gain_per_hour; None when nothing is gained
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from formulations.kinds import kind_name
from formulations.outcome import SolveOptions
from formulations.planning import plan, problem_of
from planner.errors import OptionError
from planner.files import SourceText
from planner.overlay import Flag, over
from planner.plan import PlanDocument


@dataclass(frozen=True, slots=True)
class Replanned:
    """What a kind of instance calls the price of a move, the most moves, the term of priced moves, and its moves."""

    price: str
    most: str
    term: str
    moves: Callable[[PlanDocument], float]


def _instances_changed(document: PlanDocument) -> float:
    fleet: Any = document.plan
    return float(sum(abs(count) for count in (fleet.changes or {}).values()))


def _gpus_started(document: PlanDocument) -> float:
    """Of workers that the change to the plan starts."""
    deployed: Any = document.plan
    started = {pod for step in deployed.change.steps for pod in step.start}
    return float(sum(len(pod.gpus) for pod in deployed.pods if pod.pod in started))


REPLANNED: Mapping[str, Replanned] = {
    "experts": Replanned("move_cost", "max_moves", "moves", lambda one: one.outcome.terms["moved_replicas"]),
    "fleet": Replanned("change_cost_usd_per_hour", "max_changes", "change_usd_per_hour", _instances_changed),
    "deploy": Replanned("move_cost_usd_per_gpu_hour", "max_moves", "move_usd_per_hour", _gpus_started),
}

Asked = Callable[[SolveOptions], tuple[PlanDocument, dict[str, Any]]]


def replan(source: SourceText, move_price: float, horizon_hours: float) -> Asked:
    """Read the instance, whose `current` is set, with priced moves and with none; solve both when called.

    Raises DescriptionError, and OptionError for a kind of instance that has no moves.
    """
    name = kind_name(source)
    known = REPLANNED.get(name)
    if known is None:
        raise OptionError(f"{name} has no priced moves; replanning is for {', '.join(REPLANNED)}")
    priced = problem_of(over(source, {(known.price,): Flag("move_price", move_price / horizon_hours)}))
    kept = problem_of(over(source, {(known.price,): Flag("move_price", 0.0), (known.most,): Flag("keeping", 0)}))

    def solve(options: SolveOptions) -> tuple[PlanDocument, dict[str, Any]]:
        new, keep = plan(priced, options=options), plan(kept, options=options)
        return new, _payback(known, new, keep, move_price, horizon_hours)

    return solve


def _payback(
    known: Replanned, new: PlanDocument, keep: PlanDocument, move_price: float, horizon_hours: float
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "keep_objective": keep.outcome.objective,
        "keep_why_not": list(keep.outcome.reasons),
        "objective": None,
        "moves": None,
        "gain_per_hour": None,
        "move_cost": None,
        "horizon_hours": horizon_hours,
        "pays_back": None,
        "break_even_hours": None,
    }
    if new.plan is None or new.outcome.objective is None:
        return found
    objective = new.outcome.objective - new.outcome.terms.get(known.term, 0.0)
    moves = known.moves(new)
    found |= {"objective": objective, "moves": moves, "move_cost": moves * move_price}
    if keep.outcome.objective is not None:
        gain = keep.outcome.objective - objective
        found |= {
            "gain_per_hour": gain,
            "pays_back": gain * horizon_hours > moves * move_price,
            "break_even_hours": moves * move_price / gain if gain > 0 else None,
        }
    return found
