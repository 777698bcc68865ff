"""`gpuplan check`, `compare`, `export`, `schema` and `catalog`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from typer.testing import Result

Invoke = Callable[..., Result]


@pytest.fixture
def broken_plan(plan_file: Path) -> Path:
    """The EPLB plan with slot 0 of layer 0 holding what slot 1 holds: on the same GPU, twice."""
    document = json.loads(plan_file.read_text())
    row = document["plan"]["physical_to_logical"][0]
    row[0] = row[1]
    path = plan_file.with_name("broken.json")
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def other_plan(gpuplan: Invoke, plan_file: Path) -> Path:
    arguments = ("--work-limit", "200", "--threads", "1", "-o", "searched.json", "--quiet")
    assert gpuplan("plan", "small.json", *arguments).exit_code == 0
    return plan_file.with_name("searched.json")


def test_check_of_a_good_plan(gpuplan: Invoke, plan_file: Path) -> None:
    result = gpuplan("check", plan_file.name, "--instance", "small.json")
    assert result.exit_code == 0
    assert "keeps every rule" in result.stdout
    assert "balancedness_mean[day]" in result.stdout
    assert result.stderr == ""
    verdict = json.loads(gpuplan("check", plan_file.name, "--instance", "small.json", "--json").stdout)
    assert verdict == json.loads(plan_file.read_text())["verdict"]


def test_check_without_an_instance_says_what_is_not_judged(gpuplan: Invoke, plan_file: Path) -> None:
    result = gpuplan("check", plan_file.name)
    assert result.exit_code == 0
    assert "not judged" in result.stdout


@pytest.mark.parametrize("arguments", [(), ("--instance", "small.json")])
def test_check_of_a_broken_plan_exits_6(gpuplan: Invoke, broken_plan: Path, arguments: tuple[str, ...]) -> None:
    result = gpuplan("check", broken_plan.name, *arguments)
    assert result.exit_code == 6
    assert "layer 0: GPU 0 holds expert" in result.stdout
    as_json = gpuplan("check", broken_plan.name, *arguments, "--json")
    assert as_json.exit_code == 6
    assert not json.loads(as_json.stdout)["feasible"]


def test_check_warns_when_the_instance_has_changed(gpuplan: Invoke, plan_file: Path) -> None:
    instance = plan_file.with_name("small.json")
    instance.write_text(instance.read_text().replace('"weight": 2', '"weight": 3'))
    result = gpuplan("check", plan_file.name, "--instance", "small.json")
    assert result.exit_code == 0
    assert "sha256 differs" in result.stderr


def test_check_of_a_plan_made_from_a_current_one(gpuplan: Invoke, plan_file: Path) -> None:
    current = ("--current", plan_file.name)
    arguments = ("--work-limit", "200", "--threads", "1", "--quiet", "-o", "moved.json")
    assert gpuplan("plan", "small.json", *current, *arguments).exit_code == 0
    result = gpuplan("check", "moved.json", "--instance", "small.json", *current)
    assert (result.exit_code, result.stderr) == (0, "")


def test_check_of_what_is_no_plan_exits_7(gpuplan: Invoke) -> None:
    result = gpuplan("check", "small.json")
    assert result.exit_code == 7
    assert "small.json:1:1: outcome: is required" in result.stderr
    assert gpuplan("check", "nowhere.json").exit_code == 7


def test_check_refuses_options_that_need_an_instance(gpuplan: Invoke, plan_file: Path) -> None:
    assert gpuplan("check", plan_file.name, "--current", plan_file.name).exit_code == 2
    assert gpuplan("check", "-", "--instance", "-").exit_code == 2


def test_compare_counts_the_moves(gpuplan: Invoke, plan_file: Path, other_plan: Path) -> None:
    result = gpuplan("compare", plan_file.name, other_plan.name)
    assert result.exit_code == 0
    assert result.stderr == ""
    answer = json.loads(gpuplan("compare", plan_file.name, other_plan.name, "--json").stdout)
    move = answer["moves"][0]
    assert move["replicas"] > 0
    assert move["bytes"] == move["replicas"] * 10 * 2**20
    assert f"{move['replicas']} replicas move" in result.stdout
    objectives = [plan["outcome"]["objective"] for plan in answer["plans"]]
    assert all(f"{objective:.6g}" in result.stdout for objective in objectives)
    same = json.loads(gpuplan("compare", plan_file.name, plan_file.name, "--json").stdout)
    assert same["moves"][0]["replicas"] == 0


def test_compare_of_plans_that_do_not_match(gpuplan: Invoke, plan_file: Path) -> None:
    arguments = ("--num-slots", "24", "--method", "eplb", "-o", "larger.json", "--quiet")
    assert gpuplan("experts", "small.json", *arguments).exit_code == 0
    result = gpuplan("compare", plan_file.name, "larger.json")
    assert result.exit_code == 0
    assert "the plans differ in num_slots" in result.stdout
    assert "different instances" in result.stderr
    assert gpuplan("compare", plan_file.name).exit_code == 2


def test_export(gpuplan: Invoke, plan_file: Path, folder: Path) -> None:
    result = gpuplan("export", plan_file.name, "--to", "sglang", "-o", "map.json")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "physical_to_logical_map" in json.loads((folder / "map.json").read_text())


def test_export_to_an_unknown_format_names_the_known(gpuplan: Invoke, plan_file: Path) -> None:
    result = gpuplan("export", plan_file.name, "--to", "papyrus", "-o", "map.txt")
    assert result.exit_code == 2
    assert "sglang" in result.stderr
    assert "sglang" in gpuplan("export", "--help").stdout


@pytest.mark.parametrize("kind", ["experts", "plan"])
def test_schema_accepts_our_own_files(gpuplan: Invoke, plan_file: Path, kind: str) -> None:
    result = gpuplan("schema", kind)
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    file = plan_file if kind == "plan" else plan_file.with_name("small.json")
    jsonschema.validate(json.loads(file.read_text()), schema)


def test_schema_of_an_unknown_kind_names_the_known(gpuplan: Invoke) -> None:
    result = gpuplan("schema", "poem")
    assert result.exit_code == 2
    assert "experts" in result.stderr


def test_catalog_of_formulations(gpuplan: Invoke) -> None:
    assert "experts" in gpuplan("catalog", "formulations").stdout
    entries = json.loads(gpuplan("catalog", "formulations", "--json").stdout)
    assert "local-search" in entries[0]["methods"]
    text = gpuplan("catalog", "formulations", "experts").stdout
    assert "Constraints" in text
    detail = json.loads(gpuplan("catalog", "formulations", "experts", "--json").stdout)
    assert "formulations.expert_placement.cpsat" in detail["mathematics"]
    assert gpuplan("catalog", "formulations", "alchemy").exit_code == 2


def test_catalog_models_lists_shows_and_refuses(gpuplan: Invoke, folder: Path) -> None:
    listing = gpuplan("catalog", "models")
    assert listing.exit_code == 0
    assert "deepseek-ai/DeepSeek-V3" in listing.stdout
    shown = gpuplan("catalog", "models", "deepseek-ai/DeepSeek-V3", "--json")
    assert shown.exit_code == 0
    document = json.loads(shown.stdout)
    assert {"total_params", "active_params", "active_rule", "weight_bytes", "kv_bytes_per_token"} <= document.keys()
    assert len(document["layers"]) == 61
    assert gpuplan("catalog", "models", "no-such-model").exit_code == 2
    (folder / "config.json").write_text('{"hidden_size": "wide", "num_hidden_layers": -1}')
    assert gpuplan("catalog", "models", "config.json").exit_code == 7
