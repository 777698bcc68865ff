"""Expert maps: each engine's rules checked without our writers, flags against its own table, round trips."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tiny_plan import LAYERS, NO_REPLICAS, ROWS, document, flags_of, parsed_by_table, placement

from planner.errors import ExportError, OptionError
from planner.experts_plan import ExpertPlacement
from planner.readers.expert_placement import read_expert_placement
from planner.writers import export

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@st.composite
def placements(draw: st.DrawFn) -> ExpertPlacement:
    """Plans with distinct GPUs for the replicas of an expert: each slot number is dealt an expert in turn."""
    num_gpus, num_experts = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    per_gpu = draw(st.integers(-(-num_experts // num_gpus), num_experts))
    layers = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True).map(sorted))
    rows = []
    for _ in layers:
        order = draw(st.permutations(range(num_experts)))
        rows.append([order[slot % num_experts] for slot in range(num_gpus * per_gpu)])
    return placement(
        rows, layer_ids=tuple(layers), num_experts=num_experts, num_gpus=num_gpus,
        num_decoder_layers=draw(st.integers(layers[-1] + 1, 9)),
    )  # fmt: skip


@RELAXED
@given(plan=placements(), to=st.sampled_from(["sglang", "trtllm", "vllm-ascend"]))
def test_our_reader_gives_the_same_rows(tmp_path: Path, plan: ExpertPlacement, to: str) -> None:
    path = tmp_path / ("map.yaml" if to == "trtllm" else "map.json")
    export(document(plan), to, str(path))
    np.testing.assert_array_equal(read_expert_placement(path).rows(plan.layer_ids, plan.num_decoder_layers), plan.array)


@RELAXED
@given(plan=placements())
def test_sglang_accepts_the_map(tmp_path: Path, plan: ExpertPlacement) -> None:
    path = tmp_path / "map.json"
    export(document(plan), "sglang", str(path))
    value = json.loads(path.read_text())
    assert list(value) == ["physical_to_logical_map"]
    rows = value["physical_to_logical_map"]
    assert len(rows) == plan.num_decoder_layers
    flags = shlex.split(flags_of(tmp_path / "map.flags.txt"))
    given_flags = dict(zip(flags[::2], flags[1::2], strict=True))
    num_experts = len(plan.replicas[0])
    num_slots = num_experts + int(given_flags["--ep-num-redundant-experts"])
    assert num_slots % int(given_flags["--ep-size"]) == 0
    for row in rows:
        assert len(row) == num_slots
        assert all(type(expert) is int for expert in row)
        assert sorted(set(row)) == list(range(num_experts))


def test_dense_rows_are_the_engines_default(tmp_path: Path) -> None:
    export(document(placement()), "sglang", str(tmp_path / "map.json"))
    rows = json.loads((tmp_path / "map.json").read_text())["physical_to_logical_map"]
    assert rows == [[0, 1, 2, 3, 0, 1], ROWS[0], [0, 1, 2, 3, 0, 1], ROWS[1]]


@pytest.mark.parametrize("name", ["map.yaml", "map.pt", "map", "map.JSON", "a\nb.json"])
def test_sglang_reads_json_files_only(tmp_path: Path, name: str) -> None:
    with pytest.raises(OptionError, match=r"a file whose name ends in \.json"):
        export(document(placement()), "sglang", str(tmp_path / name))


@pytest.mark.parametrize("split", ["even", "lp"])
def test_sglang_flags(tmp_path: Path, shared_data: Path, split: str) -> None:
    path = tmp_path / "expert map.json"
    export(document(placement(split=split)), "sglang", str(path))
    text = flags_of(tmp_path / "expert map.flags.txt")
    assert parsed_by_table(shlex.split(text), shared_data / "engines" / "sglang-0.5.23-flags.json") == {
        "--ep-size": "2",
        "--ep-num-redundant-experts": "2",
        "--init-expert-location": str(path),
        "--ep-dispatch-algorithm": "lp" if split == "lp" else "static",
    }


@RELAXED
@given(plan=placements())
def test_tensorrt_llm_yaml(tmp_path: Path, plan: ExpertPlacement) -> None:
    path = tmp_path / "moe_load_balancer.yaml"
    export(document(plan), "trtllm", str(path))
    value = YAML(typ="safe", pure=True).load(path.read_text())
    assert value == {
        "num_slots": plan.num_slots,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip(plan.layer_ids, plan.array.tolist(), strict=True)),
    }


def test_tensorrt_llm_comments(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "my_balancer.yaml"
    export(document(placement()), "trtllm", str(path))
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments[2] == f"command: gpuplan export PLAN --to trtllm -o {path}"
    snippet = YAML(typ="safe", pure=True).load(comments[-1])
    assert snippet == {"moe_config": {"load_balancer": "./my_balancer.yaml"}}
    table = json.loads((shared_data / "engines" / "tensorrt-llm-serve-flags.json").read_text())
    known = {name for flag in table["flags"] for name in flag["flags"]}
    assert {word.rstrip(":") for word in comments[3].split() if word.startswith("--")} <= known
    loaded = YAML(typ="safe", pure=True).load(path.read_text())
    assert set(loaded) == set(table["expert_placement"]["keys"])


def test_vllm_ascend_structure(tmp_path: Path, shared_data: Path) -> None:
    path = tmp_path / "map.json"
    export(document(placement()), "vllm-ascend", str(path))
    value = json.loads(path.read_text())
    assert value["moe_layer_count"] == len(LAYERS)
    assert [layer["layer_id"] for layer in value["layer_list"]] == [0, 1]
    for layer, row in zip(value["layer_list"], ROWS, strict=True):
        assert layer["device_count"] == 2
        assert layer["device_list"] == [
            {"device_id": 0, "device_expert": row[:3]},
            {"device_id": 1, "device_expert": row[3:]},
        ]
    flags = shlex.split(flags_of(tmp_path / "map.flags.txt"))
    found = parsed_by_table(flags, shared_data / "engines" / "vllm-0.33.0-flags.json")
    assert list(found) == ["--enable-expert-parallel", "--additional-config"]
    assert json.loads(str(found["--additional-config"])) == {"eplb_config": {"expert_map_path": str(path)}}


def test_vllm_ascend_holds_an_expert_once_on_a_device(tmp_path: Path) -> None:
    plan = placement([ROWS[0], [0, 1, 2, 3, 3, 1]])
    with pytest.raises(ExportError, match="layer 3, GPU 1: vLLM Ascend cannot hold an expert twice"):
        export(document(plan), "vllm-ascend", str(tmp_path / "map.json"))


def test_vllm_refusal_names_real_flags(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export(document(placement()), "vllm", str(tmp_path / "map.json"))
    text = str(caught.value)
    flags = shlex.split(text[text.index("--enable") : text.index("}'") + 2])
    table = shared_data / "engines" / "vllm-0.33.0-flags.json"
    found = parsed_by_table(flags, table)
    assert list(found) == ["--enable-expert-parallel", "--enable-eplb", "--eplb-config"]
    config = json.loads(str(found["--eplb-config"]))
    assert config == {"num_redundant_experts": 2}
    assert set(config) <= set(json.loads(table.read_text())["nested"]["EPLBConfig"])


@pytest.mark.parametrize("to", ["trtllm", "vllm-ascend"])
def test_lp_plans_need_an_engine_with_lp(tmp_path: Path, to: str) -> None:
    path = tmp_path / "map.json"
    with pytest.raises(ExportError, match="plan again with split: even, or export to sglang"):
        export(document(placement(split="lp")), to, str(path))
    assert not path.exists()
    export(document(placement(NO_REPLICAS, split="lp")), to, str(path))
    np.testing.assert_array_equal(read_expert_placement(path).rows(LAYERS, 4), NO_REPLICAS)
