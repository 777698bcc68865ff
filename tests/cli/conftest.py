"""A small instance in a folder of its own, and the program run inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.app import app

Invoke = Callable[..., Result]


@pytest.fixture
def instance() -> dict[str, Any]:
    """2 scenarios x 4 layers x 16 experts in 20 slots on 4 GPUs of 2 nodes."""
    counts = (np.random.default_rng(1).zipf(1.7, (2, 4, 16)).clip(max=50) * 10).tolist()
    return {
        "problem": "experts",
        "name": "small",
        "num_gpus": 4,
        "gpus_per_node": 2,
        "num_slots": 20,
        "loads": [{"name": "day", "counts": counts[0], "weight": 2}, {"name": "night", "counts": counts[1]}],
        "expert_bytes": "10MiB",
        "gpu_memory_bytes": "300MiB",
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dict[str, Any]) -> Path:
    """The working folder: small.json, and the data day.npy, night.npy and trace.npy."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "small.json", instance)
    for load in instance["loads"]:
        np.save(tmp_path / f"{load['name']}.npy", np.array(load["counts"]))
    tokens = np.argsort(np.random.default_rng(2).random((300, 4, 16)), axis=2)[:, :, :2]
    np.save(tmp_path / "trace.npy", tokens.astype(np.int16))
    return tmp_path


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def gpuplan(folder: Path) -> Invoke:
    """Run `gpuplan` with these arguments in `folder`."""

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return invoke


@pytest.fixture
def plan_file(gpuplan: Invoke, folder: Path) -> Path:
    """The EPLB plan of small.json."""
    result = gpuplan("plan", "small.json", "--method", "eplb", "-o", "eplb.json", "--quiet")
    assert result.exit_code == 0, result.output
    return folder / "eplb.json"
