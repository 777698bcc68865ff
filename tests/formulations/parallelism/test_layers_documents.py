"""Layers as files and commands: what is read, printed and refused, ways out, and documents there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layer_cases import answer, pool, two_sites

from formulations.planning import check_document, load_problem, plan
from planner import read_document
from planner.descriptions.layers import WindowsInstance
from planner.errors import DescriptionError
from planner.files import to_json, write_text

POOL: dict[str, Any] = {
    "problem": "parallel",
    "task": "layers",
    "name": "case",
    "model": {"num_layers": 10, "layer_bytes": "1GB"},
    "memory_share": 1,
    "devices": [
        {"name": "fast", "memory_bytes": "9GB", "layer_s": "100ms"},
        {"name": "slow", "memory_bytes": "9GB", "layer_s": "400ms"},
    ],
}
HOME: dict[str, Any] = {
    "problem": "parallel",
    "task": "windows",
    "name": "case",
    "num_layers": 10,
    "layer_bytes": "1GB",
    "devices": [
        {"name": "a", "ram_bytes": "8GB", "cpu_layer_s": 0.1, "disk_bytes_per_s": "1GB/s"},
        {"name": "b", "ram_bytes": "8GB", "cpu_layer_s": 0.2, "disk_bytes_per_s": "1GB/s"},
    ],
}


def written(folder: Path, base: dict[str, Any], **changes: Any) -> Path:
    path = folder / "case.json"
    path.write_text(json.dumps({**base, **changes}, indent=0))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DescriptionError) as refused:
        load_problem(path)
    return str(refused.value)


@pytest.mark.parametrize(("base", "name", "value"), [(POOL, "layers", -1.25), (HOME, "windows", 1.2)])
def test_a_document_there_and_back(tmp_path: Path, base: dict[str, Any], name: str, value: float) -> None:
    """8 + 2 layers take 0.8 s each; 8 x 0.1 + 2 x 0.2 s."""
    path = written(tmp_path, base)
    write_text(tmp_path / "plan.json", to_json(plan(path)))
    document = read_document(tmp_path / "plan.json")
    assert (document.problem, document.kind_name) == ("parallel", name)
    assert document.outcome.objective == pytest.approx(value)
    assert document.baseline is not None
    assert document.baseline.objective >= value * (1 - 1e-9 if value > 0 else 1 + 1e-9)
    assert check_document(document, load_problem(path)).feasible
    assert check_document(document, None).feasible
    other = written(tmp_path, HOME if base is POOL else POOL)
    assert check_document(document, load_problem(other)).violations[0].rule == "other_problem"


def test_a_model_and_devices_of_the_catalogue(tmp_path: Path) -> None:
    """80 layers of about 1.7 GB: 24 GB with a tenth left hold 12, and 8 x 12 layers hold the model."""
    path = tmp_path / "case.yaml"
    path.write_text(
        "problem: parallel\ntask: layers\nname: case\nmodel: meta-llama/Llama-3.3-70B-Instruct\nprecision: bf16\n"
        "devices: [{name: a10g, count: 8}]\n"
    )
    problem = load_problem(path)
    assert problem.num_layers == 80
    assert problem.needs.weight_bytes == pytest.approx(1.711e9, rel=1e-3)
    assert problem.cap[0, 0] in (11, 12, 13)
    assert any("roofline" in one for one in problem.assumptions)
    # 1.711 GB at 0.826 x 600 GB/s and 36 us: 3.49 ms.
    assert problem.layer_s[0] == pytest.approx(1.711e9 / (0.826 * 600e9) + 36e-6, rel=0.01)


def test_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    sites = {
        "names": ["here", "there"],
        "bandwidth_bytes_per_s": [[None, 1, 2], [0, None]],
        "latency_s": [[None, 1]],
    }
    text = refusal(written(tmp_path, POOL, batch=0, sites=sites))
    assert "batch: Input should be greater than 0" in text
    assert "sites.bandwidth_bytes_per_s.1.0" in text
    assert all(one.split(":")[1].isdigit() for one in text.splitlines())
    sites["bandwidth_bytes_per_s"] = [[None, 1, 2], [1, None]]
    text = refusal(written(tmp_path, POOL, sites=sites))
    assert "sites.bandwidth_bytes_per_s.0: has 3 entries for 2 sites" in text
    assert "sites.latency_s: has 1 rows for 2 sites" in text
    assert "devices.0.site: is required: one of here, there" in text


def test_links_and_sites_go_together(tmp_path: Path) -> None:
    sites = {"names": ["a", "b"], "bandwidth_bytes_per_s": [[3, 1], [None, None]], "latency_s": [[None, 1], [1, None]]}
    devices = [{**POOL["devices"][0], "site": "c"}, {**POOL["devices"][0], "site": "c"}]
    text = refusal(written(tmp_path, POOL, sites=sites, devices=devices))
    assert "entry 0 is the site itself" in text
    assert "b to a has a bandwidth or a latency, but not both" in text
    assert "devices.0.site: 'c' is none of the sites: a, b" in text
    assert "devices.1.name: 'fast' is there twice" in text


def test_unknown_models_devices_and_missing_times(tmp_path: Path) -> None:
    text = refusal(written(tmp_path, POOL, model="nobody/knows", devices=[{"name": "what"}], precision="fp3"))
    assert "nobody/knows" in text
    assert "or give memory_bytes and layer_s" in text
    assert "fp3" in refusal(written(tmp_path, POOL, model="Qwen/Qwen3-8B", precision="fp3"))
    text = refusal(written(tmp_path, POOL, devices=[{"name": "l40s"}], kv_tokens=1, batch=2))
    assert "devices.0.layer_s: is required for a model that is given as equal layers" in text
    assert "kv_tokens: one step carries 2 tokens" in text


def test_mistakes_of_a_ring(tmp_path: Path) -> None:
    devices = [{**HOME["devices"][0], "gpu_memory_bytes": 1}, HOME["devices"][0]]
    text = refusal(written(tmp_path, HOME, devices=devices, rounds=3, every_device=True))
    assert "rounds: 3 does not divide 10 layers" in text
    assert "devices.0.gpu_layer_s: is required with gpu_memory_bytes" in text
    assert "devices.1.name: 'a' is there twice" in text
    assert "task" in refusal(written(tmp_path, HOME, task="nap"))


def test_short_memory_says_how_much_and_what_would_do() -> None:
    """3 + 3 of 10 layers: 4 bytes short; 2 more of the larger kind would do, as would weights of 6 / 10."""
    found = answer(pool([("x", 1, 3, 0.1), ("y", 1, 4, 0.3)], 10))
    assert found.status == "infeasible"
    assert "hold 7 of 10 layers; memory is short by at least 3 B" in found.reasons[0]
    assert found.relaxations[0] == "add 1 x" or found.relaxations[0] == "add 1 y"
    assert "shrink the weights to" in found.relaxations[1]


def test_a_limit_says_at_what_it_would_hold() -> None:
    """Two stages of 0.2 s: a latency of 0.4 s is needed; raised in steps of a tenth from 0.3 s."""
    devices = [("x", 2, 2, 0.1)]
    found = answer(pool(devices, 4, max_latency_s=0.3))
    assert found.status == "infeasible"
    assert found.reasons == ("no pipeline passes a step in 300 ms",)
    assert any(one.startswith("raise max_latency_s to 4") for one in found.relaxations)
    caches = answer(pool(devices, 4, kv_tokens=2, batch=2))
    assert "caches have room for 1 steps" in caches.reasons[0]
    assert "raise kv_tokens 2.14 times" in caches.relaxations
    assert "lower batch to 1" in caches.relaxations
    wide = answer(pool([("x", 1, 3, 0.1, "a"), ("y", 1, 3, 0.1, "b")], 5, sites=two_sites(1.0, 9.0), max_latency_s=1.0))
    assert any("add 1" in one for one in wide.relaxations)


def test_without_time_the_rule_and_the_speed_of_all_devices_are_left() -> None:
    """A limit that is over before the first round: 4 + 3 layers by the rule, of 20 layers/s in all."""
    found = answer(pool([("d", 2, 4, 0.1)], 7), time_limit_s=1e-9)
    assert (found.status, found.stop) == ("feasible", "time_limit")
    assert found.objective is not None
    assert found.bound is not None
    assert found.objective.total == pytest.approx(-1 / 0.4)
    assert found.bound.value == pytest.approx(-20 / 7)
    # The rule makes nothing of a limit on latency, so then there is no plan, but no proof either.
    none = answer(pool([("d", 2, 4, 0.1)], 6, max_latency_s=0.3), time_limit_s=1e-9)
    assert (none.status, none.stop, none.plan) == ("unknown", "time_limit", None)


def test_more_devices_than_anything_has(tmp_path: Path) -> None:
    assert "more than 4,096 devices" in refusal(
        written(tmp_path, POOL, devices=[{**POOL["devices"][0], "count": 9999}])
    )


def test_a_ring_built_in_python() -> None:
    """No file is needed."""
    document = plan(WindowsInstance.model_validate(HOME, strict=False))
    assert document.outcome.status == "optimal"
