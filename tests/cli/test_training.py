"""Training plans on the command line: `plan`, `parallel`, `check`, `export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

SMALL = """\
problem: parallel
task: train
name: small
model:
  num_hidden_layers: 6
  hidden_size: 4096
  num_attention_heads: 32
  intermediate_size: 14336
  vocab_size: 32000
cluster:
  nodes: [{device: a100_sxm, count: 2, gpus_per_node: 4}]
global_batch_size: 16
sequence_length: 4096
"""


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "small.yaml").write_text(SMALL)
    (folder / "large.yaml").write_text(SMALL.replace("num_hidden_layers: 6", "num_hidden_layers: 400"))
    return folder


@pytest.mark.parametrize("command", ["plan", "parallel"])
def test_a_plan_in_lines(gpuplan: Invoke, files: Path, command: str) -> None:
    result = gpuplan(command, "small.yaml", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    for words in ("optimal plan (proven)", "80 % within", "tokens/s, MFU", "fullest GPU", "next best", "frontier"):
        assert words in result.stdout
    assert gpuplan("check", "plan.json", "--instance", "small.yaml").exit_code == 0
    assert json.loads((files / "plan.json").read_text())["kind"] == "training"


def test_flags_alone_are_an_instance(gpuplan: Invoke, folder: Path) -> None:
    sizes = ["--batch-size", "64", "--sequence-length", "4096", "--fix", "tensor_parallel_size=2"]
    cluster = ["--device", "h100_sxm", "--nodes", "2", "--link", "ib_ndr"]
    asked = ["--task", "train", "--model", "meta-llama/Llama-3.1-8B", *cluster, *sizes]
    result = gpuplan("parallel", *asked, "-o", "plan.json", "--save-instance", "asked.yaml")
    assert result.exit_code == 0, result.output
    assert "optimal plan (proven)" in result.stdout
    plan = json.loads((folder / "plan.json").read_text())["plan"]
    assert (plan["tensor_parallel_size"], plan["global_batch_size"], plan["sequence_length"]) == (2, 64, 4096)
    assert 'link: "ib_ndr"' in (folder / "asked.yaml").read_text()
    assert gpuplan("check", "plan.json", "--instance", "asked.yaml").exit_code == 0
    missing = gpuplan("parallel", "--task", "train", "--model", "meta-llama/Llama-3.1-8B", *cluster)
    assert missing.exit_code in (2, 7)
    assert "--batch-size" in missing.output
    assert "--sequence-length" in missing.output
    wrong = gpuplan("parallel", *asked, "--fix", "tensor=x", "--fix", "8")
    assert wrong.exit_code == 7
    assert "'tensor=x'" in wrong.output
    assert "'8'" in wrong.output


def test_what_does_not_fit_says_why_and_what_would(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("plan", "large.yaml")
    assert result.exit_code == 3
    assert "the least memory of all" in result.output
    assert "nodes instead of 2" in result.output


def test_mistakes_are_told_with_their_lines(gpuplan: Invoke, files: Path) -> None:
    (files / "wrong.yaml").write_text(SMALL + "recompute: selective\nfixed: {data_parallel_size: 3}\n")
    result = gpuplan("plan", "wrong.yaml")
    assert result.exit_code == 7
    assert "wrong.yaml:12" in result.output
    assert "16 is not a multiple" in result.output
    assert "selective recomputes" in result.output


TIGHT = """\
problem: parallel
task: train
name: tight
model:
  num_hidden_layers: 6
  hidden_size: 4096
  num_attention_heads: 32
  num_key_value_heads: 8
  intermediate_size: 14336
  vocab_size: 128256
  gated: true
cluster:
  nodes: [{device: a100_sxm, count: 2, gpus_per_node: 4}]
  network: {link: ib_hdr}
global_batch_size: 32
sequence_length: 8192
reserve: 0.74
fixed: {tensor_parallel_size: 2, pipeline_parallel_size: 2, context_parallel_size: 1, micro_batch_size: 1}
"""


def test_layers_that_differ_are_shown_and_exported_where_there_is_an_option(gpuplan: Invoke, files: Path) -> None:
    """Of two stages only the first needs to recompute a layer; Megatron-LM has one number for both."""
    for scope in ("uniform", "framework", "stage"):
        (files / f"{scope}.yaml").write_text(TIGHT + f"layer_strategies: {scope}\n")
        result = gpuplan("plan", f"{scope}.yaml", "-o", f"{scope}.json", "--time-limit", "3")
        assert result.exit_code == 0, result.output
        assert ("layers)" in result.stdout) == (scope != "uniform")
        assert ("layer_strategies: stage" in result.stdout) == (scope != "stage")
        assert gpuplan("check", f"{scope}.json", "--instance", f"{scope}.yaml").exit_code == 0
    assert gpuplan("export", "framework.json", "--to", "megatron", "-o", "run.sh").exit_code == 0
    assert "--recompute-method block --recompute-num-layers" in (files / "run.sh").read_text()
    refused = gpuplan("export", "stage.json", "--to", "megatron", "-o", "other.sh")
    assert refused.exit_code == 2
    assert "no one number of each chunk" in refused.output
    assert not (files / "other.sh").exists()


MIXED = SMALL.replace(
    "  nodes: [{device: a100_sxm, count: 2, gpus_per_node: 4}]\n",
    """\
  nodes:
    - {device: h100_sxm, count: 1, gpus_per_node: 2}
    - {device: a100_sxm, count: 1, gpus_per_node: 2}
  network: {link: ib_hdr}
sites:
  names: [oslo, riga]
  nodes: [oslo, riga]
  bandwidth_bytes_per_s: [[null, 200Gbit/s], [200Gbit/s, null]]
  latency_s: [[null, 5ms], [5ms, null]]
""",
)


@pytest.mark.parametrize("command", ["plan", "parallel"])
def test_unequal_gpus_at_two_sites(gpuplan: Invoke, files: Path, command: str) -> None:
    (files / "mixed.yaml").write_text(MIXED)
    result = gpuplan(command, "mixed.yaml", "-o", "mixed.json")
    assert result.exit_code == 0, result.output
    words = (
        "optimal plan (proven)",
        "layout",
        "no faster",
        "2 x h100_sxm at oslo alone",
        "equal stages on all",
        "riga",
    )
    for word in words:
        assert word in result.stdout
    assert gpuplan("check", "mixed.json", "--instance", "mixed.yaml").exit_code == 0
    plan = json.loads((files / "mixed.json").read_text())["plan"]
    assert {stage["device"] for stage in plan["stages"]} <= {"h100_sxm", "a100_sxm"}
    assert gpuplan("report", "mixed.json", "--instance", "mixed.yaml", "-o", "mixed.html").exit_code == 0


def test_unequal_gpus_without_a_link_are_a_mistake(gpuplan: Invoke, files: Path) -> None:
    lines = MIXED[: MIXED.index("sites:")] + MIXED[MIXED.index("global_batch_size") :]
    (files / "apart.yaml").write_text(lines.replace("  network: {link: ib_hdr}\n", ""))
    result = gpuplan("plan", "apart.yaml")
    assert result.exit_code == 7
    assert "apart.yaml:10" in result.output
    assert "is required to join unequal nodes" in result.output
