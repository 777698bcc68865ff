"""`gpuplan fleet` where not everything can be served: what is printed, told in the document, and swept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
SCARCE = str(Path(__file__).parents[2] / "instances" / "fleet" / "scarce.yaml")
TWO_OFFERS = str(Path(SCARCE).with_name("two_offers.yaml"))


def test_priorities_are_told_in_order(gpuplan: Invoke) -> None:
    """The numbers are those of the comment in the file."""
    result = gpuplan("fleet", SCARCE, "--explain")
    assert result.exit_code == 0, result.output
    assert "priority 2: none" in result.stdout
    assert "priority 1: 8 of 10 requests/s; at least 8 in any plan" in result.stdout
    assert "priority 0: 3 of 3 requests/s" in result.stdout
    assert "budget_usd_per_hour, max_count of large" in result.stdout
    # 17.6 USD pay for one small instance more, and that serves 2 free requests a second more.
    assert "budget_usd_per_hour 16 -> 17.6: unserved, priority 2 0/s; unserved, priority 1 6/s" in result.stdout


def test_the_document_keeps_the_goals(gpuplan: Invoke, folder: Path) -> None:
    assert gpuplan("fleet", SCARCE, "-o", "plan.json").exit_code == 0
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    assert [tier["value"] for tier in plan["tiers"]] == pytest.approx([0, 8, 3, 16])
    assert [tier["bound"] for tier in plan["tiers"]] == pytest.approx([0, 8, 3, 16], abs=1e-4)
    assert gpuplan("check", "plan.json", "--instance", SCARCE).exit_code == 0


def test_the_flag_goes_over_the_file(gpuplan: Invoke) -> None:
    assert gpuplan("fleet", SCARCE, "--unserved", "refuse").exit_code == 3
    assert gpuplan("fleet", SCARCE, "--unserved", "perhaps").exit_code == 2


def test_a_sweep_has_what_is_unserved(gpuplan: Invoke) -> None:
    """two_offers serves 9 x 2 short requests a second on small ones, and 3 x 6 short or 3 x 3 long ones on large."""
    result = gpuplan("fleet", TWO_OFFERS, "--unserved", "by_priority", "--sweep", "rate=12..120:2")
    assert result.exit_code == 0, result.output
    assert "unserved/s" in result.stdout
    result = gpuplan("fleet", TWO_OFFERS, "--unserved", "by_priority", "--sweep", "rate=12..120:2", "--json")
    first, last = json.loads(result.stdout)["points"]
    assert first["unserved_per_s"] == 0
    # 100 short and 20 long are asked; 36 short ones are the most that can be served.
    assert last["unserved_per_s"] == pytest.approx(84)
