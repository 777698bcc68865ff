"""Step time: arithmetic by hand."""

import numpy as np
import pytest

from planner.catalog import model as catalogue_model
from planner.cost.training import step
from planner.cost.training.coefficients import TrainingCoefficients
from planner.cost.training.communication import TrainingNetwork
from planner.cost.training.model import TrainingModel
from planner.cost.training.plans import Recompute, TrainingPlans
from planner.cost.training.step import training_step
from planner.errors import DescriptionError, RefusedError
from planner.hardware import DeviceKind

#: Realistic coefficients with everything switched on.
REAL = TrainingCoefficients(
    gemm_efficiency=0.7, narrow_gemm=64, attention_efficiency=0.4, traffic=1.5, link_efficiency=0.7, overlap=0.5
)
SMALL = TrainingModel.dense(layers=2, hidden=1000, heads=10, ffn=4000, vocab=5000)
BATCH = {"micro_batch_size": 1, "global_batch_size": 4, "sequence_length": 100, "zero_stage": 0}


def test_compute_by_hand(gpu: DeviceKind, network: TrainingNetwork, ideal: TrainingCoefficients) -> None:
    """Two layers of 12 million weights and a head of 5 million; 100 tokens; flash attention; element-wise traffic."""
    times = training_step(SMALL, gpu, network, TrainingPlans.build(**BATCH), ideal)
    products = 3 * 2 * 100 * (2 * 12e6 + 5e6) / 100e12
    attention = 2 * 3.5 * (2 * 1000 * 100 * 100) / 100e12
    traffic = 2 * 2.5 * 100 * 2 * (11 * 1000 + 4 * 1000 + 2 * 4000) / 1e12
    logits = 100 * 5000 * 14 / 1e12
    assert times.compute_s[0] == pytest.approx(4 * (products + attention + traffic + logits))
    assert times.optimizer_s[0] == pytest.approx(30 * (24e6 + 10e6) / 1e12)
    assert times.step_s[0] == pytest.approx(times.compute_s[0] + times.optimizer_s[0])
    useful = 400 * (6 * 29e6 + 2 * 12 * 1000 * 100)
    assert times.mfu[0] == pytest.approx(useful / times.step_s[0] / 100e12)
    assert times.hfu[0] == times.mfu[0]
    assert times.tokens_per_s[0] == pytest.approx(400 / times.step_s[0])


def test_unfused_attention_by_hand(gpu: DeviceKind, network: TrainingNetwork, ideal: TrainingCoefficients) -> None:
    """The whole square, and 13 + 21 bytes a score."""
    plans = TrainingPlans.build(**BATCH, flash_attention=[True, False])
    flash, unfused = training_step(SMALL, gpu, network, plans, ideal).compute_s
    core = 2 * (2 * 1000 * 100 * 100) / 100e12
    scores = 10 * 100 * 100 * 34 / 1e12
    assert unfused - flash == pytest.approx(4 * 2 * (3 * core + scores - 3.5 * core / 2))


def test_recomputation_by_hand(gpu: DeviceKind, network: TrainingNetwork, ideal: TrainingCoefficients) -> None:
    plans = TrainingPlans.build(**BATCH, recompute=[Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL])
    times = training_step(SMALL, gpu, network, plans, ideal)
    none, selective, full = times.compute_s
    core = 2 * 1000 * 100 * 100 / 100e12
    rest = 2 * 100 * 12e6 / 100e12 + 100 * 2 * 23000 / 1e12
    assert selective - none == pytest.approx(4 * 2 * core)
    assert full - none == pytest.approx(4 * 2 * (core + rest))
    recomputed = times.hfu / times.mfu - 1.0
    useful = 6 * 29e6 + 2 * 12 * 1000 * 100
    assert recomputed == pytest.approx([0, 2 * 4e5 / useful, (2 * 4e5 + 2 * 2 * 12e6) / useful])


