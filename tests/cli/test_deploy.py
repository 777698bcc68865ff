"""`gpuplan deploy` and what takes its plans: check, compare, report, workbook, export, batch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import Result

Invoke = Callable[..., Result]
DEPLOY = Path(__file__).resolve().parents[2] / "instances" / "deploy"
#: A worker of either service serves 5 requests/s on one l4.
TABLE = (
    "worker,service,device,role,gpus,input_tokens,output_tokens,requests_per_s\n"
    "wa,a,l4,A,1,100,100,5\nwb,b,l4,A,1,100,100,5\n"
)
SERVICES = """
services:
  - {name: a, demand: [{input_tokens: 100, output_tokens: 100, rate_per_s: 4}]}
  - {name: b, demand: [{input_tokens: 100, output_tokens: 100, rate_per_s: 4}]}
utilisation: 1
"""
OFFERS = """
offers:
  - {name: single, device: l4, gpus: 1, price_usd_per_hour: 2}
  - {name: pair, device: l4, gpus: 2, price_usd_per_hour: 3}
"""


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "workers.csv").write_text(TABLE)
    (folder / "services.yaml").write_text(SERVICES)
    (folder / "offers.yaml").write_text(OFFERS)
    (folder / "case.yaml").write_text(f"problem: deploy\nname: case\nworkers: workers.csv{SERVICES}{OFFERS}")
    return folder


def planned(gpuplan: Invoke, *arguments: str) -> dict[str, Any]:
    result = gpuplan("deploy", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_files_in_place_of_an_instance(gpuplan: Invoke, files: Path) -> None:
    """A pair takes both services for 3 USD; two singles would cost 4."""
    found = planned(gpuplan, "--services", "services.yaml", "--offers", "offers.yaml", "--workers", "workers.csv")
    assert found["instance"]["name"] == "deployment"
    assert found["outcome"]["objective"] == pytest.approx(3.0)
    assert found["baseline"]["objective"] >= 3.0
    assert [(pod["node"], pod["gpus"]) for pod in found["plan"]["pods"]] == [("pair-1", [0]), ("pair-1", [1])]


def test_flags_over_a_file(gpuplan: Invoke, files: Path) -> None:
    assert planned(gpuplan, "case.yaml")["outcome"]["objective"] == pytest.approx(3.0)
    # 5 requests/s at 70 % are 3.5: two workers each, on two pairs.
    assert planned(gpuplan, "case.yaml", "--utilisation", "0.7")["outcome"]["objective"] == pytest.approx(6.0)
    # With any node lost, its worker of either service has to have room elsewhere.
    assert planned(gpuplan, "case.yaml", "--spare", "1")["outcome"]["objective"] > 3.0


def test_exit_codes(gpuplan: Invoke, files: Path) -> None:
    assert gpuplan("deploy", "case.yaml", "--budget", "$2/h").exit_code == 3
    assert gpuplan("deploy", "case.yaml", "--ablate", "nonsense").exit_code == 2
    assert gpuplan("deploy", "case.yaml", "--method", "nonsense").exit_code == 2
    wrong = gpuplan("deploy", "case.yaml", "--workers", "missing.csv")
    assert wrong.exit_code == 7
    both = gpuplan("deploy", "case.yaml", "--max-moves", "1")
    assert both.exit_code == 7
    assert "needs a current deployment" in both.stderr
    assert gpuplan("deploy", "--services", "offers.yaml", "--offers", "offers.yaml").exit_code == 7


def test_the_answer_tells_everything(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("deploy", "case.yaml", "--ablate", "sharing", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    # On nodes of their own: a single each.
    found = json.loads((files / "plan.json").read_text())["plan"]["couplings"]
    assert [(one["cut"], one["usd_per_hour"], one["extra"]) for one in found] == [
        ("sharing", pytest.approx(4.0), pytest.approx(1 / 3))
    ]
    for told in ("3 USD/hour", "2 of 2 are in workers", "pair", "+33.3%", "no plan is below 3"):
        assert told in result.stdout
    assert gpuplan("check", "plan.json", "--instance", "case.yaml").exit_code == 0


def test_nodes_and_pods_of_a_cluster(gpuplan: Invoke, files: Path) -> None:
    nodes, pods = (str(DEPLOY / "cluster" / f"{name}.json") for name in ("nodes", "pods"))
    table = TABLE.replace("l4", "h100_sxm")
    (files / "workers.csv").write_text(table)
    given = ("--services", "services.yaml", "--workers", "workers.csv")
    found = planned(gpuplan, *given, "--nodes", nodes, "--pods", pods)
    assert found["outcome"]["objective"] == 0.0
    assert {pod["node"] for pod in found["plan"]["pods"]} <= {"gpu-a-0", "gpu-a-1"}
    assert set(found["plan"]["template"]["hostnames"]) == {pod["node"] for pod in found["plan"]["pods"]}


def test_a_change_of_demand(gpuplan: Invoke, files: Path) -> None:
    assert gpuplan("deploy", "case.yaml", "-o", "now.json", "--quiet").exit_code == 0
    grown = (files / "case.yaml").read_text().replace("rate_per_s: 4}]}\n  -", "rate_per_s: 9}]}\n  -")
    (files / "grown.yaml").write_text(grown)
    result = gpuplan("deploy", "grown.yaml", "--current", "now.json", "-o", "next.json")
    assert result.exit_code == 0, result.output
    assert "2 workers stay, 1 start, 0 stop" in result.stdout
    check = ("check", "next.json", "--instance", "grown.yaml")
    assert gpuplan(*check, "--current", "now.json").exit_code == 0
    compared = gpuplan("compare", "now.json", "next.json")
    assert compared.exit_code == 0
    assert "2 workers stay, 1 start, 0 stop" in compared.stdout
    moves = json.loads(gpuplan("compare", "now.json", "next.json", "--json").stdout)["moves"]
    assert moves[0]["workers"] == {"stay": 2, "start": 1, "stop": 0}
    assert sum(moves[0]["nodes"].values()) == 1
    page = gpuplan("report", "next.json", "--instance", "grown.yaml", "--current", "now.json", "-o", "page.md")
    assert page.exit_code == 0, page.output
    text = (files / "page.md").read_text()
    for told in ("2 workers stay", "| step |", "--current now.json", "To make it again"):
        assert told in text


def test_a_plan_from_a_table_has_no_manifests(gpuplan: Invoke, files: Path) -> None:
    assert gpuplan("deploy", "case.yaml", "-o", "plan.json", "--quiet").exit_code == 0
    for to in ("k8s", "kubectl-sh"):
        refused = gpuplan("export", "plan.json", "--to", to, "-o", "out")
        assert refused.exit_code == 2
        assert "from a table of workers; plan with `model`" in refused.stderr
    assert not (files / "out").exists()


def test_workbook_and_schema(gpuplan: Invoke, files: Path) -> None:
    pytest.importorskip("xlsxwriter")
    pytest.importorskip("openpyxl")
    made = gpuplan("workbook", "case.yaml", "-o", "plan.xlsx", "--csv", "sheets", "--quiet")
    assert made.exit_code == 0, made.output
    sheets = {path.stem: path.read_text() for path in (files / "sheets").glob("*.csv")}
    # Each worker serves 4 of 5 requests/s; one pair of 3 USD runs both.
    assert "1,a,wa,both,pair,1,1,0.8" in sheets["plan"]
    assert "pair-1,pair,a-1: a,b-1: b" in sheets["placement"]
    assert "mean,,3.0" in sheets["hours"]
    assert "the plan is,CURRENT" in sheets["checks"]
    again = gpuplan("plan", "plan.xlsx", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["outcome"]["objective"] == pytest.approx(3.0)
    schema = json.loads(gpuplan("schema", "deploy").stdout)
    assert {"services", "offers", "nodes"} <= schema["properties"].keys()


def test_batch_and_replanning(gpuplan: Invoke, files: Path) -> None:
    """`a` grows to 9 requests/s: one more worker of one GPU starts; the plan in force cannot be kept."""
    assert gpuplan("deploy", "case.yaml", "-o", "now.json", "--quiet").exit_code == 0
    grown = (files / "case.yaml").read_text().replace("rate_per_s: 4}]}\n  -", "rate_per_s: 9}]}\n  -")
    (files / "grown.yaml").write_text(grown)
    asked = "{instance: grown.yaml, current: now.json, move_price: 1, horizon_hours: 24}"
    (files / "night.yaml").write_text(f"jobs:\n  - case.yaml\n  - {asked}\n")
    result = gpuplan("batch", "night.yaml", "-o", "night.jsonl", "--quiet")
    assert result.exit_code == 0, result.output
    records = {
        one["job"]: one for one in map(json.loads, (files / "night.jsonl").read_text().splitlines()) if "job" in one
    }
    found = records["grown.yaml"]["replanning"]
    assert (found["moves"], found["move_cost"]) == (1.0, 1.0)
    assert found["keep_objective"] is None
    assert found["objective"] == pytest.approx(5.0)


def replay(script: Path, folder: Path, before: dict[str, int]) -> dict[str, int]:
    """Workers of each set after the script, by a kubectl that notes what it is given."""
    (folder / "bin").mkdir()
    (folder / "log").mkdir()
    kubectl = folder / "bin" / "kubectl"
    kubectl.write_text(
        '#!/bin/sh\nn=$(ls log | wc -l)\nname=$(printf "log/%03d" "$n")\necho "$*" > "$name.args"\n'
        'case "$*" in *"-f -"*) cat > "$name.yaml" ;; "get nodes"*) echo node/x ;; esac\n'
    )
    kubectl.chmod(0o755)
    known = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "APPLY": "1"}
    done = subprocess.run(["sh", str(script)], cwd=folder, env=known, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    now = dict(before)
    for path in sorted((folder / "log").glob("*.args")):
        words = path.read_text().split()
        if words[0] == "apply":
            now |= sets(path.with_suffix(".yaml").read_text())
        elif words[0] == "scale":
            now[words[1].partition("/")[2]] = int(words[2].removeprefix("--replicas="))
        elif words[0] == "delete":
            del now[words[1].partition("/")[2]]
    return now


def sets(text: str) -> dict[str, int]:
    return {
        one["metadata"]["name"]: one["spec"]["replicas"]
        for one in YAML(typ="safe", pure=True).load_all(text)
        if one["kind"] in ("Deployment", "LeaderWorkerSet")
    }


def test_from_a_cluster_to_manifests_and_through_a_change(gpuplan: Invoke, folder: Path) -> None:
    """What the manifests of the first plan started becomes, step by step, what those of the second start."""
    text = (DEPLOY / "half_used_cluster.yaml").read_text().replace("cluster/", f"{DEPLOY}/cluster/")
    (folder / "now.yaml").write_text(text)
    (folder / "next.yaml").write_text(text.replace("rate_per_s: 14", "rate_per_s: 24"))
    assert gpuplan("deploy", "now.yaml", "-o", "now.json", "--quiet").exit_code == 0
    result = gpuplan("deploy", "next.yaml", "--current", "now.json", "-o", "next.json", "--quiet")
    assert result.exit_code == 0, result.output
    for name in ("now", "next"):
        assert gpuplan("export", f"{name}.json", "--to", "k8s", "-o", f"{name}.out.yaml").exit_code == 0
        assert gpuplan("export", f"{name}.json", "--to", "kueue", "-o", f"{name}.kueue.yaml").exit_code == 0
    assert gpuplan("export", "next.json", "--to", "kubectl-sh", "-o", "change.sh").exit_code == 0
    old, new = (sets((folder / f"{name}.out.yaml").read_text()) for name in ("now", "next"))
    assert old != new
    assert replay(folder / "change.sh", folder, old) == new
