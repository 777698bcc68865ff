"""Pods instances from file to plan document and back, bindings, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from formulations import SolveOptions, check_document, load_problem, plan
from planner import read_document
from planner.errors import DescriptionError, ExportError
from planner.files import to_json
from planner.writers import export

INSTANCE = """
problem: pods
name: tiny
objective: allocation
nodes: [{name: n, count: 2, cpu: 8, memory: 32Gi, gpus: 2}]
pods:
  - {name: a, count: 2, cpu: 1, gpus: 1}
  - {name: b, cpu: 1, gpus: 2}
  - {name: c, cpu: 1, gpus: 1, gpu_milli: 500}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "instance.yaml"
    path.write_text(text)
    return path


def kubectl(tmp_path: Path, pods: list[dict[str, Any]]) -> Path:
    """An instance of kubectl files: one node of 4 cores, and these pods."""
    node = {
        "kind": "Node",
        "metadata": {"name": "n"},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "9"}},
    }
    (tmp_path / "nodes.json").write_text(json.dumps({"kind": "NodeList", "items": [node]}))
    (tmp_path / "pods.json").write_text(json.dumps({"kind": "PodList", "items": pods}))
    return written(tmp_path, "problem: pods\nname: k\nnodes: nodes.json\npods: pods.json\n")


def pod(name: str, cpu: str, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "m", "resources": {"requests": {"cpu": cpu}}}]
    return {"metadata": {"name": name, "namespace": "d"}, "spec": {"containers": containers, **spec}}


def test_round_trip_keys_and_check(tmp_path: Path) -> None:
    path = written(tmp_path, INSTANCE)
    document = plan(path, options=SolveOptions(work_limit=50))
    raw = json.loads(to_json(document))
    assert raw["problem"] == "pods"
    assert set(raw["plan"]) >= {"placements", "unplaced", "moves", "evictions", "tiers"}
    assert set(raw["plan"]["placements"][0]) >= {"pod", "node", "gpus"}
    assert set(raw["plan"]["placements"][0]["gpus"][0]) == {"index", "gpu_milli"}
    assert raw["plan"]["unplaced"][0]["reason"]
    terms = raw["outcome"]["terms"]
    assert terms["gpu_milli_allocated"] == 4000
    assert {"nodes_used", "fragmentation", "placed_by_priority[0]"} <= set(terms)
    assert raw["outcome"]["objective"] == -4
    stored = tmp_path / "plan.json"
    stored.write_text(to_json(document))
    again = read_document(stored)
    assert again.plan == document.plan
    assert check_document(again, load_problem(path)).feasible
    assert again.outcome.objective is not None
    wrong = again.model_copy(update={"outcome": again.outcome.model_copy(update={"objective": -9.0})})
    assert not check_document(wrong, load_problem(path)).feasible


def test_kubectl_files(tmp_path: Path) -> None:
    pods = [pod("runs", "2", nodeName="n"), pod("fits", "2"), pod("gated", "1", schedulingGates=[{"name": "g"}]),
            pod("late", "1")]  # fmt: skip
    document = plan(kubectl(tmp_path, pods), options=SolveOptions(work_limit=50))
    assert document.plan is not None
    raw = json.loads(to_json(document))["plan"]
    assert raw["placements"][0] == {"pod": "d/runs", "node": "n", "gpus": [], "numa": [], "running": True}
    reasons = {one["pod"]: one["reason"] for one in raw["unplaced"]}
    assert "gates: g" in reasons["d/gated"]
    # One pod more counts more than a larger one: `late` runs, and 2 of 4 cores are left less one.
    assert len(raw["placements"]) == 2


def test_bindings(tmp_path: Path) -> None:
    document = plan(kubectl(tmp_path, [pod("runs", "2", nodeName="n"), pod("fits", "2")]))
    out = tmp_path / "bindings.json"
    export(document, "k8s", str(out))
    (item,) = json.loads(out.read_text())["items"]
    assert item["metadata"] == {"name": "fits", "namespace": "d"}
    assert item["target"]["name"] == "n"
    idle = plan(kubectl(tmp_path, [pod("runs", "2", nodeName="n")]))
    with pytest.raises(ExportError, match="nothing to bind"):
        export(idle, "k8s", str(out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cpu: 8", "cpu: K"), "nodes.0.cpu"),
        (("cpu: 8", "cpu: -8"), "is negative"),
        (("gpu_milli: 500", "gpu_milli: 1500"), "gpu_milli"),
        (("gpus: 1, gpu_milli: 500", "gpus: 2, gpu_milli: 500"), "a share is of one device"),
        (("name: c", "name: a"), "two are named 'a'"),
        (("objective: allocation", "objective: most"), "objective"),
        (("objective: allocation", "objective: consolidate\npowered: price"), "has no price_usd_per_hour"),
        (("objective: allocation", "objective: allocation\npowered: gpus"), "counts no nodes"),
        (("objective: allocation", "objective: consolidate\nmoves: {allowed: true}"), "stay where they are"),
        (("gpus: 2}]", "gpus: 2, taints: [{effect: Never}]}]"), "effect"),
        (("{name: b, cpu: 1, gpus: 2}", "{name: b, cpu: 1, gpus: 2, node: x}"), "no node of the files"),
        (("{name: b, cpu: 1, gpus: 2}", "{name: b, cpu: 9, node: n-0}"), "asks for 9000|ask for 9000"),
        (("{name: b, cpu: 1, gpus: 2}", "{name: b, count: 2, gpus: 2, node: n-0}"), "no room on its GPUs"),
        (("gpus: 2}]", "gpus: 0}]"), "no node has a GPU"),
    ],
)
def test_bad_instances(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in INSTANCE
    with pytest.raises(DescriptionError, match=message):
        load_problem(written(tmp_path, INSTANCE.replace(*change)))


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    text = (
        INSTANCE.replace("cpu: 8", "cpu: K")
        .replace("memory: 32Gi", "memory: NaN")
        .replace("count: 2, cpu: 1", "count: 0")
    )
    with pytest.raises(DescriptionError) as raised:
        load_problem(written(tmp_path, text))
    assert len(raised.value.findings) >= 1
    assert all(":" in str(finding) for finding in raised.value.findings)


def test_contradictory_affinity_is_named(tmp_path: Path) -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    document = plan(kubectl(tmp_path, [pod("p", "1", nodeSelector={"zone": "a"}, affinity=affinity)]))
    assert document.verdict is not None
    assert any("zone In a contradicts zone In b" in one for one in document.verdict.assumptions)
    assert document.plan is not None


def test_openb_files(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("sn,cpu_milli,memory_mib,gpu,model\nx,64000,1024,2,P100\n")
    (tmp_path / "p.csv").write_text("name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,500,10,1,460\nb,1,1,0,0\n")
    path = written(tmp_path, "problem: pods\nname: o\nobjective: allocation\nnodes: n.csv\npods: p.csv\n")
    document = plan(path, options=SolveOptions(work_limit=20))
    assert document.outcome.status == "optimal"
    assert document.outcome.objective == -0.46
