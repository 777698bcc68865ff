"""kubectl output is read as the scheduler counts it; hostile files are refused with every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.errors import DescriptionError
from planner.kubernetes.snapshot import Snapshot
from planner.readers.kubernetes import read_snapshot


def node(name: str = "n", **more: Any) -> dict[str, Any]:
    allocatable = {"cpu": "8", "memory": "32Gi", "pods": "110", "nvidia.com/gpu": "2"}
    status = {"allocatable": allocatable, "capacity": {"cpu": "9"}, **more.pop("status", {})}
    return {"kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}}, "status": status, "spec": {}, **more}


def pod(name: str = "p", containers: Any = None, **spec: Any) -> dict[str, Any]:
    main = containers or [{"name": "main", "resources": {"requests": {"cpu": "1"}}}]
    return {"kind": "Pod", "metadata": {"name": name, "namespace": "ns"}, "spec": {"containers": main, **spec}}


def read(tmp_path: Path, *objects: Any) -> Snapshot:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"kind": "List", "items": list(objects)}))
    return read_snapshot([path])


def container(cpu: str, **more: Any) -> dict[str, Any]:
    return {"name": f"c{cpu}", "resources": {"requests": {"cpu": cpu}}, **more}


def test_allocatable_not_capacity(tmp_path: Path) -> None:
    one = read(tmp_path, node()).nodes[0]
    assert (one.allocatable["cpu"], one.allocatable["memory"], one.gpus) == (8000, 32 * 2**30, 2)
    assert "nvidia.com/gpu" not in one.allocatable
    assert one.labels["kubernetes.io/hostname"] == "n"


def test_init_containers_sidecars_and_overhead(tmp_path: Path) -> None:
    """Containers 1 + 2 = 3 and a sidecar of 1 make 4. Before it an init container of 3, after it one of 3.5: with the
    sidecar 4.5, the largest. Overhead 0.25 on top: 4.75."""
    inits = [container("3"), container("1", restartPolicy="Always"), container("3500m")]
    found = read(
        tmp_path, pod(containers=[container("1"), container("2")], initContainers=inits, overhead={"cpu": "250m"})
    )
    assert found.pods[0].requests == {"cpu": 4750, "pods": 1}


def test_pod_level_requests_stand_in_place_and_limits_stand_in(tmp_path: Path) -> None:
    main = [{"name": "main", "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "9", "memory": "1Gi"}}}]
    found = read(tmp_path, pod("a", main), pod("b", main, resources={"requests": {"cpu": "3"}})).pods
    assert found[0].requests == {"cpu": 1000, "memory": 2**30, "pods": 1}
    assert found[1].requests == {"cpu": 3000, "memory": 2**30, "pods": 1}


def test_a_resize_under_way_counts_the_larger_size(tmp_path: Path) -> None:
    running = pod(nodeName="n")
    running["status"] = {"containerStatuses": [{"name": "main", "allocatedResources": {"cpu": "2"}}]}
    assert read(tmp_path, node(), running).pods[0].requests["cpu"] == 2000


def test_pods_that_ended_are_left_out_and_those_that_end_stay(tmp_path: Path) -> None:
    done, ending = pod("done", nodeName="n"), pod("ending", nodeName="n")
    done["status"] = {"phase": "Succeeded"}
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    daemon = pod("daemon", nodeName="n")
    daemon["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "controller": True}]
    mirror = pod("mirror", nodeName="n")
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    found = read(tmp_path, node(), done, ending, daemon, mirror, pod("free", nodeName="n")).pods
    assert {one.name: one.pinned for one in found} == {
        "ns/ending": True, "ns/daemon": True, "ns/mirror": True, "ns/free": False,
    }  # fmt: skip


def test_gpus_by_count_share_and_model(tmp_path: Path) -> None:
    whole = [{"name": "m", "resources": {"limits": {"nvidia.com/gpu": 2}}}]
    share, fraction = pod("share"), pod("fraction")
    share["metadata"]["annotations"] = {
        "alibabacloud.com/gpu-milli": "460",
        "alibabacloud.com/gpu-count": "1",
        "alibabacloud.com/gpu-card-model": "T4|A10",
    }
    fraction["metadata"]["annotations"] = {"gpu-fraction": "0.25"}
    found = {one.name: one for one in read(tmp_path, pod("whole", whole), share, fraction).pods}
    assert (found["ns/whole"].gpus, found["ns/whole"].gpu_milli) == (2, 1000)
    assert (found["ns/share"].gpus, found["ns/share"].gpu_milli) == (1, 460)
    assert found["ns/share"].gpu_models == ("A10", "T4")
    assert (found["ns/fraction"].gpus, found["ns/fraction"].gpu_milli) == (1, 250)


def test_nodes_that_take_no_pods(tmp_path: Path) -> None:
    cordoned = node("cordoned", spec={"unschedulable": True})
    broken = node("broken", status={"conditions": [{"type": "Ready", "status": "Unknown"}]})
    assert [(one.accepts, one.reason) for one in read(tmp_path, node(), cordoned, broken).nodes] == [
        (True, ""), (False, "is cordoned"), (False, "is not ready"),
    ]  # fmt: skip


def test_priorities_gates_gangs_and_budgets(tmp_path: Path) -> None:
    classes = [
        {"kind": "PriorityClass", "metadata": {"name": "high"}, "value": 100},
        {"kind": "PriorityClass", "metadata": {"name": "usual"}, "value": 7, "globalDefault": True},
    ]
    group = {"kind": "PodGroup", "metadata": {"name": "g", "namespace": "ns"}, "spec": {"minMember": 3}}
    budget = {
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}},
        "status": {"disruptionsAllowed": 2},
    }
    gated = pod("gated", schedulingGates=[{"name": "quota"}], schedulingGroup={"podGroupName": "g"})
    found = read(
        tmp_path, *classes, group, budget, gated, pod("high", priorityClassName="high"), pod("set", priority=5)
    )
    assert {one.name: one.priority for one in found.pods} == {"ns/gated": 7, "ns/high": 100, "ns/set": 5}
    assert found.pods[0].gated == ("quota",)
    assert found.pods[0].gang == "ns/g"
    assert (found.gangs[0].name, found.gangs[0].least) == ("ns/g", 3)
    assert found.budgets[0].allowed == 2


def test_what_is_not_modelled_is_named(tmp_path: Path) -> None:
    soft = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}}
    found = read(tmp_path, pod(affinity=soft, resourceClaims=[{"name": "x"}]), {"kind": "Service", "metadata": {}})
    assert any("preferred podAffinity" in one for one in found.not_modelled)
    assert any("DRA" in one for one in found.not_modelled)
    assert any("Service" in one for one in found.not_modelled)


def test_yaml_lists_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: NodeList\nitems:\n- metadata: {name: n}\n"
                                     "  status: {allocatable: {cpu: 1, pods: 10}}\n")  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(pod()))
    (tmp_path / "notes.txt").write_text("not read")
    found = read_snapshot([tmp_path])
    assert (len(found.nodes), len(found.pods)) == (1, 1)


def test_every_mistake_is_told_at_its_place(tmp_path: Path) -> None:
    bad = [
        pod("a", [{"name": "m", "resources": {"requests": {"cpu": "K", "memory": "-1", "x/y": "NaN"}}}]),
        pod(
            "b",
            affinity={"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}},
        ),
        pod("c", nodeSelector=["x"]),
        pod("d", tolerations=[{"operator": "Sometimes"}]),
        {"kind": "Node", "metadata": {"name": "n"}},
        {"kind": "Pod", "spec": "none"},
    ]
    with pytest.raises(DescriptionError) as raised:
        read(tmp_path, *bad)
    text = str(raised.value)
    for part in ("requests.cpu", "requests.memory", "x/y", "topologyKey", "nodeSelector", "Sometimes", "allocatable"):
        assert part in text


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", '"x"', '{"kind": "List", "items": [3]}', '{"kind": "List", "items": {"a": 1}}', '{"a": NaN}'],
)
def test_files_that_are_no_objects(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DescriptionError):
        read_snapshot([path])


def test_names_twice(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match="two nodes are named 'n'"):
        read(tmp_path, node(), node())


def test_the_api_fixtures_of_every_field_do_not_crash(shared_data: Path) -> None:
    """Placeholder values are mistakes, but findings all the same."""
    with pytest.raises(DescriptionError, match="effectValue"):
        read_snapshot([shared_data / "pods" / "k8s"])


def test_documents_of_one_file(tmp_path: Path) -> None:
    """Manifests apart by ---, empty ones among them; mistakes have the line that they have in the file."""
    file = tmp_path / "all.yaml"
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nstatus: {allocatable: {cpu: 4}}\n"
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: []}\n"
    file.write_text(f"# all\n{node}---\n---\n{pod}", encoding="utf-8")
    found = read_snapshot([file])
    assert [one.name for one in found.nodes] == ["n"]
    assert [one.name for one in found.pods] == ["default/p"]
    file.write_text(f"{node}---\nkind: [", encoding="utf-8")
    with pytest.raises(DescriptionError, match=r"all.yaml:6:"):
        read_snapshot([file])
    file.write_text("---\n---\n", encoding="utf-8")
    with pytest.raises(DescriptionError):
        read_snapshot([file])


def test_objects_that_are_known_to_be_left_out(tmp_path: Path) -> None:
    """NUMA zones of nodes are named for what they are."""
    file = tmp_path / "numa.yaml"
    file.write_text("kind: NodeResourceTopology\nmetadata: {name: n}\nzones: []\n", encoding="utf-8")
    (told,) = read_snapshot([file]).not_modelled
    assert told.startswith("NUMA nodes (NodeResourceTopology)")
