"""Short forms of the deployment benchmark: no stored instance is dearer than the best known, every plan is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.deploy import small, stages


@pytest.mark.slow
def test_no_stored_instance_is_dearer_than_the_best_known(shared_data: Path) -> None:
    rows = {(row.case, row.measure): row for row in small(True)}
    for name in ("startup", "six", "six8", "moe"):
        row = rows[name, "cost"]
        assert row.reference is not None
        # The stored costs are rounded to a cent.
        assert row.ours <= row.reference + 0.006


@pytest.mark.slow
def test_no_stage_by_stage_plan_is_cheaper(shared_data: Path) -> None:
    rows = list(stages(True))
    assert {row.case for row in rows} == {"startup", "six", "six8", "moe"}
    for row in rows:
        assert row.reference is not None
        assert row.ours <= row.reference * 1.005
