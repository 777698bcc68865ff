"""Replanning jobs: a new plan, and whether moving to it pays back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from batch_cases import with_rate, write_fleet

from formulations.batch.files import FilesRead
from formulations.batch.jobs import Job, Settings
from formulations.batch.replanning import replan
from formulations.batch.worker import solve_job
from formulations.in_force import in_force
from formulations.outcome import SolveOptions
from formulations.planning import plan
from planner.errors import OptionError
from planner.files import read_source, to_json
from planner.overlay import over


@pytest.fixture(scope="module")
def files() -> FilesRead:
    return FilesRead()


def replanned(tmp_path: Path, files: FilesRead, rate: float, in_force: int, **asked: float) -> dict[str, Any]:
    """The payback of a fleet of so many instances of 3 USD/h, each good for 4 requests/s."""
    (tmp_path / "last.json").write_text(json.dumps({"one": in_force}))
    path = write_fleet(tmp_path, "f", demand=with_rate(rate))
    job = Job(name="f", path=str(path), current=str(tmp_path / "last.json"), **asked)  # type: ignore[arg-type]
    record = solve_job(job.payload(Settings()), files)
    assert record["end"] == "done", record["errors"]
    assert str((tmp_path / "last.json").resolve()) in record["files"]
    found: dict[str, Any] = record["replanning"]
    return found


def test_a_move_that_pays_back(tmp_path: Path, files: FilesRead) -> None:
    """2 are in force and 1 is enough: 3 USD/h saved for 24 h is 72 USD, one change costs 24, back after 8 h."""
    found = replanned(tmp_path, files, rate=2, in_force=2, move_price=24, horizon_hours=24)
    assert found["keep_objective"] == pytest.approx(6.0)
    assert found["objective"] == pytest.approx(3.0)
    assert (found["moves"], found["move_cost"], found["pays_back"]) == (1.0, 24.0, True)
    assert found["gain_per_hour"] == pytest.approx(3.0)
    assert found["break_even_hours"] == pytest.approx(8.0)


def test_a_move_that_costs_more_than_it_brings_is_not_made(tmp_path: Path, files: FilesRead) -> None:
    """100 USD for what saves 72: the plan in force is kept."""
    found = replanned(tmp_path, files, rate=2, in_force=2, move_price=100, horizon_hours=24)
    assert (found["moves"], found["move_cost"], found["pays_back"]) == (0.0, 0.0, False)
    assert found["gain_per_hour"] == pytest.approx(0.0)
    assert found["break_even_hours"] is None


def test_a_plan_that_cannot_be_kept(tmp_path: Path, files: FilesRead) -> None:
    """9 requests/s take 3; the 2 in force serve 8."""
    found = replanned(tmp_path, files, rate=9, in_force=2, move_price=24, horizon_hours=24)
    assert found["keep_objective"] is None
    assert found["keep_why_not"]
    assert found["pays_back"] is None
    assert (found["moves"], found["objective"]) == (1.0, pytest.approx(9.0))


def test_experts_are_replanned_from_a_plan_document(tmp_path: Path) -> None:
    """Two GPUs with two slots each: loads 3, 3, 1, 1 in force as 6 and 2; a swap evens them out to 4 and 4.

    The hottest GPU has 1.5 times the mean load, then 1: 0.5 an hour for 10 hours against 2 moves at 1 each.
    """
    instance = {
        "problem": "experts", "name": "e", "num_gpus": 2, "gpus_per_node": 2, "num_slots": 4,
        "loads": [{"name": "day", "counts": [[3, 3, 1, 1]]}],
    }  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(instance))
    (tmp_path / "last.json").write_text(json.dumps({"physical_to_logical_map": [[0, 1, 2, 3]]}))
    source = read_source(tmp_path / "e.json")
    source = over(source, in_force(source, str(tmp_path / "last.json")))
    document, found = replan(source, move_price=1.0, horizon_hours=10.0)(SolveOptions())
    assert found["keep_objective"] == pytest.approx(1.5)
    assert found["objective"] == pytest.approx(1.0)
    assert (found["moves"], found["pays_back"], found["break_even_hours"]) == (2, True, pytest.approx(4.0))
    assert document.outcome.objective == pytest.approx(1.0 + 2 * 0.1)


def test_a_deployment_moves_to_a_cheaper_gpu(tmp_path: Path) -> None:
    """A worker of one l4 for 1 USD/h; a t4 that serves as much is offered for 0.9. To start there costs 1.2 USD once:
    0.1 USD/h saved for 24 h is 2.4, back after 12 h. At 3.6 USD it is left alone."""
    rows = "".join(f"w-{device},m,{device},both,1,100,100,5\n" for device in ("l4", "t4"))
    (tmp_path / "w.csv").write_text(
        f"worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\n{rows}"
    )
    offers = [
        {"name": name, "device": name, "gpus": 1, "price_usd_per_hour": usd} for name, usd in (("l4", 1), ("t4", 0.9))
    ]
    instance = {
        "problem": "deploy", "name": "d", "workers": "w.csv", "utilisation": 1.0,
        "services": [{"name": "m", "demand": [{"input_tokens": 100, "output_tokens": 100, "rate_per_s": 5}]}],
    }  # fmt: skip
    (tmp_path / "now.json").write_text(json.dumps({**instance, "offers": offers[:1]}))
    (tmp_path / "last.json").write_text(to_json(plan(tmp_path / "now.json", options=SolveOptions())))
    (tmp_path / "d.json").write_text(json.dumps({**instance, "offers": offers}))
    source = read_source(tmp_path / "d.json")
    source = over(source, in_force(source, str(tmp_path / "last.json")))
    _, found = replan(source, move_price=1.2, horizon_hours=24.0)(SolveOptions())
    assert (found["keep_objective"], found["objective"]) == (pytest.approx(1.0), pytest.approx(0.9))
    assert (found["moves"], found["pays_back"], found["break_even_hours"]) == (1, True, pytest.approx(12.0))
    _, found = replan(source, move_price=3.6, horizon_hours=24.0)(SolveOptions())
    assert (found["moves"], found["pays_back"]) == (0, False)


def test_kinds_without_priced_moves_are_refused() -> None:
    path = Path(__file__).resolve().parents[3] / "instances/parallel/given_table.yaml"
    with pytest.raises(OptionError, match="has no priced moves"):
        replan(read_source(path), 1.0, 1.0)
