"""`gpuplan fleet` with split roles: what is printed, and what the document says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
SPLIT = str(Path(__file__).parents[2] / "instances" / "fleet" / "split_roles.yaml")


def test_roles_and_links_are_told(gpuplan: Invoke, folder: Path) -> None:
    """The numbers are those of the comment in the file: 8 requests/s x 4000 tokens x 131072 bytes over the link."""
    result = gpuplan("fleet", SPLIT, "-o", "plan.json")
    assert result.exit_code == 0, result.output
    assert "18.4 USD/hour" in result.stdout
    assert "chat, prefill" in result.stdout
    assert "east to west: 4.194 GB/s" in result.stdout
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    assert {row["role"] for row in plan["allocation"]} == {"prefill", "decode"}
    far = [flow for flow in plan["periods"][0]["flows"] if flow["to_region"] == "west"]
    assert [flow["bytes_per_s"] for flow in far] == pytest.approx([8 * 4000 * 131072])
    assert gpuplan("check", "plan.json", "--instance", SPLIT).exit_code == 0
    (folder / "plan.json").write_text(json.dumps({**json.loads((folder / "plan.json").read_text()), "outcome": None}))
    assert gpuplan("check", "plan.json", "--instance", SPLIT).exit_code == 7


def test_a_moved_flow_is_found(gpuplan: Invoke, folder: Path) -> None:
    assert gpuplan("fleet", SPLIT, "-o", "plan.json").exit_code == 0
    document = json.loads((folder / "plan.json").read_text())
    for flow in document["plan"]["periods"][0]["flows"]:
        flow["to_region"] = "east"
    (folder / "plan.json").write_text(json.dumps(document))
    result = gpuplan("check", "plan.json", "--instance", SPLIT)
    assert result.exit_code == 6
    assert "its flows differ" in result.stdout
