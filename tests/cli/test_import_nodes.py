"""`gpuplan import kubectl`, `openb`, `topo`: what they write is what other commands read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from planner.cluster import Cluster
from planner.files import read_as, read_source

Invoke = Callable[..., Result]

NODES = {
    "kind": "NodeList",
    "items": [
        {
            "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}},
            "status": {"allocatable": {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"}},
        }
        for name in ("a", "b")
    ],
}


def pod(name: str, gpus: int, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": gpus}, "limits": {}}}
    return {"metadata": {"name": name, "namespace": "x"}, "spec": {"containers": [container], **spec}}


PODS = {"kind": "PodList", "items": [pod("runs", 6, nodeName="a"), pod("waits", 4), pod("more", 2)]}


@pytest.fixture
def files(folder: Path) -> Path:
    (folder / "nodes.json").write_text(json.dumps(NODES))
    (folder / "pods.json").write_text(json.dumps(PODS))
    (folder / "all.json").write_text(json.dumps({"kind": "List", "items": [
        *({**one, "kind": "Node"} for one in NODES["items"]), *({**one, "kind": "Pod"} for one in PODS["items"]),
    ]}))  # fmt: skip
    return folder


def test_an_instance_of_pods_that_is_solved(gpuplan: Invoke, files: Path) -> None:
    (files / "out").mkdir()
    result = gpuplan(
        "import", "kubectl", "nodes.json", "pods.json", "--objective", "allocation", "-o", "out/pods.yaml"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = (files / "out" / "pods.yaml").read_text()
    assert "# 2 nodes, GPUs: 16 x NVIDIA-H100-80GB-HBM3" in text
    assert "# 1 running pods, 6 GPUs\n# 2 pending pods, 6 GPUs" in text
    value = read_source(files / "out" / "pods.yaml").value
    assert (value["nodes"], value["pods"], value["name"]) == ("../nodes.json", "../pods.json", "nodes")
    plan = gpuplan("plan", "out/pods.yaml", "--json")
    assert plan.exit_code == 0, plan.output
    assert len(json.loads(plan.stdout)["plan"]["placements"]) == 3


def test_one_file_with_all(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("import", "kubectl", "all.json", "--name", "mine", "-o", "mine.yaml")
    assert result.exit_code == 0, result.output
    value = read_source(files / "mine.yaml").value
    assert value == {"problem": "pods", "name": "mine", "nodes": "all.json", "pods": "all.json"}
    assert gpuplan("plan", "mine.yaml", "--json").exit_code == 0


def test_a_cluster_that_the_serving_search_takes(gpuplan: Invoke, files: Path) -> None:
    result = gpuplan("import", "kubectl", "nodes.json", "--cluster", "--network", "ib_ndr", "-o", "cluster.yaml")
    assert result.exit_code == 0, result.output
    cluster = read_as(files / "cluster.yaml", Cluster)
    assert (cluster.name, cluster.num_gpus) == ("nodes", 16)
    result = gpuplan("import", "kubectl", "-", "--cluster", stdin=json.dumps({"kind": "List", "items": [
        {**NODES["items"][0], "kind": "Node"}, {**PODS["items"][0], "kind": "Pod"},
    ]}))  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 running pods have GPUs of these" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nodes.json",), 7, "holds no Pod"),
        (("pods.json",), 7, "holds no Node"),
        (("-",), 2, "save what kubectl prints"),
        (("nodes.json", "pods.json", "--device", "X=h100"), 2, "are for --cluster"),
        (("nodes.json", "--cluster", "--device", "h100"), 2, "is not LABEL=NAME"),
        (("nodes.json", "--cluster", "--objective", "priority"), 2, "is for an instance of pods"),
        (("nodes.json", "--cluster", "--network", "string"), 7, "network.link"),
        (("missing.json",), 7, "cannot be read"),
    ],
)
def test_what_cannot_be_imported(
    gpuplan: Invoke, files: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = gpuplan("import", "kubectl", *arguments, stdin="{}")
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_openb_tables(gpuplan: Invoke, files: Path) -> None:
    (files / "n.csv").write_text("sn,cpu_milli,memory_mib,gpu,model\none,64000,262144,2,T4\n")
    (files / "p.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli,qos\np,1000,1024,1,500,LS\n")
    result = gpuplan("import", "openb", "n.csv", "p.csv", "-o", "openb.yaml")
    assert result.exit_code == 0, result.output
    assert "1 pending pods, 0.5 GPUs" in (files / "openb.yaml").read_text()
    assert gpuplan("plan", "openb.yaml", "--json").exit_code == 0
    (files / "p.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,x,1024,1,5000\n")
    result = gpuplan("import", "openb", "n.csv", "p.csv")
    assert result.exit_code == 7
    assert result.stderr.count("p.csv:2: ") == 2


def test_topo_of_one_node(gpuplan: Invoke, files: Path) -> None:
    matrix = "\tGPU0\tGPU1\nGPU0\tX\tNV18\nGPU1\tNV18\tX\n"
    result = gpuplan("import", "topo", "-", "--device", "h100", "--count", "3", "-o", "c.yaml", stdin=matrix)
    assert result.exit_code == 0, result.output
    assert read_as(files / "c.yaml", Cluster).num_gpus == 6
    result = gpuplan("import", "topo", "-", "--device", "h1000", "--count", "0", stdin=matrix)
    assert result.exit_code == 7
    assert "--count: is 0" in result.stderr
    assert "--device: the catalogue has no device 'h1000'" in result.stderr
