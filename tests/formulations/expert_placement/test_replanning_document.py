"""Replanning through files: yesterday's plan document is today's current placement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formulations.outcome import SolveOptions
from formulations.planning import check_document, load_problem, plan
from planner.cost.expert_parallel import moved_replicas
from planner.errors import DescriptionError
from planner.files import read_as, to_json, write_text
from planner.plan import ExpertsDocument

LIMITS = SolveOptions(work_limit=2_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Loads of yesterday and today (three of five layers are MoE), and yesterday's plan."""
    rng = np.random.default_rng(0)
    for day, load in (("monday", rng.lognormal(0, 1, (5, 12))), ("tuesday", rng.lognormal(0, 1, (5, 12)))):
        load[:2] = 0
        np.save(tmp_path / f"{day}.npy", load)
    write_text(tmp_path / "plan.json", to_json(plan(instance(tmp_path, "monday"), options=LIMITS)))
    return tmp_path


def instance(folder: Path, day: str, **changes: Any) -> Path:
    path = folder / f"{day}.json"
    base = {"problem": "experts", "name": day, "num_gpus": 4, "num_slots": 16, "expert_bytes": "1MB"}
    path.write_text(json.dumps({**base, "loads": [{"file": f"{day}.npy"}], **changes}))
    return path


def test_todays_plan_starts_from_yesterdays(folder: Path) -> None:
    path = instance(folder, "tuesday", current="plan.json", move_cost=0.002)
    document = plan(path, options=LIMITS)
    assert document.plan is not None
    assert document.plan.layer_ids == (2, 3, 4)
    assert document.plan.moves is not None
    terms = document.outcome.terms
    assert terms["moved_replicas"] == len(document.plan.moves)
    assert terms["moves"] == pytest.approx(0.002 * len(document.plan.moves))
    assert terms["moved_bytes"] == pytest.approx(1e6 * len(document.plan.moves))
    assert {move.layer for move in document.plan.moves} <= {2, 3, 4}
    old = read_as(folder / "plan.json", ExpertsDocument).plan
    assert old is not None
    moved = moved_replicas(document.plan.array, old.array, 12, 4).sum()
    assert moved == len(document.plan.moves)


def test_the_written_plan_passes_its_check_with_its_moves(folder: Path) -> None:
    path = instance(folder, "tuesday", current="plan.json", max_moves=6)
    document = plan(path, options=LIMITS)
    write_text(folder / "next.json", to_json(document))
    again = read_as(folder / "next.json", ExpertsDocument)
    assert again == document
    assert check_document(again, load_problem(path)).feasible
    assert document.plan is not None
    assert len(document.plan.moves or ()) <= 6
    assert document.outcome.objective is not None


def test_the_same_day_again_moves_nothing_that_costs(folder: Path) -> None:
    document = plan(instance(folder, "monday", current="plan.json", move_cost=1.0), options=LIMITS)
    assert document.plan is not None
    assert document.plan.moves == ()
    old = read_as(folder / "plan.json", ExpertsDocument)
    assert old.plan is not None
    assert document.plan.physical_to_logical == old.plan.physical_to_logical


def test_free_replanning_is_no_worse_than_staying(folder: Path) -> None:
    document = plan(instance(folder, "tuesday", current="plan.json"), options=LIMITS)
    stay = plan(instance(folder, "tuesday", current="plan.json", max_moves=0), options=LIMITS)
    assert document.outcome.objective is not None
    assert stay.outcome.objective is not None
    assert document.outcome.objective <= stay.outcome.objective * (1 + 1e-9)


def test_changed_moves_or_cap_are_found_by_the_check(folder: Path) -> None:
    path = instance(folder, "tuesday", current="plan.json", move_cost=0.001)
    document = plan(path, options=LIMITS)
    assert document.plan is not None
    assert document.plan.moves
    cut = document.model_copy(update={"plan": document.plan.model_copy(update={"moves": document.plan.moves[:-1]})})
    rules = {violation.rule for violation in check_document(cut, load_problem(path)).violations}
    assert rules == {"move_order"}
    capped = instance(folder, "tuesday", current="plan.json", max_moves=1)
    rules = {violation.rule for violation in check_document(document, load_problem(capped)).violations}
    assert rules == {"max_moves"}


def test_a_plan_of_another_shape_is_refused_with_its_file(folder: Path) -> None:
    with pytest.raises(DescriptionError, match="16 slots"):
        plan(instance(folder, "tuesday", current="plan.json", num_slots=20))
    with pytest.raises(DescriptionError, match=r"missing\.json"):
        plan(instance(folder, "tuesday", current="missing.json"))


def test_fewer_gpus_than_the_current_placement_had_is_no_silent_plan(folder: Path) -> None:
    """16 slots on 4 GPUs, now on 8: slot j lies on another GPU than before, so `current` means another layout."""
    path = instance(folder, "tuesday", current="plan.json", num_gpus=8)
    with pytest.raises(DescriptionError, match="GPUs"):
        plan(path, options=LIMITS)
