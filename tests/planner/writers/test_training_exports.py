"""`export` of training plans: arguments that say the same sizes, layers once, and refusals with their reason."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formulations.planning import plan as plan_instance
from planner.descriptions.training import TrainingInstance
from planner.errors import ExportError
from planner.plan import TrainingDocument
from planner.training_plan import TrainingPlan, TrainingStage
from planner.writers import export
from planner.writers.deepspeed import config
from planner.writers.megatron import arguments
from planner.writers.torchtitan import overrides
from planner.writers.training_launch import chunks

MODEL = {
    "num_hidden_layers": 7,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


@cache
def document(framework: str, **fixed: int) -> TrainingDocument:
    """The small model on two nodes of four."""
    instance: dict[str, Any] = {
        "name": "small",
        "model": MODEL,
        "cluster": {"nodes": [{"device": "a100_sxm", "count": 2, "gpus_per_node": 4}]},
        "global_batch_size": 16,
        "sequence_length": 4096,
        "framework": framework,
        "fixed": fixed,
    }
    found = plan_instance(TrainingInstance.model_validate(instance))
    assert isinstance(found, TrainingDocument)
    return found


def the_plan(framework: str, **fixed: int) -> TrainingPlan:
    found = document(framework, **fixed).plan
    assert found is not None
    return found


def options(lines: list[str]) -> dict[str, str]:
    return {name: value for line in lines for name, _, value in [line.partition(" ")]}


def test_megatron_gets_the_sizes_and_a_layout_of_all_layers(tmp_path: Path) -> None:
    plan = the_plan("megatron", pipeline_parallel_size=2, tensor_parallel_size=2)
    told = options(arguments(plan))
    assert told["--tensor-model-parallel-size"] == "2"
    assert told["--global-batch-size"] == "16"
    assert "--sequence-parallel" in told
    assert "--use-distributed-optimizer" in told
    layout = told["--pipeline-model-parallel-layout"].strip("'")
    assert layout[0] == "E"
    assert layout[-1] == "L"
    assert sum(int(count or 1) for count in re.findall(r"t(?:\*(\d+))?", layout)) == 7
    export(document("megatron", pipeline_parallel_size=2, tensor_parallel_size=2), "megatron", str(tmp_path / "a.sh"))
    text = (tmp_path / "a.sh").read_text()
    assert "--nnodes 2 --nproc-per-node 4" in text
    assert "MEGATRON_ARGS=(" in text


def test_torchtitan_gets_every_module_once(tmp_path: Path) -> None:
    plan = the_plan("torchtitan", pipeline_parallel_size=2)
    told = options(overrides(plan))
    modules = re.findall(r"[\w.]+", told["--parallelism.module_fqns_per_model_part"])
    assert sorted(modules) == sorted(["tok_embeddings", *(f"layers.{i}" for i in range(7)), "norm", "output"])
    degrees = [int(value) for name, value in told.items() if name.endswith("_degree")]
    product = 1
    for degree in degrees:
        product *= degree
    assert product == plan.num_gpus
    export(document("torchtitan", pipeline_parallel_size=2), "torchtitan", str(tmp_path / "a.sh"))
    assert "TITAN_ARGS=(" in (tmp_path / "a.sh").read_text()


def test_deepspeed_batch_multiplies(tmp_path: Path) -> None:
    plan = the_plan("deepspeed", pipeline_parallel_size=1, context_parallel_size=1)
    found = config(plan)
    assert found["train_batch_size"] == (
        found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"] * plan.data_parallel_size
    )
    name = str(tmp_path / "ds.json")
    export(document("deepspeed", pipeline_parallel_size=1, context_parallel_size=1), "deepspeed", name)
    assert json.loads(Path(name).read_text()) == found


@pytest.mark.parametrize(
    ("to", "changes", "words"),
    [
        ("megatron", {"schedule": "zb-1p"}, "no zb-1p schedule"),
        ("megatron", {"gradient_bytes": 6}, "2 or 4 bytes"),
        ("megatron", {"zero_stage": 3}, "does not run in a pipeline"),
        ("megatron", {"data_parallel_size": 3}, "stages have"),
        ("megatron", {"num_micro_batches": 5}, "sequences, not 16"),
        ("megatron", {"framework": "torchtitan"}, "made for torchtitan"),
        ("megatron", {"expert_parallel_size": 3}, "does not divide"),
        ("megatron", {"gpus_per_node": 3}, "do not fill nodes of 3"),
        ("deepspeed", {"framework": "deepspeed"}, "PipelineModule"),
        ("torchtitan", {"framework": "torchtitan"}, "shards with FSDP"),
        ("torchtitan", {"framework": "torchtitan", "zero_stage": 2, "recompute": "selective"}, "every other operator"),
        ("torchtitan", {"framework": "torchtitan", "zero_stage": 2, "schedule": "zb-2p"}, "no zb-2p schedule"),
    ],
)
def test_refusals_say_why(to: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    sound = document("megatron", pipeline_parallel_size=2, tensor_parallel_size=2)
    assert sound.plan is not None
    broken = sound.model_copy(update={"plan": sound.plan.model_copy(update=changes)})
    with pytest.raises(ExportError, match=words):
        export(broken, to, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@given(layers=st.lists(st.integers(2, 9), min_size=1, max_size=5), virtual=st.integers(1, 2), back=st.booleans())
def test_chunks_hold_each_layer_once(layers: list[int], virtual: int, back: bool) -> None:
    plan = the_plan("megatron", pipeline_parallel_size=2, tensor_parallel_size=2)
    stages = tuple(
        TrainingStage(num_layers=count, first_gpu=0, num_gpus=1, micro_batch_s=0.0, peak_memory_bytes=0.0)
        for count in layers
    )
    schedule = "zb-v" if back and virtual == 2 else "1f1b"
    made = chunks(plan.model_copy(update={"stages": stages, "virtual_pipeline_size": virtual, "schedule": schedule}))
    held = [layer for chunk in made for layer in range(chunk.first, chunk.first + chunk.num_layers)]
    assert held == list(range(sum(layers)))
    assert len(made) == virtual * len(layers)
    assert min(chunk.num_layers for chunk in made) >= 1


@cache
def mixed_document(**fixed: int) -> TrainingDocument:
    """The small model on four H100 and four A100, too little of each alone."""
    nodes = [{"device": name, "count": 1, "gpus_per_node": 4} for name in ("h100_sxm", "a100_sxm")]
    instance: dict[str, Any] = {
        "name": "mixed",
        "model": {**MODEL, "num_hidden_layers": 16},
        "cluster": {"nodes": nodes, "network": {"link": "ib_hdr"}},
        "global_batch_size": 32,
        "sequence_length": 2048,
        "reserve": 0.6,
        "fixed": fixed,
    }
    found = plan_instance(TrainingInstance.model_validate(instance))
    assert isinstance(found, TrainingDocument)
    assert found.plan is not None
    return found


def test_unequal_stages_of_equal_sizes_are_a_layout_with_their_places(tmp_path: Path) -> None:
    sizes = {"tensor_parallel_size": 4, "data_parallel_size": 1, "pipeline_parallel_size": 2}
    document = mixed_document(**sizes)
    assert document.plan is not None
    assert document.plan.layout == "stages"
    export(document, "megatron", str(tmp_path / "mixed.sh"))
    text = (tmp_path / "mixed.sh").read_text()
    layers = [stage.num_layers for stage in document.plan.stages]
    assert f"--pipeline-model-parallel-layout 'Et*{layers[0]}|t*{layers[1]}L'" in text
    for place, stage in enumerate(document.plan.stages):
        rows = f"stage {place}, ranks {4 * place}-{4 * place + 3}: {stage.device}, GPUs {stage.first_gpu}"
        assert rows in text
    assert "--nnodes 2 --nproc-per-node 4" in text


def test_what_no_launcher_says_is_refused_with_its_reason(tmp_path: Path) -> None:
    document = mixed_document(tensor_parallel_size=4, data_parallel_size=1, pipeline_parallel_size=2)
    plan = document.plan
    assert plan is not None
    first = plan.stages[0].model_copy(update={"tensor_parallel_size": 2, "data_parallel_size": 2})
    for changes, words in (
        ({"stages": (first, *plan.stages[1:])}, "one tensor_parallel_size for all stages, these have 2, 4"),
        ({"layout": "replicas"}, "every replica the same micro-batches"),
        # Half a node of each kind: eight ranks are not one node of eight.
        ({"gpus_per_node": 8}, "ranks 0-7 do not lie on one node"),
        ({"framework": "torchtitan", "stages": (first, *plan.stages[1:])}, "made for torchtitan"),
    ):
        broken = document.model_copy(update={"plan": plan.model_copy(update=changes)})
        with pytest.raises(ExportError, match=words):
            export(broken, "megatron", str(tmp_path / "no.sh"))
