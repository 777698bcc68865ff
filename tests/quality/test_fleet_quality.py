"""The example of the Mélange repository by hand; the field's rules are in `tests/test_benchmarks_fleet.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import fleet_instances as instances
from formulations.base import solve
from formulations.gpu_fleet.formulation import GPU_FLEET
from formulations.gpu_fleet.problem import FleetProblem
from formulations.outcome import SolveOptions

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPLAN_SHARED_DATA", str(shared_data))


def cost(problem: FleetProblem, method: str = "highs", gap: float | None = None) -> float:
    outcome = solve(GPU_FLEET, problem, SolveOptions(time_limit_s=60.0, method=method, relative_gap=gap))
    assert outcome.objective is not None
    return outcome.objective.total


def test_the_published_example_by_hand() -> None:
    # 6, 3, 15, 6 requests/s. A100: 6/20 + 3/20 + 15/40 + 6/20 = 1.125; the 0.125 left over are 5 requests/s of the
    # third size, one A10G: 3.67 + 1.01. Whole buckets need 3 more A10G beside one A100.
    example = instances.published_examples()["example.json"]
    assert cost(example) == pytest.approx(4.68)
    assert cost(example, "melange-1") == pytest.approx(6.70)
