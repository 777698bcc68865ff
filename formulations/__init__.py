"""The optimizations, each an ILP or CP formulation with local search beside it, and `plan()` to run one.

    from formulations import SolveOptions, plan
    document = plan("instances/experts/small.yaml", options=SolveOptions(time_limit_s=5))

Names are imported on first use: solvers and compilers stay out of a program's start-up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from formulations.base import solve
    from formulations.expert_placement.problem import ExpertPlacementProblem
    from formulations.outcome import Outcome, SolveOptions, Status, Stop
    from formulations.planning import check_document, load_problem, plan

__all__ = [
    "ExpertPlacementProblem",
    "Outcome",
    "SolveOptions",
    "Status",
    "Stop",
    "check_document",
    "load_problem",
    "plan",
    "solve",
]

_HOME = {
    "ExpertPlacementProblem": "formulations.expert_placement.problem",
    "Outcome": "formulations.outcome",
    "SolveOptions": "formulations.outcome",
    "Status": "formulations.outcome",
    "Stop": "formulations.outcome",
    "check_document": "formulations.planning",
    "load_problem": "formulations.planning",
    "plan": "formulations.planning",
    "solve": "formulations.base",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'formulations' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
