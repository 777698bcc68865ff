"""Formulas of a fleet's workbook: their stored results are the plan's numbers, and they follow what is typed."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from workbook_cases import ROOT, Engine, book_of, cell_of, of_workers, shipped, stored

from planner.plan import FleetDocument
from planner.reporting.workbook.cells import Book, Formula
from planner.reporting.workbook.facts import Scenario
from planner.reporting.workbook.fleet_placement import (
    GROUP_GPUS,
    GROUP_MODEL,
    GROUP_OFFER,
    GROUP_ROLE,
    GROUP_USE,
    GROUP_WHOLE,
    GROUP_WORKER,
)
from planner.reporting.workbook.xlsx import Results, to_bytes, write_xlsx

#: Functions that Excel 2007, LibreOffice 7.4 and formualizer all compute alike.
FUNCTIONS = {
    "ABS", "AND", "AVERAGE", "COUNT", "COUNTA", "EXACT", "IF", "IFERROR", "INDEX", "ISBLANK", "ISLOGICAL", "ISNUMBER",
    "ISTEXT", "MAX", "MIN", "OR", "ROUNDUP", "SUM", "SUMIFS", "SUMPRODUCT",
}  # fmt: skip
FLEETS = ("two_offers", "scarce", "split_roles", "zones", "day", "week")

TWO = """
problem: fleet
name: two
models: [{name: chat}]
budget_usd_per_hour: 10
headroom: 0.25
offers:
  - {name: small, device: l4, price_usd_per_hour: 1, max_count: 9}
  - {name: large, device: h100_sxm, price_usd_per_hour: 4, max_count: 3}
demand:
  - {model: chat, input_tokens: 100, output_tokens: 100, rate_per_s: 8}
  - {model: chat, input_tokens: 1000, output_tokens: 100, rate_per_s: 1.6}
profiles:
  - {offer: small, model: chat, input_tokens: 100, output_tokens: 100, max_rate_per_s: 2}
  - {offer: large, model: chat, input_tokens: 100, output_tokens: 100, max_rate_per_s: 6}
  - {offer: large, model: chat, input_tokens: 1000, output_tokens: 100, max_rate_per_s: 3}
"""
#: What stands where in that workbook: the first demand's rate, small's price, its first profile.
RATE, PRICE, PROFILE = "Demand!E6", "Catalogue!D6", "Profiles!E6"
STATUS, FAILING, CHANGED = "Checks!B3", "Checks!B4", "Checks!B5"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 and 2 requests/s with headroom: as in instances/fleet/two_offers.yaml, 4 small and 1 large, 8 USD an hour."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "two.yaml").write_text(TWO)
    book, _ = book_of(folder / "two.yaml")
    write_xlsx(book, str(folder / "two.xlsx"))
    return folder / "two.xlsx"


@pytest.fixture
def engine(two: Path) -> Engine:
    return Engine(two)


@pytest.mark.parametrize("name", FLEETS)
def test_results_are_the_numbers_of_the_plan(name: str, tmp_path: Path) -> None:
    """Cost, power, GPUs and prices of tokens, computed in the workbook, are those that the solver's plan is worth."""
    book, document = shipped(name)
    path = tmp_path / "plan.xlsx"
    results = write_xlsx(book, str(path))
    assert document.verdict is not None
    terms, told = document.outcome.terms, stored(path)
    for label, value in (
        ("cost, mean", terms["rent_usd_per_hour"]),
        ("cost, a month", terms["rent_usd_per_hour"] * 730),
        ("power, most", document.verdict.metric("watts_peak")),
        ("GPUs, most", terms["gpus_peak"]),
        ("cost of requests", terms["usd_per_million_requests"]),
        ("cost of output tokens", terms["usd_per_million_output_tokens"]),
    ):
        assert told[cell_of(path, "Plan", label)] == pytest.approx(value, rel=1e-9), label
    assert told[STATUS] == "CURRENT"
    assert told[FAILING] == told[CHANGED] == 0
    assert_load_is_that_of_the_verdict(book, document, results)
    used = {word for text in formulas(book) for word in re.findall(r"([A-Z][A-Z0-9.]*)\(", text)}
    assert used <= FUNCTIONS, used - FUNCTIONS


