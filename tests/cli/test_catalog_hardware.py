"""`gpuplan catalog devices`, `links` and `nodes`, and the schemas of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import Result

Invoke = Callable[..., Result]
LISTS = {"devices": 45, "links": 32, "nodes": 29}


@pytest.mark.parametrize(("kind", "least"), LISTS.items())
def test_lists(gpuplan: Invoke, kind: str, least: int) -> None:
    entries = json.loads(gpuplan("catalog", kind, "--json").stdout)
    assert len(entries) >= least
    for entry in entries:
        assert all(fact["source"] and fact["confidence"] for fact in entry["facts"].values())
    text = gpuplan("catalog", kind).stdout
    assert all(entry["name"] in text for entry in entries)
    assert "e+" not in text


def test_one_device_with_the_source_of_every_number(gpuplan: Invoke) -> None:
    told = json.loads(gpuplan("catalog", "devices", "H100-SXM5-80GB", "--json").stdout)
    assert told["name"] == "h100_sxm"
    assert told["flop_per_s"]["bf16"] == 989e12
    assert told["scale_up_bandwidth_bytes_per_s"] == 450e9
    assert told["facts"]["usable_memory_bytes"]["confidence"] == "measured"
    assert set(told["facts"]) >= {"memory_bytes", "flop_per_s.fp8", "power_w"}
    text = gpuplan("catalog", "devices", "h100").stdout
    for word in ("3,350 GB/s", "989 TFLOP/s", "700 W", "datasheet", "nvidia-smi", "NVIDIA-H100-80GB-HBM3"):
        assert word in text


def test_a_device_of_ones_own_is_shown_with_its_doubts(gpuplan: Invoke, folder: Path) -> None:
    (folder / "mine.yaml").write_text("{base: h100, name: mine, hbm_bandwidth_bytes_per_s: 3.35GB/s}\n")
    text = gpuplan("catalog", "devices", "mine.yaml").stdout
    assert "user" in text
    assert "check its unit" in text
    (note,) = json.loads(gpuplan("catalog", "devices", "mine.yaml", "--json").stdout)["notes"]
    assert "hbm_bandwidth_bytes_per_s of 3.35 GB/s" in note
    (folder / "bad.yaml").write_text("name: x\nmemory_bytes: much\n")
    result = gpuplan("catalog", "devices", "bad.yaml")
    assert result.exit_code == 7
    assert "bad.yaml:2:1: memory_bytes" in result.stderr


@pytest.mark.parametrize("kind", LISTS)
def test_an_unknown_name_is_refused_with_near_ones(gpuplan: Invoke, kind: str) -> None:
    name = {"devices": "h10_sxm", "links": "ib_nrd", "nodes": "p5.48xlrge"}[kind]
    result = gpuplan("catalog", kind, name)
    assert result.exit_code == 2
    assert "did you mean" in result.stderr


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("device", {"base": "h100", "power_w": "500W"}, {"name": "x"}),
        (
            "device",
            {"name": "x", "memory_bytes": 8e10, "hbm_bandwidth_bytes_per_s": 1, "flop_per_s": {"bf16": 1}},
            {"base": "h100", "power": 1},
        ),
        ("link", {"name": "x", "bandwidth_bytes_per_s": "400Gbit/s"}, {"name": "x"}),
        ("cluster", {"nodes": [{"device": "h100", "count": 2}], "network": {"link": "ib_ndr"}}, {"nodes": []}),
        ("cluster", {"nodes": [{"device": {"base": "h100", "name": "mine"}}]}, {"nodes": [{"device": 1}]}),
    ],
)
def test_schemas(gpuplan: Invoke, kind: str, good: Any, bad: Any) -> None:
    schema = json.loads(gpuplan("schema", kind).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, schema)
