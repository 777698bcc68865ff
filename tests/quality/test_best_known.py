"""Plans of the shipped instances against the best known ones; the gaps are printed with `pytest -s`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.best_known import better
from formulations import SolveOptions, check_document, load_problem, plan
from planner import read_document

INSTANCES = Path(__file__).resolve().parents[2] / "instances"
BEST = sorted(INSTANCES.glob("*/*.best.json"))


def test_every_instance_has_a_best_known_plan() -> None:
    names = {path.name.removesuffix(".yaml") for path in INSTANCES.glob("*/*.yaml")}
    assert {path.name.removesuffix(".best.json") for path in BEST} == names


@pytest.mark.parametrize("path", BEST, ids=lambda path: path.name.removesuffix(".best.json"))
def test_a_plan_is_not_better_than_itself(path: Path) -> None:
    """Tiers of fleets have goals, those of pods have not."""
    best = read_document(path)
    assert better(best, best.model_copy()) is None


@pytest.mark.slow
@pytest.mark.parametrize("path", BEST, ids=lambda path: path.name.removesuffix(".best.json"))
def test_short_search_lies_between_the_best_bound_and_the_baseline(path: Path) -> None:
    best = read_document(path)
    instance = path.with_name(path.name.replace(".best.json", ".yaml"))
    problem = load_problem(instance)
    assert best.instance.sha256 == problem.sha256, "made for another instance: run python -m benchmarks.best_known"
    assert check_document(best, problem).feasible
    short = plan(problem, options=SolveOptions(time_limit_s=60, work_limit=20_000))
    assert short.outcome.objective is not None
    assert best.outcome.objective is not None
    assert best.outcome.bound is not None
    assert short.baseline is not None
    assert best.outcome.bound <= short.outcome.objective + 1e-9 * abs(short.outcome.objective)
    if problem.kind == "experts":
        # The plain rule of a fleet looks at no limit; tests/formulations/gpu_fleet compares where it keeps them.
        assert short.outcome.objective <= short.baseline.objective * (1 + 1e-9)
    above = short.outcome.objective - best.outcome.objective
    print(f"\n{path.stem}: {above / max(abs(best.outcome.objective), 1e-9):.3%} above the best known")
