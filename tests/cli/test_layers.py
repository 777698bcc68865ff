"""Layers over unequal devices on the command line: `plan`, `parallel`, `check`, `compare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]

POOL = """\
problem: parallel
task: layers
name: pool
model: {num_layers: 10, layer_bytes: 1GB}
memory_share: 1
devices:
  - {name: fast, memory_bytes: 9GB, layer_s: 100ms}
  - {name: slow, memory_bytes: 9GB, layer_s: 400ms}
  - {name: tiny, memory_bytes: 0.5GB, layer_s: 400ms}
"""
HOME = """\
problem: parallel
task: windows
name: home
num_layers: 10
layer_bytes: 1GB
devices:
  - {name: a, ram_bytes: 6GB, cpu_layer_s: 100ms, disk_bytes_per_s: 1GB/s}
  - {name: b, ram_bytes: 2GB, cpu_layer_s: 200ms, disk_bytes_per_s: 4GB/s}
  - {name: c, ram_bytes: 2GB, cpu_layer_s: 900ms, disk_bytes_per_s: 1GB/s}
"""


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "pool.yaml").write_text(POOL)
    (folder / "home.yaml").write_text(HOME)
    return folder


@pytest.mark.parametrize("command", ["plan", "parallel"])
def test_a_pool_in_lines(gpuplan: Invoke, files: Path, command: str) -> None:
    """8 and 2 layers in 0.8 s."""
    result = gpuplan(command, "pool.yaml", "-o", "plan.json")
    assert result.exit_code == 0
    assert "1.25 tokens/s, 1 pipelines of 10 layers" in result.stdout
    assert "1.6 s a token at worst" in result.stdout
    assert "2 used; idle: 1 x tiny" in result.stdout
    assert "Parallax greedy" in result.stdout
    assert gpuplan("check", "plan.json", "--instance", "pool.yaml").exit_code == 0
    assert json.loads((files / "plan.json").read_text())["kind"] == "layers"


def test_a_ring_in_lines(gpuplan: Invoke, files: Path) -> None:
    """6 x 0.1 + 4 x 0.2 s, and two of b's layers from disk in 0.5 s: 1.9 s."""
    result = gpuplan("plan", "home.yaml", "-o", "plan.json")
    assert result.exit_code == 0
    assert "1.9 s, 0.526316 tokens/s" in result.stdout
    assert "1.86 GiB a token" in result.stdout
    assert "left out      c" in result.stdout
    assert "Halda's iteration" in result.stdout
    assert gpuplan("check", "plan.json").exit_code == 0


def test_plans_of_layers_are_compared(gpuplan: Invoke, files: Path) -> None:
    for method in ("highs", "scip"):
        assert gpuplan("plan", "pool.yaml", "--method", method, "-o", f"{method}.json").exit_code == 0
    result = gpuplan("compare", "highs.json", "scip.json")
    assert result.exit_code == 0
    assert "nothing is counted between plans of layers" in result.stdout


def test_short_memory_is_exit_code_3(gpuplan: Invoke, files: Path) -> None:
    (files / "pool.yaml").write_text(POOL.replace("9GB", "4GB"))
    result = gpuplan("plan", "pool.yaml")
    assert result.exit_code == 3
    assert "hold 8 of 10 layers" in result.stdout
    assert "add 1 " in result.stdout


def test_bad_files_are_exit_code_7(gpuplan: Invoke, files: Path) -> None:
    (files / "pool.yaml").write_text(POOL.replace("layer_s: 400ms", "layer_s: 0"))
    result = gpuplan("plan", "pool.yaml")
    assert result.exit_code == 7
    assert "pool.yaml:8:" in result.stderr
    assert "pool.yaml:9:" in result.stderr


def test_export_says_that_there_is_no_format(gpuplan: Invoke, files: Path) -> None:
    gpuplan("plan", "pool.yaml", "-o", "plan.json")
    result = gpuplan("export", "plan.json", "--to", "vllm", "-o", "x.sh")
    assert result.exit_code == 2
