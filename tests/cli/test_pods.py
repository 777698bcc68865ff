"""`gpuplan pods`: kubectl files, stdin, flags over a file, exit codes, exports and comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Invoke = Callable[..., Result]


def pod(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": gpus}}
    containers = [{"name": "m", "resources": resources}]
    return {"kind": "Pod", "metadata": {"name": name, "namespace": "d"}, "spec": {"containers": containers, **spec}}


@pytest.fixture
def cluster(folder: Path) -> Path:
    """Two nodes of 2 GPUs; pods of 1, 1, 2 and 4 GPUs: the last one fits nowhere."""
    allocatable = {"cpu": "8", "memory": "8Gi", "pods": "9", "nvidia.com/gpu": "2"}
    nodes = [{"kind": "Node", "metadata": {"name": name}, "status": {"allocatable": allocatable}} for name in "ab"]
    pods = [pod("one", 1), pod("two", 1), pod("pair", 2, priority=5), pod("large", 4)]
    (folder / "nodes.json").write_text(json.dumps({"kind": "List", "items": nodes}))
    (folder / "pods.json").write_text(json.dumps({"kind": "List", "items": pods}))
    return folder


FILES = ("--nodes", "nodes.json", "--pods", "pods.json")


def test_plan_of_kubectl_files(gpuplan: Invoke, cluster: Path) -> None:
    result = gpuplan("pods", *FILES, "--objective", "allocation", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    assert "4 of 4 allocated" in result.stdout
    assert "too large for each of the 2 nodes" in result.stdout
    assert "kube-default" in result.stdout
    assert gpuplan("export", "plan.json", "--to", "k8s", "-o", "-").stdout.count('"Binding"') == 3
    assert gpuplan("pods", *FILES, "--method", "fgd", "-o", "fgd.json", "--quiet").exit_code == 0
    compared = gpuplan("compare", "plan.json", "fgd.json")
    assert compared.exit_code == 0, compared.output
    assert "plan.json -> fgd.json" in compared.stdout


def test_everything_from_stdin(gpuplan: Invoke, cluster: Path) -> None:
    items = [json.loads((cluster / name).read_text())["items"] for name in ("nodes.json", "pods.json")]
    text = json.dumps({"kind": "List", "items": [*items[0], *items[1]]})
    result = gpuplan("pods", "--nodes", "-", "--pods", "-", "--json", stdin=text)
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["plan"]["placements"]) == 3


def test_flags_over_a_file_and_check(gpuplan: Invoke, cluster: Path) -> None:
    (cluster / "i.yaml").write_text("problem: pods\nname: i\nnodes: nodes.json\npods: pods.json\n")
    assert gpuplan("pods", "i.yaml", "-o", "p.json", "--quiet").exit_code == 0
    assert gpuplan("check", "p.json", "--instance", "i.yaml").exit_code == 0
    document = json.loads((cluster / "p.json").read_text())
    assert [tier["name"] for tier in document["plan"]["tiers"]] == [
        "pods placed, priority 5",
        "pods placed, priority 0",
    ]
    document["plan"]["placements"][0]["node"] = document["plan"]["placements"][2]["node"]
    (cluster / "broken.json").write_text(json.dumps(document))
    broken = gpuplan("check", "broken.json", "--instance", "i.yaml")
    assert broken.exit_code == 6, broken.output
    infeasible = gpuplan("pods", "i.yaml", "--objective", "consolidate")
    assert infeasible.exit_code == 3
    assert "d/large" in infeasible.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--nodes", "none.json", "--pods", "pods.json"), 7, "cannot be read"),
        (("--nodes", "nodes.json"), 7, "is required"),
        ((*FILES, "--threads", "4"), 2, "one thread"),
        ((*FILES, "--powered", "nodes"), 7, "counts no nodes"),
        ((*FILES, "--method", "magic"), 2, "no method"),
        (("-", "--nodes", "-"), 2, "standard input"),
    ],
)
def test_mistakes(gpuplan: Invoke, cluster: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = gpuplan("pods", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output


def test_mathematics_and_schema(gpuplan: Invoke, folder: Path) -> None:
    assert "patterns q" in gpuplan("catalog", "formulations", "pods").stdout
    assert gpuplan("schema", "pods").exit_code == 0
    assert gpuplan("schema", "pods-plan").exit_code == 0


def test_what_would_help_is_told(gpuplan: Invoke, cluster: Path) -> None:
    """The pod of 4 GPUs fits no node that there is, and one on offer at 7 $/h."""
    offers = "offers:\n  - {name: big, cpu: 8, memory: 8Gi, gpus: 4, price_usd_per_hour: 7}\n"
    (cluster / "i.yaml").write_text(f"problem: pods\nname: i\nnodes: nodes.json\npods: pods.json\n{offers}")
    result = gpuplan("pods", "i.yaml", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    assert "d/large: 1 more node big (4 × GPU), 7 $/h would place it (cheapest)" in " ".join(result.stdout.split())
    (remedy,) = json.loads((cluster / "plan.json").read_text())["plan"]["remedies"]
    assert remedy["way"] == "nodes"
    assert remedy["price_usd_per_hour"] == 7
    assert gpuplan("report", "plan.json", "--instance", "i.yaml", "-o", "r.md").exit_code == 0
    assert "1 more node big" in (cluster / "r.md").read_text()


def test_fragments_of_vms(gpuplan: Invoke, folder: Path) -> None:
    """4 cores are free on one NUMA node of each machine; a move puts 8 together."""
    (folder / "v.yaml").write_text(
        "problem: pods\nname: v\nobjective: fragments\nfragment_cpu: 8\nmoves: {allowed: true, max: 1}\n"
        "nodes:\n  - {name: m, count: 2, cpu: 16, memory: 64Gi, numa: 2}\n"
        "pods:\n  - {name: a, cpu: 4, node: m-0, numa_nodes: [0]}\n  - {name: b, cpu: 4, node: m-1, numa_nodes: [0]}\n"
    )
    result = gpuplan("pods", "v.yaml", "-o", "plan.json")
    assert result.exit_code == 0, result.output
    assert "0% of 24 free cores" in result.stdout
    assert "1 running pod moves, in 1 step;" in result.stdout
    assert gpuplan("check", "plan.json", "--instance", "v.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            '"cpu": "1"',
            '"cpu": "1E"',
            "containers[0].resources.requests.cpu: is more than can be counted",
        ),
        ('"cpu": "1"', '"cpu": "K"', "is no quantity"),
        ('"cpu": "1"', '"cpu": "-1"', "is negative"),
        ('"cpu": "1"', '"cpu": NaN', "NaN"),
        ('"nvidia.com/gpu": 1', '"nvidia.com/gpu": "0.5"', "must be a whole number"),
        ('"name": "two"', '"name": "one"', "two pods are named 'd/one'"),
        ('"containers"', '"nodeName": "z", "containers"', "runs on 'z', which is no node of the files"),
        ('"kind": "List"', '"kind": "List', "pods.json:1:"),
    ],
)
def test_bad_files_are_told_with_their_place(gpuplan: Invoke, cluster: Path, old: str, new: str, words: str) -> None:
    text = (cluster / "pods.json").read_text()
    assert old in text
    (cluster / "pods.json").write_text(text.replace(old, new))
    result = gpuplan("pods", *FILES)
    assert result.exit_code == 7
    assert words in result.output
    assert "pods" in result.output
