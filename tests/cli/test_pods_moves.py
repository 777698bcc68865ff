"""`gpuplan pods --moves`: the plan, its check, its diff, and its script against a kubectl that only notes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
INSTANCE = """\
problem: pods
name: split
objective: allocation
nodes:
  - {name: a, cpu: 8, memory: 8Gi, gpus: 2}
  - {name: b, cpu: 8, memory: 8Gi, gpus: 2}
pods:
  - {name: left, cpu: 1, gpus: 1, node: a}
  - {name: right, cpu: 2, gpus: 1, node: b}
  - {name: pair, cpu: 1, gpus: 2}
"""
KUBECTL = r"""#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  "get nodes"*) printf 'a\nb\n' ;;
  "get pods"*) printf 'uid-left \nuid-left new-left \nuid-right new-right \n' ;;
  "get pod "*) echo "$5" | sed 's/^/uid-/' | sed 's/uid-.*left.*/uid-left/; s/uid-.*right.*/uid-right/' ;;
  create*) cat >> "$LOG"; echo >> "$LOG" ;;
esac
"""


@pytest.fixture
def plan(gpuplan: Invoke, folder: Path) -> Path:
    (folder / "i.yaml").write_text(INSTANCE)
    result = gpuplan("pods", "i.yaml", "--moves", "1", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    assert "1 running pod moves, in 1 step;" in result.stdout
    return folder


def test_check_and_diff(gpuplan: Invoke, plan: Path) -> None:
    assert gpuplan("pods", "i.yaml", "--moves", "1", "-o", "p.json", "--quiet").exit_code == 0
    (plan / "moving.yaml").write_text(INSTANCE + "moves: {allowed: true, max: 1}\n")
    assert gpuplan("check", "plan.json", "--instance", "moving.yaml").exit_code == 0
    assert gpuplan("check", "plan.json", "--instance", "i.yaml").exit_code == 6
    lines = gpuplan("export", "plan.json", "--to", "diff", "-o", "-").stdout.splitlines()
    assert sorted(line[0] for line in lines) == ["+", "~"]
    assert gpuplan("export", "plan.json", "--to", "k8s", "-o", "-").stdout.count('"Binding"') == 1


@pytest.mark.parametrize("apply", ["0", "1"])
def test_the_script_is_a_dry_run_unless_told(gpuplan: Invoke, plan: Path, apply: str) -> None:
    """Cordon, evict, bind the successor, bind the pending pod, uncordon; without APPLY=1 only dry-run evictions."""
    assert gpuplan("export", "plan.json", "--to", "kubectl-sh", "-o", "plan.sh").exit_code == 0
    (plan / "kubectl").write_text(KUBECTL)
    (plan / "kubectl").chmod(0o755)
    log = plan / "log"
    environment = {**os.environ, "PATH": f"{plan}:{os.environ['PATH']}", "LOG": str(log), "APPLY": apply, "WAIT_S": "0"}
    done = subprocess.run(["sh", str(plan / "plan.sh")], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calls = log.read_text()
    assert ('"dryRun":["All"]' in calls) == (apply == "0")
    order = [calls.find(text) for text in ("cordon", '"kind":"Eviction"', '"kind":"Binding"', "uncordon")]
    if apply == "1":
        assert -1 not in order
        assert order == sorted(order)
        assert calls.count('"kind":"Binding"') == 2
        document = json.loads((plan / "plan.json").read_text())
        (move,) = document["plan"]["moves"]
        assert f'"name":"new-{move["pod"].split("/")[1]}"' in calls
    else:
        assert "cordon" not in calls
        assert "Binding" not in calls
        assert "would bind" in done.stdout


def test_a_script_needs_something_to_do(gpuplan: Invoke, folder: Path) -> None:
    (folder / "i.yaml").write_text(INSTANCE.rpartition("  - {name: pair")[0])
    assert gpuplan("pods", "i.yaml", "-o", "plan.json", "--quiet").exit_code == 0
    refused = gpuplan("export", "plan.json", "--to", "kubectl-sh", "-o", "-")
    assert refused.exit_code == 2
    assert "changes nothing" in refused.output


def test_headroom(gpuplan: Invoke, folder: Path) -> None:
    """Two single GPUs are free on different nodes: no pair now, one after a move."""
    (folder / "i.yaml").write_text(INSTANCE)
    result = gpuplan("pods", "i.yaml", "--moves", "1", "--headroom", "default/pair", "--json")
    assert result.exit_code == 0, result.output
    rooms = json.loads(result.stdout)["headroom"]
    assert [(room["moves"], room["least"], room["most"]) for room in rooms] == [(0, 0, 0), (1, 1, 1)]
    assert "at least" in gpuplan("pods", "i.yaml", "--headroom", "default/pair").stdout
    assert gpuplan("pods", "i.yaml", "--headroom", "default/left").exit_code == 2
    assert gpuplan("pods", "i.yaml", "--headroom", "default/pair", "-o", "x.json").exit_code == 2
