"""`gpuplan compare INSTANCE --set KEY=VALUE`: what-if variations side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

#: 10 requests a second; an `a` serves 2 for 1 USD, a `b` 6 for 4 USD. Only 3 of a are there: 2 of a and 1 of b, 6 USD.
FLEET = """problem: fleet
name: by hand
models: [{name: m}]
offers:
  - {name: a, device: l4, price_usd_per_hour: 1, max_count: 3}
  - {name: b, device: h100_sxm, price_usd_per_hour: 4, max_count: 5}
demand: [{model: m, input_tokens: 100, output_tokens: 100, rate_per_s: 10}]
profiles:
  - {offer: a, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 2}
  - {offer: b, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 6}
"""
PARALLEL = """problem: parallel
name: two nodes
cluster: cluster.yaml
workload: {input_tokens: 100, output_tokens: 100}
candidates: workers.csv
"""


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "fleet.yaml").write_text(FLEET)
    (folder / "parallel.yaml").write_text(PARALLEL)
    (folder / "cluster.yaml").write_text("nodes:\n  - {device: h100_sxm, count: 1}\n")
    (folder / "workers.csv").write_text(
        "name,role,device,num_gpus,requests_per_s,ttft_s,tpot_s\nw,both,h100_sxm,8,5,0.5,0.02\n"
    )
    return folder


def answer(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_variations_beside_the_instance(gpuplan: Invoke, files: Path) -> None:
    """Five of a: 5 USD. With b at 8: 2 of a and 1 of b, 10 USD. Without b: 5 of a."""
    sets = ["offers.a.max_count=5", "offers.b.price_usd_per_hour=8", "offers.0.max_count=5; offers.1.max_count=0"]
    flags = [word for one in sets for word in ("--set", one)]
    found = answer(gpuplan("compare", "fleet.yaml", *flags, "--threads", "1", "--json"))
    assert [one["path"] for one in found["plans"]] == ["as it is", *sets]
    assert [one["outcome"]["objective"] for one in found["plans"]] == pytest.approx([6, 5, 10, 5])
    assert [move["from"] for move in found["moves"]] == ["as it is"] * 3
    assert found["moves"][0]["instances"] == {"a": 3, "b": -1}
    assert found["moves"][1]["instances"] == {}
    shown = gpuplan("compare", "fleet.yaml", *flags[:2], "--threads", "1")
    assert "as it is -> offers.a.max_count=5: +3 a, -1 b" in shown.stdout
    assert "different instances" not in shown.stderr


def test_a_variation_without_a_plan_is_an_answer(gpuplan: Invoke, files: Path) -> None:
    impossible = ("--set", "offers.b.max_count=0", "--json")
    result = gpuplan("compare", "fleet.yaml", *impossible)
    found = answer(result)
    assert [one["outcome"]["status"] for one in found["plans"]] == ["optimal", "infeasible"]
    assert result.stderr.startswith("offers.b.max_count=0: ")
    assert gpuplan("compare", "fleet.yaml", "--set", "demand.0.rate_per_s=5").exit_code == 0
    (files / "none.yaml").write_text(FLEET.replace("max_count: 5", "max_count: 0"))
    assert gpuplan("compare", "none.yaml", "--set", "demand.0.rate_per_s=11").exit_code == 3


def test_keys_inside_a_file_that_the_instance_names(gpuplan: Invoke, files: Path) -> None:
    found = answer(gpuplan("compare", "parallel.yaml", "--set", "cluster.nodes.0.count=3", "--json"))
    assert [one["outcome"]["terms"]["requests_per_s"] for one in found["plans"]] == pytest.approx([5, 15])
    (files / "cluster.yaml").write_text("nodes:\n  - {device: h100_sxm, count: 1}\nnetworks: {}\n")
    result = gpuplan("compare", "parallel.yaml", "--set", "cluster.nodes.0.count=3")
    assert result.exit_code == 7
    assert "cluster.yaml:3:1: networks: unknown key" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("fleet.yaml",), 2, "or an instance with --set"),
        (("fleet.yaml", "fleet.yaml", "--set", "headroom=1"), 2, "varies one instance"),
        (("fleet.yaml", "--seed", "3"), 2, "are for --set"),
        (("fleet.yaml", "fleet.yaml", "--time-limit", "3"), 2, "are for --set"),
        (("fleet.yaml", "--set", "headroom"), 2, "is KEY=VALUE"),
        (("fleet.yaml", "--set", "headroom="), 2, "is KEY=VALUE"),
        (("fleet.yaml", "--set", "headroom=~"), 2, "has no value"),
        (("fleet.yaml", "--set", "a..b=1"), 2, "is no path of keys"),
        (("fleet.yaml", "--set", "headroom=1;headroom=2"), 2, "twice"),
        (("fleet.yaml", "--set", "headroom=1", "--set", "headroom=1"), 2, "the same"),
        (("fleet.yaml", "--set", "headroom=1\nx: 2"), 2, "one line"),
        (("fleet.yaml", "--set", "headroom=[1"), 7, "--set headroom:"),
        (("fleet.yaml", "--set", "offers.zz.max_count=1"), 7, "--set offers.zz.max_count: leads nowhere"),
        (("fleet.yaml", "--set", "head_room=1"), 7, "--set head_room: unknown key"),
        (("fleet.yaml", "--set", "headroom=much", "--set", "slo=3"), 7, "--set headroom: "),
        (("missing.yaml", "--set", "headroom=1"), 7, "missing.yaml: cannot be read"),
        (("fleet.yaml", *(word for n in range(30) for word in ("--set", f"headroom=0.{n}1"))), 2, "more than 24"),
    ],
)
def test_what_cannot_be_varied(
    gpuplan: Invoke, files: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = gpuplan("compare", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_all_mistakes_are_told_before_anything_is_solved(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("compare", "fleet.yaml", "--set", "headroom=-1", "--set", "offers.a.max_count=x")
    assert result.exit_code == 7
    assert "--set headroom" in result.stderr
    assert "--set offers.a.max_count" in result.stderr