def assert_load_is_that_of_the_verdict(book: Book, document: FleetDocument, results: Results) -> None:
    """Utilisation by offer and model, where replicas of one size alone serve it."""
    assert document.verdict is not None
    cells = book.sheet("Placement").cells
    use: dict[str, float] = {}
    sizes: dict[str, set[object]] = {}
    for (row, col), cell in cells.items():
        if col == GROUP_OFFER and row >= 5:
            role = cells[row, GROUP_ROLE].value
            who = f"{cells[row, GROUP_MODEL].value}" + ("" if role == "both" else f", {role}")
            key = f"utilisation[{cell.value}, {who}]"
            use[key] = max(use.get(key, 0.0), results["Placement", row, GROUP_USE])
            sizes.setdefault(key, set()).add(cells[row, GROUP_GPUS].value)
    alone = [key for key in use if len(sizes[key]) == 1]
    assert alone
    for key in alone:
        assert use[key] == pytest.approx(document.verdict.metric(key), rel=1e-6)


def test_a_fleet_of_named_workers_is_live(tmp_path: Path) -> None:
    """Roles, hours, zones and two configurations of one size: cost and load are the plan's; nothing is below zero.

    Replicas that only stand by for the loss of a zone do nothing: of them 0 are needed, not -1.
    """
    book, document = book_of(of_workers(tmp_path))
    path = tmp_path / "workers.xlsx"
    results = write_xlsx(book, str(path))
    told = stored(path)
    assert told[cell_of(path, "Plan", "cost, mean")] == pytest.approx(document.outcome.terms["rent_usd_per_hour"])
    assert told[STATUS] == "CURRENT"
    assert document.plan is not None
    groups = [group for period in document.plan.periods for group in period.replicas]
    cells = book.sheet("Placement").cells
    needs = [results["Placement", 5 + place, GROUP_WHOLE] for place in range(len(groups))]
    assert 0 in needs
    assert all(0 <= need <= group.count for need, group in zip(needs, groups, strict=True))
    names = [cells[5 + place, GROUP_WORKER].value for place in range(len(groups))]
    assert names == [group.worker for group in groups]
    engine = Engine(path)
    engine.type("Demand!M8", 90)  # coder's busiest hour, ten times what it was
    assert str(engine[STATUS]).startswith("BROKEN")


def test_hours_follow_their_periods(tmp_path: Path) -> None:
    book, document = shipped("week")
    results = write_xlsx(book, str(tmp_path / "week.xlsx"))
    assert document.plan is not None
    for period in document.plan.periods:
        for hour in period.hours:
            assert results["Hours", 5 + hour, 5] == pytest.approx(period.cost_usd_per_hour, rel=1e-9)
    assert sum(results["Hours", 5 + hour, 5] for hour in range(168)) / 168 == pytest.approx(
        document.outcome.terms["rent_usd_per_hour"]
    )


def test_more_demand_breaks_the_plan_and_says_so(two: Path, engine: Engine) -> None:
    """8 -> 8.4 requests/s with headroom 0.25 are 10.5: 4 small (8) and a third of large (2) serve 10."""
    assert engine[STATUS] == "CURRENT"
    engine.type(RATE, 8.4)
    assert engine[FAILING] == 2
    assert str(engine[STATUS]).startswith("BROKEN: 2 checks")
    fullest = cell_of(two, "Plan", "fullest replicas")
    assert engine[fullest] == pytest.approx(1.05)
    engine.type(RATE, 8)
    assert engine[STATUS] == "CURRENT"


def test_less_demand_makes_it_stale(engine: Engine) -> None:
    engine.type(RATE, 6)
    assert str(engine[STATUS]).startswith("STALE: 1 inputs")
    assert engine[FAILING] == 0


def test_a_small_change_is_let_pass(engine: Engine) -> None:
    """0.5 % less, of the 1 % that is let pass; then nothing is."""
    engine.type(RATE, 7.96)
    assert engine[STATUS] == "CURRENT"
    engine.type("Solved for!C2", 0)
    assert str(engine[STATUS]).startswith("STALE")


def test_prices_reach_the_cost_and_the_budget(two: Path, engine: Engine) -> None:
    """4 small at 1.6 and 1 large at 4: 10.4 USD/hour, above the budget of 10."""
    engine.type(PRICE, 1.25)
    assert engine[cell_of(two, "Plan", "cost, mean")] == pytest.approx(9)
    assert str(engine[STATUS]).startswith("STALE")
    engine.type(PRICE, 1.6)
    assert engine[cell_of(two, "Plan", "cost, mean")] == pytest.approx(10.4)
    assert str(engine[STATUS]).startswith("BROKEN")


