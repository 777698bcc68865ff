"""The search's benchmark cases: rows that can be read, and what is asked of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.training_layers import layers, networks
from benchmarks.training_search import calculon, configurations, scale

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPLAN_SHARED_DATA", str(shared_data))


def test_plans_beside_calculon() -> None:
    """Within 1 % of its best by its own clock on five of six; none slower by ours."""
    rows = list(calculon(True))
    ratios = [row.ours for row in rows if row.measure.startswith("our plan by its clock")]
    assert len(ratios) == 6
    assert sum(ratio <= 1.01 for ratio in ratios) >= 5
    assert max(ratios) <= 1.03
    ours = [row for row in rows if row.measure == "step by our clock"]
    assert all(row.reference is not None and row.ours <= row.reference * (1 + 1e-9) for row in ours)


def test_published_configurations() -> None:
    rows = list(configurations(True))
    sc21 = [row for row in rows if row.case.startswith("SC21")]
    assert len(sc21) == 10
    assert all(row.reference is not None and abs(row.ours / row.reference - 1) < 0.1 for row in sc21)
    sweep = next(row for row in rows if row.case.startswith("BLOOM-181B h14336 a64"))
    assert sweep.ours <= 1.03
    assert all(math.isfinite(row.ours) for row in rows)


def test_large_models_have_a_proven_answer() -> None:
    rows = list(scale(True))
    steps = [row for row in rows if row.measure == "step" and row.reference_name == "our bound"]
    assert len(steps) == 3
    assert all(row.reference is not None and row.ours <= row.reference * (1 + 1e-6) for row in steps)


def test_layers_that_differ_never_make_a_plan_worse() -> None:
    """Each freedom is no worse than all layers alike, and free stages are better where memory is tight; bounds hold."""
    rows = list(layers(True))
    steps = [row for row in rows if row.measure.startswith("step")]
    assert all(row.reference is not None and row.ours <= row.reference * (1 + 1e-9) for row in steps)
    assert all(row.ours < 0.99 * (row.reference or 0.0) for row in steps if row.measure == "step, stage")
    bounds = [row for row in rows if row.measure.startswith("bound")]
    assert all(row.reference is not None and row.ours <= row.reference * (1 + 1e-9) for row in bounds)


def test_a_plan_made_for_its_network_is_no_worse_there() -> None:
    rows = {row.case.split(", ")[1]: row for row in networks(True)}
    assert all(row.reference is not None and row.ours <= row.reference * (1 + 1e-9) for row in rows.values())
    assert rows["leaf-spine 4 : 1"].ours > rows["flat"].ours
    assert rows["leaf-spine 1 : 1"].ours == pytest.approx(rows["flat"].ours)
