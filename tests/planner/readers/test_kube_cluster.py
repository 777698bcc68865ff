"""Nodes as kubectl prints them, to a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.cluster import Cluster
from planner.errors import DescriptionError
from planner.readers.kube_cluster import cluster_of
from planner.readers.kubernetes import read_snapshot


def node(name: str, product: str = "NVIDIA-H100-80GB-HBM3", gpus: int = 8, **said: Any) -> dict[str, Any]:
    labels = {"nvidia.com/gpu.product": product} if product else {}
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {**labels, **said.pop("labels", {})}},
        "spec": said,
        "status": {"allocatable": {"cpu": "8", "memory": "1Gi", "pods": "9", "nvidia.com/gpu": gpus}},
    }


def found(folder: Path, *nodes: dict[str, Any], **flags: Any) -> tuple[Cluster, list[dict[str, Any]], tuple[str, ...]]:
    path = folder / "nodes.json"
    path.write_text(json.dumps({"kind": "NodeList", "items": list(nodes)}))
    made = cluster_of(read_snapshot([path]).nodes, str(path), **flags)
    return Cluster.model_validate(made.value), made.value["nodes"], made.notes


def test_equal_nodes_are_groups(tmp_path: Path) -> None:
    cluster, entries, notes = found(
        tmp_path,
        node("a"),
        node("b", "NVIDIA-L40S", 4),
        node("c"),
        node("d", gpus=0),
        node("e", unschedulable=True),
    )
    assert entries == [
        {"device": "h100_sxm", "count": 2, "gpus_per_node": 8},
        {"device": "l40s", "count": 1, "gpus_per_node": 4},
    ]
    assert cluster.num_gpus == 20
    assert "1 nodes left out: without GPUs" in notes
    assert "1 nodes left out: is cordoned (8 GPUs)" in notes
    assert any("no network is given" in note for note in notes)


def test_an_instance_type_of_the_catalogue_brings_its_network(tmp_path: Path) -> None:
    kind = {"node.kubernetes.io/instance-type": "p5.48xlarge"}
    cluster, entries, _ = found(
        tmp_path, node("a", labels=kind), node("b", labels=kind, gpus=7), node("c", "", labels=kind), network="efa_p5"
    )
    assert entries == [{"shape": "p5.48xlarge", "count": 2}, {"device": "h100_sxm", "count": 1, "gpus_per_node": 7}]
    assert cluster.fabric is not None


def test_memory_tells_sizes_apart(tmp_path: Path) -> None:
    """GPU feature discovery says 40960 MiB: 42.9 GB."""
    _, entries, _ = found(tmp_path, node("a", "A100-SXM4", labels={"nvidia.com/gpu.memory": "40960"}))
    assert entries[0]["device"] == "a100_sxm_40gb"


def test_unknown_products_are_told_once_and_can_be_named(tmp_path: Path) -> None:
    odd = [node("a", "NVIDIA-X9000"), node("b", "NVIDIA-X9000"), node("c", "")]
    with pytest.raises(DescriptionError) as error:
        found(tmp_path, *odd)
    told = str(error.value)
    assert len(error.value.findings) == 2
    assert "node a: " in told
    assert "--device NVIDIA-X9000=NAME" in told
    assert "node c: no label says which GPUs it has" in told
    _, entries, _ = found(tmp_path, *odd[:2], devices={"NVIDIA-X9000": "h200_sxm"})
    assert entries == [{"device": "h200_sxm", "count": 2, "gpus_per_node": 8}]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (node("a", "NVIDIA-L4-SHARED"), "shared by time"),
        (node("a", labels={"nvidia.com/gpu.replicas": "4"}), "shared by time"),
        (node("a", "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"), "cut into MIG slices"),
        (node("a", gpus=0), "no node has GPUs to plan with: 1 without GPUs"),
        (node("a", "NVIDIA-H100-80GB-HBM3", 12), "do not fit into each other"),
    ],
)
def test_what_is_no_whole_gpu(tmp_path: Path, one: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        found(tmp_path, one)
