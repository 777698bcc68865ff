"""The short form of every case of the fleet benchmark: rows that can be read, and the ratios that are asked for."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.common import Row
from benchmarks.fleet import CASES

pytestmark = pytest.mark.slow

#: Rows of a case that are looked at: the first ones of cases whose short form takes long.
FIRST = {"scaling": 4, "large": 4, "sharing": 3, "hours": 4, "spare": 2}


@pytest.fixture(autouse=True)
def _data(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPLAN_SHARED_DATA", str(shared_data))


def reached(row: Row) -> bool:
    """Whether a row keeps what is asked. Times depend on the machine, and gaps on what time it gives."""
    if row.reference is None or row.unit == "s" or row.measure.startswith(("proven gap", "CPU", "off a sum")):
        return True
    slack = 1e-3 * max(1.0, abs(row.reference))
    return row.ours <= row.reference + slack if row.better == "lower" else row.ours >= row.reference - slack


@pytest.mark.parametrize("case", CASES)
def test_short_form(case: str) -> None:
    found = list(islice(CASES[case](True), FIRST.get(case)))
    assert found
    for row in found:
        assert row.case
        assert row.measure
        assert row.unit
        assert row.better in ("lower", "higher")
        assert math.isfinite(row.ours), row
        assert row.reference is None or (math.isfinite(row.reference) and row.reference_name), row
        assert reached(row), row
    names = [(row.case, row.measure) for row in found]
    assert len(set(names)) == len(names)
