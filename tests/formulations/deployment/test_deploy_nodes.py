"""Standing nodes from kubectl's output: what is free, and what may not be taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deploy_cases import offer, planned, problem, worker

from formulations.deployment.problem import DeployProblem
from planner.errors import DescriptionError

L4 = "NVIDIA-L4"


def node(name: str, gpus: int = 4, product: str = L4, **spec: Any) -> dict[str, Any]:
    """A node as kubectl prints it."""
    labels = {"nvidia.com/gpu.product": product, "topology.kubernetes.io/zone": spec.pop("zone", "a")}
    labels |= spec.pop("labels", {})
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
        "status": {
            "allocatable": {"cpu": "32", "memory": "64Gi", "pods": "110", "nvidia.com/gpu": str(gpus)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, on: str | None, gpus: int = 1, cpu: str = "1", **metadata: Any) -> dict[str, Any]:
    """A pod as kubectl prints it."""
    requests = {"cpu": cpu, "memory": "1Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "spec": {"nodeName": on, "containers": [{"name": "c", "resources": {"requests": requests}}]},
        "status": {"phase": "Running" if on else "Pending"},
    }


def cluster(folder: Path, *objects: dict[str, Any], rate: float = 5, **more: Any) -> DeployProblem:
    """One service with workers of one GPU and 5 requests/s on such a cluster; single GPUs are rented at 1 USD/h."""
    (folder / "nodes.json").write_text(json.dumps({"kind": "List", "items": list(objects)}))
    found = more.pop("offers", [offer("single", 1)])
    return problem(folder, {"m": rate}, [worker("w", 5)], found, nodes="nodes.json", **more)


def free(instance: DeployProblem) -> dict[str, int]:
    """Free GPUs by standing node."""
    return {node.name: len(node.devices) for kind in instance.standing for node in kind.nodes}


def test_what_runs_is_not_free(tmp_path: Path) -> None:
    instance = cluster(tmp_path, node("a"), node("b"), node("c"), pod("x", "a", 3), pod("y", "b", 4))
    assert free(instance) == {"a": 1, "c": 4}
    assert {kind.offer.name for kind in instance.standing} == {"l4-1-free-a", "l4-4-free-a"}
    assert any("1 nodes left out: no GPU is free" in one for one in instance.fleet.assumptions)
    cost, plan = planned(instance)
    assert cost == 0
    assert {one.node for one in plan.pods} <= {"a", "c"}


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"unschedulable": True}, "cordoned"),
        ({"taints": [{"key": "team", "value": "x", "effect": "NoSchedule"}]}, "do not tolerate"),
        ({"labels": {"nvidia.com/gpu.replicas": "4"}}, "shared by time"),
    ],
)
def test_nodes_that_take_no_worker(tmp_path: Path, spec: dict[str, Any], why: str) -> None:
    instance = cluster(tmp_path, node("a"), node("b", **spec))
    assert free(instance) == {"a": 4}
    assert any(why in one for one in instance.fleet.assumptions), instance.fleet.assumptions


def test_taints_of_the_gpu_are_tolerated_and_others_where_told(tmp_path: Path) -> None:
    """As the API server admits pods that ask for the resource."""
    own = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    team = {"key": "team", "value": "x", "effect": "NoSchedule"}
    assert free(cluster(tmp_path, node("a", taints=[own]))) == {"a": 4}
    told = cluster(tmp_path, node("a", taints=[own, team]), tolerations=[{"key": "team", "operator": "Exists"}])
    assert free(told) == {"a": 4}


def test_other_requests_limit_the_gpus(tmp_path: Path) -> None:
    """32 CPUs, 10 of them taken: at 8 a GPU there is room for 2 of 4."""
    objects = node("a"), pod("x", "a", 0, cpu="10")
    assert free(cluster(tmp_path, *objects, requests_per_gpu={"cpu": 8})) == {"a": 2}
    assert free(cluster(tmp_path, *objects, requests_per_gpu={"cpu": 4})) == {"a": 4}


def test_pods_of_the_deployment_itself_may_move(tmp_path: Path) -> None:
    """Known by their label; others of the same shape count as running."""
    mine = pod("m-1", "a", 4, labels={"gpuplan/deployment": "case"})
    assert free(cluster(tmp_path, node("a"), mine)) == {"a": 4}
    with pytest.raises(DescriptionError, match="no GPU is free"):
        cluster(tmp_path, node("a"), pod("m-1", "a", 4), offers=[])


def test_pods_may_come_from_a_file_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "pods.json").write_text(json.dumps({"kind": "List", "items": [pod("x", "a", 2), pod("p", None)]}))
    instance = cluster(tmp_path, node("a"), pods="pods.json")
    assert free(instance) == {"a": 2}
    assert any("1 pending pods are not placed" in one for one in instance.fleet.assumptions)


def test_an_unknown_gpu_is_told_and_can_be_named(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="`gpu_labels` says it"):
        cluster(tmp_path, node("a", product="Frobnicator-9"))
    named = cluster(tmp_path, node("a", product="Frobnicator-9"), gpu_labels={"Frobnicator-9": "l4"})
    assert free(named) == {"a": 4}


def test_an_inventory_without_gpus(tmp_path: Path) -> None:
    bare = node("a", gpus=0)
    with pytest.raises(DescriptionError, match="no node has a free GPU"):
        cluster(tmp_path, bare, offers=[])
    # With something to rent it is no mistake.
    assert planned(cluster(tmp_path, bare))[0] == pytest.approx(1)
