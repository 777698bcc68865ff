"""Mistakes in a `deploy` instance, each at its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deploy_cases import HEAD, worker

from formulations.deployment.problem import DeployProblem
from formulations.kinds import read_instance
from planner.errors import DescriptionError
from planner.files import read_source

GOOD = """
problem: deploy
name: case
workers: workers.csv
services:
  - name: m
    demand:
      - {input_tokens: 100, output_tokens: 100, rate_per_s: 5}
offers:
  - {name: o, device: l4, price_usd_per_hour: 1}
"""


def read(folder: Path) -> DeployProblem:
    """The problem of the folder's case."""
    source = read_source(folder / "case.yaml")
    kind, described = read_instance(source)
    problem: DeployProblem = kind.read(described, source)
    return problem


def findings(folder: Path, text: str, rows: str = worker("w", 5)) -> list[str]:
    """What is wrong, `line: message`."""
    (folder / "workers.csv").write_text(HEAD + rows)
    (folder / "case.yaml").write_text(text)
    with pytest.raises(DescriptionError) as found:
        read(folder)
    return [f"{one.line}: {one.message}" for one in found.value.findings]


def test_the_case_is_good(tmp_path: Path) -> None:
    (tmp_path / "workers.csv").write_text(HEAD + worker("w", 5))
    (tmp_path / "case.yaml").write_text(GOOD)
    assert read(tmp_path).fleet.num_configs == 1
    (tmp_path / "case.yaml").write_text(GOOD.replace("rate_per_s: 5", "hourly: [1, 2]"))
    assert read(tmp_path).fleet.num_periods == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate_per_s: 5", "rate_per_s: 0", "all rates are zero"),
        ("output_tokens: 100, rate", "output_tokens: 7, rate", "is not in the table of workers"),
        ("name: m", "name: other", "has no worker in workers.csv"),
        ("price_usd_per_hour: 1", "gpus: 2", "is required"),
        ("device: l4, price", "price", "is required"),
        ("offers:\n  - {name: o, device: l4, price_usd_per_hour: 1}", "", "nothing to run on"),
        ("name: case", "name: case\nhours: [6, 18]", "no rate is hourly"),
        ("name: case", "name: case\nmax_moves: 3", "needs a current deployment"),
        ("name: case", "name: case\nloads: {x: []}", "no service is named 'x'"),
        ("name: case", "name: case\npods: p.json", "is for nodes that are read from a file"),
        ("name: case", "name: case\nbudget_usd_per_hour: -1", "greater than or equal to 0"),
        ("name: case", "name: case\nquotas: [{name: q, offers: [x], max_gpus: 1}]", "no offer is named 'x'"),
        ("name: case", "name: case\nunknown: 1", "unknown key"),
        ("workers: workers.csv", "workers: no.csv", "No such file"),
        ("device: l4", "device: l4, min_count: 3, max_count: 2", "above max_count"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    found = findings(tmp_path, GOOD.replace(old, new, 1))
    assert any(said in one for one in found), found


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD.replace("  - {name: o,", "  - {name: o, device: l4, price_usd_per_hour: 2}\n  - {name: o,")
    text = text.replace(
        "rate_per_s: 5}", "rate_per_s: 5}\n      - {input_tokens: 100, output_tokens: 100, rate_per_s: 1}"
    )
    found = findings(tmp_path, text)
    assert any(one.startswith("9:") and "is given twice" in one for one in found), found
    assert any("two are named 'o'" in one for one in found), found


def test_a_service_that_no_worker_serves_in_time_is_infeasible_not_a_mistake(tmp_path: Path) -> None:
    """The table says 0: not within the limits."""
    from formulations.planning import plan

    (tmp_path / "workers.csv").write_text(HEAD + worker("w", 0))
    (tmp_path / "case.yaml").write_text(GOOD)
    document = plan(tmp_path / "case.yaml")
    assert document.outcome.status == "infeasible"
    assert any("no offer serves m 100/100 tokens" in reason for reason in document.outcome.reasons)


def test_two_nodes_and_an_offer_of_one_name(tmp_path: Path) -> None:
    nodes = "nodes: [{name: o, device: l4, gpus: 1}]\n"
    assert any("two are named 'o'" in one for one in findings(tmp_path, GOOD + nodes))


def test_more_free_than_there_is(tmp_path: Path) -> None:
    nodes = "nodes: [{name: s, device: l4, gpus: 1, free_gpus: 2}]\n"
    assert any("2 of 1 GPUs cannot be free" in one for one in findings(tmp_path, GOOD + nodes))


def without_table(**service: Any) -> str:
    """The case without a table; keys of its service."""
    told = ", ".join(f"{key}: {value}" for key, value in service.items())
    bare = GOOD.replace("workers: workers.csv\n", "")
    return bare.replace("- name: m\n", f"- name: m\n    {told}\n") if told else bare


def test_without_a_table_models_are_needed_and_known(tmp_path: Path) -> None:
    assert any("has no `model`" in one for one in findings(tmp_path, without_table()))
    assert any("no-such-model" in one for one in findings(tmp_path, without_table(model="no-such-model")))
    unknown = without_table(model="meta-llama/Llama-3.1-8B-Instruct").replace("device: l4", "device: abacus")
    assert any("abacus" in one for one in findings(tmp_path, unknown))
