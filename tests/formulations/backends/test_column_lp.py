"""Programs that grow by columns: what happens when GLOP loses its way."""

from __future__ import annotations

from typing import Any

import pytest

from formulations.backends.column_lp import ColumnLp
from formulations.outcome import Budget
from planner.errors import SolverError


class Lost:
    """A solver that ends abnormally, as OR-Tools 9.15 tells it."""

    def solve(self, **_: Any) -> None:
        raise AttributeError("'StatusNotOk' object has no attribute 'canonical_code'")


def test_a_lost_solver_is_begun_anew() -> None:
    """min -x with x <= 3, then a column that is worth twice as much in the same row: -3, then -6."""
    lp = ColumnLp([0.0], [3.0])
    lp.add(-1.0, [0], [1.0])
    first = lp.solve(Budget(10))
    assert first is not None
    assert first[0] == pytest.approx(-3)
    lp.add(-2.0, [0], [1.0])
    lp._solver = Lost()
    again = lp.solve(Budget(10))
    assert again is not None
    assert again[0] == pytest.approx(-6)


def test_a_program_that_is_refused_at_once_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lp = ColumnLp([0.0], [3.0])
    lp.add(-1.0, [0], [1.0])
    monkeypatch.setattr(lp._mathopt, "IncrementalSolver", lambda *_: Lost())
    with pytest.raises(SolverError, match="GLOP refuses"):
        lp.solve(Budget(10))
