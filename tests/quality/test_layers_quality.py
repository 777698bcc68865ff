"""Layers over unequal devices on stored pools and homes: never below the stored answers, and proven."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.layers import geomean, stored_home, stored_pool
from formulations import SolveOptions, load_problem, plan

LIMITS = SolveOptions(time_limit_s=60.0)


def test_memory_holds_as_many_layers_as_stored(shared_data: Path) -> None:
    data = json.loads((shared_data / "training" / "parallax_allocation.json").read_text())
    problem = load_problem(stored_pool(data["gpus_mem_tflops_bw"], data["layer_capacity"]))
    assert dict(zip(problem.names, problem.cap[:, 0].tolist(), strict=True)) == data["layer_capacity"]


@pytest.mark.slow
def test_pools_are_never_below_the_stored_answers(shared_data: Path) -> None:
    """The first 13 of 21, up to 16 GPUs; `python -m benchmarks.layers` has all."""
    data = json.loads((shared_data / "training" / "parallax_allocation.json").read_text())
    gains = []
    for row in data["rows"][:13]:
        found = plan(stored_pool(data["gpus_mem_tflops_bw"], row["names"]), options=LIMITS).outcome
        assert found.status == "optimal"
        assert found.objective is not None
        theirs = max(row["greedy"]["thr"], row["dp"]["thr"])
        assert -found.objective >= max(theirs, row["milp_reference"]["thr"]) * (1 - 1e-6)
        gains.append(-found.objective / theirs)
    assert geomean(gains) > 1.3


@pytest.mark.slow
def test_homes_are_never_slower_than_the_stored_answers(shared_data: Path) -> None:
    """Stored times are rounded, and so are the sizes that they belong to: about 1e-5 is theirs."""
    gains = []
    for case in json.loads((shared_data / "training" / "halda_cases.json").read_text()):
        found = plan(stored_home(case, True), options=LIMITS).outcome
        assert found.status == "optimal"
        assert found.objective is not None
        token_ms = 1e3 * found.objective
        assert token_ms <= min(case["one_shot_ms"], case["fixed_point_ms"]) * (1 + 2e-5)
        free = plan(stored_home(case, False), options=LIMITS).outcome
        assert free.objective is not None
        assert free.objective <= found.objective * (1 + 1e-9)
        gains.append(case["fixed_point_ms"] / token_ms)
    assert geomean(gains) > 1.04
