"""`gpuplan workbook`, and `gpuplan plan` on what it wrote."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from planner.files import read_source

FLEET = Path(__file__).resolve().parents[2] / "instances" / "fleet"
TWO = str(FLEET / "two_offers.yaml")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def saved(source: Path, target: Path, **cells: Any) -> str:
    """The filled-in workbook, as another program saves it. Its yellow sheets have no data bars."""
    book = openpyxl.load_workbook(source)
    for cell, value in cells.items():
        sheet, name = cell.split("_")
        book[sheet][name] = value
    book.save(target)
    return str(target)


def test_from_instance_to_workbook_and_back(gpuplan: Any, folder: Path) -> None:
    """Filled in, planned, and planned again with twice the demand: 8 and 16 USD an hour, as scenarios foretold."""
    result = gpuplan("workbook", TWO, "--blank", "-o", "blank.xlsx")
    assert result.exit_code == 0, result.output
    result = gpuplan("plan", "blank.xlsx", "-o", "plan.xlsx", "--quiet")
    assert result.exit_code == 0, result.output
    result = gpuplan("plan", "plan.xlsx", "--json", "--quiet")
    document = json.loads(result.stdout)
    assert document["outcome"]["objective"] == pytest.approx(8)
    given = json.loads((FLEET / "two_offers.best.json").read_text())
    assert document["instance"] == given["instance"]
    double = saved(folder / "blank.xlsx", folder / "double.xlsx", Inputs_B14=2)
    result = gpuplan("workbook", double, "-o", "new.xlsx", "--csv", "sheets")
    assert result.exit_code == 0, result.output
    told = {row[0]: row[1] for row in rows(folder / "sheets" / "plan.csv") if len(row) > 1}
    assert float(told["cost, mean"]) == pytest.approx(16)
    scenarios = rows(folder / "sheets" / "scenarios.csv")
    assert [row[0] for row in scenarios[5:10]] == ["0.5", "0.75", "1.25", "1.5", "2.0"]
    assert float(scenarios[5][2]) == pytest.approx(8)
    book = read_source("new.xlsx")
    assert [one["rate_per_s"] for one in book.value["demand"]] == [20, 4]


def test_from_a_plan(gpuplan: Any, folder: Path) -> None:
    plan = str(FLEET / "two_offers.best.json")
    result = gpuplan("workbook", plan, "--instance", TWO, "-o", "plan.xlsx", "--no-studies")
    assert result.exit_code == 0, result.output
    assert "written plan.xlsx" in result.stderr
    assert result.stdout == ""
    assert (folder / "plan.xlsx").stat().st_size > 10_000


def test_what_cannot_be_is_refused(gpuplan: Any, folder: Path) -> None:
    plan = str(FLEET / "two_offers.best.json")
    for arguments, code, text in (
        (("workbook", plan, "-o", "p.xlsx"), 2, "--instance names the instance"),
        (("workbook", TWO, "-o", "p.ods"), 2, "a workbook is a .xlsx file"),
        (("workbook", TWO, "--instance", TWO, "-o", "p.xlsx"), 2, "--instance goes with a plan"),
        (("workbook", plan, "--instance", TWO, "--blank", "-o", "p.xlsx"), 2, "--blank"),
        (("workbook", plan, "--instance", str(FLEET / "scarce.yaml"), "-o", "p.xlsx"), 7, "another instance"),
        (("workbook", "small.json", "-o", "missing/p.xlsx", "--blank"), 7, "cannot be written"),
        (("plan", TWO, "-o", "p.xlsx", "--json"), 2, "choose one"),
        (("plan", "missing.xlsx"), 7, "missing.xlsx: cannot be read"),
    ):
        result = gpuplan(*arguments)
        assert result.exit_code == code, (arguments, result.output)
        assert text in result.stderr, (arguments, result.stderr)
    assert not list(folder.glob("p.*"))


def test_a_mistake_is_told_at_its_cell(gpuplan: Any, folder: Path) -> None:
    assert gpuplan("workbook", TWO, "--blank", "-o", "blank.xlsx").exit_code == 0
    wrong = saved(folder / "blank.xlsx", folder / "wrong.xlsx", Inputs_B13="lots", Catalogue_B6=None)
    result = gpuplan("plan", wrong)
    assert result.exit_code == 7
    assert ":Inputs!B13: " in result.stderr
    assert ":Catalogue!" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_infeasible_fleet_is_a_workbook_with_reasons(gpuplan: Any, folder: Path) -> None:
    (folder / "poor.yaml").write_text(Path(TWO).read_text() + "budget_usd_per_hour: 1\n")
    result = gpuplan("workbook", "poor.yaml", "-o", "poor.xlsx", "--csv", "sheets")
    assert result.exit_code == 3
    reasons = [row[1] for row in rows(folder / "sheets" / "explain.csv") if row[0] == "why there is no plan"]
    assert any("budget" in reason for reason in reasons)
    assert not (folder / "sheets" / "plan.csv").exists()
    assert read_source("poor.xlsx").value["budget_usd_per_hour"] == 1


def test_other_problems_have_workbooks(gpuplan: Any, folder: Path) -> None:
    """Expert placement: data files beside the instance are found from the workbook, wherever it is."""
    (folder / "there").mkdir()
    value = json.loads((folder / "small.json").read_text())
    value["loads"] = [{"file": "day.npy"}]
    (folder / "small.json").write_text(json.dumps(value))
    result = gpuplan("workbook", "small.json", "-o", "there/plan.xlsx", "--method", "eplb", "--csv", "sheets")
    assert result.exit_code == 0, result.output
    names = {path.stem for path in (folder / "sheets").iterdir()}
    assert names == {"read_me", "inputs", "plan", "checks", "solved_for", "explain"}
    checks = {row[0]: row for row in rows(folder / "sheets" / "checks.csv")}
    assert checks["the plan is"][1] == "CURRENT"
    assert float(checks["expert_memory_per_gpu"][3]) == pytest.approx(300 / 1024)
    result = gpuplan("plan", "there/plan.xlsx", "--method", "eplb", "--json", "--quiet")
    assert result.exit_code == 0, result.output


def test_a_first_workbook_needs_no_file(gpuplan: Any, folder: Path) -> None:
    """Written, filled in as a person would, planned, and planned again from the new one."""
    made = gpuplan("workbook", "-o", "first.xlsx")
    assert made.exit_code == 0, made.output
    assert "gpuplan plan" in made.stderr
    book = openpyxl.load_workbook("first.xlsx")
    demand, catalogue = book["Demand"], book["Catalogue"]
    assert demand["A6"].value == "chat"
    demand["E6"].value = 40
    for col, value in enumerate(("a10", "a10g", 1, 1.0), start=1):
        catalogue.cell(8, col).value = value
    book["Inputs"]["B8"].value = "ours"
    book.save("filled.xlsx")
    done = gpuplan("plan", "filled.xlsx", "-o", "planned.xlsx", "--quiet", "--time-limit", "5")
    assert done.exit_code == 0, done.output
    said = read_source("planned.xlsx").value
    assert said["name"] == "ours"
    assert [offer["name"] for offer in said["offers"]] == ["g6e.xlarge", "p5.4xlarge", "a10"]
    assert said["demand"][0]["rate_per_s"] == 40


def test_a_deployment_has_a_workbook(gpuplan: Any, folder: Path) -> None:
    """Its workers have the GPUs of the plan, and it is planned again from its book."""
    instance = str(FLEET.parent / "deploy" / "half_used_cluster.yaml")
    result = gpuplan("workbook", instance, "-o", "plan.xlsx", "--csv", "sheets")
    assert result.exit_code == 0, result.output
    told = [row for row in rows(folder / "sheets" / "plan.csv") if row]
    start = next(place for place, row in enumerate(told) if "GPUs each" in row and "worker" in row)
    head = told[start]
    workers = [row for row in told[start + 1 :] if row[0].isdigit() and row[head.index("role")].isalpha()]
    gpus = [int(row[head.index("GPUs each")]) * int(row[head.index("count")]) for row in workers]
    assert sum(gpus) == 11
    assert gpuplan("plan", "plan.xlsx", "--json", "--quiet").exit_code == 0


def test_latency_of_workers_follows_its_limit(gpuplan: Any, folder: Path) -> None:
    instance = str(FLEET.parent / "parallel" / "given_table.yaml")
    result = gpuplan("workbook", instance, "-o", "plan.xlsx", "--csv", "sheets")
    assert result.exit_code == 0, result.output
    checks = {row[0]: row for row in rows(folder / "sheets" / "checks.csv")}
    assert float(checks["tpot_s"][2]) <= float(checks["tpot_s"][3])
    assert checks["tpot_s"][6] == "yes"


def test_without_the_extra_it_is_told(gpuplan: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    gone = ("xlsxwriter", "formualizer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in gone else found(name, *more))
    result = gpuplan("workbook", TWO, "-o", "plan.xlsx")
    assert result.exit_code == 2
    assert "gpuplan[xlsx]" in result.stderr
