"""The README's commands and Python run as they stand, on a small instance under the names that it uses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
PROGRAM = Path(sys.executable).with_name("gpuplan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        counts = [[0] * 64, *rng.integers(1, 100, (2, 64)).tolist()]
        (tmp_path / f"{name}.json").write_text(json.dumps({"logical_count": counts}))
    (tmp_path / "runs.csv").write_text(
        "model,system,backend,tp,isl,osl,concurrency,ttft_ms,tpot_ms\n"
        "Qwen/Qwen3-32B,h100_sxm,vllm,2,1024,512,64,400,28\n"
        "Qwen/Qwen3-32B,h100_sxm,vllm,4,1024,512,16,150,13\n"
    )
    (tmp_path / "FLEET.yaml").write_text(
        "problem: fleet\nname: readme\nmodels: [{name: m}]\n"
        "offers:\n  - {name: a, device: l4, price_usd_per_hour: 1, max_count: 3}\n"
        "  - {name: b, device: h100_sxm, price_usd_per_hour: 4}\n"
        "demand: [{model: m, input_tokens: 100, output_tokens: 100, rate_per_s: 10}]\n"
        "profiles:\n  - {offer: a, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 2}\n"
        "  - {offer: b, model: m, input_tokens: 100, output_tokens: 100, max_rate_per_s: 6}\n"
    )
    (tmp_path / "workers.csv").write_text(
        "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\nw,m,l4,both,1,100,100,2\n"
    )
    (tmp_path / "DEPLOYMENT.yaml").write_text(
        "problem: deploy\nname: readme\nworkers: workers.csv\n"
        "services: [{name: m, demand: [{input_tokens: 100, output_tokens: 100, rate_per_s: 10}]}]\n"
        "offers: [{name: a, device: l4, price_usd_per_hour: 1}]\n"
    )
    (tmp_path / "NIGHT").mkdir()
    (tmp_path / "NIGHT" / "fleet.yaml").write_text((tmp_path / "FLEET.yaml").read_text())
    (tmp_path / "requests.csv").write_text(
        "t_s,input_tokens,output_tokens\n" + "".join(f"{i * 0.5},{100 + i},{50 + i}\n" for i in range(200))
    )
    np.save(tmp_path / "trace.npy", rng.integers(0, 64, (200, 2, 1)))
    (tmp_path / "INSTANCE.yaml").write_text(
        "problem: experts\nname: readme\nnum_gpus: 4\nnum_slots: 72\nloads: [{file: a.json}, {file: b.json}]\n"
        "trace: {file: trace.npy}\ncommunication: {model: chain, weight: 0.1}\n"
    )
    return tmp_path


def commands() -> list[str]:
    lines = re.findall(r"^    (gpuplan (?!--install).*)$", README, flags=re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines]


@pytest.mark.slow
def test_the_commands_run_in_order(folder: Path) -> None:
    shown = commands()
    assert len(shown) >= 10
    for command in shown:
        if "old.json" in command:
            for name in ("old", "new"):
                (folder / f"{name}.json").write_bytes((folder / "plan.json").read_bytes())
        if "gpuplan check" in command:
            # The plan on file is of the `experts` line before; the README's reader checks the one of `plan`.
            subprocess.run([PROGRAM, *shown[0].split()[1:]], cwd=folder, check=True, capture_output=True)
        done = subprocess.run([PROGRAM, *command.split()[1:]], cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_the_python_runs(folder: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(("optimal", "feasible"))
    assert done.stdout.rstrip().endswith("True")
