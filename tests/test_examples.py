"""Every shipped instance is valid and gives a checked plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from formulations.kinds import kind
from formulations.outcome import SolveOptions
from formulations.planning import load_problem, plan

ROOT = Path(__file__).resolve().parents[1] / "instances"
INSTANCES = sorted(path for kind in ("*.yaml", "*.yml") for path in ROOT.rglob(kind))
#: Proposals per layer: enough to go through every stage of the search.
WORK = 150


@pytest.mark.parametrize("path", INSTANCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_instance_gives_a_checked_plan(path: Path) -> None:
    problem = load_problem(path)
    document = plan(problem, options=SolveOptions(time_limit_s=30.0, work_limit=WORK))
    assert document.instance.name
    assert len(document.instance.sha256) == 64
    if document.plan is None:
        assert document.outcome.status == "infeasible"
        assert document.outcome.reasons
        return
    assert document.verdict is not None
    assert document.verdict.feasible
    assert document.outcome.objective is not None
    assert document.outcome.bound is not None
    slack = 1e-6 * abs(document.outcome.objective)
    assert document.outcome.bound <= document.outcome.objective + slack
    assert document.baseline is not None
    formulation = kind(problem.kind).formulation
    rule = formulation.baseline(problem)[1]
    if getattr(problem, "current", None) is None and not formulation.check(problem, rule):
        assert document.outcome.objective <= document.baseline.objective + slack


def test_instances_are_shipped() -> None:
    assert INSTANCES