def test_growth_reaches_every_rate(two: Path, engine: Engine) -> None:
    """Twice the demand is twice the load; this plan then costs half of it a request that it cannot serve."""
    engine.type(cell_of(two, "Inputs", "growth of all demand"), 2)
    assert engine["Hours!C6"] == pytest.approx(19.2)
    assert engine[cell_of(two, "Plan", "fullest replicas")] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("Catalogue!A6", "tiny"),
        ("Catalogue!B6", "l40s"),
        ("Catalogue!I6", "spot"),
        ("Demand!B6", 200),
        ("Demand!A8", "chat"),
        ("Inputs!B14", 20),
        ("Quotas!A6", "q"),
        (PROFILE, 3),
        ("Profiles!F6", 1),
    ],
)
def test_every_kind_of_change_is_seen(engine: Engine, cell: str, value: object) -> None:
    engine.type(cell, value)
    assert engine[CHANGED] >= 1
    assert engine[STATUS] != "CURRENT"


def test_a_slower_replica_breaks_the_plan(engine: Engine) -> None:
    engine.type(PROFILE, 1.9)
    assert str(engine[STATUS]).startswith("BROKEN")


def test_hours_that_move_are_seen(tmp_path: Path) -> None:
    """The same rates in another order: mean and peak stay, and the hour that they centre on tells."""
    (tmp_path / "h.yaml").write_text(TWO.replace("rate_per_s: 8}", "hourly: [8, 8, 4]}"))
    book, _ = book_of(tmp_path / "h.yaml")
    write_xlsx(book, str(tmp_path / "h.xlsx"))
    engine = Engine(tmp_path / "h.xlsx")
    assert engine[STATUS] == "CURRENT"
    engine.type("Demand!K6", 4)
    engine.type("Demand!M6", 8)
    # The hour that was planned for 4 now asks for 8: its fleet is too small, or the shift is seen.
    assert engine[STATUS] != "CURRENT"
    assert engine[CHANGED] == 1


def test_an_unknown_power_is_not_zero(tmp_path: Path) -> None:
    text = TWO.replace("device: l4", "device: home-made")
    (tmp_path / "p.yaml").write_text(text)
    book, _ = book_of(tmp_path / "p.yaml")
    write_xlsx(book, str(tmp_path / "p.xlsx"))
    engine = Engine(tmp_path / "p.xlsx")
    assert engine[cell_of(tmp_path / "p.xlsx", "Plan", "power, most")] == "unknown"
    assert engine[STATUS] == "CURRENT"
    engine.type(cell_of(tmp_path / "p.xlsx", "Inputs", "power"), 5000)
    assert str(engine[STATUS]).startswith("BROKEN")


def test_replicas_have_to_fit_the_gpus(tmp_path: Path) -> None:
    """Two replicas of 1 GPU and one of 2 fill a node of 4; in a node of 2 GPUs two are too many."""
    (tmp_path / "n.yaml").write_text(
        """
problem: fleet
name: shared
models: [{name: a, min_replicas: 2}, {name: b}]
offers: [{name: node, device: l4, gpus: 4, price_usd_per_hour: 4}]
demand:
  - {model: a, input_tokens: 100, output_tokens: 100, rate_per_s: 3}
  - {model: b, input_tokens: 100, output_tokens: 100, rate_per_s: 1}
profiles:
  - {offer: node, model: a, input_tokens: 100, output_tokens: 100, max_rate_per_s: 1.5, gpus: 1}
  - {offer: node, model: b, input_tokens: 100, output_tokens: 100, max_rate_per_s: 1, gpus: 2}
quotas: [{name: all, offers: [node], max_gpus: 4}]
"""
    )
    book, document = book_of(tmp_path / "n.yaml")
    assert document.outcome.objective == pytest.approx(4)
    write_xlsx(book, str(tmp_path / "n.xlsx"))
    engine = Engine(tmp_path / "n.xlsx")
    assert engine[STATUS] == "CURRENT"
    engine.type("Catalogue!C6", 2)
    assert str(engine[STATUS]).startswith("BROKEN: 1 checks")
    engine.type("Catalogue!C6", 8)
    # 8 GPUs of a quota of 4.
    assert str(engine[STATUS]).startswith("BROKEN: 1 checks")