def test_collectives_by_hand(gpu: DeviceKind, ideal: TrainingCoefficients) -> None:
    """Two tensor-parallel ranks, and four data-parallel ones over two nodes."""
    quiet = TrainingNetwork(
        gpus_per_node=4,
        intra_node_bytes_per_s=100e9,
        inter_node_bytes_per_s=10e9,
        intra_node_latency_s=0.0,
        inter_node_latency_s=0.0,
    )
    plans = TrainingPlans.build(**BATCH, tensor_parallel_size=2, data_parallel_size=4)
    times = training_step(SMALL, gpu, quiet, plans, ideal)
    # Four all-reduces a layer of 2 x 100 x 1000 bytes: twice half of it each; one micro-batch of two layers.
    assert times.tensor_s[0] == pytest.approx(2 * 4 * 2 * 200e3 / 2 / 100e9)
    # All-reduce of 17 million fp32 gradients: half inside the node, then half of a half between nodes.
    gradients = 4 * (24e6 + 10e6) / 2
    assert times.data_s[0] == pytest.approx(2 * gradients * (0.5 / 100e9 + 0.5 * 0.5 / 10e9))


def test_pipeline_counts_the_head_on_the_last_stage(
    gpu: DeviceKind, network: TrainingNetwork, ideal: TrainingCoefficients
) -> None:
    """Two stages of one layer: the last is the slowest, and the bubble is one micro-batch of the first."""
    whole = training_step(SMALL, gpu, network, TrainingPlans.build(**BATCH), ideal).compute_s[0] / 4
    times = training_step(SMALL, gpu, network, TrainingPlans.build(**BATCH, pipeline_parallel_size=2), ideal)
    last = times.compute_s[0] / 4
    assert times.bubble_s[0] == pytest.approx(whole - last)
    assert last > times.bubble_s[0]


def test_experts_pay_for_their_all_to_all(gpu: DeviceKind, network: TrainingNetwork) -> None:
    model = TrainingModel.from_spec(catalogue_model("mistralai/Mixtral-8x7B-Instruct-v0.1"))
    plans = TrainingPlans.build(
        expert_parallel_size=[1, 8], data_parallel_size=8, micro_batch_size=1, global_batch_size=8, sequence_length=4096
    )
    times = training_step(model, gpu, network, plans, REAL)
    # Four exchanges a layer of two copies of 4096 x 4096 elements, seven eighths of them to others.
    expected = 32 * 4 * (2 * 2 * 4096 * 4096 * 7 / 8 / 70e9 + 3 * 5e-6)
    assert times.expert_s == pytest.approx([0.0, expected])
    assert times.data_s[1] < times.data_s[0]


def test_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork
) -> None:
    plans = TrainingPlans.build(
        data_parallel_size=np.arange(1, 20), micro_batch_size=1, global_batch_size=232792560, sequence_length=64
    )
    whole = training_step(gpt, gpu, network, plans, REAL).step_s
    monkeypatch.setattr(step, "CHUNK_PLANS", 7)
    assert training_step(gpt, gpu, network, plans, REAL).step_s.tolist() == whole.tolist()


def test_fp8_speeds_up_the_layers_and_not_the_head(gpu: DeviceKind, network: TrainingNetwork) -> None:
    plans = TrainingPlans.build(**BATCH)
    coefficients = REAL.model_copy(update={"narrow_gemm": 0.0})
    slow = training_step(SMALL, gpu, network, plans, coefficients).compute_s[0]
    fast = training_step(SMALL, gpu, network, plans, coefficients, "fp8").compute_s[0]
    assert slow - fast == pytest.approx(4 * 3 * 2 * 100 * 24e6 / 70e12 / 2)


def test_illegal_plans_and_formats_are_refused(gpt: TrainingModel, gpu: DeviceKind, network: TrainingNetwork) -> None:
    with pytest.raises(RefusedError, match="64 attention heads"):
        training_step(gpt, gpu, network, TrainingPlans.build(**BATCH, tensor_parallel_size=3), REAL)
    with pytest.raises(DescriptionError, match="fp4"):
        training_step(gpt, gpu, network, TrainingPlans.build(**BATCH), REAL, "fp4")
