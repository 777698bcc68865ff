"""Deployments by Kubernetes' own schemas, Dynamo's graph and vLLM's file by the engines' flag tables."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_lws import argv, known_flags
from test_serving_launch import TABLES, document, worker
from tiny_plan import parsed_by_table

from planner.errors import ExportError
from planner.parallel_plan import Workers
from planner.writers import export
from planner.writers.common import plan_sha256

PREFILL, DECODE = worker("prefill", tp=2, batch=4, count=3), worker("decode", tp=4, batch=64, count=2)


def exported(folder: Path, to: str, *workers: Workers, **said: Any) -> tuple[str, list[dict[str, Any]]]:
    export(document(*workers, **{"backend": "vllm", **said}), to, str(folder / "plan.yaml"))
    text = (folder / "plan.yaml").read_text()
    return text, list(YAML(typ="safe").load_all(text))


def valid(manifest: dict[str, Any]) -> None:
    """By the schemas of Kubernetes 1.37, unknown keys refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate = pytest.importorskip("kubernetes_validate")
        validate.validate(manifest, "1.37", strict=True)


@pytest.mark.parametrize("to", sorted(TABLES))
def test_a_deployment_and_a_service_for_each_kind(tmp_path: Path, shared_data: Path, to: str) -> None:
    one, two = worker(tp=2, batch=64, count=3), worker(tp=4, batch=128)
    text, manifests = exported(tmp_path, "k8s", one, two, backend=to)
    assert [each["kind"] for each in manifests] == ["Deployment", "Service"] * 2
    for manifest in manifests:
        valid(manifest)
    deployment, service = manifests[:2]
    assert deployment["spec"]["replicas"] == 3
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert manifests[2]["spec"]["selector"] != deployment["spec"]["selector"]
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (match,) = terms["nodeSelectorTerms"][0]["matchExpressions"]
    assert (match["key"], match["operator"]) == ("nvidia.com/gpu.product", "In")
    assert "NVIDIA-H100-80GB-HBM3" in match["values"]
    container = pod["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert known_flags(argv(container, tmp_path), to, shared_data / TABLES[to])["--port"] == "8000"
    said = document(one, two, backend=to)
    assert text.startswith(
        f"# made by gpuplan 0.1.0, plan sha256 {plan_sha256(said)}\n# instance tiny rm -rf /, sha256 5"
    )
    assert "# command: gpuplan export PLAN --to k8s" in text


def test_the_schemas_find_a_misspelt_key(tmp_path: Path) -> None:
    """So that the test above can fail."""
    validate = pytest.importorskip("kubernetes_validate")
    _, manifests = exported(tmp_path, "k8s", worker(tp=2))
    manifests[0]["spec"]["template"]["spec"]["affinities"] = {}
    with pytest.raises(validate.ValidationError):
        validate.validate(manifests[0], "1.37", strict=True)


def test_a_device_without_a_label_is_told(tmp_path: Path) -> None:
    one = worker(tp=2).model_copy(update={"device": "mi300x"})
    text, manifests = exported(tmp_path, "k8s", one)
    valid(manifests[0])
    pod = manifests[0]["spec"]["template"]["spec"]
    assert "affinity" not in pod
    assert pod["containers"][0]["resources"]["limits"] == {"amd.com/gpu": "2"}
    assert "no node label is known of mi300x" in text


def test_what_a_deployment_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a pod of a Deployment is one node, and this worker has 2.*lws"):
        exported(tmp_path, "k8s", worker(dp=16, ep=16))
    with pytest.raises(ExportError, match="names no engine"):
        exported(tmp_path, "k8s", worker(tp=2), backend=None)
    own = worker(tp=2).model_copy(update={"device": "my gpu"})
    with pytest.raises(ExportError, match="no Kubernetes resource is known of my gpu"):
        exported(tmp_path, "k8s", own)
    assert not (tmp_path / "plan.yaml").exists()


#: Fields of a service in Dynamo's v1alpha1 (the operator's Go types).
SERVICE = {"componentType", "subComponentType", "replicas", "resources", "multinode", "extraPodSpec"}
OWN_FLAGS = {"vllm": ("--disaggregation-mode",), "sglang": ()}
#: How each engine's table calls the model.
NAMED = {"vllm": "--model", "sglang": "--model-path"}


@pytest.mark.parametrize("to", sorted(NAMED))
def test_dynamo_graph_of_pairs(tmp_path: Path, shared_data: Path, to: str) -> None:
    text, (graph,) = exported(tmp_path, "dynamo", PREFILL, DECODE, backend=to)
    assert (graph["apiVersion"], graph["kind"]) == ("nvidia.com/v1alpha1", "DynamoGraphDeployment")
    assert set(graph["spec"]) == {"backendFramework", "services"}
    services = graph["spec"]["services"]
    assert services.pop("Frontend")["componentType"] == "frontend"
    assert [(one["subComponentType"], one["replicas"]) for one in services.values()] == [("prefill", 3), ("decode", 2)]
    assert [one["resources"]["limits"]["gpu"] for one in services.values()] == ["2", "4"]
    for role, one in zip(("prefill", "decode"), services.values(), strict=True):
        assert set(one) <= SERVICE
        main = one["extraPodSpec"]["mainContainer"]
        assert main["image"].endswith("-runtime:1.3.1")
        assert main["command"] == ["python3", "-m", f"dynamo.{to}"]
        args = list(main["args"])
        if to == "vllm":
            place = args.index("--disaggregation-mode")
            assert args[place + 1] == role
            del args[place : place + 2]
        flags = parsed_by_table(args, shared_data / TABLES[to])
        assert flags[NAMED[to]] == "the model"
        if to == "sglang":
            assert flags["--disaggregation-mode"] == role
    assert "Dynamo's operator of 1.3.1" in text
    assert "--pd-disaggregation" not in text


def test_dynamo_starts_sglang_on_two_nodes(tmp_path: Path, shared_data: Path) -> None:
    """The operator adds the flags of the nodes by itself."""
    _, (graph,) = exported(tmp_path, "dynamo", worker(dp=16, ep=16, batch=64), backend="sglang")
    (one,) = (each for name, each in graph["spec"]["services"].items() if name != "Frontend")
    assert one["multinode"] == {"nodeCount": 2}
    assert one["resources"]["limits"]["gpu"] == "8"
    assert "subComponentType" not in one
    flags = parsed_by_table(one["extraPodSpec"]["mainContainer"]["args"], shared_data / TABLES["sglang"])
    assert not {"--nnodes", "--node-rank", "--dist-init-addr"} & flags.keys()
    assert flags["--tp-size"] == "16"


def test_what_dynamo_cannot_do(tmp_path: Path) -> None:
    mixed = worker(tp=8, batch=16)
    with pytest.raises(ExportError, match="mixed workers beside prefill and decode"):
        exported(tmp_path, "dynamo", PREFILL, DECODE, mixed)
    with pytest.raises(ExportError, match="TensorRT-LLM"):
        exported(tmp_path, "dynamo", mixed, backend="trtllm")
    with pytest.raises(ExportError, match="on 2 nodes is not known"):
        exported(tmp_path, "dynamo", worker(dp=16, ep=16))
    with pytest.raises(ExportError, match="resource `gpu` is NVIDIA's"):
        exported(tmp_path, "dynamo", mixed.model_copy(update={"device": "mi300x"}))
    with pytest.raises(ExportError, match=r"set MODEL to a checkpoint of the model in int4 first"):
        exported(tmp_path, "dynamo", mixed, quantization="int4")
    assert not (tmp_path / "plan.yaml").exists()


def test_vllm_reads_its_file(tmp_path: Path, shared_data: Path) -> None:
    """Every key is a flag of the table, with a value that the flag takes."""
    one = worker(tp=2, dp=4, ep=8, batch=64, redundant=8)
    text, (config,) = exported(tmp_path, "vllm-config", one, kv_cache_dtype="fp8")
    assert config.pop("model") == "the model"
    rows = [(f"--{key}", *([] if value is True else [str(value)])) for key, value in config.items()]
    flags = parsed_by_table([word for row in rows for word in row], shared_data / TABLES["vllm"])
    assert flags["--tensor-parallel-size"] == "2"
    assert flags["--enable-expert-parallel"] is None
    assert flags["--eplb-config"] == '{"num_redundant_experts": 8}'
    assert config["max-num-seqs"] == 16
    assert "# start 1 of these: vllm serve --config FILE" in text


def test_a_folder_gets_a_file_for_each_kind(tmp_path: Path) -> None:
    plan = document(PREFILL, DECODE, backend="vllm")
    with pytest.raises(ExportError, match=r"2 kinds of workers.*give a folder"):
        export(plan, "vllm-config", str(tmp_path / "one.yaml"))
    export(plan, "vllm-config", str(tmp_path))
    found = {path.stem: YAML(typ="safe").load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    assert {name.split("-")[0] for name in found} == {"prefill", "decode"}
    assert all('"kv_role": "kv_both"' in one["kv-transfer-config"] for one in found.values())


def test_what_vllms_file_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="flags of its own"):
        exported(tmp_path, "vllm-config", worker(dp=16, ep=16))
    with pytest.raises(ExportError, match="made for sglang"):
        exported(tmp_path, "vllm-config", worker(tp=2), backend="sglang")
    with pytest.raises(ExportError, match="set MODEL to the weights"):
        exported(tmp_path, "vllm-config", worker(tp=2), model="models/org--name.json")


def test_pods_do_not_see_the_planners_folders(tmp_path: Path) -> None:
    """A config.json beside the plan is no weights for a pod: MODEL has to be set, or the plan names a checkpoint."""
    one, model = worker(tp=2), "there/config.json"
    for to, kind in (("k8s", "Deployment"), ("lws", "LeaderWorkerSet")):
        text, found = exported(tmp_path, to, one, model=model)
        assert "set the variable MODEL of every container" in text
        assert "set MODEL, or plan with checkpoint (--checkpoint): pods do not see there/config.json" in text
        assert '"MODEL"' in json.dumps([each for each in found if each["kind"] == kind])
        text, _ = exported(tmp_path, to, one, model=model, checkpoint="org/name")
        assert "MODEL=${MODEL:-org/name}" in text
        assert "there" not in text
    with pytest.raises(ExportError, match=r"pods do not see there/config.json"):
        exported(tmp_path, "dynamo", one, model=model)
    _, (graph,) = exported(tmp_path, "dynamo", one, model=model, checkpoint="org/name")
    assert "org/name" in json.dumps(graph)


GOLDEN = Path(__file__).resolve().parents[2] / "golden"


@pytest.mark.parametrize(
    ("to", "workers"),
    [
        ("k8s", [worker(tp=2, batch=64, count=3)]),
        ("dynamo", [PREFILL, DECODE]),
        ("vllm-config", [worker(tp=8, batch=64)]),
    ],
)
def test_golden_files(to: str, workers: list[Workers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"serving_{to.replace('-', '_')}.yaml"
    export(document(*workers, backend="vllm"), to, name)
    assert Path(name).read_text() == (GOLDEN / name).read_text()
