"""Move lists and ExFlow solutions: what they say, what they refuse, and ExFlow's own files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from tiny_plan import MOVES, NO_REPLICAS, document, placement, with_moves

from planner.errors import ExportError
from planner.writers import export


def test_exflow_numbers_experts_through_all_moe_layers(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    export(document(placement(NO_REPLICAS)), "exflow-csv", str(path))
    with path.open(newline="") as file:
        node_of = {int(row["Expert"]): int(row["Node"]) for row in csv.DictReader(file)}
    expected = {
        layer * 4 + expert: slot // 2 for layer, row in enumerate(NO_REPLICAS) for slot, expert in enumerate(row)
    }
    assert node_of == expected


def test_exflow_has_no_replicas(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="6 slots for 4 experts; plan again with num_slots: 4"):
        export(document(placement()), "exflow-csv", str(tmp_path / "solution.csv"))


@pytest.mark.parametrize("num_gpus", [4, 8])
def test_exflow_published_solutions_come_out_again(tmp_path: Path, shared_data: Path, num_gpus: int) -> None:
    (published,) = (shared_data / "experts" / "misc").glob(f"solution_intra{num_gpus}_*.csv")
    lines = published.read_text().splitlines()
    nodes = [int(line.split(",")[1]) for line in lines[1:]]
    rows = [sorted(range(8), key=nodes[start : start + 8].__getitem__) for start in range(0, 256, 8)]
    plan = placement(rows, layer_ids=tuple(range(32)), num_experts=8, num_gpus=num_gpus, num_decoder_layers=32)
    export(document(plan), "exflow-csv", str(tmp_path / "solution.csv"))
    assert (tmp_path / "solution.csv").read_text().splitlines() == lines


def test_both_forms_of_the_move_list_agree(tmp_path: Path) -> None:
    plan = document(with_moves(placement()))
    export(plan, "moves", str(tmp_path / "moves.CSV"))
    export(plan, "moves", str(tmp_path / "moves.json"))
    with (tmp_path / "moves.CSV").open(newline="") as file:
        rows = [{key: int(value) for key, value in row.items()} for row in csv.DictReader(file)]
    value = json.loads((tmp_path / "moves.json").read_text())
    assert rows == value["moves"] == [move.model_dump() for move in MOVES]
    assert value["gpuplan_version"] == "0.1.0"
    assert value["instance"] == {"name": "tiny", "sha256": "5ea1" * 16}
    assert "staging buffer" in value["note"]


def test_a_plan_that_changes_nothing_has_an_empty_list(tmp_path: Path) -> None:
    plan = document(placement().model_copy(update={"moves": ()}))
    export(plan, "moves", str(tmp_path / "moves.json"))
    assert json.loads((tmp_path / "moves.json").read_text())["moves"] == []
    export(plan, "moves", str(tmp_path / "moves.csv"))
    assert (tmp_path / "moves.csv").read_text() == "step,layer,expert,from_gpu,to_gpu,slot,replaces\n"


def test_a_plan_from_scratch_has_no_moves(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="plan with current: FILE"):
        export(document(placement()), "moves", str(tmp_path / "moves.csv"))
    assert not list(tmp_path.iterdir())