def test_bursts_stand_for_headroom_and_draw_for_power(tmp_path: Path) -> None:
    """1.25 times 8 a second are 10, as with headroom. 988 W of boards draw 494 at a half, of 0.9 x 1000."""
    text = TWO.replace("headroom: 0.25", "max_watts: 1000\npower: {draw: 0.5, margin: 0.1}")
    text = text.replace("rate_per_s: 8}", "rate_per_s: 8, burst: 1.25}").replace("rate_per_s: 1.6}", "rate_per_s: 2}")
    (tmp_path / "b.yaml").write_text(text)
    book, document = book_of(tmp_path / "b.yaml")
    assert document.outcome.objective == pytest.approx(8)
    path = tmp_path / "b.xlsx"
    write_xlsx(book, str(path))
    engine = Engine(path)
    assert engine[STATUS] == "CURRENT"
    assert engine[cell_of(path, "Plan", "fullest replicas")] == pytest.approx(1.0)
    engine.type("Demand!G6", 1.5)
    assert engine[cell_of(path, "Plan", "fullest replicas")] == pytest.approx(1.2)
    engine.type("Demand!G6", 1.25)
    engine.type(cell_of(path, "Inputs", "power"), 500)
    assert str(engine[STATUS]).startswith("BROKEN: 1 checks")


def formulas(book: Book) -> list[str]:
    return [
        cell.value.text for sheet in book.sheets for cell in sheet.cells.values() if isinstance(cell.value, Formula)
    ]


def test_no_text_of_a_user_is_in_a_formula(tmp_path: Path) -> None:
    (tmp_path / "n.yaml").write_text(TWO.replace("small", "sm4llname").replace("chat", "ch4tname"))
    book, _ = book_of(tmp_path / "n.yaml")
    assert not [text for text in formulas(book) if "sm4ll" in text or "ch4t" in text]


def office() -> str:
    found = shutil.which("soffice")
    if found is None:
        pytest.skip("LibreOffice is not installed")
    return found


@pytest.mark.office
@pytest.mark.slow
def test_libreoffice_computes_the_same(tmp_path: Path) -> None:
    """All formulas computed anew by another program, of four fleets: each cell as it is stored."""
    program = office()
    settings = tmp_path / "profile" / "user" / "registrymodifications.xcu"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<oor:items xmlns:oor="http://openoffice.org/2001/registry">'
        '<item oor:path="/org.openoffice.Office.Calc/Formula/Load"><prop oor:name="OOXMLRecalcMode" oor:op="fuse">'
        "<value>0</value></prop></item></oor:items>"
    )
    some = [
        Scenario(0.5, "optimal", 4.0, 4.0, 0.0, 3, {"small": 2}),
        Scenario(2, "infeasible", None, None, None, None, {}),
    ]
    books = {name: shipped(name)[0] for name in ("scarce", "week")}
    books["two"] = book_of(ROOT / "fleet" / "two_offers.yaml", scenarios=some)[0]
    books["workers"] = book_of(of_workers(tmp_path))[0]
    for name, book in books.items():
        write_xlsx(book, str(tmp_path / f"{name}.xlsx"))
        # The same without results: what LibreOffice says is its own.
        (tmp_path / f"bare_{name}.xlsx").write_bytes(to_bytes(book, {}))
    command = [program, f"-env:UserInstallation=file://{tmp_path}/profile", "--headless", "--convert-to", "xlsx"]
    files = [str(tmp_path / f"bare_{name}.xlsx") for name in books]
    subprocess.run(
        [*command, "--outdir", str(tmp_path / "out"), *files],
        check=True,
        capture_output=True,
        timeout=180,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    for name in books:
        ours, theirs = stored(tmp_path / f"{name}.xlsx"), stored(tmp_path / "out" / f"bare_{name}.xlsx")
        assert ours.keys() == theirs.keys()
        for cell, value in ours.items():
            other = theirs[cell]
            if isinstance(value, int | float) and not isinstance(value, bool):
                assert math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-9), (name, cell, value, other)
            else:
                assert value == other, (name, cell)


def test_the_first_sheet_says_what_to_rent(two: Path, engine: Engine) -> None:
    """4 small and 1 large, 8 USD an hour; dearer instances are followed there too."""
    assert stored(two)[cell_of(two, "Read me", "rent")] == "4 x small, 1 x large"
    cost = cell_of(two, "Read me", "USD an hour")
    assert stored(two)[cost] == 8
    engine.type(PRICE, 1.5)
    assert engine[cost] == pytest.approx(10)
