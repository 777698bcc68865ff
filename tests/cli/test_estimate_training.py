"""`gpuplan estimate --task train`: where a step's seconds and a GPU's gigabytes go, and every exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from planner import catalog
from planner.cost.training.coefficients import calibration
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.memory import training_memory
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import TrainingPlans
from planner.cost.training.step import training_step

Invoke = Callable[..., Result]

TRAIN = ["estimate", "--task", "train", "--model", "meta-llama/Llama-3.1-70B", "--device", "h100", "--tp", "8"]
BATCH = ["--global-batch-size", "512", "--sequence-length", "4096"]
PLAN = [*TRAIN, *BATCH, "--pp", "4", "--dp", "8", "--inter-node-bandwidth", "400Gbit/s"]


def metrics(result: Result) -> dict[str, float]:
    assert result.exit_code in (0, 6), result.output
    return {one["name"]: one["value"] for one in json.loads(result.stdout)["verdict"]["metrics"]}


def test_json_is_what_the_model_predicts(gpuplan: Invoke) -> None:
    result = gpuplan(*PLAN, "--json")
    found = metrics(result)
    device, model = catalog.device("h100_sxm"), TrainingModel.from_spec(catalog.model("meta-llama/Llama-3.1-70B"))
    plan = TrainingPlans.build(
        tensor_parallel_size=8,
        pipeline_parallel_size=4,
        data_parallel_size=8,
        global_batch_size=512,
        micro_batch_size=1,
        sequence_length=4096,
    )
    network = TrainingNetwork.of(device, inter_node_bytes_per_s=50e9)
    times = training_step(model, device, network, plan, calibration().coefficients("h100_sxm", "megatron"))
    assert found["step_s"] == pytest.approx(times.step_s[0])
    assert sum(value for name, value in found.items() if name.startswith("step.")) == pytest.approx(found["step_s"])
    memory = training_memory(model, plan, calibration().memory.margin)
    assert found["memory_bytes"] == pytest.approx(memory.total[0])
    parts = [value for name, value in found.items() if name.startswith("memory.")]
    assert np.sum(parts) == pytest.approx(device.known_memory_bytes), "parts and what is free fill the GPU"
    assert found["tokens_per_s"] == pytest.approx(512 * 4096 / found["step_s"])
    document = json.loads(result.stdout)
    assert (document["task"], document["inputs"]["num_gpus"]) == ("train", 256)
    assert document["inputs"]["inter_node_bytes_per_s"] == 50e9


def test_text(gpuplan: Invoke) -> None:
    text = gpuplan(*PLAN).stdout
    for word in ("256 x h100_sxm", "tokens/s", "MFU", "kernels of the slowest stage", "optimizer states", "bottleneck"):
        assert word in text, word


def test_what_does_not_fit_says_what_would(gpuplan: Invoke) -> None:
    large = [*TRAIN, "--global-batch-size", "64", "--sequence-length", "8192", "--zero", "1", "--micro-batch-size", "4"]
    result = gpuplan(*large, "--dp", "8", "--inter-node-bandwidth", "50GB/s", "--json")
    assert result.exit_code == 6
    (violation,) = json.loads(result.stdout)["verdict"]["violations"]
    assert violation["rule"] == "gpu_memory"
    assert violation["amount"] > violation["limit"]
    assert violation["message"].endswith(" fits")
    # The advice, followed.
    flags = {"a micro-batch of 1": ["--micro-batch-size", "1"], "ZeRO stage 3": ["--zero", "3"]}
    flags |= {f"{mode} recomputation": ["--recompute", mode] for mode in ("selective", "full")}
    advised = [flag for words, pair in flags.items() if words in violation["message"] for flag in pair]
    assert advised
    assert gpuplan(*large, "--dp", "8", "--inter-node-bandwidth", "50GB/s", *advised).exit_code == 0
    alone = gpuplan("estimate", "--task", "train", "--model", "meta-llama/Llama-3.1-70B", "--device", "h100", *BATCH)
    assert alone.exit_code == 6
    assert "split over more GPUs" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*PLAN, "--tp", "3"], "--tp: tensor_parallel_size does not divide the 64 attention heads"),
        ([*PLAN, "--pp", "81"], "--pp: pipeline_parallel_size x virtual_pipeline_size is beyond the 80 layers"),
        ([*PLAN, "--global-batch-size", "100"], "--global-batch-size: global_batch_size is not a multiple"),
        ([*PLAN, "--cp", "3"], "--cp: context_parallel_size does not divide"),
        ([*PLAN, "--ep", "2"], "--ep: expert_parallel_size is above 1 for a model without experts"),
        ([*PLAN, "--vpp", "3", "--global-batch-size", "8"], "--vpp: interleaving needs"),
        ([*PLAN, "--schedule", "zb-v"], "--vpp: ZB_V has two chunks"),
        ([*PLAN, "--schedule", "gpipe", "--vpp", "2"], "--schedule: GPIPE"),
        ([*PLAN, "--dp", "0"], "--dp: is 0, but must be from 1"),
        ([*PLAN, "--zero", "4"], "--zero: is 4, but must be from 0 to 3"),
        ([*PLAN, "--precision", "int3"], "--precision: is 'int3'"),
        ([*PLAN, "--framework", "none"], "--framework: no measurements of 'none'; known: llm_foundry, megatron"),
        ([*PLAN, "--device", "a100_sxm", "--precision", "fp8"], "a100_sxm: has no matrix units for fp8"),
        ([*PLAN, "--inter-node-bandwidth", "0"], "--inter-node-bandwidth: a bandwidth of one GPU must be above 0"),
        ([*TRAIN, *BATCH, "--dp", "8"], "--inter-node-bandwidth: must be given, such as 400Gbit/s: 64 GPUs"),
        ([*PLAN, "--model", "no/such", "--device", "x"], "--device: the catalogue has no device 'x'"),
        ([*PLAN, "--calibration", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_descriptions_are_7(gpuplan: Invoke, arguments: list[str], told: str) -> None:
    result = gpuplan(*arguments)
    assert result.exit_code == 7, result.output
    assert told in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (TRAIN, "--global-batch-size, --sequence-length must be given"),
        ([*PLAN, "--concurrency", "3", "--ttft", "1s"], "--concurrency, --ttft cannot be used with --task train"),
        ([*PLAN, "--recompute", "some"], "'some' is not one of"),
    ],
)
def test_usage_is_2(gpuplan: Invoke, arguments: list[str], told: str) -> None:
    result = gpuplan(*arguments)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


def test_a_mistaken_unit_is_doubted(gpuplan: Invoke) -> None:
    assert "check its unit" in gpuplan(*PLAN, "--inter-node-bandwidth", "400GB/s").stdout
    assert "check its unit" not in gpuplan(*PLAN).stdout


def test_coefficients_of_ones_own(gpuplan: Invoke, folder: Path) -> None:
    entry = {"gemm_efficiency": 0.4, "narrow_gemm": 64.0, "attention_efficiency": 0.2, "traffic": 3.0}
    entry |= {"link_efficiency": 0.3, "overlap": 0.0, "source": "calibrated"}
    own = {"training": [{"device": "h100_sxm", "framework": "mine", "num_runs": 3, "coefficients": entry}]}
    (folder / "own.yaml").write_text(json.dumps(own))
    slower = metrics(gpuplan(*PLAN, "--framework", "mine", "--calibration", "own.yaml", "--json"))
    assert slower["step_s"] > 1.2 * metrics(gpuplan(*PLAN, "--json"))["step_s"]
    result = gpuplan(*PLAN, "--calibration", "own.yaml")
    assert result.exit_code == 7
    assert "own.yaml has no training entry for h100_sxm, megatron" in result.stderr
