"""Manifests of a deployment: valid by their schemas, as many workers on each node as planned, started as planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from deployed import MOE, PODS, SMALL, WIDE, WORKERS, deployed, kind, pod
from ruamel.yaml import YAML
from test_kube_manifests import valid
from test_lws import argv, known_flags, validated
from test_serving_launch import TABLES
from tiny_plan import ROWS, placement

from planner.deploy_plan import DeployedNodes
from planner.errors import ExportError
from planner.kubernetes.names import label_value
from planner.parallel_plan import Served
from planner.plan import DeployDocument
from planner.writers import export

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
#: 16 GPUs on the two nodes of `wide`.
TWO_NODES: dict[str, Any] = {
    "workers": (*WORKERS, kind("moe", WIDE, nodes=2)),
    "nodes": (
        DeployedNodes(offer="wide", count=2, device="h100_sxm", gpus=8, usd_per_hour=20, names=("wide-1", "wide-2")),
        DeployedNodes(offer="big", count=1, device="h100_sxm", gpus=8, usd_per_hour=10, names=("big-1",)),
        DeployedNodes(node="stands", count=1, device="h100_sxm", gpus=2, usd_per_hour=0, names=("host",)),
    ),
    "pods": (
        *PODS,
        pod("moe-2-0", "moe", WIDE, "wide-1", tuple(range(8)), 0, 2),
        pod("moe-2-1", "moe", WIDE, "wide-2", tuple(range(8)), 1, 2),
    ),
}


def exported(folder: Path, document: DeployDocument) -> tuple[str, list[dict[str, Any]]]:
    export(document, "k8s", str(folder / "all.yaml"))
    text = (folder / "all.yaml").read_text()
    return text, list(YAML(typ="safe").load_all(text))


def of_kind(objects: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == name]


def node_of(spec: dict[str, Any]) -> tuple[str, str]:
    """The label and its value that pin a pod."""
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return term["matchExpressions"][0]["key"], *term["matchExpressions"][0]["values"]


def test_each_node_gets_what_is_planned_for_it(tmp_path: Path) -> None:
    """Two small workers on `host`; one small, one pair and the experts on big-1."""
    text, objects = exported(tmp_path, deployed())
    assert [one["kind"] for one in objects] == ["ConfigMap", *["Service"] * 3, *["Deployment"] * 4]
    for one in objects:
        valid(one)
    found = {}
    for one in of_kind(objects, "Deployment"):
        labels = one["spec"]["template"]["metadata"]["labels"]
        found[labels["gpuplan/worker"], *node_of(one["spec"]["template"]["spec"])] = one["spec"]["replicas"]
    assert found == {
        (SMALL.name, "kubernetes.io/hostname", "host.internal"): 2,
        (SMALL.name, "gpuplan/node", "big-1"): 1,
        ("both-tp2-batch64", "gpuplan/node", "big-1"): 1,
        (MOE.name, "gpuplan/node", "big-1"): 1,
    }
    assert "kubectl label node NODE gpuplan/node=big-1   # of big: 8 x h100_sxm" in text
    assert "requests of 4000/200 tokens: 50.0% to chat-both-tp1-batch32" in text


def test_pods_have_the_label_requests_and_tolerations(tmp_path: Path) -> None:
    _, objects = exported(tmp_path, deployed())
    (pair,) = (one for one in of_kind(objects, "Deployment") if "tp2" in json.dumps(one["metadata"]))
    template = pair["spec"]["template"]
    assert template["metadata"]["labels"]["gpuplan/deployment"] == label_value("Tiny Deployment")
    spec = template["spec"]
    assert spec["tolerations"][0] == {"key": "nvidia.com/gpu", "operator": "Exists"}
    assert spec["tolerations"][1]["key"] == "team"
    # Of two GPUs: twice what one takes; extended resources are limits.
    resources = spec["containers"][0]["resources"]
    assert resources == {
        "limits": {"nvidia.com/gpu": "2", "rdma/hca": "2"},
        "requests": {"cpu": "3000m", "memory": "200Gi"},
    }
    product = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert product[0]["matchExpressions"][1]["key"] == "nvidia.com/gpu.product"


def test_every_service_chooses_its_workers_alone(tmp_path: Path) -> None:
    _, objects = exported(tmp_path, deployed(**TWO_NODES))
    pods = []
    for one in objects:
        if one["kind"] == "Deployment":
            pods.append(one["spec"]["template"]["metadata"]["labels"])
        elif one["kind"] == "LeaderWorkerSet":
            # What LeaderWorkerSet adds to its pods.
            leader = one["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["metadata"]["labels"]
            pods += [{**leader, "leaderworkerset.sigs.k8s.io/worker-index": str(i)} for i in range(2)]
    for service in of_kind(objects, "Service"):
        chosen = [one for one in pods if service["spec"]["selector"].items() <= one.items()]
        assert {one["gpuplan/worker"] for one in chosen} == {service["metadata"]["labels"]["gpuplan/worker"]}
        assert all(one.get("leaderworkerset.sigs.k8s.io/worker-index", "0") == "0" for one in chosen)
    for one in of_kind(objects, "Deployment"):
        chosen = [labels for labels in pods if one["spec"]["selector"]["matchLabels"].items() <= labels.items()]
        assert chosen == [one["spec"]["template"]["metadata"]["labels"]]


def test_a_worker_of_two_nodes_is_a_group(tmp_path: Path, shared_data: Path) -> None:
    text, objects = exported(tmp_path, deployed(**TWO_NODES))
    (group,) = of_kind(objects, "LeaderWorkerSet")
    assert validated([group], shared_data) == ["LeaderWorkerSet"]
    assert group["spec"]["replicas"] == 1
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    for part in ("leaderTemplate", "workerTemplate"):
        spec = template[part]["spec"]
        assert "nodeSelector" not in spec
        assert node_of(spec) == ("gpuplan/node", "wide-1", "wide-2")
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert "need LeaderWorkerSet v1" in text


def test_engines_know_every_flag_and_sglang_gets_its_map(tmp_path: Path, shared_data: Path) -> None:
    _, objects = exported(tmp_path, deployed())
    for one in of_kind(objects, "Deployment"):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        to = container["name"]
        flags = known_flags(argv(container, tmp_path), to, shared_data / TABLES[to])
        if to == "sglang":
            assert flags["--init-expert-location"] == "/etc/gpuplan/experts.json"
            assert flags["--ep-size"] == "2"
            (volume,) = (one for one in one["spec"]["template"]["spec"]["volumes"] if one["name"] == "experts")
        else:
            # The longest prompt and the longest answer of the service.
            assert flags["--max-model-len"] == "4300"
    (config,) = of_kind(objects, "ConfigMap")
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    loaded = json.loads(config["data"]["experts.json"])["physical_to_logical_map"]
    assert [loaded[1], loaded[3]] == ROWS


@pytest.mark.parametrize(("backend", "file"), [("sglang", "json"), ("trtllm", "yaml"), ("vllm", None)])
def test_a_folder_also_gets_maps_or_the_reason(tmp_path: Path, backend: Any, file: str | None) -> None:
    served = {"chat": Served(model="org/chat", backend="vllm"), "moe": Served(model="m/moe", backend=backend)}
    export(deployed(served=served), "k8s", str(tmp_path))
    text = (tmp_path / "k8s.yaml").read_text()
    found = {path.name for path in tmp_path.glob("experts-*")} - {f"experts-moe-{MOE.name}.flags.txt"}
    assert found == ({f"experts-moe-{MOE.name}.{file}"} if file else set())
    assert ("vLLM 0.33 reads no expert map" in text) == (file is None)


def test_what_cannot_be_expressed_is_refused(tmp_path: Path) -> None:
    table = (WORKERS[0].model_copy(update={"type": None}), *WORKERS[1:])
    odd = deployed().plan
    assert odd is not None
    strange = odd.template.model_copy(update={"requests_per_gpu": {"cpu": "1e3"}})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"workers": table}, r"both-tp1-batch32 of chat.*from a table of workers; plan with `model`"),
        ({"served": {"chat": Served(model="org/chat", backend="vllm")}}, "of moe"),
        ({"served": {name: Served(model=name) for name in ("chat", "moe")}}, "chat: the plan names no engine"),
        (
            {**TWO_NODES, "served": {name: Served(model=name, backend="trtllm") for name in ("chat", "moe")}},
            "moe: .*srun or mpirun",
        ),
        ({"template": strange}, "no plain quantity"),
    ]
    for said, expected in cases:
        for to in ("k8s", "kubectl-sh"):
            with pytest.raises(ExportError, match=expected):
                export(deployed(**said), to, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_names_do_not_depend_on_the_rest_of_the_plan(tmp_path: Path) -> None:
    """The sets of the next plan that are like these go by the same names."""
    one, two = deployed(), deployed(**TWO_NODES)
    first, second = (
        {each["metadata"]["name"] for each in exported(tmp_path, plan)[1] if each["kind"] == "Deployment"}
        for plan in (one, two)
    )
    assert first == second


def test_labels_are_values_of_labels() -> None:
    assert label_value("h100_sxm-tp1.b2") == "h100_sxm-tp1.b2"
    odd = ["a b", "a\tb", "ä" * 80, "-x", "x" * 64, ""]
    made = [label_value(one) for one in odd]
    assert len(set(made)) == len(odd)
    assert all(len(one) <= 63 and one[0].isalnum() and one[-1].isalnum() for one in made)


def test_a_map_for_engines_that_load_none_is_told(tmp_path: Path) -> None:
    served = {name: Served(model=name, backend="vllm") for name in ("chat", "moe")}
    text, objects = exported(tmp_path, deployed(served=served))
    assert not of_kind(objects, "ConfigMap")
    assert "vllm serve is not given the map" in text
    assert placement().num_gpus == MOE.num_gpus


@pytest.mark.parametrize(("to", "name"), [("k8s", "deploy_k8s.yaml"), ("kubectl-sh", "deploy_kubectl.sh")])
def test_golden_files(to: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    export(deployed(), to, name)
    assert Path(name).read_text() == (GOLDEN / name).read_text()
