"""Kueue objects of a fleet: valid by their schemas, quotas that add up to what is rented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from formulations.outcome import SolveOptions
from formulations.planning import plan
from planner.descriptions.fleet import FleetInstance
from planner.errors import ExportError
from planner.fleet_plan import FleetPlan
from planner.plan import FleetDocument, read_document
from planner.writers import export

SCHEMAS = {kind: f"crds/{kind.lower()}-kueue-v1beta2.json" for kind in ("ResourceFlavor", "ClusterQueue", "Topology")}


def solved(*offers: dict[str, Any]) -> FleetDocument:
    """Two models of 5 requests a second each: `chat` of 100 tokens, `code` of 200; a replica of 2 GPUs serves 5."""
    sizes = {"chat": 100, "code": 200}
    instance = FleetInstance.model_validate(
        {
            "name": "Two Models",
            "offers": offers,
            "models": [{"name": name} for name in sizes],
            "demand": [
                {"model": name, "input_tokens": size, "output_tokens": 100, "rate_per_s": 5.0}
                for name, size in sizes.items()
            ],
            "profiles": [
                {"offer": offer["name"], "model": name, "input_tokens": size, "output_tokens": 100,
                 "max_rate_per_s": 5.0, "gpus": 2}
                for offer in offers for name, size in sizes.items()
            ],
        }
    )  # fmt: skip
    document = plan(instance, options=SolveOptions(time_limit_s=10))
    assert isinstance(document, FleetDocument)
    return document


def kueue(document: FleetDocument, path: Path, data: Path) -> tuple[str, list[dict[str, Any]]]:
    export(document, "kueue", str(path))
    found = list(YAML(typ="safe").load_all(path.read_text()))
    for one in found:
        schema = json.loads((data / SCHEMAS[one["kind"]]).read_text())
        jsonschema.Draft202012Validator(schema).validate(one)
        assert one["apiVersion"] == "kueue.x-k8s.io/v1beta2"
    return path.read_text(), found


def quotas(manifests: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        one["metadata"]["name"]: {
            flavor["name"]: flavor["resources"][0]["nominalQuota"]
            for group in one["spec"]["resourceGroups"]
            for flavor in group["flavors"]
        }
        for one in manifests
        if one["kind"] == "ClusterQueue"
    }


def test_quotas_add_up_to_the_fleet(tmp_path: Path, shared_data: Path) -> None:
    """One instance of 8 GPUs takes two replicas of 2: 2 GPUs a model, 4 are left."""
    document = solved({"name": "node", "device": "h100_sxm", "gpus": 8, "price_usd_per_hour": 20, "region": "us"})
    text, manifests = kueue(document, tmp_path / "kueue.yaml", shared_data)
    assert [one["kind"] for one in manifests] == ["Topology", "ResourceFlavor", *["ClusterQueue"] * 3]
    assert quotas(manifests) == {
        "two-models-chat": {"h100-sxm-us": 2},
        "two-models-code": {"h100-sxm-us": 2},
        "two-models-spare": {"h100-sxm-us": 4},
    }
    flavor = manifests[1]["spec"]
    assert flavor["nodeLabels"] == {
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "topology.kubernetes.io/region": "us",
    }
    assert flavor["topologyName"] == manifests[0]["metadata"]["name"] == "two-models"
    assert manifests[0]["spec"]["levels"] == [{"nodeLabel": "kubernetes.io/hostname"}]
    assert {one["spec"]["cohortName"] for one in manifests[2:]} == {"two-models"}
    assert "# command: gpuplan export PLAN --to kueue" in text
    assert document.instance.sha256 in text
    assert "CPU and memory are not planned" in text


def test_a_misspelt_key_is_found(tmp_path: Path, shared_data: Path) -> None:
    _, manifests = kueue(
        solved({"name": "a", "device": "l4", "gpus": 2, "price_usd_per_hour": 1}), tmp_path / "k.yaml", shared_data
    )
    schema = json.loads((shared_data / SCHEMAS["ClusterQueue"]).read_text())
    manifests[-1]["spec"]["cohort"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="cohort"):
        jsonschema.validate(manifests[-1], schema)


def test_zones_are_a_level_where_all_offers_have_one(tmp_path: Path, shared_data: Path) -> None:
    document = solved({"name": "a", "device": "l4", "gpus": 2, "price_usd_per_hour": 1, "zone": "us-a"})
    _, manifests = kueue(document, tmp_path / "k.yaml", shared_data)
    levels = [one["nodeLabel"] for one in manifests[0]["spec"]["levels"]]
    assert levels == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_offers_of_one_device_share_a_flavor(tmp_path: Path, shared_data: Path) -> None:
    offers = [
        {"name": "first", "device": "l4", "gpus": 2, "price_usd_per_hour": 1, "max_count": 1},
        {"name": "more", "device": "l4", "gpus": 2, "price_usd_per_hour": 2, "market": "spot", "availability": 1.0},
    ]
    text, manifests = kueue(solved(*offers), tmp_path / "k.yaml", shared_data)
    assert [one["metadata"]["name"] for one in manifests if one["kind"] == "ResourceFlavor"] == ["l4"]
    assert sum(count for queue in quotas(manifests).values() for count in queue.values()) == 4
    assert "some of it is spot" in text


def test_what_kueue_cannot_express(tmp_path: Path, shared_data: Path) -> None:
    two = [
        {"name": "a", "device": "mi300x", "gpus": 2, "price_usd_per_hour": 1, "max_count": 1},
        {"name": "b", "device": "mi325x", "gpus": 2, "price_usd_per_hour": 2},
    ]
    with pytest.raises(ExportError, match="no label is known that tells nodes of mi300x from those of mi325x"):
        export(solved(*two), "kueue", str(tmp_path / "k.yaml"))
    document = solved({"name": "a", "device": "mi300x", "gpus": 2, "price_usd_per_hour": 1})
    text, manifests = kueue(document, tmp_path / "k.yaml", shared_data)
    assert manifests[1]["spec"] == {}
    assert "no node label is known of mi300x" in text
    assert isinstance(document.plan, FleetPlan)
    old = document.model_copy(update={"plan": document.plan.model_copy(update={"offers": {}})})
    with pytest.raises(ExportError, match="does not say which GPUs a has; plan again"):
        export(old, "kueue", str(tmp_path / "old.yaml"))


def test_golden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = solved({"name": "node", "device": "h100_sxm", "gpus": 8, "price_usd_per_hour": 20, "region": "us"})
    instance = made.instance.model_copy(update={"sha256": "5ea1" * 16})
    export(made.model_copy(update={"gpuplan_version": "0.1.0", "instance": instance}), "kueue", "fleet_kueue.yaml")
    golden = Path(__file__).resolve().parents[2] / "golden" / "fleet_kueue.yaml"
    assert Path("fleet_kueue.yaml").read_text() == golden.read_text()


def test_a_deployment_has_a_queue_for_each_service(tmp_path: Path, shared_data: Path) -> None:
    """19 GPUs: 8 for reasoning, 10 for chat, 1 for titles."""
    kept = Path(__file__).resolve().parents[3] / "instances" / "deploy" / "demo.best.json"
    export(read_document(kept), "kueue", str(tmp_path / "quotas.yaml"))
    found = list(YAML(typ="safe").load_all((tmp_path / "quotas.yaml").read_text()))
    for one in found:
        schema = json.loads((shared_data / SCHEMAS[one["kind"]]).read_text())
        jsonschema.Draft202012Validator(schema).validate(one)
    assert quotas(found) == {
        "demo-reasoning": {"h200-sxm": 8},
        "demo-chat": {"h100-sxm": 10},
        "demo-titles": {"h100-sxm": 1},
    }
