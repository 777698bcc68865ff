"""`export`: golden files of every format, refusals, and files that are written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_plan import NO_REPLICAS, document, placement, with_moves

from planner.errors import DescriptionError, ExportError, OptionError
from planner.writers import WRITERS, export

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
PLAN = document(with_moves(placement()))
LP_PLAN = document(placement(split="lp"))
SERVING_MODULES = [f"planner.writers.{to}_serve" for to in ("sglang", "trtllm", "vllm")]
MODULES = {"disaggregatedset": "lws", "exflow-csv": "exflow", "vllm-ascend": "vllm_ascend"}


@pytest.fixture(autouse=True)
def _work_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("to", "plan", "names"),
    [
        ("sglang", PLAN, ["experts_sglang.json", "experts_sglang.flags.txt"]),
        ("sglang", LP_PLAN, ["experts_sglang_lp.json", "experts_sglang_lp.flags.txt"]),
        ("trtllm", PLAN, ["experts_trtllm.yaml"]),
        ("vllm-ascend", PLAN, ["experts_vllm_ascend.json", "experts_vllm_ascend.flags.txt"]),
        ("exflow-csv", document(placement(NO_REPLICAS)), ["experts_exflow.csv"]),
        ("moves", PLAN, ["experts_moves.csv"]),
        ("moves", PLAN, ["experts_moves.json"]),
    ],
)
def test_golden_files(to: str, plan, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    export(plan, to, names[0])
    assert {path.name: path.read_text() for path in Path().iterdir()} == {
        name: (GOLDEN / name).read_text() for name in names
    }
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("to", ["sglang", "trtllm", "vllm-ascend", "moves"])
def test_standard_output_gets_one_file(to: str, capsys: pytest.CaptureFixture[str]) -> None:
    export(PLAN, to, "-")
    name = f"experts_{to.replace('-', '_')}.{'yaml' if to == 'trtllm' else 'json'}"
    expected = (GOLDEN / name).read_text()
    if to == "trtllm":
        expected = expected.replace(f"-o {name}", "-o -").replace(f"./{name}", "./moe_load_balancer.yaml")
    assert capsys.readouterr().out == expected
    assert list(Path().iterdir()) == []


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="unknown export format 'sgl'; known: deepspeed, diff, disaggregatedset,"):
        export(PLAN, "sgl", "map.json")


@pytest.mark.parametrize("to", sorted(to for to, kinds in WRITERS.items() if "experts" in kinds))
def test_a_document_without_a_plan_is_refused(to: str) -> None:
    with pytest.raises(ExportError, match=r"holds no plan \(status infeasible\)"):
        export(document(None), to, "map.json")


def test_a_plan_of_another_problem_is_refused() -> None:
    other = PLAN.model_copy(update={"problem": "pods"})
    with pytest.raises(ExportError, match="sglang holds plans of experts or parallel, this is a plan of pods"):
        export(other, "sglang", "map.json")


@pytest.mark.parametrize("to", sorted(to for to, kinds in WRITERS.items() if "experts" in kinds))
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0, 1, 2, 2, 0, 1], "layer 3 has no slot for expert 3"),
        ([0, 1, 2, 3, 9, 1], "layer 3 names expert 9, but the plan has 4 experts"),
    ],
)
def test_a_damaged_plan_is_refused(to: str, row: list[int], expected: str) -> None:
    plan = placement()
    rows = (plan.physical_to_logical[0], tuple(row))
    with pytest.raises(ExportError, match=expected):
        export(document(plan.model_copy(update={"physical_to_logical": rows})), to, "map.json")
    assert list(Path().iterdir()) == []


def test_vllm_is_refused_with_what_is_possible() -> None:
    with pytest.raises(ExportError, match="reads no expert map") as caught:
        export(PLAN, "vllm", "map.json")
    assert """--enable-eplb --eplb-config '{"num_redundant_experts": 2}'""" in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("to", ["sglang", "trtllm", "vllm-ascend", "moves"])
def test_a_failed_write_leaves_the_old_files(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    export(PLAN, to, "map.json")
    before = {path.name: path.read_bytes() for path in Path().iterdir()}

    def full(source: str, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    changed = document(with_moves(placement(list(reversed(placement().physical_to_logical)))), "other")
    with pytest.raises(DescriptionError, match=r"map\S*: cannot be written: No space left on device"):
        export(changed, to, "map.json")
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before


@pytest.mark.parametrize("to", ["sglang", "vllm-ascend"])
def test_no_flags_for_a_map_that_could_not_be_written(to: str) -> None:
    Path("map.json").mkdir()
    with pytest.raises(DescriptionError, match=r"map\.json: cannot be written"):
        export(PLAN, to, "map.json")
    assert [path.name for path in Path().iterdir()] == ["map.json"]
    with pytest.raises(DescriptionError, match=r"missing.*: cannot be written"):
        export(PLAN, to, "missing/map.json")


def test_names_cannot_leave_their_comment() -> None:
    plan = document(placement(), "a\nnum_slots: 99\x85b\u2028c")
    export(plan, "trtllm", "map.yaml")
    assert "# instance a num_slots: 99 b c, sha256" in Path("map.yaml").read_text()
    export(plan, "sglang", "map.json")
    lines = Path("map.flags.txt").read_text().splitlines()
    assert [line[:2] for line in lines] == ["# "] * 4 + ["--"]


def test_formats_are_imported_on_use() -> None:
    modules = [f"planner.writers.{MODULES.get(to, to)}" for to in WRITERS] + SERVING_MODULES
    code = f"import sys, planner.writers; print([m for m in {modules} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
