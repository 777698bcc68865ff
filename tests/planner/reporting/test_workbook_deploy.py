"""The workbook of a deployment: true results, loads and costs that follow the inputs, places as decided."""

from __future__ import annotations

from pathlib import Path

import pytest
from workbook_cases import Engine, cell_of, stored

from planner import read_document
from planner.descriptions.deploy import DeployInstance
from planner.files import read_source, validate
from planner.plan import DeployDocument
from planner.reporting.workbook.cells import Book, Formula
from planner.reporting.workbook.deploy import deploy_book
from planner.reporting.workbook.xlsx import write_xlsx

DEPLOY = Path(__file__).resolve().parents[3] / "instances" / "deploy"
NAMES = sorted(path.name.removesuffix(".best.json") for path in DEPLOY.glob("*.best.json"))


def shipped(name: str) -> tuple[Book, DeployDocument, DeployInstance]:
    source = read_source(DEPLOY / f"{name}.yaml")
    instance = validate(source, DeployInstance)
    document = read_document(DEPLOY / f"{name}.best.json")
    assert isinstance(document, DeployDocument)
    return deploy_book(instance, source.value, document, ".", "2026-01-01"), document, instance


def written(folder: Path, name: str) -> tuple[Path, DeployDocument, DeployInstance]:
    book, document, instance = shipped(name)
    write_xlsx(book, str(folder / "plan.xlsx"))
    return folder / "plan.xlsx", document, instance


def beside(path: Path, sheet: str, label: str, column: str) -> str:
    return f"{sheet}!{column}{cell_of(path, sheet, label).split('!B')[1]}"


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_the_plan(name: str, tmp_path: Path) -> None:
    path, document, instance = written(tmp_path, name)
    plan = document.plan
    assert plan is not None
    cells, engine = stored(path), Engine(path)
    assert cells["Checks!B3"] == engine["Checks!B3"] == "CURRENT"
    dearest = max(period.cost_usd_per_hour for period in plan.fleet.periods)
    assert cells[beside(path, "Plan", "together", "F")] == pytest.approx(dearest)
    assert cells[beside(path, "Hours", "mean", "C")] == pytest.approx(plan.cost_usd_per_hour)
    assert document.verdict is not None
    fullest = [one.value for one in document.verdict.metrics if one.name.startswith("utilisation[")]
    full = [cells[f"Checks!C{cell[8:]}"] for cell, value in cells.items()
            if cell.startswith("Checks!A") and str(value).startswith("load of ")]  # fmt: skip
    assert max(fullest) - 1e-6 <= max(full) <= instance.utilisation + 1e-6
    devices = [value for cell, value in cells.items() if cell.startswith("Placement!") and ": " in str(value)]
    assert len(devices) - 1 == sum(len(pod.gpus) for pod in plan.pods)


def test_loads_and_costs_follow_the_inputs(tmp_path: Path) -> None:
    """Twice the titles are twice the load of their worker, which breaks its limit; a dearer node costs more."""
    path, _, _ = written(tmp_path, "demo")
    engine = Engine(path)
    row = beside(path, "Checks", "load of titles", "C")
    was = engine[row]
    engine.type(cell_of(path, "Inputs", "services/2/demand/0/rate_per_s"), 60)
    assert engine[row] == pytest.approx(2 * was)
    assert str(engine["Checks!B3"]).startswith("BROKEN" if 2 * was > 0.8 + 1e-5 else "STALE")
    engine.type(cell_of(path, "Inputs", "services/2/demand/0/rate_per_s"), 90)
    assert str(engine["Checks!B3"]).startswith("BROKEN")


def test_a_plan_that_was_changed_is_broken(tmp_path: Path) -> None:
    """Requests that nobody was planned for: the load is told."""
    path, _, _ = written(tmp_path, "three_services")
    engine = Engine(path)
    engine.type(cell_of(path, "Inputs", "services/0/demand/0/rate_per_s"), 40)
    assert str(engine["Checks!B3"]).startswith("BROKEN")


def test_no_text_of_a_user_is_in_a_formula() -> None:
    book, _, _ = shipped("demo")
    texts = [
        cell.value.text for sheet in book.sheets for cell in sheet.cells.values() if isinstance(cell.value, Formula)
    ]
    assert texts
    assert not [text for text in texts for word in ("chat", "titles", "h100", "p5en") if word in text]


def test_an_instance_alone_has_its_inputs() -> None:
    source = read_source(DEPLOY / "demo.yaml")
    book = deploy_book(validate(source, DeployInstance), source.value, None, ".", "2026-01-01")
    assert [sheet.name for sheet in book.sheets] == ["Read me", "Inputs"]
